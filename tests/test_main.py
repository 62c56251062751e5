"""The main job as its users meet it: the golden result tree, the published commands, the files it writes."""

from __future__ import annotations

import csv
import os
import random
import shlex
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.helpers import GOLDEN
from tests.worlds import GOLDEN_FLAGS, SCRIPT, World, run_command, run_main, tree_of

SMILE = """--attention_resolutions 32,16,8 --class_cond False --diffusion_steps 500 --learn_sigma True
    --noise_schedule linear --num_channels 128 --num_heads 4 --num_res_blocks 2 --resblock_updown True --use_fp16 True
    --use_scale_shift_norm True --batch_size 50 --timestep_respacing 200
    --query_label 31 --target_label -1 --output_path $OUT --num_batches $N --start_step 60 --dataset CelebAMV
    --exp_name exp/name --gpu 0 --model_path $MODEL --classifier_scales 8,10,15 --classifier_path $CLASSIFIER --seed 4
    --oracle_path $ORACLE --l1_loss 0.05 --use_logits True --l_perc 30 --l_perc_layer 18 --save_x_t True
    --save_z_t True --use_sampling_on_x_t True --save_images True --image_size 128 --num_chunks 25 --chunk 7"""
"""The published command. What a small U-Net and a short time force is appended, so that it takes precedence."""

FORCED = "--num_channels 32 --num_res_blocks 1 --channel_mult 1,2,2 --start_step 2"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), np.float64)


def info_of(path: Path) -> dict[str, str]:
    return dict(line.split(": ") for line in path.read_text().splitlines())


def ids_in(folder: Path) -> list[int]:
    """The ids of the counterfactuals of an experiment."""
    return sorted(int(path.stem) for path in folder.glob("*/*/CF/*"))


def annotations(world: World, partition: int) -> list[dict[str, str]]:
    """The rows of a partition in file order, read without the project."""
    with (world.data / "list_eval_partition.csv").open() as file:
        names = [row["image_id"] for row in csv.DictReader(file) if row["partition"] == str(partition)]
    with (world.data / "list_attr_celeba.csv").open() as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    return [rows[name] for name in names]


# The golden tree


@pytest.fixture(scope="module")
def golden_tree(world, tmp_path_factory) -> tuple[Path, Path]:
    """The published code's tree, and ours of the same command with the same stream of noise."""
    expected, ours = tmp_path_factory.mktemp("expected"), tmp_path_factory.mktemp("ours") / "out"
    with tarfile.open(GOLDEN / "e2e_tree.tar.gz") as archive:
        archive.extractall(expected, filter="data")
    result = run_main(*world.command(ours, GOLDEN_FLAGS | {"noise": "stream"}))
    assert result.code == 0, result.err
    return expected, ours


def test_golden_tree_has_the_same_folders_and_files(golden_tree):
    expected, ours = ({str(path.relative_to(root)) for path in root.rglob("*")} for root in golden_tree)
    assert expected - ours == set()
    assert ours - expected == {"Results/demo/config.yaml"}


def test_golden_info(golden_tree):
    """BKL to 1e-3: other kernels. l_1 to 3e-3: inputs are rounded, the published code truncates them."""
    expected, ours = golden_tree
    texts = sorted(expected.rglob("Info/*.txt"))
    assert len(texts) == 15
    for path in texts:
        theirs, own = info_of(path), info_of(ours / path.relative_to(expected))
        for key in ("label", "pred", "target", "cf pred"):
            assert own[key] == theirs[key], (path, key)
        assert float(own["BKL"]) == pytest.approx(float(theirs["BKL"]), abs=1e-3), path
        assert float(own["l_1"]) == pytest.approx(float(theirs["l_1"]), abs=3e-3), path


@pytest.mark.parametrize(
    ("pattern", "count", "tolerance"),
    [
        ("Results/demo/*/*/CF/*.jpg", 15, 0.5),  # mean grey levels: JPEG of nearly the same pixels
        ("Results/demo/*/*/Noise/*.jpg", 15, 0.5),
        ("x_t/demo/*/*.jpg", 90, 0.5),
        ("z_t/demo/*/*.jpg", 90, 0.5),
        ("Results/demo/*/*/SM/*.jpg", 15, 4.0),  # of the published code's truncated inputs, scaled up to 255
        ("Original/*/*.jpg", 15, 1.4),  # truncated inputs, up to one level lower, then JPEG
    ],
)
def test_golden_images(golden_tree, pattern, count, tolerance):
    expected, ours = golden_tree
    paths = sorted(expected.glob(pattern))
    assert len(paths) == count
    for path in paths:
        difference = np.abs(pixels(path) - pixels(ours / path.relative_to(expected)))
        assert difference.mean() <= tolerance, path


