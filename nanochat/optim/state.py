"""The names and shapes of the optimizer's state, and where in it each piece of a parameter has its share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from nanochat.optim.groups import AdamWGroup, MuonGroup
from nanochat.optim.partition import Piece


@dataclass(frozen=True)
class Slot:
    """Where a tensor of the state keeps its share of a parameter: element e of it at `start + e // per`."""

    name: str
    start: int = 0
    per: int = 1


@dataclass(frozen=True)
class StateLayout:
    """`mean.<parameter>` and `square.<parameter>` of AdamW, shaped as the parameter; `momentum.<group>` of Muon
    (matrices, rows, columns) and `row_square.<group>`, one number for each row of the longer side,
    (matrices, rows, 1) or (matrices, 1, columns)."""

    shapes: Mapping[str, tuple[int, ...]]
    slots: Mapping[str, tuple[Slot, ...]]
    """By parameter."""

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor], adamw_groups: Sequence[AdamWGroup],
           muon_groups: Sequence[MuonGroup]) -> "StateLayout":
        shapes: dict[str, tuple[int, ...]] = {}
        slots: dict[str, tuple[Slot, ...]] = {}
        for name in [name for adamw in adamw_groups for name in adamw.names]:
            slots[name] = Slot(f"mean.{name}"), Slot(f"square.{name}")
            shapes |= {slot.name: tuple(parameters[name].shape) for slot in slots[name]}
        for index, muon in enumerate(muon_groups):
            rows, columns = parameters[muon.names[0]].shape[-2:]
            start, short = 0, min(rows, columns)
            for name in muon.names:
                slots[name] = Slot(f"momentum.{index}", start), Slot(f"row_square.{index}", start // short, short)
                start += parameters[name].numel()
            count = start // (rows * columns)
            shapes[f"momentum.{index}"] = (count, rows, columns)
            shapes[f"row_square.{index}"] = (count, rows, 1) if rows >= columns else (count, 1, columns)
        return cls(shapes, slots)

    def pieces(self, segment: Iterable[Piece]) -> dict[str, list[Piece]]:
        """The state of a segment of the parameters, by name of the tensor, in the segment's order."""
        found: dict[str, list[Piece]] = {}
        for piece in segment:
            for slot in self.slots[piece.name]:
                first, last = slot.start + piece.first // slot.per, slot.start + piece.last // slot.per
                found.setdefault(slot.name, []).append(Piece(slot.name, first, last))
        return found
