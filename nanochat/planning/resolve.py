"""From what the user asked for to a complete configuration, with the reason for every automatic choice."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from nanochat.config import (
    STAGES,
    TINYWORLD,
    RunConfig,
    StageConfig,
    TokenizerConfig,
    check,
    is_set,
    override,
    usual_data,
)
from nanochat.errors import UserError
from nanochat.model import ModelConfig
from nanochat.optim.scaling import optimal_batch_tokens, optimal_tokens
from nanochat.optim.schedule import Schedule
from nanochat.planning.deadlines import training_seconds, with_deadlines
from nanochat.planning.estimate import (
    compile_seconds,
    modelled_memory,
    modelled_step_seconds,
    step_seconds,
)
from nanochat.planning.hardware import GIB, Hardware, choose_dtype
from nanochat.planning.kernels import cannot_attend, choose_attention
from nanochat.planning.memory import MemoryRecord
from nanochat.planning.modes import CPU_BATCHES, CPU_SIZES, EVAL_TOKENS, GPU_BATCH_TOKENS, GPU_SIZES, MODES, Size
from nanochat.planning.preparing import NOTHING, There
from nanochat.planning.rows import choose_rows

FLAGS = {"start_from": "from", "stages": "stage", "assignments": "set"}  # whose names are not those of the fields
SAVE_EVERY_S = 600.0  # at most, as planned; README.md says what saves take
MOST_HOURS = 100_000  # eleven years


@dataclass(frozen=True)
class Request:
    """What the user asked for. None means: choose for me."""

    mode: str = "demo"
    data: str = TINYWORLD
    stages: tuple[str, ...] = STAGES
    start_from: str = ""
    architecture: str = "default"
    seed: int = 0
    depth: int | None = None
    max_seq_len: int | None = None
    device_batch_size: int | None = None
    total_batch_size: int | None = None
    num_iterations: int | None = None
    lr_multiplier: float | None = None
    compile: str = "auto"
    hours: float | None = None
    num_workers: int = 1
    storage: str = ""
    chat: str = TINYWORLD
    assignments: tuple[str, ...] = ()
    """`key=value` texts of --set, applied last."""

    def differences(self, other: "Request") -> list[str]:
        """What another request asks for differently. The number of workers may change from one start to the next."""
        names = [field.name for field in fields(self) if field.name != "num_workers"]
        return [
            f"--{FLAGS.get(name, name.replace('_', '-'))} {getattr(self, name)!r} -> {getattr(other, name)!r}"
            for name in names
            if getattr(self, name) != getattr(other, name)
        ]


class Say(Protocol):
    """Told why something is what it is, and the keys of --set that would say otherwise, if any."""

    def __call__(self, reason: str, *keys: str) -> None: ...


@dataclass(frozen=True)
class Resolved:
    """A configuration and why it is what it is, one sentence a choice."""

    config: RunConfig
    reasons: tuple[str, ...]


def resolve(
    request: Request,
    hardware: Hardware,
    *,
    compiler: str | None,
    start_model: ModelConfig | None = None,
    memory: MemoryRecord | None = None,
    spent_s: float | None = None,
    attention: str | None = None,
    cache: Path | None = None,
    there: Callable[[RunConfig], There] = lambda config: NOTHING,
    train_s: float | None = None,
) -> Resolved:
    """The configuration of a request on some hardware.

    Args:
        compiler: path of a C++ compiler, or None where there is none (a GPU needs none).
        start_model: architecture of the checkpoint the run starts from.
        memory: what earlier runs found to fit.
        attention: training backend; None: chosen here, on a GPU by a measurement.
        cache: directory where measurements are kept; None: nowhere.
        spent_s: of the request's hours, when its first stage begins; None: as long as preparing is estimated to take.
        there: what a run of a configuration needs and finds.
        train_s: how long there will be for training, where neither hours nor iterations say so.

    Raises:
        UserError: the request cannot work; every problem is listed.
    """
    if request.hours is not None and not 0 < request.hours <= MOST_HOURS:
        raise UserError(
            f"--hours must be positive and at most {MOST_HOURS:,}, not {request.hours:g}",
            "leave it out for the mode's iterations",
        )
    if request.hours is not None and request.num_iterations is not None:
        raise UserError("--hours and --num-iterations both say when to end", "give one of them")
    if request.mode not in MODES:
        raise UserError(f"there is no mode {request.mode!r}", f"choose --mode {', '.join(MODES)}")
    reasons: list[str] = []

    def say(reason: str, *keys: str) -> None:
        """Note why something is what it is, unless --set names all of the keys that it is about."""
        if not keys or not all(is_set(key, request.assignments) for key in keys):
            reasons.append(reason)

    size = (CPU_SIZES if hardware.device_type == "cpu" else GPU_SIZES)[request.mode]
    if hardware.device_type == "cuda" and request.data == usual_data("cuda") and not request.start_from:
        say(f"data {request.data}: text of the web, what a GPU trains on unless --data names other")
    model = _model(request, size, hardware, start_model, say)
    dtype, why = choose_dtype(hardware)
    say(f"compute dtype {dtype}: {why}", "compute_dtype")
    iterations = _iterations(request, model, say)
    stage = StageConfig(1, model.max_seq_len, 1, Schedule())
    unsized = RunConfig(
        mode=request.mode,
        data=request.data,
        chat=request.chat,
        seed=request.seed,
        stages=request.stages,
        start_from=request.start_from,
        model=model,
        tokenizer=TokenizerConfig(model.vocab_size, size.tokenizer_chars),
        base=stage,
        mid=stage,
        sft=stage,
        compute_dtype=dtype,
        compile=False,  # until that is chosen below, as is attention
        attention=attention or ("blocked" if hardware.device_type == "cpu" else "sdpa"),
    )
    config = override(unsized, request.assignments)  # what sizes depend on; stages once more at the end
    check(replace(config, stages=()))

    def staged(config: RunConfig, say: Say) -> RunConfig:
        batch = _total_batch(request, size, config, hardware, say)
        rows = request.device_batch_size
        if rows is None:
            smallest = _smallest_batch(config, batch, request)
            rows, why = choose_rows(config, smallest, size, hardware, request.num_workers, memory)
            say(f"device_batch_size {rows}: {why}", *_of_stages(config, "device_batch_size"))
        config = _with_stages(config, iterations, batch, rows, lr, on_cpu=hardware.device_type == "cpu")
        return _saved_often(config, hardware, request.num_workers)

    lr = request.lr_multiplier or size.lr_multiplier
    compiled = _compile(request, hardware, compiler, say)
    if compiled is None:
        compiling = staged(replace(config, compile=True), lambda reason, *keys: None)
        as_asked = override(compiling, request.assignments)
        if is_set("compile", request.assignments):
            compiled = as_asked.compile
        else:
            if request.hours is not None:
                cap_s, workers = 3600 * request.hours, request.num_workers
                train_s = training_seconds(as_asked, cap_s, hardware, workers, spent_s, there(as_asked))
            compiled = _repays(as_asked, train_s, hardware, request.num_workers, say)
    config = staged(replace(config, compile=compiled), say)
    if request.lr_multiplier is None and lr != 1:
        why = "the scaling rules ask for too little at batches this small"
        say(f"lr_multiplier {lr:g}: {why}", *_of_stages(config, "lr_multiplier"))
    if request.hours is not None:
        cap_s, workers = 3600 * request.hours, request.num_workers
        config = with_deadlines(config, cap_s, hardware, workers, spent_s, there(config))
        say(f"iterations: by the clock; {request.hours:g} hours are divided among the stages as the mode's are")
    config = override(config, request.assignments)
    check(config, request.num_workers)  # before anything is measured for it
    if attention is None and not is_set("attention", request.assignments):
        trained = config.trained_stages
        rows = config.stage(trained[0]).device_batch_size if trained else 1
        attention, why = choose_attention(hardware, config.model, config.compute_dtype, rows, cache)
        config = replace(config, attention=attention)
        say(f"attention {attention}: {why}")
    elif reason := cannot_attend(hardware, config.attention, config.compute_dtype):
        raise UserError(f"attention {config.attention} {reason}", "leave --set attention=… out: the fastest is chosen")
    if config.fp8 and hardware.device_type != "cuda":
        raise UserError("fp8=true needs a GPU of the Ada, Hopper or a later generation", "leave --set fp8=true out")
    _check_memory(config, hardware)
    return Resolved(config, tuple(reasons))


def _model(
    request: Request, size: Size, hardware: Hardware, start_model: ModelConfig | None, say: Say
) -> ModelConfig:
    if start_model is not None:
        if request.depth not in (None, start_model.depth):
            raise UserError(
                f"--depth {request.depth} differs from the depth {start_model.depth} of --from {request.start_from}",
                "leave --depth out",
            )
        say(f"depth {start_model.depth}: that of {request.start_from}")
        return replace(start_model, max_seq_len=request.max_seq_len or start_model.max_seq_len)
    problems = [
        f"--{name} must be at least {least}, not {value}"
        for name, value, least in (("depth", request.depth, 1), ("max-seq-len", request.max_seq_len, 16))
        if value is not None and value < least
    ]
    if problems:
        raise UserError("; ".join(problems), "leave the flag out to have it chosen")
    depth = request.depth or size.depth
    seq_len = request.max_seq_len or size.max_seq_len
    if request.depth is None:
        where = "CPU" if hardware.device_type == "cpu" else "GPU"
        say(f"depth {depth}: the size of mode {request.mode} on a {where}", "model.depth")
    return ModelConfig.from_depth(depth, size.vocab_size, seq_len, classic=request.architecture == "classic")


def _iterations(request: Request, model: ModelConfig, say: Say) -> dict[str, int]:
    mode = MODES[request.mode]
    base = mode.base_iterations
    if base is None:
        tokens = optimal_tokens(model)
        batch = request.total_batch_size or optimal_batch_tokens(tokens)
        base = max(round(tokens / batch), 1)
        if request.num_iterations is None:
            say(
                f"base: {base:,} iterations of {batch:,} tokens: {tokens / 1e9:.2f}B tokens, "
                "10.5 for each parameter of matrices and head",
                "base.num_iterations",
            )
    iterations = {"base": base, "mid": mode.mid_iterations, "sft": mode.sft_iterations}
    if request.num_iterations is not None:
        chosen = [stage for stage in request.stages if stage in iterations]
        if request.num_iterations < 1:
            raise UserError(
                f"--num-iterations must be at least 1, not {request.num_iterations}", "leave it out for the mode's own"
            )
        if len(chosen) != 1:
            raise UserError(
                "--num-iterations is the number of one stage, and this run trains " + (" and ".join(chosen) or "none"),
                "choose the stage with --stage, or write --set base.num_iterations=…",
            )
        iterations[chosen[0]] = request.num_iterations
        say(f"{chosen[0]}: {request.num_iterations:,} iterations, as asked for", f"{chosen[0]}.num_iterations")
    return iterations


def _of_stages(config: RunConfig, field: str) -> list[str]:
    """The keys of --set that name this field of every trained stage."""
    return [f"{stage}.{field}" for stage in config.trained_stages]


def _smallest_batch(config: RunConfig, batch: int, request: Request) -> int:
    """Of the trained stages, of which --set may have named others than `batch` for some."""
    asked, names = request.assignments, zip(config.trained_stages, _of_stages(config, "total_batch_size"), strict=True)
    batches = [config.stage(stage).total_batch_size if is_set(key, asked) else batch for stage, key in names]
    return min(batches, default=batch)


def _compile(
    request: Request, hardware: Hardware, compiler: str | None, say: Say
) -> bool | None:
    """Whether to compile; None: if it repays."""
    if request.compile == "off":
        say("torch.compile off, as asked for", "compile")
        return False
    if hardware.device_type == "cpu" and compiler is None:
        if request.compile == "on":
            raise UserError(
                "--compile on needs a C++ compiler and none was found", "install g++, or use --compile auto"
            )
        why = "there is no C++ compiler here (g++ would make training about 1.5 times as fast)"
        say(f"torch.compile off: {why}", "compile")
        return False
    if request.compile == "on":
        say("torch.compile on, as asked for", "compile")
        return True
    return None


def _repays(
    config: RunConfig, train_s: float | None, hardware: Hardware, num_workers: int, say: Say
) -> bool:
    """Whether compiling takes less time than training saves by it, of the seconds that there are to train, or of those
    that the iterations take."""
    stages = [config.stage(name) for name in config.trained_stages]
    if not stages:
        return False
    plain = modelled_step_seconds(replace(config, compile=False), stages[0], hardware, num_workers)
    saved = 1 - modelled_step_seconds(config, stages[0], hardware, num_workers) / plain
    if train_s is None:
        compiled_s = sum(stage.num_iterations * step_seconds(config, stage, hardware, num_workers) for stage in stages)
        plain_s = compiled_s / (1 - saved)
    else:
        plain_s = max(train_s, 0.0)
    takes_s = compile_seconds(config, stages[0].device_batch_size, hardware)
    worth = saved * plain_s > takes_s
    say(
        f"torch.compile {'on' if worth else 'off'}: it takes about {takes_s:.0f} s and saves about "
        f"{max(saved, 0):.0%} of the {plain_s:,.0f} s of training without it"
    )
    return worth


def _total_batch(request: Request, size: Size, config: RunConfig, hardware: Hardware, say: Say) -> int:
    if request.total_batch_size is not None:
        return request.total_batch_size
    mode, keys = MODES[request.mode], _of_stages(config, "total_batch_size")
    if mode.base_iterations is None:
        return optimal_batch_tokens(optimal_tokens(config.model))
    if size.target_s is None:
        say(f"total_batch_size {GPU_BATCH_TOKENS:,} tokens: what the guide's iteration counts are of", *keys)
        return GPU_BATCH_TOKENS
    row = config.model.max_seq_len
    steps = mode.base_iterations + mode.mid_iterations + mode.sft_iterations
    choices = sorted({max(tokens // row, 1) * row for tokens in CPU_BATCHES})
    affordable = [
        tokens
        for tokens in choices
        if steps * step_seconds(config, in_one_piece(config, tokens), hardware) <= size.target_s
    ]
    batch = affordable[-1] if affordable else choices[0]
    within = f"{size.target_s / 60:.1f} minutes here"
    if affordable:
        why = f"the largest with which the mode's {steps:,} steps take at most {within}"
    else:
        why = f"the smallest, with which the mode's {steps:,} steps take more than {within}"
    say(f"total_batch_size {batch:,} tokens: {why}", *keys)
    return batch


def in_one_piece(config: RunConfig, batch: int) -> StageConfig:
    """The base stage with so many tokens a step, all in one forward pass."""
    return replace(config.base, total_batch_size=batch, device_batch_size=max(batch // config.model.max_seq_len, 1))


def _with_stages(
    config: RunConfig, iterations: dict[str, int], batch: int, rows: int, lr: float, *, on_cpu: bool
) -> RunConfig:
    # Equal on TinyWorld's short documents, but padding long ones costs quality: LOG.md, 2026-11-23.
    packing = "best_fit" if config.data == TINYWORLD else "stream"

    def stage(name: str, **special: Any) -> StageConfig:
        count = iterations[name]
        every = max(count // 5, 1) if on_cpu else 250
        return StageConfig(
            num_iterations=count,
            total_batch_size=batch,
            device_batch_size=rows,
            eval_every=every,
            checkpoint_every=every,
            eval_tokens=EVAL_TOKENS["cpu" if on_cpu else "cuda"],
            packing=packing,
            **special,
        )

    return replace(
        config,
        base=stage("base", schedule=Schedule(warmup=0.02, warmdown=0.5, final=0.05), lr_multiplier=lr),
        mid=stage("mid", schedule=Schedule(warmup=0.05, warmdown=0.8, final=0.05), lr_multiplier=0.8 * lr),
        sft=stage(
            "sft", schedule=Schedule(warmup=0.1, warmdown=0.9, final=0.0), lr_multiplier=0.3 * lr, eval_questions=500
        ),
    )


def _saved_often(config: RunConfig, hardware: Hardware, num_workers: int) -> RunConfig:
    """With checkpoints no further apart than `SAVE_EVERY_S`, which is what a crash costs at most."""

    def often(stage: StageConfig) -> StageConfig:
        most = max(int(SAVE_EVERY_S / step_seconds(config, stage, hardware, num_workers)), 1)
        return replace(stage, checkpoint_every=min(stage.checkpoint_every, most))

    return replace(config, base=often(config.base), mid=often(config.mid), sft=often(config.sft))


def _check_memory(config: RunConfig, hardware: Hardware) -> None:
    rows = max((config.stage(name).device_batch_size for name in config.trained_stages), default=0)
    # What was learned of memory chooses rows; it may be wrong, so it refuses nothing.
    needed = modelled_memory(config, rows, hardware.device_type).total
    if rows and needed > hardware.memory_bytes:
        raise UserError(
            f"depth {config.model.depth} with device_batch_size {rows} "
            f"and max_seq_len {config.model.max_seq_len} needs about "
            f"{needed / GIB:.0f} GiB and this {hardware.device_type.upper()} has {hardware.memory_bytes / GIB:.0f}",
            "lower --device-batch-size, --max-seq-len or --depth",
        )
