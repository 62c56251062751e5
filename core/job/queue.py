"""The work of a run, shared by all processes that do it: who has taken what, what came out of it, and who has died.

    running.lock            held for a moment by whoever looks at the queue or changes it
    running/todo.json       everything to do, written once
    running/state.0, .1     how much of it is given out, and to whom: as small as there are processes. Written in turns:
                            one of them is whole, and no name ever stands for another file, which NFS would notice late
    running/3.lock          locked as long as member 3 lives, since such a lock is the operating system's
    running/3.jsonl         what member 3 has finished, a line for each

All of it lies in the experiment's folder and is gone when the run is complete. A member that dies leaves its lock: when
nothing is left to give out, the others take what it had begun. Nothing here takes longer the more images there are.
"""

import contextlib
import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from dime.core.cli import EXIT_INPUT_ERROR, say
from dime.core.errors import InputError
from dime.core.results import make_folder

BUSY, POLL = -1, 0.5
"""There may be something to do in so many seconds."""
SPARE = 4
"""Work is taken ahead of time as long as more than so much is left for each member: at the end nobody hoards."""


@dataclass
class State:
    """What all members have to know.

    launch: whose members these are. turn: of the state. given: how many items of the list are given out. open: item ->
    the member that does it. ender: the member that ends the run. done, flipped: images. stopped: why nobody may go on.
    """

    launch: str
    turn: int = 0
    given: int = 0
    open: dict[str, int] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    ender: int = 0
    done: int = 0
    flipped: int = 0
    stopped: str = ""


class Start(NamedTuple):
    """todo: everything that is to do. finished: a result of what is done already, images of it: done, flipped."""

    todo: list[Any]
    finished: Any
    done: int
    flipped: int


Begin = Callable[[list[Any]], Start]
"""Called with what members of a launch that died had finished; prepares the folder."""


