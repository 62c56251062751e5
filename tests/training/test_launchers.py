"""Two processes train as one with the double batch, however they are started; and what happens when one dies."""

from __future__ import annotations

import signal
import sys
import time

import pytest
import torch

from guided_diffusion import checkpoint_util
from tests.training.small import LAUNCHERS, ROOT, run, start

SCRIPT = str(ROOT / "tests" / "training" / "two_ranks.py")
MICROBATCHES = "2"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run([sys.executable, SCRIPT, str(folder), MICROBATCHES])
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_equal_one_with_the_double_batch(launcher, alone, tmp_path):
    run([*LAUNCHERS[launcher], SCRIPT, str(tmp_path), MICROBATCHES])
    for name in ("grads.pt", "model000003.pt", "ema_0.9_000003.pt"):
        one, two = (checkpoint_util.load_state_dict(folder / name) for folder in (alone, tmp_path))
        # softmax is blind to the bias of k: its gradient is rounding, of which AdamW makes whole steps
        keys = [key for key in one if not key.endswith("qkv.bias")]
        one, two = (torch.cat([weights[key].flatten() for key in keys]) for weights in (one, two))
        assert (one - two).norm() < 1e-5 * one.norm(), name  # the same sums in another order, float32: 1.4e-6


def test_the_comparison_above_can_fail(alone, tmp_path):
    """Another split into microbatches sums the gradients otherwise, and shows."""
    run([sys.executable, SCRIPT, str(tmp_path), "1"])
    one, other = (checkpoint_util.load_state_dict(folder / "grads.pt") for folder in (alone, tmp_path))
    assert max((one[key] - other[key]).abs().max() / one[key].abs().max() for key in one) > 0.1


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_others_end_when_a_process_dies(launcher, tmp_path):
    """Rank 1 kills itself after two updates, and rank 0 neither hangs nor ends in success."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal\n"
        "from guided_diffusion import dist_util, logger\n"
        "from guided_diffusion.train_util import TrainLoop, TrainObserver\n"
        "from tests.training.small import endless, network_and_diffusion, settings\n"
        "class Die(TrainObserver):\n"
        "    def on_update(self, loop):\n"
        "        if dist_util.rank() == 1 and loop.updates == 2:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "dist_util.setup_dist()\n"
        f"logger.configure(dir={str(tmp_path)!r}, format_strs=[])\n"
        "model, diffusion = network_and_diffusion()\n"
        "TrainLoop(model=model, diffusion=diffusion, data=endless(4), observer=Die(), **settings()).run_loop()\n"
    )
    began = time.monotonic()
    process = start([*LAUNCHERS[launcher], str(script)])
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert time.monotonic() - began < 90  # a minute, and the start of the interpreters
    assert checkpoint_util.load_state_dict(tmp_path / "model000000.pt"), output


def test_plain_python_needs_no_launcher_variables(alone):
    assert torch.load(alone / "opt000003.pt", weights_only=True)["training"]["updates"] == 3


def test_sigterm_to_one_of_two_processes_stops_both_after_a_save(tmp_path):
    script = tmp_path / "stopped.py"
    script.write_text(
        "import os, signal\n"
        "from guided_diffusion import dist_util, logger\n"
        "from guided_diffusion.train_util import TrainLoop, TrainObserver\n"
        "from tests.training.small import endless, network_and_diffusion, settings\n"
        "class Stop(TrainObserver):\n"
        "    def on_update(self, loop):\n"
        "        if dist_util.rank() == 1 and loop.updates == 3:\n"
        f"            os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
        "dist_util.setup_dist()\n"
        f"logger.configure(dir={str(tmp_path)!r}, format_strs=[])\n"
        "model, diffusion = network_and_diffusion()\n"
        "TrainLoop(model=model, diffusion=diffusion, data=endless(4), observer=Stop(), **settings()).run_loop()\n"
    )
    run([*LAUNCHERS["mpiexec"], str(script)])
    assert (tmp_path / "model000003.pt").exists()
