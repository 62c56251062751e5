"""Lets a loop ask whether a signal has asked for its end: Ctrl-C, or what clusters send before they end a job."""

from __future__ import annotations

import signal
import threading


class StopSignal:
    """A context in which SIGINT, SIGTERM and SIGUSR1, where the system has them, only set `received` to their name."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        def receive(number: int, frame: object) -> None:
            self.received = signal.Signals(number).name

        if threading.current_thread() is threading.main_thread():  # handlers can be set nowhere else
            for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
                if number := getattr(signal, name, None):
                    self._previous[number] = signal.signal(number, receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
