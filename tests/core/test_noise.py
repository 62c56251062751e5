"""Both sources of random numbers keep their promises."""

from __future__ import annotations

import torch

from dime.core.noise import PerImageNoise, StreamNoise

SHAPE = torch.Size((2, 3, 8, 8))


def test_the_stream_is_torchs_own():
    torch.manual_seed(7)
    noise = StreamNoise(7)
    draws = [noise.noising([0, 1])(SHAPE), noise.step([0, 1], 0, 5)(SHAPE), noise.step([1], 2, 4)(SHAPE)]
    for eps in draws:  # which has not been touched
        assert torch.equal(eps, torch.randn_like(eps))


def test_an_images_noise_depends_on_nothing_but_its_key():
    noise = PerImageNoise(4)
    together = noise.step([11, 12], 3, 5)
    alone = PerImageNoise(4).step([12], 3, 5)
    for _ in range(3):  # its inner chain's ε's, then its own
        assert torch.equal(together(SHAPE)[1], alone(torch.Size((1, *SHAPE[1:])))[0])


def test_every_part_of_the_key_matters():
    def first(seed: int, id: int, attempt: int | None = None, index: int = 0) -> torch.Tensor:
        noise = PerImageNoise(seed)
        draw = noise.noising([id]) if attempt is None else noise.step([id], attempt, index)
        return draw(torch.Size((1, 3, 8, 8)))

    keys = [(4, 0), (4, 0, 0, 0), (5, 0), (4, 1), (4, 0, 1, 0), (4, 0, 0, 1), (4, 1, 0, 0), (4, 1, 1, 0)]
    drawn = {key: first(*key) for key in keys}
    for key, eps in drawn.items():
        assert not any(torch.equal(eps, other) for name, other in drawn.items() if name != key), key


def test_the_numbers_are_standard_normal():
    eps = PerImageNoise(0).noising(list(range(8)))(torch.Size((8, 3, 64, 64)))
    assert abs(eps.mean()) < 0.02  # 98,304 numbers: the standard error is 0.0032
    assert abs(eps.std() - 1) < 0.02
