"""What must not change a result, and what must: chunks, batches, order, annotations, seeds, failures of a neighbour."""

from __future__ import annotations

import csv
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import main as main_script
from dime.core.job.question import Question
from tests.worlds import SMALL_FLAGS, World, as_arguments, run_main, tree_of, watched


def results(world: World, out: Path, **flags: Any) -> dict[str, bytes]:
    """The result tree of a run without the configuration, which names its flags."""
    world.explain(out, **flags)
    return {name: content for name, content in tree_of(out).items() if not name.endswith("config.yaml")}


def images_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """Everything but the reports about the whole run."""
    return {name: content for name, content in files.items() if not name.endswith((".yaml", ".pth"))}


def cell_files(files: dict[str, bytes], kind: str) -> dict[int, bytes]:
    return {int(Path(name).stem): content for name, content in files.items() if Path(name).parent.name == kind}


def summary(out: Path, name: str = "summary.yaml") -> dict[str, Any]:
    return yaml.safe_load((out / "Results/exp" / name).read_text())


def assert_close(a: dict, b: dict, **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, dict):
            assert_close(value, b[key], **tolerance)
        else:
            assert value == pytest.approx(b[key], **tolerance), key


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """All 15 images, two scales of which some images need the second, some both in vain."""
    out = tmp_path_factory.mktemp("whole")
    world.explain(out, **MIXED, pad_batches=True)
    return out


MIXED = {"query_label": 1, "classifier_scales": "8,30", "image_format": "png"}
"""Scales under which some images flip at once, some later and some never."""


def test_the_run_that_others_are_compared_with_has_every_outcome(whole):
    texts = {path: path.read_text() for path in whole.rglob("Info/*.txt")}
    assert len(texts) == 15
    figures = summary(whole)
    assert 0 < figures["cf acc"] < 1 and 0 < figures["clean acc"] < 100
    assert {text.splitlines()[1] for text in texts.values()} == {"pred: 0", "pred: 1"}
    outcomes = {(path.parents[1].name, text.rpartition("scale: ")[2]) for path, text in texts.items()}
    assert outcomes == {("CCF", "8.0"), ("CCF", "30.0"), ("ICF", "30.0")}


def test_chunks_merged_are_one(world, whole, tmp_path):
    """Padded batches have one shape, so every byte agrees; merged means differ by float64 rounding."""
    for chunk in range(3):
        files = results(world, tmp_path, **MIXED, pad_batches=True, num_chunks=3, chunk=chunk)
        assert f"Results/exp/chunk-{chunk}_num-chunks-3_stats.pth" in files
        assert sorted(cell_files(files, "CF")) == [id for id in range(15) if id % 3 <= chunk]
    merged = run_main(*world.command(tmp_path, SMALL_FLAGS | {"merge_and_eval": True, "num_chunks": 3}))
    assert merged.code == 0, merged.err
    assert "15 images" in merged.out
    assert images_of(tree_of(tmp_path)) == images_of(tree_of(whole))
    assert_close(summary(tmp_path), summary(whole), rel=1e-9)


def test_batch_size_changes_no_more_than_rounding(world, whole, tmp_path):
    """Other shapes take other kernels: a pixel next to a whole grey level may fall to the other side."""
    files = results(world, tmp_path, **MIXED, batch_size=1)
    ours, theirs = images_of(files), images_of(tree_of(whole))
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith(".png") and "/SM/" not in name:  # SM is scaled up to 255, rounding with it
            a, b = (np.asarray(Image.open(root / name), float) for root in (tmp_path, whole))
            assert np.abs(a - b).max() <= 1 and np.abs(a - b).mean() < 0.01, name
    assert_close(summary(tmp_path), summary(whole), rel=1e-4, abs=1e-4)  # probabilities move by some 1e-5


def test_padded_batches_give_the_same_bytes_in_any_company(world, whole, tmp_path):
    """Filtered images meet other neighbours and other gaps; the last batch is short."""
    files = images_of(results(world, tmp_path, **MIXED, pad_batches=True, target_label=0))
    reference = images_of(tree_of(whole))
    assert 0 < len(cell_files(files, "CF")) < 15
    assert files == {name: reference[name] for name in files}


def test_order_of_images_is_irrelevant(world, whole, tmp_path, monkeypatch):
    select = Question.select
    monkeypatch.setattr(Question, "select", lambda *args: random.Random(1).sample(ids := select(*args), len(ids)))
    files = results(world, tmp_path, **MIXED, pad_batches=True)
    assert images_of(files) == images_of(tree_of(whole))
    assert_close(summary(tmp_path), summary(whole), rel=1e-9)


# Which images


