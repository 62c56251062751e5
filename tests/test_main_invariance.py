"""What must not change a result, and what must: chunks, batches, order, annotations, seeds, failures of a neighbour."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dime.core.job.setup import Question
from tests.helpers import assert_close
from tests.worlds import SMALL_FLAGS, World, as_arguments, images, run_main, succeeded, tree_of, watched


def results(world: World, out: Path, **flags: Any) -> dict[str, bytes]:
    """The result tree of a run without the configuration, which names its flags."""
    world.explain(out, **flags)
    return {name: content for name, content in tree_of(out).items() if not name.endswith("config.yaml")}


def cell_files(files: dict[str, bytes], kind: str) -> dict[int, bytes]:
    return {int(Path(name).stem): content for name, content in files.items() if Path(name).parent.name == kind}


def summary(out: Path, name: str = "summary.yaml") -> dict[str, Any]:
    return yaml.safe_load((out / "Results/exp" / name).read_text())


MIXED = {"query_label": 1, "classifier_scales": "8,30", "image_format": "png"}
"""Scales under which some images flip at once, some later and some never."""


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """All 15 images, with every outcome."""
    out = tmp_path_factory.mktemp("whole")
    world.explain(out, **MIXED, pad_batches=True)
    texts = {path: path.read_text() for path in out.rglob("Info/*.txt")}
    assert len(texts) == 15 and 0 < summary(out)["clean acc"] < 100
    assert {text.splitlines()[1] for text in texts.values()} == {"pred: 0", "pred: 1"}
    outcomes = {(path.parents[1].name, text.rpartition("scale: ")[2]) for path, text in texts.items()}
    assert outcomes == {("CCF", "8.0"), ("CCF", "30.0"), ("ICF", "30.0")}
    return out


def test_chunks_merged_are_one(world, whole, tmp_path):
    """Padded batches have one shape, so every byte agrees; merged means differ by float64 rounding."""
    for chunk in range(3):
        files = results(world, tmp_path, **MIXED, pad_batches=True, num_chunks=3, chunk=chunk)
        assert f"Results/exp/chunk-{chunk}_num-chunks-3_stats.pth" in files
        assert sorted(cell_files(files, "CF")) == [id for id in range(15) if id % 3 <= chunk]
    merged = run_main(*world.command(tmp_path, SMALL_FLAGS | {"merge_and_eval": True, "num_chunks": 3}))
    assert "15 images" in succeeded(merged).out
    assert images(tmp_path) == images(whole)
    assert_close(summary(tmp_path), summary(whole), rel=1e-9)


def test_batch_size_changes_no_more_than_rounding(world, whole, tmp_path):
    """Other shapes take other kernels: a pixel next to a whole grey level may fall to the other side."""
    results(world, tmp_path, **MIXED, batch_size=1)
    ours, theirs = images(tmp_path), images(whole)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith(".png") and "/SM/" not in name:  # SM is scaled up to 255, rounding with it
            a, b = (np.asarray(Image.open(root / name), float) for root in (tmp_path, whole))
            assert np.abs(a - b).max() <= 1 and np.abs(a - b).mean() < 0.01, name
    assert_close(summary(tmp_path), summary(whole), rel=1e-4, abs=1e-4)  # probabilities move by some 1e-5


def test_padded_batches_give_the_same_bytes_in_any_company_and_order(world, whole, tmp_path, monkeypatch):
    """Filtered images meet other neighbours and other gaps, in another order; the last batch is short."""
    select = Question.select
    monkeypatch.setattr(Question, "select", lambda *args: random.Random(1).sample(ids := select(*args), len(ids)))
    results(world, tmp_path, **MIXED, pad_batches=True, target_label=0)
    ours, theirs = images(tmp_path), images(whole)
    assert 0 < len(cell_files(ours, "CF")) < 15
    assert ours.items() <= theirs.items()


@pytest.mark.parametrize(("target_label", "use_train"), [(0, False), (1, True)])
def test_target_label_keeps_the_other_label_before_the_cut(world, tmp_path, target_label, use_train):
    world.explain(tmp_path, target_label=target_label, use_train=use_train, batch_size=2, num_batches=2)
    smiles = [row[31] for row in world.labels(0 if use_train else 1)]
    files = tree_of(tmp_path)
    assert sorted(cell_files(files, "CF")) == [id for id, smile in enumerate(smiles) if smile != target_label][:4]
    assert all(text.startswith(f"label: {1 - target_label}\n".encode()) for text in cell_files(files, "Info").values())


TWO_IMAGES = {"num_batches": 1, "batch_size": 2, "image_format": "png", "l_perc_layer": 4}


@pytest.fixture(scope="module")
def two_images(world, tmp_path_factory) -> dict[int, bytes]:
    return cell_files(results(world, tmp_path_factory.mktemp("two"), **TWO_IMAGES), "CF")


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": 5}, {"l1_loss": 0.5}, {"l2_loss": 0.5}, {"l_perc": 3e3}, {"use_logits": False}),
        *({"clip_denoised": False}, {"guided_iterations": 1}, {"sampling_scale": 0}, {"use_sampling_on_x_t": False}),
    ],
    ids=str,
)
def test_every_flag_of_the_method_reaches_it(world, two_images, tmp_path, change):
    """What each does is tested where it is done."""
    assert cell_files(results(world, tmp_path, **TWO_IMAGES | change), "CF") != two_images


def test_class_conditional_unet_is_told_the_labels(world, tmp_path, monkeypatch):
    told = []

    def listen(unet):
        unet.register_forward_pre_hook(lambda _, args, kwargs: told.append(kwargs["y"]), with_kwargs=True)

    watched(monkeypatch, "load_diffusion", listen)
    world.explain(tmp_path, num_batches=1, class_cond=True, model_path=world.unet("labels_multi"))
    assert len(told) == 4 and all(torch.equal(y, torch.tensor(world.labels(1)[:4]).float()) for y in told)


def test_an_image_that_failed_is_tried_with_the_next_scale(world, tmp_path, monkeypatch):
    """A NaN at the first scale (four evaluations at tau = 3) has not reached its target 0, as "logit > 0" would say."""
    calls = itertools.count()

    def spoil(module, args, output):
        return output.index_fill(0, torch.tensor([2]), float("nan")) if next(calls) < 4 else output

    watched(monkeypatch, "load_diffusion", lambda network: network.register_forward_hook(spoil))
    text = cell_files(results(world, tmp_path, num_batches=1, classifier_scales="8,9"), "Info")[2].decode()
    assert "target: 0" in text and text.endswith("scale: 9.0")
    assert summary(tmp_path)["failed"] == 0


def test_more_chunks_than_images_merge_too(world, tmp_path):
    for chunk in range(3):
        world.explain(tmp_path, num_chunks=3, chunk=chunk, num_batches=1, batch_size=2)
    assert summary(tmp_path, "chunk-2_num-chunks-3_summary.yaml")["n"] == 0
    merge = {"output_path": tmp_path, "exp_name": "exp", "merge_and_eval": True, "num_chunks": 3}
    succeeded(run_main(*as_arguments(merge)))
    assert summary(tmp_path)["n"] == 2
