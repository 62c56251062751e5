"""The result tree: explanations on disk, the 8-bit images they are made of, and what the metrics read of it."""

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


def test_levels_and_differences_by_hand():
    a, b = np.zeros((1, 3, 3), np.uint8), np.zeros((1, 3, 3), np.uint8)
    a[0, 0] = (10, 0, 0)
    b[0, 0] = (0, 20, 0)  # 30 in all
    a[0, 1] = (0, 0, 200)  # the largest
    assert difference_map(a, b).tolist() == [[[38] * 3, [255] * 3, [0] * 3]]  # 255 * 30 / 200 = 38.25
    assert not difference_map(a, a).any()
    mean = mean_difference(a, b)
    assert mean == np.float32(230 / 9 / 255) and mean.dtype == np.float32
    x = (torch.arange(256) / 255 - 0.5) / 0.5  # as the transform makes them
    assert input_to_uint8(x).tolist() == list(range(256))
    x = torch.tensor([-3.0, -1.0, -0.99999, 0.0, 0.5, 0.99999, 1.0, 7.0])
    assert to_uint8(x).tolist() == [0, 0, 0, 127, 191, 254, 255, 255]


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


def files_of(name: str, original: str, cell: str) -> set[str]:
    found = {f"Original/{original}/{name}.png", f"Results/exp/{cell}/Info/{name}.txt"}
    found |= {f"Results/exp/{cell}/{kind}/{name}.png" for kind in ("CF", "Noise", "SM")}
    return found | {f"z_t/exp/{name[1:]}/000{step}.png" for step in (0, 1)}


FILES = {
    7: files_of("0000007", "Correct", "CC/CCF"),
    100: files_of("0000100", "Correct", "CC/ICF"),
    12345: files_of("0012345", "Incorrect", "IC/CCF"),
}


def test_every_image_lies_in_its_cell_and_is_written_after_the_one_before(tree):
    records = []
    for record in write_explanations(explanations(), tree):  # whoever stops between two leaves whole ones
        records.append(record)
        assert files(tree) == set().union(*(FILES[written.id] for written in records))
        assert tree.info(record.id, record.correct, record.flipped).read_text() == record.text()
    assert [record.id for record in records] == list(FILES)
    assert list(write_explanations(explanations(), None)) == records  # without a tree the records alone


def test_failed_and_skipped_images_leave_no_file_and_no_record(tree):
    result = explanations(finite=(True, False, True))
    result.cf[1] = float("nan")
    assert [record.id for record in write_explanations(result, tree, skip={7})] == [12345]
    assert files(tree) == FILES[12345]


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


def test_stored_originals_stay_as_they_are_and_one_judged_otherwise_lies_in_both_folders(tree):
    """Two experiments about two decisions: each finds the input where its own puts it."""
    list(write_explanations(explanations(), tree))
    before = tree.original(7, True).read_bytes()
    result = explanations()
    result.label[1:] = 1 - result.label[1:]
    for image_format in ("png", "jpg"):
        other = ResultTree(tree.output_path, "other", image_format)
        other.create()
        list(write_explanations(result, other))
        assert tree.original(7, True).read_bytes() == before
    assert not list(tree.output_path.glob("Original/*/*.jpg"))
    for id in (100, 12345):
        assert tree.original(id, True).read_bytes() == tree.original(id, False).read_bytes()


@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_check_original_knows_its_own_image(tmp_path, image_format):
    tree = ResultTree(tmp_path, "exp", image_format)
    tree.create()
    x = rnd(1, 3, 16, 16).clamp(-1, 1)
    check_original(tree, 7, x)  # nothing lies there
    published = to_uint8(x) if image_format == "jpg" else input_to_uint8(x)  # truncated, up to one level lower
    for stored in (input_to_uint8(x), published):
        write_image(tree.original(7, False), to_hwc(stored))
        check_original(tree, 7, x)
    if image_format == "jpg":
        Image.fromarray(to_hwc(published)).save(tmp_path / "pillow.jpg", quality=75)
        assert tree.original(7, False).read_bytes() == (tmp_path / "pillow.jpg").read_bytes()
    with pytest.raises(InputError, match=r"0000007.*--output_path"):
        check_original(tree, 7, rnd(2, 3, 16, 16).clamp(-1, 1))
    with pytest.raises(InputError, match="0000007"):
        check_original(tree, 7, rnd(1, 3, 32, 32).clamp(-1, 1))


