"""CD: do counterfactuals change other attributes as the data set couples them to the one explained?"""

from pathlib import Path

from dime.core.cli import run
from dime.core.evaluation.cli import add_query_flag, machine, metric_parser, note, show, tree, write_file
from dime.core.evaluation.measures import oracle_logits, select_pairs, spurious_correlations, train_labels
from dime.core.evaluation.plots import correlation_plot
from dime.core.run_config import recorded


def main() -> None:
    """Read a result tree and CelebA's train labels, print CD, draw both correlations."""
    parser = metric_parser(__doc__, "--oracle-path")
    parser.add_argument("--celeba-path", required=True, help="folder in CelebA's layout; its train labels are read")
    add_query_flag(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG of the bar plot; unset: CD.png in EXP_NAME")
    args = parser.parse_args()
    pairs = select_pairs(tree(args), args.partition)
    labels = train_labels(args.celeba_path)
    attributes = oracle_logits(args.oracle_path, machine(args))
    cd, correlations = spurious_correlations(pairs, attributes, labels, args.query_label)
    if correlations.undefined:
        note(f"{correlations.undefined} attributes never change: their correlation is undefined and counts as 0")
    if other := recorded(tree(args), "query_label") - {args.query_label}:
        note(f"the experiment explains attribute {other.pop()} (config.yaml), CD is taken for {args.query_label}")
    show(args, {"CD Result:": cd})
    plot = args.plot or tree(args).report("CD.png")
    write_file(plot, correlation_plot(correlations, args.query_label))


if __name__ == "__main__":
    run(main)
