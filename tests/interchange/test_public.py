"""Checkpoints of public nanochat: each of its architectures computes the same here, and what is wrong is named."""

import json
import pickle

import pytest
import torch

from nanochat.errors import UserError
from nanochat.inference.engine import Engine
from nanochat.inference.load import load_model, newest_checkpoint
from nanochat.interchange.bring_in import brought_in
from nanochat.model import KVCache
from tests.interchange.published import (
    JANUARY,
    MARCH_14,
    OCTOBER,
    VERSIONS,
    encoding_of,
    logits_of,
    sizes,
    weights_of,
    write_folder,
)


@pytest.fixture
def folder(tmp_path, tokenizer):
    meta = sizes(tokenizer.vocab_size)
    return write_folder(tmp_path / "theirs", meta, weights_of(MARCH_14, meta), tokenizer)


def load(path, cache):
    directory = brought_in(str(path), cache)
    checkpoint = newest_checkpoint(directory, warn=pytest.fail)
    return load_model(checkpoint, directory / "tokenizer", "cpu", torch.float32)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("name", "pattern", "context"), [
    ("october", None, 32), ("january", "SSSL", 32), ("march 9", "SL", 300), ("march 14", "SL", 300)])  # fmt: skip
def test_the_same_logits_whole_and_token_by_token(tmp_path, tokenizer, name, pattern, context, kv_heads):
    version, meta = VERSIONS[name], sizes(tokenizer.vocab_size, context=context, kv_heads=kv_heads)
    if pattern:
        meta["window_pattern"] = pattern
    weights = weights_of(version, meta)
    model, _ = load(write_folder(tmp_path / "theirs", meta, weights, tokenizer), tmp_path / "cache")
    ids = torch.randint(tokenizer.vocab_size, (2, context), generator=torch.Generator().manual_seed(1))
    expected = logits_of(version, meta, weights, ids)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)
        cache = KVCache.empty(model.config, 2, context, torch.float32)
        model(ids[:, : context - 8], cache)
        cache.advance(context - 8)
        for place in range(context - 8, context):
            token = model(ids[:, place : place + 1], cache)
            cache.advance(1)
            torch.testing.assert_close(token[:, 0], expected[:, place], rtol=1e-4, atol=1e-4)


def test_the_tokenizer_comes_along(folder, tmp_path, tokenizer):
    _, brought = load(folder, tmp_path / "cache")
    text = "It's 12,345 miles;\n  don't  go — naïve 東京 \t<|bos|>"
    assert brought.encode(text) == encoding_of(tokenizer).encode_ordinary(text)
    assert brought.special("<|output_end|>") == tokenizer.special("<|output_end|>")


def test_greedy_rows_of_a_smearing_model_do_not_depend_on_the_batch(folder, tmp_path):
    engine = Engine(*load(folder, tmp_path / "cache"))
    prompts = [[256, 5, 9], [256, 100, 7, 42, 11], [256], [256, 3]]
    together = engine.complete(prompts, max_new_tokens=12, stop_ids=[])
    assert together == [engine.complete([prompt], max_new_tokens=12, stop_ids=[])[0] for prompt in prompts]
    for prompt, reply in zip(prompts, together, strict=True):
        for count, token in enumerate(reply):
            assert engine.last_logits([prompt + reply[:count]]).argmax() == token


@pytest.mark.parametrize("layout", ["tokenizer beside", "base directory", "one file"])
def test_it_is_found_however_it_lies(tmp_path, tokenizer, layout):
    meta = sizes(tokenizer.vocab_size)
    folder = write_folder(tmp_path / "chatsft_checkpoints" / "d3", meta, weights_of(OCTOBER, meta), tokenizer, step=7)
    write_folder(folder, meta, weights_of(OCTOBER, meta, seed=1), tokenizer, step=650)
    if layout == "tokenizer beside":
        (folder / "tokenizer" / "tokenizer.pkl").rename(folder / "tokenizer.pkl")
    else:
        (folder / "tokenizer").rename(tmp_path / "tokenizer")
    given = {"base directory": tmp_path, "one file": folder / "model_000007.pt"}.get(layout, folder)
    directory = brought_in(str(given), tmp_path / "cache")
    checkpoint = newest_checkpoint(directory, warn=pytest.fail)
    assert checkpoint.state["stage"] == "sft"
    assert checkpoint.step == (7 if layout == "one file" else 650)


@pytest.mark.parametrize(("told", "stage"), [({"depth": 3}, "base"), ({"load_optimizer": 1}, "sft"), (None, "sft")])
def test_the_stage_of_a_folder_with_a_name_of_its_own(folder, tmp_path, told, stage):
    """Both scripts of 2026 record val_bpb; only the one that makes a model is told how deep."""
    path = next(folder.glob("meta_*.json"))
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "user_config": told}))
    assert newest_checkpoint(brought_in(str(folder), tmp_path / "cache"), warn=pytest.fail).state["stage"] == stage


