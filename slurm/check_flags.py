"""Check the flags of a run and of its evaluation before they wait in a queue (submit.sh calls this).

usage: check_flags.py main.py's flags [-- evaluate.py's flags]

Prints the flags of evaluate.py, one word on a line: first those that main.py's imply, --output-path and --exp-name in
front, then the given ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dime.core.cli import run
from dime.core.errors import InputError
from dime.core.job.flags import parse_flags
from evaluate import build_parser


def main() -> None:
    """Raise InputError, or exit with 2, where main.py or evaluate.py would."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    flags = implied_flags(words[:split]) + words[split + 1 :]
    sys.argv = ["evaluate.py", *flags]  # its name is what an error is about
    build_parser().parse_args()
    print("\n".join(flags))


def implied_flags(words: list[str]) -> list[str]:
    """evaluate.py's flags for the results of main.py with these."""
    sys.argv = ["main.py", *words]
    args = parse_flags("")
    if args.overwrite:
        raise InputError(
            "--overwrite True: a chunk would start afresh each time it is requeued; remove "
            f"{Path(args.output_path) / 'Results' / args.exp_name} instead, or choose another --exp_name"
        )
    flags = {
        "--output-path": Path(args.output_path),
        "--exp-name": args.exp_name,
        "--celeba-path": args.data_dir or ".",
        "--classifier-path": args.classifier_path,
        "--oracle-path": args.oracle_path,
        "--weights-path": args.face_path,
        "--gpu": args.gpu,
    }
    return [str(word) for flag in flags.items() for word in flag]


if __name__ == "__main__":
    run(main)
