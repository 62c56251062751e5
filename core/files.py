"""Files of results: written whole or not at all, read without running code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from dime.core.errors import InputError
from guided_diffusion import files
from guided_diffusion.files import remove_orphans

__all__ = ["located", "read_yaml", "remove_orphans", "write_atomically"]

ROOT = Path(__file__).resolve().parents[1]
"""The project, a checkout or an installed package: models/ lies here."""


def write_atomically(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """As guided_diffusion.files.write_atomically; raises InputError (full or read-only disk)."""
    try:
        files.write_atomically(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise InputError(f"{error}; see to the disk, then run the same command again") from error


def located(path: str | Path) -> str | Path:
    """The path itself, or where a file of the project lies by this name, such as models/demo/ddpm.safetensors."""
    elsewhere = not files.is_remote(path) and not Path(path).exists() and (ROOT / path).exists()
    return ROOT / path if elsewhere else path


def read_yaml(path: Path) -> Any:
    """The plain values in a YAML file. Raises FileNotFoundError, or ValueError for anything else that is wrong.

    No tag runs code (safe_load). References and deep nesting, by which a few bytes can cost gigabytes or hours, are
    refused as well: none of our files has them.
    """
    try:
        text, depth = path.read_text(), 0
        for token in yaml.scan(text):
            kind = type(token).__name__
            depth += kind.endswith(("SequenceStartToken", "MappingStartToken"))
            depth -= kind.endswith(("SequenceEndToken", "MappingEndToken", "BlockEndToken"))
            if depth > 20:  # summaries need 3
                raise ValueError("it is nested more than 20 deep")
            if kind == "AliasToken":
                raise ValueError("it holds references (*)")
        return yaml.safe_load(text)
    except FileNotFoundError:
        raise
    except (yaml.YAMLError, OSError) as error:
        raise ValueError(" ".join(str(error).split())) from None
