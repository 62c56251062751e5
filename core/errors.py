"""The one exception that means "what the user gave is wrong"."""


class InputError(Exception):
    """A flag, file or folder is not what the program needs.

    The message is one line for a person: what was found, what was expected, and what to do. Scripts print it on
    stderr and exit with code 2 (core.cli.run).
    """


class UndefinedError(InputError):
    """A metric has no value on these images: too few of them, or none of the kind that it looks at."""
