"""Every metric of the papers whose weights are present, for one experiment or several side by side."""

import argparse
from pathlib import Path

from dime.core.cli import Parser, run
from dime.core.errors import InputError
from dime.core.job.world import World
from dime.core.metrics import scripts
from dime.core.metrics.protocol import evaluate
from dime.core.metrics.report import PUBLISHED, as_csv, as_json, markdown
from dime.core.metrics.robust import ROBUST
from dime.core.results import ResultTree
from guided_diffusion.dist_util import watched


def main() -> int | None:
    """Evaluate, alone or with other processes, print the table, and leave it in every experiment's folder."""
    world = World()
    with world.one_voice():
        args = world.parsed(build_parser().parse_args)
        if (code := world.several(args.gpu)) is not None:
            return code
        args.gpu = str(world.device(args.gpu))
        with watched():
            evaluate_and_write(args, world.speaks)
    return None


def evaluate_and_write(args: argparse.Namespace, speaks: bool) -> None:
    """Evaluate; the one process that speaks prints and writes."""
    seeds = scripts.seed_trees(args) if args.exp_pattern or args.exp_values else []
    names = dict.fromkeys([*args.exp_name, *(seed.exp_name for seed in seeds)])
    if not names:
        raise InputError("no experiment is named: give --exp-name, or --exp-pattern and --exp-values")
    trees = [ResultTree(args.output_path, name) for name in names]
    args.partition = None if args.partition == "all" else args.partition  # COUT's own choice is cor
    report = evaluate(scripts.context_of(args, seeds), trees, args.robust)
    if not speaks:
        return
    print(markdown(report, args.papers), end="", flush=True)
    if args.json:
        scripts.write_file(args.json, as_json(report))
    for tree in trees:
        own = report.of(tree.exp_name)
        for suffix, content in {"md": markdown(own, args.papers), "csv": as_csv(own), "json": as_json(own)}.items():
            name = f"evaluation.{suffix}"
            instead = args.report_path and args.report_path / tree.exp_name / name
            scripts.write_report(tree.report(name), content, instead, "--report-path FOLDER")


def build_parser() -> Parser:
    """The flags."""
    parser = scripts.metric_parser(__doc__, *scripts.FLAGS, one_experiment=False)
    add = parser.add_argument
    add("--exp-name", nargs="+", default=[], help="the experiments (main.py's --exp_name)")
    scripts.add_seeds_flags(parser, required=False)
    add("--papers", nargs="*", choices=tuple(PUBLISHED), default=[], help="columns with papers' figures (Smile)")
    folder = "folder for evaluation.md, .csv and .json, in EXP_NAME there; unset: in the experiment's own folder"
    add("--report-path", type=Path, metavar="FOLDER", help=folder)
    rows = ", ".join(metric.rows[0] for metric in ROBUST)
    add("--robust", action="store_true", help=f"measure {rows} too")
    return parser


if __name__ == "__main__":
    run(main)
