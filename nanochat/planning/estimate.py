"""What a configuration will cost, before anything runs: seconds, bytes of memory, bytes of disk. All are estimates."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nanochat.config import PUBLIC, TINYWORLD, RunConfig, StageConfig
from nanochat.corpora import CORPORA
from nanochat.model import ModelConfig, count_parameters, train_flops_per_token
from nanochat.model.attention import blocked_weights
from nanochat.model.loss import CHUNK_TOKENS
from nanochat.planning.correction import Correction
from nanochat.planning.hardware import Hardware

# Shares of a GPU's measured matmul peak that a training step reaches, compiled or not; priors until a run has measured
# better. Compiled: 0.68 of a run of depth 14 on an H200 (LOG.md, 2026-11-27); not compiled: assumed.
UTILISATION = {True: 0.68, False: 0.38}
SHEET_SHARE = 0.66  # of a data sheet's peak that products reach: 0.76 on that H200; GPUs not seen yet may be worse
MUON_STEPS = 5
# Imports, measuring, Ray and the worker's model; on a GPU on a machine just started: LOG.md, 2026-11-27.
START_S = {"cpu": 8.0, "cuda": 50.0}
# A first step that compiles, and one that finds all of it kept from an earlier run (on a GPU assumed): LOG.md.
COMPILE_S = {"cpu": (26.0, 3.0), "cuda": (24.0, 3.0)}
TOKENIZER_CHARS_PER_S = 8e6
TOKENISE_CHARS_PER_CPU_S = 4e6
TINYWORLD_S, TINYWORLD_CHARS = 6.0, 20_000_000
SECONDS_PER_QUESTION = {"cpu": 0.02, "cuda": 0.07}  # of a model that does not end its answers: that takes longest
SAVE_BYTES_PER_S = 350e6  # 360 MB/s of 4.3 GB on the disk of that H200's machine
CHARS_PER_TOKEN = 3.5
SHARD_SIZE = 1.3  # over that of its tokens: masks, packing plan
CHATS_CHARS = 6_000_000  # of TinyWorld's conversations
# What --chat public fetches and makes, see nanochat.data.mixtures: SmolTalk is most of both.
PUBLIC_CHAT_BYTES, PUBLIC_CHAT_S = 1_000_000_000, 240.0
DOWNLOAD_BYTES_PER_S = 30e6  # assumed: a good line of a quarter gigabit
FIRST_CHARS = 80_000_000  # of a corpus, the text of its first token shard
PARQUET_RATIO = 2.5  # characters for each byte of a compressed file
# Of the logarithms of measured over modelled; places are logarithms of depth, width and tokens of a forward pass.
SPREAD = {
    "speed": {"common_sd": 0.25, "local_sd": 0.15, "reach": 0.7, "noise": 0.06},
    "memory": {"common_sd": 0.1, "local_sd": 0.1, "reach": 0.7, "noise": 0.03},
}
MOST_HEEDED = 60  # trainings
RUNTIME_BYTES = {"cpu": 580_000_000, "cuda": 300_000_000}  # of a worker, before it has a model; of a GPU's allocator
COMPILER_BYTES = {"cpu": 145_000_000, "cuda": 0}
# fp32 or bfloat16 numbers that training holds at its peak, for each token and channel: of each layer (by dtype, and
# whether compiled), and of one layer alone, in passing. On CPU fitted to 26 trainings: LOG.md, 2026-11-27.
GPU_LAYER_VALUES = {False: 30, True: 19.6}  # by whether compiled (not: assumed); 9 trainings on an H200 within 0.2 %
CPU_LAYER_VALUES = {("float32", False): 27, ("float32", True): 29, ("bfloat16", False): 48, ("bfloat16", True): 31}
PASSING_VALUES = {"cpu": 31, "cuda": 3.9}
CPU_BFLOAT16_MATRIX_BYTES = 6  # for each number of the matrices: their copies, and those that products make


@dataclass(frozen=True)
class CpuStep:
    """What a training step on a CPU takes. All but the products in units of a float32 operation at the matmul peak,
    which says how fast a machine is at the rest too, if less well."""

    products: float
    """Times what the model's and the optimizer's products would take at the peak of their dtype."""
    channels: float
    """For each token, layer and channel."""
    vocabulary: float
    """For each token and token that could be next."""
    weights: float
    """For each attention weight."""
    layers: float
    """For each layer, whatever its size."""


# Fitted to 26 trainings within 13 %: LOG.md, 2026-11-27.
CPU_STEPS = {
    ("float32", True): CpuStep(1.18, 12_900, 3_050, 510, 0),
    ("float32", False): CpuStep(1.28, 16_900, 1_700, 850, 0.9e9),
    ("bfloat16", True): CpuStep(2.30, 4_200, 800, 740, 3.0e9),
    ("bfloat16", False): CpuStep(2.81, 14_600, 560, 1_210, 3.4e9),
}


@dataclass(frozen=True)
class Memory:
    """Peak bytes of training on one device, by what takes them."""

    weights: int
    gradients: int
    """And the fp32 temporaries of an update."""
    optimizer: int
    activations: int
    logits: int
    runtime: int
    """Of the process, its libraries and their workspaces."""
    unexplained: int = 0
    """By how much trainings here differed from the sum of these."""

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class StageEstimate:
    """What a trained stage will take."""

    stage: str
    iterations: int
    tokens: int
    flops: float
    """Of the model; the optimizer's are in the time."""
    train_s: float
    other_s: float
    """Compiling, evaluating, saving."""
    memory: Memory
    disk_bytes: int
    """Checkpoints kept, and one while it is written."""

    @property
    def seconds(self) -> float:
        return self.train_s + self.other_s


