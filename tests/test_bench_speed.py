"""bench/speed.py: what it counts, how it scales up, and that its page keeps the other sections."""

import re
import sys

import pytest
import torch

from bench import speed
from dime.core.errors import InputError
from tests.helpers import CPU

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
