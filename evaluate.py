"""Every metric of the papers whose weights are present, for one experiment or several side by side."""

import argparse
from pathlib import Path

from dime.core.cli import Parser, attribute, run
from dime.core.errors import InputError
from dime.core.evaluation import table as tables
from dime.core.evaluation.cli import (
    NETWORK_FLAGS,
    add_seeds_flags,
    machine,
    metric_parser,
    seed_trees,
    tree,
    write_file,
)
from dime.core.evaluation.measures import FEATURE_NETWORKS
from dime.core.evaluation.protocol import Request, evaluate
from dime.core.evaluation.published import PUBLISHED


def main() -> None:
    """Evaluate, print the table, and leave it in every experiment's folder."""
    args = build_parser().parse_args()
    request = build_request(args)
    report = evaluate(request)
    print(tables.markdown(report, args.papers), end="")
    for experiment in request.trees:
        own = report.of(experiment.exp_name)
        write_file(experiment.report("evaluation.md"), tables.markdown(own, args.papers))
        write_file(experiment.report("evaluation.csv"), tables.as_csv(own))
        write_file(experiment.report("evaluation.json"), tables.as_json(own))
    if args.json:
        write_file(args.json, tables.as_json(report))


def build_parser() -> Parser:
    """The flags."""
    parser = metric_parser(__doc__, *NETWORK_FLAGS, one_experiment=False)
    add = parser.add_argument
    add("--exp-name", nargs="+", default=[], help="the experiments (main.py's --exp_name)")
    add_seeds_flags(parser, required=False)
    add("--celeba-path", default=None, help="folder in CelebA's layout, for CD's train labels")
    add("--query-label", type=attribute, help="attribute explained, by index or name; unset: as each run recorded")
    add("--feature-network", choices=FEATURE_NETWORKS, default="inception", help="the space of Frechet distances")
    add("--papers", nargs="*", choices=tuple(PUBLISHED), default=[], help="columns with papers' figures (Smile)")
    return parser


def build_request(args: argparse.Namespace) -> Request:
    """The flags as a request. Raises InputError when no experiment is named."""
    seeds = seed_trees(args) if args.exp_pattern or args.exp_values else []
    names = dict.fromkeys([*args.exp_name, *(seed.exp_name for seed in seeds)])
    if not names:
        raise InputError("no experiment is named: give --exp-name, or --exp-pattern and --exp-values")
    return Request(
        trees=[tree(args, name) for name in names],
        machine=machine(args),
        query=args.query_label,
        partition=args.partition,
        seeds=seeds,
        weights_path=Path(args.weights_path),
        oracle_path=Path(args.oracle_path),
        classifier_path=Path(args.classifier_path),
        celeba_path=args.celeba_path,
        inception_weights=args.inception_weights and Path(args.inception_weights),
        feature_network=args.feature_network,
    )


if __name__ == "__main__":
    run(main)
