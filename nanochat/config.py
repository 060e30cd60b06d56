"""The configuration of a run: frozen dataclasses, checked together, changed by `--set key=value`, kept as JSON."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass
from typing import Any

from nanochat.corpora import CORPORA
from nanochat.errors import UserError
from nanochat.model.config import ModelConfig
from nanochat.optim.schedule import Schedule

TRAINED_STAGES = ("base", "mid", "sft")
STAGES = ("tokenizer", *TRAINED_STAGES)
TINYWORLD = "tinyworld"  # the built-in data
PUBLIC = "public"  # the conversations of the hub, see nanochat.data.mixtures
T = typing.TypeVar("T")
PACKINGS = ("best_fit", "stream")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class TokenizerConfig:
    """How the tokenizer is trained."""

    vocab_size: int
    """Tokens, special ones included."""
    max_chars: int = 500_000_000
    """Characters of the run's data to train on."""


@dataclass(frozen=True)
class StageConfig:
    """One trained stage: its budget, its batches, its schedule, and how often it is looked at."""

    num_iterations: int
    """Optimizer steps; with a deadline, at most."""
    total_batch_size: int
    """Tokens of one optimizer step, over all workers and micro-batches."""
    device_batch_size: int
    """Rows of max_seq_len tokens in one forward pass; the rest of the step's rows are accumulated, in pieces of which
    the last may have fewer."""
    schedule: Schedule
    """Learning rate over the stage."""
    lr_multiplier: float = 1.0
    """Factor on every learning rate that follows from the scaling rules."""
    packing: str = "best_fit"
    """How documents become rows: best_fit or stream, see nanochat.data.packing."""
    eval_every: int = 100
    """Steps between measurements of val_bpb; there is always one at the end."""
    eval_tokens: int = 40_960
    """Validation tokens of a measurement."""
    eval_questions: int = 0
    """Questions of the task suite answered at the end of the stage; 0 for none."""
    checkpoint_every: int = 100
    """Steps between checkpoints; there is always one at the end."""
    max_skipped_steps: int = 3
    """Steps in a row whose loss or gradient is not finite before the stage goes back to its last checkpoint."""
    max_rollbacks: int = 3
    """How often a stage goes back before it fails."""
    rollback_lr_factor: float = 0.5
    """Factor on the learning rate from each rollback on."""
    deadline_s: float | None = None
    """Seconds on the run's clock by which the stage has ended, its last evaluation and saving included: it then does
    as many of its iterations as the time allows. None: all of them, however long they take."""
    expected_iterations: int | None = None
    """How many of them the time should allow, see `horizon`. None: all."""
    tail_s: float = 0.0
    """What of that time is kept for saving, samples and questions after the last evaluation."""

    @property
    def horizon(self) -> int:
        """Steps that there should be: what weight decay, and the data to prepare, go by."""
        return min(self.num_iterations, self.expected_iterations or self.num_iterations)

    @property
    def ended_by_clock(self) -> bool:
        """Whether a deadline, not the number of its iterations, is to end it."""
        return self.deadline_s is not None and self.horizon < self.num_iterations

    def largest_share(self, seq_len: int, num_workers: int) -> int:
        """Rows of a step that fall to the worker with the most of them."""
        return -(-(self.total_batch_size // seq_len) // num_workers)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run computes."""

    mode: str
    data: str
    """tinyworld, or a path to text."""
    seed: int
    stages: tuple[str, ...]
    """Which stages this run goes through, in order."""
    start_from: str
    """Checkpoint directory whose weights the first trained stage starts from; empty for new weights."""
    model: ModelConfig
    tokenizer: TokenizerConfig
    base: StageConfig
    mid: StageConfig
    sft: StageConfig
    compute_dtype: str
    """What matrix products run in; master weights are float32."""
    compile: bool
    """Whether the training step goes through torch.compile."""
    attention: str
    """Training attention kernel, see nanochat.model.attention."""
    fp8: bool = False
    """Whether the blocks' matrices are multiplied in 8 bits, see nanochat.model.fp8."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept of each stage; 0: none is ever saved, for a trial of which only the figures count."""
    storage: str = ""
    """Where checkpoints are kept, as <storage>/<run>/<stage>: a path, or a URI that pyarrow.fs understands such as
    s3://bucket/prefix. Empty: in the run's directory."""
    start_tokenizer: str = ""
    """Directory of the tokenizer that belongs to start_from."""
    train_tokens: int | None = None
    """Tokens of text to prepare for the base stage; None: as many as it goes through."""
    cap_s: float | None = None
    """Seconds on the run's clock after which everything has ended, with a model; None: no such limit."""
    keep_best_checkpoint: bool = False
    """Whether each stage also keeps the checkpoint of the lowest val_bpb."""
    chat: str = TINYWORLD
    """Conversations of mid and SFT: tinyworld, public, or a path to a .jsonl."""
    run_code: bool = False
    """Whether code that the model writes is run, to grade it. See nanochat.evaluation.code_runner: there is a risk."""

    def stage(self, name: str) -> StageConfig:
        """The configuration of one trained stage."""
        return {"base": self.base, "mid": self.mid, "sft": self.sft}[name]

    @property
    def trained_stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if stage in TRAINED_STAGES)


def check(config: RunConfig, num_workers: int = 1) -> None:
    """Raises UserError listing everything that cannot work, each with what to change."""
    problems: list[str] = []
    if config.tokenizer.vocab_size > config.model.vocab_size:
        problems.append(
            f"tokenizer.vocab_size {config.tokenizer.vocab_size} is larger than "
            f"model.vocab_size {config.model.vocab_size}"
        )
    if config.tokenizer.vocab_size < 300:
        problems.append(
            "tokenizer.vocab_size must be at least 300 (256 bytes and the special tokens), "
            f"not {config.tokenizer.vocab_size}"
        )
    if config.keep_checkpoints < 1:
        problems.append(f"keep_checkpoints must be at least 1, not {config.keep_checkpoints}")
    if config.compute_dtype not in DTYPES:
        problems.append(f"compute_dtype must be one of {', '.join(DTYPES)}, not {config.compute_dtype!r}")
    if not 0 <= config.seed < 1 << 64:
        problems.append(f"--seed must be at least 0 and less than 2^64, not {config.seed}")
    if config.fp8 and (config.compute_dtype != "bfloat16" or config.model.max_seq_len % 16):
        problems.append("fp8=true needs compute_dtype bfloat16 and a --max-seq-len that is a multiple of 16")
    for name in config.trained_stages:
        problems += [
            f"{name}.{problem}"
            for problem in _stage_problems(config.stage(name), config.model.max_seq_len, num_workers)
        ]
    if problems:
        raise UserError(
            "this configuration cannot work: " + "; ".join(problems), "change the flag or --set key named above"
        )


def _stage_problems(stage: StageConfig, seq_len: int, num_workers: int) -> list[str]:
    found = [
        f"{field} must be at least {least}, not {getattr(stage, field)}"
        for field, least in (
            ("num_iterations", 1),
            ("total_batch_size", 1),
            ("device_batch_size", 1),
            ("eval_every", 1),
            ("eval_tokens", 1),
            ("eval_questions", 0),
            ("checkpoint_every", 1),
            ("max_skipped_steps", 1),
            ("max_rollbacks", 0),
        )
        if getattr(stage, field) < least
    ]
    if stage.expected_iterations is not None and stage.expected_iterations < 1:
        found.append(f"expected_iterations must be at least 1, not {stage.expected_iterations}")
    found += [
        f"{field} must be positive, not {getattr(stage, field)}"
        for field in ("lr_multiplier", "rollback_lr_factor")
        if not getattr(stage, field) > 0
    ]
    if stage.packing not in PACKINGS:
        found.append(f"packing must be one of {', '.join(PACKINGS)}, not {stage.packing!r}")
    found += [f"schedule.{problem}" for problem in stage.schedule.problems()]
    rows = stage.total_batch_size // seq_len
    if stage.total_batch_size % seq_len:
        nearest = max(round(stage.total_batch_size / seq_len), 1) * seq_len
        found.append(
            f"total_batch_size {stage.total_batch_size:,} does not divide into rows of max_seq_len {seq_len} tokens; "
            f"the nearest that does is --total-batch-size {nearest}"
        )
    elif rows < num_workers:
        found.append(
            f"total_batch_size {stage.total_batch_size:,} has fewer rows of {seq_len} tokens than there are workers; "
            f"use at most --num-workers {rows}"
        )
    elif rows < stage.device_batch_size:
        found.append(
            f"device_batch_size {stage.device_batch_size} is more than the rows of {seq_len} tokens in "
            f"total_batch_size {stage.total_batch_size:,}; use at most --device-batch-size {rows}"
        )
    return found


def usual_data(device_type: str) -> str:
    """The text to train on where the user names none: of the web on a GPU, which soon knows the built-in by heart."""
    return next(iter(CORPORA)) if device_type == "cuda" else TINYWORLD


def usual_chat(data: str) -> str:
    """The conversations that go with some text, where the user names none: the one place where this is decided."""
    return PUBLIC if data in CORPORA else TINYWORLD


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON data of a config dataclass."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], data: dict[str, Any]) -> T:
    """The config dataclass of what `to_dict` gave. Raises TypeError for unknown or missing fields
    and values of another type."""
    hints = typing.get_type_hints(cls)
    unknown = set(data) - set(hints)
    if unknown:
        raise TypeError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    return cls(**{name: _from_json(hints[name], value) for name, value in data.items()})


def _from_json(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(_from_json(parts[0], each) for each in value)
    accepted = (int, float) if kind is float else dict if origin is dict else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r} is not of type {getattr(kind, '__name__', kind)}")
    return value


def override(config: RunConfig, assignments: typing.Sequence[str]) -> RunConfig:
    """Apply `key=value` texts such as `base.num_iterations=200`. Raises UserError listing every one that is wrong."""
    problems: list[str] = []
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        try:
            if not separator:
                raise ValueError(f"--set {assignment}: write it as key=value")
            config = _replaced(config, key.strip().split("."), text.strip(), key)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise UserError(
            "; ".join(problems), "keys are dotted names such as base.num_iterations or model.window_pattern"
        )
    return config


def is_set(key: str, assignments: typing.Sequence[str]) -> bool:
    """Whether one of these texts is about that key."""
    return any(each.partition("=")[0].strip() == key for each in assignments)


def _replaced(config: Any, path: list[str], text: str, key: str) -> Any:
    names = [field.name for field in dataclasses.fields(config)]
    if path[0] not in names:
        close = difflib.get_close_matches(path[0], names, 1)
        raise ValueError(
            f"--set {key}: there is no {path[0]!r}"
            + (f"; did you mean {close[0]!r}?" if close else f" (there are {', '.join(names)})")
        )
    current = getattr(config, path[0])
    if dataclasses.is_dataclass(current):
        if len(path) == 1:
            raise ValueError(
                f"--set {key}: name one of its fields, such as {key}.{dataclasses.fields(current)[0].name}"
            )
        value = _replaced(current, path[1:], text, key)
    elif len(path) > 1:
        raise ValueError(f"--set {key}: {path[0]!r} has no parts")
    else:
        value = parse_value(typing.get_type_hints(type(config))[path[0]], text, key)
    try:
        return dataclasses.replace(config, **{path[0]: value})
    except ValueError as error:  # the dataclass refuses the combination
        raise ValueError(f"--set {key}: {error}") from None


def parse_value(kind: Any, text: str, key: str) -> Any:
    """A value of the given type from text. Raises ValueError naming the key."""
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() in words:
            return words[text.lower()]
        raise ValueError(f"--set {key}: {text!r} is neither true nor false")
    if typing.get_origin(kind) is tuple:
        return tuple(part for part in text.split(",") if part)
    try:
        return int(text.replace("_", "").replace(",", "")) if kind is int else kind(text)
    except ValueError:
        raise ValueError(f"--set {key}: {text!r} is not {'a whole number' if kind is int else 'a number'}") from None