@dataclass(frozen=True)
class Plan:
    """The cost of a run on given hardware."""

    prepare_s: float
    """Starting, making the data and the tokenizer, tokenising."""
    prepare_disk_bytes: int
    """Token shards, in the cache that runs share."""
    download_bytes: int
    """Of text from the hub; planned for this machine, what of it is not there yet."""
    stages: tuple[StageEstimate, ...]
    num_workers: int
    speed: str
    """Where the seconds come from, for people."""

    @property
    def seconds(self) -> float:
        return self.prepare_s + sum(stage.seconds for stage in self.stages)

    @property
    def memory_bytes(self) -> int:
        return max((stage.memory.total for stage in self.stages), default=0)

    @property
    def disk_bytes(self) -> int:
        return self.prepare_disk_bytes + self.download_bytes + sum(stage.disk_bytes for stage in self.stages)


def optimizer_flops(model: ModelConfig) -> float:
    """Of one step: Muon's orthogonalisation, whose every product is (long x short) or (short x short) matrices. AdamW's
    few operations a parameter do not count."""
    width = model.width
    square = MUON_STEPS * 6 * width**3
    wide = MUON_STEPS * (4 * 4 * width**3 + 2 * width**3)
    return model.depth * (4 * square + 2 * wide)


def step_seconds(config: RunConfig, stage: StageConfig, hardware: Hardware, num_workers: int = 1) -> float:
    """Seconds of one optimizer step after warm-up, as far as trainings on this hardware have told."""
    rows = stage.device_batch_size
    return modelled_step_seconds(config, stage, hardware, num_workers) / _times(
        "speed", config, rows, hardware, num_workers
    )


def modelled_step_seconds(config: RunConfig, stage: StageConfig, hardware: Hardware, num_workers: int = 1) -> float:
    """The same before anything was measured but the peak."""
    model, tokens = config.model, stage.total_batch_size
    peak = hardware.peak_flops[config.compute_dtype]
    model_flops = tokens * train_flops_per_token(model, model.max_seq_len)
    if hardware.device_type == "cuda":
        peak *= 1 if hardware.measured else SHEET_SHARE
        return (model_flops / num_workers + optimizer_flops(model)) / (peak * UTILISATION[config.compile])
    step = CPU_STEPS[config.compute_dtype, config.compile]  # workers on a CPU share its processors
    rest = tokens * (step.channels * model.depth * model.width + step.vocabulary * model.vocab_size)
    rest += step.weights * tokens * _attention_weights(config) + step.layers * model.depth
    return step.products * (model_flops + optimizer_flops(model)) / peak + rest / hardware.peak_flops["float32"]


