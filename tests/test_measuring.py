"""bench/speed.py and tools/noise_errors.py: what they count, on clocks and networks whose answer is known."""

import re
import sys

import pytest
import torch

from bench import speed
from dime.core.errors import InputError
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.helpers import CPU, rnd
from tools.noise_errors import noise_error

ROWS = {(row.name, row.precision): row for row in speed.rows("bf16")}


def test_the_whole_program(tmp_path, monkeypatch, capsys):
    page = tmp_path / "RESULTS.md"
    command = f"speed.py --network tiny --batch_size 2 --repeats 2 --run_steps 2 --output {page}"
    monkeypatch.setattr(sys, "argv", command.split())
    speed.main()
    text = page.read_text()
    assert text.split("\n## ")[1].startswith("Speed: tiny network, CPU, batch 2\n")
    assert re.search(r"\| plain loop +\| fp32 +\| 1830 ", text) and re.search(r"\| maskdime +\| bf16 +\| 60 ", text)
    assert "Only 2 of the 60 outer steps were run" in text
    assert text.count("\n| ") == len(ROWS) + 2


def test_a_part_of_a_chain_is_scaled_up_by_its_evaluations(monkeypatch):
    bench = speed.SpeedBench(speed.NETWORKS["tiny"], CPU, batch_size=1, run_steps=3, half="bf16", compile=False)
    assert bench.share_of_peak(1.0, "bf16") is None
    # a clock that says how long the chain took, which has 6 evaluations in 3 steps, and then 3 evaluations alone
    monkeypatch.setattr(speed.time, "perf_counter", iter([0.0, 40.0, 50.0, 65.0]).__next__)
    assert bench.run(ROWS["plain loop", "fp32"]) == (1830 * 5 + (40 - 6 * 5) * 60 / 3, 5)
    monkeypatch.undo()
    bench.networks[None].out[2].bias.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        bench.run(ROWS["plain loop", "fp32"])


def test_a_section_is_replaced_and_the_others_stay(tmp_path):
    page = tmp_path / "RESULTS.md"
    for title, text in (("A", "one"), ("A b", "two"), ("C", "three"), ("A", "four\n\n### more")):
        speed.write_section(page, title, text + "\n\n", CPU, "speed.py")
    head, *sections = page.read_text().split("\n## ")
    assert head.startswith("# Measured")
    texts = [section.rpartition("\n\n")[0] for section in (section.strip() for section in sections)]
    assert texts == ["A\n\nfour\n\n### more", "A b\n\ntwo", "C\n\nthree"]
    assert all("python bench/speed.py" in section for section in sections)


X = rnd(3, 6, 3, 8, 8).clamp(-1, 1)
DIFFUSION = create_gaussian_diffusion(steps=100)
T = 60


def answer(change):
    """A network that knows x, and gives the true ε after a change."""

    def network(z, t):
        a = DIFFUSION.sqrt_alphas_cumprod[T], DIFFUSION.sqrt_one_minus_alphas_cumprod[T]
        return change((z - float(a[0]) * X) / float(a[1]))

    return network


@pytest.mark.parametrize(
    ("change", "mse", "mean_rms", "followed"),
    [
        (lambda eps: eps, 0, 0, 1),
        (lambda eps: eps + 0.5, 0.25, 0.5, 1),  # the same shift of all images is no regression's business
        (lambda eps: eps - eps.mean((2, 3), keepdim=True), None, None, 0),  # blind to the mean
    ],
)
def test_known_answers(change, mse, mean_rms, followed):
    found = noise_error(answer(change), DIFFUSION, X, T, seed=5)
    means = torch.randn(X.shape, generator=torch.Generator().manual_seed(5)).mean((2, 3))
    expected = means.square().mean()  # of a network that answers with a mean of 0
    mse, mean_rms = (float(expected) if mse is None else mse), (float(expected.sqrt()) if mse is None else mean_rms)
    assert found == pytest.approx((mse, mean_rms, followed), abs=1e-5)  # the network undoes the noising in float32
