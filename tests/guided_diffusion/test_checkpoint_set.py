"""Sets of files that no kill can break."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from guided_diffusion import checkpoint_set, checkpoint_util
from guided_diffusion.checkpoint_set import CheckpointFolder, SetPaths, parse_resume_step_from_filename

NAMES = ["model", "ema_0.9_", "opt"]


def contents(tag: int):
    """A set whose three files carry a tag."""
    return [(name, {"tag": torch.full((1000,), float(tag))}) for name in NAMES]


def tags(paths: SetPaths) -> set[float]:
    return {float(checkpoint_util.load(paths[name])["tag"][0]) for name in NAMES}


@pytest.mark.parametrize(
    ("path", "number"),
    [("out/model000123.pt", 123), ("models/run/model1234567.pt", 1234567), ("gs://bucket/model000007.pt", 7)]
    + [(path, 0) for path in ("models/ddpm-celeba.pt", "out/ema_0.9999_000123.pt", "model_final.pt")],
)
def test_the_number_after_the_last_model(path, number):
    assert parse_resume_step_from_filename(path) == number


def test_a_set_that_lacks_a_file_does_not_count(tmp_path):
    folder = CheckpointFolder(tmp_path, NAMES, keep=0)
    for number in (2, 999999, 1000000, 1000001):
        folder.write(number, contents(number))
    (tmp_path / "ema_0.9_1000001.pt").unlink()
    assert [paths.number for paths in folder.complete_sets()] == [1000000, 999999, 2]  # by number, not by name


def killed_at(moment: int, write) -> bool:
    """Run it in a process that dies, without any clean-up, at the given operation on the disk; False: it finished."""
    child = os.fork()
    if child == 0:
        _die_at(moment)
        write()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def _die_at(moment: int) -> None:
    """Each file takes three moments (half written, written, renamed), each removal one."""
    operations = iter(range(moment, -1, -1))

    def next_operation() -> None:
        if next(operations) == 0:
            os._exit(9)

    write_partial, publish, unlink = checkpoint_util.write_partial, checkpoint_util.publish, Path.unlink

    def half_then_whole(path, content):
        checkpoint_util.partial_path(path).write_bytes(b"PK\x03\x04 half of it")
        next_operation()
        write_partial(path, content)
        next_operation()

    def renamed(path):
        publish(path)
        next_operation()

    def removed(path, missing_ok=False):
        unlink(path, missing_ok)
        next_operation()

    checkpoint_set.checkpoint_util.write_partial = half_then_whole
    checkpoint_set.checkpoint_util.publish = renamed
    Path.unlink = removed


@pytest.mark.parametrize("new", [7, 8], ids=["same number", "next number"])
def test_a_kill_at_any_moment_leaves_one_set_whole(new, tmp_path):
    moment = 0
    while True:
        (tmp_path / f"{moment}").mkdir()
        folder = CheckpointFolder(tmp_path / f"{moment}", NAMES)
        folder.write(7, contents(tag=1))
        killed = killed_at(moment, lambda folder=folder: folder.write(new, contents(tag=2)))

        found = CheckpointFolder(tmp_path / f"{moment}", NAMES)
        found.recover()
        newest = found.complete_sets()[0]
        assert tags(newest) in ({1.0}, {2.0}), f"killed at {moment}"
        assert not list(Path(found.folder).glob(".*partial"))
        if not killed:
            assert tags(newest) == {2.0}
            break
        moment += 1
    assert moment >= 9  # each of the moments came about


def test_a_full_disk_leaves_the_old_set(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, NAMES)
    folder.write(1, contents(1))

    def full(path, content):
        if "opt" in Path(path).name:
            raise OSError("no room")
        return write_partial(path, content)

    write_partial = checkpoint_util.write_partial
    monkeypatch.setattr(checkpoint_util, "write_partial", full)
    with pytest.raises(OSError, match="no room"):
        folder.write(2, contents(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ema_0.9_000001.pt", "model000001.pt", "opt000001.pt"]
