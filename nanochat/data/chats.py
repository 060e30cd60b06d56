"""Conversations and questions of a run, as files: TinyWorld's, those of the public mixtures, or the user's own.

What is not TinyWorld's is made once, into a directory whose name says what it was made from:

    train.jsonl, val.jsonl     a conversation a line; one in 64, or of few one in 32 or 16, by its content, is in val
    questions.jsonl            instead of these two, for the tasks
    manifest.json              what it was made from, how many of each part, SHA-256 of each file
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat.config import PUBLIC, TINYWORLD
from nanochat.data.documents import (
    VALIDATION_ONE_IN,
    content_number,
    is_validation,
    read_conversations,
    validation_one_in,
)
from nanochat.data.mixture_rows import fingerprint, mixture, suite
from nanochat.data.mixtures import MIXTURES, TASKS
from nanochat.errors import UserError
from nanochat.files import exclusive, whole_or_not_at_all

CHAT_STAGES = ("mid", "sft")
MANIFEST = "manifest.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Chats:
    """Files of conversations by stage, and of questions."""

    train: dict[str, Path]
    val: dict[str, Path]
    questions: Path


def check_chat(chat: str) -> None:
    """Read the user's conversations, all of them, now rather than minutes later in a worker.

    Raises:
        UserError: there is no such file, or a line is no conversation; names the line.
    """
    if chat in (TINYWORLD, PUBLIC):
        return
    path = Path(chat)
    if not path.exists():
        raise UserError(
            f"--chat {path.name}: there is no such file, and no such built-in conversations",
            f"give a .jsonl of conversations, or --chat {TINYWORLD} or {PUBLIC}",
        )
    if path.suffix != ".jsonl" or not path.is_file():
        raise UserError(
            f"--chat {path} is no .jsonl file", 'a line of it is {"messages": [{"role": "user", "content": "…"}, …]}'
        )
    if sum(1 for _ in read_conversations(path)) < 2:
        raise UserError(f"{path} holds fewer than two conversations", "one is needed to train on, one to validate")


def open_own(path: Path, cache: Path) -> tuple[Path, Path]:
    """Training and validation files of the user's own conversations, divided now or found in `cache`. They lie in an
    order of their content's hashes, so that any beginning is a fair sample of a file that may be sorted.

    Raises:
        UserError: as `check_chat`.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    one_in = validation_one_in([path])
    made_from = {"own": digest, "one_in": one_in, "order": "by content"}
    directory = _directory(cache, "own", made_from)

    def write(folder: Path) -> Counter[str]:
        counts = _write_conversations(folder, (("own", messages) for messages in read_conversations(path)), one_in)
        for made in (folder / "train.jsonl", folder / "val.jsonl"):
            lines = sorted(_lines(made), key=_by_content)
            made.write_bytes(b"".join(lines))
        return counts

    _make(directory, made_from, write)
    return directory / "train.jsonl", directory / "val.jsonl"


def open_public(stage: str, cache: Path, say: Say) -> tuple[Path, Path]:
    """Training and validation files of a stage's public mixture, fetched and made now or found in `cache`.

    Raises:
        UserError: the hub cannot be reached, or what it has is not what was expected.
    """
    made_from = fingerprint(MIXTURES[stage])
    directory = _directory(cache, stage, made_from)
    _make(directory, made_from, lambda folder: _write_conversations(folder, mixture(MIXTURES[stage], say)))
    return directory / "train.jsonl", directory / "val.jsonl"


def open_tasks(cache: Path, say: Say) -> Path:
    """The questions of the public tasks, as `open_public`."""
    made_from = fingerprint(TASKS)
    directory = _directory(cache, "tasks", made_from)

    def write(folder: Path) -> Counter[str]:
        counts: Counter[str] = Counter()
        with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
            for question in suite(TASKS, say):
                file.write(json.dumps(asdict(question), ensure_ascii=False) + "\n")
                counts[question.skill] += 1
        return counts

    _make(directory, made_from, write)
    return directory / "questions.jsonl"


def missing(stages: Iterable[str], questions: bool, cache: Path) -> list[str]:
    """Which datasets of the hub would have to be fetched."""
    wanted = [(stage, MIXTURES[stage]) for stage in stages if stage in MIXTURES]
    wanted += [("tasks", TASKS)] if questions else []
    absent = [parts for name, parts in wanted if not _directory(cache, name, fingerprint(parts)).exists()]
    return list(dict.fromkeys(part.dataset for parts in absent for part in parts if part.dataset))


def _directory(cache: Path, name: str, made_from: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return cache / "chat" / f"{name}-{digest[:16]}"


def _make(directory: Path, made_from: dict[str, Any], write: Callable[[Path], Counter[str]]) -> None:
    """Have `write` fill the directory, unless it is there, undamaged."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(directory.parent / f".{directory.name}.lock"):  # the second of two processes finds it made
        if _intact(directory):
            return
        with whole_or_not_at_all(directory) as folder:
            counts = write(folder)
            files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
            manifest = {"made_from": made_from, "counts": dict(counts), "files": files}
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _intact(directory: Path) -> bool:
    try:
        files = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(_sha256(directory / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _write_conversations(
    folder: Path, conversations: Iterable[tuple[str, Sequence[Any]]], one_in: int = VALIDATION_ONE_IN
) -> Counter[str]:
    """Divide (part, messages) pairs into the two files. Returns how many of each part there are."""
    counts: Counter[str] = Counter()
    train, val = folder / "train.jsonl", folder / "val.jsonl"
    with train.open("w", encoding="utf-8") as trained, val.open("w", encoding="utf-8") as kept:
        for part, messages in conversations:
            line = json.dumps({"messages": messages}, ensure_ascii=False)
            # By content, so that no conversation of one split is in the other one of any stage.
            in_val = is_validation(line, one_in)
            (kept if in_val else trained).write(line + "\n")
            counts[part] += 1
    if not val.stat().st_size or not train.stat().st_size:
        _give_one(train, val)
    return counts


def _give_one(train: Path, val: Path) -> None:
    """Few conversations may all fall on one side: then the other gets one of them, chosen by content too."""
    given, *others = sorted(_lines(train) + _lines(val), key=_by_content)
    val.write_bytes(given)
    train.write_bytes(b"".join(others))


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)  # of a str, U+2028 would be an end of line too


def _by_content(line: bytes) -> int:
    return content_number(line.decode("utf-8"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
