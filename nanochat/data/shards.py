"""Making token shards: documents tokenised and packed once, kept under a name that says what they were made from.

A shard is a directory:

    tokens.bin      uint16 (uint32 for a vocabulary over 65,536), the documents end to end, each beginning with <|bos|>
    mask.bin        uint8 per token, 1 where it is supervised; conversations only
    documents.npy   int64 (documents + 1,), where each document starts
    rows.npy        int64 (rows + 1,), and
    spans.npy       int64 (spans, 3): the packing plan, see `packing.Packing`
    manifest.json   what it was made from, counts, size and SHA-256 of each file

It is written to a temporary directory, flushed to disk and renamed: a shard is complete or it is not there.
"""

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.data.dataset import TokenDataset
from nanochat.data.documents import VALIDATION_ONE_IN, is_chosen, is_validation, read_conversations, read_documents
from nanochat.data.packing import pack
from nanochat.errors import UserError
from nanochat.files import exclusive, whole_or_not_at_all
from nanochat.tokenizer import Tokenizer, render

FORMAT = 1  # part of every shard's name: raise it whenever the same input would give another shard
SHARD_TOKENS = 1 << 24  # a larger source becomes several shards: 16M tokens are about 64 MB of English
MORE = 1.25  # times the share of documents that would just do, where the one tried held too few tokens
SOURCE_BYTES = 64 << 20  # small files are gathered to sources of this size, so that a folder of notes is one shard
_ENCODE_CHARS = 1 << 22  # tokenised at once
_ENCODE_CONVERSATIONS = 1024
_SOURCES_AHEAD = 64

