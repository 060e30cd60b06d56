"""The models of the runs there are, loaded when they are first asked for, a few at a time."""

import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch

from nanochat.inference.batcher import Batcher
from nanochat.inference.engine import Engine
from nanochat.inference.load import STAGES, load_model, newest_checkpoint
from nanochat.run import Run
from nanochat.tokenizer import Tokenizer
from nanochat.training.checkpoint import CheckpointStore

MOST_LOADED = 2
WAIT_S = 30.0  # for one to have nothing to do, where another shall take its place


@dataclass(frozen=True)
class Served:
    """A model that can be asked."""

    name: str
    stage: str
    tokenizer: Tokenizer
    batcher: Batcher

    @property
    def context(self) -> int:
        return self.batcher.engine.model.config.max_seq_len


class Models:
    """Models by name, which is RUN/STAGE. May be used from any thread.

    Args:
        default: name of the one that is asked where none is named.
    """

    def __init__(self, runs_dir: Path, default: str, device: str, dtype: torch.dtype) -> None:
        self.runs_dir, self.default, self.device, self.dtype = runs_dir, default, device, dtype
        self._loaded: OrderedDict[str, Served] = OrderedDict()
        self._lock = Lock()

    def names(self) -> dict[str, float]:
        """All that there are, and when each was saved last, in seconds since the epoch."""
        found = {}
        for directory in sorted(self.runs_dir.iterdir()) if self.runs_dir.is_dir() else ():
            for stage in STAGES:
                kept, ended = directory / stage / "checkpoints", Run(directory).result_path(stage)
                here = kept.is_dir() and CheckpointStore(kept).steps()
                if not directory.name.startswith(".") and (here or ended.exists()):  # else, of an ended one, on a store
                    found[f"{directory.name}/{stage}"] = (kept if here else ended).stat().st_mtime
        return found

    def open(self, name: str) -> Served:
        """The model, loaded now if it is not; "" is the default one, and a run alone its last stage.

        Raises:
            KeyError: there is none of that name.
            UserError: it cannot be loaded.
        """
        name = self._whole_name(name)
        with self._lock:
            if name not in self._loaded:
                self._make_room()
                self._loaded[name] = self._load(name)
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def load(self) -> dict[str, dict[str, int]]:
        """Of each loaded model, how many are served and how many wait."""
        return {name: dict(zip(("served", "waiting"), each.batcher.load, strict=True))
                for name, each in list(self._loaded.items())}  # fmt: skip

    def close(self) -> None:
        with self._lock:
            for served in self._loaded.values():
                served.batcher.close()
            self._loaded.clear()

    def _whole_name(self, name: str) -> str:
        names = self.names()
        name = name or self.default
        if name in names:
            return name
        stages = [stage for stage in STAGES if f"{name}/{stage}" in names]
        if not stages:
            raise KeyError(name)
        return f"{name}/{stages[-1]}"

    def _make_room(self) -> None:
        """Let go of those that were asked for the longest ago, once nobody is served by them."""
        patience = time.monotonic() + WAIT_S
        while len(self._loaded) >= MOST_LOADED:
            idle = next((name for name, each in self._loaded.items() if each.batcher.load == (0, 0)), None)
            if idle is not None or time.monotonic() > patience:
                self._loaded.pop(idle or next(iter(self._loaded))).batcher.close()
            else:
                time.sleep(0.05)

    def _load(self, name: str) -> Served:
        run_name, _, stage = name.rpartition("/")
        directory = self.runs_dir / run_name
        checkpoint = newest_checkpoint(directory, stage, warn=lambda text: None)
        model, tokenizer = load_model(checkpoint, Run(directory).tokenizer_directory, self.device, self.dtype)
        return Served(name, stage, tokenizer, Batcher(Engine(model, tokenizer)))
