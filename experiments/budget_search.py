"""A search for the best model within a cap: what the policy is told of this machine, how its choices become runs, and
what it reports in the end."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments.session import new_record
from nanochat.config import TINYWORLD, TRAINED_STAGES, RunConfig
from nanochat.data.sources import cache_directory, open_sources
from nanochat.errors import UserError
from nanochat.files import write_json
from nanochat.model import ModelConfig, count_parameters
from nanochat.planning.deadlines import CLOSING_S, stage_tail_s, with_deadlines
from nanochat.planning.estimate import COMPILE_S, estimate, step_seconds, train_memory_bytes
from nanochat.planning.hardware import Hardware
from nanochat.planning.modes import MODES
from nanochat.planning.resolve import Request, resolve
from nanochat.report import Table, duration
from nanochat.run import Run, create
from nanochat.search.law import NAMES
from nanochat.search.policy import BudgetPolicy, Commit, Config, Device, Observation, Overheads, Trial
from nanochat.search.priors import prior_for
from nanochat.search.space import Domain, Space, load_space
from nanochat.training.prepare import prepare_stage, prepare_tokenizer

SPACES = Path(__file__).parents[1] / "search_spaces"
CPU_TEMPLATES = ((0.25, "demo"), (1.0, "small"))  # vocabulary and context up to so many hours; medium's above
EVAL_TOKENS = {"cpu": 40_960, "cuda": 4 * 524_288}
TRIAL_START_S = {"cpu": 6.0, "cuda": 10.0}  # a process, its imports, the data
FINAL_START_S = {"cpu": 16.0, "cuda": 30.0}  # Ray Train and the same
EVALUATION_S = {"cpu": 3.0, "cuda": 5.0}
TRIAL_OVERTIME = 1.5  # a trial that takes so many times its budget is ended by its clock
INTERVAL = 1.645  # standard deviations to either side that hold nine of ten
MAX_REMEMBERED = 500  # trainings of all earlier searches
DATA_SPARE = 1.5  # text prepared, over what the first choice would go through


@dataclass(frozen=True)
class Asked:
    """What defines a search: the same command asks for the same."""

    request: Request
    """With its hours; depth, batch and learning rate are the search's unless given."""
    space: str
    fresh_prior: bool = False
    policy: str = "budget"

    @property
    def hours(self) -> float:
        assert self.request.hours is not None
        return self.request.hours

    @property
    def cap_s(self) -> float:
        return 3600 * self.hours


