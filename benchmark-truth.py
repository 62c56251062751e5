"""Are counterfactuals right? Experiments on drawn faces beside the true counterfactuals; do they reveal a shortcut?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dime.core.cli import Parser, attribute, run, say
from dime.core.datasets import ATTRIBUTES
from dime.core.drawn_faces.attributes import require_drawn
from dime.core.errors import InputError
from dime.core.metrics.report import Report, as_json
from dime.core.metrics.scripts import machine, metric_parser, tree, write_file
from dime.core.results import ResultTree
from dime.core.truth import benchmark as truth
from dime.core.truth.benchmark import Benchmark
from dime.core.truth.faces import Case, DrawnFaces, Task
from dime.core.truth.oracle import AttributeOracle
from dime.core.truth.plot import EXAMPLES, Panel, truth_plot
from dime.core.truth.shortcut import Shortcut
from dime.core.truth.tables import markdown

DEFAULT_ORACLE = "models/demo/oracle.safetensors"
RIGHT = "Are the counterfactuals right?"
REVEALS = "Do they reveal the shortcut?"


def main() -> None:
    """Measure, print the table, and leave it and the figure in OUTPUT_PATH."""
    args = build_parser().parse_args()
    trees = [tree(args, name) for name in dict.fromkeys(args.exp_name)]
    task = common_task(trees, args.celeba_path)
    here = machine(args)
    benchmark = Benchmark(trees, DrawnFaces(task), AttributeOracle(Path(args.oracle_path), here), here)
    shortcut = shortcut_of(args.shortcut, benchmark)
    report = benchmark.report()
    if shortcut:
        add_shortcut(report, benchmark, shortcut)
    text = markdown(report, {RIGHT: truth.ROWS, **({REVEALS: shortcut.rows} if shortcut else {})})
    print(text, end="")
    write_file(args.output_path / "truth.md", text)
    if args.json:
        write_file(args.json, as_json(report))
    plot = args.plot or args.output_path / "truth.png"
    write_file(plot, truth_plot(examples(benchmark), report, panels(shortcut)))
    say(f"\nFigure: {plot}")


def build_parser() -> Parser:
    """The flags."""
    parser = metric_parser(__doc__, one_experiment=False, partition=None)
    add = parser.add_argument
    add("--exp-name", nargs="+", required=True, help="the experiments (main.py's --exp_name), one column each")
    add("--oracle-path", default=DEFAULT_ORACLE, help="a network trained apart that sees the drawn attributes")
    add("--celeba-path", default=None, help="the drawn faces; unset: the data_dir that the runs recorded")
    add("--shortcut", type=attribute, help="attribute, by index or name, that a classifier may use as a shortcut")
    add("--plot", type=Path, metavar="FILE", help="PNG of the figure; unset: truth.png in OUTPUT_PATH")
    return parser


def common_task(trees: list[ResultTree], celeba_path: str | None) -> Task:
    """What all experiments explain. Raises InputError if that is not the same."""
    tasks = [Task.of(tree, celeba_path) for tree in trees]
    for experiment, task in zip(trees, tasks, strict=True):
        if task != tasks[0]:
            raise InputError(
                f"{experiment.results}: explains {describe(task)}, but {trees[0].exp_name} {describe(tasks[0])}; "
                "compare them in tables of their own"
            )
    return tasks[0]


def describe(task: Task) -> str:
    """A task in a few words."""
    part = "train" if task.use_train else "val"
    name = ATTRIBUTES[task.query_label]
    return f"{name} at {task.image_size} pixels on {task.dataset} ({part}) of {task.data_dir or '.'}"


def shortcut_of(index: int | None, benchmark: Benchmark) -> Shortcut | None:
    """The shortcut that is asked after. Raises InputError if it is not drawn, or is what is explained."""
    if index is None:
        return None
    name = ATTRIBUTES[index]
    require_drawn(name)
    if name == benchmark.faces.query:
        raise InputError(f"--shortcut {name}: is the attribute explained; name another one")
    benchmark.oracle.require(name)
    return Shortcut(benchmark.faces.query, name)


def add_shortcut(report: Report, benchmark: Benchmark, shortcut: Shortcut) -> None:
    """Add the shortcut's rows to every experiment."""
    labels = benchmark.faces.labels()
    for experiment in benchmark.trees:
        name = experiment.exp_name
        found = shortcut.explained(benchmark.figures[name], labels, benchmark.oracle.known)
        if not found:
            report.missing[name].append(f"CD, {shortcut.name}: no counterfactual of {name} reached its target")
        ids = [pair.id for pair in benchmark.pairs[name]]
        try:
            found += shortcut.relied_on(experiment, ids, benchmark.faces, benchmark.machine)
        except InputError as error:
            report.missing[name].append(f"classifier of {name}: {error}")
        report.measurements[name] |= {measurement.name: measurement for measurement in found}


def examples(benchmark: Benchmark) -> dict[str, list[Case | None]]:
    """The first faces of the first experiment that have a true counterfactual, in all experiments."""
    first = benchmark.trees[0].exp_name
    true = np.flatnonzero(benchmark.figures[first].true)[:EXAMPLES]
    ids = [benchmark.pairs[first][row].id for row in true]
    found = {}
    for name, pairs in benchmark.pairs.items():
        by_id = {pair.id: pair for pair in pairs}
        found[name] = [benchmark.faces.case(by_id[id]) if id in by_id else None for id in ids]
    return found


def panels(shortcut: Shortcut | None) -> list[Panel]:
    """The figure's axes. Without `recovered`, whose scale would hide all else: the distance to the truth shows it."""
    shares = (truth.FLIP_RATE, truth.TURNED, truth.LOCALISATION, truth.SHARE_OUTSIDE)
    levels = (truth.INSIDE, truth.OUTSIDE, truth.DISTANCE)
    found = [
        Panel(shares, "share or probability", (-0.02, 1.02)),
        Panel((truth.ALIGNMENT, truth.RECOVERED_INSIDE), "1: as the true counterfactual"),
        Panel(levels, "grey levels (0 to 255), mean over pixels"),
    ]
    if shortcut:
        rows = (shortcut.correlation, shortcut.moves_along, shortcut.turned_by_shortcut, shortcut.turned_by_query)
        found.append(Panel(rows, f"{shortcut.name} as a shortcut to {shortcut.query}"))
    return found


if __name__ == "__main__":
    run(main)
