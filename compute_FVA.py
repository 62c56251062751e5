"""FVA: do counterfactuals show the same person? Share, and mean, of the cosines between VGGFace2 features."""

from dime.core.cli import run
from dime.core.evaluation.cli import machine, metric_parser, show, tree
from dime.core.evaluation.measures import face_features, face_verification, select_pairs


def main() -> None:
    """Read a result tree, print FVA and mean dist."""
    args = metric_parser(__doc__, "--weights-path").parse_args()
    pairs = select_pairs(tree(args), args.partition)
    fva, mean_cosine = face_verification(pairs, face_features(args.weights_path, machine(args)))
    show(args, {"FVA": fva, "mean dist": mean_cosine})


if __name__ == "__main__":
    run(main)
