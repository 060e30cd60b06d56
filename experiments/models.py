"""The models of the runs there are, loaded when they are first asked for, a few at a time."""

import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch

from nanochat.inference.batcher import Batcher
from nanochat.inference.engine import Engine
from nanochat.inference.load import STAGES, load_model, newest_checkpoint
from nanochat.run import Run
from nanochat.tokenizer import Tokenizer

MOST_LOADED = 2
WAIT_S = 30.0  # for one to have nothing to do, where another shall take its place


@dataclass(frozen=True)
class Served:
    """A model that can be asked."""

    name: str
    stage: str
    tokenizer: Tokenizer
    batcher: Batcher
    saved: float
    """When its weights were, in seconds since the epoch."""

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
        self._lock, self._loading = Lock(), Lock()  # of what is loaded, held for an instant; of who loads

    def names(self) -> dict[str, float]:
        """All that there are, and when each was saved last, in seconds since the epoch."""
        found = {}
        for directory in sorted(self.runs_dir.iterdir()) if self.runs_dir.is_dir() else ():
            for stage in STAGES:
                if not directory.name.startswith(".") and (saved := _saved(Run(directory), stage)):
                    found[f"{directory.name}/{stage}"] = saved
        return found

    def open(self, name: str) -> Served:
        """The model, loaded now if it is not; "" is the default one, and a run alone its last stage.

        A newer checkpoint takes the place of the one that is loaded once nobody is served by that.

        Raises:
            KeyError: there is none of that name.
            UserError: it cannot be loaded.
        """
        name, saved = self._find(name)
        if served := self._ready(name, saved):
            return served
        with self._loading:
            if served := self._ready(name, saved):
                return served
            self._make_room()
            served = self._load(name, saved)
            with self._lock:
                self._loaded[name] = served
            return served

    def load(self) -> dict[str, dict[str, int]]:
        """Of each loaded model, how many are served and how many wait."""
        return {name: dict(zip(("served", "waiting"), each.batcher.load, strict=True))
                for name, each in list(self._loaded.items())}  # fmt: skip

    def close(self) -> None:
        with self._lock:
            for served in self._loaded.values():
                served.batcher.close()
            self._loaded.clear()

    def _find(self, name: str) -> tuple[str, float]:
        """Its whole name, and when it was saved last."""
        names = self.names()
        name = name or self.default
        if name not in names:
            stages = [stage for stage in STAGES if f"{name}/{stage}" in names]
            if not stages:
                raise KeyError(name)
            name = f"{name}/{stages[-1]}"
        return name, names[name]

    def _ready(self, name: str, saved: float) -> Served | None:
        """The model if it is loaded, and is not let go of for a newer one."""
        with self._lock:
            served = self._loaded.get(name)
            if served is None:
                return None
            if served.saved < saved and served.batcher.close(if_idle=True):
                del self._loaded[name]
                return None
            self._loaded.move_to_end(name)
            return served

    def _make_room(self) -> None:
        """Let go of those that were asked for the longest ago, once nobody is served by them, or after WAIT_S."""
        patience = time.monotonic() + WAIT_S
        while len(self._loaded) >= MOST_LOADED:
            with self._lock:
                gone = next((name for name, each in self._loaded.items() if each.batcher.close(if_idle=True)), None)
                if gone is None and time.monotonic() > patience:
                    gone = next(iter(self._loaded), None)
                served = self._loaded.pop(gone) if gone else None
            if served:
                served.batcher.close()  # who is served by it is told so
            else:
                time.sleep(0.05)

    def _load(self, name: str, saved: float) -> Served:
        run_name, _, stage = name.rpartition("/")
        directory = self.runs_dir / run_name
        checkpoint = newest_checkpoint(directory, stage, warn=lambda text: None)
        model, tokenizer = load_model(checkpoint, Run(directory).tokenizer_directory, self.device, self.dtype)
        return Served(name, stage, tokenizer, Batcher(Engine(model, tokenizer)), saved)


def _saved(run: Run, stage: str) -> float | None:
    """When a stage's model was saved last, in seconds since the epoch; None where there is none to be served: one whose
    checkpoints are on a storage is, once the stage has ended."""
    times = []
    for path in (run.directory / stage / "checkpoints").glob("step_*"):
        with suppress(FileNotFoundError):  # it was the oldest
            times.append(path.stat().st_mtime)
    ended = run.result_path(stage)
    return max(times) if times else ended.stat().st_mtime if ended.exists() else None
