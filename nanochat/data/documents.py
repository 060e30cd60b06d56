"""Documents and conversations from files: text, JSON lines, parquet. Streaming, so a file may be larger than memory."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from nanochat.errors import UserError
from nanochat.tokenizer.chat import check_messages

SUFFIXES = (".txt", ".jsonl", ".parquet")
SEPARATOR = "<|endoftext|>"  # between the documents of a .txt, as GPT-2's data had it
PARAGRAPH_CHARS = 4000  # paragraphs of a .txt without separators are gathered to documents of about this size
VALIDATION_ONE_IN = 64
MOST_VALIDATION_ONE_IN = 16
VALIDATION_BYTES = 1 << 17  # fewer leave runs that are alike 0.01 to 0.02 apart in val_bpb, LOG.md, 2026-11-23
_BLOCK_CHARS = 1 << 20


def find_documents(path: Path) -> list[Path]:
    """The data files at `path`: the file itself, or those of a folder and its subfolders, sorted by path.

    Hidden files and folders are left out. Links are followed, and no folder is gone through twice.

    Raises:
        UserError: nothing is there, nothing of it can be read as documents, all of it is empty, or the system refuses a
            part of it, such as a folder without permission or a link to nothing.
    """
    supported = ", ".join(SUFFIXES)
    with _readable(path):
        if not path.exists():
            raise UserError(f"there is no data at {path}", "check the path")
        files = [path] if path.is_file() else sorted(_files_below(path))
        size = sum(file.stat().st_size for file in files)
    if not files or files[0].suffix not in SUFFIXES:
        raise UserError(f"{path} is not data that can be read", f"supported are {supported} files and folders of them")
    if not size:
        raise UserError(f"{path} is empty", f"supported are {supported} files with text in them")
    return files


def _files_below(folder: Path) -> Iterator[Path]:
    """The data files in a folder and its subfolders. Raises OSError rather than leave out what cannot be reached."""

    def refuse(error: OSError) -> None:
        raise error

    been: set[str] = set()
    starts = [os.fspath(folder)]
    for start in starts:  # it grows: linked folders come after what is here itself
        for parent, folders, names in os.walk(start, onerror=refuse):
            place = os.path.realpath(parent)
            if place in been:
                folders.clear()
                continue
            been.add(place)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += [path for path in (os.path.join(parent, name) for name in folders) if os.path.islink(path)]
            for path in (Path(parent, name) for name in names if not name.startswith(".")):
                is_file = stat.S_ISREG(path.stat().st_mode)  # of a link to nothing nobody knows what it was
                if is_file and path.suffix in SUFFIXES:
                    yield path


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What keeps the system from reading `path`, or something in it, is for the user to change."""
    try:
        yield
    except OSError as error:
        if not error.errno:  # not the system but pyarrow, about what the file holds
            raise
        raise UserError(
            f"{error.filename or path} cannot be read: {error.strerror or error}",
            "check that it is there, and that you are allowed to read it",
        ) from error


def read_documents(files: Iterable[Path]) -> Iterator[str]:
    """The documents of the files in order; blank ones are left out.

    .parquet: the column `text`. .jsonl: the key `text` of every line. .txt: what stands between `<|endoftext|>`, or,
    in a file without it, paragraphs gathered to about 4,000 characters.

    Raises:
        UserError: a file cannot be opened, is not UTF-8, not JSON, has no text or is damaged; names the file and, if
            known, the line.
    """
    for file in files:
        if file.suffix == ".parquet":
            documents = _read_parquet(file)
        elif file.suffix == ".jsonl":
            documents = _read_jsonl(file)
        else:
            documents = _read_txt(file)
        yield from (document for document in documents if not document.isspace() and document)