def _attention_weights(config: RunConfig) -> float:
    """Of all layers and heads that a CPU computes and keeps, for each token."""
    model, dtype = config.model, getattr(torch, config.compute_dtype)
    of_row = sum(blocked_weights(model.max_seq_len, model.window(layer), dtype) for layer in range(model.depth))
    return model.num_heads * of_row / model.max_seq_len


def train_memory(config: RunConfig, device_batch_size: int, hardware: Hardware, num_workers: int = 1) -> Memory:
    """Peak memory of training on one device, as far as trainings on this hardware have told."""
    modelled = modelled_memory(config, device_batch_size, hardware.device_type)
    times = _times("memory", config, device_batch_size, hardware, num_workers)
    return replace(modelled, unexplained=round((times - 1) * modelled.total))


def modelled_memory(config: RunConfig, device_batch_size: int, device_type: str) -> Memory:
    """The same before anything was measured.

    Per token the backward pass keeps of each layer its norm input, q, k, v, attention output, MLP hidden before and
    after the square, and what else its kernels do not compute again; of the logits a chunk and its gradient exist at a
    time, and the gradient of the head twice.
    """
    model = config.model
    count, element = count_parameters(model), 2 if config.compute_dtype == "bfloat16" else 4
    adamw = count.total - count.matrices
    tokens = device_batch_size * model.max_seq_len
    weights, gradients = 4 * count.total, 4 * count.total
    logits = min(tokens, CHUNK_TOKENS[device_type]) * model.vocab_size * 2 * element + 8 * count.head
    if device_type == "cpu":
        of_layer: float = CPU_LAYER_VALUES[config.compute_dtype, config.compile]
        gradients += 4 * count.matrices
        weights += CPU_BFLOAT16_MATRIX_BYTES * count.matrices if element == 2 else 0
        logits += min(tokens, CHUNK_TOKENS["cpu"]) * model.vocab_size * 2 * element  # kernels there fuse less
    else:
        of_layer = GPU_LAYER_VALUES[config.compile]
        weights += 2 * count.matrices if element == 2 else 0  # copies to multiply with, kept for the backward pass
        logits += 0 if config.compile else min(tokens, CHUNK_TOKENS["cuda"]) * model.vocab_size * 8  # two more, in fp32
    weights_kept = _attention_weights(config) if config.attention == "blocked" else 0.0
    kept = model.width * (model.depth * of_layer + PASSING_VALUES[device_type]) + weights_kept
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=4 * (2 * adamw + count.matrices),
        activations=round(tokens * kept * element),
        logits=logits,
        runtime=RUNTIME_BYTES[device_type] + COMPILER_BYTES[device_type] * config.compile,
    )


def _times(what: str, config: RunConfig, rows: int, hardware: Hardware, num_workers: int) -> float:
    """How many times the modelled speed or memory is to be expected."""
    correction, place = _correction(what, config, rows, hardware, num_workers)
    return float(np.exp(correction.mean(place)[0]))


def compile_seconds(config: RunConfig, rows: int, hardware: Hardware) -> float:
    """Until a process that trains so many rows at a time has compiled. What was compiled for an earlier training of
    this width and as many tokens at once serves any depth, unless somebody has emptied the compiler's cache."""
    if not config.compile:
        return 0.0
    cold_s, warm_s = COMPILE_S[hardware.device_type]
    asked = (config.compute_dtype, config.model.width, rows * config.model.max_seq_len)
    kept = ((each.compute_dtype, each.width, each.device_batch_tokens) for each in hardware.trainings if each.compile)
    return warm_s if asked in kept else cold_s


def speed_sd(config: RunConfig, stage: StageConfig, hardware: Hardware, num_workers: int = 1) -> float:
    """Of the logarithm of `step_seconds`: 0.04 is four per cent."""
    correction, place = _correction("speed", config, stage.device_batch_size, hardware, num_workers)
    return float(np.sqrt(correction.belief(place, place)[0, 0] + correction.noise**2))


