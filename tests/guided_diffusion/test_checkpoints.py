"""Files are written whole or not at all: single ones, checkpoints, and sets that no kill can break."""

import errno
import os
import resource
import signal
import socket
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from guided_diffusion import checkpoint_util as cu
from guided_diffusion import files
from guided_diffusion.checkpoint_util import CheckpointFolder, parse_resume_step_from_filename

NAMES = ["model", "ema_0.9_", "opt"]


def contents(tag: int):
    return [(name, {"tag": torch.full((1000,), float(tag))}) for name in NAMES]


def tags(paths: dict[str, str]) -> set[float]:
    return {float(cu.load(paths[name])["tag"][0]) for name in NAMES}


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
    assert list(folder.complete_sets()) == [1000000, 999999, 2]  # by number, not by name


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

    def dying(function):
        def operation(*args, **options):
            function(*args, **options)
            if next(operations) == 0:
                os._exit(9)

        return operation

    half = dying(lambda temporary: temporary.write_bytes(b"PK\x03\x04 half of it"))
    whole = dying(files.write_to_disk)
    files.write_to_disk = lambda temporary, write, path: (half(temporary), whole(temporary, write, path))
    files.publish, Path.unlink = dying(files.publish), dying(Path.unlink)


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
        newest = next(iter(found.complete_sets().values()))
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

    def full(temporary, write, path):
        if "opt" in path.name:
            raise OSError("no room")
        return write_to_disk(temporary, write, path)

    write_to_disk = files.write_to_disk
    monkeypatch.setattr(files, "write_to_disk", full)
    with pytest.raises(OSError, match="no room"):
        folder.write(2, contents(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ema_0.9_000001.pt", "model000001.pt", "opt000001.pt"]


CONFIG = {"num_channels": 32, "attention_resolutions": "16,8", "learn_sigma": True, "dropout": 0.1}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def saved(path: Path, weights: dict, config: dict | None = None) -> None:
    cu.save(path, cu.portable(weights, config))


def test_round_trip_keeps_names_values_and_config_and_no_more_than_the_weights(tmp_path):
    model = network()
    for name in ("a.pt", "b.pt"):
        saved(tmp_path / name, model.state_dict(), CONFIG)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    loaded = cu.load_state_dict(tmp_path / "a.pt")
    assert cu.stored_config(loaded) == CONFIG
    for weights in (loaded, torch.load(tmp_path / "a.pt", weights_only=True)):  # a plain state dict for other loaders
        assert list(weights) == list(model.state_dict())
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
        network().load_state_dict(weights)
    torch.save(model.state_dict(), tmp_path / "theirs.pt")
    assert cu.stored_config(cu.load_state_dict(tmp_path / "theirs.pt")) is None
    assert cu.stored_config({"weight": torch.zeros(1)}) is None
    view = {"view": torch.zeros(1_000_000)[:2]}
    saved(tmp_path / "model.pt", network().half().state_dict() | view)
    loaded = cu.load_state_dict(tmp_path / "model.pt")
    assert loaded["0.weight"].dtype == torch.float32 and loaded["1.num_batches_tracked"].dtype == torch.int64
    assert (tmp_path / "model.pt").stat().st_size < 10_000


@pytest.mark.parametrize("write", [saved, lambda path, weights: torch.save(weights, path)])
def test_parallel_wrappers_leave_no_trace(tmp_path, write):
    write(tmp_path / "model.pt", nn.DataParallel(network()).state_dict())
    loaded = cu.load_state_dict(tmp_path / "model.pt")
    assert list(loaded) == list(network().state_dict())
    assert loaded._metadata == network().state_dict()._metadata


def test_torchs_own_words_for_a_full_disk_stay_behind(tmp_path, monkeypatch):
    def full(content, file):
        raise RuntimeError("[enforce fail at inline_container.cc:595] . unexpected pos 64 vs 0\n  frame #0: many lines")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"model\.pt: could not be written \(is the disk full\?\)") as raised:
        saved(tmp_path / "model.pt", network().state_dict())
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Path("b")}, "not a checkpoint of tensors"),
        (torch.zeros(2), "found a Tensor"),
        ({"model": {}, "epoch": 3}, "found a dictionary with model, epoch"),
        ({}, "nothing in it"),
        (None, "no such checkpoint"),
    ],
)
def test_what_is_not_a_state_dict_is_refused_in_one_line(tmp_path, content, message):
    """Damaged and hostile files: tests/core/networks/test_files.py."""
    path = tmp_path / "model.pt"
    if content is not None:
        torch.save(content, path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        cu.load_state_dict(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "model.pt"
    files.write_atomically(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # writing beyond 4 KiB fails from here on
    try:
        with pytest.raises(OSError, match=r"model\.pt: could not be written \(.+\); nothing that was there"):
            files.write_atomically(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_take_its_name_and_files_of_the_dead_are_cleared_away(tmp_path):
    (tmp_path / "folder" / "within").mkdir(parents=True)
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "file"):
        with pytest.raises(OSError, match=f"{path}: could not be written"):
            files.write_atomically(path, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    owners = {"dead": f"{2**22 + 1}-{socket.gethostname()}", "living": f"{os.getpid()}-{socket.gethostname()}"}
    owners |= {"elsewhere": "1-elsewhere", "old": "1-elsewhere"}
    paths = {name: tmp_path / f".{name}.{owner}-0123abcd.tmp" for name, owner in owners.items()}
    paths["of another program"] = tmp_path / ".something.tmp"
    for path in paths.values():
        path.touch()
    os.utime(paths["old"], (0, 0))
    files.remove_orphans([tmp_path, tmp_path / "nowhere"])
    assert {name for name, path in paths.items() if path.exists()} == {"living", "elsewhere", "of another program"}


@pytest.mark.parametrize("reason", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_folder_that_cannot_be_synced_ends_nothing(tmp_path, monkeypatch, reason):
    """CIFS, VirtualBox shares and some FUSE mounts refuse it."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(reason, os.strerror(reason))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    files.write_atomically(tmp_path / "file", lambda file: file.write(b"new"))
    assert (tmp_path / "file").read_bytes() == b"new"
