"""Whether the main job makes the same counterfactuals in half precision, and compiled, as in float32.

usage: python bench/parity.py [--output PAGE] -- MAIN_FLAGS

Explains the first batch of a main.py command in every precision of the device, and compares with float32.
"""

import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.speed import PAGE, write_section
from dime.core.cli import Parser, boolean, run, say, select_device
from dime.core.config import parse_config
from dime.core.job.setup import set_up
from dime.core.table import markdown_table


def main() -> None:
    """Explain, compare, print the table, and put it into the results' page."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", type=boolean, default=False, help="compare compiled networks too")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page whose section is replaced")
    parser.add_argument("main_flags", nargs="*", help="flags of main.py, after --")
    args = parser.parse_args()
    device = select_device(parse_config("", args.main_flags).gpu)
    precisions = ("fp32", "fp16", "bf16") if device.type == "cuda" else ("fp32", "bf16")
    settings = [f"--precision {precision}" for precision in precisions]
    if args.compile:
        settings += [f"{setting} --compile True" for setting in settings]
    rows = []
    for setting in settings:
        setup = set_up(parse_config("", [*args.main_flags, *setting.split()]), device)
        batch = setup.batch(setup.selection[: setup.config.batch_size])
        start = time.perf_counter()
        found = setup.explainer.explain(batch)
        cf, flipped = found.cf.clamp(-1, 1).cpu(), found.flipped.cpu()  # waits for the device
        seconds = f"{(time.perf_counter() - start) / len(batch):.3g}"
        if not rows:
            expected, outcome = cf, flipped
        off = 127.5 * (cf - expected).abs().flatten(1).mean(dim=1)
        shares = (f"{share.float().mean():.0%}" for share in (flipped, flipped == outcome))
        rows.append((f"`{setting}`", *shares, f"{off.mean():.2f} ({off.max():.2f})", seconds))
        say(f"{setting}: {seconds} s per image")
    head = ("", "flipped", "same outcome", "mean difference in grey levels (largest of an image)", "s per image")
    text = markdown_table(head, rows) + "\n"
    write_section(args.output, f"Parity of precisions, {device.type.upper()}", text, device, "parity.py")


if __name__ == "__main__":
    run(main)
