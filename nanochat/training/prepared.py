"""Whether an earlier run left the token shards that a run will need: their names say which tokenizer they were made
with, which a plan does not know yet, so the run that made them leaves a note under what it was asked for."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from nanochat.config import PUBLIC, TINYWORLD, RunConfig
from nanochat.corpora import CORPORA
from nanochat.data.documents import find_documents
from nanochat.data.growing import GrowingDataset
from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.planning.preparing import stage_tokens, text_tokens
from nanochat.training.prepare import StageData


def tokens_are_there(config: RunConfig, cache: Path) -> bool:
    """Whether all token shards that an earlier run of this data and tokenizer had are still in the cache."""
    try:
        names = json.loads(_note(config, cache).read_text(encoding="utf-8"))
    except (OSError, ValueError, UserError):
        return False
    return isinstance(names, list) and all((cache / "shards" / str(name)).is_dir() for name in names)


def note_tokens(config: RunConfig, cache: Path, data: dict[str, StageData]) -> None:
    """Tell later plans that these are there. A full disk only keeps them from knowing."""
    with suppress(OSError, UserError):
        shards = {shard.name for each in data.values() for shard in _shards(each)}
        write_json(_note(config, cache), sorted(shards))


def made_since(before: set[Path], data: dict[str, StageData]) -> tuple[int, int]:
    """UTF-8 bytes and conversations of the shards that were not there before."""
    size = conversations = 0
    for stage, each in data.items():
        for shard in _shards(each) - before:
            manifest = json.loads((shard / "manifest.json").read_bytes())
            size += manifest["bytes"]
            conversations += manifest["documents"] if stage != "base" else 0
    return size, conversations


def _shards(data: StageData) -> set[Path]:
    """Directories of those that a stage begins with: all, of a corpus that still arrives the first."""
    train = data.train.first if isinstance(data.train, GrowingDataset) else data.train
    return {*train.directories, *data.val.directories}


def _note(config: RunConfig, cache: Path) -> Path:
    """Named by everything that decides which shards a run needs, user's files by their size and time."""
    stages = {}
    for name in config.trained_stages:
        stage, text = config.stage(name), name == "base"
        tokens = text_tokens(config) if text else stage_tokens(stage)
        if (config.data if text else config.chat) == TINYWORLD:
            tokens = 0  # all there are
        stages[name] = [stage.packing if text else "", tokens, stage.eval_tokens]
    asked: dict[str, Any] = {
        "data": _identity(config.data),
        "chat": _identity(config.chat),
        "tokenizer": [config.tokenizer.vocab_size, config.tokenizer.max_chars, config.start_tokenizer],
        "row": config.model.max_seq_len,
        "stages": stages,
    }
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return cache / "prepared" / f"{digest[:32]}.json"


def _identity(data: str) -> Any:
    """Of what --data or --chat names. Raises UserError or OSError where that is gone."""
    if data in (TINYWORLD, PUBLIC) or data in CORPORA:
        return data
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in find_documents(Path(data))]
