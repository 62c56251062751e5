"""MNAC: how many of the 40 attributes, as the oracle sees them, does a counterfactual change on average?"""

from dime.core.cli import run
from dime.core.evaluation.cli import machine, metric_parser, show, tree
from dime.core.evaluation.measures import changed_attributes, oracle_logits, select_pairs


def main() -> None:
    """Read a result tree, print MNAC."""
    args = metric_parser(__doc__, "--oracle-path").parse_args()
    pairs = select_pairs(tree(args), args.partition)
    show(args, {"MNAC:": changed_attributes(pairs, oracle_logits(args.oracle_path, machine(args)))})


if __name__ == "__main__":
    run(main)