@pytest.fixture
def named(tmp_path: Path) -> ResultTree:
    return ResultTree(tmp_path, "exp/name")


def add(named: ResultTree, id: int, correct: bool, flipped: bool) -> None:
    named.create()
    named.original(id, correct).write_bytes(b"x")
    named.image("CF", id, correct, flipped).write_bytes(b"cf")


def test_published_paths(tmp_path, named):
    names = {
        "Original/Correct/0000012.jpg": named.original(12, True),
        "Original/Incorrect/0000012.jpg": named.original(12, False),
        "Results/exp/name/CC/CCF/CF/0000012.jpg": named.image("CF", 12, True, True),
        "Results/exp/name/CC/ICF/Noise/0000012.jpg": named.image("Noise", 12, True, False),
        "Results/exp/name/IC/CCF/SM/0000012.jpg": named.image("SM", 12, False, True),
        "Results/exp/name/IC/ICF/Info/0000012.txt": named.info(12, False, False),
        "x_t/exp/name/000012/0003.jpg": named.frame("x_t", 12, 3),
        "z_t/exp/name/000012/0059.jpg": named.frame("z_t", 12, 59),
        "Results/exp/name/summary.yaml": named.report("summary.yaml"),
        "Results/exp/name/chunk-2_num-chunks-7_stats.pth": named.report("stats.pth", 7, 2),
    }
    for name, path in names.items():
        assert path == tmp_path / name
    png = ResultTree(tmp_path, "exp", "png")
    assert {path.suffix for path in (png.original(1, True), png.image("CF", 1, True, True))} == {".png"}
    assert png.info(1, True, True).suffix == ".txt"
    named.create()
    folders = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not any(path.iterdir())}
    cells = {f"Results/exp/name/{c}/{f}" for c in ("CC", "IC") for f in ("CCF", "ICF")}
    expected = {f"{cell}/{kind}" for cell in cells for kind in ("CF", "Noise", "SM", "Info")}
    assert folders == expected | {"Original/Correct", "Original/Incorrect"} and named.pairs() == []


def test_stored_originals_in_any_format(tmp_path, named):
    assert named.stored_originals(1) == []
    add(named, 1, True, True)
    ResultTree(tmp_path, "other", "png").original(1, False).write_bytes(b"x")
    assert named.stored_originals(1) == [
        tmp_path / "Original/Correct/0000001.jpg",
        tmp_path / "Original/Incorrect/0000001.png",
    ]
    assert named.stored_originals(11) == []


def test_pairs_come_by_id_from_all_four_cells(tmp_path, named):
    quarters = {9: (True, True), 2: (False, True), 30: (True, False), 4: (False, False)}
    for id, (correct, flipped) in quarters.items():
        add(named, id, correct, flipped)
    (named.image("CF", 2, True, True).parent / "notes.txt").write_text("ignored")
    (named.image("CF", 2, True, True).parent / "cover.jpg").write_text("ignored")
    pairs = named.pairs()
    assert [pair.id for pair in pairs] == [2, 4, 9, 30]
    for pair in pairs:
        assert (pair.correct, pair.flipped) == quarters[pair.id]
        assert pair.original == named.original(pair.id, pair.correct)
        assert pair.counterfactual == named.image("CF", pair.id, pair.correct, pair.flipped)
        assert pair.info == named.info(pair.id, pair.correct, pair.flipped)


def test_trees_that_contradict_themselves(tmp_path, named):
    add(named, 5, True, True)
    with pytest.raises(InputError, match="exp/name"):  # names the experiments that are there
        ResultTree(tmp_path, "exp/nmae").pairs()
    add(named, 5, True, False)
    with pytest.raises(InputError, match="0000005"):
        named.pairs()
    named.image("CF", 5, True, False).unlink()
    named.original(5, True).unlink()
    with pytest.raises(InputError, match="0000005"):
        named.pairs()
