"""What workers do together, in real processes, and the bytes it is counted to take."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.workers import Workers
from tests.optim.processes import in_processes


def use_everything(workers: Workers) -> dict[str, Any]:
    """Each collective's result and the bytes this rank sent for it."""
    rank, size = workers.rank, workers.size
    calls = {
        "sum": lambda: workers.sum(rank, 0.5),
        "reduce_scatter": lambda: workers.reduce_scatter(torch.arange(size * 3.0).view(size, 3) * (rank + 1)),
        "all_gather": lambda: workers.all_gather(torch.full((3,), float(rank))),
        "gather": lambda: workers.gather(torch.full((3,), float(rank))),
        "from_lead": lambda: workers.from_lead({"rank": rank}),
    }
    results: dict[str, Any] = {}
    for name, call in calls.items():
        before = workers.traffic.bytes_sent
        results[name] = call(), workers.traffic.bytes_sent - before
    return results


@pytest.mark.parametrize("size", [2, 4])
def test_collectives_in_processes(size: int, tmp_path: Path) -> None:
    for rank, results in enumerate(in_processes(size, tmp_path, use_everything)):
        others = (size - 1) / size
        assert results["sum"] == ([sum(range(size)), size / 2], 2 * others * 16)
        mine, sent = results["reduce_scatter"]
        assert mine.equal(torch.arange(3 * rank, 3 * rank + 3.0) * sum(range(1, size + 1)))
        assert sent == others * size * 12
        everything = torch.arange(float(size))[:, None].expand(size, 3)
        gathered, sent = results["all_gather"]
        assert gathered.equal(everything)
        assert sent == others * size * 12
        collected, sent = results["gather"]
        assert len(collected) == (size if rank == 0 else 0)
        assert all(a.equal(b) for a, b in zip(collected, everything, strict=False))
        assert sent == (0 if rank == 0 else 12)
        assert results["from_lead"] == ({"rank": 0}, 0)


def test_a_single_worker_copies_and_sends_nothing() -> None:
    workers, segment = Workers(), torch.ones(3)
    assert workers.reduce_scatter(segment[None]).data_ptr() == segment.data_ptr()
    assert workers.all_gather(segment).shape == (1, 3)
    assert workers.all_gather(segment).data_ptr() == segment.data_ptr()
    assert workers.gather(segment)[0] is segment
    assert workers.sum(1.5, 2) == [1.5, 2]
    assert workers.traffic.bytes_sent == 0


def test_workers_are_equal_whatever_they_sent() -> None:
    used = Workers()
    used.traffic.bytes_sent = 7.0
    assert used == Workers()
    assert Workers().traffic.bytes_sent == 0
