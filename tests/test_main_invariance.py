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


def test_seven_chunks_merged_are_one(world, whole, tmp_path):
    """Padded batches have one shape, so every byte agrees; merged means differ by float64 rounding."""
    for chunk in range(7):
        files = results(world, tmp_path, **MIXED, pad_batches=True, num_chunks=7, chunk=chunk)
        assert f"Results/exp/chunk-{chunk}_num-chunks-7_stats.pth" in files
    merged = run_main(*world.command(tmp_path, SMALL_FLAGS | {"merge_and_eval": True, "num_chunks": 7}))
    assert merged.code == 0, merged.err
    assert "15 images" in merged.out
    assert images_of(tree_of(tmp_path)) == images_of(tree_of(whole))
    assert_close(summary(tmp_path), summary(whole), rel=1e-9)


def test_chunk_c_has_every_image_whose_position_is_c_modulo_the_count(world, tmp_path):
    world.explain(tmp_path, num_chunks=4, chunk=1)
    assert sorted(cell_files(tree_of(tmp_path), "CF")) == [1, 5, 9, 13]


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


def test_seed_changes_the_result(world, whole, tmp_path):
    files = results(world, tmp_path, **MIXED, pad_batches=True, seed=5, num_batches=1)
    before = cell_files(tree_of(whole), "Noise")
    assert all(content != before[id] for id, content in cell_files(files, "Noise").items())