def test_golden_summary(golden_tree):
    """To 3e-3: rounded inputs move l_1 by that; counts and rates agree exactly."""

    def compare(theirs: dict, own: dict) -> None:
        for key, value in theirs.items():
            if isinstance(value, dict):
                compare(value, own[key])
            elif key in ("bkl", "l_1"):
                assert own[key] == pytest.approx(value, abs=3e-3), key
            else:
                assert own[key] == pytest.approx(value, rel=1e-12), key

    expected, ours = (yaml.safe_load((root / "Results/demo/summary.yaml").read_text()) for root in golden_tree)
    compare(expected, ours)


def test_stats_hold_the_figures_in_the_order_processed(golden_tree):
    _, ours = golden_tree
    stats = torch.load(ours / "Results/demo/stats.pth", weights_only=True)
    infos = {int(path.stem): info_of(path) for path in (ours / "Results/demo").rglob("Info/*.txt")}
    assert stats["n"] == 15
    assert stats["flipped"] == 11
    assert stats["acc"] == pytest.approx(60.0)
    for key in ("pred", "cf pred", "target", "label"):
        values = np.asarray(stats[key])
        assert values.dtype == np.int64
        assert values.tolist() == [int(infos[id][key]) for id in range(15)], key
    for key, line in (("bkl", "BKL"), ("l_1", "l_1")):
        values = np.asarray(stats[key])
        assert values.dtype == np.float32
        assert values.tolist() == [float(infos[id][line]) for id in range(15)], key


def test_frames_start_at_the_input_and_at_the_noised_image(golden_tree):
    _, ours = golden_tree
    for path in (ours / "Results/demo").glob("*/*/Noise/*.jpg"):
        assert path.read_bytes() == (ours / "z_t/demo" / path.stem[1:] / "0000.jpg").read_bytes()
    for path in (ours / "Original").glob("*/*.jpg"):
        first = pixels(ours / "x_t/demo" / path.stem[1:] / "0000.jpg")
        assert np.abs(first - pixels(path)).mean() < 1.4  # the frame is truncated as published, the input rounded


# The published commands


def published_places(world: World, out: Path) -> dict[str, str]:
    return {
        "OUT": str(out),
        "N": "1",
        "MODEL": str(world.unet()),
        "CLASSIFIER": str(world.classifier),
        "ORACLE": str(world.root / "no-oracle.pth"),
    }


def assert_wrote_chunk_7(world: World, out: Path, query: str) -> None:
    """Of the first 50 images of the mini-val set, chunk 7 of 25 has two, with ids 7 and 32."""
    results = out / "Results/exp/name"
    assert ids_in(results) == [7, 32]
    assert (results / "chunk-7_num-chunks-25_summary.yaml").exists()
    assert (results / "chunk-7_num-chunks-25_stats.pth").exists()
    rows = annotations(world, partition=1)
    mini_val = sorted(random.Random(5).choices(range(len(rows)), k=1000))
    for path in results.rglob("Info/*.txt"):
        row = rows[mini_val[int(path.stem)]]
        assert info_of(path)["label"] == {"1": "1", "-1": "0"}[row[query]]
    for kind in ("x_t", "z_t"):
        assert {str(p.relative_to(out / kind)) for p in (out / kind).rglob("*.jpg")} == {
            f"exp/name/{id:06d}/{step:04d}.jpg" for id in (7, 32) for step in (0, 1)
        }


def test_published_smile_command(world, tmp_path):
    """In a shell, in the data folder (there is no --data_dir), where no GPU is."""
    out = tmp_path / "results"
    command = f"{shlex.quote(sys.executable)} -W ignore {shlex.quote(str(SCRIPT))} {' '.join(SMILE.split())} {FORCED}"
    environment = (
        os.environ | published_places(world, out) | {"TORCH_HOME": str(world.root), "CUDA_VISIBLE_DEVICES": ""}
    )
    result = run_command(["bash", "-c", command], cwd=world.data, env=environment)
    assert result.code == 0, result.err
    assert len([line for line in result.out.splitlines() if "fp16" in line and "fp32" in line]) == 1
    assert_wrote_chunk_7(world, out, "Smiling")


def test_published_young_command(world, tmp_path, monkeypatch):
    """In this process; the flags' values come from no shell."""
    monkeypatch.chdir(world.data)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = f"{SMILE} {FORCED}".replace("--query_label 31", "--query_label 39").split()
    places = published_places(world, tmp_path)
    result = run_main(*(places[word[1:]] if word.startswith("$") else word for word in words))
    assert result.code == 0, result.err
    said = result.out.splitlines()
    assert len([line for line in said if "fp16" in line and "fp32" in line]) == 1
    assert len([line for line in said if "--gpu 0" in line and "CPU" in line]) == 1
    assert_wrote_chunk_7(world, tmp_path, "Young")


