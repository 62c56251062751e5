"""Turn a checkpoint into a .safetensors file of half the size: float16 weights and the same notes beside them.

    python tools/half_precision.py FROM.pt TO.safetensors

The file is read wherever the checkpoint is. Rounding to float16 changes weights by at most 1 part in 2048.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dime.core import cli
from dime.core.errors import InputError
from dime.core.networks.files import SAFETENSORS, read_checkpoint, write_safetensors


def main() -> None:
    """Read, round, write."""
    if len(sys.argv) != 3 or not sys.argv[2].endswith(SAFETENSORS):
        raise InputError("give a checkpoint to read and a .safetensors file to write")
    write_safetensors(sys.argv[2], read_checkpoint(sys.argv[1]))


if __name__ == "__main__":
    cli.run(main)