def test_it_is_made_once_and_anew_when_the_files_change(folder, tmp_path, tokenizer):
    said = []
    first = brought_in(str(folder), tmp_path / "cache", said.append)
    assert brought_in(str(folder), tmp_path / "cache", said.append) == first
    assert len(said) == 1
    meta = sizes(tokenizer.vocab_size)
    write_folder(folder, meta, weights_of(MARCH_14, meta, seed=1), tokenizer)
    assert brought_in(str(folder), tmp_path / "cache", said.append) != first


def test_nothing_of_the_kind(tmp_path):
    (tmp_path / "model_x.pt").touch()
    assert brought_in(str(tmp_path), tmp_path / "cache") is None
    assert brought_in(str(tmp_path / "nowhere"), tmp_path / "cache") is None


def test_several_models_are_listed(tmp_path, tokenizer):
    meta = sizes(tokenizer.vocab_size)
    for name in ("base_checkpoints/d3", "mid_checkpoints/d3"):
        write_folder(tmp_path / name, meta, weights_of(OCTOBER, meta), tokenizer)
    with pytest.raises(UserError, match="several models") as caught:
        brought_in(str(tmp_path), tmp_path / "cache")
    assert caught.value.hint == "name one of base_checkpoints/d3, mid_checkpoints/d3 in it"


def _changed_meta(folder, **changes):
    path = folder / "meta_000650.json"
    about = json.loads(path.read_text())
    about["model_config"] |= changes
    path.write_text(json.dumps(about))


def _changed_weights(folder, change):
    weights = torch.load(folder / "model_000650.pt")
    change(weights)
    torch.save(weights, folder / "model_000650.pt")


def _changed_encoding(folder, change):
    path = folder / "tokenizer" / "tokenizer.pkl"
    encoding = pickle.loads(path.read_bytes())
    change(encoding)
    path.write_bytes(pickle.dumps(encoding))


@pytest.mark.parametrize(("spoil", "named"), [
    (lambda folder: (folder / "meta_000650.json").unlink(), "has no meta_000650.json"),
    (lambda folder: (folder / "tokenizer" / "tokenizer.pkl").unlink(), "there is no tokenizer"),
    (lambda folder: (folder / "meta_000650.json").write_text("{"), "cannot read"),
    (lambda folder: (folder / "meta_000650.json").write_text("{}"), "no model_config"),
    (lambda folder: _changed_meta(folder, n_layer=0), "makes no sense: n_layer"),
    (lambda folder: _changed_meta(folder, n_embd="64"), "makes no sense: n_embd"),
    (lambda folder: _changed_meta(folder, moe_experts=8), "moe_experts, which public nanochat does not have"),
    (lambda folder: _changed_meta(folder, n_layer=2), r"value_embeds.1.weight is missing"),
    (lambda folder: _changed_meta(folder, n_head=5, n_kv_head=5), "impossible model: .*head_dim"),
    (lambda folder: _changed_meta(folder, vocab_size=999), "has 275 tokens and the model .* 999"),
    (lambda folder: _changed_meta(folder, window_pattern="SX"), "window_pattern"),
    (lambda folder: _changed_weights(folder, lambda weights: weights.pop("lm_head.weight")), "lm_head.weight is miss"),
    (lambda folder: _changed_weights(folder, lambda weights: weights.update({"x0_lambdas": torch.ones(9)})),
     r"x0_lambdas has shape \(9,\) instead of \(3,\)"),
    (lambda folder: _changed_weights(folder, lambda weights: weights.update({"extra": torch.ones(1)})),
     "extra is not part of the model"),
    (lambda folder: _changed_encoding(folder, lambda encoding: encoding._special_tokens.pop("<|bos|>")), "no <|bos|>"),
    (lambda folder: _changed_encoding(folder, lambda encoding: encoding._mergeable_ranks.pop(b"a")), "every byte"),
])  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_is_kept(folder, tmp_path, spoil, named):
    spoil(folder)
    with pytest.raises(UserError, match=named.replace("<|bos|>", r"<\|bos\|>")):
        brought_in(str(folder), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("step_*"))


def test_a_compiled_models_prefix_is_no_part_of_the_names(folder, tmp_path):
    def prefix(weights):
        for name in list(weights):
            weights[f"_orig_mod.{name}"] = weights.pop(name)

    plain, _ = load(folder, tmp_path / "cache")
    _changed_weights(folder, prefix)
    prefixed, _ = load(folder, tmp_path / "cache")
    assert torch.equal(plain.embedding, prefixed.embedding)


def test_scalars_without_value_embeddings(tmp_path, tokenizer):
    """As for a week in January 2026."""
    meta = sizes(tokenizer.vocab_size)
    weights = {name: tensor for name, tensor in weights_of(JANUARY, meta).items()
               if "ve_gate" not in name and "value_embeds" not in name}  # fmt: skip
    model, _ = load(write_folder(tmp_path / "theirs", meta, weights, tokenizer), tmp_path / "cache")
    ids = torch.arange(20)[None]
    torch.testing.assert_close(model(ids), logits_of(JANUARY, meta, weights, ids), rtol=1e-4, atol=1e-4)
