"""Robust flips and composition, on counterfactuals of which it is known whether they last."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dime.core.guidance import Binary
from dime.core.metrics.features import Machine
from dime.core.metrics.metric import Context, select_pairs
from dime.core.metrics.protocol import evaluate
from dime.core.metrics.report import Report
from dime.core.metrics.robust import ROBUST, as_jpeg, as_saved, survivors
from dime.core.results import ResultTree
from tests.metric_world import make_tree
from tests.worlds import World

HERE = Machine(torch.device("cpu"), batch_size=3, num_workers=1)
NAMES = [metric.rows[0] for metric in ROBUST]


def bright(x: torch.Tensor) -> torch.Tensor:
    """Logits (N, 1): positive for images brighter than the middle."""
    return x.mean(dim=(1, 2, 3))[:, None]


def chequered(x: torch.Tensor) -> torch.Tensor:
    """Logits (N, 1): positive where there is a pattern of one grey level up and down that nobody sees."""
    sign = 1 - 2 * (torch.arange(8)[:, None] + torch.arange(8)).remainder(2)
    return (x * sign).mean(dim=(1, 2, 3))[:, None] - 0.3 / 127.5


def test_flips_are_counted_after_what_becomes_of_them(tmp_path):
    greys = [("CC/CCF", 20, 140), ("CC/CCF", 30, 160), ("CC/CCF", 40, 200), ("CC/ICF", 40, 220)]
    pairs = select_pairs(make_tree(tmp_path, greys)[0])
    assert survivors(pairs, bright, Binary(), HERE, as_saved).tolist() == [1, 1, 1]  # what failed is not asked
    seen = []

    def darker(ids: list[int], x: torch.Tensor) -> torch.Tensor:
        seen.extend(ids)
        return x - 40 / 127.5

    assert survivors(pairs, bright, Binary(), HERE, as_saved, darker).tolist() == [0, 0, 1]
    assert sorted(seen) == [0, 1, 2]


def test_jpeg_ends_what_nobody_sees(tmp_path):
    tree = make_tree(tmp_path, [("CC/CCF", 100, 100)] * 2)[0]
    pattern = 101 - 2 * ((np.arange(8)[:, None] + np.arange(8)) % 2)
    for pair in tree.pairs():
        Image.fromarray(np.repeat(pattern[..., None], 3, axis=2).astype(np.uint8)).save(pair.counterfactual)
    pairs = tree.pairs()
    assert survivors(pairs, chequered, Binary(), HERE, as_saved).tolist() == [1, 1]
    assert survivors(pairs, chequered, Binary(), HERE, as_jpeg).tolist() == [0, 0]


@pytest.fixture(scope="module")
def explained(world: World, tmp_path_factory: pytest.TempPathFactory) -> ResultTree:
    out = tmp_path_factory.mktemp("robust")
    flags = {"image_format": "png", "num_batches": 1, "batch_size": 2, "pad_batches": True}
    world.explain(out, **flags)
    world.explain(out, **flags, method="inverted", exp_name="inverted")
    return ResultTree(out, "exp")


def measured(tree: ResultTree, **given: object) -> Report:
    context = Context(HERE, **given)
    return evaluate(context, [tree, ResultTree(tree.output_path, "inverted")], True, ROBUST)


def test_of_real_runs(explained, world):
    """The inversion gives an image back, where nothing pulls; DiME does not."""
    report = measured(explained, second_classifier_path=str(world.classifier))
    dime, inverted = (report.measurements[exp] for exp in ("exp", "inverted"))
    # float32: an image comes back to 1e-5 of 127.5 levels
    assert dime["composition"].value > 1 and inverted["composition"].value < 0.01
    for name in NAMES[1:]:  # the untrained networks may flip nothing: then that is the reason
        for m in (dime[name], inverted[name]):
            assert m.reason if m.value is None else 0 <= m.value <= 1, m


def test_what_is_lacking_is_said(explained):
    config = explained.report("config.yaml")
    content = config.read_text()
    try:
        flags = yaml.safe_load(content)
        config.write_text(yaml.safe_dump({name: value for name, value in flags.items() if name != "model_path"}))
        missing = "\n".join(measured(explained).missing["exp"])
    finally:
        config.write_text(content)
    assert "flips of a second classifier: --second-classifier-path names no classifier" in missing
    assert "composition: the run's config.yaml, which names its diffusion model, is not there" in missing
