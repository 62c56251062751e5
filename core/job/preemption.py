"""Ending within seconds when the machine is taken away or the user presses Ctrl-C, ready to be continued."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path

from guided_diffusion.stop_signal import StopSignal

EXIT_CONTINUE = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command continues."""
PATIENCE = 8.0
"""Seconds in which a safe point is waited for; every file is whole at any moment, so what follows loses only time."""
_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")


class Interrupted(Exception):  # noqa: N818  it is no error
    """A signal has asked for the end. The message is its name."""


class Preemption:
    """A context in which those signals make the next `check` raise Interrupted.

    Should no check come within PATIENCE seconds (a long computation on a CPU, a file system that hangs), the process
    ends with EXIT_CONTINUE from where it is.

    advice: how the run is continued, for its last line.
    """

    def __init__(self, advice: str = "run the same command again") -> None:
        self.advice = advice
        self._signal = StopSignal(_SIGNALS)
        self._left = threading.Event()

    def __enter__(self) -> Preemption:
        self._signal.__enter__()
        self._wakeup = None
        if threading.current_thread() is threading.main_thread():
            # Python's own handlers wait for the main thread; this is told by the operating system's at once
            receiver, self._wakeup = socket.socketpair()
            self._wakeup.setblocking(False)
            self._previous = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(receiver,), name="preemption", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._left.set()
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._previous)
            self._wakeup.close()
        self._signal.__exit__(*exception)

    def check(self) -> None:
        """A safe point: raise Interrupted if a signal has come."""
        if self._signal.received:
            raise Interrupted(self._signal.received)

    def farewell(self, reason: str) -> str:
        """The last line of an interrupted run."""
        return f"{Path(sys.argv[0]).name}: stopped by {reason}; what is finished is kept: {self.advice} to continue"

    def _watch(self, receiver: socket.socket) -> None:
        numbers = [getattr(signal, name, None) for name in _SIGNALS]
        with receiver:
            while received := receiver.recv(1):
                if received[0] in numbers:
                    if not self._left.wait(PATIENCE):
                        print(self.farewell(signal.Signals(received[0]).name), file=sys.stderr, flush=True)
                        os._exit(EXIT_CONTINUE)
                    return
