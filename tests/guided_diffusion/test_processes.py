"""What a run says, and its place among others; one process alone. (Several: tests/training/test_launchers.py.)"""

import contextlib
import socket
import sys
from datetime import timedelta
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist

from guided_diffusion import dist_util, launch, logger
from guided_diffusion.launch import Launch
from tests.helpers import csv_rows


@pytest.fixture(autouse=True)
def fresh():
    yield
    logger.reset()


def dump(**values) -> dict:
    logger.logkvs(values)
    return logger.dumpkvs()


def test_lines_tables_and_means(tmp_path, capsys):
    logger.configure(dir=str(tmp_path))
    logger.log("creating", "model")
    logger.logkv("step", val=3)
    logger.logkv_mean("loss", val=0.25)
    logger.logkv_mean("loss", 0.75)
    assert logger.dumpkvs() == {"step": 3, "loss": 0.5}
    assert logger.dumpkvs() == {}
    assert dump(step=4, mse=3) == {"step": 4, "mse": 3}  # new names become columns
    assert csv_rows(tmp_path / "progress.csv") == [
        {"loss": "0.5", "step": "3", "mse": ""},
        {"loss": "", "step": "4", "mse": "3"},
    ]
    text = (tmp_path / "log.txt").read_text()
    assert "creating model\n" in text and "| loss | 0.5 |" in text
    assert text == capsys.readouterr().out
    assert logger.get_dir() == str(tmp_path)
    with pytest.raises(ValueError, match="'xml': expected one of stdout, log, csv, tensorboard"):
        logger.configure(dir=str(tmp_path), format_strs=["xml"])


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path):
    for run, steps in (("first", (0, 1, 2, 3)), ("second", (2, 3, 4))):
        logger.configure(dir=str(tmp_path), format_strs=["csv"])
        for step in steps:
            dump(step=step, run=run)
    found = [row["step"] + row["run"] for row in csv_rows(tmp_path / "progress.csv")]
    assert found == ["0first", "1first", "2second", "3second", "4second"]


def test_the_folder_comes_from_the_environment_or_is_a_dated_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    logger.log("hello")  # configures
    assert logger.get_dir().startswith(f"{tmp_path}/openai-2")
    monkeypatch.setenv("OPENAI_LOGDIR", str(tmp_path / "logs"))
    monkeypatch.setattr("guided_diffusion.dist_util.rank", lambda: 2)
    logger.configure()
    logger.warn("here")
    dump(step=1)  # in no table of its own
    assert [str(path) for path in (tmp_path / "logs").iterdir()] == [f"{logger.get_dir()}/log-rank002.txt"]


@pytest.mark.parametrize("broken", ["progress.csv", "tensorboard"])
def test_what_cannot_be_written_is_left_out_and_said_once(tmp_path, monkeypatch, capsys, broken):
    logger.configure(dir=str(tmp_path), format_strs=["log", "csv", "tensorboard"])
    if broken == "progress.csv":
        (tmp_path / broken).mkdir()
    # None: an import that fails
    stand_in = None if broken == "tensorboard" else SimpleNamespace(SummaryWriter=MagicMock())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    for step in range(3):
        dump(step=step)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith(f"{broken} cannot be written (")
    assert (tmp_path / "log.txt").read_text().count("| step |") == 3


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger.configure(dir=str(tmp_path), format_strs=["tensorboard"])
    dump(step=7, loss=0.5)
    logger.reset()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 0.5)]


@pytest.fixture
def no_launcher(monkeypatch):
    for names in launch._VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    dist_util.close()


@pytest.mark.parametrize("grouped", [False, True])
def test_one_process_is_alone_with_and_without_a_group(no_launcher, grouped):
    if grouped:
        dist_util.setup_dist()
        dist_util.setup_dist()  # twice is once
        gathered = [torch.zeros(2)]
        dist.all_gather(gathered, torch.ones(2))  # what sampling scripts call
        dist.barrier()
        assert gathered[0].tolist() == [1, 1]
    assert (dist_util.rank(), dist_util.world_size()) == (0, 1)
    assert dist_util.gather("a") == ["a"]
    assert dist_util.any_rank(True) is True
    assert dist_util.sum_over_ranks(torch.ones(2)).tolist() == [1, 1]
    dist_util.sync_params([torch.zeros(1)])
    with dist_util.watched():
        assert dist_util.on_rank_0(lambda: 3) == 3
        with pytest.raises(ValueError, match="invalid literal"):  # errors of rank 0 come through
            dist_util.on_rank_0(lambda: int("three"))


