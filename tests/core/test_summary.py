"""Tables from records, chunks into one, and the files they are kept in: figures by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dime.core.errors import InputError
from dime.core.job.identity import merge, merge_chunks
from dime.core.results import ResultTree
from dime.core.summary import ImageRecord, read_stats, summarise, write_stats, write_summary
from tests.helpers import assert_close

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


def figures(table: dict) -> tuple[float, float, float]:
    return table["n"], pytest.approx(table["bkl"]), pytest.approx(table["l_1"])


def test_summary_by_hand():
    s = summarise(FOUR)
    assert figures(s) == (4, 0.4, 0.40625)
    assert s["clean acc"] == pytest.approx(75.0)
    assert s["cf acc"] == pytest.approx(0.75)
    assert s["FVA"] == 0 and s["MNAC"] == 0
    assert figures(s["cf-cor"]) == (3, 0.8 / 3, 0.5)
    assert figures(s["cf-inc"]) == (1, 0.8, 0.125)
    assert figures(s["class-cor"]) == (3, 0.4, 0.875 / 3)
    assert figures(s["class-cor"]["cf-cor"]) == (2, 0.2, 0.375)
    assert figures(s["class-cor"]["cf-inc"]) == (1, 0.8, 0.125)
    assert figures(s["class-inc"]) == (1, 0.4, 0.75)
    assert figures(s["class-inc"]["cf-cor"]) == (1, 0.4, 0.75)
    assert figures(s["class-inc"]["cf-inc"]) == (0, 0, 0)
    assert summarise(FOUR, failed=2) == s | {"failed": 2}  # what failed enters no other figure
    nothing = summarise([], failed=3)
    assert figures(nothing) == figures(nothing["class-cor"]["cf-inc"]) == (0, 0, 0)
    assert nothing["clean acc"] == nothing["cf acc"] == 0


def test_each_table_is_weighted_by_its_own_count_and_what_a_chunk_lacks_counts_as_zero():
    a = {"n": 10, "bkl": 0.1, "clean acc": 90.0, "cf-inc": {"n": 1, "bkl": 0.9, "l_1": 0.2}}
    b = {"n": 2, "bkl": 0.7, "clean acc": 30.0, "cf-inc": {"n": 3, "bkl": 0.5, "l_1": 0.4}}
    assert_close(
        merge([a, b]), {"n": 12, "bkl": 0.2, "clean acc": 80.0, "cf-inc": {"n": 4, "bkl": 0.6, "l_1": 0.35}}, rel=1e-12
    )
    merged = merge([{"n": 1, "FVA": 0.8, "cf-cor": {"n": 1, "bkl": 0.5}}, {"n": 3, "MNAC": 4.0}])
    assert_close(merged, {"n": 4, "FVA": 0.2, "MNAC": 3.0, "cf-cor": {"n": 1, "bkl": 0.5}}, rel=1e-12)


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
    arrays = {key: np.asarray(stats[key]) for key in ("bkl", "l_1", "pred", "cf pred", "target", "label")}
    assert [arrays[key].dtype for key in arrays] == [np.float32] * 2 + [np.int64] * 4
    assert arrays["bkl"][0] == FLOAT32
    assert arrays["l_1"].tolist() == [0.5, 0.25, 0.125, 0.75]
    assert arrays["pred"].tolist() == [1, 0, 1, 1]
    assert arrays["target"].tolist() == [0, 1, 0, 0]
    assert arrays["cf pred"].tolist() == [0, 1, 1, 0]
    assert arrays["label"].tolist() == [1, 0, 1, 0]
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