class Queue:
    """A process's view of the queue in `folder`.

    launch: the name that all processes which may share it have in common; '' where this one is alone. who: what it is
    called. speaks: whether it says why another one has stopped it.
    """

    def __init__(self, folder: Path, launch: str = "", who: str = "", speaks: bool = True) -> None:
        self.folder, self.launch, self.who, self.speaks = folder, launch, who, speaks
        self.todo: list[Any] = []
        self.member = -1
        self.ends_the_run = False
        self._lock, self._mutex, self._has_locks = folder.with_name(f"{folder.name}.lock"), threading.Lock(), True

    @contextlib.contextmanager
    def joined(self, begin: Begin | None) -> Iterator[None]:
        """Be a member within. The first one calls `begin`; None: another process has done so.

        Raises InputError where another launch is at work, and where nobody has begun.
        """
        if begin:
            make_folder(self.folder.parent)
        elif not self.folder.is_dir():
            raise InputError(f"{self.folder.parent}: rank 0 has begun there, which cannot be seen from {self.who}")
        with contextlib.ExitStack() as until_the_end:
            with self._locked():
                state = self._state()
                alive = self._alive(state)
                if alive and not (self.launch and state.launch == self.launch):
                    raise InputError(
                        f"{self.folder.parent}: {alive} is working on the same images; wait for it, or end it and "
                        "run again"
                    )
                if not alive:
                    state = self._begin(begin)
                self.member = len(state.members)
                state.members.append(self.who)
                if self._has_locks:
                    until_the_end.enter_context(FileLock(self._file("lock", self.member)))
                self.todo = json.loads((self.folder / "todo.json").read_text())
                self._write(state)
            yield

    def _begin(self, begin: Begin | None) -> State:
        if begin is None:
            raise InputError(f"{self.folder.parent}: rank 0 has begun there and is no more")
        start = begin(self.results())
        shutil.rmtree(self.folder, ignore_errors=True)
        with _said(self.folder):
            self.folder.mkdir()
            (self.folder / "todo.json").write_text(json.dumps(start.todo))
        self.member = 0
        self.add(start.finished)
        return State(self.launch, done=start.done, flipped=start.flipped)

    def take(self, ahead: bool = False) -> int | None:
        """The number of an item of `todo` that is this process's from now on: when all are given out, what a dead
        member had begun; BUSY where others are at work on all that is left; None when everything is done.

        One process finds `ends_the_run` set then. The others are let go when it has called `close`. ahead: it has
        another one in hand, and leaves the last ones to others.
        """
        with self._locked():
            if (state := self._state()) is None:
                return None
            left, item = len(self.todo) - self._working(state).given, None
            if ahead and (left == 0 or (len(state.members) > 1 and left <= SPARE * len(state.members))):
                return None
            if left:
                item, state.given = state.given, state.given + 1
            elif state.open:  # a look at one of them at a time
                item, member = random.choice([(int(item), member) for item, member in state.open.items()])
                if self._lives(member):
                    return BUSY
            elif state.ender != self.member and self._lives(state.ender):
                return BUSY
            else:
                state.ender, self.ends_the_run = self.member, True
            if item is not None:
                state.open[str(item)] = self.member
            self._write(state)
            return item

    def done(self, item: int, result: Any, done: int, flipped: int) -> None:
        """An item is finished: its result, and how many images that is, of them flipped."""
        self.add(result)
        with self._locked():
            state = self._working(self._state())
            state.open.pop(str(item), None)
            state.done += done
            state.flipped += flipped
            self._write(state)

    def add(self, result: Any) -> None:
        """Something else that belongs to the results; on the disk when this returns."""
        path = self._file("jsonl", self.member)
        with _said(path), path.open("a") as file:
            file.write(json.dumps(result) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def stop(self, reason: str) -> None:
        """Nobody shall go on, for a reason that this process says."""
        with contextlib.suppress(InputError, OSError), self._locked():
            if state := self._state():
                state.stopped = reason
                self._write(state)

    def peek(self) -> State | None:
        """How far all of them are, without a lock; None when the run is over. As `take` where one has stopped all."""
        state = self._state()
        return state and self._working(state)

    def results(self) -> list[Any]:
        """What all members have finished, those of a dead launch too; a line that was cut off is left out."""
        found = []
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def lost(self) -> list[str]:
        """The members that are no more although the run is not over."""
        state = self._state()
        return [name for member, name in enumerate(state.members) if not self._lives(member)] if state else []

    def idle_seconds(self) -> float:
        """How long ago each member has finished something, all members together."""
        times = [path.stat().st_mtime for path in self.folder.glob("*.jsonl")]
        return sum(max(times) - each for each in times)

    def at_work(self) -> str:
        """The first of the processes that are at work; '' where there is none."""
        with self._locked():
            return self._alive(self._state())

    def close(self) -> None:
        """The run is complete: the queue goes, and with it the others."""
        with self._locked():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _alive(self, state: State | None) -> str:
        members = state.members if state else []
        return next((name for member, name in enumerate(members) if self._lives(member)), "")

    def _lives(self, member: int) -> bool:
        if member == self.member or not self._has_locks:
            return member == self.member
        lock = FileLock(self._file("lock", member))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        lock.release()
        return False

    def _file(self, suffix: str, member: int) -> Path:
        return self.folder / f"{member}.{suffix}"

    def _working(self, state: State | None) -> State:
        """The state, where work may go on; else InputError, or SystemExit where another process says why."""
        if state is None:
            raise InputError(f"{self.folder}: is gone in the middle of the work; run the same command again")
        if state.stopped and not self.speaks:
            raise SystemExit(EXIT_INPUT_ERROR)
        if state.stopped:
            raise InputError(f"stopped, as another process was: {state.stopped}")
        return state

    def _state(self) -> State | None:
        found = []
        for slot in (0, 1):
            with contextlib.suppress(FileNotFoundError, ValueError):  # not there yet; its writer has died
                found.append(State(**json.loads((self.folder / f"state.{slot}").read_text())))
        return max(found, key=lambda state: state.turn, default=None)

    def _write(self, state: State) -> None:
        """In the place of the last state but one; it need not outlive the machine."""
        state.turn += 1
        path = self.folder / f"state.{state.turn % 2}"
        with _said(path):
            path.write_text(json.dumps(asdict(state)))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else looks at the queue or changes it within. Where there are no locks, that is said once."""
        lock = FileLock(self._lock)
        with self._mutex:
            try:
                if self._has_locks:
                    lock.acquire(poll_interval=0.01)
            except PermissionError as error:
                raise InputError(f"{self._lock}: cannot be written ({error.strerror})") from None
            except (OSError, NotImplementedError):
                if self.launch:
                    raise InputError(
                        f"{self._lock}: no file locks there, which processes need that share a run"
                    ) from None
                say(f"{self.folder.parent}: no file locks there; see to it that no two processes do the same chunk.")
                self._has_locks = False
            try:
                yield
            finally:
                if not self.folder.exists():
                    self._lock.unlink(missing_ok=True)
                lock.release()


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    """A disk that is full, or fails, is one line."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: could not be written ({error.strerror}); see to the disk, then run the same command again"
        ) from None
