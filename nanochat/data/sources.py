"""Where a run's text, conversations and questions come from: the built-in world, a hub, or the user's own files."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.config import PUBLIC, STAGES, TINYWORLD
from nanochat.corpora import CORPORA, Corpus
from nanochat.data.chats import CHAT_STAGES, Chats, open_own, open_public, open_tasks
from nanochat.data.documents import (
    VALIDATION_ONE_IN,
    find_documents,
    is_chosen,
    is_validation,
    read_conversations,
    read_documents,
    validation_one_in,
)
from nanochat.data.hub import CorpusFiles
from nanochat.data.tinyworld import write

WORLD_SEED = 0  # the same world for every run: only the run's own seed changes what is made of it


def cache_directory() -> Path:
    """Where data shared by all runs is kept: NANOCHAT_BASE_DIR, or ~/.cache/nanochat."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat").absolute()


def corpus_directory(corpus: Corpus, cache: Path) -> Path:
    """Where the shards of a corpus are kept."""
    return cache / "corpora" / corpus.name


@dataclass(frozen=True)
class Sources:
    """Files of a run, those of a hub fetched when they are come to.

    Where `base_val` is empty, documents are divided by their content (`documents.is_validation`).
    """

    base_train: Iterable[Path]
    base_val: Iterable[Path]
    chat_train: dict[str, Path]
    """Conversations of the mid and sft stages."""
    chat_val: dict[str, Path]
    questions: Path
    one_in: int = VALIDATION_ONE_IN
    """Of how many documents one is kept for validation, where they are divided."""

    def tokenizer_texts(self, max_chars: int, share: float = 1.0) -> Iterator[str]:
        """Training text for the tokenizer: documents and conversations in turn, never validation text.

        Args:
            share: of the documents, chosen by their content from all of the files.
        """
        read = (text for text in read_documents(self.base_train) if share == 1 or is_chosen(text, share))
        documents = (text for text in read if self.base_val or not is_validation(text, self.one_in))
        left = max_chars
        conversations = (
            _text_of(messages) for path in self.chat_train.values() for messages in read_conversations(path)
        )
        for text in _alternate(documents, conversations):
            if left <= 0:
                return
            left -= len(text)
            yield text


def open_sources(
    data: str,
    cache: Path,
    chat: str = TINYWORLD,
    stages: Sequence[str] = STAGES,
    say: Callable[[str], None] = lambda text: None,
    corpus_shards: int = 1,
) -> Sources:
    """The sources of `--data data` and `--chat chat`; what of them is built in, or fetched, is made in `cache` first
    where it is not there yet.

    Args:
        stages: that will be trained: conversations of the hub are fetched for these alone.
        say: told what is being done, where it takes long, and what is waited for.
        corpus_shards: how many of them will be needed, as far as is known.

    Raises:
        UserError: a path is missing, empty or of no known kind, a line is no conversation, the hub cannot be reached.
    """
    train: Iterable[Path]
    val: Iterable[Path]
    if data == TINYWORLD:
        train, val = (tuple(sorted((_world(cache) / "base").glob(f"{split}_*.parquet"))) for split in ("train", "val"))
    elif corpus := CORPORA.get(data):
        folder, last = corpus_directory(corpus, cache), corpus.validation
        train = CorpusFiles(corpus, folder, range(last), corpus_shards, say)
        val = CorpusFiles(corpus, folder, range(last, last + 1), 1, say)
    else:
        train, val = tuple(find_documents(Path(data))), ()
    chats = _chats(chat, [stage for stage in CHAT_STAGES if stage in stages], cache, say)
    one_in = validation_one_in(train) if isinstance(train, tuple) else VALIDATION_ONE_IN
    return Sources(train, val, chats.train, chats.val, chats.questions, one_in)


def open_questions(
    chat: str, stages: Sequence[str], cache: Path, say: Callable[[str], None] = lambda text: None
) -> Path:
    """The questions that go with `--chat chat`, made in `cache` first where they are not there yet: those of the public
    tasks where the conversations are public, else TinyWorld's. Neither text nor conversations are needed.

    Raises:
        UserError: the hub cannot be reached.
    """
    if chat == PUBLIC and any(stage in CHAT_STAGES for stage in stages):
        return open_tasks(cache, say)
    return _world(cache) / "questions.jsonl"


def _chats(chat: str, stages: Sequence[str], cache: Path, say: Callable[[str], None]) -> Chats:
    if chat == PUBLIC:
        made = {stage: open_public(stage, cache, say) for stage in stages}
    else:
        world = _world(cache)
        made = {stage: (world / stage / "train.jsonl", world / stage / "val.jsonl") for stage in CHAT_STAGES}
        if chat != TINYWORLD:
            made = dict.fromkeys(CHAT_STAGES, open_own(Path(chat), cache))
    train, val = ({stage: files[side] for stage, files in made.items()} for side in range(2))
    return Chats(train, val, open_questions(chat, stages, cache, say))


def world_directory(cache: Path) -> Path:
    """Where TinyWorld is kept, whole or not at all."""
    return cache / "tinyworld" / f"world-{WORLD_SEED}"


def _world(cache: Path) -> Path:
    """TinyWorld, written unless it is there."""
    return write(world_directory(cache), seed=WORLD_SEED).directory


def _text_of(messages: list[dict]) -> str:
    contents = (message["content"] for message in messages)
    return "\n".join(
        content if isinstance(content, str) else "".join(part["text"] for part in content) for content in contents
    )


def _alternate(first: Iterator[str], second: Iterator[str]) -> Iterator[str]:
    """One of each in turn while both last, then the rest of the first: the second is the smaller one."""
    for text in first:
        yield text
        other = next(second, None)
        if other is not None:
            yield other
