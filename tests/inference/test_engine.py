import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.inference.engine import Engine, Token

STOPS = range(180, 195)


def reference(model, tokenizer, prompt, count, stops) -> list[int]:
    """Greedy generation by a full forward pass for every token."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) - len(prompt) < count and len(ids) < model.config.max_seq_len:
            chosen = model(torch.tensor([ids]))[0, -1, : tokenizer.vocab_size].argmax().item()
            if chosen in stops:
                break
            ids.append(chosen)
    return ids[len(prompt) :]


@pytest.fixture(scope="session")
def prompts(tokenizer):
    """Of every length from 1 to the whole context of 48."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(0, tokenizer.vocab_size, (length,), generator=generator).tolist()
        for length in (5, 1, 24, 2, 48, 13, 30, 47, 40, 7, 7, 19)
    ]


def test_greedy_alone_in_a_batch_and_without_a_cache(random_model, tokenizer, prompts):
    """Some rows meet a stop token, so they end at all times and for all reasons."""
    engine, stops = Engine(random_model, tokenizer), set(STOPS)
    expected = [reference(random_model, tokenizer, prompt, 20, stops) for prompt in prompts]
    together = engine.complete(prompts, max_new_tokens=20, stop_ids=STOPS)
    assert together == expected
    assert [engine.complete([prompt], max_new_tokens=20, stop_ids=STOPS)[0] for prompt in prompts] == expected
    lengths = [len(row) for row in expected]
    assert (lengths[4], lengths[7]) in ((0, 0), (0, 1))
    assert len(set(lengths)) > 4  # else this tests little
    assert max(lengths) == 20
    assert len({token for row in expected for token in row}) > 20


def test_finished_rows_leave_the_batch(random_model, tokenizer, prompts, monkeypatch):
    engine, fed, hidden = Engine(random_model, tokenizer), [], type(random_model).hidden
    monkeypatch.setattr(
        type(random_model), "hidden", lambda self, ids, cache=None: fed.append(ids.shape) or hidden(self, ids, cache)
    )
    written = list(engine.generate(prompts, max_new_tokens=20, stop_ids=STOPS))
    assert fed[0] == (11, 47)  # the prompt that fills the context has nothing to come
    assert sum(rows for rows, _ in fed[1:]) < sum(len(step) for step in written)  # none is fed that was not written
    assert all(columns == 1 for _, columns in fed[1:])


def test_padding_of_the_vocabulary_is_never_generated(random_model, tokenizer, prompts):
    """The model puts nearly all its weight on ids the tokenizer does not have."""
    with torch.no_grad():
        likeliest = random_model(torch.tensor(prompts[:1])).argmax(-1)
    assert (likeliest >= tokenizer.vocab_size).all()
    engine = Engine(random_model, tokenizer)
    for temperature in (0.0, 2.0):
        rows = engine.complete(prompts, max_new_tokens=10, temperature=temperature, stop_ids=[])
        assert max(token for row in rows for token in row) < tokenizer.vocab_size
    assert engine.last_logits(prompts).shape == (len(prompts), tokenizer.vocab_size)


def test_sampling_depends_on_seed_and_place_only(random_model, tokenizer, prompts):
    engine = Engine(random_model, tokenizer)

    def run(prompts, seed):
        return engine.complete(prompts, max_new_tokens=12, temperature=1.5, top_k=40, seed=seed, stop_ids=STOPS)

    everything = run(prompts, 1)
    assert everything == run(prompts, 1)
    assert everything != run(prompts, 2)
    assert everything[:3] == run(prompts[:3], 1)
    same = run([prompts[0]] * 4, 1)
    assert len({tuple(row) for row in same}) > 1  # the same prompt again is another draw


def test_the_calculator_answers_in_its_own_row_only(scripted, tokenizer):
    """Two rows call it, one between them writes text and goes on alone."""
    call = ["<|python_start|>", "1", "+", "2", "<|python_end|>", "<|bos|>"]  # what it would say itself
    model = scripted(["A", *call], ["<|output_end|>", "!", "<|assistant_end|>"], [*"Bbcdfghijkl", "<|bos|>"])
    prompts = [tokenizer.encode("A"), tokenizer.encode("xyz B"), tokenizer.encode("?!?!?! A")]
    steps = list(Engine(model, tokenizer).generate(prompts, max_new_tokens=30))
    rows = [[token for step in steps for token in step if token.row == row] for row in range(3)]
    called = "<|python_start|>1+2<|python_end|><|output_start|>3<|output_end|>!"
    assert [tokenizer.decode([token.id for token in row]) for row in rows] == [called, "bcdfghijkl", called]
    assert [token.forced for token in rows[0]] == [False] * 5 + [True] * 3 + [False]
    assert not any(token.forced for token in rows[1])
    assert [len(step) for step in steps] == [3] * 9 + [1]  # a token a row a step, forced ones too
    assert steps[0][1] == Token(1, tokenizer.encode("b")[0], forced=False)