Progress = Callable[[int, int], None]
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Like `map`, on all processors of this machine at once; results in any order. The function goes by cloudpickle."""
Encoded = tuple[list[int], list[int] | None]  # the tokens of a document and, in a conversation, which are supervised


@dataclass(frozen=True)
class _Recipe:
    """How sources become shards. `settings` is everything here that changes what a shard holds."""

    settings: dict[str, Any]
    tokenizer: Tokenizer
    read: Callable[[Sequence[Path]], Iterator[Any]]
    encode: Callable[[Iterator[Any], int], Iterator[Encoded]]
    threads: int
    """For `encode`."""


def build_text_shards(
    files: Iterable[Path],
    tokenizer: Tokenizer,
    out_dir: Path,
    *,
    split: str,
    row_tokens: int,
    packing: str,
    one_in: int = VALIDATION_ONE_IN,
    num_threads: int | None = None,
    max_tokens: int | None = None,
    share: float = 1.0,
    progress: Progress | None = None,
    spread: Spread | None = None,
    waits: Callable[[], None] = lambda: None,
) -> TokenDataset:
    """Documents as training rows; what `out_dir` already holds is reused, what is damaged there is made again.

    Args:
        files: .txt, .jsonl, .parquet; asked for one by one and only until `max_tokens` are reached, so that an iterator
            may fetch them.
        split: "train", "val" or "all", see `documents.is_validation`.
        one_in: of how many documents one is in "val".
        packing: "stream" or "best_fit", see `packing.pack`.
        num_threads: for tokenising; every core when None.
        max_tokens: stop with the document that reaches it. The same files and limit give the same dataset.
        share: of the documents, chosen by their content from all of the files, all that are chosen; where these hold
            fewer than `max_tokens`, a larger share. 1: files in their order.
        progress: called with the tokens so far and `max_tokens`, or 0 where that is None.
        spread: makes the sources that are certain to be needed at once, each on one core; the dataset is the same.
        waits: called again and again while another process builds in `out_dir`. What it or `progress` raises ends it.

    Raises:
        UserError: no document in the split, a file that cannot be read, or a full disk.
    """
    if share < 1 and max_tokens is None:
        raise ValueError("a share of the documents needs max_tokens, which it should hold")
    while True:
        recipe = _text_recipe(tokenizer, split, one_in, row_tokens, packing, num_threads, share)
        dataset = _build(files, out_dir, recipe, max_tokens if share == 1 else None, progress, waits, spread)
        held = dataset.num_tokens if dataset else 0
        if share == 1 or max_tokens is None or held >= max_tokens:
            break
        share = min(MORE * share * max_tokens / held, 1.0) if held else 1.0
    if dataset is None and split == "val":
        raise UserError(
            "no document of the data falls into the validation split",
            f"it takes one document in {one_in}, so give more documents, or divide the text into more of them",
        )
    if dataset is None:
        raise UserError("the data holds no document to train on", "give files with text in them")
    return dataset


def stream_text_shards(
    files: Iterable[Path],
    tokenizer: Tokenizer,
    out_dir: Path,
    *,
    row_tokens: int,
    packing: str,
    max_tokens: int,
    num_threads: int | None = None,
) -> Iterator[Path]:
    """The shards of documents one after the other, each as soon as it is made; arguments as `build_text_shards`.

    No shard holds text of two files, so the first is made of the first file alone. Between two of them others may
    build in `out_dir`.

    Raises:
        UserError: a file cannot be read, or a full disk.
    """
    recipe = _text_recipe(tokenizer, "all", VALIDATION_ONE_IN, row_tokens, packing, num_threads)
    num_tokens = 0

    def left() -> float:
        return max_tokens - num_tokens

    out_dir.mkdir(parents=True, exist_ok=True)
    for file in files:
        made = _shards_of([file], out_dir, recipe, left, lambda tokens: None)
        while True:
            with exclusive(out_dir / ".lock"):
                found = next(made, None)
            if found is None:
                break
            directory, manifest = found
            num_tokens += manifest["tokens"]
            if manifest["documents"]:
                yield directory
        if left() <= 0:
            return


def _text_recipe(
    tokenizer: Tokenizer,
    split: str,
    one_in: int,
    row_tokens: int,
    packing: str,
    num_threads: int | None,
    share: float = 1.0,
) -> _Recipe:
    def read(source: Sequence[Path]) -> Iterator[str]:
        documents = (text for text in read_documents(source) if share == 1 or is_chosen(text, share))
        return (text for text in documents if split == "all" or is_validation(text, one_in) == (split == "val"))

    def encode(texts: Iterator[str], threads: int) -> Iterator[Encoded]:
        for batch in _by_size(texts, _ENCODE_CHARS):
            for ids in tokenizer.encode_batch(batch, threads):
                yield [tokenizer.bos_id, *ids], None

    if split not in ("train", "val", "all"):
        raise ValueError(f"unknown split {split!r}")
    part = split if split == "all" else f"{split}, one in {one_in}"
    settings = _settings("text", part, row_tokens, packing, tokenizer) | ({"share": share} if share < 1 else {})
    return _Recipe(settings, tokenizer, read, encode, num_threads or os.cpu_count() or 1)


def build_chat_shards(
    files: Iterable[Path],
    tokenizer: Tokenizer,
    out_dir: Path,
    *,
    row_tokens: int,
    packing: str = "best_fit",
    num_threads: int | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
    waits: Callable[[], None] = lambda: None,
) -> TokenDataset:
    """Conversations as training rows with the loss on what the assistant writes; arguments as `build_text_shards`.

    "best_fit" cuts no conversation but one longer than a row, whose pieces stand in several: no token is lost.
    """

    def read(source: Sequence[Path]) -> Iterator[list[dict]]:
        return chain.from_iterable(map(read_conversations, source))

    def encode(conversations: Iterator[list[dict]], threads: int) -> Iterator[Encoded]:
        with ThreadPoolExecutor(threads) as pool:  # tiktoken releases the GIL
            while batch := list(islice(conversations, _ENCODE_CONVERSATIONS)):
                yield from pool.map(partial(render, tokenizer), batch)

    settings = _settings("chat", "all", row_tokens, packing, tokenizer) | {"long": "cut"}
    recipe = _Recipe(settings, tokenizer, read, encode, num_threads or os.cpu_count() or 1)
    dataset = _build(files, out_dir, recipe, max_tokens, progress, waits)
    if dataset is None:
        raise UserError("the data holds no conversation to train on", "give .jsonl files with one conversation a line")
    return dataset


def _settings(kind: str, split: str, row_tokens: int, packing: str, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": kind,
        "split": split,
        "row_tokens": row_tokens,
        "packing": packing,
        "tokenizer": tokenizer.fingerprint,
    }


def _build(
    files: Iterable[Path],
    out_dir: Path,
    recipe: _Recipe,
    max_tokens: int | None,
    progress: Progress | None,
    waits: Callable[[], None],
    spread: Spread | None = None,
) -> TokenDataset | None:
    """The dataset of all sources, or None where they hold no document."""
    directories: list[Path] = []
    num_tokens = 0

    def left() -> float:
        return float("inf") if max_tokens is None else max_tokens - num_tokens

    def report(new_tokens: int) -> None:
        if progress:
            progress(num_tokens + new_tokens, max_tokens or 0)

    out_dir.mkdir(parents=True, exist_ok=True)
    with exclusive(out_dir / ".lock", waits):
        for leftover in out_dir.glob(".partial-*"):  # of a builder that died
            shutil.rmtree(leftover)
        sources: Iterator[list[Path]] = _by_size(files, SOURCE_BYTES, size=_size)
        if spread:
            on_one_core = replace(recipe, threads=1)
            make = partial(_make_whole, out_dir=out_dir, recipe=on_one_core)
            sources = _made_ahead(sources, left, make, spread, lambda: report(0))
        for source in sources:
            for directory, manifest in _shards_of(source, out_dir, recipe, left, report):
                num_tokens += manifest["tokens"]
                report(0)
                if manifest["documents"]:
                    directories.append(directory)
            if left() <= 0:
                break  # before the next file is even asked for
    return TokenDataset(directories) if directories else None


def _made_ahead(
    sources: Iterator[list[Path]],
    left: Callable[[], float],
    make: Callable[[list[Path]], Any],
    spread: Spread,
    look: Callable[[], None],
) -> Iterator[list[Path]]:
    """The same sources, those that will be needed in whole made all at once before the first of them is due.

    A source has fewer tokens than bytes, or nearly so where it is compressed: made for nothing, it is found unused.
    """
    while left() > 0:
        wave: list[list[Path]] = []
        room = left() - SHARD_TOKENS
        for source in islice(sources, _SOURCES_AHEAD):
            wave.append(source)
            room -= sum(map(_size, source))
            if room <= 0:
                break
        certain = wave if room > 0 else wave[:-1]
        if len(certain) > 1:
            for _ in spread(make, certain):
                look()
        if not wave:
            return
        yield from wave


def _size(file: Path) -> int:
    return file.stat().st_size


def _make_whole(source: list[Path], out_dir: Path, recipe: _Recipe) -> None:
    for _ in _shards_of(source, out_dir, recipe, lambda: float("inf"), lambda tokens: None):
        pass


def _shards_of(
    source: Sequence[Path],
    out_dir: Path,
    recipe: _Recipe,
    left: Callable[[], float],
    report: Callable[[int], None],
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Directory and manifest of each shard of a source, made or found, as long as tokens are left to be wanted."""
    fingerprint = _source_fingerprint(source)
    encoded: Iterator[Encoded] | None = None
    documents, exhausted, part = 0, False, 0
    while not exhausted and left() > 0:
        made_from = recipe.settings | {"source": fingerprint, "part": part, "limit": int(min(SHARD_TOKENS, left()))}
        directory = out_dir / _digest(made_from)[:32]
        manifest = _intact_manifest(directory, made_from)
        if manifest is None:
            encoded = encoded or recipe.encode(islice(recipe.read(source), documents, None), recipe.threads)
            manifest = _write_shard(directory, recipe, made_from, encoded, report)
        else:
            encoded = None  # its place in the source is no longer where the next shard begins
        documents += manifest["documents"]
        exhausted, part = manifest["exhausted"], part + 1
        yield directory, manifest


