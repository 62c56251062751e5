"""CelebA as training data: what each process has of it."""

from __future__ import annotations

import pytest
import torch

from dime.core.training.script import LabelledImages, open_part
from guided_diffusion import dist_util
from tests.training.scripts import unpack_celeba

ROWS, PROCESSES, SIZE = 30, 4, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(unpack_celeba(tmp_path_factory.mktemp("celeba")))


@pytest.mark.parametrize(("rank", "expected"), [(0, [0, 4, 8, 12, 16, 20, 24, 28]), (3, [3, 7, 11, 15, 19, 23, 27])])
def test_a_process_takes_every_fourth_row_of_four(data, monkeypatch, rank, expected):
    monkeypatch.setattr(dist_util, "rank", lambda: rank)
    monkeypatch.setattr(dist_util, "world_size", lambda: PROCESSES)
    dataset = open_part("CelebA", data, "train", SIZE)
    assert len(dataset) == ROWS
    share = LabelledImages(dataset, [31, 2])
    assert len(share) == len(expected)
    for (image, condition), row in zip((share[k] for k in range(len(share))), expected, strict=True):
        assert torch.equal(image, dataset[row].image)
        assert torch.equal(condition["y"], dataset[row].labels[[31, 2]])
    assert LabelledImages(dataset)[0][1] == {}
