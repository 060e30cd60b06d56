"""Keys and values of the tokens already seen, so that generating one more token costs one token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.model.config import ModelConfig
from nanochat.model.determinism import distinct_places


@dataclass
class KVCache:
    """Keys and values of a batch of rows of different lengths.

    `keys` and `values` are (layer, batch, head, capacity, head_dim), `ids` (batch, capacity) the tokens of a model that
    smears; `lengths` (batch,) says how many slots of each row are filled. The model writes new tokens at `lengths` but
    leaves `lengths` alone: who fed the tokens knows which of them count (prompts are padded on the right) and calls
    `advance`.
    """

    keys: Tensor
    values: Tensor
    ids: Tensor
    lengths: Tensor

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype,
              device: torch.device | str = "cpu") -> "KVCache":
        """A cache with room for `capacity` tokens in each of `batch` rows."""
        shape = (config.depth, batch, config.num_heads, capacity, config.head_dim)
        return cls(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device),
                   torch.zeros(batch, capacity, dtype=torch.int64, device=device),
                   torch.zeros(batch, dtype=torch.int64, device=device))

    @property
    def capacity(self) -> int:
        return self.keys.size(3)

    def advance(self, counts: Tensor | int) -> None:
        """Count `counts` more tokens of each row as seen."""
        self.lengths = self.lengths + counts

    def select(self, rows: Tensor) -> "KVCache":
        """A copy of some of the rows only (indices (n,) or a mask (batch,))."""
        return KVCache(self.keys[:, rows], self.values[:, rows], self.ids[rows], self.lengths[rows])

    def part(self, rows: int, slots: int) -> "KVCache":
        """The same memory, as far as the first rows and the first slots of each; its lengths are the part's own."""
        return KVCache(self.keys[:, :rows, :, :slots], self.values[:, :rows, :, :slots], self.ids[:rows, :slots],
                       self.lengths[:rows])

    def put(self, places: list[int], other: "KVCache", rows: list[int]) -> None:
        """Let the rows at `places` become those of another cache, of no more slots than this one."""
        slots = other.capacity
        with distinct_places():
            self.keys[:, places, :, :slots] = other.keys[:, rows]
            self.values[:, places, :, :slots] = other.values[:, rows]
            self.ids[places, :slots] = other.ids[rows]
            self.lengths[places] = other.lengths[rows]

    def next_slots(self, new: int) -> tuple[Tensor, Tensor]:
        """Where the next `new` tokens of each row go: numbers of the rows (batch, 1), their positions (batch, new)."""
        device = self.lengths.device
        return (torch.arange(self.lengths.size(0), device=device)[:, None],
                self.lengths[:, None] + torch.arange(new, device=device))

    def write_ids(self, ids: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
        """Store new tokens (batch, new) at `next_slots`; return the token before each of them, which is any where
        there is none."""
        rows, positions = at
        with distinct_places():
            self.ids[at] = ids
        return self.ids[rows, (positions - 1).clamp(min=0)]

    def write(self, layer: int, key: Tensor, value: Tensor, at: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Store new keys and values (batch, head, new, head_dim) at `next_slots`; return the layer's."""
        with distinct_places():
            self.keys[layer].transpose(1, 2)[at] = key.transpose(1, 2)
            self.values[layer].transpose(1, 2)[at] = value.transpose(1, 2)
        return self.keys[layer], self.values[layer]
