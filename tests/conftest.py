"""What is set once for the whole test session."""

import os
import shutil
import sys
import traceback
from pathlib import Path

import pytest

from tests.metric_world import MetricWorld, make_metric_world, stand_ins
from tests.worlds import World, make_world, torchvision_weights_of


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"))
    with torchvision_weights_of(world):
        yield world


@pytest.fixture(scope="session")
def metric_world(tmp_path_factory: pytest.TempPathFactory, world: World) -> MetricWorld:
    return make_metric_world(tmp_path_factory.mktemp("metrics"), world)


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    """A copy of the world's images and annotations, to spoil."""
    return Path(shutil.copytree(world.data, tmp_path / "data"))


@pytest.fixture
def small(metric_world: MetricWorld, tmp_path: Path) -> Path:
    return metric_world.small_tree(tmp_path / "tree")


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    """Stand-ins for all networks of the metrics."""
    return stand_ins(monkeypatch, tmp_path)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked own_process in a fork: the threads that it lets torch start would forbid later forks."""
    if pyfuncitem.get_closest_marker("own_process") is None:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pyfuncitem.obj(**arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, "its error is what it wrote to stderr"
    return True
