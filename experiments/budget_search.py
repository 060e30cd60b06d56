"""A search for the best model within a cap: what the policy is told of this machine, how its choices become runs, and
what is remembered of them."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from experiments.preparation import new_record, plan_of, preparing_of, start_checkpoint
from nanochat.config import TINYWORLD, RunConfig, from_dict
from nanochat.corpora import CORPORA
from nanochat.data.sources import cache_directory, open_sources
from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.model import ModelConfig, count_parameters
from nanochat.planning.deadlines import CLOSING_S, stage_tail_s, with_deadlines
from nanochat.planning.estimate import Plan, modelled_memory, step_seconds
from nanochat.planning.hardware import Hardware
from nanochat.planning.modes import MODES
from nanochat.planning.overheads import COMPILING, overhead_s
from nanochat.planning.preparing import begins_s, corpus_shards, unique_tokens
from nanochat.planning.resolve import Request, in_one_piece, resolve
from nanochat.run import Run, create
from nanochat.search.decisions import Commit, Config, Device, Observation, Overheads, Trial
from nanochat.search.policy import BudgetPolicy
from nanochat.search.priors import prior_for
from nanochat.search.space import Domain, Space, load_space
from nanochat.training.prepare import prepare_first, prepare_stage, prepare_tokenizer

SPACES = Path(__file__).parents[1] / "search_spaces"
CPU_TEMPLATES = ((0.25, "demo"), (1.0, "small"))  # vocabulary and context up to so many hours; medium's above
TRIAL_START_S = {"cpu": 6.0, "cuda": 10.0}  # a process, its imports, the data
WARM_START_S = {"cpu": 3.0, "cuda": 4.0}  # the data, in a process that has compiled for that depth
FINAL_START_S = {"cpu": 13.0, "cuda": 35.0}  # Ray Train and the same
EVALUATION_S = {"cpu": 3.0, "cuda": 5.0}
TRIAL_OVERTIME = 1.5  # a trial that takes so many times its budget is ended by its clock
MAX_REMEMBERED = 500  # trainings of all earlier searches
SHARED = ("train_tokens", "start_from", "start_tokenizer", "compile", "compute_dtype", "attention")
RECIPE = 2  # raised where the same configuration would end elsewhere: what was seen before then tells nothing
DATA_SPARE = 1.5  # text prepared, over what the first choice would go through


@dataclass(frozen=True)
class Asked:
    """What defines a search: the same command asks for the same."""

    request: Request
    """With its hours; depth, batch and learning rate are the search's unless given."""
    space: str
    fresh_prior: bool = False
    policy: str = "budget"
    start: str = ""
    """What --from said; the request has the checkpoint it meant."""

    @property
    def hours(self) -> float:
        assert self.request.hours is not None
        return self.request.hours

    @property
    def cap_s(self) -> float:
        return 3600 * self.hours


