"""What is set once for the whole test session."""

import multiprocessing
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
    reader, writer = multiprocessing.Pipe(duplex=False)

    def call() -> None:
        try:
            pyfuncitem.obj(**arguments)
            writer.send(None)
        except pytest.skip.Exception as skipped:
            writer.send((pytest.skip, str(skipped)))
        except BaseException:
            writer.send((pytest.fail, traceback.format_exc()))

    child = multiprocessing.get_context("fork").Process(target=call)
    child.start()
    writer.close()
    try:
        outcome = reader.recv()
    except EOFError:
        outcome = pytest.fail, "the process of the test died"
    child.join()
    if outcome is not None:
        outcome[0](outcome[1])
    return True
