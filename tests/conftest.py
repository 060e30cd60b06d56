"""What tests share: one cache of data for the whole session, so that the built-in world is made once."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes at a time: a core each, before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.small_run import Whole

settings.register_profile("patient", deadline=None)  # how fast a test is says nothing of the code
settings.load_profile("patient")
REAL_DATA = Path(__file__).parents[1] / "../shared/data"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NANOCHAT_BASE_DIR of this session, all of its processes and every process they start."""
    own = tmp_path_factory.getbasetemp()
    directory = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    directory.mkdir(exist_ok=True)
    os.environ["NANOCHAT_BASE_DIR"] = str(directory)
    return directory


@pytest.fixture
def base_dir(cache: Path, tmp_path: Path) -> Path:
    """A NANOCHAT_BASE_DIR with the built-in world and nothing else."""
    from nanochat.data.sources import open_sources

    open_sources("tinyworld", cache)
    own = tmp_path / "base"
    own.mkdir()
    (own / "tinyworld").symlink_to(cache / "tinyworld")
    return own


@pytest.fixture(scope="session", autouse=True)
def measured_once() -> Iterator[None]:
    """How fast this machine multiplies: once for all commands that are called here, as it takes a second and more."""
    from nanochat.planning import hardware

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "measure_peaks", functools.cache(hardware.measure_peaks))
        yield


@pytest.fixture(scope="session")
def whole(cache: Path) -> "Whole":
    from tests.small_run import whole_run

    return whole_run(cache.parent / "whole")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, by what their tests with Ray may take: no process is left with one at the end."""
    seconds: Counter[Path] = Counter()
    for item in items:
        if item.get_closest_marker("ray"):
            limit = item.get_closest_marker("timeout")
            seconds[item.path] += limit.args[0] if limit else 60
    items.sort(key=lambda item: -seconds[item.path])
