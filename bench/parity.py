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
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.common import RESULTS, described, write_section
from dime.core.cli import Parser, boolean, run, say, select_device
from dime.core.config import parse_config
from dime.core.explain import Batch, Explanations
from dime.core.job.setup import set_up


def main() -> None:
    """Explain, compare, print the table, and put it into the results' page."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", type=boolean, default=False, help="compare compiled networks too")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the page whose section is replaced")
    parser.add_argument("main_flags", nargs="*", help="flags of main.py, after --")
    args = parser.parse_args()
    device = select_device(parse_config("", args.main_flags).gpu)
    precisions = ("fp32", "fp16", "bf16") if device.type == "cuda" else ("fp32", "bf16")
    settings = [f"--precision {precision}" for precision in precisions]
    if args.compile:
        settings += [f"{setting} --compile True" for setting in settings]
    head = "| | flipped | same outcome | mean difference in grey levels (largest of an image) | s per image |"
    rows, reference = [head, "|---|---|---|---|---|"], None
    for setting in settings:
        found, seconds = explained([*args.main_flags, *setting.split()], device)
        reference = reference or found
        rows.append(f"| `{setting}` | {compared(found, reference)} | {seconds:.3g} |")
        say(f"{setting}: {seconds:.3g} s per image")
    command = f"`python bench/parity.py {shlex.join(sys.argv[1:])}`"
    text = "\n".join(rows) + f"\n\n{described(device)}. {datetime.date.today()}, {command}\n"
    print(text)
    write_section(args.output, f"Parity of precisions, {device.type.upper()}", text)


def explained(main_flags: Sequence[str], device: torch.device) -> tuple[Explanations, float]:
    """The first batch of a main.py command, and the seconds that an image took."""
    setup = set_up(parse_config("", main_flags), device)
    ids = setup.selection[: setup.config.batch_size]
    x = torch.stack([setup.source.load(id) for id in ids]).to(device)
    start = time.perf_counter()
    found = setup.explainer.explain(Batch(ids, x))
    found.cf.cpu()  # waits for the device
    return found, (time.perf_counter() - start) / len(ids)


def compared(found: Explanations, reference: Explanations) -> str:
    """Cells of the table: how the outcomes and the pictures differ."""
    same = (found.flipped == reference.flipped).float().mean()
    off = 127.5 * (found.cf.clamp(-1, 1) - reference.cf.clamp(-1, 1)).abs().flatten(1).mean(dim=1)
    return f"{found.flipped.float().mean():.0%} | {same:.0%} | {off.mean():.2f} ({off.max():.2f})"


if __name__ == "__main__":
    run(main)
