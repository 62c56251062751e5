"""What is set once for the whole test session."""

from __future__ import annotations

import pytest

from tests.metric_world import MetricWorld, make_metric_world
from tests.worlds import World, make_world, torchvision_weights_of


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images and weights for the main job."""
    world = make_world(tmp_path_factory.mktemp("world"))
    with torchvision_weights_of(world):
        yield world


@pytest.fixture(scope="session")
def metric_world(tmp_path_factory: pytest.TempPathFactory, world: World) -> MetricWorld:
    """Result trees and weights for the metrics."""
    return make_metric_world(tmp_path_factory.mktemp("metrics"), world)
