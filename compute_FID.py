"""FID and sFID: are counterfactuals realistic? Frechet distances between inputs and counterfactuals of CCF."""

from dime.core.cli import run
from dime.core.evaluation.cli import machine, metric_parser, note, show, tree
from dime.core.evaluation.measures import FEATURE_NETWORKS, frechet_features, realism, remembered
from dime.core.evaluation.published import too_few_images


def main() -> None:
    """Read a result tree, print both distances."""
    parser = metric_parser(__doc__, "--inception-weights", "--oracle-path")
    parser.add_argument(
        "--feature-network",
        choices=FEATURE_NETWORKS,
        default="inception",
        help="the space of the distance; with oracle it is no FID, for images on which Inception makes no sense",
    )
    args = parser.parse_args()
    weights = args.inception_weights if args.feature_network == "inception" else args.oracle_path
    features, weights = frechet_features(args.feature_network, weights, machine(args))
    inputs = remembered(features, tree(args), args.feature_network, weights)
    results = realism(tree(args), args.partition, args.feature_network, inputs, features)
    if caution := too_few_images(results[0]):
        note(caution)
    show(args, {f"{result.name}:": result for result in results})


if __name__ == "__main__":
    run(main)
