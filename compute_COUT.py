"""COUT: how soon does the decision flip while pixels turn into the counterfactual's, most changed first?"""

from pathlib import Path

from dime.core.cli import run
from dime.core.evaluation.cli import add_query_flag, machine, metric_parser, show, tree, write_file
from dime.core.evaluation.measures import class_transition, select_pairs
from dime.core.evaluation.plots import transition_plot
from dime.core.networks.classifiers import load_classifier, output_column


def main() -> None:
    """Read a result tree, print COUT, draw the mean curves."""
    parser = metric_parser(__doc__, "--classifier-path", partition="cor")
    add_query_flag(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG of the curves; unset: COUT.png in EXP_NAME")
    args = parser.parse_args()
    pairs, here = select_pairs(tree(args), args.partition, flipped_only=False), machine(args)
    classifier = load_classifier(args.classifier_path, here.device)
    column = output_column(classifier, args.query_label, args.classifier_path)
    result, curves = class_transition(pairs, classifier, column, here)
    show(args, {"COUT:": result})
    write_file(args.plot or tree(args).report("COUT.png"), transition_plot(curves))


if __name__ == "__main__":
    run(main)