def test_annotations_as_text_files(world, whole, tmp_path):
    """The official files: a count and names before the rows, columns padded with blanks."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "img_align_celeba").symlink_to(world.data / "img_align_celeba")
    with (world.data / "list_attr_celeba.csv").open() as file:
        header, *rows = list(csv.reader(file))
    lines = [str(len(rows)), " ".join(header[1:]) + " "]
    lines += [row[0] + " " + " ".join(value.rjust(2) for value in row[1:]) for row in rows]
    (data / "list_attr_celeba.txt").write_text("\r\n".join(lines) + "\r\n")
    with (world.data / "list_eval_partition.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    (data / "list_eval_partition.txt").write_text("".join(f"{name} {partition}\n" for name, partition in rows))
    files = images_of(results(world, tmp_path / "out", **MIXED, pad_batches=True, data_dir=data, num_batches=1))
    reference = images_of(tree_of(whole))
    assert sorted(cell_files(files, "CF")) == [0, 1, 2, 3]
    assert files == {name: reference[name] for name in files}


# Which images


def rows_of(world: World, partition: int) -> list[dict[str, str]]:
    with (world.data / "list_eval_partition.csv").open() as file:
        names = {row["image_id"] for row in csv.DictReader(file) if row["partition"] == str(partition)}
    with (world.data / "list_attr_celeba.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["image_id"] in names]


def photos(tree: dict[str, bytes]) -> dict[int, bytes]:
    return cell_files(tree, "Correct") | cell_files(tree, "Incorrect")


@pytest.mark.parametrize("target_label", [0, 1])
def test_target_label_keeps_the_other_label_before_the_cut(world, tmp_path, target_label):
    world.explain(tmp_path, target_label=target_label, batch_size=2, num_batches=2)
    kept = "1" if target_label == 0 else "-1"
    expected = [id for id, row in enumerate(rows_of(world, 1)) if row["Smiling"] == kept]
    files = tree_of(tmp_path)
    assert sorted(cell_files(files, "CF")) == expected[:4]
    assert all(text.startswith(f"label: {1 - target_label}\n".encode()) for text in cell_files(files, "Info").values())


def test_train_partition(world, tmp_path):
    world.explain(tmp_path, use_train=True, num_batches=1)
    labels = [text.split()[1] for _, text in sorted(cell_files(tree_of(tmp_path), "Info").items())]
    assert labels == [b"1" if row["Smiling"] == "1" else b"0" for row in rows_of(world, 0)[:4]]


def test_mini_val_ids_are_positions_in_its_list(world, whole, tmp_path):
    """A repeated image has several ids; filters do not renumber; use_train is ignored."""
    random.seed(5)
    mini_val = sorted(random.choices(range(15), k=1000))
    rows = rows_of(world, 1)
    smiling = [id for id, row in enumerate(mini_val) if rows[row]["Smiling"] == "1"]
    flags = {"dataset": "CelebAMV", "target_label": 0, "use_train": True, "num_chunks": 200, "chunk": 1}
    files = results(world, tmp_path, **flags, image_format="png", num_batches=250)
    expected = smiling[:1000][1::200]
    assert sorted(cell_files(files, "CF")) == expected
    reference = photos(tree_of(whole))
    assert photos(files) == {id: reference[mini_val[id]] for id in expected}


# The method's flags


def test_next_scale_is_tried_only_where_the_first_failed_and_starts_anew(world, whole, tmp_path):
    first = results(world, tmp_path, **MIXED | {"classifier_scales": "8"}, pad_batches=True)
    both = tree_of(whole)
    flipped = {id for name in first for id in [Path(name).stem] if "/CCF/CF/" in name}
    assert 0 < len(flipped) < 15
    counterfactuals = cell_files(first, "CF"), cell_files(both, "CF")
    for id in range(15):
        same = counterfactuals[0][id] == counterfactuals[1][id]
        assert same == (f"{id:07d}" in flipped), id
    assert cell_files(first, "Noise") == cell_files(both, "Noise")


def test_every_scale_starts_from_the_same_noised_image(world, tmp_path):
    """The frames are those of the last scale tried."""
    world.explain(tmp_path, classifier_scales="0,0,0", image_format="png", save_z_t=True, num_batches=1)
    noised = cell_files(tree_of(tmp_path), "Noise")
    assert len(noised) == 4
    for id, content in noised.items():
        assert (tmp_path / f"z_t/exp/{id:06d}/0000.png").read_bytes() == content


def test_without_guided_iterations_nothing_pulls(world, tmp_path):
    flags = {"num_batches": 1, "guided_iterations": 0, "image_format": "png", "save_x_t": True}
    free = results(world, tmp_path / "a", **flags, classifier_scales="2", l1_loss=0.5)
    assert cell_files(free, "CF") == cell_files(results(world, tmp_path / "b", **flags, classifier_scales="900"), "CF")
    guided = results(world, tmp_path / "c", num_batches=1, image_format="png", guided_iterations=1)
    assert cell_files(free, "CF") != cell_files(guided, "CF")
    for id in range(4):  # the clean estimate stays the input
        frames = [free[f"x_t/exp/{id:06d}/{step:04d}.png"] for step in range(3)]
        assert frames[0] == frames[1] == frames[2]


def test_sampling_scale_multiplies_the_noise_of_the_reverse_steps(world, tmp_path):
    """At 0 a chain that samples is the one that follows its means; the first noising is not scaled."""
    flags = {"num_batches": 1, "image_format": "png", "l2_loss": 0.1}
    silent = results(world, tmp_path / "a", **flags, sampling_scale=0)
    means = results(world, tmp_path / "b", **flags, sampling_scale=0, use_sampling_on_x_t=False)
    noisy = results(world, tmp_path / "c", **flags)
    assert cell_files(silent, "CF") == cell_files(means, "CF")
    assert cell_files(silent, "CF") != cell_files(noisy, "CF")
    assert cell_files(silent, "Noise") == cell_files(noisy, "Noise")


def test_clean_estimates_are_sampled_or_means(world, tmp_path):
    flags = {"num_batches": 1, "image_format": "png"}
    sampled = results(world, tmp_path / "a", **flags)
    means = results(world, tmp_path / "b", **flags, use_sampling_on_x_t=False)
    assert cell_files(sampled, "CF") != cell_files(means, "CF")


@pytest.mark.parametrize("flag", ["l1_loss", "l2_loss", "l_perc", "use_logits", "clip_denoised"])
def test_every_term_of_the_guidance_counts(world, tmp_path, flag):
    flags = {"num_batches": 1, "batch_size": 2, "image_format": "png", "l_perc_layer": 4}
    value = {"use_logits": False, "clip_denoised": False, "l_perc": 3e3}.get(flag, 0.5)
    without = results(world, tmp_path / "a", **flags)
    assert cell_files(without, "CF") != cell_files(results(world, tmp_path / "b", **flags, **{flag: value}), "CF")


def test_unet_evaluations(world, tmp_path, monkeypatch):
    """tau outer and tau (tau - 1) / 2 inner ones, of which tau - 1 repeat an outer one: 7 at tau = 4."""
    shapes = []
    watched(
        monkeypatch,
        "load_diffusion",
        lambda unet: unet.register_forward_hook(lambda *args: shapes.append(len(args[2]))),
    )
    world.explain(tmp_path, num_batches=1, start_step=4)
    assert shapes == [4] * 7


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


@pytest.mark.parametrize("num_chunks", [1, 2])
def test_published_summaries_are_merged(tmp_path, num_chunks):
    """They say nothing of their run; the second lacks a figure and a table."""
    first = {
        "n": 2,
        "bkl": 0.5,
        "l_1": 0.2,
        "cf acc": 1.0,
        "clean acc": 50.0,
        "FVA": 0.8,
        "cf-cor": {"n": 2, "bkl": 0.5},
    }
    second = {"n": 2, "bkl": 0.25, "l_1": 0.4, "cf acc": 0.5, "clean acc": 100.0, "cf-cor": {"n": 0, "bkl": 0}}
    folder = tmp_path / "Results/exp"
    folder.mkdir(parents=True)
    for chunk, content in enumerate((first, second)[:num_chunks]):
        prefix = f"chunk-{chunk}_num-chunks-2_" if num_chunks == 2 else ""
        (folder / f"{prefix}summary.yaml").write_text(yaml.safe_dump(content))
    merge = {"merge_and_eval": True, "num_chunks": num_chunks, "output_path": tmp_path, "exp_name": "exp"}
    run = run_main(*as_arguments(merge))
    assert run.code == 0, run.err
    expected = {
        "n": 4,
        "bkl": 0.375,
        "l_1": 0.3,
        "cf acc": 0.75,
        "clean acc": 75.0,
        "FVA": 0.4,
        "cf-cor": {"n": 2, "bkl": 0.5},
    }
    assert_close(summary(tmp_path), expected if num_chunks == 2 else first, rel=1e-12)


def test_more_chunks_than_images_merge_too(world, tmp_path):
    for chunk in range(5):
        world.explain(tmp_path, num_chunks=5, chunk=chunk, num_batches=1)
    assert summary(tmp_path, "chunk-4_num-chunks-5_summary.yaml")["n"] == 0
    merge = {"output_path": tmp_path, "exp_name": "exp", "merge_and_eval": True, "num_chunks": 5}
    assert run_main(*as_arguments(merge)).code == 0
    assert summary(tmp_path)["n"] == 4