def _write_shard(
    directory: Path,
    recipe: _Recipe,
    made_from: dict[str, Any],
    encoded: Iterator[Encoded],
    report: Callable[[int], None],
) -> dict[str, Any]:
    """Writes the next documents up to the token limit as a shard; returns its manifest."""
    dtype, typecode = ("uint16", "H") if recipe.tokenizer.vocab_size <= 1 << 16 else ("uint32", "I")
    tokens, mask, lengths = array(typecode), array("B"), array("q")
    exhausted = True
    for ids, supervised in encoded:
        tokens.extend(ids)
        mask.extend(supervised or ())
        lengths.append(len(ids))
        if len(lengths) % 1024 == 0:
            report(len(tokens))
        if len(tokens) >= made_from["limit"]:
            exhausted = False  # or just so; then an empty shard follows
            break
    plan = pack(np.array(lengths), made_from["row_tokens"], made_from["packing"])
    with whole_or_not_at_all(directory) as partial_directory:
        token_array = np.array(tokens, dtype=dtype)
        token_array.tofile(partial_directory / "tokens.bin")
        if made_from["kind"] == "chat":
            np.array(mask, dtype=np.uint8).tofile(partial_directory / "mask.bin")
        np.save(partial_directory / "documents.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        np.save(partial_directory / "rows.npy", plan.row_offsets)
        np.save(partial_directory / "spans.npy", plan.spans)
        manifest = {
            "made_from": made_from,
            "dtype": dtype,
            "documents": len(lengths),
            "tokens": len(tokens),
            "bytes": int(recipe.tokenizer.token_bytes()[token_array].sum()),
            "rows": plan.num_rows,
            "padded_tokens": plan.padded_tokens,
            "exhausted": exhausted,
            "files": {file.name: _file_entry(file) for file in sorted(partial_directory.iterdir())},
        }
        (partial_directory / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


def _intact_manifest(directory: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a shard whose files are all as they were written, else None."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        files = {name: _file_entry(directory / name) for name in manifest["files"]}
        return manifest if manifest["made_from"] == made_from and manifest["files"] == files else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _by_size(items: Iterable[Any], limit: int, size: Callable[[Any], int] = len) -> Iterator[list[Any]]:
    """Consecutive items, gathered until their sizes reach the limit."""
    gathered: list[Any] = []
    total = 0
    for item in items:
        gathered.append(item)
        total += size(item)
        if total >= limit:
            yield gathered
            gathered, total = [], 0
    if gathered:
        yield gathered


def _source_fingerprint(source: Sequence[Path]) -> str:
    return _digest([(file.suffix, _file_entry(file)["sha256"]) for file in source])


def _file_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()
