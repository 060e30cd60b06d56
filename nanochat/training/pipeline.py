"""A whole run: tokenizer, base, mid, SFT, one after the other, from wherever it stopped."""

import math
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from nanochat.clock import read_clock
from nanochat.config import TINYWORLD, TRAINED_STAGES, RunConfig, is_set, to_dict
from nanochat.corpora import CORPORA
from nanochat.data.batches import Batches, SequentialBatches
from nanochat.data.dataset import TokenDataset
from nanochat.data.growing import Feeder, GrowingDataset
from nanochat.data.shards import Spread
from nanochat.data.sources import Sources, cache_directory, open_sources
from nanochat.errors import UserError
from nanochat.evaluation.answering import grade, shown
from nanochat.evaluation.bpb import bits_per_byte
from nanochat.evaluation.code_runner import WARNING
from nanochat.events import Note, Prepared, Sampled, Sink, StageFinished, TasksScored, forget_after, recorded_bytes
from nanochat.files import write_json
from nanochat.inference.engine import Engine
from nanochat.inference.reply import read_reply
from nanochat.model import ModelConfig
from nanochat.planning.hardware import measure_peak
from nanochat.planning.memory import MemoryRecord
from nanochat.planning.preparing import corpus_shards
from nanochat.run import Run
from nanochat.tasks.questions import Summary, read_questions, spread, summarise
from nanochat.tokenizer import Tokenizer
from nanochat.tokenizer.chat import render_prompt
from nanochat.training.checkpoint import Checkpoint, CheckpointStore, open_checkpoint
from nanochat.training.loop import Interrupted, train_stage
from nanochat.training.prepare import StageData, prepare_growing, prepare_stage, prepare_tokenizer
from nanochat.training.prepared import made_since, note_tokens
from nanochat.training.result import StageResult
from nanochat.training.stage import Surroundings
from nanochat.training.trainee import build_trainee, load_weights, peak_rates
from nanochat.workers import Workers

# What checkpoints of earlier versions do not say of their model.
_OLD_MODEL = {each.name: each.default for each in fields(ModelConfig) if each.default is not MISSING}
TEXT_PROMPTS = ("The capital of France is", "Once upon a time")
CHAT_PROMPTS = (
    "Hello! What is your name?",
    "What is the capital of France?",
    "What is 47 + 38?",
    "How do you spell garden?",
)


def run_pipeline(
    run: Run,
    workers: Workers,
    emit: Sink,
    should_stop: Callable[[], bool],
    fault: Callable[[str], None] = lambda point: None,
    spread: Spread | None = None,
) -> None:
    """Go through the stages of the run's config that are not finished yet.

    Args:
        spread: for tokenising much text, see `build_text_shards`.
        fault: told the name of each point passed, for tests that break things there.

    Raises:
        UserError: data or checkpoints that the user must look at.
        Interrupted: `should_stop` said so; everything is saved.
    """
    config = run.config()
    _Pipeline(run, config, workers, emit, should_stop, fault, spread).run()


Weights = Callable[[], Checkpoint | None]
"""Opens those that a stage starts from; None: new ones."""


@dataclass(frozen=True)
class _Shared:
    """What every stage shares. Made by rank 0 and sent to the others, who open the same files."""

    sources: Sources
    data: dict[str, StageData]


