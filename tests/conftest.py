"""What is set once for the whole test session."""

import os
import traceback

import pytest

from tests.metric_world import MetricWorld, make_metric_world
from tests.worlds import World, make_world, torchvision_weights_of


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"))
    with torchvision_weights_of(world):
        yield world


@pytest.fixture(scope="session")
def metric_world(tmp_path_factory: pytest.TempPathFactory, world: World) -> MetricWorld:
    return make_metric_world(tmp_path_factory.mktemp("metrics"), world)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked own_process in a fork: the threads that it lets torch start would forbid later forks."""
    if pyfuncitem.get_closest_marker("own_process") is None:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = "passed"
        try:
            pyfuncitem.obj(**arguments)
        except pytest.skip.Exception as skipped:
            outcome = f"skipped {skipped}"
        except BaseException:
            outcome = f"failed {traceback.format_exc()}"
        finally:
            os.write(writer, outcome.encode()[-60_000:])
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        outcome, _, text = pipe.read().decode(errors="replace").partition(" ")
    os.waitpid(child, 0)
    if outcome == "skipped":
        pytest.skip(text)
    if outcome != "passed":
        pytest.fail(text or "the process of the test died", pytrace=False)
    return True
