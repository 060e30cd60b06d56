"""From text to rows of tokens: the tokenizer stage, and the datasets of the trained stages."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.config import TINYWORLD, RunConfig
from nanochat.data.dataset import TokenDataset
from nanochat.data.growing import Feeder, GrowingDataset
from nanochat.data.hub import CorpusFiles
from nanochat.data.shards import Progress, Spread, build_chat_shards, build_text_shards, stream_text_shards
from nanochat.data.sources import Sources
from nanochat.files import write_json
from nanochat.planning.hardware import usable_cpus
from nanochat.planning.preparing import chars_per_token, stage_tokens, text_share, text_tokens
from nanochat.run import Run
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.bpe import FILE_NAME

_POLL_S = 0.1
_SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class StageData:
    """Rows to train on and rows to validate on."""

    train: TokenDataset | GrowingDataset
    val: TokenDataset


def prepare_tokenizer(run: Run, config: RunConfig, sources: Sources, say: Callable[[str], None]) -> Tokenizer:
    """The run's tokenizer: the one it has, that of the checkpoint it starts from, or one trained now on its text."""
    directory = run.tokenizer_directory
    if (directory / FILE_NAME).exists():
        return Tokenizer.load(directory)
    start = time.perf_counter()
    if config.start_from:
        tokenizer = Tokenizer.load(Path(config.start_tokenizer))
        tokenizer.save(directory)
        return tokenizer
    say("training the tokenizer")
    characters = 0

    def counted() -> Iterator[str]:
        nonlocal characters
        share = text_share(config, config.tokenizer.max_chars / chars_per_token(config))
        for text in sources.tokenizer_texts(config.tokenizer.max_chars, share):
            characters += len(text)
            yield text

    tokenizer = Tokenizer.train(counted(), config.tokenizer.vocab_size)
    tokenizer.save(directory)
    write_json(
        run.result_path("tokenizer"),
        {
            "stage": "tokenizer",
            "vocab_size": tokenizer.vocab_size,
            "characters": characters,
            "seconds": time.perf_counter() - start,
            "fingerprint": tokenizer.fingerprint,
        },
    )
    return tokenizer


def prepare_stage(
    stage: str,
    config: RunConfig,
    sources: Sources,
    tokenizer: Tokenizer,
    cache: Path,
    fault: Callable[[str], None] = lambda point: None,
    spread: Spread | None = None,
    waits: Callable[[], None] = lambda: None,
) -> StageData:
    """Token shards of one stage, made now or found in `cache`.

    Args:
        spread: for much text, see `build_text_shards`.
        fault: told "tokenising" again and again while shards are made; what it raises ends that.
        waits: the same while another process makes shards.

    Raises:
        UserError: a file cannot be read, or there is no text on one side of the split.
    """
    settings = config.stage(stage)
    out, row = cache / "shards", config.model.max_seq_len

    def progress(tokens: int, of: int) -> None:
        fault("tokenising")

    if stage != "base":
        # As below: the built-in conversations whole, of others what is needed.
        most = (stage_tokens(settings), 2 * settings.eval_tokens)
        train, val = (
            build_chat_shards(
                [files[stage]],
                tokenizer,
                out,
                row_tokens=row,
                max_tokens=None if config.chat == TINYWORLD else tokens,
                progress=progress,
                waits=waits,
            )
            for files, tokens in zip((sources.chat_train, sources.chat_val), most, strict=True)
        )
        return StageData(train, val)
    trained = text_tokens(config)
    # The built-in world is small: tokenised whole, so that every mode finds the same shards. Of other data what is
    # needed.
    needed = None if config.data == TINYWORLD else trained
    split = ("all", "all") if sources.base_val else ("train", "val")
    train = build_text_shards(
        sources.base_train,
        tokenizer,
        out,
        split=split[0],
        one_in=sources.one_in,
        row_tokens=row,
        packing=settings.packing,
        max_tokens=needed,
        share=text_share(config, trained),
        progress=progress,
        spread=spread,
        waits=waits,
    )
    return StageData(train, _validation_text(config, sources, tokenizer, cache, split[1], progress, waits))


def prepare_growing(
    run: Run, config: RunConfig, sources: Sources, tokenizer: Tokenizer, cache: Path, say: Callable[[str], None]
) -> tuple[StageData, Feeder]:
    """The base stage's data from a hub as soon as the first shard of it is there, and what brings the others.

    Raises:
        UserError: the first shard, or that for validation, cannot be had.
    """
    assert isinstance(sources.base_train, CorpusFiles)
    feed, row, packing = run.directory / "base" / "feed", config.model.max_seq_len, config.base.packing
    tokens = text_tokens(config)
    feeder = Feeder(
        feed,
        sources.base_train,
        run.tokenizer_directory,
        cache / "shards",
        row_tokens=row,
        packing=packing,
        max_tokens=tokens,
        num_threads=max(usable_cpus() // 2, 1),
    )
    try:
        val = _validation_text(config, sources, tokenizer, cache, "all", lambda tokens, of: None)
        made_from = f"{config.data}, {tokens} tokens, rows of {row} by {packing}, tokenizer {tokenizer.fingerprint}"
        train = GrowingDataset(feed, made_from)
        said = time.monotonic()
        while not train.has(1):
            time.sleep(_POLL_S)
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                say(f"waiting for {train.waiting_for() or 'the first shard'}")
        train.bounds(1)  # what stands against it
    except BaseException:
        feeder.stop()
        raise
    return StageData(train, val), feeder


def prepare_first(config: RunConfig, sources: Sources, tokenizer: Tokenizer, cache: Path) -> None:
    """Of the base stage's data from a hub what `prepare_growing` waits for, and no more. Raises as that does."""
    first = stream_text_shards(
        sources.base_train,
        tokenizer,
        cache / "shards",
        row_tokens=config.model.max_seq_len,
        packing=config.base.packing,
        max_tokens=text_tokens(config),
    )
    next(first, None)
    _validation_text(config, sources, tokenizer, cache, "all", lambda tokens, of: None)


def _validation_text(
    config: RunConfig,
    sources: Sources,
    tokenizer: Tokenizer,
    cache: Path,
    split: str,
    progress: Progress,
    waits: Callable[[], None] = lambda: None,
) -> TokenDataset:
    tokens = 2 * config.base.eval_tokens
    return build_text_shards(
        sources.base_val or sources.base_train,
        tokenizer,
        cache / "shards",
        split=split,
        one_in=sources.one_in,
        row_tokens=config.model.max_seq_len,
        packing=config.base.packing,
        max_tokens=tokens,
        share=text_share(config, tokens * sources.one_in),
        progress=progress,
        waits=waits,
    )