def _correction(
    what: str, config: RunConfig, rows: int, hardware: Hardware, num_workers: int
) -> tuple[Correction, np.ndarray]:
    """What trainings of this kind say, and where among them this one is."""
    kind = (config.compute_dtype, config.compile)
    of_kind = [each for each in hardware.trainings if (each.compute_dtype, each.compile) == kind]
    alike = [each for each in of_kind if each.num_workers == num_workers] or of_kind
    alike = alike[-MOST_HEEDED:]
    places = np.log([(each.depth, each.width, each.device_batch_tokens) for each in alike]).reshape(-1, 3)
    errors = np.log([getattr(each, what) for each in alike])
    place = np.log([[config.model.depth, config.model.width, rows * config.model.max_seq_len]])
    return Correction(places, errors, **SPREAD[what]), place


def checkpoint_bytes(model: ModelConfig) -> int:
    """Weights, AdamW's two moments and Muon's momentum, all fp32."""
    count = count_parameters(model)
    return 4 * (count.total + 2 * (count.total - count.matrices) + count.matrices)


def estimate(config: RunConfig, hardware: Hardware, num_workers: int = 1) -> Plan:
    """The plan of a resolved configuration."""
    prepare_s = _prepare_seconds(config, hardware)
    stages: list[StageEstimate] = []
    since_s = prepare_s
    for name in config.trained_stages:
        stages.append(_stage_estimate(config, name, hardware, num_workers, since_s, first=not stages))
        since_s += stages[-1].seconds
    return Plan(
        prepare_s,
        _shard_bytes(config),
        _chat_download_bytes(config) + text_download_bytes(config),
        tuple(stages),
        num_workers,
        _speed(config, hardware, num_workers),
    )


def _speed(config: RunConfig, hardware: Hardware, num_workers: int) -> str:
    """Where the seconds of a step come from."""
    if not config.trained_stages:
        return ""
    stage = config.stage(config.trained_stages[0])
    dtype, peak = config.compute_dtype, hardware.peak_flops[config.compute_dtype]
    devices = num_workers if hardware.device_type == "cuda" else 1
    flops = stage.total_batch_size * train_flops_per_token(config.model, config.model.max_seq_len) / devices
    share = flops / step_seconds(config, stage, hardware, num_workers) / peak
    sd = speed_sd(config, stage, hardware, num_workers)
    trained = len(_correction("speed", config, stage.device_batch_size, hardware, num_workers)[0].places)
    known = f"trainings known here: {trained}" if trained else "assumed: nothing was trained here yet"
    return f"{share:.0%} of the {peak / 1e12:.3g} TFLOP/s of {dtype} products, ± {sd:.0%} ({known})"


def _prepare_seconds(config: RunConfig, hardware: Hardware) -> float:
    """Until the first stage begins."""
    return (
        START_S[hardware.device_type]
        + min(config.tokenizer.max_chars, _available_chars(config.data)) / TOKENIZER_CHARS_PER_S
        + (TINYWORLD_S if config.data == TINYWORLD else 0.0)
        + (PUBLIC_CHAT_S if _chat_download_bytes(config) else 0.0)
        + _first_chars(config) / TOKENISE_CHARS_PER_CPU_S / hardware.cpu_count
        + _first_download_bytes(config) / DOWNLOAD_BYTES_PER_S
    )


def _chat_download_bytes(config: RunConfig) -> int:
    """As if nothing were in the cache yet."""
    return PUBLIC_CHAT_BYTES if config.chat == PUBLIC and {"mid", "sft"} & set(config.trained_stages) else 0


def _first_chars(config: RunConfig) -> float:
    """Characters that are tokenised before the first step: of a corpus little, as the rest arrives meanwhile."""
    chars = _prepared_chars(config)
    return chars if config.data not in CORPORA else min(chars, _chat_chars(config) + FIRST_CHARS)


def _first_download_bytes(config: RunConfig) -> float:
    """What is fetched before the first step: the tokenizer's text, or a shard, and the validation shard."""
    corpus = CORPORA.get(config.data)
    if corpus is None or not corpus_shards(config):
        return 0.0
    return (corpus.shards_for(0, 0 if config.start_from else config.tokenizer.max_chars) + 1) * corpus.shard_bytes


def _prepared_chars(config: RunConfig) -> float:
    """Characters that are tokenised: what the base stage goes through, or all there is, and the conversations."""
    chats = _chat_chars(config)
    if "base" not in config.trained_stages:
        return chats
    wanted = _text_tokens(config) * CHARS_PER_TOKEN
    available = _available_chars(config.data)
    return chats + (available if config.data == TINYWORLD else min(wanted, available))  # the world is tokenised whole


