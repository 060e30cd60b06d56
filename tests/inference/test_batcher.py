"""Many who ask at once get what each would get alone, whoever comes, leaves or fails meanwhile."""

import time
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Event

import pytest
import torch

from nanochat.inference.batcher import Ask, Batcher, Closed, Full
from nanochat.inference.engine import Engine

STOPS = tuple(range(180, 195))


@pytest.fixture
def engine(random_model, tokenizer):
    return Engine(random_model, tokenizer)


@pytest.fixture
def batcher(engine):
    batcher = Batcher(engine, places=3, most_waiting=40)
    yield batcher
    batcher.close()


def asked(batcher: Batcher, prompt: list[int], count: int, **how) -> tuple[Ask, Queue]:
    told: Queue = Queue()
    ask = Ask(prompt, count, told.put, stop_ids=STOPS, **how)
    batcher.submit(ask)
    return ask, told


def all_of(told: Queue) -> list[int]:
    return [token.id for token in iter(lambda: told.get(timeout=30), None)]


def slowed(monkeypatch, part: str, seconds: float) -> Event:
    """A part of the engine takes longer; set once it has begun."""
    begun, plain = Event(), getattr(Engine, part)
    monkeypatch.setattr(Engine, part, lambda *args: begun.set() or time.sleep(seconds) or plain(*args))
    return begun


def test_an_error_ends_those_whom_it_concerns_and_the_thread_goes_on(engine, batcher, monkeypatch):
    feed = type(engine).feed
    monkeypatch.setattr(type(engine), "feed", lambda *args: (_ for _ in ()).throw(RuntimeError("broken")))
    ask, told = asked(batcher, [3], 8)
    assert len(all_of(told)) == 1
    assert isinstance(ask.error, RuntimeError)
    monkeypatch.setattr(type(engine), "feed", feed)
    ask, told = asked(batcher, [3], 8)
    assert all_of(told) == engine.complete([[3]], max_new_tokens=8, stop_ids=STOPS)[0]
    assert ask.error is None


def test_each_gets_what_it_would_get_alone(engine, batcher):
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, engine.tokenizer.vocab_size, (1 + 7 * n % 40,), generator=generator).tolist()
               for n in range(24)]  # fmt: skip
    hows = [{"temperature": (0.0, 0.7, 1.3)[n % 3], "top_k": (None, 5)[n % 2], "seed": n} for n in range(24)]

    def ask(n: int) -> list[int]:
        time.sleep(0.003 * n)
        return all_of(asked(batcher, prompts[n], 20, **hows[n])[1])

    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(ask, range(24)))
    alone = [engine.complete([prompt], max_new_tokens=20, stop_ids=STOPS, **how)[0]
             for prompt, how in zip(prompts, hows, strict=True)]  # fmt: skip
    assert together == alone
    assert len({len(row) for row in alone}) > 3


def test_who_leaves_gives_the_place_to_the_next(engine, batcher):
    blocked = [asked(batcher, [5 + n], 10_000, temperature=1.0, seed=n) for n in range(3)]
    for ask, told in blocked:
        told.get(timeout=30)
        ask.cancelled = True
    waiting = asked(batcher, [9], 4)
    assert all_of(waiting[1]) == engine.complete([[9]], max_new_tokens=4, stop_ids=STOPS)[0]
    until = time.monotonic() + 10
    while batcher.load != (0, 0) and time.monotonic() < until:
        time.sleep(0.01)
    assert batcher.load == (0, 0)


def test_what_cannot_be_served_is_said_at_once(engine, batcher):
    for prompt, how in (([], {}), ([1] * 49, {}), ([1], {"temperature": -1.0}), ([1], {"top_k": 0})):
        with pytest.raises(ValueError, match=r"prompt|temperature|top_k"):
            asked(batcher, prompt, 4, **how)
    assert all_of(asked(batcher, [1] * 48, 4)[1]) == []


def test_no_more_wait_than_will_be_served_soon(engine, monkeypatch):
    batcher = Batcher(engine, places=1, most_waiting=2)
    width = engine.model.config.width
    monkeypatch.setattr(type(engine), "feed", lambda *args: time.sleep(0.2) or torch.zeros(1, width))
    first = asked(batcher, [3], 30)
    first[1].get(timeout=30)
    asked(batcher, [4], 1)
    asked(batcher, [5], 1)
    with pytest.raises(Full):
        asked(batcher, [6], 1)
    first[0].cancelled = True
    batcher.close()


def test_who_is_not_done_when_it_is_closed_is_told_so(engine, monkeypatch):
    batcher = Batcher(engine, places=1)
    slowed(monkeypatch, "feed", 0.05)
    served, waiting = asked(batcher, [3], 30), asked(batcher, [4], 1)
    served[1].get(timeout=30)
    assert batcher.close()
    all_of(served[1])
    assert all_of(waiting[1]) == []
    assert all(isinstance(ask.error, Closed) for ask, _ in (served, waiting))
    with pytest.raises(Closed):
        asked(batcher, [6], 1)


@pytest.mark.parametrize("part", ["prefill", "feed"])
def test_only_an_idle_one_is_closed_if_that_is_asked_for(engine, batcher, monkeypatch, part):
    begun = slowed(monkeypatch, part, 0.3)
    ask, told = asked(batcher, [3], 2)
    assert begun.wait(30)
    assert not batcher.close(if_idle=True)
    assert len(all_of(told)) == 2
    assert ask.error is None
    until = time.monotonic() + 10
    while not batcher.close(if_idle=True) and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(Closed):
        asked(batcher, [6], 1)
