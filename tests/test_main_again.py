"""The same command again continues, to the bytes of an undisturbed run; what does not fit is refused at once."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dime.core.cli import EXIT_CONTINUE
from dime.core.job.queue import Queue
from tests.worlds import SMALL_FLAGS, World, comparable, refused, run_main, succeeded, tree_of, watched

TWO_SCALES = {"query_label": 1, "classifier_scales": "8,30", "save_z_t": True}
"""Flags under which some images need the second scale."""


NO_PROCESS = 4194999
"""Beyond the largest process id of Linux, 2 ** 22."""


class PulledPlugError(BaseException):
    """What no code catches, like SIGKILL, but inside this process."""


def interrupted_and_resumed(world: World, out: Path, batches: int, monkeypatch, **flags: Any) -> int:
    """Number of U-Net evaluations of the second run; the first "dies" with one batch more written than it recorded."""
    command = world.command(out, SMALL_FLAGS | flags)
    done, finished, evaluations = Queue.done, itertools.count(), []

    def dying_done(self: Queue, *given: Any) -> None:
        if next(finished) == batches:
            raise PulledPlugError
        done(self, *given)

    with monkeypatch.context() as patch, contextlib.suppress(PulledPlugError):
        patch.setattr(Queue, "done", dying_done)
        run_main(*command)
    for folder in ("", "CC/CCF/CF", "IC/ICF/Info"):  # what a process leaves that dies while it writes
        (out / "Results/exp" / folder / f".file.{NO_PROCESS}-{socket.gethostname()}-0123abcd.tmp").touch()
    with monkeypatch.context() as patch:
        watched(patch, "load_diffusion", lambda unet: unet.register_forward_hook(lambda *_: evaluations.append(1)))
        succeeded(run_main(*command))
    return len(evaluations)


def whole_run(world: World, out: Path, **flags: Any) -> dict[str, bytes]:
    world.explain(out, **flags)
    return comparable(out)


@pytest.fixture(scope="module")
def expected(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return whole_run(world, tmp_path_factory.mktemp("whole") / "out", **TWO_SCALES)


def test_resumed_run_is_byte_identical(world, expected, tmp_path, monkeypatch):
    rest = interrupted_and_resumed(world, tmp_path / "out", 2, monkeypatch, **TWO_SCALES)
    assert comparable(tmp_path / "out") == expected
    assert 0 < rest <= 2 * 2 * 4  # two batches, two scales, four evaluations at tau = 3: finished ones are kept


def test_a_stream_of_noise_is_drawn_from_its_beginning(world, tmp_path, monkeypatch):
    """After an interruption, and where an early image is lost."""
    flags = {**TWO_SCALES, "noise": "stream"}
    expected = whole_run(world, tmp_path / "whole", **flags)
    interrupted_and_resumed(world, tmp_path / "out", 2, monkeypatch, **flags)
    assert comparable(tmp_path / "out") == expected
    for path in (tmp_path / "out").rglob("0000005.*"):
        path.unlink()
    world.explain(tmp_path / "out", **flags)
    assert comparable(tmp_path / "out") == expected


def test_a_run_without_images_resumes_from_what_its_queue_has(world, tmp_path, monkeypatch):
    flags = {"save_images": False}
    expected = whole_run(world, tmp_path / "whole", **flags)
    rest = interrupted_and_resumed(world, tmp_path / "b", 2, monkeypatch, **flags)
    assert rest == 2 * 4  # two of four batches stood in the queue; four evaluations each
    assert comparable(tmp_path / "b") == expected


@pytest.mark.parametrize(
    "patterns",
    [
        ("Info/0000000.*", "CF/0000007.*", "truncated Info/0000009.*", "SM/0000014.*"),
        ("Noise/0000003.*", "Correct/0000007.*", "000009/0002.*"),
    ],
)
def test_an_image_counts_as_done_only_with_all_its_files(world, expected, tmp_path, patterns):
    out = tmp_path / "out"
    for name, content in expected.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content.replace(b"OUT", str(out).encode()) if name.endswith("yaml") else content)
    for pattern in patterns:
        path = next(out.rglob(pattern.removeprefix("truncated ")))
        content = path.read_bytes()
        path.unlink()
        if pattern.startswith("truncated"):
            path.write_bytes(content[:50])
    world.explain(out, **TWO_SCALES)
    assert comparable(out) == expected


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("seed", 5, ("--seed", "is 5", "was 4")),
        ("classifier_scales", "8,10", ("--classifier_scales", "[8.0, 10.0]", "[8.0]")),
        ("num_batches", 2, ("--num_batches", "is 8", "was 4")),
        ("noise", "stream", ("--noise", "stream", "per_image")),
        ("num_chunks", 2, ("--num_chunks", "is 2", "was 1")),
    ],
)
def test_another_configuration_is_refused(world, shared_run, flag, value, said):
    line = refused(world, shared_run, **{flag: value})
    assert all(words in line for words in said), line
    assert "config.yaml" in line and "--overwrite True" in line


@pytest.fixture(scope="module")
def shared_run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One batch; refused commands leave it as it is."""
    out = tmp_path_factory.mktemp("shared") / "out"
    world.explain(out, num_batches=1)
    return out


