"""Around a training: grids that disturb nothing, and two processes as one with the double batch."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from PIL import Image

from dime.core.training import monitor
from guided_diffusion import checkpoint_util, logger
from guided_diffusion.script_util import model_and_diffusion_defaults
from guided_diffusion.train_util import TrainLoop
from tests.training.small import FLAGS, LAUNCHERS, endless, environment, launched, network_and_diffusion, settings
from tests.worlds import ROOT


@pytest.fixture(autouse=True)
def quiet(tmp_path):
    logger.configure(dir=str(tmp_path), format_strs=[])
    yield
    logger.reset()


class Clock:
    """Seconds that pass only while the network draws: `cost` for each image and evaluation."""

    def __init__(self, cost: float) -> None:
        self.now, self.cost, self.evaluations = 0.0, cost, 0

    def monotonic(self) -> float:
        return self.now

    def evaluated(self, network, args, output) -> None:
        if not network.training:
            self.now += self.cost * len(output)
            self.evaluations += 1


def train(monkeypatch, clock: Clock, steps: int = 3, hook=lambda *args: None, **flags) -> TrainLoop:
    monkeypatch.setattr(monitor, "time", clock)
    model, diffusion = network_and_diffusion()
    model.register_forward_hook(hook)
    model.register_forward_hook(lambda *call: clock.evaluated(*call))  # copies of the network have it, and this clock
    observer = monitor.Monitor({**model_and_diffusion_defaults(), **FLAGS, "image_channels": 3}, 16, 10, None, seed=0)
    arguments = settings(save_interval=1, max_steps=steps, keep_checkpoints=1, batch_size=16, **flags)
    loop = TrainLoop(model=model, diffusion=diffusion, data=endless(16), observer=observer, **arguments)
    loop.run_loop()
    return loop


def grids(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("samples/*.png"))


@pytest.mark.parametrize(
    ("cost", "images", "seconds"),
    [(0.01, 16, 1.6), (0.1, 4, 10), (0.9, 1, 10 + 3 * 0.9), (2.0, 0, 4.0)],  # what is being evaluated is waited for
    ids=["all", "some", "one", "none, which shows after two evaluations"],
)
def test_a_grid_takes_ten_seconds_at_most(cost, images, seconds, tmp_path, monkeypatch, capsys):
    clock = Clock(cost)
    train(monkeypatch, clock, steps=1)
    assert clock.now <= seconds + 1e-6
    assert grids(tmp_path) == (["000000.png"] if images else [])
    if images:
        with Image.open(tmp_path / "samples" / "000000.png") as grid:
            # images of 8x8, in fours, with borders of two pixels where there is more than one
            assert grid.size == {1: (8, 8), 4: (42, 12), 16: (42, 42)}[images]
    said = capsys.readouterr().out
    assert "drawing samples/000000.png, in 10 seconds at most" in said
    assert (f"{images} of 16 images were drawn in time" in said) == (images < 16)


def test_grids_take_three_per_cent_of_the_time(tmp_path, monkeypatch):
    clock = Clock(0.01)  # 1.6 seconds a grid: the next one may come 53 seconds later

    def training_takes_twenty_seconds(network, args, output):
        clock.now += 20 if network.training else 0

    train(monkeypatch, clock, 5, training_takes_twenty_seconds)
    assert grids(tmp_path) == ["000000.png", "000003.png", "000004.png"]  # and one at the end


def test_a_stop_does_not_wait_for_the_grid_and_one_that_fails_ends_nothing(tmp_path, monkeypatch, capsys):
    def fail(network, args, output):
        if not network.training:
            raise RuntimeError("out of\nmemory")

    assert train(monkeypatch, Clock(0.0), hook=fail).updates == 3
    assert "000000.png: not drawn (out of memory); training goes on" in capsys.readouterr().out
    assert (tmp_path / "model000002.pt").exists()

    def interrupt(network, args, output):
        if not network.training:
            os.kill(os.getpid(), signal.SIGTERM)

    clock = Clock(0.0)
    loop = train(monkeypatch, clock, hook=interrupt, output_path=str(tmp_path / "stopped"))
    assert clock.evaluations == 1 and loop.updates == 1
    assert grids(tmp_path) == [] and (tmp_path / "stopped/model000000.pt").exists()


SCRIPT = str(ROOT / "tests" / "training" / "two_ranks.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    launched(sys.executable, SCRIPT, str(folder))  # plain python needs no launcher's variables
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_equal_one_with_the_double_batch(launcher, alone, tmp_path):
    launched(*LAUNCHERS[launcher], SCRIPT, str(tmp_path))
    for name in ("grads.pt", "model000003.pt", "ema_0.9_000003.pt"):
        one, two = (checkpoint_util.load_state_dict(folder / name) for folder in (alone, tmp_path))
        # softmax is blind to the bias of k: its gradient is rounding, of which AdamW makes whole steps
        keys = [key for key in one if not key.endswith("qkv.bias")]
        one, two = (torch.cat([weights[key].flatten() for key in keys]) for weights in (one, two))
        # the same sums in another order, float32: 1.4e-6; in other microbatches a gradient differs by more than a tenth
        assert (one - two).norm() < 1e-5 * one.norm(), name


def test_sigterm_to_one_of_two_processes_stops_both_after_a_save(tmp_path):
    # each rank in a shell, as in wrappers and containers: the ranks' parents differ, and may not be asked after
    mpiexec, *two, python = LAUNCHERS["mpiexec"]
    launched(mpiexec, *two, "bash", "-c", f"{python} {SCRIPT} {tmp_path} SIGTERM; exit $?")
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
    output = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, str(tmp_path / "watched.py")]
    ranks = [subprocess.Popen(command, env=environment(RANK=rank, **place), **output) for rank in "01"]
    outputs = [process.communicate(timeout=60)[0] for process in ranks]
    assert "rank 0: rank 1 has ended, so this one stops too" in outputs[0]
    assert ranks[0].returncode == 1
    assert "has ended" not in outputs[1]  # what it says itself is the reason
    assert ("no such thing" in outputs[1]) == ("no such thing" in end)