class BudgetSearch:
    """Everything about one search but the driving of it."""

    def __init__(self, run: Run, asked: Asked, hardware: Hardware) -> None:
        self.run, self.asked, self.hardware = run, asked, hardware
        self.template = self._template()
        self.space = self._fitted_space()
        self.policy = self._policy(float("inf"))

    # --- what the policy is told ------------------------------------------------------------------------------------

    def _template(self) -> RunConfig:
        """A configuration of which everything holds but what is searched."""
        mode = "medium"
        if self.hardware.device_type == "cpu":
            mode = next((name for hours, name in CPU_TEMPLATES if self.asked.hours <= hours), "medium")
        self.request = replace(self.asked.request, mode=mode)
        return resolve(replace(self.request, hours=None), self.hardware, compiler=_compiler()).config

    def _fitted_space(self) -> Space:
        """The space that was asked for, cut to what can be trained here."""
        name = self.asked.space
        path = Path(name) if name.endswith(".py") or "/" in name else SPACES / f"{name}.py"
        if path.parent == SPACES and not path.exists():
            there = ", ".join(sorted(file.stem for file in SPACES.glob("*.py")))
            raise UserError(f"there is no search space {name!r}", f"choose --space {there}, or give a file of yours")
        space = load_space(path)
        if space.stage != "base":
            raise UserError(
                f"search space {space.name!r} is about stage {space.stage}, and this search trains base models",
                "choose --space budget or batch",
            )
        domains = dict(space.domains)
        row = self.template.model.max_seq_len * self.asked.request.num_workers
        depth = self.asked.request.depth or (None if "depth" in space else self.template.model.depth)
        if depth is not None:
            domains["depth"] = Domain("depth", "base", depth, depth, "linear", 1)
        fits = [value for value in domains["depth"].values() if self._fits(int(value))]
        if not fits:
            raise UserError("no depth of this space fits into memory here", "lower --max-seq-len or the space's depths")
        domains["depth"] = replace(domains["depth"], high=max(fits))
        batch = domains.get("total_batch_size") or Domain(
            "total_batch_size", "base", self.template.base.total_batch_size, self.template.base.total_batch_size,
            "log2", 1,
        )  # fmt: skip
        batches = [value for value in batch.values() if value % row == 0]
        if not batches:
            raise UserError(
                f"no total_batch_size of this space is a multiple of {row:,} tokens, a row for each worker",
                "change --max-seq-len or the space",
            )
        domains["total_batch_size"] = replace(batch, low=min(batches))
        return Space(space.name, domains)

    def _fits(self, depth: int) -> bool:
        needed = train_memory_bytes(self._model(depth), 1, self.template.compute_dtype, self.hardware.device_type)
        return needed < 0.8 * self.hardware.memory_bytes

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
            return batch / step_seconds(config, replace(config.base, total_batch_size=batch), self.hardware)

        compile_s = COMPILE_S[on] if self.template.compile else 0.0
        start_s = TRIAL_START_S[on] + compile_s
        policy = BudgetPolicy(
            self.space,
            self.asked.cap_s,
            prior_for(on, self.asked.request.data),
            Overheads(start_s, start_s, EVALUATION_S[on], FINAL_START_S[on] + compile_s, self._reserve_s()),
            unique_tokens,
            self.asked.request.seed,
            device=Device(parameters, rate, final_devices=devices, slots=devices),
        )
        if not self.asked.fresh_prior:
            policy.recall(self._remembered())
        if self.journal.exists():
            policy.load_state_dict(json.loads(self.journal.read_text(encoding="utf-8")))
        return policy

    def _reserve_s(self) -> float:
        """After the base stage: evaluating and saving it, the later stages, the report."""
        on = self.hardware.device_type
        tail_s = stage_tail_s(self.template, "base", on) + EVALUATION_S[on]
        mode = MODES[self.template.mode]
        share = {"base": mode.base_iterations or 0, "mid": mode.mid_iterations, "sft": mode.sft_iterations}
        asked = {stage: share[stage] for stage in self.template.trained_stages}
        later = 1 - asked["base"] / sum(asked.values())
        return CLOSING_S[on] + tail_s + later * (self.asked.cap_s - CLOSING_S[on] - FINAL_START_S[on])

    @property
    def journal(self) -> Path:
        """All that was decided and observed."""
        return self.run.directory / "search" / "policy.json"

    # --- data -------------------------------------------------------------------------------------------------------

    def prepare(self, say: Callable[[str], None]) -> None:
        """Make what all trials share: the tokenizer, and token shards for the longest training there may be."""
        say("making the data" if self.asked.request.data == TINYWORLD else f"reading {self.asked.request.data}")
        sources = open_sources(self.asked.request.data, cache_directory())
        self.template = replace(self.template, train_tokens=self._train_tokens())
        tokenizer = prepare_tokenizer(self.run, self.template, sources, say)
        say("tokenising for base")
        train = prepare_stage("base", self.template, sources, tokenizer, cache_directory()).train
        enough = train.num_tokens >= (self.template.train_tokens or 0) and self.asked.request.data != TINYWORLD
        self.policy = self._policy(float("inf") if enough else float(train.num_tokens))

    def _train_tokens(self) -> int:
        """How much text to prepare: decided once, so that all trials and the final run find the same shards."""
        path = self.run.directory / "search" / "data.json"
        if not path.exists():
            longest = self.policy.best(self.policy.final_seconds(0.0), self.policy.device.final_devices)
            write_json(path, {"train_tokens": max(int(DATA_SPARE * longest.tokens), 1_000_000)})
        return int(json.loads(path.read_text(encoding="utf-8"))["train_tokens"])

    # --- choices become runs ----------------------------------------------------------------------------------------

    def make_trial(self, trial: Trial, directory: Path) -> Run:
        """A run of the base stage alone, which saves nothing."""
        steps, overheads = trial.config.num_iterations, self.policy.overheads
        config = self.trial_config(trial.config, num_iterations=steps)
        deadline_s = overheads.fresh_s + TRIAL_OVERTIME * trial.budget_s + overheads.evaluation_s
        base = replace(config.base, eval_every=steps, checkpoint_every=steps, deadline_s=deadline_s)
        return self.create_trial(directory, replace(config, base=base, keep_checkpoints=0))

    def trial_config(self, chosen: Config, **request: Any) -> RunConfig:
        """Of a training of the base stage alone, on one device."""
        asked = replace(self._request(chosen), stages=("base",), hours=None, num_workers=1, **request)
        config = resolve(asked, self.hardware, compiler=_compiler()).config
        base = replace(config.base, eval_tokens=EVAL_TOKENS[self.hardware.device_type])
        return replace(config, base=base, train_tokens=self.template.train_tokens)

    def create_trial(self, directory: Path, config: RunConfig, **record: Any) -> Run:
        """The run of a trial, with this search's tokenizer."""
        shutil.copytree(self.run.tokenizer_directory, Run(directory).tokenizer_directory, dirs_exist_ok=True)
        return create(directory, config, {"hardware": asdict(self.hardware), **record})

    def _request(self, config: Config) -> Request:
        settings = {name: int(value) for name, value in config.settings.items()}
        return replace(self.request, depth=config.depth, total_batch_size=config.total_batch_size,
                       lr_multiplier=config.lr_multiplier, **settings)  # fmt: skip

    def commit(self, decision: Commit, now_s: float, runs_dir: Path) -> tuple[RunConfig, dict[str, Any]]:
        """The configuration and the record of the final run."""
        compile_s = COMPILE_S[self.hardware.device_type] if self.template.compile else 0.0
        mean, sd = self.policy.predict(decision.config, decision.config.tokens)
        return self._final_run(
            decision.config, decision.why, now_s, now_s + self.policy.overheads.final_s - compile_s, runs_dir,
            predicted=mean, sd=sd,
        )  # fmt: skip

    def adopt(
        self, trial: Run, chosen: Config, why: str, now_s: float, runs_dir: Path
    ) -> tuple[RunConfig, dict[str, Any]]:
        """The configuration and the record of the run that takes a trial's base model over and goes on from there."""
        config, record = self._final_run(chosen, why, now_s, now_s, runs_dir)
        later = tuple(stage for stage in config.stages if stage != "base")
        if any(stage in TRAINED_STAGES for stage in later):
            begin_s = now_s + FINAL_START_S[self.hardware.device_type]
            rest = with_deadlines(replace(config, stages=later), self.asked.cap_s, self.hardware,
                                  self.asked.request.num_workers, begin_s)  # fmt: skip
            config = replace(config, mid=rest.mid, sft=rest.sft)
        iterations = trial.results()["base"]["iterations"]
        config = replace(config, base=replace(trial.config().base, num_iterations=iterations, deadline_s=None))
        if not (self.run.directory / "base").exists():
            os.rename(trial.directory / "base", self.run.directory / "base")
        return config, {**record, "plan": asdict(estimate(config, self.hardware, self.asked.request.num_workers))}

    def _final_run(
        self, chosen: Config, why: str, now_s: float, begin_s: float, runs_dir: Path, **predicted: float
    ) -> tuple[RunConfig, dict[str, Any]]:
        choice = {"config": asdict(chosen), "why": why, "at_s": now_s, **predicted}
        write_json(self.run.directory / "search" / "commit.json", choice)
        config, record = new_record(self._request(chosen), runs_dir, self.hardware, begin_s)
        base = replace(config.base, eval_tokens=EVAL_TOKENS[self.hardware.device_type])
        config = replace(config, base=base, train_tokens=self.template.train_tokens)
        reason = (
            f"depth {chosen.depth}, total_batch_size {chosen.total_batch_size:,}, lr_multiplier "
            f"{chosen.lr_multiplier:.2g}: {why}"
        )
        return config, {**record, "reasons": [reason, *record["reasons"]]}

    # --- what is remembered -----------------------------------------------------------------------------------------

    @cached_property
    def _memory(self) -> Path:
        """Where searches on this hardware and data keep what they saw."""
        model = self.template.model
        key = [self.hardware.name, self.asked.request.data, model.vocab_size, model.max_seq_len]
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
        final = self._final()
        kept = [*self._remembered(), *seen, *([final] if final else [])]
        once = {json.dumps(asdict(each), sort_keys=True): asdict(each) for each in kept}
        write_json(self._memory, list(once.values())[-MAX_REMEMBERED:])

    def _committed(self) -> dict[str, Any]:
        return json.loads((self.run.directory / "search" / "commit.json").read_text(encoding="utf-8"))

    def _final(self) -> Observation | None:
        result = self.run.results().get("base")
        if not result or not result["iterations"]:
            return None
        config = Config(**self._committed()["config"])
        done = replace(config, num_iterations=result["iterations"])
        rate = result["tokens_per_second"] / self.policy.device.final_devices
        return Observation(done, result["tokens"], result["train_s"], 0.0, rate, result["val_bpb"])

    # --- what is reported -------------------------------------------------------------------------------------------

    def sections(self) -> list[Table | str]:
        """The evidence for the choice, for summary and report."""
        final = self._final()
        self.remember()
        told: list[Table | str] = [self.trial_table()] if self.policy.observations else []
        told += [self._verdict(final), self._law_table(), self._time_table(), self.hours_table()]
        return told

    def trial_table(self) -> Table:
        rows = tuple(
            (str(seen.config.depth), f"{seen.config.total_batch_size:,}", f"{seen.config.lr_multiplier:.2g}",
             f"{seen.tokens:,}", duration(seen.train_s), f"{seen.tokens_per_second:,.0f}",
             seen.error or f"{seen.val_bpb:.4f}")
            for seen in self.policy.observations
        )  # fmt: skip
        return Table("Trials", ("depth", "batch", "lr_multiplier", "tokens", "time", "tok/s", "val_bpb"), rows)

    def _verdict(self, final: Observation | None) -> str:
        committed = self._committed()
        config = committed["config"]
        text = (
            f"Chosen: depth {config['depth']}, total_batch_size {config['total_batch_size']:,}, lr_multiplier "
            f"{config['lr_multiplier']:.2g}: {committed['why']}."
        )
        if "predicted" not in committed:
            return text
        low, high = (committed["predicted"] + sign * INTERVAL * committed["sd"] for sign in (-1, 1))
        text += (
            f"\n\nPredicted val_bpb of the base stage {committed['predicted']:.3f} (nine in ten: {low:.3f} to "
            f"{high:.3f})"
        )
        if final is None or final.val_bpb is None:
            return text + "; it was not reached."
        verdict = "inside" if low <= final.val_bpb <= high else "OUTSIDE"
        return text + f"; achieved {final.val_bpb:.4f} on {final.tokens:,} tokens: {verdict} the interval."

    def _law_table(self) -> Table:
        fit = self.policy.fit
        rows = tuple(
            (name, f"{value:.3f}", f"± {INTERVAL * sd:.3f}", f"{before:.3f}", f"± {INTERVAL * before_sd:.3f}")
            for name, value, sd, before, before_sd in zip(
                NAMES, fit.theta, np.sqrt(np.diag(fit.covariance)), fit.prior.mean, fit.prior.sd, strict=True
            )
        )
        return Table("The law, see nanochat/search/law.py", ("number", "fitted", "", "prior", ""), rows)

    def _time_table(self) -> Table:
        """Where the time went, on the run's clock."""
        committed, results = self._committed(), self.run.results()
        rows = [("until the final run was decided on", committed["at_s"])]
        rows += [(f"of that in {len(self.policy.observations)} trials", self.policy.explored_s)]
        for stage, result in results.items():
            if stage != "tokenizer":
                rows.append((f"{stage}: compiling", result["first_step_s"]))
                rows.append((f"{stage}: training", result["train_s"] - result["first_step_s"]))
                rows.append((f"{stage}: evaluating, saving, answering", result["other_s"]))
        return Table("Where the time went", ("", "time"), tuple((name, duration(seconds)) for name, seconds in rows))

    def hours_table(self) -> Table:
        """What other caps would buy, by the law as it is known now."""
        rows = []
        for factor in (0.5, 1.0, 2.0, 4.0):
            seconds = factor * self.policy.final_seconds(0.0)
            config = self.policy.best(seconds, self.policy.device.final_devices)
            mean, sd = self.policy.predict(config, config.tokens)
            rows.append((f"{factor * self.asked.hours:g}", str(config.depth), f"{config.total_batch_size:,}",
                         f"{config.tokens:,}", f"{mean:.3f} ({mean - INTERVAL * sd:.3f} to {mean + INTERVAL * sd:.3f})"))  # fmt: skip  # noqa: E501
        return Table("What other hours would buy (estimates)", ("hours", "depth", "batch", "tokens", "val_bpb"), tuple(rows))  # noqa: E501


def _compiler() -> str | None:
    return shutil.which("g++") or shutil.which("clang++")
