"""sigma_L: how different are the counterfactuals of one image when only the seed changes? Mean LPIPS between
them.
"""

from dime.core.cli import run
from dime.core.evaluation.cli import add_seeds_flags, machine, metric_parser, seed_trees, show
from dime.core.evaluation.measures import diversity
from dime.core.networks.features import load_lpips


def main() -> None:
    """Read several experiments, print sigma_L."""
    parser = metric_parser(__doc__, one_experiment=False)
    add_seeds_flags(parser, required=True)
    args = parser.parse_args()
    trees, here = seed_trees(args), machine(args)
    show(args, {"sigma_L result:": diversity(trees, load_lpips(here.device), here, args.partition)})


if __name__ == "__main__":
    run(main)
