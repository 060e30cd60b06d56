"""Generation for many at once: a prompt joins the batch as soon as a place is free, and leaves it when it is done."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition, Thread

import torch
from torch import Tensor

from nanochat.inference.engine import Engine, Row, Token
from nanochat.inference.sampling import check_sampling, sample
from nanochat.model import KVCache

PLACES = 16
MOST_WAITING = 64


class Full(Exception):
    """More are waiting than will be served soon."""


class Closed(Exception):
    """The batcher was closed before this was done."""


@dataclass(eq=False)
class Ask:
    """One continuation that is asked for.

    Args:
        prompt: token ids, from 1 to the context's length of them.
        tell: called on the batcher's thread with each token, and with None at the end.
    """

    prompt: list[int]
    max_new_tokens: int
    tell: Callable[[Token | None], None]
    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0
    stop_ids: tuple[int, ...] | None = None
    cancelled: bool = field(default=False, init=False)
    """Set by anybody, at any time: its place is then given to the next."""
    error: Exception | None = field(default=None, init=False)
    """What went wrong, when the end is told."""

    @property
    def sampling(self) -> tuple[float, int | None]:
        return self.temperature, self.top_k


@dataclass
class _Seat:
    """A row of the batch."""

    ask: Ask
    row: Row
    uniform: Tensor
    """A number in [0, 1) for each of its tokens, whoever else is in the batch."""
    steps: int = 0


class Batcher:
    """A thread that generates for all who ask, first come, first served; the same tokens as `Engine.generate`.

    Args:
        places: rows that are generated at a time; the cache is of that size from the beginning.
    """

    def __init__(self, engine: Engine, places: int = PLACES, most_waiting: int = MOST_WAITING) -> None:
        self.engine, self.places, self.most_waiting = engine, places, most_waiting
        self._seats: list[_Seat] = []
        self._served = 0  # in a seat or about to be
        self._waiting: deque[Ask] = deque()
        self._changed, self._closed = Condition(), False
        config = engine.model.config
        self._cache = KVCache.empty(config, places, config.max_seq_len, engine.model.compute_dtype, engine.device)
        self._hidden = torch.zeros(places, config.width, dtype=engine.model.compute_dtype, device=engine.device)
        self._thread = Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """How many are being served, and how many wait."""
        return self._served, len(self._waiting)

    def submit(self, ask: Ask) -> None:
        """Have it served.

        Raises:
            ValueError: it cannot be.
            Full: not soon.
            Closed: not any more.
        """
        check_sampling(ask.temperature, ask.top_k)
        context = self.engine.model.config.max_seq_len
        if not 1 <= len(ask.prompt) <= context:
            raise ValueError(f"the prompt has {len(ask.prompt)} tokens; the model takes 1 to {context}")
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) >= self.most_waiting:
                raise Full
            self._waiting.append(ask)
            self._changed.notify()

    def close(self, *, if_idle: bool = False) -> bool:
        """End the thread; who is not done is told the end, with `Closed` as the error.

        Args:
            if_idle: only if nobody is served and nobody waits.

        Returns whether it is closed.
        """
        with self._changed:
            if if_idle and self.load != (0, 0):
                return False
            self._closed = True
            self._changed.notify()
        self._thread.join()
        return True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._served = len(self._seats)
                while not self._closed and not self._seats and not self._waiting:
                    self._changed.wait()
                joining = [self._waiting.popleft() for _ in range(min(self._free, len(self._waiting)))]
                self._served += len(joining)
                if self._closed:
                    ending = [*joining, *self._waiting, *(seat.ask for seat in self._seats)]
                    self._waiting.clear()
                    break
            self._serve(joining)
        for ask in ending:
            _end(ask, Closed())

    @property
    def _free(self) -> int:
        return self.places - len(self._seats)

    @torch.inference_mode()
    def _serve(self, joining: list[Ask]) -> None:
        """Let these in and generate a token for everybody. An error ends those whom it concerns, and nothing else."""
        for ask in joining:
            try:
                self._join(ask)
            except Exception as error:
                _end(ask, error)
        try:
            self._step()
        except Exception as error:
            for seat in self._seats:
                _end(seat.ask, error)
            self._seats = []

    def _join(self, ask: Ask) -> None:
        context, count = self.engine.model.config.max_seq_len, len(ask.prompt)
        limit = min(ask.max_new_tokens, context - count)
        if ask.cancelled or limit <= 0:
            ask.tell(None)
            return
        hidden, cache = self.engine.prefill([ask.prompt], count)
        place = len(self._seats)
        self._cache.put([place], cache, [0])
        self._hidden[place] = hidden[0]
        stops = frozenset(self.engine.default_stops() if ask.stop_ids is None else ask.stop_ids)
        generator = torch.Generator().manual_seed(ask.seed)
        uniform = torch.rand(min(ask.max_new_tokens, context), generator=generator).to(self.engine.device)
        self._seats.append(_Seat(ask, Row(0, limit, self.engine.tokenizer, stops), uniform))

    def _step(self) -> None:
        if not self._seats:
            return
        for seat, chosen in zip(self._seats, self._chosen(), strict=True):
            token = None if seat.ask.cancelled else seat.row.take(chosen)
            seat.steps += 1
            if token is not None:
                seat.ask.tell(token)
            if token is None or seat.row.ended:
                seat.row.ended = True
                seat.ask.tell(None)
        self._close_gaps()
        if count := len(self._seats):
            cache = self._cache.part(count, self._cache.capacity)
            filled = max(len(seat.ask.prompt) + seat.steps for seat in self._seats)
            self._hidden[:count] = self.engine.feed([seat.row.last for seat in self._seats], cache, filled)
            self._cache.lengths[:count] += 1

    def _chosen(self) -> list[int]:
        """A token for every seat, each sampled as it was asked for."""
        logits = self.engine.logits(self._hidden[: len(self._seats)])
        chosen = [0] * len(self._seats)
        for sampling in dict.fromkeys(seat.ask.sampling for seat in self._seats):
            places = [place for place, seat in enumerate(self._seats) if seat.ask.sampling == sampling]
            uniform = torch.stack([self._seats[place].uniform[self._seats[place].steps] for place in places])
            for place, token in zip(places, sample(logits[places], uniform, *sampling).tolist(), strict=True):
                chosen[place] = token
        return chosen

    def _close_gaps(self) -> None:
        """The last ones move to where others have ended."""
        place = 0
        while place < len(self._seats):
            if not self._seats[place].row.ended:
                place += 1
                continue
            last = len(self._seats) - 1
            if place < last:
                self._cache.put([place], self._cache, [last])
                self._seats[place] = self._seats[last]
            self._seats.pop()


def _end(ask: Ask, error: Exception) -> None:
    ask.error = error
    ask.tell(None)
