"""From text to rows of tokens: the tokenizer stage, and the datasets of the trained stages."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.config import TINYWORLD, RunConfig
from nanochat.data.dataset import TokenDataset
from nanochat.data.shards import Spread, build_chat_shards, build_text_shards
from nanochat.data.sources import Sources
from nanochat.files import write_json
from nanochat.run import Run
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.bpe import FILE_NAME


@dataclass(frozen=True)
class StageData:
    """Rows to train on and rows to validate on."""

    train: TokenDataset
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
        for text in sources.tokenizer_texts(config.tokenizer.max_chars):
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
) -> StageData:
    """Token shards of one stage, made now or found in `cache`.

    Args:
        spread: for much text, see `build_text_shards`.
        fault: told "tokenising" while shards are made, for tests that break things there.

    Raises:
        UserError: a file cannot be read, or there is no text on one side of the split.
    """
    settings = config.stage(stage)
    out, row = cache / "shards", config.model.max_seq_len

    def progress(tokens: int, of: int) -> None:
        fault("tokenising")

    if stage != "base":
        # As below: the built-in conversations whole, of others what is needed.
        most = (settings.num_iterations * settings.total_batch_size, 2 * settings.eval_tokens)
        train, val = (
            build_chat_shards(
                [files[stage]],
                tokenizer,
                out,
                row_tokens=row,
                max_tokens=None if config.chat == TINYWORLD else tokens,
                progress=progress,
            )
            for files, tokens in zip((sources.chat_train, sources.chat_val), most, strict=True)
        )
        return StageData(train, val)
    # The built-in world is small: tokenised whole, so that every mode finds the same shards. Of other data what is
    # needed.
    trained = config.train_tokens or settings.num_iterations * settings.total_batch_size
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
        progress=progress,
        spread=spread,
    )
    val = build_text_shards(
        sources.base_val or sources.base_train,
        tokenizer,
        out,
        split=split[1],
        one_in=sources.one_in,
        row_tokens=row,
        packing=settings.packing,
        max_tokens=2 * settings.eval_tokens,
        progress=progress,
    )
    return StageData(train, val)
