"""Whether the main job makes the same counterfactuals in half precision, and compiled, as in float32.

usage: python bench/parity.py [--output PAGE] -- MAIN_FLAGS

Explains the first batch of a main.py command in every precision of the device, and compares with float32.
"""

from __future__ import annotations

import datetime
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import main as main_script
from bench.machine import described
from bench.results import write_section
from dime.core.cli import Parser, boolean, run, say, select_device
from dime.core.explain import Batch, Explanations
from dime.core.job.flags import parse_flags


def main() -> None:
    """Explain, compare, print the table, and put it into the results' page."""
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--compile", type=boolean, default=False, help="compare compiled networks too")
    add(
        "--output", type=Path, default=Path(__file__).with_name("RESULTS.md"), help="the page whose section is replaced"
    )
    add("main_flags", nargs="*", help="flags of main.py, after --")
    args = parser.parse_args()
    flags = parse_flags("", args.main_flags)
    device = select_device(flags.gpu)
    precisions = ("fp32", "fp16", "bf16") if device.type == "cuda" else ("fp32", "bf16")
    settings = [["--precision", precision] for precision in precisions]
    if args.compile:
        settings += [[*setting, "--compile", "True"] for setting in settings]
    results = {}
    for setting in settings:
        results[" ".join(setting)] = explained([*args.main_flags, *setting], device)
        say(f"{' '.join(setting)}: {results[' '.join(setting)].seconds:.3g} s per image")
    text = table(results) + (
        f"\n{described(device)}. {datetime.date.today()}, `python bench/parity.py {shlex.join(sys.argv[1:])}`\n"
    )
    print(text)
    write_section(args.output, f"Parity of precisions, {device.type.upper()}", text)


@dataclass(frozen=True)
class Result:
    """What came out for a batch, and how long an image took."""

    explanations: Explanations
    seconds: float


def explained(main_flags: Sequence[str], device: torch.device) -> Result:
    """The first batch of a main.py command."""
    args = parse_flags("", main_flags)
    args.precision = main_script.usable_precision(args, device)
    dataset, selection = main_script.select_images(args)
    samples = [dataset[id] for id in selection[: args.batch_size]]
    batch = Batch(
        [sample.id for sample in samples],
        torch.stack([sample.image for sample in samples]).to(device),
        torch.stack([sample.labels[args.query_label] for sample in samples]).long().to(device),
    )
    explain = main_script.build_explainer(args, main_script.build_diffusion(args), device, lambda: None)
    start = time.perf_counter()
    result = explain.explainer(batch)
    result.cf.cpu()  # waits for the device
    return Result(result, (time.perf_counter() - start) / len(batch))


def table(results: dict[str, Result]) -> str:
    """Markdown: a row per setting, each compared with the first."""
    lines = [
        "| | flipped | same outcome | mean difference in grey levels (largest of an image) | s per image |",
        "|---|---|---|---|---|",
    ]
    reference = next(iter(results.values())).explanations
    for name, result in results.items():
        found = result.explanations
        same = (found.flipped == reference.flipped).float().mean()
        off = 127.5 * (found.cf.clamp(-1, 1) - reference.cf.clamp(-1, 1)).abs().flatten(1).mean(dim=1)
        lines.append(
            f"| `{name}` | {found.flipped.float().mean():.0%} | {same:.0%} | {off.mean():.2f} ({off.max():.2f}) "
            f"| {result.seconds:.3g} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
