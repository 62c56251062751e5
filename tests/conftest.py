"""What is set once for the whole test session."""

from __future__ import annotations

import pytest
import torch

from tests.worlds import World, make_world, torchvision_weights_of


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images and weights for the main job."""
    world = make_world(tmp_path_factory.mktemp("world"))
    with torchvision_weights_of(world):
        yield world