def rows_of(world: World, partition: int) -> list[dict[str, str]]:
    with (world.data / "list_eval_partition.csv").open() as file:
        names = {row["image_id"] for row in csv.DictReader(file) if row["partition"] == str(partition)}
    with (world.data / "list_attr_celeba.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["image_id"] in names]


@pytest.mark.parametrize(("target_label", "use_train"), [(0, False), (1, True)])
def test_target_label_keeps_the_other_label_before_the_cut(world, tmp_path, target_label, use_train):
    world.explain(tmp_path, target_label=target_label, use_train=use_train, batch_size=2, num_batches=2)
    kept = "1" if target_label == 0 else "-1"
    expected = [id for id, row in enumerate(rows_of(world, 0 if use_train else 1)) if row["Smiling"] == kept]
    files = tree_of(tmp_path)
    assert sorted(cell_files(files, "CF")) == expected[:4]
    assert all(text.startswith(f"label: {1 - target_label}\n".encode()) for text in cell_files(files, "Info").values())


# The method's flags


@pytest.fixture(scope="module")
def two_images(world, tmp_path_factory) -> dict[int, bytes]:
    return cell_files(results(world, tmp_path_factory.mktemp("two"), **TWO_IMAGES), "CF")


TWO_IMAGES = {"num_batches": 1, "batch_size": 2, "image_format": "png", "l_perc_layer": 4}


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
    rows = rows_of(world, 1)[:4]
    expected = torch.tensor([[float(value == "1") for value in list(row.values())[1:]] for row in rows])
    assert len(told) == 4 and all(torch.equal(y, expected) for y in told)
    assert len(cell_files(tree_of(tmp_path), "CF")) == 4


# Failures


def nan_in_row(row: int, after: int = 0, until: float = float("inf")):
    """Installs a hook that turns one image's output into NaN, in the calls from `after` to before `until`."""
    calls = itertools.count()

    def hook(module, args, output):
        broken = after <= next(calls) < until
        return output.index_fill(0, torch.tensor([row]), float("nan")) if broken else output

    return lambda network: network.register_forward_hook(hook)


@pytest.mark.parametrize(("loader", "after"), [("load_diffusion", 0), ("load_classifier", 5)])
def test_a_nan_never_counts_as_flipped(world, tmp_path, monkeypatch, loader, after):
    """Target 0 is what "logit > 0" makes of a NaN. The neighbours are as they were, byte by byte.

    The classifier is called four times before the work, to see whether it can be explained.
    """
    clean = results(world, tmp_path / "clean", num_batches=1)
    to_zero = [id for id, text in cell_files(clean, "Info").items() if b"target: 0" in text]
    victim = to_zero[0]
    watched(monkeypatch, loader, nan_in_row(victim, after))
    out = tmp_path / "broken"
    run = run_main(*world.command(out, SMALL_FLAGS | {"num_batches": 1}))
    assert run.code == main_script.EXIT_SOME_FAILED
    assert "1 failed" in run.out
    others = {name: content for name, content in images_of(clean).items() if Path(name).stem != f"{victim:07d}"}
    assert images_of(tree_of(out)) == others
    figures = summary(out)
    assert figures["failed"] == 1 and figures["n"] == 3
    assert list(yaml.safe_load((out / "Results/exp/failed.yaml").read_text())) == [victim]
    assert all(np.isfinite([figures[key] for key in ("bkl", "l_1", "cf acc", "clean acc")]))
    stats = torch.load(out / "Results/exp/stats.pth", weights_only=True)
    assert stats["n"] == 3 and victim not in stats["id"].tolist()


def test_an_image_that_failed_is_tried_with_the_next_scale(world, tmp_path, monkeypatch):
    """A NaN at the first scale (four evaluations at tau = 3) has not reached its target 0."""
    watched(monkeypatch, "load_diffusion", nan_in_row(2, until=4))
    files = results(world, tmp_path, num_batches=1, classifier_scales="8,9")
    text = cell_files(files, "Info")[2].decode()
    assert "target: 0" in text and text.endswith("scale: 9.0")
    assert summary(tmp_path)["failed"] == 0


# Merging


def test_more_chunks_than_images_merge_too(world, tmp_path):
    for chunk in range(3):
        world.explain(tmp_path, num_chunks=3, chunk=chunk, num_batches=1, batch_size=2)
    assert summary(tmp_path, "chunk-2_num-chunks-3_summary.yaml")["n"] == 0
    merge = {"output_path": tmp_path, "exp_name": "exp", "merge_and_eval": True, "num_chunks": 3}
    assert run_main(*as_arguments(merge)).code == 0
    assert summary(tmp_path)["n"] == 2
