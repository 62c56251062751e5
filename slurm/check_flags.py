"""Check the flags of a run and of its evaluation before they wait in a queue (submit.sh calls this).

usage: check_flags.py main.py's flags [-- evaluate.py's flags]

Prints the flags of evaluate.py, one word on a line: first those that main.py's imply, --output-path and --exp-name in
front, then the given ones.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dime.core.cli import run
from dime.core.config import parse_config
from dime.core.errors import InputError
from evaluate import build_parser


def main() -> None:
    """Raise InputError, or exit with 2, where main.py or evaluate.py would."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    sys.argv = ["main.py"]  # whose name an error is about
    config = parse_config("", words[:split])
    output = Path(config.output_path)
    if config.overwrite:
        raise InputError(
            "--overwrite True: the run would start afresh each time it is requeued; remove "
            f"{output / 'Results' / config.exp_name} instead, or choose another --exp_name"
        )
    flags = ["--output-path", output, "--exp-name", config.exp_name, "--celeba-path", config.data_dir or "."]
    flags += ["--classifier-path", config.classifier_path, "--oracle-path", config.oracle_path]
    flags += ["--weights-path", config.face_path, "--gpu", config.gpu]
    flags = [*map(str, flags), *words[split + 1 :]]
    sys.argv = ["evaluate.py", *flags]
    build_parser().parse_args()
    print("\n".join(flags))


if __name__ == "__main__":
    run(main)
