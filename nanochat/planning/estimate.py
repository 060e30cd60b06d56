"""What a configuration will cost, before anything runs: seconds, bytes of memory, bytes of disk. All are estimates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from nanochat.config import RunConfig, StageConfig
from nanochat.model import ModelConfig, count_parameters, train_flops_per_token
from nanochat.model.attention import blocked_weights
from nanochat.model.loss import CHUNK_TOKENS
from nanochat.planning.correction import EVERYWHERE, Correction
from nanochat.planning.hardware import Hardware, Training
from nanochat.planning.overheads import (
    ANSWERING,
    COMPILING,
    COMPILING_AGAIN,
    EVALUATING,
    SAVING,
    STARTING,
    Cost,
    overhead_s,
)
from nanochat.planning.preparing import NOTHING, There, begins_s, download_bytes, preparations, shard_bytes

# Shares of a GPU's measured matmul peak that a training step reaches, compiled or not; priors until a run has measured
# better. Compiled: 0.68 of a run of depth 14 on an H200 (LOG.md, 2026-11-27); not compiled: assumed.
UTILISATION = {True: 0.68, False: 0.38}
# Of a data sheet's peak that products reach: measured on that H200; GPUs not seen yet may be worse.
SHEET_SHARES, SHEET_SHARE = {"NVIDIA H200 SXM": 0.76}, 0.66
MUON_STEPS = 5
# Of the logarithms of measured over modelled: of all trainings on a machine, of one kind of them (dtype, compiled or
# not), of those of a kind that are alike in depth, width and tokens of a forward pass, and of each measurement.
SPREAD = {"speed": (0.2, 0.15, 0.15, 0.06), "memory": (0.07, 0.07, 0.1, 0.03)}
REACH = 0.7  # of the logarithms of depth, width and tokens
MOST_HEEDED = 60  # trainings of a kind, and of others
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
    beside: tuple[Cost, ...]
    """The steps: compiling, evaluating, answering, saving."""
    memory: Memory
    disk_bytes: int
    """Checkpoints kept, and one while it is written."""

    @property
    def other_s(self) -> float:
        return sum(each.seconds for each in self.beside)

    @property
    def seconds(self) -> float:
        return self.train_s + self.other_s


@dataclass(frozen=True)
class Plan:
    """The cost of a run on given hardware."""

    preparing: tuple[Cost, ...]
    """Starting, making the data and the tokenizer, tokenising; and ending."""
    prepare_disk_bytes: int
    """Token shards, in the cache that runs share; planned for this machine, what of them is not there yet."""
    download_bytes: int
    """Of text from the hub; planned for this machine, what of it is not there yet."""
    stages: tuple[StageEstimate, ...]
    num_workers: int
    speed: str
    """Where the seconds of a step come from, for people."""
    runs_known: int
    """That have told what a run takes besides its steps."""

    @property
    def prepare_s(self) -> float:
        return sum(each.seconds for each in self.preparing)

    @property
    def seconds(self) -> float:
        return self.prepare_s + sum(stage.seconds for stage in self.stages)

    @property
    def memory_bytes(self) -> int:
        return max((stage.memory.total for stage in self.stages), default=0)

    @property
    def cache_bytes(self) -> int:
        """What goes into the cache that runs share."""
        return self.prepare_disk_bytes + self.download_bytes

    @property
    def checkpoints_bytes(self) -> int:
        return sum(stage.disk_bytes for stage in self.stages)

    @property
    def disk_bytes(self) -> int:
        return self.cache_bytes + self.checkpoints_bytes


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
    flops_per_token = train_flops_per_token(model, model.max_seq_len)
    if hardware.device_type == "cuda":
        peak *= 1 if hardware.measured else SHEET_SHARES.get(hardware.name, SHEET_SHARE)
        most = stage.largest_share(model.max_seq_len, num_workers) * model.max_seq_len  # for which the others wait
        return (most * flops_per_token + optimizer_flops(model)) / (peak * UTILISATION[config.compile])
    step = CPU_STEPS[config.compute_dtype, config.compile]  # workers on a CPU share its processors
    rest = tokens * (step.channels * model.depth * model.width + step.vocabulary * model.vocab_size)
    rest += step.weights * tokens * _attention_weights(config) + step.layers * model.depth
    model_flops = tokens * flops_per_token
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
    """Until a process that trains so many rows at a time has compiled."""
    return overhead_s(compiling_part(config, rows, hardware), 1, hardware) if config.compile else 0.0


def compiling_part(config: RunConfig, rows: int, hardware: Hardware) -> str:
    """COMPILING, or COMPILING_AGAIN: what was compiled for an earlier training of this width and as many rows of this
    length at once serves any depth, unless somebody has emptied the compiler's cache."""
    row = config.model.max_seq_len
    asked = (config.compute_dtype, config.model.width, row, rows * row)
    kept = (
        (each.compute_dtype, each.width, each.max_seq_len, each.device_batch_tokens)
        for each in hardware.trainings
        if each.compile
    )
    return COMPILING_AGAIN if asked in kept else COMPILING


def speed_sd(config: RunConfig, stage: StageConfig, hardware: Hardware, num_workers: int = 1) -> float:
    """Of the logarithm of `step_seconds`: 0.04 is four per cent."""
    correction, place = _correction("speed", config, stage.device_batch_size, hardware, num_workers)
    return float(np.sqrt(correction.belief(place, place)[0, 0] + correction.noise**2))


