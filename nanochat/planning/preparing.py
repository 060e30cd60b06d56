"""What comes before the first stage of a run: starting, fetching, making data and tokenizer, tokenising."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanochat.config import PUBLIC, TINYWORLD, RunConfig, StageConfig
from nanochat.corpora import CORPORA
from nanochat.data.documents import VALIDATION_ONE_IN, find_documents
from nanochat.errors import UserError
from nanochat.planning.hardware import Hardware
from nanochat.planning.overheads import ENDING_S, STARTING, TOKENISING, TOKENIZER, Cost, overhead_s, tokenising_s

TINYWORLD_S = 4.0  # to make it, once on a machine
TINYWORLD_CHARS = 11_800_000
# Of a token: TinyWorld's with 1,024 of them, and what each doubling of the vocabulary adds: 4.8 of the web with 32,768.
CHARS_PER_TOKEN, MORE_CHARS_PER_TOKEN = 2.5, 0.46
SHARD_SIZE = 1.3  # over that of its tokens: masks, packing plan
CHATS_CHARS = 4_200_000  # of TinyWorld's conversations
TINYWORLD_CHAT_CHARS, CHAT_CHARS = 140, 2000  # of one of them, and of one of others (assumed)
# What --chat public fetches and makes, see nanochat.data.mixtures: SmolTalk is most of both.
PUBLIC_CHAT_BYTES, PUBLIC_CHAT_S = 1_000_000_000, 240.0
DOWNLOAD_BYTES_PER_S = 30e6  # assumed: a good line of a quarter gigabit
FIRST_CHARS = 80_000_000  # of a corpus, the text of its first token shard
PARQUET_RATIO = 2.5  # characters for each byte of a compressed file
CHOOSING_CHARS_PER_S = 150e6  # one core reads so many where only a share of the documents is taken
SPARE_DATA = 1.25  # times what a stage with a deadline is expected to go through
SPARE_TEXT = 1.25  # times the text needed, by the estimate, that is chosen of more


@dataclass(frozen=True)
class There:
    """What a run needs and an earlier one has made or fetched."""

    world: bool = False
    """TinyWorld."""
    conversations: bool = False
    """Those of the public datasets."""
    text_bytes: int = 0
    """Of the shards of a corpus."""
    tokens: bool = False
    """The token shards that it begins with: of a corpus the first, of other text all."""


NOTHING = There()


def preparations(config: RunConfig, hardware: Hardware, there: There = NOTHING) -> tuple[Cost, ...]:
    """What comes before the first stage, and the end."""
    makes_world = uses_world(config) and not there.world
    chats = _chat_chars(config)
    available = _available_chars(config.data) + chats
    tokenizer_chars = 0.0 if config.start_from else min(config.tokenizer.max_chars, available)
    conversations = chats / (TINYWORLD_CHAT_CHARS if config.chat == TINYWORLD else CHAT_CHARS)
    tokenised_s = tokenising_s(_first_text_chars(config) + chats, conversations, hardware.cpu_count)
    seconds = {
        "starting and ending": overhead_s(STARTING, 1, hardware),
        "making TinyWorld": TINYWORLD_S if makes_world else 0.0,
        "conversations": PUBLIC_CHAT_S if _chat_download_bytes(config, there) else 0.0,
        "downloading": _first_download_bytes(config, there) / DOWNLOAD_BYTES_PER_S,
        "choosing from the text": _choosing_s(config, there),
        "training the tokenizer": overhead_s(TOKENIZER, tokenizer_chars, hardware),
        "tokenising": overhead_s(TOKENISING, 0.0 if there.tokens else tokenised_s, hardware),
    }
    return tuple(Cost(what, each) for what, each in seconds.items() if each)


def begins_s(preparing: tuple[Cost, ...], hardware: Hardware) -> float:
    """When the first stage does, on the clock of the run."""
    return max(sum(each.seconds for each in preparing) - ENDING_S[hardware.device_type], 0.0)


def uses_world(config: RunConfig) -> bool:
    """Whether a run needs TinyWorld: its text, its conversations or its questions."""
    return config.data == TINYWORLD or config.chat != PUBLIC or not _chat_stages(config)


def text_share(config: RunConfig, tokens: float) -> float:
    """Of the documents of the user's own text, as many as hold so many tokens, with some to spare; all of other data,
    any beginning of which is a fair sample."""
    if config.data == TINYWORLD or config.data in CORPORA:
        return 1.0
    share = SPARE_TEXT * tokens * chars_per_token(config) / _available_chars(config.data)
    return min(float(f"{share:.2g}"), 1.0) or 1.0  # 0: of what cannot be looked at


def _choosing_s(config: RunConfig, there: There) -> float:
    """To read all of the user's own text for a share of it: for the tokenizer, to train on and to validate on."""
    tokens = []
    if not config.start_from:
        tokens.append(config.tokenizer.max_chars / chars_per_token(config))
    if "base" in config.trained_stages and not there.tokens:
        tokens += [text_tokens(config), 2 * config.base.eval_tokens * VALIDATION_ONE_IN]
    times = sum(text_share(config, each) < 1 for each in tokens)
    return times * _available_chars(config.data) / CHOOSING_CHARS_PER_S if times else 0.0


