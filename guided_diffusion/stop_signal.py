"""Lets a loop ask whether a signal has asked for its end: Ctrl-C, or what clusters send before they end a job."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


class StopSignal:
    """A context in which these signals, where the system has them, do nothing but set `received` to their name."""

    def __init__(self, names: Sequence[str] = _SIGNALS) -> None:
        self.names = names
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # handlers can be set nowhere else
            for name in self.names:
                if number := getattr(signal, name, None):
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
