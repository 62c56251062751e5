"""What must not change a result, and what must: order, neighbours, failures, chunks, the number of processes; flags."""

import itertools
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from dime.core.job.setup import Question
from tests.faults.forks import EXIT_OK, Fork, wait_for
from tests.training.small import LAUNCHERS, launched
from tests.worlds import (
    SMALL_FLAGS,
    World,
    as_arguments,
    comparable,
    images,
    run_main,
    succeeded,
    summary_of,
    tree_of,
    watched,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="launchers and forks are for Unix")


def results(world: World, out: Path, **flags: Any) -> dict[str, bytes]:
    world.explain(out, **flags)
    return {name: content for name, content in tree_of(out).items() if not name.endswith("config.yaml")}


def cell_files(files: dict[str, bytes], kind: str) -> dict[int, bytes]:
    return {int(Path(name).stem): content for name, content in files.items() if Path(name).parent.name == kind}


MIXED = {"query_label": 1, "classifier_scales": "8,30", "image_format": "png"}
"""Scales under which some images flip at once, some later and some never."""


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    world.explain(out, **MIXED, pad_batches=True)
    texts = {path: path.read_text() for path in out.rglob("Info/*.txt")}
    assert len(texts) == 15 and 0 < summary_of(out)["clean acc"] < 100
    assert {text.splitlines()[1] for text in texts.values()} == {"pred: 0", "pred: 1"}
    outcomes = {(path.parents[1].name, text.rpartition("scale: ")[2]) for path, text in texts.items()}
    assert outcomes == {("CCF", "8.0"), ("CCF", "30.0"), ("ICF", "30.0")}
    return out


def test_padded_batches_give_the_same_bytes_in_any_company_and_order(world, whole, tmp_path, monkeypatch):
    """Filtered images meet other neighbours and other gaps, in another order; the last batch is short."""
    select = Question.select
    monkeypatch.setattr(Question, "select", lambda *args: random.Random(1).sample(ids := select(*args), len(ids)))
    results(world, tmp_path, **MIXED, pad_batches=True, target_label=0)
    ours, theirs = images(tmp_path), images(whole)
    assert 0 < len(cell_files(ours, "CF")) < 15
    assert ours.items() <= theirs.items()


def test_target_label_keeps_the_other_label_before_the_cut(world, tmp_path):
    world.explain(tmp_path, target_label=1, use_train=True, batch_size=2, num_batches=2)
    smiles, files = [row[31] for row in world.labels(0)], tree_of(tmp_path)
    assert sorted(cell_files(files, "CF")) == [id for id, smile in enumerate(smiles) if not smile][:4]
    assert all(text.startswith(b"label: 0\n") for text in cell_files(files, "Info").values())


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
    assert summary_of(tmp_path)["failed"] == 0


def test_more_chunks_than_images_merge_too(world, tmp_path):
    for chunk in range(3):
        world.explain(tmp_path, num_chunks=3, chunk=chunk, num_batches=1, batch_size=2)
    assert summary_of(tmp_path, "chunk-2_num-chunks-3_summary.yaml")["n"] == 0
    merge = {"output_path": tmp_path, "exp_name": "exp", "merge_and_eval": True, "num_chunks": 3}
    succeeded(run_main(*as_arguments(merge)))
    assert summary_of(tmp_path)["n"] == 2


FLAGS = SMALL_FLAGS | {"batch_size": 2, "query_label": 1, "classifier_scales": "8,30", "save_z_t": True}