def read_conversations(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The `messages` of every line of a .jsonl file, checked.

    Raises:
        UserError: names the file that cannot be opened, or the file and line that is not UTF-8, not JSON, or not a
            conversation with an assistant's turn.
    """
    for number, record in _read_json_lines(path):
        messages = record.get("messages")
        try:
            if messages is None:
                raise ValueError("there is no key 'messages'")
            check_messages(messages)
            if not any(message["role"] == "assistant" for message in messages):
                raise ValueError("there is no assistant message to learn from")
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is not a conversation: {error}",
                'a line is {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
            ) from error
        yield messages


def validation_one_in(files: Sequence[Path]) -> int:
    """Of how many documents one is kept for validation: 64, or as few as 16 where that would be too little text."""
    one_in, size = VALIDATION_ONE_IN, sum(file.stat().st_size for file in files)
    while one_in > MOST_VALIDATION_ONE_IN and size < one_in * VALIDATION_BYTES:
        one_in //= 2
    return one_in


def is_validation(document: str, one_in: int = VALIDATION_ONE_IN) -> bool:
    """Whether a document belongs to the validation split: one in so many, decided by its own text alone.

    So copies of a document fall on the same side, and what is trained on stays so when more files are added: the
    validation split of a smaller share, a half or a quarter, is part of that of a larger.
    """
    return content_number(document) % one_in == 0


def is_chosen(document: str, share: float) -> bool:
    """Whether a document is in so large a share of all, decided by its own text alone: as many on both sides of the
    split, and those of a smaller share are among those of a larger."""
    return content_number(document) >> 32 < share * 2**32


def content_number(document: str) -> int:
    """64 bits that depend on a document's text alone."""
    return int.from_bytes(hashlib.blake2b(document.encode("utf-8"), digest_size=8).digest(), "little")


def _read_parquet(path: Path) -> Iterator[str]:
    """The column `text`, one row group after the other in batches."""
    try:
        with _readable(path), pyarrow.parquet.ParquetFile(path) as parquet:
            if "text" not in parquet.schema_arrow.names:
                names = ", ".join(parquet.schema_arrow.names)
                raise UserError(f"{path} has no column 'text', only: {names}", "rename the column that holds the text")
            for batch in parquet.iter_batches(batch_size=1024, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    if isinstance(text, str):
                        yield text
                    elif text is not None:
                        raise UserError(f"the column 'text' of {path} holds no strings", "write it as a string column")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} holds text that is not UTF-8", "write the file again from UTF-8 text") from error
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as parquet: {reason}", "delete it and get it again") from error


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, record in _read_json_lines(path):
        text = record.get("text")
        if not isinstance(text, str):
            raise UserError(f"{path}, line {number} has no string 'text'", 'a line is {"text": "…"}')
        yield text


def _read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number, counted from 1, and object of every line that is not blank."""
    with _readable(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if b"\\ud" in line.lower():  # JSON can spell half a character, which no UTF-8 text contains
                    json.dumps(record, ensure_ascii=False).encode("utf-8")
            except UnicodeError as error:
                raise UserError(f"{path}, line {number} is not UTF-8", "convert the file to UTF-8") from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"{path}, line {number} is not JSON: {error}", "a line is one JSON object") from error
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number} is not a JSON object", 'a line is like {"text": "…"}')
            yield number, record


def _read_txt(path: Path) -> Iterator[str]:
    # newline="" leaves line ends as they are: what is trained on is what the file holds.
    try:
        with _readable(path), path.open(encoding="utf-8-sig", newline="") as file:
            separated = _has_separator(path)
            yield from _split_at_separator(file) if separated else _gather_paragraphs(file)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {_first_broken_line(path)} is not UTF-8", "convert the file to UTF-8") from error


def _has_separator(path: Path) -> bool:
    with path.open(encoding="utf-8", newline="") as file:
        window = ""
        while block := file.read(_BLOCK_CHARS):
            window = window[-len(SEPARATOR) :] + block
            if SEPARATOR in window:
                return True
    return False


def _split_at_separator(file: Any) -> Iterator[str]:
    rest = ""
    while block := file.read(_BLOCK_CHARS):
        *documents, rest = (rest + block).split(SEPARATOR)
        yield from (document.strip("\r\n") for document in documents)
    yield rest.strip("\r\n")


def _gather_paragraphs(file: Any) -> Iterator[str]:
    """Whole paragraphs where blank lines divide the text, whole lines where they do not."""
    lines: list[str] = []
    size = 0
    while line := file.readline(_BLOCK_CHARS):
        lines.append(line)
        size += len(line)
        if size >= PARAGRAPH_CHARS and (line.isspace() or size >= 2 * PARAGRAPH_CHARS):
            yield "".join(lines)
            lines, size = [], 0
    yield "".join(lines)


def _first_broken_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 0
