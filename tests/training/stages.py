"""Small stages, trained by the loop without a pipeline around it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.config import StageConfig
from nanochat.data.batches import Batches
from nanochat.data.dataset import TokenDataset
from nanochat.data.shards import build_text_shards
from nanochat.events import Event
from nanochat.model import ModelConfig, Transformer
from nanochat.optim.muon_adamw import MuonAdamW
from nanochat.optim.scaling import Hyperparameters
from nanochat.optim.schedule import Schedule
from nanochat.tokenizer import Tokenizer
from nanochat.training.checkpoint import Checkpoint, CheckpointStore
from nanochat.training.loop import train_stage
from nanochat.training.stage import Surroundings, Trainee
from nanochat.workers import Workers

ROW = 32
MODEL = ModelConfig.from_depth(2, 512, ROW)
STAGE = StageConfig(
    num_iterations=12,
    total_batch_size=8 * ROW,
    device_batch_size=4,
    schedule=Schedule(),
    eval_every=5,
    checkpoint_every=4,
)
PEAK = Hyperparameters(0.01, 0.1, 0.005, 0.05, 0.1)


def make_dataset(directory: Path) -> TokenDataset:
    words = "the cat saw a red bird on one old tree while two dogs slept near her small green door".split()  # noqa: SIM905
    texts = [" ".join(words[(i * 7 + j * j) % len(words)] for j in range(5 + i % 40)) for i in range(400)]
    (directory / "text.txt").write_text("<|endoftext|>".join(texts))
    tokenizer = Tokenizer.train(texts, 300)
    return build_text_shards(
        [directory / "text.txt"], tokenizer, directory / "shards", split="all", row_tokens=ROW, packing="best_fit"
    )


def trainee() -> Trainee:
    model = Transformer(MODEL, seed=3)
    return Trainee(model, MuonAdamW(model, PEAK))


def train(
    dataset: TokenDataset,
    directory: Path,
    stage: StageConfig = STAGE,
    subject: Trainee | None = None,
    events: list[Event] | None = None,
    batches: Batches | None = None,
    **around: Any,
) -> dict[str, torch.Tensor]:
    """Train from the newest checkpoint in `directory`, or from the start; the final weights."""
    subject = subject or trainee()
    store = CheckpointStore(directory, regular=lambda step: step % stage.checkpoint_every == 0)

    def restore(wanted: Callable[[int], bool] = store.regular) -> Checkpoint | None:
        found = store.newest(pytest.fail, wanted)
        if found:
            subject.model.load_state_dict(found.tensors("model"))
            subject.optimizer.load_state_dict(found.tensors("optimizer"))
        else:
            subject.model.initialise(3)
            subject.optimizer.reset()
        return found

    surroundings = Surroundings(
        workers=around.pop("workers", Workers()),
        store=store,
        emit=(events if events is not None else []).append,
        validate=lambda rows: 1.0,
        should_stop=around.pop("should_stop", lambda: False),
        restore=restore,
        identity={},
        peak_flops=1e12,
        **around,
    )
    found = restore(lambda step: True)
    train_stage("base", stage, subject, batches or Batches(dataset, 8, seed=1), surroundings, found)
    return {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left.keys() | right.keys())


