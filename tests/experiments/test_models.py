"""Which models there are to be served, wherever their checkpoints are."""

from dataclasses import asdict, replace

import pytest
import torch

from experiments.models import Models
from nanochat.model import ModelConfig, Transformer
from nanochat.run import create
from nanochat.tokenizer import Tokenizer
from nanochat.training.checkpoint import CheckpointStore
from tests.experiments.test_compare import CONFIG


@pytest.fixture
def kept_elsewhere(tmp_path):
    """The directory of runs, of which one keeps its checkpoints on a storage of its own."""
    tokenizer, model = Tokenizer.train([], 265), Transformer(ModelConfig.from_depth(1, 265, 32))
    config = replace(CONFIG, storage=(tmp_path / "storage").as_uri())
    run = create(tmp_path / "runs" / "far", config, {})
    tokenizer.save(run.tokenizer_directory)
    state = {"stage": "base", "model": asdict(model.config), "tokenizer": tokenizer.fingerprint}
    CheckpointStore(run.checkpoints("base")).save(3, {"model": model.state_dict()}, state)
    return run, Models(tmp_path / "runs", "far/base", "cpu", torch.float32)


def test_a_model_on_a_storage_is_served_once_its_stage_has_ended(kept_elsewhere):
    run, models = kept_elsewhere
    assert models.names() == {}
    run.result_path("base").parent.mkdir(parents=True, exist_ok=True)
    run.result_path("base").write_text("{}")
    assert list(models.names()) == ["far/base"]
    assert models.open("far").context == 32
    models.close()
