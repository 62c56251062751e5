"""What the metric scripts share: their flags, and how a result is printed and written."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dime.core.cli import Parser, attribute, integer, select_device
from dime.core.errors import InputError
from dime.core.evaluation.features import Machine
from dime.core.evaluation.measures import PARTITIONS, Measurement
from dime.core.files import write_atomically
from dime.core.results import ResultTree

DEFAULT_BATCH_SIZE = 50
DEFAULT_WORKERS = min(4, os.cpu_count() or 1)

NETWORK_FLAGS: dict[str, dict[str, Any]] = {
    "--weights-path": {
        "default": "models/resnet50_vggface2_model.pkl",
        "help": "VGGFace2 ResNet-50 (resnet50_ft_weight.pkl beside it is found too); evaluate.py takes a small CNN "
        "(.safetensors) as well",
    },
    "--oracle-path": {"default": "models/oracle.pth", "help": "the attribute oracle"},
    "--classifier-path": {"default": "models/classifier.pth", "help": "the classifier that was explained"},
    "--inception-weights": {
        "default": None,
        "help": "pytorch-fid's Inception-V3 weights; unset: models/, the torch hub cache, or a download",
    },
}


def metric_parser(
    description: str, *networks: str, one_experiment: bool = True, partition: str | None = "all"
) -> Parser:
    """A parser with the flags of every metric script and those of the networks named (keys of NETWORK_FLAGS).

    partition: the default of --partition; None: no such flag. one_experiment: whether there is one --exp-name.
    """
    parser = Parser(description=description)
    add = parser.add_argument
    add("--output-path", type=Path, required=True, help="folder of the result tree (main.py's --output_path)")
    if one_experiment:
        add("--exp-name", required=True, help="the experiment (main.py's --exp_name)")
    for flag in networks:
        add(flag, **NETWORK_FLAGS[flag])
    add("--gpu", "--device", default="0", help="index of the CUDA GPU, or cpu")
    add("--batch-size", type=integer(1), default=DEFAULT_BATCH_SIZE, help="images at once; changes no result")
    add("--num-workers", type=integer(0), default=DEFAULT_WORKERS, help="threads that read images")
    add("--json", type=Path, metavar="FILE", help="write the result to this file too")
    if partition:
        choices = "images classified correctly, incorrectly, or both"
        add("--partition", choices=PARTITIONS, default=partition, help=choices)
    return parser


def add_query_flag(parser: Parser) -> None:
    """--query-label: the attribute that was explained."""
    parser.add_argument("--query-label", type=attribute, default=31, help="attribute explained, by index or name")


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
    return [tree(args, pattern.replace("*", value)) for value in values]


def machine(args: argparse.Namespace) -> Machine:
    """Where the networks run. Raises InputError for a device that is not there."""
    return Machine(select_device(args.gpu), args.batch_size, args.num_workers)


def tree(args: argparse.Namespace, exp_name: str | None = None) -> ResultTree:
    """The experiment's files."""
    return ResultTree(args.output_path, args.exp_name if exp_name is None else exp_name)


def show(args: argparse.Namespace, printed: Mapping[str, Measurement]) -> None:
    """Print one line per measurement, under the name that the published script prints, and write --json."""
    for name, measurement in printed.items():
        print(name, measurement.value)
    if args.json:
        content = {measurement.name: asdict(measurement) for measurement in printed.values()}
        write_file(args.json, json.dumps(content, indent=2) + "\n")


def note(line: str) -> None:
    """A remark beside the result: one line on stderr."""
    print(line, file=sys.stderr)


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file whole, making its folder. Raises InputError where that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
