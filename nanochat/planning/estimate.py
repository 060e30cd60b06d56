"""What a configuration will cost, before anything runs: seconds, bytes of memory, bytes of disk. All are estimates."""

from dataclasses import dataclass

from nanochat.config import TINYWORLD, RunConfig, StageConfig
from nanochat.model import ModelConfig, count_parameters, train_flops_per_token
from nanochat.planning.hardware import GIB, Hardware

# Shares of the measured matmul peak that a whole training step reaches; priors until a run has measured better.
UTILISATION = {("cuda", True): 0.45, ("cuda", False): 0.25, ("cpu", True): 0.50, ("cpu", False): 0.33}
MUON_STEPS = 5
START_S = {"cpu": 12.0, "cuda": 25.0}  # Ray, worker and imports
COMPILE_S = {"cpu": 15.0, "cuda": 60.0}
TOKENIZER_CHARS_PER_S = 8e6
TOKENISE_CHARS_PER_CPU_S = 4e6
TINYWORLD_S = 6.0
SECONDS_PER_QUESTION = {"cpu": 0.02, "cuda": 0.02}
CHARS_PER_TOKEN = 3.5


@dataclass(frozen=True)
class StageEstimate:
    """What a trained stage will take."""

    stage: str
    iterations: int
    tokens: int
    flops: float
    train_s: float
    other_s: float
    """Compiling, evaluating, saving."""

    @property
    def seconds(self) -> float:
        return self.train_s + self.other_s


@dataclass(frozen=True)
class Plan:
    """The cost of a run on given hardware."""

    prepare_s: float
    """Starting, making the data and the tokenizer, tokenising."""
    stages: tuple[StageEstimate, ...]
    memory_bytes: int
    disk_bytes: int

    @property
    def seconds(self) -> float:
        return self.prepare_s + sum(stage.seconds for stage in self.stages)


def optimizer_flops(model: ModelConfig) -> float:
    """Of one step: Muon's orthogonalisation, whose every product is (long x short) or (short x short) matrices. AdamW's
    few operations a parameter do not count."""
    width = model.width
    square = MUON_STEPS * 6 * width**3
    wide = MUON_STEPS * (4 * 4 * width**3 + 2 * width**3)
    return model.depth * (4 * square + 2 * wide)


def step_seconds(config: RunConfig, stage: StageConfig, hardware: Hardware, num_workers: int = 1) -> float:
    """Seconds of one optimizer step after warm-up."""
    peak = hardware.peak_flops[config.compute_dtype] * UTILISATION[hardware.device_type, config.compile]
    devices = num_workers if hardware.device_type == "cuda" else 1  # CPU workers share the same processors
    model_flops = stage.total_batch_size * train_flops_per_token(config.model, config.model.max_seq_len)
    return (model_flops / devices + optimizer_flops(config.model)) / peak


def train_memory_bytes(model: ModelConfig, device_batch_size: int, compute_dtype: str, device_type: str) -> int:
    """Peak memory of training on one device.

    Weights, gradients and the step's fp32 temporaries, AdamW's two moments, Muon's momentum, and per token what the
    backward pass keeps of each layer (norm input, q, k, v, attention output, MLP hidden before and after the square:
    about 15 values a channel) and of the logits (raw, fp32 and their gradient).
    """
    count, element = count_parameters(model), 2 if compute_dtype == "bfloat16" else 4
    adamw = count.total - count.matrices
    state = 4 * (2 * count.total + 2 * adamw + count.matrices) + 4 * count.matrices
    per_token = model.depth * 15 * model.width * element + model.vocab_size * (8 + element)
    if device_type == "cpu":  # attention keeps its weights of (time x time) a head
        per_token += model.depth * model.num_heads * model.max_seq_len * 2 * element
    runtime = 0.75 * GIB if device_type == "cpu" else 0.5 * GIB
    return round(state + device_batch_size * model.max_seq_len * per_token + runtime)


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
    train_chars = sum(stage.tokens for stage in stages) * CHARS_PER_TOKEN
    widest = max((config.stage(name).device_batch_size for name in config.trained_stages), default=1)
    saved = sum(
        min(config.keep_checkpoints, stage.iterations // config.stage(stage.stage).checkpoint_every + 1)
        + 1  # while it is written
        + config.keep_best_checkpoint
        for stage in stages
    )
    return Plan(
        prepare_s,
        tuple(stages),
        train_memory_bytes(config.model, widest, config.compute_dtype, hardware.device_type),
        round(saved * checkpoint_bytes(config.model) + 3 * train_chars),
    )


def _prepare_seconds(config: RunConfig, hardware: Hardware) -> float:
    """Until the first stage begins."""
    builtin = config.data == TINYWORLD
    chars = min(config.tokenizer.max_chars, 20_000_000 if builtin else config.tokenizer.max_chars)
    stages = [config.stage(name) for name in config.trained_stages]
    train_chars = sum(stage.num_iterations * stage.total_batch_size for stage in stages) * CHARS_PER_TOKEN
    return (
        START_S[hardware.device_type]
        + chars / TOKENIZER_CHARS_PER_S
        + (TINYWORLD_S if builtin else 0.0)
        + train_chars / TOKENISE_CHARS_PER_CPU_S / hardware.cpu_count
    )


def _stage_estimate(
    config: RunConfig, name: str, hardware: Hardware, num_workers: int, since_s: float, *, first: bool
) -> StageEstimate:
    """Args: since_s: when the stage begins on the run's clock."""
    stage, device = config.stage(name), hardware.device_type
    per_step = step_seconds(config, stage, hardware, num_workers)
    evaluating = stage.eval_tokens / stage.total_batch_size * per_step / 2
    answering = stage.eval_questions * SECONDS_PER_QUESTION[device]
    compiling = COMPILE_S[device] if config.compile and first else 0.0
    iterations = stage.num_iterations
    if stage.deadline_s is not None:
        per_step_in_all = per_step + evaluating / stage.eval_every
        spare = stage.deadline_s - since_s - compiling - answering - evaluating
        iterations = max(min(iterations, int(spare / per_step_in_all)), 0)
    tokens = iterations * stage.total_batch_size
    other_s = (iterations // stage.eval_every + 1) * evaluating + answering + compiling
    flops = float(tokens) * train_flops_per_token(config.model, config.model.max_seq_len)
    return StageEstimate(name, iterations, tokens, flops, iterations * per_step, other_s)
