"""Files are written whole or not at all, and what is hidden is not found."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import stat

import pytest

from guided_diffusion import files


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


def test_what_cannot_take_its_name_is_said_and_cleared_away(tmp_path):
    (tmp_path / "folder" / "within").mkdir(parents=True)
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "file"):
        with pytest.raises(OSError, match=f"{path}: could not be written"):
            files.write_atomically(path, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


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


def test_temporary_files_of_the_dead_go_and_others_stay(tmp_path):
    owners = {"dead": f"{2**22 + 1}-{socket.gethostname()}", "living": f"{os.getpid()}-{socket.gethostname()}"}
    owners |= {"elsewhere": "1-elsewhere", "old": "1-elsewhere"}
    paths = {name: tmp_path / f".{name}.{owner}-0123abcd.tmp" for name, owner in owners.items()}
    paths["of another program"] = tmp_path / ".something.tmp"
    for path in paths.values():
        path.touch()
    os.utime(paths["old"], (0, 0))
    files.remove_orphans([tmp_path, tmp_path / "nowhere"])
    assert {name for name, path in paths.items() if path.exists()} == {"living", "elsewhere", "of another program"}
