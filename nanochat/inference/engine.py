"""Generation: batches of prompts of different lengths, a token a step, with the calculator at the model's call."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.inference.calculator import evaluate
from nanochat.inference.sampling import check_sampling, sample
from nanochat.model import KVCache, Transformer
from nanochat.model.determinism import distinct_places
from nanochat.tokenizer import Tokenizer

NO_RESULT = "error"  # what the calculator answers when it was given something else than arithmetic


@dataclass(frozen=True, slots=True)
class Token:
    """One token of one row's continuation."""

    row: int
    """Index of its prompt."""
    id: int
    forced: bool
    """Written by the tool, not chosen by the model."""


class Engine:
    """Generates from a model, with the KV cache sized to the job and finished rows dropped on the way.

    Args:
        model: any transformer, on any device; one from `load_model` is fastest, its matrices are not cast each step.
        tokenizer: the model's; ids from its vocabulary size on (padding of the embedding) are never generated.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
    ) -> Iterator[list[Token]]:
        """Continue every prompt; yields each step's tokens, one for each row that goes on, in no certain order.

        A row ends, without yielding it, at a stop token (by default `<|assistant_end|>` and `<|bos|>`), after
        `max_new_tokens`, or when prompt and continuation fill the model's context. Greedy rows do not depend on what
        else is in the batch, up to rounding, as its size decides which kernels multiply; sampled ones depend on seed,
        index and `max_new_tokens` only.

        Args:
            prompts: token ids, each from 1 to the context's length of them.
            max_new_tokens: of each row, those written by the tool included.

        Raises ValueError for an impossible prompt, temperature or top_k.
        """
        check_sampling(temperature, top_k)
        context = self.model.config.max_seq_len
        _check_prompts(prompts, context)
        stops = frozenset(self.default_stops() if stop_ids is None else stop_ids)
        limits = [min(max_new_tokens, context - len(prompt)) for prompt in prompts]
        rows = [Row(index, limit, self.tokenizer, stops) for index, limit in enumerate(limits) if limit > 0]
        if not rows:
            return
        uniform = torch.rand(len(prompts), min(max_new_tokens, context), generator=torch.Generator().manual_seed(seed))
        uniform = uniform[[row.index for row in rows]].to(self.device)  # each row has its own, however the others end
        started = [prompts[row.index] for row in rows]
        longest = max(map(len, started))
        hidden, cache = self.prefill(started, min(longest + max_new_tokens, context))
        for step in range(max(limits)):
            chosen = sample(self.logits(hidden), uniform[:, step], temperature, top_k).tolist()
            taken = [row.take(token) for row, token in zip(rows, chosen, strict=True)]
            if tokens := [token for token in taken if token is not None]:
                yield tokens
            if all(row.ended for row in rows):
                return
            rows, cache, uniform = _close_gaps(rows, cache, uniform)
            hidden = self.feed([row.last for row in rows], cache, min(longest + step + 1, context))

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """The continuation of every prompt, as `generate` makes it, stop tokens left out."""
        found: list[list[int]] = [[] for _ in prompts]
        for tokens in self.generate(
            prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed, stop_ids=stop_ids
        ):
            for token in tokens:
                found[token.row].append(token.id)
        return found

    @torch.inference_mode()
    def last_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits (prompts, tokenizer's vocabulary), fp32, of the token that follows each prompt, in one batch."""
        _check_prompts(prompts, self.model.config.max_seq_len)
        ids, lengths = self._padded(prompts)
        hidden = self.model.hidden(ids)  # causal: padding on the right changes nothing before it
        return self.logits(hidden[torch.arange(len(prompts), device=self.device), lengths - 1])

    @property
    def device(self) -> torch.device:
        return self.model.embedding.device

    def default_stops(self) -> list[int]:
        return [self.tokenizer.special("<|assistant_end|>"), self.tokenizer.bos_id]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)[..., : self.tokenizer.vocab_size]

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Prompts as one matrix (prompts, longest), padded on the right, and their lengths."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        return ids.to(self.device), lengths.to(self.device)

    def prefill(self, prompts: Sequence[Sequence[int]], capacity: int) -> tuple[Tensor, KVCache]:
        """The last hidden state of each prompt (prompts, width), and the cache it left."""
        ids, lengths = self._padded(prompts)
        cache = KVCache.empty(self.model.config, len(prompts), capacity, self.model.compute_dtype, self.device)
        hidden = self.model.hidden(ids, cache.part(len(prompts), ids.size(1)))
        cache.advance(lengths)  # padding was written behind each row's end and is overwritten as the row grows
        return hidden[torch.arange(len(prompts), device=self.device), lengths - 1], cache

    def feed(self, ids: Sequence[int], cache: KVCache, slots: int) -> Tensor:
        """One more token a row; its hidden state (rows, width). No row of the cache may reach beyond `slots`."""
        hidden = self.model.hidden(torch.tensor(ids, device=self.device)[:, None], cache.part(len(ids), slots))
        cache.advance(1)
        return hidden[:, 0]


def _close_gaps(rows: list["Row"], cache: KVCache, uniform: Tensor) -> tuple[list["Row"], KVCache, Tensor]:
    """The rows that have not ended, in the same memory: the last of them move to where others ended. Copying all that
    stay would take as long as generating does, where a row ends at every step."""
    count = sum(not row.ended for row in rows)
    gaps = [place for place in range(count) if rows[place].ended]
    if gaps:
        movers = [place for place in range(count, len(rows)) if not rows[place].ended]
        for gap, mover in zip(gaps, movers, strict=True):
            rows[gap] = rows[mover]
        cache.put(gaps, cache, movers)
        with distinct_places():
            uniform[gaps] = uniform[movers]
    return rows[:count], cache.part(count, cache.capacity), uniform[:count]


class Row:
    """One row's end, and its calculator: what stands between python_start and python_end is worked out when the latter
    comes; output_start, the result and output_end are then forced, a token a step."""

    def __init__(self, index: int, limit: int, tokenizer: Tokenizer, stops: frozenset[int]) -> None:
        self.index, self.limit, self.stops, self.tokenizer = index, limit, stops, tokenizer
        self.ended, self.last = False, -1
        self._count = 0
        self._call: list[int] | None = None  # tokens of the expression being written
        self._forced: deque[int] = deque()

    def take(self, chosen: int) -> Token | None:
        """The row's next token, given what the model chose; None if that ends the row."""
        forced = bool(self._forced)
        self.last = self._forced.popleft() if forced else chosen
        if not forced:
            if chosen in self.stops:
                self.ended = True
                return None
            self._follow_call(chosen)
        self._count += 1
        self.ended = self._count == self.limit
        return Token(self.index, self.last, forced)

    def _follow_call(self, token: int) -> None:
        special = self.tokenizer.special
        if token == special("<|python_start|>"):
            self._call = []
        elif self._call is not None and token == special("<|python_end|>"):
            result = self.tokenizer.encode(evaluate(self.tokenizer.decode(self._call)) or NO_RESULT)
            self._forced.extend([special("<|output_start|>"), *result, special("<|output_end|>")])
            self._call = None
        elif self._call is not None:
            self._call.append(token)


def _check_prompts(prompts: Sequence[Sequence[int]], context: int) -> None:
    for index, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= context:
            raise ValueError(f"prompt {index} has {len(prompt)} tokens; the model takes 1 to {context}")
