"""Are counterfactuals right? Experiments beside the true counterfactuals; on drawn faces: do they reveal a shortcut?"""

from collections.abc import Sequence
from pathlib import Path

from dime.core.cli import Parser, attribute, run, say
from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from dime.core.metrics.metric import Context
from dime.core.metrics.report import as_json
from dime.core.metrics.robust import ROBUST
from dime.core.metrics.scripts import machine, metric_parser, png, write_file
from dime.core.results import ResultTree
from dime.core.truth import rows
from dime.core.truth.benchmark import Experiment, benchmark, examples, markdown, truth_plot
from dime.core.truth.cases import load_oracles, oracle_of
from dime.core.truth.faces import DrawnFaces, Shortcut
from dime.core.truth.world import FolderPairs, Task, World

EXAMPLES = 8
"""How many images the figure shows."""


def main() -> None:
    """Measure, print the table, and leave it and the figure in OUTPUT_PATH."""
    args = build_parser().parse_args()
    here = machine(args)
    experiments = []
    for name in dict.fromkeys(args.exp_name):
        seeds = [ResultTree(args.output_path, f"{name}-{seed}") for seed in args.seeds]
        once = ResultTree(args.output_path, name)
        experiments.append(Experiment(name, [once] if once.results.exists() or not seeds else seeds))
    task = common_task(experiments, args.celeba_path)
    networks = load_oracles(args.oracle_path, here)
    truth = world_of(task, [name for network in networks.values() for name in network.names])
    if args.shortcut is not None and not isinstance(truth, DrawnFaces):
        raise InputError("--shortcut: is planted in drawn faces alone; leave it out")
    shortcut = None if args.shortcut is None else Shortcut(truth.query, ATTRIBUTES[args.shortcut])
    needs = [truth.query, *([shortcut.name] if shortcut else [])]
    oracle, known = oracle_of(networks, truth.names, truth.exclusive, here, needs)
    context = Context(here, second_classifier_path=args.second_classifier_path)
    alike = [rows.similarity(args.weights_path, here)] if args.weights_path else []
    for each in experiments:
        each.add("evaluations", lambda each: [rows.evaluations_spent(each.trees)])
        if args.robust:
            each.add("robustness", lambda each: rows.robustness(each.trees, context))
        if shortcut:
            each.add("shortcut", lambda _: shortcut.told(truth, known))
            each.add("classifier", lambda each: shortcut.true(each.trees, each.ids, truth, here))
    lasting = {"Do the flips last?": [row for metric in ROBUST for row in metric.rows]} if args.robust else {}
    report = benchmark(experiments, truth, oracle, here, (*rows.ROWS, *alike))
    right = [row.name for row in (rows.FLIPS, *rows.ROWS, *alike)]
    tables = {"Are the counterfactuals right?": right, "What do they cost?": [rows.EVALUATIONS]} | lasting
    text = markdown(report, tables | ({"Do they reveal the shortcut?": shortcut.row_names} if shortcut else {}))
    print(text, end="")
    write_file(args.output_path / "truth.md", text)
    if args.json:
        write_file(args.json, as_json(report))
    plot = args.plot or args.output_path / "truth.png"
    figure = truth_plot(examples(experiments, truth, EXAMPLES), report, [rows.TURNED, rows.OTHERS, rows.DISTANCE])
    write_file(plot, png(figure))
    say(f"\nFigure: {plot}")


def build_parser() -> Parser:
    """The flags."""
    parser = metric_parser(__doc__, one_experiment=False, partition=None)
    add = parser.add_argument
    add("--exp-name", nargs="+", required=True, help="the experiments (main.py's --exp_name), one column each")
    add("--seeds", nargs="+", default=[], help="NAME of --exp-name is NAME-SEED of all of these, unless it is there")
    oracle = "networks trained apart that see attributes, or classes"
    add("--oracle-path", nargs="+", default=["models/demo/oracle.safetensors"], help=oracle)
    add("--weights-path", default="models/demo/features.safetensors", help="a small CNN, for FS; '' leaves FS out")
    add("--celeba-path", default=None, help="the images explained; unset: the data_dir that the runs recorded")
    add("--shortcut", type=attribute, help="attribute, by index or name, that a classifier may use as a shortcut")
    add("--robust", action="store_true", help="measure how flips last, too; costs evaluations of the diffusion model")
    add("--second-classifier-path", default="models/demo/features.safetensors", help="for --robust: one trained apart")
    add("--plot", type=Path, metavar="FILE", help="PNG of the figure; unset: truth.png in OUTPUT_PATH")
    return parser


def common_task(experiments: list[Experiment], celeba_path: str | None) -> Task:
    """What all experiments explain. Raises InputError if that is not the same."""
    tasks = [(Task.of(made, celeba_path), made) for each in experiments for made in each.trees]
    first = tasks[0]
    for task, made in tasks:
        if task != first[0]:
            differs = f"{made.results}: explains {task}, but {first[1].exp_name} {first[0]}"
            raise InputError(f"{differs}; compare them in tables of their own")
    return first[0]


def world_of(task: Task, seen: Sequence[str]) -> World:
    """Where what was explained is known; seen: what the oracles see. A world of your own is one more line here."""
    return FolderPairs(task, seen) if task.dataset == "folder" else DrawnFaces(task)


if __name__ == "__main__":
    run(main)
