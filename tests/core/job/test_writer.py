"""Explanations on disk, and the 8-bit images they are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dime.core.errors import InputError
from dime.core.explain import Explanations
from dime.core.images import difference_map, input_to_uint8, mean_difference, to_hwc, to_uint8
from dime.core.job.writer import check_original, write_explanations, write_image
from dime.core.results import ResultTree
from tests.helpers import rnd

# 8-bit images


def test_inputs_keep_all_256_levels():
    levels = torch.arange(256, dtype=torch.float32)
    x = (levels / 255 - 0.5) / 0.5  # as the transform makes them
    assert input_to_uint8(x).tolist() == list(range(256))


def test_generated_images_are_clamped_and_truncated():
    x = torch.tensor([-3.0, -1.0, -0.99999, 0.0, 0.5, 0.99999, 1.0, 7.0])
    assert to_uint8(x).tolist() == [0, 0, 0, 127, 191, 254, 255, 255]


def test_difference_map_by_hand():
    a, b = np.zeros((1, 3, 3), np.uint8), np.zeros((1, 3, 3), np.uint8)
    a[0, 0] = (10, 0, 0)
    b[0, 0] = (0, 20, 0)  # 30 in all
    a[0, 1] = (0, 0, 200)  # the largest
    assert difference_map(a, b).tolist() == [[[38] * 3, [255] * 3, [0] * 3]]  # 255 * 30 / 200 = 38.25
    assert not difference_map(a, a).any()


def test_mean_difference():
    a, b = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    a[0, 0, 0], b[1, 1, 2] = 255, 51
    assert mean_difference(a, b) == np.float32((1 + 0.2) / 12)
    assert mean_difference(a, b).dtype == np.float32


# The tree


def explanations(finite: tuple[bool, ...] = (True, True, True)) -> Explanations:
    """Three images: CC/CCF, CC/ICF and IC/CCF."""
    x = rnd(1, 3, 3, 16, 16).clamp(-1, 1)
    return Explanations(
        ids=[7, 100, 12345],
        x=x,
        label=torch.tensor([1, 0, 0]),
        pred=torch.tensor([1, 0, 1]),
        target=torch.tensor([0, 1, 0]),
        p_target=torch.tensor([0.1, 0.2, 0.3]),
        noisy=rnd(2, 3, 3, 16, 16),
        cf=rnd(3, 3, 3, 16, 16),
        cf_pred=torch.tensor([0, 0, 0]),
        cf_p_target=torch.tensor([0.9, 0.4, 0.7]),
        scale=torch.tensor([8.0, 15.0, 10.0]),
        finite=torch.tensor(finite),
        frames={"z_t": torch.arange(3 * 2 * 3 * 16 * 16).reshape(3, 2, 3, 16, 16).to(torch.uint8)},
    )


@pytest.fixture
def tree(tmp_path) -> ResultTree:
    tree = ResultTree(tmp_path, "exp", "png")
    tree.create()
    return tree


def files(tree: ResultTree) -> set[str]:
    return {str(path.relative_to(tree.output_path)) for path in tree.output_path.rglob("*") if path.is_file()}


CELLS = {"0000007": ("Correct", "CC/CCF"), "0000100": ("Correct", "CC/ICF"), "0012345": ("Incorrect", "IC/CCF")}


def test_every_image_lies_in_its_cell(tree):
    records = list(write_explanations(explanations(), tree))
    expected = set()
    for name, (original, cell) in CELLS.items():
        expected |= {f"Original/{original}/{name}.png", f"Results/exp/{cell}/Info/{name}.txt"}
        expected |= {f"Results/exp/{cell}/{kind}/{name}.png" for kind in ("CF", "Noise", "SM")}
        expected |= {f"z_t/exp/{name[1:]}/000{step}.png" for step in (0, 1)}
    assert files(tree) == expected
    assert [record.id for record in records] == [7, 100, 12345]
    for record in records:
        assert tree.info(record.id, record.correct, record.flipped).read_text() == record.text()


def test_images_are_those_of_the_batch(tree):
    result = explanations()
    record, *_ = write_explanations(result, tree)
    read = {kind: np.asarray(Image.open(tree.image(kind, 7, True, True)), int) for kind in ("CF", "Noise", "SM")}
    x = np.asarray(Image.open(tree.original(7, True)), int)

    def level(image: torch.Tensor, rounding) -> np.ndarray:
        return rounding(((image.permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255)).astype(int)

    assert np.array_equal(x, level(result.x[0], np.round))
    assert np.array_equal(read["CF"], level(result.cf[0], np.trunc))
    assert np.array_equal(read["Noise"], level(result.noisy[0], np.trunc))
    s = np.abs(x - read["CF"]).sum(axis=2)
    assert np.array_equal(read["SM"], np.repeat((255 * s // s.max())[..., None], 3, axis=2))
    assert record.l_1 == float(np.float32(np.abs(x - read["CF"]).mean() / 255))
    assert record.bkl == float(1 - result.cf_p_target[0])
    frame = np.asarray(Image.open(tree.frame("z_t", 7, 1)))
    assert np.array_equal(frame, result.frames["z_t"][0, 1].permute(1, 2, 0).numpy())


def test_failed_images_leave_no_file_and_no_record(tree):
    result = explanations(finite=(True, False, True))
    result.cf[1] = float("nan")
    records = list(write_explanations(result, tree))
    assert [record.id for record in records] == [7, 12345]
    assert not [name for name in files(tree) if "100" in name]


def test_skipped_ids_are_left_alone(tree):
    assert [record.id for record in write_explanations(explanations(), tree, skip={7, 12345})] == [100]
    assert {Path(name).stem for name in files(tree) if "z_t" not in name} == {"0000100"}


def test_images_are_written_one_after_the_other(tree):
    """Whoever stops between two leaves the first whole and nothing of the second."""
    next(write_explanations(explanations(), tree))
    assert {Path(name).stem for name in files(tree) if "z_t" not in name} == {"0000007"}


def test_without_a_tree_only_the_records(tmp_path):
    tree = ResultTree(tmp_path / "a", "exp")
    tree.create()
    written = list(write_explanations(explanations(), tree))
    before = files(tree)
    assert list(write_explanations(explanations(), None)) == written
    assert files(tree) == before and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_stored_originals_stay_as_they_are(tree):
    list(write_explanations(explanations(), tree))
    before = tree.original(7, True).read_bytes()
    other = ResultTree(tree.output_path, "other", "jpg")
    other.create()
    list(write_explanations(explanations(), other))
    assert tree.original(7, True).read_bytes() == before
    assert not other.original(7, True).exists()


def test_an_input_judged_otherwise_lies_in_both_folders(tree):
    """Two experiments about two decisions: each finds the input where its own puts it."""
    list(write_explanations(explanations(), tree))
    result = explanations()
    result.label.copy_(1 - result.label)
    other = ResultTree(tree.output_path, "other", "png")
    other.create()
    list(write_explanations(result, other))
    for id in (7, 100, 12345):
        assert other.original(id, True).read_bytes() == other.original(id, False).read_bytes()


@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_check_original_knows_its_own_image(tmp_path, image_format):
    tree = ResultTree(tmp_path, "exp", image_format)
    tree.create()
    x = rnd(1, 3, 16, 16).clamp(-1, 1)
    check_original(tree, 7, x)  # nothing lies there
    write_image(tree.original(7, False), to_hwc(input_to_uint8(x)))
    check_original(tree, 7, x)
    with pytest.raises(InputError, match=r"0000007.*--output_path"):
        check_original(tree, 7, rnd(2, 3, 16, 16).clamp(-1, 1))
    with pytest.raises(InputError, match="0000007"):
        check_original(tree, 7, rnd(1, 3, 32, 32).clamp(-1, 1))


def test_check_original_takes_the_published_codes_images(tmp_path):
    """They are truncated, up to one level lower, in JPEG."""
    tree = ResultTree(tmp_path, "exp", "jpg")
    tree.create()
    x = rnd(1, 3, 16, 16).clamp(-1, 1)
    write_image(tree.original(7, True), to_hwc(to_uint8(x)))
    check_original(tree, 7, x)


def test_jpeg_has_pillows_quality_75(tmp_path):
    image = to_hwc(to_uint8(rnd(4, 3, 16, 16)))
    write_image(tmp_path / "ours.jpg", image)
    Image.fromarray(image).save(tmp_path / "pillow.jpg", quality=75)
    assert (tmp_path / "ours.jpg").read_bytes() == (tmp_path / "pillow.jpg").read_bytes()