class _Pipeline:
    def __init__(
        self,
        run: Run,
        config: RunConfig,
        workers: Workers,
        emit: Sink,
        should_stop: Callable[[], bool],
        fault: Callable[[str], None],
        spread: Spread | None,
    ) -> None:
        self.run_, self.config, self.workers, self.emit, self.should_stop = run, config, workers, emit, should_stop
        self.fault, self.spread = fault, spread
        self.feeder: Feeder | None = None

    def run(self) -> None:
        try:
            self._run()
        finally:
            self._stop_feeder()

    def _stop_feeder(self) -> None:
        if self.feeder:
            self.feeder.stop()

    def _run(self) -> None:
        prepared = self._prepare()
        self.tokenizer = Tokenizer.load(self.run_.tokenizer_directory)
        if not self.config.trained_stages:
            return
        self.peak_flops = 0.0
        self.trainee = build_trainee(self.config, self.workers, self.tokenizer.bos_id, draw=False)
        self.token_bytes = _padded(self.tokenizer.token_bytes(), self.config.model.vocab_size, self.workers.device)
        weights = self._beginning
        for stage in self.config.trained_stages:
            weights = self._stage(stage, prepared.data[stage], prepared.sources, weights)
            if stage == "base":
                self._stop_feeder()  # with a deadline, there may be more text than was gone through

    def _beginning(self) -> Checkpoint | None:
        """The weights that the first stage starts from: those asked for, or those of the stage before it in this run;
        None for new ones."""
        if self.config.start_from:
            return open_checkpoint(self.config.start_from)
        before = TRAINED_STAGES.index(self.config.trained_stages[0]) - 1
        if before < 0:
            return None
        stage = TRAINED_STAGES[before]
        store = CheckpointStore(self.run_.checkpoints(stage))
        warn = partial(self._note, stage, warning=True)
        return self.workers.from_lead(store.newest(warn) if self.workers.leads else None)

    def _prepare(self) -> _Shared:
        """Rank 0 makes tokenizer and shards; what stops it there is raised on every worker."""
        made: _Shared | UserError | Interrupted | None = None
        if self.workers.leads:
            try:
                made = self._prepare_here()
            except (UserError, Interrupted) as error:
                made = error
        made = self.workers.from_lead(made)
        if isinstance(made, Exception):
            raise made
        assert made is not None
        return made

    def _prepare_here(self) -> _Shared:
        cache, waited = cache_directory(), False

        def say(text: str) -> None:
            self._note("tokenizer", text)
            self._stop_if_asked()

        def look(point: str) -> None:
            self.fault(point)
            self._stop_if_asked()

        def waits() -> None:
            nonlocal waited
            if not waited:
                say("waiting for another run, which makes token shards")
            waited = True
            self._stop_if_asked()
        say("making the data" if self.config.data == TINYWORLD else f"reading {self.config.data}")
        had_shards = set((cache / "shards").glob("*"))
        start = time.perf_counter()
        sources = open_sources(
            self.config.data, cache, self.config.chat, self.config.stages, say, corpus_shards(self.config)
        )
        sources_s = time.perf_counter() - start
        tokenizer = prepare_tokenizer(self.run_, self.config, sources, say)
        self.fault("tokenizer")
        say(f"tokenizer of {tokenizer.vocab_size:,} tokens ready")
        start = time.perf_counter()
        data: dict[str, StageData] = {}
        for stage in self.config.trained_stages:
            say(f"tokenising for {stage}")
            if stage == "base" and self.config.data in CORPORA:
                data[stage], self.feeder = prepare_growing(self.run_, self.config, sources, tokenizer, cache, say)
                say("base: the first of the text is ready; the rest is fetched while the model trains")
                continue
            data[stage] = prepare_stage(stage, self.config, sources, tokenizer, cache, look, self.spread, waits)
            train = data[stage].train
            assert isinstance(train, TokenDataset)
            chosen = f", {100 * train.share:.2g} % of all, chosen by their content" if train.share < 1 else ""
            say(
                f"{stage}: {train.num_documents:,} {'documents' if stage == 'base' else 'conversations'}{chosen}, "
                f"{train.num_tokens:,} tokens in {train.num_rows:,} rows, none lost to cropping, "
                f"{train.padded_fraction:.1%} padding"
            )
        tokenising_s = time.perf_counter() - start
        note_tokens(self.config, cache, data)
        self.emit(Prepared("tokenizer", sources_s, tokenising_s, *made_since(had_shards, data)))
        return _Shared(sources, data)

    def _stop_if_asked(self) -> None:
        if self.should_stop():
            raise Interrupted

    def _note(self, stage: str, text: str, warning: bool = False) -> None:
        self.emit(Note(stage, text, warning))

    def _stage(self, name: str, data: StageData, sources: Sources, weights: Weights) -> Weights:
        """Train a stage, or skip it if it is finished.

        Args:
            weights: that it starts from; asked for where it does, as a stage that goes on does not need them.

        Returns:
            Its last checkpoint, if the run saves any.
        """
        config, workers, saves = self.config.stage(name), self.workers, self.config.keep_checkpoints > 0
        store = CheckpointStore(
            self.run_.checkpoints(name),
            keep_last=max(self.config.keep_checkpoints, 1),
            keep_best=self.config.keep_best_checkpoint,
            regular=lambda step: step % config.checkpoint_every == 0,
            fault=self.fault,
        )
        warn = partial(self._note, name, warning=True)
        found = workers.from_lead(store.newest(warn) if workers.leads else None)
        if found and self._finished(name, found.step):
            return lambda: found
        # Measured anew before each stage and the best kept: on a busy machine a single measurement is often low.
        peak = measure_peak(workers.device.type, self.config.compute_dtype)
        self.peak_flops = max(self.peak_flops, peak)
        identity: dict[str, Any] = {
            "model": to_dict(self.config.model),
            "tokenizer": self.tokenizer.fingerprint,
            "data": data.train.fingerprint,
        }
        if found:
            _check_identity(found, identity)
        # Of conversations nothing is known of that; and of a growing text more is still arriving.
        text = data.train if name == "base" and isinstance(data.train, TokenDataset) else None
        self.trainee.optimizer.peak = peak_rates(self.config, text.num_tokens if text else math.inf)
        self._restore(found, weights)
        if workers.leads:
            recorded, step = (found.state["recorded"], found.step) if found else (0, 0)
            forget_after(self.run_.directory, name, recorded, step)

        def validate(rows: int) -> float:
            return bits_per_byte(
                self.trainee.model,
                data.val,
                self.token_bytes,
                max_tokens=config.eval_tokens,
                rows_per_batch=rows,
                workers=workers,
            )

        def restore() -> Checkpoint | None:
            newest = None
            if workers.leads:  # rather not one that a Ctrl-C left: without it, the run must come back to the same place
                newest = store.newest(warn, store.regular) or store.newest(warn)
            return self._restore(workers.from_lead(newest), weights)

        memory = MemoryRecord(cache_directory(), self.run_.record()["hardware"]["name"])
        shape = self.config.model, self.config.compute_dtype
        rows, most = config.device_batch_size, workers.from_lead(memory.limit(*shape))
        if most and not self._rows_are_asked_for(name):
            rows = min(rows, most)
        around = Surroundings(
            workers=workers,
            store=store,
            emit=self.emit,
            validate=validate,
            should_stop=self.should_stop,
            restore=restore,
            saves=saves,
            identity=identity,
            peak_flops=self.peak_flops,
            run_clock=read_clock(self.run_.clock_path) or (lambda: 0.0),
            recorded=partial(recorded_bytes, self.run_.directory, name),
            remember_rows=partial(memory.remember, *shape) if workers.leads else lambda rows: None,
            fault=self.fault,
        )
        # The scaling rules were asked about the base stage's batch.
        by_batch = (config.total_batch_size / self.config.base.total_batch_size) ** 0.5
        tuned = replace(config, lr_multiplier=config.lr_multiplier * by_batch, device_batch_size=rows)
        total_rows, seed = config.total_batch_size // self.config.model.max_seq_len, self.config.seed
        batches = (
            SequentialBatches(data.train, total_rows, seed)
            if isinstance(data.train, GrowingDataset)
            else Batches(data.train, total_rows, seed)
        )
        result = train_stage(name, tuned, self.trainee, batches, around, found)
        self._finish(name, result, sources)
        return lambda: store.open(result.iterations) if saves else None

    def _rows_are_asked_for(self, stage: str) -> bool:
        """Whether it is the user who says how many rows a forward pass takes, whatever ran out of memory earlier."""
        asked = self.run_.record().get("request", {})
        by_name = is_set(f"{stage}.device_batch_size", asked.get("assignments", ()))
        return by_name or asked.get("device_batch_size") is not None

    def _finished(self, stage: str, step: int) -> bool:
        """Whether the stage ended at that step, which with a deadline may be before its last."""
        return self.run_.result_path(stage).exists() and self.run_.results()[stage]["iterations"] == step

    def _restore(self, found: Checkpoint | None, weights: Weights) -> Checkpoint | None:
        """Put `found` into model and optimizer, or else the state in which the stage begins. Returns `found`."""
        model, optimizer = self.trainee.model, self.trainee.optimizer
        if found:
            load_weights(model, found)
            optimizer.load_state_dict(found.tensors("optimizer"))
            return found
        optimizer.reset()
        if start := weights():
            load_weights(model, start)
        else:
            model.initialise(self.config.seed)
        return None

    def _finish(self, name: str, result: StageResult, sources: Sources) -> None:
        """Samples, task accuracies and the stage's record; rank 0's work, for which the others wait."""
        if not self.workers.leads:
            return
        engine = Engine(self.trainee.model, self.tokenizer)
        for prompt, text in samples(engine, chat=name != "base"):
            self.emit(Sampled(name, result.iterations, prompt, text))
        limit = self.config.stage(name).eval_questions
        if limit:
            start = time.perf_counter()
            questions, run_code = read_questions(sources.questions), self.config.run_code
            if run_code and any(question.kind == "code" for question in questions):
                self._note(name, WARNING, warning=True)
            asked = [question for question in questions if run_code or question.kind != "code"]
            graded = grade(engine, spread(asked, limit), run_code=run_code)
            result.scores = scores_of(summarise(graded))
            result.answering_s = time.perf_counter() - start
            result.other_s += result.answering_s
            self.emit(TasksScored(name, result.iterations, result.scores, result.answering_s))
        write_json(self.run_.result_path(name), asdict(result))
        self.emit(StageFinished(name, result.iterations, asdict(result)))


