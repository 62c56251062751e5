"""What a training draws: images of a folder in endless batches, and timesteps by importance."""

import multiprocessing
import os
import subprocess
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import Dataset, get_worker_info

from guided_diffusion.image_datasets import EndlessBatches, ImageDataset, center_crop_arr, load_data, random_crop_arr
from guided_diffusion.resample import LossSecondMomentResampler, create_named_schedule_sampler


@pytest.fixture
def folder(tmp_path):
    """Ten images, each of one grey level; two folders, four kinds of files, two classes, and a text."""
    (tmp_path / "b").mkdir()
    names = ["b/cat_0.png", "b/dog_1.PNG", "cat_2.jpeg", "dog_3.gif", *(f"z/{i}/cat_{i}.png" for i in range(4, 10))]
    for level, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (level * 20,) * 3).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def level(images: torch.Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] + 1) * 127.5 / 20).round().int().tolist()


def load(folder, batch_size: int = 4, **more):
    return load_data(data_dir=str(folder), batch_size=batch_size, image_size=8, deterministic=True, **more)


def test_batches_in_order_or_each_pass_in_another(folder, monkeypatch):
    data = load(folder)
    images, cond = next(data)
    assert images.shape == (4, 3, 8, 8) and images.dtype == torch.float32 and cond == {}
    assert [level(images), *(level(next(data)[0]) for _ in range(2))] == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    labels = next(load(folder, class_cond=True))[1]["y"]  # names up to the underscore
    assert labels.tolist() == [0, 1, 0, 1] and labels.dtype == torch.int64
    data = load_data(data_dir=str(folder), batch_size=5, image_size=8)
    passes = [level(torch.cat([next(data)[0], next(data)[0]])) for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(10))
    assert passes[0] != passes[1]
    monkeypatch.setattr("guided_diffusion.dist_util.rank", lambda: 1)
    monkeypatch.setattr("guided_diffusion.dist_util.world_size", lambda: 3)
    assert level(next(load(folder, 3))[0]) == [1, 4, 7]  # ranks share the files


def test_crops_halve_with_box_then_bicubic_and_flips_happen_half_of_the_time(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    halved = image.resize((35, 20), Image.Resampling.BOX)
    expected = np.array(halved.resize((round(35 * 16 / 20), 16), Image.Resampling.BICUBIC))[:, 6:22]
    assert (center_crop_arr(image, 16) == expected).all()
    torch.manual_seed(0)
    crops = [random_crop_arr(image, 16) for _ in range(20)]
    assert {crop.shape for crop in crops} == {(16, 16, 3)}
    assert len({crop.tobytes() for crop in crops}) > 5
    ramp = np.tile(np.arange(0, 160, 20, dtype=np.uint8)[None, :, None], (8, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    dataset = ImageDataset(resolution=8, image_paths=[str(tmp_path / "ramp.png")])
    torch.manual_seed(0)
    rising = [bool(image[0, 0, 0] < image[0, 0, -1]) for image, _ in (dataset[0] for _ in range(100))]
    assert 30 < sum(rising) < 70
    still = ImageDataset(8, [str(tmp_path / "ramp.png")], random_flip=False)
    assert all(still[0][0][0, 0, 0] == -1 for _ in range(10))


def test_bad_input(folder, tmp_path):
    """Kinds of images: tests/core/test_datasets.py."""
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "white.png")
    with pytest.raises(ValueError, match=r"white\.png: .*16-bit or float"):
        ImageDataset(4, [str(tmp_path / "white.png")])[0]
    for place, batch_size, said in (
        ("", 4, "no folder of images"),
        (tmp_path / "nowhere", 4, "no jpg, jpeg, png or gif"),
        (folder, 12, "batch_size 12: the data set has only 11 image"),
    ):
        with pytest.raises(ValueError, match=said):
            load(place, batch_size)


class Numbers(Dataset):
    """Ten random numbers, drawn as augmentations are; `fail` is called for item 7 first."""

    def __init__(self, fail=lambda: None):
        self.fail = fail

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 7:
            self.fail()
        return torch.rand(()) + index


def die_in_a_worker():
    if get_worker_info():
        os._exit(1)


def bad_image():
    raise OSError("000007.jpg: not a readable image")


def take(batches: EndlessBatches, count: int = 5) -> list[list[float]]:
    return [next(batches).tolist() for _ in range(count)]


def test_where_workers_die_the_same_batches_are_read_without_them(capsys):
    found = take(EndlessBatches(Numbers(die_in_a_worker), 2, num_workers=2))
    assert found == take(EndlessBatches(Numbers(), 2))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "images are read without them" in said[0]
    for drop_last, expected in ((False, [*range(10), 0, 1]), (True, [*range(8), *range(4)])):
        batches = EndlessBatches(Numbers(), 4, shuffle=False, drop_last=drop_last)
        drawn = torch.tensor([number for batch in take(batches, 4) for number in batch])
        assert drawn.long().tolist()[:12] == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_as_it_is(workers):
    with pytest.raises(OSError, match=r"^000007\.jpg: not a readable image$"):
        take(EndlessBatches(Numbers(bad_image), 2, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_any_position_can_be_resumed(workers):
    before = torch.get_rng_state()
    whole = take(EndlessBatches(Numbers(), 3, seed=5), 8)
    first = EndlessBatches(Numbers(), 3, seed=5, num_workers=workers)
    assert take(first, 4) == whole[:4]
    second = EndlessBatches(Numbers(), 3, seed=0, num_workers=workers)
    second.load_state_dict(first.state_dict())
    assert take(second, 4) == whole[4:]
    assert torch.equal(torch.get_rng_state(), before)  # reading leaves the global generator alone


def test_a_signal_to_every_process_disturbs_no_reading_and_workers_end_with_their_batches():
    """As clusters send it. Were it for torch, an error would be raised wherever this process is when a worker ends."""
    data = EndlessBatches(Numbers(), 2, num_workers=2)
    begun = take(data, 2)
    for worker in multiprocessing.active_children():
        subprocess.run(["bash", "-c", f"kill -TERM {worker.pid}"], check=True)
        worker.join(10)
    assert begun + take(data, 20) == take(EndlessBatches(Numbers(), 2), 22)
    before = set(multiprocessing.active_children())
    data = EndlessBatches(Numbers(), 2, num_workers=2)
    next(data)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del data  # at once: there is no cycle for the garbage collector to find
    assert not set(multiprocessing.active_children()) - before


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
