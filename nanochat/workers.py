"""The processes that train one model together. A single worker needs no process group, and none is made."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Traffic:
    """What one worker has sent, in bytes of tensors, by the ring algorithm of each collective.

    With W workers and S bytes, the whole tensor's: a reduce-scatter or an all-gather sends (W-1)/W · S from each
    worker, an all-reduce, which is one after the other, 2(W-1)/W · S; a gather sends S/W from each but the one that
    gathers. These are least possible for bandwidth (Thakur, Rabenseifner & Gropp 2005, "Optimization of Collective
    Communication Operations in MPICH"; the factors of nccl-tests' PERFORMANCE.md). The backend may send more.
    """

    bytes_sent: float = 0.0


@dataclass(frozen=True)
class Workers:
    """This process's place among the workers, and what they can do together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    traffic: Traffic = field(default_factory=Traffic, compare=False, repr=False)
    """Counts what is sent through this object; not the objects of `from_lead`."""

    @classmethod
    def current(cls, device: torch.device) -> "Workers":
        """The process group that is initialised here, or a single worker."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device)
        return cls(device=device)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, the one that writes shared files."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the workers, in float64."""
        if self.size == 1:
            return list(values)
        return self.sum_tensors(*torch.tensor(values, dtype=torch.float64, device=self.device))

    def sum_tensors(self, *values: Tensor) -> list[float]:
        """Each 0-d tensor of `device` summed over the workers, in float64. Waits for the device, once for all."""
        tensor = torch.stack([value.double() for value in values])
        if self.size > 1:
            dist.all_reduce(tensor)
            self._count(2 * tensor.nbytes)
        return tensor.tolist()

    def reduce_scatter(self, segments: Tensor) -> Tensor:
        """This rank's segment, summed over the workers.

        Args:
            segments: (size, length), one segment for each rank.

        Returns:
            (length,). With a single worker, the memory of `segments`.
        """
        if self.size == 1:
            return segments[0]
        own = torch.empty_like(segments[0])
        _either("reduce_scatter_single", "reduce_scatter_tensor")(own, segments.view(-1))  # gloo wants it flat
        self._count(segments.nbytes)
        return own

    def all_gather(self, segment: Tensor) -> Tensor:
        """Every rank's segment (length,), of equal lengths, as (size, length). With a single worker, the same memory.
        """
        if self.size == 1:
            return segment[None]
        segments = segment.new_empty(self.size, len(segment))
        _either("all_gather_single", "all_gather_into_tensor")(segments.view(-1), segment)
        self._count(segments.nbytes)
        return segments

    def gather(self, segment: Tensor) -> list[Tensor]:
        """Every rank's segment, of equal shapes, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [segment]
        segments = [torch.empty_like(segment) for _ in range(self.size)] if self.leads else []
        dist.gather(segment, segments or None)
        self.traffic.bytes_sent += 0 if self.leads else segment.nbytes
        return segments

    def from_lead(self, value: Any) -> Any:
        """Rank 0's value, on every worker. The others wait for it."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _count(self, size: int) -> None:
        """A ring has passed `size` bytes on, each worker all but its own share."""
        self.traffic.bytes_sent += (self.size - 1) / self.size * size


def _either(name: str, before: str) -> Any:
    """A collective of torch.distributed by its name since torch 2.13, or the one before."""
    return getattr(dist, name, None) or getattr(dist, before)