# What a run writes and says


def test_every_flag_has_help_text():
    result = run_main("--help")
    assert result.code == 0
    flags = [line for line in result.out.splitlines() if line.startswith("  --")]
    assert len(flags) > 50
    for block in result.out.split("\n  --")[1:]:
        flag, *words = block.split("\n\n")[0].split()
        text = [word for word in words if word.islower() and len(word) > 2]
        assert len(text) > 1, f"--{flag} has no help text"


def test_png_tree_says_what_the_figures_say(world, tmp_path):
    """l_1 and SM are those of the 8-bit images; Original is split by the label, the cells by both decisions."""
    world.explain(tmp_path, image_format="png", classifier_scales="0,8", num_batches=2)
    results = tmp_path / "Results/exp"
    assert not list(tmp_path.rglob("*.jpg"))
    texts = sorted(results.rglob("Info/*.txt"))
    assert len(texts) == 8
    for text in texts:
        info, cell = info_of(text), text.parent.parent
        correct, flipped = info["pred"] == info["label"], info["cf pred"] == info["target"]
        assert int(info["target"]) == 1 - int(info["pred"])
        assert str(cell.relative_to(results)) == f"{'CC' if correct else 'IC'}/{'CCF' if flipped else 'ICF'}"
        x = pixels(tmp_path / "Original" / ("Correct" if correct else "Incorrect") / f"{text.stem}.png")
        cf = pixels(cell / "CF" / f"{text.stem}.png")
        assert float(info["l_1"]) == pytest.approx(np.abs(x - cf).mean() / 255, rel=1e-6)
        s = np.abs(x - cf).sum(axis=2)
        sm = pixels(cell / "SM" / f"{text.stem}.png")
        assert np.array_equal(sm, np.repeat(np.trunc(255 * s / s.max())[..., None], 3, axis=2))
        assert (float(info["BKL"]) < 0.5) == flipped


def test_without_saved_images_only_the_figures_are_written(world, tmp_path):
    world.explain(tmp_path / "with", num_batches=1)
    world.explain(tmp_path / "without", num_batches=1, save_images=False, save_x_t=True, save_z_t=True)
    files = {path.name for path in (tmp_path / "without").rglob("*") if path.is_file()}
    assert files == {"summary.yaml", "stats.pth", "config.yaml"}
    a, b = (tmp_path / name / "Results/exp/summary.yaml" for name in ("with", "without"))
    assert a.read_bytes() == b.read_bytes()


def test_what_a_run_says_and_keeps(world, tmp_path):
    result = world.explain(tmp_path, seed=11, num_batches=1, save_z_t=True, oracle_path="nowhere.pth")
    summary = yaml.safe_load((tmp_path / "Results/exp/summary.yaml").read_text())
    said = " ".join(result.out.splitlines()[-2:])
    assert "4 images" in said and str(tmp_path / "Results/exp") in said
    assert f"{summary['clean acc']:.1f} %" in said and f"{100 * summary['cf acc']:.1f} %" in said
    assert "4/4" in result.err and "% flipped" in result.err  # the progress bar
    config = yaml.safe_load((tmp_path / "Results/exp/config.yaml").read_text())
    assert config["seed"] == 11 and config["classifier_scales"] == [8.0]
    assert config["num_channels"] == 32 and config["noise"] == "per_image"
    assert not (tmp_path / "x_t").exists()
    assert len(list((tmp_path / "z_t/exp").rglob("*.jpg"))) == 4 * 3
    before = tree_of(tmp_path)
    world.explain(tmp_path, seed=11, num_batches=1, save_z_t=True, oracle_path="nowhere.pth")
    assert tree_of(tmp_path) == before


def test_two_experiments_share_the_originals(world, tmp_path):
    """Each finds its input where its own decision puts it, and changes nothing of the other's."""
    world.explain(tmp_path, exp_name="smile", num_batches=1)
    before = tree_of(tmp_path)
    world.explain(tmp_path, exp_name="young", num_batches=1, query_label=39)
    after = tree_of(tmp_path)
    assert {name: after[name] for name in before} == before
    for exp in ("smile", "young"):
        results = tmp_path / "Results" / exp
        assert ids_in(results) == list(range(4))
        for cell, folder in (("CC", "Correct"), ("IC", "Incorrect")):
            for path in results.glob(f"{cell}/*/CF/*.jpg"):
                assert (tmp_path / "Original" / folder / path.name).exists(), (exp, path)