@pytest.mark.parametrize("flag", ["model_path", "classifier_path", "data_dir"])
def test_other_weights_and_labels_are_refused_by_their_content(world, shared_run, tmp_path, flag):
    other = tmp_path / "other"
    if flag == "data_dir":
        shutil.copytree(world.data, other)
        rows = (other / "list_attr_celeba.csv").read_text()
        first = next(row for row in rows.splitlines() if row.startswith("000031"))
        turned = first[:-2] + "1" if first.endswith("-1") else first[:-1] + "-1"
        (other / "list_attr_celeba.csv").write_text(rows.replace(first, turned))
    else:
        content = torch.load(world.unet() if flag == "model_path" else world.classifier, weights_only=True)
        part, name = (content, "out.2.bias") if flag == "model_path" else (content["classifier"], "bias")
        part[name] = part[name] + 1e-6
        torch.save(content, other)
    assert f"--{flag}{'' if flag == 'data_dir' else ' is sha256'}" in refused(world, shared_run, **{flag: other})


def test_another_weight_of_the_perceptual_loss_is_another_run(world, tmp_path):
    """The identity names its network as well: one must not stand in the place of the other."""
    flags = {"num_batches": 1, "l_perc_layer": 4}
    world.explain(tmp_path, l_perc=30, **flags)
    assert "--l_perc is 20.0 here, and was 30.0 there" in refused(world, tmp_path, l_perc=20, **flags)
    world.explain(tmp_path, l_perc=30, **flags)


def test_flags_without_effect_may_differ(world, shared_run, tmp_path):
    weights = tmp_path / "elsewhere.pt"
    weights.write_bytes(world.unet().read_bytes())
    before = tree_of(shared_run)
    world.explain(shared_run, num_batches=1, model_path=weights, use_fp16=True, use_ddim=True, gpu="cpu")
    after = tree_of(shared_run)
    assert {name for name in before.keys() | after.keys() if before[name] != after[name]} <= {"Results/exp/config.yaml"}
    world.explain(shared_run, num_batches=1)


@pytest.mark.parametrize("name", ["config.yaml", "CC/CCF/CF/0000001.jpg"])
def test_results_of_which_nothing_is_known_are_refused(world, tmp_path, name):
    path = tmp_path / "Results/exp" / name
    path.parent.mkdir(parents=True)
    path.write_text("seed: 4\n")
    assert str(path if name == "config.yaml" else tmp_path / "Results/exp") in refused(world, tmp_path)