def _correction(
    what: str, config: RunConfig, rows: int, hardware: Hardware, num_workers: int
) -> tuple[Correction, np.ndarray]:
    """What trainings say, those of its kind most, and where among them this one is."""
    alike, others = _known_trainings(config, hardware, num_workers)
    heeded = [*alike[-MOST_HEEDED:], *others[-MOST_HEEDED:]]
    places = [
        (each.compile, each.compute_dtype == "bfloat16", *np.log((each.depth, each.width, each.device_batch_tokens)))
        for each in heeded
    ]
    size = np.log((config.model.depth, config.model.width, rows * config.model.max_seq_len))
    place = np.array([(config.compile, config.compute_dtype == "bfloat16", *size)], dtype=float)
    of_machine, of_kind, of_size, noise = SPREAD[what]
    one_kind = (0.01, 0.01)  # other kinds are 1 apart
    parts: list[tuple[float, float | Sequence[float]]] = [
        (of_machine, EVERYWHERE),
        (of_kind, (*one_kind, EVERYWHERE, EVERYWHERE, EVERYWHERE)),
        (of_size, (*one_kind, REACH, REACH, REACH)),
    ]
    errors = np.log([getattr(each, what) for each in heeded])
    return Correction(np.array(places, dtype=float).reshape(-1, 5), errors, parts, noise=noise), place


def _known_trainings(config: RunConfig, hardware: Hardware, num_workers: int) -> tuple[list[Training], list[Training]]:
    """Those that computed as this one will, with as many workers if there are such; and those that computed
    otherwise."""
    kind = (config.compute_dtype, config.compile)
    of_kind = [each for each in hardware.trainings if (each.compute_dtype, each.compile) == kind]
    others = [each for each in hardware.trainings if (each.compute_dtype, each.compile) != kind]
    return [each for each in of_kind if each.num_workers == num_workers] or of_kind, others


def checkpoint_bytes(model: ModelConfig) -> int:
    """Weights, AdamW's two moments and Muon's momentum, all fp32."""
    count = count_parameters(model)
    return 4 * (count.total + 2 * (count.total - count.matrices) + count.matrices)


def estimate(
    config: RunConfig,
    hardware: Hardware,
    num_workers: int = 1,
    there: There = NOTHING,
    spent_s: float | None = None,
) -> Plan:
    """The plan of a resolved configuration.

    Args:
        there: what of its data need not be made or fetched.
        spent_s: on the run's clock, when its first stage begins; None: as long as preparing is estimated to take.
    """
    preparing = preparations(config, hardware, there)
    stages: list[StageEstimate] = []
    since_s = begins_s(preparing, hardware) if spent_s is None else spent_s
    for name in config.trained_stages:
        stages.append(stage_estimate(config, name, hardware, num_workers, since_s, first=not stages))
        since_s += stages[-1].seconds
    return Plan(
        preparing,
        shard_bytes(config, there),
        download_bytes(config, there),
        tuple(stages),
        num_workers,
        _speed(config, hardware, num_workers),
        runs_known=sum(each.part == STARTING for each in hardware.overheads),
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
    trained, others = map(len, _known_trainings(config, hardware, num_workers))
    known = f"trainings known here: {trained}" if trained else "assumed: nothing was trained here yet"
    if others and not trained:
        known = f"trainings known here: {others}, of another dtype or otherwise compiled"
    return f"{share:.0%} of the {peak / 1e12:.3g} TFLOP/s of {dtype} products, ± {sd:.0%} ({known})"


def evaluations(iterations: int, every: int) -> int:
    """One at the start of a stage, one each so many iterations, and one at its end."""
    return 1 + -(-iterations // every)


def stage_estimate(
    config: RunConfig, name: str, hardware: Hardware, num_workers: int, since_s: float, *, first: bool
) -> StageEstimate:
    """Of one stage.

    Args:
        since_s: when it begins on the run's clock.
        first: whether it is the one that compiles.
    """
    stage = config.stage(name)
    per_step = step_seconds(config, stage, hardware, num_workers)
    an_evaluation = overhead_s(EVALUATING, stage.eval_tokens / stage.total_batch_size * per_step, hardware)
    answering = overhead_s(ANSWERING, stage.eval_questions * config.model.depth, hardware)
    compiling = compile_seconds(config, stage.device_batch_size, hardware) if first else 0.0
    saving = overhead_s(SAVING, checkpoint_bytes(config.model), hardware) if config.keep_checkpoints else 0.0
    iterations = stage.num_iterations
    if stage.deadline_s is not None:
        per_step_in_all = per_step + an_evaluation / stage.eval_every
        spare = stage.deadline_s - since_s - compiling - answering - 2 * an_evaluation - saving  # first and last
        iterations = max(min(iterations, int(spare / per_step_in_all)), 0)
    tokens = iterations * stage.total_batch_size
    beside = {
        "compiling": compiling,
        "evaluating": evaluations(iterations, stage.eval_every) * an_evaluation,
        "answering questions": answering,
        "saving": saving,
    }
    saved = min(config.keep_checkpoints, iterations // stage.checkpoint_every + 1) + 1 + config.keep_best_checkpoint
    return StageEstimate(
        stage=name,
        iterations=iterations,
        tokens=tokens,
        flops=float(tokens) * train_flops_per_token(config.model, config.model.max_seq_len),
        train_s=iterations * per_step,
        beside=tuple(Cost(what, seconds) for what, seconds in beside.items() if seconds),
        memory=train_memory(config, stage.device_batch_size, hardware, num_workers),
        disk_bytes=saved * checkpoint_bytes(config.model) if config.keep_checkpoints else 0,
    )
