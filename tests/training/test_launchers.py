"""Two processes train as one with the double batch, however they are started; and what happens when one dies."""

import socket
import sys
import time

import pytest
import torch

from guided_diffusion import checkpoint_util
from tests.training.small import LAUNCHERS, run, start
from tests.worlds import ROOT

SCRIPT = str(ROOT / "tests" / "training" / "two_ranks.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run([sys.executable, SCRIPT, str(folder)])  # plain python needs no launcher's variables
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_equal_one_with_the_double_batch(launcher, alone, tmp_path):
    run([*LAUNCHERS[launcher], SCRIPT, str(tmp_path)])
    for name in ("grads.pt", "model000003.pt", "ema_0.9_000003.pt"):
        one, two = (checkpoint_util.load_state_dict(folder / name) for folder in (alone, tmp_path))
        # softmax is blind to the bias of k: its gradient is rounding, of which AdamW makes whole steps
        keys = [key for key in one if not key.endswith("qkv.bias")]
        one, two = (torch.cat([weights[key].flatten() for key in keys]) for weights in (one, two))
        # the same sums in another order, float32: 1.4e-6; in other microbatches a gradient differs by more than a tenth
        assert (one - two).norm() < 1e-5 * one.norm(), name


def test_the_others_end_when_a_process_dies(tmp_path):
    """Rank 0 neither hangs nor ends in success."""
    began = time.monotonic()
    process = start([*LAUNCHERS["mpiexec"], SCRIPT, str(tmp_path), "SIGKILL"])
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert time.monotonic() - began < 90  # most of it for the start of the interpreters
    assert checkpoint_util.load_state_dict(tmp_path / "model000000.pt"), output


def test_sigterm_to_one_of_two_processes_stops_both_after_a_save(tmp_path):
    # each rank in a shell, as in wrappers and containers: the ranks' parents differ, and may not be asked after
    mpiexec, *two, python = LAUNCHERS["mpiexec"]
    run([mpiexec, *two, "bash", "-c", f"{python} {SCRIPT} {tmp_path} SIGTERM; exit $?"])
    assert (tmp_path / "model000003.pt").exists()


WATCHED = """
import os, sys, time
from guided_diffusion import dist_util
dist_util.setup_dist()
with dist_util.watched():
    if dist_util.rank() == 1:
        {end}
    while True:  # as inside an operation of NCCL, which does not notice
        time.sleep(1)
"""


@pytest.mark.parametrize("end", ["os._exit(3)", "raise ValueError('no such thing')"])
def test_an_end_is_noticed_by_a_process_that_waits_for_ever(tmp_path, end):
    """Started by hand, so that no launcher ends the other."""
    (tmp_path / "watched.py").write_text(WATCHED.format(end=end))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    ranks = [start([sys.executable, str(tmp_path / "watched.py")], RANK=rank, **place) for rank in "01"]
    outputs = [process.communicate(timeout=60)[0] for process in ranks]
    assert "rank 0: rank 1 has ended, so this one stops too" in outputs[0]
    assert ranks[0].returncode == 1
    assert "has ended" not in outputs[1]  # what it says itself is the reason
    assert ("no such thing" in outputs[1]) == ("no such thing" in end)