def test_overwrite_starts_afresh_and_touches_nothing_of_others(world, tmp_path):
    world.explain(tmp_path, exp_name="other", num_batches=1)
    before = tree_of(tmp_path)
    world.explain(tmp_path, seed=5, save_x_t=True)
    world.explain(tmp_path, seed=6, num_batches=1, overwrite=True)
    after = tree_of(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(list((tmp_path / "Results/exp").rglob("CF/*.jpg"))) == 4
    assert not list((tmp_path / "x_t/exp").rglob("*.jpg"))
    assert yaml.safe_load((tmp_path / "Results/exp/config.yaml").read_text())["seed"] == 6
    alone = whole_run(world, tmp_path / "alone", seed=6, num_batches=1)
    assert {k: v for k, v in alone.items() if "/CF/" in k} == {
        k: v for k, v in after.items() if "exp/" in k and "/CF/" in k
    }


def test_the_same_command_would_not_continue_an_interrupted_overwrite(world, tmp_path, monkeypatch):
    for overwrite in (False, True):
        with monkeypatch.context() as patch:
            watched(patch, "load_classifier", lambda _: os.kill(os.getpid(), signal.SIGTERM))
            result = run_main(*world.command(tmp_path, SMALL_FLAGS | {"overwrite": overwrite}))
        assert result.code == EXIT_CONTINUE and "run the same command again" in result.err
        assert ("without --overwrite" in result.err) == overwrite


def test_overwriting_a_chunk_leaves_the_others_and_a_folder_of_another_split(world, tmp_path):
    for chunk in (0, 1):
        world.explain(tmp_path, num_chunks=2, chunk=chunk)
    before = tree_of(tmp_path)
    victim = next((tmp_path / "Results/exp").rglob("CF/0000003.jpg"))
    victim.write_bytes(b"no longer an image")
    world.explain(tmp_path, num_chunks=2, chunk=1, overwrite=True)
    after = tree_of(tmp_path)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"Results/exp/chunk-1_num-chunks-2_config.yaml"}  # it says --overwrite
    assert "--num_chunks" in refused(world, tmp_path, num_chunks=3, overwrite=True)


ATTRIBUTES, PARTITIONS = "list_attr_celeba.csv", "list_eval_partition.csv"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"querry_label": 31}, ["--querry_label"]),
        ({"query_label": "Smilling"}, ["--query_label Smilling", "is Smiling meant"]),
        ({"num_channels": 64, "num_res_blocks": 2}, ["--num_channels 32", "--num_res_blocks 1"]),
        ({"l_perc": 30, "l_perc_layer": 38}, ["--l_perc_layer 38"]),
        ({"timestep_respacing": "5,6", "start_step": 11}, ["--start_step 11", "11 timesteps"]),
        ({"data_dir": "nowhere"}, ["nowhere"]),
        ({"model_path": "nowhere.pt"}, ["nowhere.pt"]),
        ({"classifier_path": "nowhere.pth"}, ["nowhere.pth"]),
    ],
)
def test_what_cannot_be_used_is_named(world, out, flags, said):
    line = refused(world, out, **flags)
    assert all(words in line for words in said), line


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: (data / ATTRIBUTES).write_text(""), [f"data/{ATTRIBUTES}"]),
        (lambda data: (data / "img_align_celeba/000033.jpg").unlink(), ["000033.jpg"]),
        (lambda data: shutil.rmtree(data / "img_align_celeba"), ["data/img_align_celeba"]),
    ],
    ids=["annotations", "missing image", "no folder"],
)
def test_damaged_data(world, out, data, damage, said):
    damage(data)
    line = refused(world, out, data_dir=data)
    assert all(words in line for words in said), line


def test_networks_and_a_gpu_that_do_not_fit(world, out, tmp_path, monkeypatch):
    assert world.classifier.name in refused(world, out, model_path=world.classifier)
    assert world.unet().name in refused(world, out, classifier_path=world.unet())
    parts = torch.load(world.classifier, weights_only=True)
    parts["classifier"] = {name: value[:10] for name, value in parts["classifier"].items()}
    torch.save(parts, tmp_path / "ten.pth")
    line = refused(world, out, query_label=10, classifier_path=tmp_path / "ten.pth")
    assert "--query_label 10" in line and "10 outputs" in line and "ten.pth" in line
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "--gpu 2: this machine has 2 GPU" in refused(world, out, gpu=2)


def test_originals_of_other_images_and_of_another_size(world, out, data):
    """The same ids with other photos behind them, as after another filter in the published code."""
    world.explain(out, num_batches=1)
    for name in (ATTRIBUTES, PARTITIONS):
        path = data / name
        path.write_text("".join(row for row in path.read_text().splitlines(True) if not row.startswith("000031")))
    for flags in ({"data_dir": data}, {"image_size": 64, "attention_resolutions": 16}):
        line = refused(world, out, exp_name="other", **flags)
        assert str(out / "Original") in line and "--output_path" in line


def test_what_lies_in_the_way(world, out):
    path = out / "Original/Correct/0000002.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert str(path) in refused(world, out)
    (out.parent / "file").write_text("mine")
    assert str(out.parent / "file") in refused(world, out.parent / "file")
    assert (out.parent / "file").read_text() == "mine"