@pytest.fixture(scope="module")
def expected(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone")
    fork = Fork(world.command(folder / "out", FLAGS), folder / "log")
    assert fork.wait() == EXIT_OK, fork.said()
    return tree(folder / "out")


def tree(out: Path) -> dict[str, bytes]:
    return {name: content.replace(b"gpu: cpu,cpu", b"gpu: cpu") for name, content in comparable(out).items()}


@pytest.mark.parametrize("launcher", [*LAUNCHERS, "--gpu"])
def test_two_processes_leave_the_tree_of_one(launcher, world, expected, tmp_path):
    words = LAUNCHERS.get(launcher, [sys.executable])
    flags = FLAGS | ({"gpu": "cpu,cpu"} if launcher == "--gpu" else {})
    done = launched(*words, "main.py", *world.command(tmp_path / "out", flags))
    assert tree(tmp_path / "out") == expected
    assert done.out.count("15 images: ") == 1 and done.out.count("Time: ") == 1 and "died" not in done.out
    assert "15/15" in done.err and "% flipped" in done.err


@pytest.fixture
def launcher():
    """A launcher that forks a process for each of some flags, and ends none when another one has ended."""
    meetings = []

    def start(world: World, folder: Path, each: list[dict], **variables: str) -> list[Fork]:
        meetings.append(TCPStore("localhost", 0, is_master=True, wait_for_workers=False))
        shared = {"WORLD_SIZE": len(each), "LOCAL_WORLD_SIZE": len(each), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": meetings[-1].port}
        started = []
        for rank, flags in enumerate(each):
            place = {**shared, "RANK": rank, "LOCAL_RANK": rank, **variables}
            place = {name: str(value) for name, value in place.items() if value != ""}
            command = world.command(folder / "out", FLAGS | flags)
            started.append(Fork(command, folder / f"log{rank}", lambda place=place: os.environ.update(place)))
        return started

    return start


@pytest.mark.parametrize(
    ("each", "variables", "said"),
    [
        ([{}, {"seed": 5}], {}, "rank 1 of 2 (RANK and WORLD_SIZE): --seed is 5 here, and was 4 there, in rank 0"),
        ([{}, {"sead": 5}], {}, "unrecognized arguments: --sead 5"),
        ([{"gpu": "cpu,cpu"}] * 3, {}, "--gpu cpu,cpu: "),
        ([{"model_path": "nowhere.pt"}] * 2, {}, "nowhere.pt"),
        ([{}, {"output_path": "ELSEWHERE"}], {}, "cannot be seen from process "),
        ([{}, {}], {"MASTER_ADDR": ""}, "MASTER_ADDR and MASTER_PORT"),
        ([{"noise": "stream"}] * 2, {}, "--noise stream"),
    ],
)
def test_what_is_wrong_is_said_by_one_process_and_ends_all(launcher, world, tmp_path, each, variables, said):
    elsewhere = {"output_path": tmp_path / "elsewhere"}
    started = launcher(
        world, tmp_path, [flags | elsewhere if "output_path" in flags else flags for flags in each], **variables
    )
    codes = [started[0].wait()]
    began = time.monotonic()
    codes += [fork.wait() for fork in started[1:]]
    assert codes == [2] * len(each)
    assert time.monotonic() - began < 10
    lines = [line for fork in started for line in fork.said().splitlines() if "error" in line]
    assert len(lines) == 1 and said in lines[0], lines
    assert not list(tmp_path.rglob("Info/*.txt")) and "Traceback" not in "".join(fork.said() for fork in started)


def test_a_second_launch_is_refused(launcher, world, expected, tmp_path):
    started = launcher(world, tmp_path, [{}, {}])
    wait_for(lambda: any(tmp_path.rglob("Info/*.txt")))
    (tmp_path / "second").mkdir()
    second = launcher(world, tmp_path / "second", [{"output_path": tmp_path / "out"}] * 2)
    assert [fork.wait() for fork in second] == [2, 2]
    assert sum("is working on the same images" in fork.said() for fork in second) == 1
    assert [fork.wait() for fork in started] == [0, 0]
    assert tree(tmp_path / "out") == expected


def test_an_evaluation_by_two_processes_gives_the_same_numbers(metric_world, tmp_path):
    """Those of an evaluation that finds the inputs' features beside the tree are the same too."""
    tree = metric_world.small_tree(tmp_path / "tree")
    flags = {f"--{name}-path": f"models/demo/{name}.safetensors" for name in ("classifier", "oracle")}
    flags |= {"--weights-path": "models/demo/features.safetensors", "--feature-network": "oracle", "--batch-size": "3"}
    command = [str(word) for pair in {**flags, "--output-path": tree, "--exp-name": "expA"}.items() for word in pair]
    numbers = []
    for processes in ("cpu,cpu", "cpu", "cpu"):
        done = launched(sys.executable, "evaluate.py", *command, "--gpu", processes)
        assert done.out.count("| flip rate ") == 1
        numbers.append((tree / "Results/expA/evaluation.json").read_bytes())
        if processes == "cpu,cpu":
            features = sorted(tree.glob("Original/features-*.npz"))
            assert {path.stem for path in features} == {"features-faces", "features-oracle", "features-oracle-logits"}
            for path in features:
                path.unlink()
    assert numbers[0] == numbers[1] == numbers[2]