def test_a_call_that_is_no_arithmetic(scripted, tokenizer):
    model = scripted(["A", "<|python_start|>", "x", "<|python_end|>"], ["<|output_end|>", "<|assistant_end|>"])
    (row,) = Engine(model, tokenizer).complete([tokenizer.encode("A")], max_new_tokens=30)
    assert tokenizer.decode(row) == "<|python_start|>x<|python_end|><|output_start|>error<|output_end|>"


def test_an_end_without_a_start_calls_nothing(scripted, tokenizer):
    model = scripted(
        ["A", "<|python_start|>", "1", "<|python_end|>", "b", "<|bos|>"],
        ["B", "<|python_end|>"],
        ["<|output_end|>", "<|python_end|>"],
    )
    engine = Engine(model, tokenizer)
    called = "<|python_start|>1<|python_end|><|output_start|>1<|output_end|>"
    for start, said in (("A", f"{called}<|python_end|>b"), ("B", "<|python_end|>b")):
        (row,) = engine.complete([tokenizer.encode(start)], max_new_tokens=30)
        assert tokenizer.decode(row) == said


@pytest.mark.parametrize("limit", range(1, 9))
def test_limits_hold_inside_a_call(scripted, tokenizer, limit):
    model = scripted(["A", "<|python_start|>", "1", "+", "2", "<|python_end|>"], ["<|output_end|>", "!", "!"])
    (row,) = Engine(model, tokenizer).complete([tokenizer.encode("A")], max_new_tokens=limit)
    assert len(row) == limit
    (row,) = Engine(model, tokenizer).complete([[1] * (63 - limit) + tokenizer.encode("A")], max_new_tokens=99)
    assert len(row) == limit


def test_last_logits(random_model, tokenizer, prompts):
    found = Engine(random_model, tokenizer).last_logits(prompts)
    assert found.dtype == torch.float32
    with torch.no_grad():
        for row, prompt in zip(found, prompts, strict=True):
            assert torch.allclose(row, random_model(torch.tensor([prompt]))[0, -1, : tokenizer.vocab_size], atol=1e-4)


def test_impossible_prompts(random_model, tokenizer):
    engine = Engine(random_model, tokenizer)
    for prompts, name in (([[1], []], "prompt 1 has 0"), ([[1] * 49], "prompt 0 has 49")):
        with pytest.raises(ValueError, match=name):
            engine.complete(prompts, max_new_tokens=1)
        with pytest.raises(ValueError, match=name):
            engine.last_logits(prompts)
    with pytest.raises(ValueError, match="temperature"):
        engine.complete([[1]], max_new_tokens=1, temperature=-1)
    assert engine.complete([], max_new_tokens=5) == []
    assert engine.complete([[1] * 48], max_new_tokens=5) == [[]]
    assert engine.complete([[1]], max_new_tokens=0) == [[]]


def test_the_model_is_left_as_it_was(random_model, tokenizer):
    """Generating in the middle of training must not turn gradients off."""
    steps = Engine(random_model, tokenizer).generate([[1, 2, 3]], max_new_tokens=5)
    next(steps)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    random_model(torch.tensor([[1, 2]])).sum().backward()
    random_model.zero_grad()
    list(steps)


def test_nothing_is_sorted_to_be_written_while_a_run_is_told_to_be_deterministic(random_model, tokenizer, prompts):
    """Every token of a batch has a place of its own in the cache; on a GPU the sorting would be most of the kernels."""
    written = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.index_put_.default:
                written.append(torch.are_deterministic_algorithms_enabled())
            return func(*args, **(kwargs or {}))

    engine, before = Engine(random_model, tokenizer), torch.get_deterministic_debug_mode()
    expected = engine.complete(prompts, max_new_tokens=4)
    torch.set_deterministic_debug_mode("error")
    try:
        with Watching():
            assert engine.complete(prompts, max_new_tokens=4) == expected
        assert torch.get_deterministic_debug_mode() == 2, "as it was"
    finally:
        torch.set_deterministic_debug_mode(before)
    assert len(written) >= 2 * 4 * random_model.config.depth
    assert not any(written)