def samples(engine: Engine, *, chat: bool) -> list[tuple[str, str]]:
    """Greedy continuations of a few fixed texts, or answers to a few fixed questions."""
    tokenizer = engine.tokenizer
    prompts = CHAT_PROMPTS if chat else TEXT_PROMPTS
    ids = [
        render_prompt(tokenizer, [{"role": "user", "content": prompt}])
        if chat
        else [tokenizer.bos_id, *tokenizer.encode(prompt)]
        for prompt in prompts
    ]
    replies = engine.complete(ids, max_new_tokens=64 if chat else 32)
    return [(prompt, shown(read_reply(tokenizer, reply))) for prompt, reply in zip(prompts, replies, strict=True)]


def scores_of(summary: Summary) -> dict[str, dict[str, float]]:
    """A summary as plain data, "overall" first."""
    return {
        skill: {"accuracy": score.accuracy, "chance": score.chance, "count": score.total}
        for skill, score in (("overall", summary.overall), *summary.by_skill.items())
    }


def _check_identity(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    for part, ours in identity.items():
        theirs = checkpoint.state.get(part)
        if part == "model" and isinstance(theirs, dict):
            theirs = _OLD_MODEL | theirs
        if theirs != ours:
            raise UserError(
                f"{checkpoint.location} was trained with another {part} than this run now has",
                "put the old one back, or start under another --name",
            )


def _padded(token_bytes: Any, vocab_size: int, device: torch.device) -> torch.Tensor:
    """Bytes of each row of the embedding: rows past the tokenizer's vocabulary stand for nothing."""
    padded = torch.zeros(vocab_size, dtype=torch.int64)
    padded[: len(token_bytes)] = torch.as_tensor(token_bytes)
    return padded.to(device)