def _chat_chars(config: RunConfig) -> float:
    """Of the conversations that are tokenised: TinyWorld's whole, of others what mid and SFT go through."""
    stages = [stage for stage in config.trained_stages if stage != "base"]
    if config.chat == TINYWORLD:
        return CHATS_CHARS if stages else 0
    tokens = sum(config.stage(stage).num_iterations * config.stage(stage).total_batch_size for stage in stages)
    there = np.inf if config.chat == PUBLIC else len(stages) * _available_chars(config.chat)
    return float(min(tokens * CHARS_PER_TOKEN, there))


def _text_tokens(config: RunConfig) -> int:
    """What the base stage goes through."""
    return config.train_tokens or config.base.num_iterations * config.base.total_batch_size


def corpus_shards(config: RunConfig) -> int:
    """About how many training shards of its corpus a run needs; 0 where its text is not from a hub."""
    corpus = CORPORA.get(config.data)
    makes_tokenizer = not config.start_from
    if corpus is None or not (makes_tokenizer or "base" in config.trained_stages):
        return 0
    tokens = _text_tokens(config) if "base" in config.trained_stages else 0
    return corpus.shards_for(tokens, config.tokenizer.max_chars if makes_tokenizer else 0)


def text_download_bytes(config: RunConfig) -> int:
    """Of a corpus, as if nothing were in the cache yet."""
    shards = corpus_shards(config)
    validation = "base" in config.trained_stages
    return (shards + validation) * CORPORA[config.data].shard_bytes if shards else 0


def _shard_bytes(config: RunConfig) -> int:
    bytes_per_token = 2 if config.model.vocab_size <= 1 << 16 else 4
    return round(SHARD_SIZE * bytes_per_token * _prepared_chars(config) / CHARS_PER_TOKEN)


def _available_chars(data: str) -> float:
    """Of the text that --data names, by the sizes of its files; of what cannot be looked at, any number."""
    if data == TINYWORLD:
        return TINYWORLD_CHARS
    if corpus := CORPORA.get(data):
        return corpus.validation * corpus.shard_chars
    files = [Path(data)] if Path(data).is_file() else [path for path in Path(data).rglob("*") if path.is_file()]
    return sum(path.stat().st_size * (PARQUET_RATIO if path.suffix == ".parquet" else 1) for path in files) or np.inf


def _stage_estimate(
    config: RunConfig, name: str, hardware: Hardware, num_workers: int, since_s: float, *, first: bool
) -> StageEstimate:
    """Args: since_s: when the stage begins on the run's clock."""
    stage, device = config.stage(name), hardware.device_type
    per_step = step_seconds(config, stage, hardware, num_workers)
    evaluating = stage.eval_tokens / stage.total_batch_size * per_step / 2
    answering = stage.eval_questions * SECONDS_PER_QUESTION[device]
    compiling = compile_seconds(config, stage.device_batch_size, hardware) if first else 0.0
    saving = checkpoint_bytes(config.model) / SAVE_BYTES_PER_S if config.keep_checkpoints else 0.0  # the last one
    iterations = stage.num_iterations
    if stage.deadline_s is not None:
        per_step_in_all = per_step + evaluating / stage.eval_every
        spare = stage.deadline_s - since_s - compiling - answering - evaluating - saving
        iterations = max(min(iterations, int(spare / per_step_in_all)), 0)
    tokens = iterations * stage.total_batch_size
    other_s = (iterations // stage.eval_every + 1) * evaluating + answering + compiling + saving
    flops = float(tokens) * train_flops_per_token(config.model, config.model.max_seq_len)
    memory = train_memory(config, stage.device_batch_size, hardware, num_workers)
    saved = min(config.keep_checkpoints, iterations // stage.checkpoint_every + 1) + 1 + config.keep_best_checkpoint
    disk_bytes = saved * checkpoint_bytes(config.model) if config.keep_checkpoints else 0
    return StageEstimate(name, iterations, tokens, flops, iterations * per_step, other_s, memory, disk_bytes)
