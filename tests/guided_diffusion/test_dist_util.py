"""One process alone: everything works as without distribution. (Several: tests/training/test_launchers.py.)"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from guided_diffusion import dist_util, launch
from guided_diffusion.launch import Launch


@pytest.fixture
def no_launcher(monkeypatch):
    for names in launch._VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    dist_util.close()


def test_one_process_gets_a_group(no_launcher):
    dist_util.setup_dist()
    dist_util.setup_dist()  # twice is once
    assert dist.is_initialized()
    assert dist_util.rank() == 0
    assert dist_util.world_size() == 1
    gathered = [torch.zeros(2)]
    dist.all_gather(gathered, torch.ones(2))  # what sampling scripts call
    dist.barrier()
    assert gathered[0].tolist() == [1, 1]


def test_without_a_group_all_is_one_process(no_launcher):
    assert (dist_util.rank(), dist_util.world_size()) == (0, 1)
    assert dist_util.gather("a") == ["a"]
    assert dist_util.on_rank_0(lambda: 3) == 3
    assert dist_util.any_rank(True) is True
    assert dist_util.sum_over_ranks(torch.ones(2)).tolist() == [1, 1]
    dist_util.sync_params([torch.zeros(1)])
    with dist_util.watched():
        pass


def test_errors_of_rank_0_come_through(no_launcher):
    def fail():
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        dist_util.on_rank_0(fail)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch("python")),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            Launch("torchrun", 3, 4, 1, 2),
        ),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            Launch("MPICH", 1, 2, 1, 2),
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            Launch("Open MPI", 1, 2, 0, 2),
        ),
        # a batch script of four tasks: it runs once, and is no task of a step
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, Launch("python")),
        (
            {
                "SLURM_PROCID": "5",
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
            },
            Launch("srun", 5, 8, 1, 4),
        ),
    ],
)
def test_the_place_is_read_from_the_launcher(no_launcher, variables, expected):
    for name, value in variables.items():
        no_launcher.setenv(name, value)
    assert launch.detect() == expected


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu07", "gpu07"), ("gpu[03-05,9]", "gpu03"), ("a1,b2", "a1"), ("n[1-2]-ib,m3", "n1-ib")],
)
def test_slurm_names_the_first_machine(no_launcher, nodes, host):
    no_launcher.setenv("SLURM_STEP_NODELIST", nodes)
    no_launcher.setenv("SLURM_JOB_ID", "123")
    found, port = launch._slurm_address()
    assert found == host
    assert 20000 <= port < 40000


def test_mpi_over_machines_without_an_address_or_mpi4py(no_launcher):
    no_launcher.setitem(__import__("sys").modules, "mpi4py", None)
    no_launcher.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match="set MASTER_ADDR and MASTER_PORT"):
        launch.open_store(Launch("MPICH", 0, 4, 0, 2))


@pytest.mark.parametrize(
    ("devices", "processes", "message"),
    [
        ("0", 2, "names 1 GPU.s. for 2 processes"),
        ("0,one", 1, "expected GPU indices"),
        ("0,", 1, "expected GPU indices"),
    ],
)
def test_gpus_that_do_not_go_round(devices, processes, message):
    with pytest.raises(ValueError, match=message):
        dist_util._choose_device(Launch("MPICH", 0, processes, 0, processes), devices)


@pytest.mark.parametrize(
    ("devices", "local_rank", "expected"), [("", 1, "cuda:1"), ("3,2", 1, "cuda:2"), ("1", 0, "cuda:1")]
)
def test_each_rank_takes_its_entry(monkeypatch, devices, local_rank, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    place = Launch("MPICH", local_rank, local_rank + 1, local_rank, local_rank + 1)
    assert dist_util._choose_device(place, devices) == torch.device(expected)


@pytest.mark.parametrize(("devices", "processes"), [("", 5), ("7", 1)])
def test_more_than_the_machine_has(monkeypatch, devices, processes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="this machine has 4 GPU"):
        dist_util._choose_device(Launch("MPICH", processes - 1, processes, processes - 1, processes), devices)


def test_no_gpu_means_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dist_util._choose_device(Launch("python"), "0") == torch.device("cpu")
