"""A process that falls silent ends the others; one that beats does not. (Real processes: tests/training.)"""

from __future__ import annotations

import threading
import time

import pytest
import torch.distributed as dist

from guided_diffusion import heartbeat
from guided_diffusion.heartbeat import Heartbeat, PeerLostError


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.02)
    monkeypatch.setattr(heartbeat, "PATIENCE", 3)
    monkeypatch.setattr(dist, "barrier", lambda: None)
    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def ended(monkeypatch):
    """Set when the process would have ended."""
    event = threading.Event()
    monkeypatch.setattr(heartbeat.os, "_exit", lambda status: event.set())
    return event


def test_silence_ends_the_process_with_one_line(store, ended, capsys):
    with Heartbeat(store, rank=0, world_size=2):
        assert ended.wait(5)
    assert capsys.readouterr().err.startswith("rank 0: rank 1 has ended, so this one stops too")


def test_a_beating_peer_is_left_alone(store, ended):
    with Heartbeat(store, rank=0, world_size=2), Heartbeat(store, rank=1, world_size=2):
        time.sleep(0.5)  # two dozen beats
    assert not ended.is_set()


def test_a_lost_connection_is_said_plainly(store, ended):
    with pytest.raises(PeerLostError, match="rank 0: another process has ended"), Heartbeat(store, 0, 1):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:21936")


def test_other_errors_pass_through(store, ended):
    with pytest.raises(RuntimeError, match="out of memory"), Heartbeat(store, 0, 1):
        raise RuntimeError("out of memory")
