"""The grid of samples never delays, ends or changes a training."""

import os
import signal

import pytest
from PIL import Image

from dime.core.training import monitor
from guided_diffusion import logger
from guided_diffusion.script_util import model_and_diffusion_defaults
from guided_diffusion.train_util import TrainLoop
from tests.training.small import FLAGS, endless, network_and_diffusion, settings


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
