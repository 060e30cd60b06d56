import dataclasses

import pytest
import torch

from nanochat.errors import UserError
from nanochat.inference.load import find_run, load_model, newest_checkpoint
from nanochat.model import ModelConfig, Transformer
from nanochat.tokenizer import Tokenizer
from nanochat.training.checkpoint import CheckpointStore, open_checkpoint

IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture
def run_dir(tmp_path, random_model, tokenizer):
    """A run with a base and a mid checkpoint."""
    run = tmp_path / "runs" / "first"
    tokenizer.save(run / "tokenizer")
    for stage in ("base", "mid"):
        save(run, random_model, tokenizer, stage)
    return run


def save(run, model, tokenizer, stage="base", /, weights=None, **changes):
    state = {"model": dataclasses.asdict(model.config), "tokenizer": tokenizer.fingerprint, **changes}
    return CheckpointStore(run / stage / "checkpoints").save(7, {"model": weights or model.state_dict()}, state)


def load(path, device, dtype):
    return load_model(open_checkpoint(path), path.parents[2] / "tokenizer", device, dtype)


def test_a_model_comes_back(run_dir, random_model, tokenizer):
    model, loaded = load(run_dir / "base/checkpoints/step_000007", "cpu", torch.float32)
    assert loaded.fingerprint == tokenizer.fingerprint
    kept = random_model.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), random_model(IDS), rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_storing_matrices_in_bf16_changes_no_number(run_dir, random_model):
    model, _ = load(run_dir / "base/checkpoints/step_000007", "cpu", torch.bfloat16)
    assert model.head.dtype == model.blocks[0].qkv.dtype == torch.bfloat16
    assert model.residual_scalars.dtype == torch.float32
    masters = Transformer(random_model.config, compute_dtype=torch.bfloat16)
    masters.load_state_dict(random_model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(IDS), masters(IDS))


def test_finding_runs_and_checkpoints(run_dir, tmp_path):
    runs = tmp_path / "runs"
    assert find_run("first", runs) == run_dir
    assert find_run(str(run_dir), tmp_path / "elsewhere") == run_dir
    with pytest.raises(UserError, match="no run 'frist'") as caught:
        find_run("frist", runs)
    assert "first" in caught.value.hint
    with pytest.raises(UserError, match="no run") as caught:
        find_run("first", tmp_path / "elsewhere")
    assert "run_stage.py" in caught.value.hint
    with pytest.raises(UserError, match="no run ''"):
        find_run("", runs)

    warnings: list[str] = []
    assert newest_checkpoint(run_dir, warn=warnings.append).path == run_dir / "mid/checkpoints/step_000007"
    assert newest_checkpoint(run_dir, "base", warn=warnings.append).path == run_dir / "base/checkpoints/step_000007"
    with pytest.raises(UserError, match="of stage sft") as caught:
        newest_checkpoint(run_dir, "sft", warn=warnings.append)
    assert "base, mid" in caught.value.hint
    with pytest.raises(UserError, match="has no whole checkpoint"):
        newest_checkpoint(runs, warn=warnings.append)
    assert warnings == []
    (run_dir / "mid/checkpoints/step_000007/state.json").unlink()
    assert newest_checkpoint(run_dir, warn=warnings.append).path == run_dir / "base/checkpoints/step_000007"
    assert len(warnings) == 1


def test_every_mismatch_is_named(run_dir, random_model, tokenizer):
    good = dataclasses.asdict(random_model.config)
    without_head = {name: tensor for name, tensor in random_model.state_dict().items() if name != "head"}
    for changes, message in (
        ({"tokenizer": "0" * 64}, "another tokenizer"),
        ({"tokenizer": None}, "another tokenizer"),
        ({"model": {**good, "colour": "red"}}, "colour"),
        ({"model": {**good, "width": 63}}, "width 63"),
        ({"model": {**good, "vocab_size": 100}}, "vocabulary of 100"),
        ({"model": 3}, "cannot build"),
        ({"model": {**good, "width": 128}}, r"embedding has shape \(320, 64\) instead of \(320, 128\)"),
        ({"weights": without_head}, "head is missing"),
        ({"weights": {**without_head, "tail": torch.ones(1)}}, "tail is not part of the model"),
    ):
        path = save(run_dir, random_model, tokenizer, **changes)
        with pytest.raises(UserError, match=message):
            load(path, "cpu", torch.float32)
    path = CheckpointStore(run_dir / "base" / "checkpoints").save(8, {}, {})
    with pytest.raises(UserError, match="no 'model'"):
        load(path, "cpu", torch.float32)
    path = save(run_dir, random_model, tokenizer)
    Tokenizer.train(["something else"], 270).save(run_dir / "tokenizer")
    with pytest.raises(UserError, match="another tokenizer"):
        load(path, "cpu", torch.float32)
    (run_dir / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        load(path, "cpu", torch.float32)


def test_config_of_every_kind_survives_json(tmp_path, tokenizer):
    config = ModelConfig.from_depth(2, 275, 32, classic=True)
    tokenizer.save(tmp_path / "tokenizer")
    model, _ = load(save(tmp_path, Transformer(config), tokenizer), "cpu", torch.float32)
    assert model.config == config