class BudgetSearch:
    """Everything about one search but the driving of it.

    Args:
        goes_on: with what this run's search has decided, counted and seen, if it has begun; not for a plan of other
            hardware.
    """

    def __init__(self, run: Run, asked: Asked, hardware: Hardware, *, goes_on: bool = True) -> None:
        self.run, self.asked, self.hardware, self.goes_on = run, asked, hardware, goes_on
        space = named_space(asked.space)
        self.stage = space.stage
        self.template = self._template()
        self.space = self._fitted(space)
        self.policy = self._policy(self._unique_tokens())

    # --- what the policy is told ------------------------------------------------------------------------------------

    def _template(self) -> RunConfig:
        """A configuration of which everything holds but what is searched."""
        mode = "medium"
        if self.hardware.device_type == "cpu":
            mode = next((name for hours, name in CPU_TEMPLATES if self.asked.hours <= hours), "medium")
        self.request, self.start_model, start = replace(self.asked.request, mode=mode), None, {}
        if self.request.start_from:
            checkpoint, tokenizer = start_checkpoint(self.request.start_from, Path())
            self.start_model = from_dict(ModelConfig, checkpoint.state["model"])
            start = {"start_from": checkpoint.location, "start_tokenizer": str(tokenizer)}
        on = self.hardware.device_type
        train_s = self.asked.cap_s - CLOSING_S[on] - FINAL_START_S[on]
        config = replace(self._resolved(replace(self.request, hours=None), None, train_s), **start)
        return replace(config, train_tokens=self._train_tokens()) if self._data() else config

    def _resolved(self, request: Request, attention: str | None, train_s: float | None = None) -> RunConfig:
        compiler = shutil.which("g++") or shutil.which("clang++")
        return resolve(
            request, self.hardware, compiler=compiler, start_model=self.start_model, attention=attention,
            cache=cache_directory(), train_s=train_s,
        ).config

    def _fitted(self, space: Space) -> Space:
        """The space, cut to what can be trained here."""
        domains = dict(space.domains)
        row = self.template.model.max_seq_len * self.asked.request.num_workers
        depth = self.asked.request.depth or (None if "depth" in space else self.template.model.depth)
        if depth is not None:
            domains["depth"] = Domain("depth", self.stage, depth, depth, "linear", 1)
        fits = [value for value in domains["depth"].values() if self._fits(int(value))]
        if not fits:
            raise UserError("no depth of this space fits into memory here", "lower --max-seq-len or the space's depths")
        domains["depth"] = replace(domains["depth"], high=max(fits))
        batch = domains.get("total_batch_size") or Domain(
            "total_batch_size", self.stage, self.template.base.total_batch_size, self.template.base.total_batch_size,
            "log2", 1,
        )  # fmt: skip
        batches = [value for value in batch.values() if value % row == 0]
        if not batches:
            flags = "--max-seq-len" if self.asked.request.num_workers == 1 else "--num-workers, --max-seq-len"
            raise UserError(
                f"no total_batch_size of this space is a multiple of {row:,} tokens, a row for each worker",
                f"change {flags} or the space",
            )
        if odd := [value for value in batch.values() if value > min(batches) and value % row]:
            raise UserError(
                f"total_batch_size {odd[0]:,} of this space is no multiple of {row:,} tokens, a row for each worker",
                "let it begin with a multiple, and go up by whole factors of two",
            )
        domains["total_batch_size"] = replace(batch, low=min(batches))
        if "lr_multiplier" not in domains:
            lr = self.template.stage(self.stage).lr_multiplier
            domains["lr_multiplier"] = Domain("lr_multiplier", self.stage, lr, lr, "log2", 1)
        return Space(space.name, domains)

    def _fits(self, depth: int) -> bool:
        needed = modelled_memory(replace(self.template, model=self._model(depth)), 1, self.hardware.device_type)
        return needed.total < 0.8 * self.hardware.memory_bytes

    def _model(self, depth: int) -> ModelConfig:
        model = self.template.model
        return ModelConfig.from_depth(depth, model.vocab_size, model.max_seq_len)

    def _policy(self, unique_tokens: float) -> BudgetPolicy:
        on = self.hardware.device_type
        workers = self.asked.request.num_workers
        devices = workers if on == "cuda" else 1

        @cache
        def parameters(depth: int) -> float:
            return float(count_parameters(self._model(depth)).scaling)

        @cache
        def rate(depth: int, batch: int) -> float:
            config = replace(self.template, model=self._model(depth))
            stage = in_one_piece(config, batch)
            if on == "cuda":
                rows = min(stage.device_batch_size, self.template.base.device_batch_size)
                stage = replace(stage, device_batch_size=rows)
            return batch / step_seconds(config, stage, self.hardware)

        compile_s = self._compile_s()
        start_s = TRIAL_START_S[on] + compile_s
        policy = BudgetPolicy(
            self.space,
            self.asked.cap_s,
            prior_for(on, self.asked.request.data, unique_tokens),
            Overheads(start_s, WARM_START_S[on], EVALUATION_S[on], FINAL_START_S[on] + compile_s,
                      self._reserve_s(self.asked.cap_s)),
            unique_tokens,
            self.asked.request.seed,
            device=Device(parameters, rate, devices, devices, self.template.model.max_seq_len),
        )
        if not self.asked.fresh_prior:
            policy.recall(self._remembered())
        if self.goes_on and self.journal.exists():
            policy.load_state_dict(json.loads(self.journal.read_text(encoding="utf-8")))
        return policy

    def _compile_s(self) -> float:
        """For the first time, as most configurations are of a width or a batch of their own."""
        return overhead_s(COMPILING, 1, self.hardware) if self.template.compile else 0.0

    def _reserve_s(self, cap_s: float) -> float:
        """Of so many, after the base stage: evaluating and saving it, the later stages, the report."""
        on = self.hardware.device_type
        tail_s = stage_tail_s(self.template, self.stage, self.hardware) + EVALUATION_S[on]
        mode = MODES[self.template.mode]
        share = {"base": mode.base_iterations or 0, "mid": mode.mid_iterations, "sft": mode.sft_iterations}
        asked = {stage: share[stage] for stage in self.template.trained_stages}
        later = 1 - asked[self.stage] / sum(asked.values())
        return CLOSING_S[on] + tail_s + later * (cap_s - CLOSING_S[on] - FINAL_START_S[on])

    def training_s(self, cap_s: float) -> float:
        """Of the searched stage, if there were so many seconds in all and no trials; with what there is to prepare."""
        begin_s = begins_s(preparing_of(self.template, self.hardware), self.hardware) + self._compile_s()
        return max(cap_s - begin_s - self._reserve_s(cap_s), 1.0)

    @property
    def journal(self) -> Path:
        """All that was decided and observed."""
        return self.run.directory / "search" / "policy.json"

    # --- data -------------------------------------------------------------------------------------------------------

    def prepare(self, say: Callable[[str], None]) -> None:
        """Make what all trials share: the tokenizer, and token shards for the longest training there may be. Of a
        corpus only those that training begins with, which fetches the others itself."""
        say("making the data" if self.asked.request.data == TINYWORLD else f"reading {self.asked.request.data}")
        if self.stage == "base":
            self.template = replace(self.template, train_tokens=self._train_tokens())
        asked = self.asked.request
        sources = open_sources(
            asked.data, cache_directory(), asked.chat, self.template.stages, say, corpus_shards(self.template)
        )
        tokenizer = prepare_tokenizer(self.run, self.template, sources, say)
        say(f"tokenising for {self.stage}")
        if self.stage == "base" and asked.data in CORPORA:
            prepare_first(self._as_searched(self.template), sources, tokenizer, cache_directory())
            return
        train = prepare_stage(self.stage, self.template, sources, tokenizer, cache_directory()).train
        if self.stage != "base":
            return
        enough = train.num_tokens >= (self.template.train_tokens or 0) and self.asked.request.data != TINYWORLD
        write_json(self._data_path, {**self._data(), "unique_tokens": None if enough else train.num_tokens})
        self.policy = self._policy(self._unique_tokens())

    def _train_tokens(self) -> int:
        """How much text to prepare: decided once, so that all trials and the final run find the same shards."""
        if not self._data():
            unlimited = self._policy(math.inf)  # which goes through the most
            longest = unlimited.best(unlimited.final_seconds(0.0), unlimited.device.final_devices)
            write_json(self._data_path, {"train_tokens": max(int(DATA_SPARE * longest.tokens), 1_000_000)})
        return int(self._data()["train_tokens"])

    def _unique_tokens(self) -> float:
        """Of the text: those prepared, or any number where they are as many as asked for; before that, an estimate."""
        counted = self._data().get("unique_tokens", unique_tokens(self.template))
        return math.inf if counted is None else float(counted)

    def _data(self) -> dict[str, Any]:
        """What was decided and counted of the text, if anything yet."""
        there = self.goes_on and self._data_path.exists()
        return json.loads(self._data_path.read_text(encoding="utf-8")) if there else {}

    @property
    def _data_path(self) -> Path:
        return self.run.directory / "search" / "data.json"

    # --- choices become runs ----------------------------------------------------------------------------------------

    def make_trial(self, trial: Trial, directory: Path) -> Run:
        """A run of the base stage alone, which saves nothing."""
        steps, overheads = trial.config.num_iterations, self.policy.overheads
        config = self.trial_config(trial.config, num_iterations=steps)
        deadline_s = overheads.fresh_s + TRIAL_OVERTIME * trial.budget_s + overheads.evaluation_s
        base = replace(config.base, eval_every=steps, checkpoint_every=steps, deadline_s=deadline_s)
        return self.create_trial(directory, replace(config, base=base, keep_checkpoints=0))

    def trial_config(self, chosen: Config, **request: Any) -> RunConfig:
        """Of a training of the searched stage alone, on one device."""
        asked = replace(self._request(chosen), stages=(self.stage,), hours=None, num_workers=1, **request)
        return self._as_searched(self._resolved(asked, self.template.attention), eval_questions=0)

    def _as_searched(self, config: RunConfig, **settings: Any) -> RunConfig:
        """With data, start and arithmetic as all others of this search."""
        stage = replace(config.stage(self.stage), **settings)
        return replace(config, **{self.stage: stage}, **{name: getattr(self.template, name) for name in SHARED})

    def create_trial(self, directory: Path, config: RunConfig, **record: Any) -> Run:
        """The run of a trial, with this search's tokenizer."""
        shutil.copytree(self.run.tokenizer_directory, Run(directory).tokenizer_directory, dirs_exist_ok=True)
        return create(directory, config, {"hardware": asdict(self.hardware), **record})

    def _request(self, config: Config) -> Request:
        most = config.total_batch_size // (self.template.model.max_seq_len * self.request.num_workers)
        settings = {name: math.gcd(int(value), most) for name, value in config.settings.items()}  # device_batch_size
        asked = replace(self.request, total_batch_size=config.total_batch_size, **settings,
                        compile="on" if self.template.compile else "off")  # fmt: skip
        if self.stage == "base":
            steps, assignments = self.space.domains.get("num_iterations"), asked.assignments
            if config.ends_early or (steps and config.num_iterations >= steps.high):  # there is time for more
                assignments = (*assignments, f"base.num_iterations={config.num_iterations}")
            return replace(asked, depth=config.depth, lr_multiplier=config.lr_multiplier, assignments=assignments)
        chosen = (f"{self.stage}.lr_multiplier={config.lr_multiplier:g}",
                  f"{self.stage}.num_iterations={config.num_iterations}")  # fmt: skip
        return replace(asked, hours=None, assignments=(*asked.assignments, *chosen))

    def commit(self, decision: Commit, now_s: float, runs_dir: Path) -> tuple[RunConfig, dict[str, Any]]:
        """The configuration and the record of the final run."""
        mean, sd = self.policy.forecast(decision.config)
        begin_s = now_s + self.policy.overheads.final_s - self._compile_s()
        return self._final_run(self._request(decision.config), decision.config, decision.why, now_s, begin_s, runs_dir,
                               predicted=mean, sd=sd)  # fmt: skip

    def outlook(self, runs_dir: Path) -> tuple[RunConfig, dict[str, Any]]:
        """The final run as it would be without any trial."""
        return self._new_record(self._request(self.first_choice()), runs_dir, None)

    def first_choice(self) -> Config:
        """The final run's configuration as it would be without any trial."""
        return self.policy.best(self.training_s(self.asked.cap_s), self.policy.device.final_devices)

    def adopt(
        self, trial: Run, chosen: Config, why: str, now_s: float, runs_dir: Path
    ) -> tuple[RunConfig, dict[str, Any]]:
        """The configuration and the record of the run that takes a trial's model over and goes on from there.

        Args:
            chosen: with the iterations that were made.
        """
        request = replace(self._request(chosen), hours=None)
        config, record = self._final_run(request, chosen, why, now_s, None, runs_dir)
        later = tuple(stage for stage in config.trained_stages if stage != self.stage)
        begin_s = now_s + FINAL_START_S[self.hardware.device_type]
        if later:
            try:
                rest = with_deadlines(replace(config, stages=later), self.asked.cap_s, self.hardware,
                                      self.asked.request.num_workers, begin_s)  # fmt: skip
                config = replace(config, **{stage: rest.stage(stage) for stage in later})
            except UserError as error:  # the model is not lost for it
                config = replace(config, stages=tuple(stage for stage in config.stages if stage not in later))
                record["reasons"].append(f"without {' and '.join(later)}: {error.message}")
        questions = config.stage(self.stage).eval_questions
        trained = replace(trial.config().stage(self.stage), num_iterations=chosen.num_iterations,
                          expected_iterations=None, deadline_s=None, eval_questions=questions)  # fmt: skip
        config = replace(config, cap_s=self.asked.cap_s, **{self.stage: trained})
        rest = replace(config, stages=tuple(stage for stage in config.stages if stage in later))
        plan = self._plan(config, None)
        plan = replace(plan, stages=(*plan.stages[:1], *self._plan(rest, begin_s).stages))  # the first is trained
        ours, theirs = self.run.directory / self.stage, trial.directory / self.stage
        if not ours.exists():
            os.rename(theirs, ours)
        if questions:  # which are still to be asked, by the run
            self.run.result_path(self.stage).unlink(missing_ok=True)
        return config, {**record, "plan": asdict(plan)}

    def _final_run(
        self, request: Request, chosen: Config, why: str, now_s: float, begin_s: float | None, runs_dir: Path,
        **predicted: float,
    ) -> tuple[RunConfig, dict[str, Any]]:
        choice = {"config": asdict(chosen), "why": why, "at_s": now_s, **predicted}
        write_json(self.run.directory / "search" / "commit.json", choice)
        config, record = self._new_record(request, runs_dir, begin_s)
        reason = (
            f"depth {chosen.depth}, total_batch_size {chosen.total_batch_size:,}, lr_multiplier "
            f"{chosen.lr_multiplier:.2g}: {why}"
        )
        return config, {**record, "reasons": [reason, *record["reasons"]]}

    def _new_record(
        self, request: Request, runs_dir: Path, begin_s: float | None
    ) -> tuple[RunConfig, dict[str, Any]]:
        config, record = new_record(request, runs_dir, self.hardware, begin_s)
        if self.request.compile == "auto":
            told = f"torch.compile {request.compile}: as in all of this search"
            record["reasons"] = [told if each.startswith("torch.compile") else each for each in record["reasons"]]
        config = self._as_searched(config)
        return config, {**record, "plan": asdict(self._plan(config, begin_s))}

    def _plan(self, config: RunConfig, begin_s: float | None) -> Plan:
        """Args: begin_s: when its first stage does, on the clock of the search; None: once all is prepared."""
        return plan_of(config, self.hardware, self.asked.request.num_workers, begin_s)

    # --- what is remembered -----------------------------------------------------------------------------------------

    @cached_property
    def _memory(self) -> Path:
        """Where searches on this hardware and data keep what they saw."""
        model = self.template.model
        key = [RECIPE, self.hardware.name, self.asked.request.data, model.vocab_size, model.max_seq_len,
               self.template.compile, self.template.compute_dtype]  # fmt: skip
        return cache_directory() / "search" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"

    def _remembered(self) -> list[Observation]:
        try:
            kept = json.loads(self._memory.read_text(encoding="utf-8"))
            return [Observation(**{**seen, "config": Config(**seen["config"])}) for seen in kept]
        except (OSError, ValueError, TypeError, KeyError):
            return []  # nothing remembered, or nothing that makes sense

    def remember(self) -> None:
        """Keep what this search saw, its final run included, for the next one."""
        seen = [each for each in self.policy.observations if not each.error]
        final = self.final()
        kept = [*self._remembered(), *seen, *([final] if final else [])]
        once = {json.dumps(asdict(each), sort_keys=True): asdict(each) for each in kept}
        write_json(self._memory, list(once.values())[-MAX_REMEMBERED:])

    def choice(self) -> dict[str, Any]:
        """What was decided on for the final run: config, why, at_s and, where the law chose, predicted and its sd."""
        return json.loads((self.run.directory / "search" / "commit.json").read_text(encoding="utf-8"))

    def final(self) -> Observation | None:
        """What came of the final run's base stage, unless it was one of the trials."""
        result = self.run.results().get("base")
        if not result or not result["iterations"] or "predicted" not in self.choice():
            return None
        config = Config(**self.choice()["config"])
        done = replace(config, num_iterations=result["iterations"])
        rate = result["tokens_per_second"] / self.policy.device.final_devices
        return Observation(done, result["tokens"], result["train_s"], 0.0, rate, result["val_bpb"])


def too_few(training_s: float, cap_s: float) -> bool:
    """Whether of so many seconds not enough would be left to train in."""
    return training_s < 0.2 * cap_s and training_s < 60


def named_space(name: str) -> Space:
    """Of search_spaces/, or of a file. Raises UserError when there is none, or a wrong one."""
    path = Path(name) if name.endswith(".py") or "/" in name else SPACES / f"{name}.py"
    if path.parent == SPACES and not path.exists():
        there = ", ".join(sorted(file.stem for file in SPACES.glob("*.py")))
        raise UserError(f"there is no search space {name!r}", f"choose --space {there}, or give a file of yours")
    return load_space(path)
