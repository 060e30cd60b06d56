"""TinyWorld on disk: parquet shards, conversations, questions and, last, the manifest. Complete, or not there."""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from nanochat.data.documents import is_validation
from nanochat.data.tinyworld.conversations import MID, SFT, conversation
from nanochat.data.tinyworld.documents import document
from nanochat.data.tinyworld.holdout import document_rng, held_out
from nanochat.data.tinyworld.questions import question_suite
from nanochat.errors import UserError
from nanochat.files import exclusive, flush
from nanochat.tasks.questions import Question

NUM_DOCUMENTS = 36_000
DOCUMENTS_PER_SHARD = 10_000
DOCUMENTS_PER_ROW_GROUP = 1_000
VAL_CONVERSATIONS_ONE_IN = 16

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class World:
    """A written TinyWorld: where it lies and what is in it."""

    directory: Path
    seed: int
    num_documents: int
    version: str
    """Fingerprint of the generator's source: another generator makes another world."""
    counts: Mapping[str, int]
    """Documents, characters, conversations and questions by file."""
    files: Mapping[str, str]
    """sha256 of every file, by its path inside the directory."""

    @property
    def base(self) -> Path:
        """The folder of parquet shards, train and val."""
        return self.directory / "base"

    @property
    def questions(self) -> Path:
        return self.directory / "questions.jsonl"

    def conversations(self, stage: str, split: str) -> Path:
        """The JSON lines of a stage (`mid`, `sft`) and a split (`train`, `val`)."""
        return self.directory / stage / f"{split}.jsonl"


def write(directory: Path, *, seed: int = 0, num_documents: int = NUM_DOCUMENTS) -> World:
    """The world of this seed and size in `directory`, written there unless it is there already.

    A hundred base documents come with sixty conversations for mid-training and thirty for SFT. A document or
    conversation is a function of (seed, its number); its split is a function of its text alone.

    Raises:
        UserError: the directory holds something that is not a TinyWorld.
        ValueError: fewer than one document.
    """
    if num_documents < 1:
        raise ValueError(f"num_documents must be at least 1, not {num_documents}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(directory.parent / f".{directory.name}.lock"):  # the second of two processes finds it made
        existing = _existing(directory)
        if existing and (existing.seed, existing.num_documents, existing.version) == (seed, num_documents, _version()):
            return existing
        return _write(directory, seed, num_documents)


def _write(directory: Path, seed: int, num_documents: int) -> World:
    making = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    making.chmod(0o755)  # a temporary directory is its owner's alone
    try:
        counts = {
            **_write_base(making / "base", seed, num_documents),
            **_write_conversations(making / "mid", seed, num_documents * 3 // 5, MID),
            **_write_conversations(making / "sft", seed, num_documents * 3 // 10, SFT),
            **_write_questions(making / "questions.jsonl", seed),
        }
        files = {str(path.relative_to(making)): _sha256(path) for path in sorted(making.rglob("*")) if path.is_file()}
        world = World(directory, seed, num_documents, _version(), counts, files)
        manifest = {key: value for key, value in asdict(world).items() if key != "directory"}
        (making / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _put_in_place(making, directory)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return world


def _existing(directory: Path) -> World | None:
    """The undamaged world in `directory`, if there is one."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if not (directory / MANIFEST).is_file():
        raise UserError(f"{directory} holds something that is not a TinyWorld", "name another directory for the data")
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        world = World(directory, **manifest)
        damaged = any(_sha256(directory / name) != digest for name, digest in world.files.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return None if damaged else world


def _put_in_place(making: Path, directory: Path) -> None:
    """Rename, after moving an outdated or damaged world out of the way."""
    for path in making.rglob("*"):
        if path.is_file():
            flush(path)
    if directory.exists():
        outdated = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
        os.rename(directory, outdated)
        shutil.rmtree(outdated, ignore_errors=True)
    os.rename(making, directory)


def _write_base(folder: Path, seed: int, num_documents: int) -> dict[str, int]:
    folder.mkdir()
    texts = (document(document_rng(seed, "base", index)) for index in range(num_documents))
    split: dict[str, list[str]] = {"train": [], "val": []}
    counts: Counter[str] = Counter()
    for text in texts:
        split["val" if is_validation(text) else "train"].append(text)
    for name, documents in split.items():
        remaining = iter(documents)
        for number, shard in enumerate(iter(lambda: list(islice(remaining, DOCUMENTS_PER_SHARD)), [])):  # noqa: B023
            _write_parquet(folder / f"{name}_{number:03d}.parquet", shard)
        counts[f"base/{name} documents"] = len(documents)
        counts[f"base/{name} characters"] = sum(map(len, documents))
    return dict(counts)


def _write_parquet(path: Path, documents: list[str]) -> None:
    table = pyarrow.table({"text": pyarrow.array(documents, pyarrow.string())})
    pyarrow.parquet.write_table(table, path, compression="zstd", row_group_size=DOCUMENTS_PER_ROW_GROUP)


def _write_conversations(folder: Path, seed: int, number: int, mixture: Mapping[str, float]) -> dict[str, int]:
    folder.mkdir()
    counts: Counter[str] = Counter()
    with (
        open(folder / "train.jsonl", "w", encoding="utf-8") as train,
        open(folder / "val.jsonl", "w", encoding="utf-8") as val,
    ):
        for line in _conversation_lines(folder.name, seed, number, mixture):
            # By content, so that no conversation of one split is in the other one of any stage.
            in_val = held_out("conversation", line, one_in=VAL_CONVERSATIONS_ONE_IN)
            (val if in_val else train).write(line + "\n")
            counts[f"{folder.name}/{'val' if in_val else 'train'} conversations"] += 1
    return dict(counts)


def _conversation_lines(stage: str, seed: int, number: int, mixture: Mapping[str, float]) -> Iterator[str]:
    for index in range(number):
        messages = conversation(document_rng(seed, stage, index), mixture)
        yield json.dumps({"messages": messages}, ensure_ascii=False)


def _write_questions(path: Path, seed: int) -> dict[str, int]:
    suite = [
        Question(
            skill=exercise.skill,
            kind="multiple_choice" if exercise.choices else "exact",
            question=exercise.question,
            choices=exercise.choices or None,
            answer=exercise.answer,
            chance=exercise.chance,
        )
        for exercise in question_suite(seed)
    ]
    path.write_text("".join(json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in suite), "utf-8")
    return {"questions": len(suite)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _version() -> str:
    """Fingerprint of this package's source, so that data of an older generator is never taken for current."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]
