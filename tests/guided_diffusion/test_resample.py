"""Importance sampling of timesteps."""

import os
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from guided_diffusion.resample import LossSecondMomentResampler, create_named_schedule_sampler

DIFFUSION = SimpleNamespace(num_timesteps=4)


def test_second_moment_closed_form():
    sampler = create_named_schedule_sampler("loss-second-moment", DIFFUSION)
    for _ in range(10):
        sampler.update_with_local_losses(torch.arange(3), torch.tensor([1.0, 2.0, 3.0]))
    assert sampler.weights().tolist() == [1.0] * 4  # until every history is full
    for _ in range(10):
        sampler.update_with_local_losses(torch.tensor([3]), torch.tensor([4.0]))
    expected = np.array([1, 2, 3, 4]) / 10 * 0.999 + 0.001 / 4
    np.testing.assert_allclose(sampler.weights(), expected, rtol=1e-12)
    t, weights = sampler.sample(1000, "cpu")
    np.testing.assert_allclose(weights.numpy(), 1 / (4 * expected[t.numpy()]), rtol=1e-6)
    other = LossSecondMomentResampler(DIFFUSION)
    other.load_state_dict(sampler.state_dict())
    for loss in (7.0, 8.0):  # the oldest losses go first
        other.update_with_local_losses(torch.tensor([3]), torch.tensor([loss]))
    assert other.state_dict()["history"][3].tolist() == [4.0] * 8 + [7.0, 8.0]
    np.testing.assert_allclose(sampler.weights(), expected, rtol=1e-12)  # the other's state was a copy
    with pytest.raises(ValueError, match="expected one of uniform, loss-second-moment, loss-balancing"):
        create_named_schedule_sampler("both", DIFFUSION)
    state = LossSecondMomentResampler(SimpleNamespace(num_timesteps=5)).state_dict()
    with pytest.raises(ValueError, match=r"history of shape \(5, 10\)"):
        LossSecondMomentResampler(DIFFUSION).load_state_dict(state)


def test_balancing_gives_every_timestep_its_share_of_the_loss():
    sampler = create_named_schedule_sampler("loss-balancing", DIFFUSION)
    assert sampler.sample(100, "cpu")[1].tolist() == [1.0] * 100  # nothing is known yet
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0])
    for _ in range(sampler.history_per_term):
        sampler.update_with_local_losses(torch.arange(4), losses)
    np.random.seed(0)
    t, weights = sampler.sample(4000, "cpu")
    assert min(np.bincount(t, minlength=4)) > 900  # uniform: 1000 expected, standard deviation 27
    share = losses[t] * weights
    torch.testing.assert_close(share, share[:1].expand_as(share))
    assert abs(float(weights[[int((t == k).nonzero()[0]) for k in range(4)]].mean()) - 1) < 1e-6


@pytest.mark.own_process  # the threads of a process group would forbid later forks
def test_every_process_learns_the_losses_of_all(tmp_path):
    reported = [([0, 1], [1.0, 2.0]), ([1, 3], [3.0, 4.0])]

    def report(rank: int) -> None:
        store = dist.FileStore(str(tmp_path / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
        sampler = create_named_schedule_sampler("loss-second-moment", DIFFUSION)
        t, losses = reported[rank]
        sampler.update_with_local_losses(torch.tensor(t), torch.tensor(losses))
        torch.save(sampler.state_dict(), tmp_path / f"{rank}.pt")
        dist.barrier()

    other = os.fork()
    if other == 0:
        try:
            report(1)
        finally:
            os._exit(0)
    report(0)
    os.waitpid(other, 0)
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert state["counts"].tolist() == [1, 2, 0, 1]
        assert state["history"][:, :2].tolist() == [[1, 0], [2, 3], [0, 0], [4, 0]]  # in the order of ranks
