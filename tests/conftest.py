"""What tests share: one cache of data for the whole session, so that the built-in world is made once."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes at a time: a core each, before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.small_run import Whole

REAL_DATA = Path(__file__).parents[1] / "../shared/data"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NANOCHAT_BASE_DIR of this session, all of its processes and every process they start."""
    own = tmp_path_factory.getbasetemp()
    directory = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    directory.mkdir(exist_ok=True)
    os.environ["NANOCHAT_BASE_DIR"] = str(directory)
    return directory


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
