"""What goes out: transformers computes the same, writes the same, and reads text the same."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, NanoChatForCausalLM

from nanochat.errors import UserError
from nanochat.inference.engine import Engine
from nanochat.inference.load import load_model, newest_checkpoint
from nanochat.interchange.bring_in import brought_in
from nanochat.interchange.export import export_transformers
from nanochat.model import ModelConfig, Transformer
from nanochat.tokenizer import Tokenizer, render_prompt
from nanochat.tokenizer.chat import render

CLASSIC = ModelConfig.from_depth(2, 320, 48, classic=True)
DEFAULT = ModelConfig.from_depth(3, 320, 48)
EVERYTHING = replace(DEFAULT, window_pattern="SL", short_window=9, smear=True, backout=True, query_key_scale=1.2,
                     value_gate_channels=12, value_gate_range=3.0, rope_base=100_000.0, logit_softcap=20.0)  # fmt: skip
CONFIGS = {"classic": CLASSIC, "default": DEFAULT, "everything": EVERYTHING}


def random_model(config: ModelConfig) -> Transformer:
    model, generator = Transformer(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.0 if parameter.ndim == 1 else 2 * parameter.size(-1) ** -0.5, generator=generator)
        model.head[275:] *= 20  # padding, which is never generated, neither here nor there
    return model.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def both(request, tokenizer, tmp_path_factory):
    """Our model and theirs."""
    model, folder = random_model(CONFIGS[request.param]), tmp_path_factory.mktemp("export") / "out"
    export_transformers(model, tokenizer, folder, chat=True, name="a model")
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=request.param != "classic")
    assert isinstance(theirs, NanoChatForCausalLM) == (request.param == "classic")
    return model, theirs.eval(), folder


def test_the_same_logits(both):
    model, theirs, _ = both
    ids = torch.randint(275, (3, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids)[..., :275], rtol=0, atol=1e-4)


def test_greedy_generation_is_the_same(both, tokenizer):
    """Alone, and in a batch padded on the left."""
    model, theirs, folder = both
    engine = Engine(model, tokenizer)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in ("the cat sat", "dog", "on the mat, too")]
    ours = engine.complete(prompts, max_new_tokens=16, stop_ids=[])
    never = {"eos_token_id": -1, "do_sample": False, "max_new_tokens": 16}
    for prompt, expected in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        found = theirs.generate(ids, attention_mask=torch.ones_like(ids), **never)[0, len(prompt) :]
        assert found.tolist() == expected
    batch = AutoTokenizer.from_pretrained(folder).pad({"input_ids": prompts}, return_tensors="pt")
    found = theirs.generate(**batch, **never)[:, batch["input_ids"].size(1) :]
    assert found.tolist() == ours


def test_it_ends_where_ours_ends(both, tokenizer):
    model, theirs, _ = both

    def ends(prompt):
        return len(Engine(model, tokenizer).complete([prompt], max_new_tokens=40)[0]) < 40

    prompt = next(filter(ends, ([tokenizer.bos_id, value] for value in range(256))))
    ours = Engine(model, tokenizer).complete([prompt], max_new_tokens=40)[0]
    found = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=40)[0, 2:].tolist()
    assert found[:-1] == ours
    assert found[-1] in Engine(model, tokenizer).default_stops()


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_by_both_its_names(both, name):
    """transformers 5.24 calls `cache` what was `past_key_values` before; the exported file works with either."""
    _, theirs, _ = both
    if isinstance(theirs, NanoChatForCausalLM):
        return
    ids = torch.randint(275, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = theirs(ids).logits
        begun = theirs(ids[:, :12], use_cache=True)
        rest = theirs(ids[:, 12:], **{name: begun[1]}).logits
    torch.testing.assert_close(rest, whole[:, 12:], rtol=0, atol=1e-4)


def test_loss_and_training(both):
    _, theirs, _ = both
    ids = torch.randint(275, (2, 30), generator=torch.Generator().manual_seed(0))
    theirs(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in theirs.parameters())
    theirs.zero_grad()


def test_it_comes_back_in_as_it_was(both, tmp_path):
    model, _, folder = both
    directory = brought_in(str(folder), tmp_path / "cache")
    checkpoint = newest_checkpoint(directory, warn=pytest.fail)
    again, _ = load_model(checkpoint, directory / "tokenizer", "cpu", torch.float32)
    assert replace(again.config, vocab_size=320) == model.config
    assert checkpoint.state["stage"] == "sft"
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours[:275] if len(ours) == 320 else ours, theirs)


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["ours", "public"])
def tokenizers(request, tmp_path_factory):
    """Our tokenizer and the exported one, with either pattern."""
    from tests.interchange.published import PATTERN

    text = "It's the cat's 1,234 mats; don't they'll — naïve café 東京  \n\n\t def f(x): return x**2 " * 3
    trained = Tokenizer.train([text], 400)
    if request.param == "public":
        trained = Tokenizer(trained.tokens, PATTERN, trained.special_tokens)
    folder = tmp_path_factory.mktemp("tokenizer") / "out"
    export_transformers(random_model(replace(CLASSIC, vocab_size=400)), trained, folder, chat=True, name="x")
    return trained, AutoTokenizer.from_pretrained(folder)


TEXTS = st.text(st.characters(codec="utf-8")) | st.text("it's 12cat\n\t  —é東", max_size=40)


@settings(max_examples=200)
@given(text=TEXTS)
def test_the_same_tokens(tokenizers, text):
    ours, theirs = tokenizers
    if any(name in text for name in ours.special_tokens):
        return
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert theirs(text)["input_ids"] == [ours.bos_id, *ours.encode(text)]
    assert theirs.decode(ours.encode(text)) == text


PARTS = st.lists(st.tuples(st.sampled_from(["text", "python"]), TEXTS), max_size=4).map(
    lambda parts: [{"type": each, "text": text} for kind, text in parts
                   for each in ([kind] if kind == "text" else ["python", "python_output"])])  # fmt: skip
CONVERSATIONS = st.tuples(st.none() | TEXTS, TEXTS, st.lists(st.tuples(TEXTS | PARTS, TEXTS), max_size=3)).map(
    lambda told: [*([{"role": "system", "content": told[0]}] if told[0] is not None else []),
                  {"role": "user", "content": told[1]},
                  *(message for answer, question in told[2] for message in (
                      {"role": "assistant", "content": answer}, {"role": "user", "content": question}))])  # fmt: skip


@settings(max_examples=200)
@given(messages=CONVERSATIONS)
def test_the_chat_template_is_ours(tokenizers, messages):
    ours, theirs = tokenizers
    if any(name in json.dumps(messages) for name in ours.special_tokens):
        return
    asked = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert asked == render_prompt(ours, messages)
    ended = [*messages, {"role": "assistant", "content": "Yes."}]
    assert theirs.apply_chat_template(ended)["input_ids"] == render(ours, ended)[0]


def test_the_template_takes_turns(tokenizers):
    with pytest.raises(Exception, match="take turns"):
        tokenizers[1].apply_chat_template([{"role": "assistant", "content": "Hi"}])


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_base_model_has_no_template(tokenizer, tmp_path):
    export_transformers(random_model(DEFAULT), tokenizer, tmp_path / "out", chat=False, name="a base model")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is None
    assert "The capital of France is" in (tmp_path / "out" / "README.md").read_text()
    directory = brought_in(str(tmp_path / "out"), tmp_path / "cache")
    assert newest_checkpoint(directory, warn=pytest.fail).state["stage"] == "base"


def test_what_is_there_is_left_alone(tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="there already"):
        export_transformers(random_model(CLASSIC), tokenizer, tmp_path / "out", chat=True, name="x")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("spoil", "named"), [
    (lambda folder: (folder / "tokenizer.json").unlink(), "cannot read"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot read the tokenizer"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "cannot read"),
    (lambda folder: _change(folder, model_type="llama"), "its model_type is 'llama'"),
    (lambda folder: _change(folder, num_key_value_heads=1), "fewer key heads"),
    (lambda folder: _change(folder, intermediate_size=100), "its MLP is another"),
    (lambda folder: _change(folder, num_hidden_layers=3), "layers.2.* is missing"),
    (lambda folder: _change(folder, vocab_size=100), "275 tokens and the model 100"),
])  # fmt: skip
def test_a_folder_that_is_wrong_is_named(tokenizer, tmp_path, spoil, named):
    export_transformers(random_model(CLASSIC), tokenizer, tmp_path / "out", chat=True, name="x")
    spoil(tmp_path / "out")
    with pytest.raises(UserError, match=named):
        brought_in(str(tmp_path / "out"), tmp_path / "cache")


def _change(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
