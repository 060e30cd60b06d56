"""Other people's pickles, read by an allow-list: tensors and the parts of a tiktoken encoding, nothing that executes
(DESIGN.md, invariant 4)."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.errors import UserError

_HINT = "it may be damaged, or made to harm: get it again from where you trust it"


@dataclass(frozen=True)
class EncodingParts:
    """What a tiktoken encoding is made of."""

    pattern: str
    ranks: dict[bytes, int]
    special_tokens: dict[str, int]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, of a file that `torch.save` wrote.

    Raises UserError if there is anything else in it, or it cannot be read.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it holds more than tensors ({_first_line(error)})", _HINT) from None
    except Exception as error:  # a file may be wrong in every way there is
        raise UserError(f"cannot read {path}: {_first_line(error)}", _HINT) from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise UserError(f"{path} does not hold tensors by name", "name a model_*.pt of public nanochat")
    return found


def read_encoding(path: Path) -> EncodingParts:
    """The parts of a pickled `tiktoken.Encoding`. Raises UserError as `read_tensors`."""
    try:
        with path.open("rb") as file:
            found = _EncodingReader(file).load()
        state = found.state
        parts = EncodingParts(state["pat_str"], state["mergeable_ranks"], state["special_tokens"])
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it holds more than an encoding ({_first_line(error)})", _HINT) from None
    except Exception as error:
        raise UserError(f"cannot read {path}: {_first_line(error)}", _HINT) from None
    if not (isinstance(parts.pattern, str) and _is_numbering(parts.ranks, bytes)
            and _is_numbering(parts.special_tokens, str)):  # fmt: skip
        raise UserError(f"{path} does not hold the parts of a tiktoken encoding", _HINT)
    return parts


class _Recorded:
    """Stands for `tiktoken.Encoding`: keeps what was pickled of it and does nothing."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _EncodingReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return _Recorded


def _is_numbering(found: Any, kind: type) -> bool:
    return isinstance(found, dict) and all(
        isinstance(key, kind) and isinstance(number, int) for key, number in found.items()
    )


def _first_line(error: Exception) -> str:
    """Of a message that may go on to advise what must not be done."""
    text = str(error) or type(error).__name__
    if "Unsupported" in text or "GLOBAL" in text:  # torch's own, after several lines of advice
        named = next((line for line in text.splitlines() if "GLOBAL" in line or "Unsupported" in line), text)
        text = named.split("WeightsUnpickler error:")[-1].split(" by default")[0]
    return text.strip().splitlines()[0][:200]
