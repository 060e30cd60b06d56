"""Training on text that is still arriving: a process fetches and tokenises it, shard by shard, the others read along.

They meet in a directory, the feed:

    part_00000.json   names the directory of the first token shard, and so on
    now.json          what is waited for, for people
    end.json          all parts are there, or why there will be no more
"""

import json
import multiprocessing
import os
import shutil
import threading
from functools import cached_property
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.data.dataset import TokenDataset
from nanochat.data.hub import CorpusFiles
from nanochat.data.shards import stream_text_shards
from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.tokenizer import Tokenizer

NICENESS = 5  # training comes first


class GrowingDataset:
    """Rows of the token shards of a feed, as many as there are by now.

    Attributes:
        complete: whether these are all.
    """

    def __init__(self, feed: Path, made_from: str) -> None:
        self.feed, self.made_from = feed, made_from
        self.complete = False
        self._failure: UserError | None = None
        self._parts: list[TokenDataset] = []
        self._bounds = [0]
        self._looking = threading.Lock()

    def __reduce__(self) -> tuple:
        return GrowingDataset, (self.feed, self.made_from)

    @property
    def row_tokens(self) -> int:
        return self.first.row_tokens

    @property
    def num_rows(self) -> int:
        """By now."""
        self.has(1)
        return self._bounds[-1]

    @cached_property
    def fingerprint(self) -> str:
        """Of what it is made from, its first shard included: the rest is not known yet."""
        return f"{self.made_from}-{self.first.fingerprint}"

    @property
    def first(self) -> TokenDataset:
        """Its first part. Raises as `bounds`."""
        self.bounds(1)
        return self._parts[0]

    def has(self, rows: int) -> bool:
        """Whether there are so many rows by now, or there will never be."""
        if rows > self._bounds[-1] and not self.complete:
            with self._looking:  # batches are made on a thread
                self._look()
        return rows <= self._bounds[-1] or self.complete or self._failure is not None

    def bounds(self, rows: int) -> np.ndarray:
        """Where each part begins and the last one ends, int64 (parts + 1,).

        Raises:
            UserError: so many rows there will never be, and why.
            RuntimeError: not yet, see `has`.
        """
        if not self.has(rows):
            raise RuntimeError(f"there are {self._bounds[-1]} rows yet, not {rows}")
        if rows > self._bounds[-1] and self._failure:
            raise self._failure
        return np.array(self._bounds)

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `TokenDataset.rows`."""
        indices = np.asarray(indices)
        tokens = np.zeros((len(indices), self.row_tokens + 1), dtype=np.int64)
        mask = np.zeros(tokens.shape, dtype=bool)
        parts = np.searchsorted(self._bounds, indices, side="right") - 1
        for part in np.unique(parts).tolist():
            here = parts == part
            tokens[here], mask[here] = self._parts[part].rows(indices[here] - self._bounds[part])
        return tokens, mask

    def waiting_for(self) -> str:
        """For people; empty where nobody says so."""
        return (_read(self.feed / "now.json") or {}).get("waiting", "")

    def _look(self) -> None:
        """See what has come."""
        end = _read(self.feed / "end.json")  # before the parts, or some that came between would be missed
        while part := _read(self.feed / _part(len(self._parts))):
            self._parts.append(TokenDataset([Path(part["directory"])]))
            self._bounds.append(self._bounds[-1] + self._parts[-1].num_rows)
        if end is not None:
            self.complete = not end
            self._failure = UserError(end["message"], end["hint"]) if end else None


class Feeder:
    """The process that fills a feed. It ends with this one, or when all is there.

    Args:
        feed: emptied first.
        tokenizer: its directory.
        out_dir: of the token shards.
        options: of `stream_text_shards`.
    """

    def __init__(self, feed: Path, files: CorpusFiles, tokenizer: Path, out_dir: Path, **options: Any) -> None:
        shutil.rmtree(feed, ignore_errors=True)
        feed.mkdir(parents=True)
        arguments = (feed, files, files.patience_s, tokenizer, out_dir, options)
        self._feed, self._stopped = feed, False
        self._process: BaseProcess = get_context("spawn").Process(target=_fill, args=arguments, daemon=True)
        self._process.start()
        threading.Thread(target=self._watch, name="feeder", daemon=True).start()

    def stop(self) -> None:
        self._stopped = True
        self._process.terminate()
        self._process.join()

    def _watch(self) -> None:
        """Say so where the process dies without a word."""
        self._process.join()
        if self._process.exitcode and not self._stopped and not (self._feed / "end.json").exists():
            message = f"the process that fetches and tokenises the text died (exit code {self._process.exitcode})"
            write_json(self._feed / "end.json", {"message": message, "hint": "the same command goes on"})


def _fill(
    feed: Path, files: CorpusFiles, patience_s: float, tokenizer: Path, out_dir: Path, options: dict[str, Any]
) -> None:
    """The work of the process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(NICENESS)

    def say(text: str) -> None:
        write_json(feed / "now.json", {"waiting": text.removeprefix("waiting for ")})

    heard = CorpusFiles(files.corpus, files.folder, files.shards, files.ahead, say, patience_s)
    end: dict[str, str] = {}
    try:
        parts = stream_text_shards(heard, Tokenizer.load(tokenizer), out_dir, **options)
        for number, directory in enumerate(parts):
            write_json(feed / _part(number), {"directory": str(directory)})
    except UserError as error:
        end = {"message": error.message, "hint": error.hint}
    write_json(feed / "end.json", end)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _part(number: int) -> str:
    return f"part_{number:05d}.json"


def _read(path: Path) -> dict[str, Any] | None:
    """What was written there, if anything."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
