"""The one exception that means "what the user gave is wrong"."""

import difflib
from collections.abc import Sequence


class InputError(Exception):
    """A flag, file or folder is not what the program needs.

    The message is one line for a person: what was found, what was expected, and what to do. Scripts print it on
    stderr and exit with code 2 (core.cli.run).
    """


class UndefinedError(InputError):
    """A metric has no value on these images: too few of them, or none of the kind that it looks at."""


def nearest(text: str, names: Sequence[str]) -> str:
    """The end of a message about an unknown name: those like it, in brackets; '' where none is."""
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.4)
    return f" (is {' or '.join(near)} meant?)" if near else ""