def download_bytes(config: RunConfig, there: There = NOTHING) -> int:
    """What a run fetches from the hub."""
    return _chat_download_bytes(config, there) + max(text_download_bytes(config) - there.text_bytes, 0)


def shard_bytes(config: RunConfig, there: There = NOTHING) -> int:
    """Of the token shards that a run makes. Where it finds the first, those of what is still to be fetched."""
    bytes_per_token = 2 if config.model.vocab_size <= 1 << 16 else 4
    chars = _text_chars(config) + _chat_chars(config)
    if there.tokens:
        text_bytes = text_download_bytes(config)
        chars = _text_chars(config) * max(1 - there.text_bytes / text_bytes, 0) if text_bytes else 0
    return round(SHARD_SIZE * bytes_per_token * chars / chars_per_token(config))


def corpus_shards(config: RunConfig) -> int:
    """About how many training shards of its corpus a run needs; 0 where its text is not from a hub."""
    corpus = CORPORA.get(config.data)
    makes_tokenizer = not config.start_from
    if corpus is None or not (makes_tokenizer or "base" in config.trained_stages):
        return 0
    tokens = text_tokens(config) if "base" in config.trained_stages else 0
    return corpus.shards_for(tokens, config.tokenizer.max_chars if makes_tokenizer else 0)


def text_download_bytes(config: RunConfig) -> int:
    """Of a corpus, as if nothing were in the cache yet."""
    shards = corpus_shards(config)
    validation = "base" in config.trained_stages
    return (shards + validation) * CORPORA[config.data].shard_bytes if shards else 0


def unique_tokens(config: RunConfig) -> float:
    """About how many tokens the text that --data names has; of what cannot be looked at, any number."""
    return _available_chars(config.data) / chars_per_token(config)


def _chat_download_bytes(config: RunConfig, there: There) -> int:
    wanted = config.chat == PUBLIC and _chat_stages(config) and not there.conversations
    return PUBLIC_CHAT_BYTES if wanted else 0


def _chat_stages(config: RunConfig) -> list[str]:
    return [stage for stage in config.trained_stages if stage != "base"]


def _first_download_bytes(config: RunConfig, there: There) -> float:
    """What is fetched before the first step: the tokenizer's text, or a shard, and the validation shard; of what is
    still to come at all."""
    corpus = CORPORA.get(config.data)
    if corpus is None or not corpus_shards(config):
        return 0.0
    first = (corpus.shards_for(0, 0 if config.start_from else config.tokenizer.max_chars) + 1) * corpus.shard_bytes
    return float(min(first, max(text_download_bytes(config) - there.text_bytes, 0)))


def _first_text_chars(config: RunConfig) -> float:
    """Of the base stage's text, what is tokenised before the first step: of a corpus little, as the rest arrives
    meanwhile."""
    chars = _text_chars(config)
    return chars if config.data not in CORPORA else min(chars, FIRST_CHARS)


def _text_chars(config: RunConfig) -> float:
    """Of the base stage's text that is tokenised: what the stage goes through, or all there is."""
    if "base" not in config.trained_stages:
        return 0.0
    available, wanted = _available_chars(config.data), text_tokens(config) * chars_per_token(config)
    if config.data in CORPORA or not np.isfinite(available):
        return min(wanted, available)
    return available * text_share(config, text_tokens(config))


def _chat_chars(config: RunConfig) -> float:
    """Of the conversations that are tokenised: TinyWorld's whole, of others what mid and SFT go through."""
    stages = _chat_stages(config)
    if config.chat == TINYWORLD:
        return CHATS_CHARS if stages else 0
    tokens = sum(stage_tokens(config.stage(stage)) for stage in stages)
    there = np.inf if config.chat == PUBLIC else len(stages) * _available_chars(config.chat)
    return float(min(tokens * chars_per_token(config), there))


def chars_per_token(config: RunConfig) -> float:
    """About how many characters of English a token of its vocabulary stands for."""
    return max(CHARS_PER_TOKEN + MORE_CHARS_PER_TOKEN * np.log2(config.model.vocab_size / 1024), 1.0)


def text_tokens(config: RunConfig) -> int:
    """Of the base stage, to prepare."""
    return config.train_tokens or stage_tokens(config.base)


def stage_tokens(stage: StageConfig) -> int:
    """What a stage is given to go through. Should a deadline leave time for more, it begins again."""
    return min(stage.num_iterations, math.ceil(SPARE_DATA * stage.horizon)) * stage.total_batch_size


def _available_chars(data: str) -> float:
    """Of the text that --data names, by the sizes of its files; of what cannot be looked at, any number."""
    if data == TINYWORLD:
        return TINYWORLD_CHARS
    if corpus := CORPORA.get(data):
        return corpus.validation * corpus.shard_chars
    try:
        files = find_documents(Path(data))
    except UserError:
        return np.inf
    return sum(path.stat().st_size * (PARQUET_RATIO if path.suffix == ".parquet" else 1) for path in files)
