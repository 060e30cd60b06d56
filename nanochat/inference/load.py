"""From a run on disk to a model that can be asked."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nanochat.errors import UserError
from nanochat.model import ModelConfig, Transformer
from nanochat.run import Run
from nanochat.tokenizer import Tokenizer
from nanochat.training.checkpoint import Checkpoint, CheckpointStore

STAGES = ("base", "mid", "sft")  # those with a model, in order of training


def find_run(name_or_path: str, runs_dir: Path) -> Path:
    """The directory of a run given by its name in `runs_dir`, or by its path. Raises UserError listing the runs."""
    for path in (runs_dir / name_or_path, Path(name_or_path)):
        if name_or_path and path.is_dir():
            return path
    runs = sorted(path.name for path in runs_dir.iterdir() if path.is_dir()) if runs_dir.is_dir() else []
    raise UserError(
        f"there is no run {name_or_path!r} in {runs_dir}",
        f"runs there: {', '.join(runs)}" if runs else "there is none: experiments/run_stage.py makes one",
    )


def newest_checkpoint(run_dir: Path, stage: str | None = None, *, warn: Callable[[str], None]) -> Checkpoint:
    """The newest whole checkpoint of a stage, by default of the last stage that has one; damaged ones are named to
    `warn`. Raises UserError if there is none."""
    stores = {name: CheckpointStore(Run(run_dir).checkpoints(name)) for name in STAGES}
    for name in (stage,) if stage else reversed(STAGES):
        if found := stores[name].newest(warn):
            return found
    have = [name for name, store in stores.items() if store.steps()]
    hint = f"stages with checkpoints: {', '.join(have)}" if have else "train it with experiments/run_stage.py"
    raise UserError(f"{run_dir} has no whole checkpoint" + (f" of stage {stage}" if stage else ""), hint)


def load_model(
    checkpoint: Checkpoint, tokenizer_directory: Path, device: torch.device | str, dtype: torch.dtype
) -> tuple[Transformer, Tokenizer]:
    """The model of a checkpoint and the tokenizer of its run, ready to generate.

    Matrices are stored in `dtype`, which is what they are multiplied in; the numbers are those of casting the fp32
    weights at every use, at half the memory and none of the work. Vectors and scalars stay fp32.

    Raises UserError naming whatever is damaged, missing or does not fit together.
    """
    config = _model_config(checkpoint)
    tokenizer = Tokenizer.load(tokenizer_directory)
    if checkpoint.state.get("tokenizer") != tokenizer.fingerprint:
        raise UserError(
            f"checkpoint {checkpoint.location} was trained with another tokenizer than the one of its run",
            "restore the run's tokenizer directory, or train again under a new name",
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"checkpoint {checkpoint.location} has a vocabulary of {config.vocab_size}, "
            f"its tokenizer one of {tokenizer.vocab_size}"
        )
    model = Transformer(config, compute_dtype=dtype, seed=None, bos_id=tokenizer.bos_id)
    weights = checkpoint.tensors("model")
    if problems := _mismatches(dict(model.named_parameters()), weights):
        raise UserError(f"checkpoint {checkpoint.location} does not fit its own config: {'; '.join(problems)}")
    model.load_state_dict(weights)
    return frozen(model, dtype, device), tokenizer


def frozen(model: Transformer, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """The model on a device, never to be trained again: its matrices become what they are multiplied in."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim >= 2:
            parameter.data = parameter.data.to(dtype)
    model = model.eval().to(device)
    model.pack()
    return model


def _model_config(checkpoint: Checkpoint) -> ModelConfig:
    path = checkpoint.location
    try:
        return ModelConfig(**checkpoint.state["model"])
    except KeyError as error:
        raise UserError(f"checkpoint {path} does not say what its model is: its state has no {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"checkpoint {path} describes a model this program cannot build: {error}",
            "it may be from another version of this program",
        ) from error


def _mismatches(expected: dict[str, torch.nn.Parameter], found: dict[str, Tensor]) -> list[str]:
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    problems = [f"{name} is missing" for name in missing] + [f"{name} is not part of the model" for name in unknown]
    return problems + [
        f"{name} has shape {tuple(found[name].shape)} instead of {tuple(parameter.shape)}"
        for name, parameter in expected.items()
        if name in found and found[name].shape != parameter.shape
    ]
