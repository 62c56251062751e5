"""Bad images are recorded, merging proves its chunks, memory runs out, numbers are none; the fault bench, quickly."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from dime.core.errors import InputError
from dime.core.explain import Batch, Explainer
from dime.core.guidance import Binary
from dime.core.job.recovery import RecoveringExplainer
from dime.core.networks.diffusion import DiffusionModel
from dime.core.settings import Settings
from tests.core.test_explain import Brightness
from tests.faults.bench import measure
from tests.faults.forks import EXIT_SOME_FAILED, without
from tests.faults.hostile import BAD
from tests.faults.trials import Bench
from tests.helpers import rnd
from tests.toys import CountingModel, toy_diffusion
from tests.worlds import SMALL_FLAGS, World, images, refused, run_main, succeeded, summary_of, tree_of

RECORDING = SMALL_FLAGS | {"on_bad_image": "record", "noise": "stream"}

FIRST = 31
"""The number of the val partition's first file, whose id is 0."""


@pytest.fixture(scope="module")
def clean(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("clean") / "out"
    world.explain(out, noise="stream")
    return images(out)


def photo(data: Path, id: int) -> Path:
    return data / f"img_align_celeba/{FIRST + id:06d}.jpg"


def failed(out: Path) -> dict[int, str]:
    return yaml.safe_load((out / "Results/exp/failed.yaml").read_text())


def test_all_kinds_are_recorded_and_the_same_command_takes_up_the_repaired(world, clean, data, tmp_path):
    """Under a stream of noise, which bad images draw from as others do."""
    victims = dict(zip((0, 1, 2, 3, 7, 13), BAD, strict=True))  # the first batch is all bad
    for id, kind in victims.items():
        BAD[kind](photo(data, id))
    out = tmp_path / "out"
    command = world.command(out, RECORDING | {"data_dir": data})
    run = run_main(*command)
    assert run.code == EXIT_SOME_FAILED, run.err
    assert "Traceback" not in run.err and "Warning" not in run.err
    reasons = failed(out)
    assert sorted(reasons) == sorted(victims)
    assert all(photo(data, id).name in reason and "\n" not in reason for id, reason in reasons.items())
    said = {"bomb": "decompression bomb", "unreadable": "not a file", "vanished": "no such image"}
    assert all(said.get(kind, "") in reasons[id] for id, kind in victims.items())
    assert images(out) == without(clean, set(victims))
    summary = summary_of(out)
    assert (summary["n"], summary["failed"]) == (9, 6)
    assert "9 images" in run.out and "6 failed" in run.out

    for id, kind in victims.items():
        if kind == "unreadable":
            photo(data, id).rmdir()
        shutil.copy(photo(world.data, id), photo(data, id))
    assert run_main(*command).code == 0
    assert images(out) == clean
    assert not list(out.rglob("failed.yaml"))


def test_abort_ends_at_the_first_bad_image_and_one_that_is_not_asked_for_ends_nothing(world, data, tmp_path):
    """By default every chosen image must be there; of the others nothing is asked."""
    BAD["truncated"](photo(data, 5))
    photo(data, 14).unlink()
    photo(data, 14).symlink_to(tmp_path / "nowhere.jpg")
    photo(data, 13).unlink()
    photo(data, 13).mkdir()
    flags = SMALL_FLAGS | {"data_dir": data, "num_batches": 3}
    run = run_main(*world.command(tmp_path / "out", flags | {"on_bad_image": "abort"}))
    assert run.code == 2 and str(photo(data, 5)) in run.err.splitlines()[-1]
    assert len(list((tmp_path / "out").rglob("Info/*.txt"))) == 4
    assert not [name for name in tree_of(tmp_path / "out") if name.endswith(".tmp")]


def test_what_takes_too_long_or_too_much_memory_is_bad_too(world, data, tmp_path, monkeypatch):
    """A pipe holds nothing up. Between one and two times its limit on an image's size Pillow only warns."""
    photo(data, 0).unlink()
    os.mkfifo(photo(data, 0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 178 * 218 - 1)
    run = run_main(*world.command(tmp_path / "out", RECORDING | {"data_dir": data, "num_batches": 1}))
    assert run.code == EXIT_SOME_FAILED
    assert sorted(failed(tmp_path / "out")) == [0, 1, 2, 3] and "not a file" in failed(tmp_path / "out")[0]


CHUNKED = {"num_chunks": 3, "save_images": False, "num_batches": 2}


@pytest.fixture(scope="module")
def chunks(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chunks") / "out"
    for chunk in range(3):
        world.explain(out, **CHUNKED, chunk=chunk)
    return out


@pytest.fixture
def out(chunks: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chunks, tmp_path / "out"))


def file(out: Path, chunk: int, name: str = "summary.yaml", num_chunks: int = 3) -> Path:
    return out / f"Results/exp/chunk-{chunk}_num-chunks-{num_chunks}_{name}"


def merge(world: World, out: Path, **flags: object) -> str:
    return refused(world, out, merge_and_eval=True, num_chunks=3, **flags)


@pytest.mark.parametrize("damage", ["missing", "cut", "lacks images"])
def test_a_chunk_that_is_not_whole(world, out, damage):
    path = file(out, 1)
    text = path.read_text()
    path.unlink()
    if damage != "missing":
        path.write_text(text[:40] if damage == "cut" else text.replace("images: 3", "images: 300"))
    said = {"missing": " is missing", "cut": "", "lacks images": " is about 3 images instead of 300"}[damage]
    assert path.name + said in merge(world, out)
    flags = SMALL_FLAGS | {"merge_and_eval": True, "num_chunks": 3, "allow_partial": True}
    before = tree_of(out)
    succeeded(run_main(*world.command(out, flags)))
    after = tree_of(out)  # the chunks stay as they are
    assert before == {name: after[name] for name in before} and after.keys() - before.keys() == {
        "Results/exp/summary.yaml"
    }
    summary = summary_of(out)
    assert summary["missing"] == {"chunks": [1], "images": 3} and summary["n"] == 5


def test_chunk_under_anothers_name(world, out):
    file(out, 2).write_bytes(file(out, 1).read_bytes())
    line = merge(world, out)
    assert file(out, 2).name in line and "chunk 1 of 3" in line
    assert "chunk 1 of 3" in merge(world, out, allow_partial=True)


def test_chunk_of_another_split_and_none_at_all(world, out):
    file(out, 0, num_chunks=4).write_bytes(file(out, 0).read_bytes())
    assert "chunk-0_num-chunks-4_summary.yaml" in merge(world, out)
    for path in out.rglob("*_summary.yaml"):
        path.unlink()
    assert "3 of 3" in merge(world, out, allow_partial=True)


def test_chunk_of_another_run(world, out, tmp_path):
    world.explain(tmp_path / "other", **CHUNKED, chunk=2, seed=5)
    for name in ("summary.yaml", "config.yaml", "stats.pth"):
        shutil.copy(file(tmp_path / "other", 2, name), file(out, 2, name))
    for flags in ({}, {"allow_partial": True}):
        line = merge(world, out, **flags)
        assert file(out, 2).name in line and "--seed" in line and "5" in line and "4" in line


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
]
BATCH = Batch(ids=list(range(7)), x=rnd(5, 7, 3, 4, 4).clamp(-1, 1))


def explainer(model: CountingModel, pad_to: int | None = None, **flags) -> Explainer:
    settings = Settings(start_step=4, l1_loss=0.01, classifier_scales=(1.0, 50.0), **flags)
    diffusion = DiffusionModel(model, toy_diffusion(20), {})
    return Explainer(Brightness(), diffusion, Binary(use_logits=True), settings, pad_to=pad_to)


class SmallMachine(CountingModel):
    def __init__(self, room: int, error: Exception = OUT_OF_MEMORY[0]) -> None:
        super().__init__()
        self.room, self.error = room, error

    def forward(self, x, t):
        if len(x) > self.room:
            raise self.error
        return super().forward(x, t)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("pad_to", [None, 8])
def test_batches_are_halved_whatever_the_error_is_called(error, pad_to, capsys):
    recovering = RecoveringExplainer(explainer(SmallMachine(3, error), pad_to))
    for _ in range(2):  # the second batch begins with halves
        # sums of other lengths
        torch.testing.assert_close(
            recovering(BATCH).cf, explainer(CountingModel()).explain(BATCH).cf, rtol=1e-5, atol=1e-6
        )
    assert capsys.readouterr().out.count("Out of memory") == 1


@pytest.mark.parametrize(
    ("model", "flags", "error", "said"),
    [
        (SmallMachine(0), {}, InputError, "single image"),
        (SmallMachine(3), {"noise": "stream"}, InputError, "--batch_size"),
        (SmallMachine(3, RuntimeError("an illegal memory access")), {}, RuntimeError, "illegal memory access"),
    ],
)
def test_what_cannot_be_halved_and_other_errors(model, flags, error, said):
    with pytest.raises(error, match=said):
        RecoveringExplainer(explainer(model, **flags))(BATCH)


class Overflowing(CountingModel):
    """Half precision: infinite wherever an image is bright at its first pixel."""

    def forward(self, x, t):
        return torch.where((x[:, :1, :1, :1] > 1.2), torch.inf, super().forward(x, t))


def test_what_overflows_is_tried_again_in_full_precision():
    plain, precise = explainer(Overflowing()).explain(BATCH), explainer(CountingModel()).explain(BATCH)
    lost = ~plain.finite
    assert 0 < int(lost.sum()) < 7, "the example must have both"
    built = []
    recovering = RecoveringExplainer(explainer(Overflowing()), lambda: built.append(1) or explainer(CountingModel()))
    found = recovering(BATCH)
    assert found.finite.all()
    assert torch.equal(found.cf[~lost], plain.cf[~lost])  # neighbours keep their bytes
    torch.testing.assert_close(found.cf[lost], precise.cf[lost], rtol=1e-5, atol=1e-6)  # sums of other lengths
    recovering(BATCH)
    assert built == [1]


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are for Unix")


@pytest.fixture(scope="module")
def bench(world: World, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(world, Path(tmp_path_factory.mktemp("bench")), random.Random(0), batches=2)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *[("kill", 1), ("write-kill", 10), ("disk", 4), ("writers", 1), ("one of four", 2), ("signal", 3), ("nan", 2)],
        ("memory", 1),
    ],
)
def test_bench(bench, name, count):
    row, reasons = measure(bench, name, count)  # each failing disk and signal; nan: the network's and the classifier's
    assert not reasons, (row, reasons)
