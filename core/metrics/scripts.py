"""What the metric scripts share: their flags, and how a result is printed and written."""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from matplotlib.figure import Figure

from dime.core.cli import Parser, integer, select_device
from dime.core.errors import InputError
from dime.core.files import write_atomically
from dime.core.metrics.features import Machine
from dime.core.metrics.metric import PARTITIONS, Context, Metric, select_pairs
from dime.core.metrics.report import Report
from dime.core.results import ResultTree, make_folder
from dime.core.table import UNDEFINED

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)

FLAGS = {f"--{entry.name.replace('_', '-')}": entry for entry in fields(Context) if entry.metadata}
"""The flags that metrics read (Metric.flags)."""


def script_of(metric: Metric, description: str) -> Callable[[], None]:
    """A metric's own script: measure one experiment, print a line per number, draw the figure, write --json."""

    def main() -> None:
        parser = metric_parser(
            description, *metric.flags, one_experiment=not metric.of_seeds, partition=metric.partition
        )
        if metric.of_seeds:
            add_seeds_flags(parser, required=True)
        if metric.plot:
            parser.add_argument(
                "--plot", type=Path, metavar="FILE", help=f"PNG; unset: {metric.rows[0]}.png in EXP_NAME"
            )
        args = parser.parse_args()
        seeds = seed_trees(args) if metric.of_seeds else []
        trees = seeds or [ResultTree(args.output_path, args.exp_name)]
        for every in trees:
            select_pairs(every, flipped_only=False)  # what is wrong with a tree shows before the work
        context, tree, report = context_of(args, seeds), trees[0], Report.empty([trees[0].exp_name])
        found = metric.on(context, tree, metric.needs(context, tree))
        report.add(tree.exp_name, found)
        for line in report.missing[tree.exp_name] + report.caveats[tree.exp_name]:
            print(line, file=sys.stderr)
        for m in found:
            print(metric.printed.get(m.name, f"{m.name}:"), UNDEFINED if m.value is None else m.value)
        if args.json:
            write_file(args.json, json.dumps({m.name: m.as_dict() for m in found}, indent=2) + "\n")
        if metric.plot and found[0].detail is not None:
            write_report(tree.report(f"{metric.rows[0]}.png"), png(metric.plot(found[0])), args.plot, "--plot FILE")

    return main


def metric_parser(description: str, *flags: str, one_experiment: bool = True, partition: str | None = "all") -> Parser:
    """The flags of all metric scripts, and these of FLAGS.

    partition: the default of --partition; None: no such flag. one_experiment: whether there is one --exp-name.
    """
    parser = Parser(description=description)
    add = parser.add_argument
    add("--output-path", type=Path, required=True, help="folder of the result tree (main.py's --output_path)")
    if one_experiment:
        add("--exp-name", required=True, help="the experiment (main.py's --exp_name)")
    for name in flags:
        add(name, default=FLAGS[name].default, **FLAGS[name].metadata)
    add_machine_flags(parser)
    add("--json", type=Path, metavar="FILE", help="write the result to this file too")
    if partition:
        choices = "images classified correctly, incorrectly, or both"
        add("--partition", choices=PARTITIONS, default=partition, help=choices)
    return parser


def add_machine_flags(parser: Parser) -> None:
    """What `machine` reads."""
    add = parser.add_argument
    add("--gpu", "--device", default="0", help="index of the CUDA GPU, or cpu")
    add("--batch-size", type=integer(1), default=50, help="images at once; changes no result")
    add("--num-workers", type=integer(0), default=DEFAULT_WORKERS, help="threads that read images")


def add_seeds_flags(parser: Parser, required: bool) -> None:
    """--exp-pattern and --exp-values: experiments that differ in their seed only."""
    add = parser.add_argument
    add("--exp-pattern", required=required, help="name of the experiments with * for what varies, such as 'seed-*'")
    add("--exp-values", required=required, nargs="+", help="what stands for * in each of them")


def seed_trees(args: argparse.Namespace) -> list[ResultTree]:
    """The experiments that --exp-pattern and --exp-values name, at least two. Raises InputError."""
    pattern, values = args.exp_pattern, args.exp_values or []
    if not pattern or pattern.count("*") != 1:
        raise InputError(f"--exp-pattern {pattern or ''}: expected a name with one *, such as 'seed-*'")
    if len(set(values)) < 2 or len(set(values)) < len(values):
        found = " ".join(values) or "none"
        raise InputError(f"--exp-values: expected at least two different values for the * of {pattern}, found {found}")
    return [ResultTree(args.output_path, pattern.replace("*", value)) for value in values]


def context_of(args: argparse.Namespace, seeds: list[ResultTree]) -> Context:
    """The flags as what metrics may use. Raises InputError for a device that is not there."""
    given = {field.name: getattr(args, field.name) for field in fields(Context) if hasattr(args, field.name)}
    return Context(machine(args), seeds=seeds, **given)


def machine(args: argparse.Namespace) -> Machine:
    """Where the networks run. Raises InputError for a device that is not there."""
    return Machine(select_device(args.gpu), args.batch_size, args.num_workers)


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file; no display is needed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file whole, making its folder. Raises InputError where that is impossible."""
    make_folder(path.parent)
    write_atomically(path, content)


def write_report(path: Path, content: bytes | str, instead: Path | None, flag: str) -> None:
    """Write a file into the experiment's folder, or where a flag says instead of it.

    A folder that cannot be written to ends nothing: a line names the flag. Raises InputError for the flag's own place.
    """
    try:
        write_file(instead or path, content)
    except InputError as error:
        if instead:
            raise
        print(f"{error}; {flag} puts it elsewhere", file=sys.stderr)