STEP = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "2"}
OPEN_MPI = {f"OMPI_COMM_WORLD_{key}": value for key, value in (("RANK", "1"), ("SIZE", "2"), ("LOCAL_RANK", "0"))}
POD = {"RANK": "1", "WORLD_SIZE": "2"}
HYDRA = {**PMI, "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch("python")),
        ({**POD, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launch("RANK and WORLD_SIZE", 1, 2, 1, 2)),
        (POD, Launch("RANK and WORLD_SIZE", 1, 2, None, None)),  # Kubernetes: on one machine or two
        ({"RANK": "0", "WORLD_SIZE": "1"}, Launch("RANK and WORLD_SIZE", 0, 1, 0, 1)),
        (HYDRA, Launch("MPICH", 1, 2, 1, 2)),
        (OPEN_MPI, Launch("Open MPI", 1, 2, 0, None)),
        # a batch script of four tasks: it runs once, and is no task of a step
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, Launch("python")),
        (STEP, Launch("srun", 5, 8, 1, 4)),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "2"}, Launch("srun", 5, 8, 1, 1)),
        ({**STEP, "PMI_RANK": "5", "PMI_SIZE": "8"}, Launch("srun", 5, 8, 1, 4)),  # MpiDefault=pmi2
        ({**STEP, **POD}, Launch("srun", 5, 8, 1, 4)),
        ({**STEP, **HYDRA}, Launch("MPICH", 1, 2, 1, 2)),  # its proxies are the tasks of the step
    ],
)
def test_the_place_is_read_from_the_launcher(no_launcher, variables, expected):
    for name, value in variables.items():
        no_launcher.setenv(name, value)
    assert launch.detect() == expected


def test_slurm_names_the_first_machine_and_others_are_asked_for_it(no_launcher):
    no_launcher.setitem(sys.modules, "mpi4py", None)
    no_launcher.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match=r"rank 1 of 4 \(Open MPI\): .* set MASTER_ADDR and MASTER_PORT"):
        launch.open_store(Launch("Open MPI", 1, 4, 1, 2))
    nodes = ("gpu07", "gpu[03-05,9]", "a1,b2", "n[1-2]-ib,m3", "rack[1-2]node[03-05],x")
    assert list(map(launch.first_host, nodes)) == ["gpu07", "gpu03", "a1", "n1-ib", "rack1node03"]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_wait_for_others_is_said_and_has_an_end(no_launcher, capfd, rank):
    no_launcher.setattr(launch, "MEETING_TIMEOUT", timedelta(seconds=1))
    no_launcher.setattr(launch, "_SILENCE", 0.1)
    no_launcher.setenv("MASTER_ADDR", "localhost")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    no_launcher.setenv("MASTER_PORT", str(port))
    with pytest.raises(TimeoutError, match=f"rank {rank} of 2 .*: the processes did not meet") as raised:
        launch.open_store(Launch("RANK and WORLD_SIZE", rank, 2, None, None))
    assert "\n" not in str(raised.value)
    assert f"waiting for the other processes at localhost:{port}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("devices", "local_rank", "local_size", "present", "expected"),
    [
        ("", 1, None, 4, "cuda:1"),
        ("3,2", 1, None, 4, "cuda:2"),
        ("1", 0, None, 4, "cuda:1"),
        ("", None, None, 1, "cuda:0"),
        ("0", 0, None, 0, "cpu"),
        ("", None, None, 0, "cpu"),
        ("7", 0, None, 4, "this machine has 4 GPU"),
        ("", None, None, 4, "Set LOCAL_RANK and LOCAL_WORLD_SIZE, or name one by --gpus"),
        ("0,1", None, None, 4, "which of 2 GPUs"),
        ("0", 0, 2, 0, "names 1 GPU.s. for 2 processes"),
        ("0,one", 0, 1, 0, "expected GPU indices"),
    ],
)
def test_each_process_takes_its_gpu_or_says_what_is_missing(
    monkeypatch, devices, local_rank, local_size, present, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    place = Launch("RANK and WORLD_SIZE", 4, 5, local_rank, local_size)
    allowed = expected.startswith(("cuda", "cpu"))
    with contextlib.nullcontext() if allowed else pytest.raises(ValueError, match=expected):
        assert dist_util._choose_device(place, devices) == torch.device(expected)
