"""Results on disk: explanations in their tree, tables from records, chunks into one."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dime.core.errors import InputError
from dime.core.explain import Explanations
from dime.core.images import difference_map, input_to_uint8, mean_difference, to_hwc, to_uint8
from dime.core.job.identity import merge, merge_chunks
from dime.core.job.writer import check_original, write_explanations, write_image
from dime.core.results import ResultTree
from dime.core.summary import ImageRecord, read_stats, summarise, write_stats, write_summary
from tests.helpers import assert_close, input_error, rnd


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


def test_every_image_lies_in_its_cell_is_written_after_the_one_before_and_failed_ones_leave_nothing(tree):
    result, records = explanations(finite=(True, False, True)), []
    result.cf[1] = float("nan")
    assert [record.id for record in write_explanations(result, tree, skip={7})] == [12345]
    assert files(tree) == FILES[12345]
    for record in write_explanations(explanations(), tree):  # whoever stops between two leaves whole ones
        records.append(record)
        assert files(tree) == FILES[12345].union(*(FILES[written.id] for written in records))
        assert tree.info(record.id, record.correct, record.flipped).read_text() == record.text()
    assert [record.id for record in records] == list(FILES)
    assert list(write_explanations(explanations(), None)) == records  # without a tree the records alone


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


def test_pairs_come_by_id_from_all_four_cells_and_trees_that_contradict_themselves_are_named(tmp_path):
    named = ResultTree(tmp_path, "exp/name")
    quarters = {9: (True, True), 2: (False, True), 30: (True, False), 4: (False, False)}
    named.create()
    for id, (correct, flipped) in quarters.items():
        named.original(id, correct).write_bytes(b"x")
        named.image("CF", id, correct, flipped).write_bytes(b"cf")
    for stranger in ("notes.txt", "cover.jpg"):
        (named.image("CF", 2, True, True).parent / stranger).write_text("ignored")
    pairs = named.pairs()
    assert {pair.id: (pair.correct, pair.flipped) for pair in pairs} == quarters
    assert [pair.id for pair in pairs] == sorted(quarters)
    for pair in pairs:
        assert pair.original == named.original(pair.id, pair.correct)
        assert pair.counterfactual == named.image("CF", pair.id, pair.correct, pair.flipped)
        assert pair.info == named.info(pair.id, pair.correct, pair.flipped)
    assert "exp/name" in input_error(ResultTree(tmp_path, "exp/nmae").pairs)  # names the experiments that are there
    named.image("CF", 9, True, False).write_bytes(b"cf")
    assert "0000009" in input_error(named.pairs)
    named.image("CF", 9, True, False).unlink()
    named.original(9, True).unlink()
    assert "0000009" in input_error(named.pairs)


FLOAT32 = 0.27158546447753906
"""A float32 whose repr as a Python float has 17 digits."""


def record(
    id: int, label: int, pred: int, flipped: bool, bkl: float, l_1: float, p_target: float = 0.25
) -> ImageRecord:
    target = 1 - pred
    cf_pred = target if flipped else pred
    before, after = (p if target == 1 else 1 - p for p in (p_target, 1 - bkl))
    return ImageRecord(id, label, pred, target, cf_pred, bkl=bkl, l_1=l_1, orig_conf=before, cf_conf=after, scale=8.0)


FOUR = [
    record(0, 1, 1, True, 0.1, 0.5),
    record(1, 0, 0, True, 0.3, 0.25),
    record(2, 1, 1, False, 0.8, 0.125),
    record(3, 0, 1, True, 0.4, 0.75),
]
"""CC/CCF twice, CC/ICF once, IC/CCF once."""


def test_the_text_of_a_record():
    """It begins with the published lines; confidences are the attribute's own: for target 0, from 0.75 to 0.1."""
    record = replace(FOUR[0], bkl=FLOAT32, l_1=float(np.float32(0.1)))
    lines = record.text().split("\n")
    published = ["label: 1", "pred: 1", "target: 0", "cf pred: 0", f"BKL: {FLOAT32!r}", "l_1: 0.10000000149011612"]
    assert lines[:6] == published and lines[-1]
    for each in (*FOUR, record):
        assert ImageRecord.from_text(each.id, each.text()) == each
    for each, expected in ((FOUR[0], (0.75, 0.1, 0.65)), (FOUR[1], (0.25, 0.7, 0.45))):
        found = dict(line.split(": ") for line in each.text().splitlines())
        assert [float(found[key]) for key in ("orig_conf", "cf_conf", "MAD")] == pytest.approx(expected)


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_part_of_a_text_is_no_record(cut):
    text = FOUR[0].text()
    for damaged in (text[:-cut], text[cut:], "\n".join(text.split("\n")[:6])):  # the last one as published
        with pytest.raises(ValueError):
            ImageRecord.from_text(0, damaged)


