"""What memory held in practice: the rows of a forward pass left after it ran out, remembered for this hardware."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat.files import write_json
from nanochat.model import ModelConfig


@dataclass(frozen=True)
class MemoryRecord:
    """Device batch sizes found to fit where a larger one did not.

    Args:
        directory: shared by all runs.
        hardware: name of the device.
    """

    directory: Path
    hardware: str

    def limit(self, model: ModelConfig, compute_dtype: str) -> int | None:
        """The most rows to try, or None where memory never ran out."""
        try:
            return int(json.loads(self._path(model, compute_dtype).read_bytes())["device_batch_size"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # nothing remembered, or nothing that makes sense

    def remember(self, model: ModelConfig, compute_dtype: str, rows: int) -> None:
        """Memory ran out with more than `rows` rows. A full disk only lets the next run find that out for itself."""
        with suppress(OSError):
            record = {**self._key(model, compute_dtype), "device_batch_size": rows}
            write_json(self._path(model, compute_dtype), record)

    def _key(self, model: ModelConfig, compute_dtype: str) -> dict:
        return {"hardware": self.hardware, "model": asdict(model), "compute_dtype": compute_dtype}

    def _path(self, model: ModelConfig, compute_dtype: str) -> Path:
        key = json.dumps(self._key(model, compute_dtype), sort_keys=True)
        return self.directory / "memory" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
