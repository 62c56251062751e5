"""When one process of a training dies, the others end within a minute and say so, instead of waiting for it."""

from __future__ import annotations

import os
import sys
import threading

import torch.distributed as dist

INTERVAL = 5.0
"""Seconds between two beats of a process."""
PATIENCE = 9
"""How many of its own beats a process waits for another's; counting beats, not time, survives a suspended machine."""

_CONNECTION_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Connection refused", "remote process")


class PeerLostError(RuntimeError):
    """Another process of this training has ended."""


class Heartbeat:
    """A context in which every process counts its beats in the store, and watches those of the others.

    Inside, a collective operation that fails because a process has gone raises PeerLostError. One that would wait
    for ever (NCCL's do) is ended from here: the process exits with code 1 and one line on stderr.
    """

    def __init__(self, store: dist.TCPStore, rank: int, world_size: int) -> None:
        # A connection of its own: an operation that waits blocks the one it runs on.
        self._store = dist.TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)
        self._rank = rank
        self._seen = {peer: 0 for peer in range(world_size) if peer != rank}
        self._silent_beats = dict.fromkeys(self._seen, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if error is None:  # nobody stops beating before all have finished
            dist.barrier()
        self._stop.set()
        self._thread.join()
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _CONNECTION_LOST):
            raise PeerLostError(self._farewell("another process")) from error

    def _beat(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                self._store.add(self._key(self._rank), 1)
                counts = {peer: self._store.add(self._key(peer), 0) for peer in self._seen}
            except RuntimeError:  # the store lives in rank 0, or in the launcher
                self._end("the process that holds the training together")
                return
            for peer, count in counts.items():
                self._silent_beats[peer] = self._silent_beats[peer] + 1 if count == self._seen[peer] else 0
                if self._silent_beats[peer] > PATIENCE:
                    self._end(f"rank {peer}")
            self._seen = counts

    def _end(self, who: str) -> None:
        if not self._stop.is_set():
            print(self._farewell(who), file=sys.stderr, flush=True)
            os._exit(1)  # the main thread may be inside an operation that never returns

    def _farewell(self, who: str) -> str:
        return f"rank {self._rank}: {who} has ended, so this one stops too; the last checkpoint is whole"

    @staticmethod
    def _key(rank: int) -> str:
        return f"heartbeat/{rank}"