def test_what_failed_enters_no_other_figure():
    """The figures themselves: the golden tree of tests/test_main.py."""
    assert summarise(FOUR, failed=2) == summarise(FOUR) | {"failed": 2}
    nothing = summarise([], failed=3)
    for table in (nothing, nothing["class-cor"]["cf-inc"]):
        assert table["n"] == table["bkl"] == table["l_1"] == 0
    assert nothing["clean acc"] == nothing["cf acc"] == 0


def test_each_table_is_weighted_by_its_own_count_and_what_a_chunk_lacks_counts_as_zero():
    a = {"n": 1, "FVA": 0.8, "bkl": 0.1, "cf-inc": {"n": 1, "bkl": 0.9}, "cf-cor": {"n": 1, "bkl": 0.5}}
    b = {"n": 3, "MNAC": 4.0, "bkl": 0.7, "cf-inc": {"n": 3, "bkl": 0.5}}
    expected = {"n": 4, "FVA": 0.2, "MNAC": 3.0, "bkl": 0.55, "cf-inc": {"n": 4, "bkl": 0.6}, "cf-cor": a["cf-cor"]}
    assert_close(merge([a, b]), expected, rel=1e-12)


def test_summary_and_stats_files(tmp_path):
    write_summary(tmp_path / "summary.yaml", summarise(FOUR))
    text = (tmp_path / "summary.yaml").read_text()
    assert yaml.safe_load(text) == summarise(FOUR)
    top = [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert top == sorted(top)
    assert "{" not in text and "!!" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["summary.yaml"]
    write_stats(tmp_path / "stats.pth", [replace(FOUR[0], bkl=FLOAT32), *FOUR[1:]])
    stats = torch.load(tmp_path / "stats.pth", weights_only=True)
    assert stats["n"] == 4 and stats["flipped"] == 3 and stats["acc"] == pytest.approx(75.0)
    dtypes = [np.asarray(stats[key]).dtype for key in ("bkl", "l_1", "pred", "cf pred", "target", "label")]
    assert dtypes == [np.float32] * 2 + [np.int64] * 4 and stats["bkl"][0] == FLOAT32
    rounded = [{k: float(np.float32(v)) if isinstance(v, float) else v for k, v in vars(r).items()} for r in FOUR]
    records = [ImageRecord(**values) for values in rounded]
    write_stats(tmp_path / "stats.pth", records)
    assert read_stats(tmp_path / "stats.pth") == records
    write_stats(tmp_path / "stats.pth", [])
    stats = torch.load(tmp_path / "stats.pth", weights_only=True)
    assert stats["n"] == 0 and len(stats["bkl"]) == 0 and not math.isnan(stats["acc"])


@pytest.mark.parametrize("content", [{"n": 3}, [1, 2], {"bkl": 1.0}])
def test_other_stats_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "stats.pth")
    with pytest.raises(InputError, match=r"stats\.pth"):
        read_stats(tmp_path / "stats.pth")


def chunk_files(tree: ResultTree, *contents: str) -> list[Path]:
    tree.results.mkdir(parents=True)
    paths = [tree.report("summary.yaml", len(contents), chunk) for chunk in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    return paths


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 4, 6])
def test_merged_chunks_are_the_whole(tmp_path, num_chunks):
    tree = ResultTree(tmp_path, "a/b")
    chunks = [summarise(FOUR[chunk::num_chunks], failed=chunk) for chunk in range(num_chunks)]
    chunk_files(tree, *map(yaml.safe_dump, chunks))
    for found in (merge_chunks(tree, num_chunks), yaml.safe_load((tmp_path / "Results/a/b/summary.yaml").read_text())):
        assert_close(found, summarise(FOUR, failed=sum(range(num_chunks))), rel=1e-12)


@pytest.mark.parametrize("content", ["", "n: [", "just text", "- n\n", "bkl: 1\n", "n: 1.5\n", "n: 1\nl_1: none\n"])
def test_merge_chunks_names_a_damaged_summary(tmp_path, content):
    tree = ResultTree(tmp_path, "exp")
    paths = chunk_files(tree, "n: 1\n", content)
    with pytest.raises(InputError, match=paths[1].name):
        merge_chunks(tree, 2)
    assert not (tree.results / "summary.yaml").exists()
