"""What every script shares: a parser that speaks in one line, checked flag types, the device, the way out."""

import argparse
import contextlib
import io
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from dime.core.datasets import ATTRIBUTES
from dime.core.errors import InputError
from guided_diffusion.script_util import str2bool

EXIT_INPUT_ERROR = 2
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130
EXIT_CONTINUE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command continues."""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, "", [])
        return super()._get_help_string(action) if has_default else action.help


class Parser(argparse.ArgumentParser):
    """argparse with `--a-b` and `--a_b` taken as the same flag, defaults in --help, and errors of one line (exit 2)."""

    def __init__(self, **kwargs) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        """Parse, after spelling every flag the way it was declared."""
        args = list(sys.argv[1:] if args is None else args)
        for place, arg in enumerate(args):
            flag, equals, value = arg.partition("=")
            spellings = (flag, "--" + flag[2:].replace("-", "_"), "--" + flag[2:].replace("_", "-"))
            known = [name for name in spellings if arg.startswith("--") and name in self._option_string_actions]
            args[place] = f"{known[0]}{equals}{value}" if known else arg
        for place in reversed(range(1, len(args))):  # argparse takes lists such as -1,1 for flags
            if re.match(r"-[\d.]+,", args[place]) and args[place - 1].startswith("--"):
                args[place - 1 : place + 1] = [f"{args[place - 1]}={args[place]}"]
        return super().parse_known_args(args, namespace)

    def given(self, args: Sequence[str] | None = None) -> dict[str, Any]:
        """The flags that are given, without the defaults of the others."""
        unset = object()
        blank = argparse.Namespace(**{action.dest: unset for action in self._actions})
        parsed = vars(self.parse_args(args, blank))
        return {name: value for name, value in parsed.items() if value is not unset and name != "help"}

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and exit with code 2."""
        self.exit(EXIT_INPUT_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


boolean = str2bool
"""Flag type: yes/true/t/y/1 and no/false/f/n/0, in any case."""


def number(low: float | None = None, high: float | None = None, convert: type = float) -> Callable[[str], float]:
    """Flag type: a finite number in [low, high]."""

    def parse(text: str) -> float:
        bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        kind = "a whole number" if convert is int else "a number"
        expected = " ".join([kind, " and ".join(bounds)]).strip()
        try:
            value = convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from None
        inside = (low is None or value >= low) and (high is None or value <= high)
        if not inside or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not {expected}")
        return value

    return parse


def integer(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """Flag type: a whole number in [low, high]."""
    return number(low, high, int)


def number_list(low: float | None = None, kind: type = float) -> Callable[[str], tuple[float, ...]]:
    """Flag type: numbers separated by commas, at least one of them."""
    parse_one = number(low, None, kind)
    return lambda text: tuple(parse_one(part) for part in text.split(","))


def attribute(text: str) -> int:
    """Flag type: one of CelebA's attributes, by index or by name."""
    if text in ATTRIBUTES:
        return ATTRIBUTES.index(text)
    if not text.isdecimal() or int(text) >= len(ATTRIBUTES):
        last = len(ATTRIBUTES) - 1
        raise argparse.ArgumentTypeError(f"{text!r} is no attribute of CelebA: give 0 to {last} or a name like Smiling")
    return int(text)


def select_device(gpu: str) -> torch.device:
    """The device that `--gpu` names: a CUDA index ('0'), 'cpu', or any other torch device ('cuda:1', 'mps').

    An index without a GPU on this machine means the CPU, which is said once. Raises InputError for an index beyond
    the GPUs that are here and for a device that torch does not have.
    """
    gpu = gpu.lower()
    if gpu.isdecimal():
        if not torch.cuda.is_available():
            say(f"No CUDA GPU found: --gpu {gpu} runs on the CPU.")
            return torch.device("cpu")
        if int(gpu) >= torch.cuda.device_count():
            raise InputError(f"--gpu {gpu}: this machine has {torch.cuda.device_count()} GPU(s), counted from 0")
        return torch.device("cuda", int(gpu))
    try:
        device = torch.device(gpu)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"--gpu {gpu}: no such device here; give a GPU's index such as 0, or cpu") from None
    return device


def say(line: str) -> None:
    """Print one line for the person at the terminal, above any progress bar, at once."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class Interrupted(BaseException):
    """A signal has asked for the end. The message is the last line of the program."""


@contextlib.contextmanager
def stoppable(advice: str) -> Iterator[None]:
    """Within it SIGTERM, SIGINT and SIGUSR1 raise Interrupted, between two operations of the main thread.

    Every file is whole at any moment, so that only time is lost. Further signals are ignored: schedulers send several.

    advice: how the run is continued.
    """
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]

    def stop(number: int, frame: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        name, script = signal.Signals(number).name, Path(sys.argv[0]).name
        raise Interrupted(f"{script}: stopped by {name}; what is finished is kept: {advice} to continue")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, stop) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's main function and exit: 0 or what main returns, 2 with one line on stderr for an InputError."""
    name = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter of a file's name ends nothing
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main() or 0)
    except InputError as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(EXIT_INPUT_ERROR)
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(EXIT_CONTINUE)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away (| head): nothing is left to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
