"""Tune's own ways to search, over the same space and the same hours: what the budget policy is compared with, and what
searches stages of which it has no law.

Of base models asha, random and grid share the hours among trials, each trained to the end of a schedule of its own, and
the best of them is the model; tpe chooses by short trials, and trains its choice for the rest. Trials of later stages
are as long as the space says, as many as there is time for, and the best is the model.
"""

import hashlib
import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator, Searcher

from experiments.budget_search import FINAL_START_S, TRIAL_START_S, Asked, BudgetSearch
from experiments.deadline import LEAVE_S, TimeIsUp, Watch, settle
from experiments.ray_tune import trained, trials_directory, tune
from experiments.trial_table import TrialTable
from nanochat.clock import RunClock, read_clock, start_clock
from nanochat.config import RunConfig
from nanochat.errors import UserError
from nanochat.events import Event, JsonlSink, Saved, StepDone, Validated, read_events
from nanochat.files import write_json
from nanochat.planning.deadlines import CLOSING_S, LOOKS, with_deadlines
from nanochat.planning.hardware import Hardware
from nanochat.run import Run, Status
from nanochat.search.decisions import Commit, Config, Observation
from nanochat.search.policy import MIN_STEPS, MIN_TRIAL_STEPS
from nanochat.search.space import Domain
from nanochat.training.checkpoint import CheckpointStore

RANDOM_TRIALS = 3  # times as many as there are devices
GRID_VALUES = 3  # of depth, and of batch
TPE_TRIALS, TPE_SHARE = 12, 0.25  # of the hours
FEW_TPE_TRIALS, SHORT_S = 2, 10.0  # where each of so many would get less time than that
LONGEST_SHARE = 0.4  # of the hours, for a trial that is not stopped early
NINTHS = 9  # of a trial: asha looks after one, and after three
MIN_LEFT_S = 5.0  # for a trial to begin
LATE_S = LEAVE_S + 4.0  # that trials may take to end after their end


@dataclass(frozen=True)
class Contest:
    """How the hours are divided, decided once."""

    run: Run
    asked: Asked
    hardware: Hardware
    trial_s: float
    """What a trial may take, from the start of its training."""
    end_s: float
    """When all of them are over, on the run's clock."""
    count: int
    """Of trials; -1: as many as there is time for."""

    @property
    def proxies(self) -> bool:
        """Whether trials only choose what is then trained."""
        return self.asked.policy == "tpe" and self.count > 0

    @property
    def least_steps(self) -> int:
        """Of a trial: those that end as the model take as many as the space says."""
        return MIN_TRIAL_STEPS if self.proxies else MIN_STEPS


def divided(search: BudgetSearch, now_s: float) -> Contest:
    """The contest of a search that begins, or goes on."""
    path = search.run.directory / "search" / "contest.json"
    if not path.exists():
        write_json(path, dict(zip(("trial_s", "end_s", "count"), _division(search, now_s), strict=True)))
    return Contest(search.run, search.asked, search.hardware, **json.loads(path.read_text(encoding="utf-8")))


def _division(search: BudgetSearch, now_s: float) -> tuple[float, float, int]:
    policy, on, slots = search.asked.policy, search.hardware.device_type, search.policy.device.slots
    stages = search.template.trained_stages
    goes_on = len(stages) > 1 or search.template.stage(stages[-1]).eval_questions > 0
    end_s = search.policy.cap_s - search.policy.overheads.reserve_s - (FINAL_START_S[on] if goes_on else 0.0)
    if policy == "asha" or search.stage != "base":
        return LONGEST_SHARE * (end_s - now_s), end_s, -1
    count = RANDOM_TRIALS * slots if policy == "random" else GRID_VALUES**2
    if policy == "tpe":
        end_s, count = now_s + TPE_SHARE * (end_s - now_s), TPE_TRIALS * slots
        if _share(end_s - now_s, count, slots, on) < SHORT_S:
            count = FEW_TPE_TRIALS * slots
    return _share(end_s - now_s, count, slots, on), end_s, count


def _share(seconds: float, count: int, slots: int, device_type: str) -> float:
    """Of each of `count` trials, `slots` at a time."""
    return max(seconds / math.ceil(count / slots) - TRIAL_START_S[device_type], MIN_LEFT_S)


# --- what may be tried ------------------------------------------------------------------------------------------------


def space_of(search: BudgetSearch, contest: Contest) -> dict[str, Any]:
    """Tune's search space: the space's domains, as far as a trial has time for its least number of steps."""
    if contest.asked.policy == "grid":
        return {"choice": ray.tune.grid_search(_grid(search, contest))}
    return {"choice": {name: _sampled(domain) for name, domain in _domains(search, contest).items()}}


def _domains(search: BudgetSearch, contest: Contest) -> dict[str, Domain]:
    domains = dict(search.space.domains)
    if search.stage == "base":  # as many steps as there is time for
        domains.pop("num_iterations", None)
        depths = _depths(search, contest)
        return {**domains, "depth": replace(domains["depth"], low=min(depths), high=max(depths))}
    least = domains["num_iterations"].low if "num_iterations" in domains else 1
    batches = _batches(search, contest, search.template.model.depth, least)
    return {**domains, "total_batch_size": replace(domains["total_batch_size"], high=max(batches))}


def _sampled(domain: Domain) -> Any:
    if domain.low == domain.high:
        return domain.low
    return (ray.tune.loguniform if domain.scale == "log2" else ray.tune.uniform)(domain.low, domain.high)


def _grid(search: BudgetSearch, contest: Contest) -> list[dict[str, float]]:
    """A few values of each number, evenly over those there is time for; of a base model those of depth and of batch,
    and of everything else the default."""
    if search.stage != "base":
        values = {name: _spread(domain.values()) for name, domain in _domains(search, contest).items()}
        return [dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())]
    return [{"depth": depth, "total_batch_size": batch} for depth in _spread(_depths(search, contest))
            for batch in _spread(_batches(search, contest, depth, contest.least_steps))]  # fmt: skip


def _batches(search: BudgetSearch, contest: Contest, depth: int, least_steps: float) -> list[int]:
    batches = [int(batch) for batch in search.space["total_batch_size"].values()]
    return [batch for batch in batches if _steps(search, contest, depth, batch) >= least_steps] or batches[:1]


def _depths(search: BudgetSearch, contest: Contest) -> list[int]:
    smallest = int(search.space["total_batch_size"].low)
    enough = [d for d in search.policy.depths if _steps(search, contest, d, smallest) >= contest.least_steps]
    return enough or search.policy.depths[:1]


def _steps(search: BudgetSearch, contest: Contest, depth: int, batch: int) -> int:
    return int(contest.trial_s * search.policy.tokens_per_second(depth, batch) / batch)


def _spread(values: Sequence[float]) -> list[float]:
    """The first, the last, and those evenly between."""
    places = {round(place * (len(values) - 1) / (GRID_VALUES - 1)) for place in range(GRID_VALUES)}
    return [values[place] for place in sorted(places)]


def config_of(search: BudgetSearch, contest: Contest, choice: dict[str, float]) -> Config:
    """What Tune has chosen, at the nearest values that the space has. The batch is lowered until a trial has its least
    number of steps."""
    at = {name: min(search.space[name].values(), key=lambda value, to=value: abs(value - to))
          for name, value in choice.items()}  # fmt: skip
    depth, batch = int(at.pop("depth", search.template.model.depth)), int(at.pop("total_batch_size"))
    stage = search.template.stage(search.stage)
    lr, steps = at.pop("lr_multiplier", stage.lr_multiplier), int(at.pop("num_iterations", stage.num_iterations))
    if search.stage != "base":
        return Config(depth, batch, lr, steps, at)
    return search.policy.at(depth, batch, contest.trial_s, lr, contest.least_steps, at)


# --- a trial ----------------------------------------------------------------------------------------------------------


def train_contender(settings: dict[str, Any], contest: Contest) -> None:
    """What a trial's worker runs. Its run is found by what was chosen: begun before, it goes on; finished before, it
    only tells again what came of it."""
    started = time.time()
    search = BudgetSearch(contest.run, contest.asked, contest.hardware)
    config = config_of(search, contest, settings["choice"])
    run = _run_of(search, contest, config)
    if run is None:
        ray.tune.report({"error": "no time was left", "val_bpb": math.inf})
        return
    try:
        with run.owned("worker"):
            emit = _Teller(run, contest, start_clock(run.clock_path, started))
            emit.again()
            result = trained(run, started, emit, contest.run.stop_requested)
    except UserError as error:  # another worker trains the very same
        result = {"error": error.message, "val_bpb": math.inf}
    ray.tune.report({**result, "ninths": NINTHS})


def _run_of(search: BudgetSearch, contest: Contest, config: Config) -> Run | None:
    """The run of a trial, made if it is new and there is time for it."""
    chosen = asdict(config)
    del chosen["ends_early"]  # which is ours to decide on
    if search.stage == "base":
        del chosen["num_iterations"]  # as many as there is time for
    key = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]
    run = Run(trials_directory(contest.run) / key)
    if run.exists():
        return run
    clock = read_clock(contest.run.clock_path)
    assert clock is not None
    seconds = min(contest.trial_s, contest.end_s - clock())
    if seconds < MIN_LEFT_S:
        return None
    made, stage = search.trial_config(config), search.stage
    if stage == "base":
        made = with_deadlines(made, seconds + CLOSING_S[contest.hardware.device_type], contest.hardware, spent_s=0.0)
    looks = NINTHS if contest.asked.policy == "asha" else LOOKS
    every = max(made.stage(stage).horizon // looks, 1)
    deadline_s = made.stage(stage).deadline_s or seconds
    changed = replace(made.stage(stage), eval_every=every, checkpoint_every=every, deadline_s=deadline_s)
    made = replace(made, keep_checkpoints=1, keep_best_checkpoint=False, **{stage: changed})
    return search.create_trial(run.directory, made, search=asdict(config))


class _Teller:
    """A trial's sink: its metrics into their file, its clock kept, and Tune told of each evaluation in asha, which may
    end it there."""

    def __init__(self, run: Run, contest: Contest, clock: RunClock) -> None:
        self.run, self.metrics, self.clock = run, JsonlSink(run.directory), clock
        (self.stage,) = run.config().trained_stages
        self.tells, self.progress = contest.asked.policy == "asha", 0.0

    def __call__(self, event: Event) -> None:
        self.metrics(event)
        if isinstance(event, Validated | Saved):
            self.clock = self.clock.beating(self.run.clock_path)
        self._tell(event)

    def again(self) -> None:
        """What was told before the command was stopped."""
        for event in read_events(self.run.directory, self.stage):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.progress = event.progress
        ninths = int(NINTHS * self.progress + 0.5)
        if self.tells and isinstance(event, Validated) and 0 < ninths < NINTHS:
            try:
                ray.tune.report({"val_bpb": event.val_bpb, "ninths": ninths})
            except SystemExit:
                self.run.write_status(Status("interrupted", self.stage, reason="stopped: others were better there"))
                shutil.rmtree(self.run.directory / self.stage / "checkpoints", ignore_errors=True)  # they may be many
                raise


# --- the whole of it --------------------------------------------------------------------------------------------------


def hold(
    search: BudgetSearch, contest: Contest, clock: RunClock, runs_dir: Path, table: TrialTable
) -> tuple[RunConfig, dict[str, Any]]:
    """Let Tune train trials, shown in `table`. Returns the configuration and the record of the run that goes on with
    their best.

    Raises:
        UserError: no trial got anywhere.
    """
    if not _choice_path(contest).exists() and clock() < contest.end_s:
        watch = Watch(search.run, contest.end_s + LATE_S, clock)

        def look() -> None:
            watch.look()
            table.look()
            if clock() > contest.end_s - MIN_LEFT_S and not table.busy:
                raise TimeIsUp

        trainable = ray.tune.with_parameters(train_contender, contest=contest)
        slots = search.policy.device.slots
        with suppress(TimeIsUp):
            tune(trainable, space_of(search, contest), _how(contest, slots), search.run, search.hardware, slots, look)
        search.run.clear_stop()
    best = _best(search, contest)
    if not contest.proxies:
        return search.adopt(best.run, best.config, best.why, clock(), runs_dir)
    now_s = clock()
    seconds, chosen = search.policy.final_seconds(now_s) * search.policy.device.final_devices, best.config
    final = search.policy.at(chosen.depth, chosen.total_batch_size, seconds, chosen.lr_multiplier,
                             settings=chosen.settings)  # fmt: skip
    return search.commit(Commit(final, seconds, best.why), now_s, runs_dir)


def _how(contest: Contest, slots: int) -> ray.tune.TuneConfig:
    """Tune's searcher and scheduler of that name."""
    policy, seed = contest.asked.policy, contest.asked.request.seed
    searcher: Any = BasicVariantGenerator(max_concurrent=slots, random_state=seed)
    scheduler = None
    if policy == "asha":
        scheduler = ASHAScheduler("ninths", "val_bpb", "min", max_t=NINTHS, grace_period=1, reduction_factor=3)
    elif policy == "tpe":
        searcher = _tpe(seed)
    return ray.tune.TuneConfig(
        search_alg=searcher,
        scheduler=scheduler,
        metric=None if policy == "asha" else "val_bpb",
        mode=None if policy == "asha" else "min",
        num_samples=1 if policy == "grid" else contest.count,
        max_concurrent_trials=slots if policy == "tpe" else None,
        reuse_actors=False,
    )


def _tpe(seed: int) -> Searcher:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return OptunaSearch(metric="val_bpb", mode="min", seed=seed)


@dataclass(frozen=True)
class _Contender:
    """A trial that is over: what is left of it."""

    run: Run
    observation: Observation
    val_bpb: float
    """Of the model that it has; infinite where it has none."""
    began: float


@dataclass(frozen=True)
class _Choice:
    run: Run
    config: Config
    why: str


def _best(search: BudgetSearch, contest: Contest) -> _Choice:
    """The best of the trials, which is noted before anything is done with it. Raises UserError when there is none."""
    path = _choice_path(contest)
    if not path.exists():
        contenders = sorted(_contenders(contest), key=lambda each: each.began)
        able = [each for each in contenders if math.isfinite(each.val_bpb)]
        if not able:
            raise UserError(
                f"none of {len(contenders)} trials got anywhere in {contest.trial_s:.0f} s each",
                "give more --hours, or leave --policy out",
            )
        best = min(able, key=lambda each: each.val_bpb)
        settle(best.run, best.run.config())
        why = f"lowest val_bpb of {len(contenders)} trials by {contest.asked.policy}: {best.val_bpb:.4f}"
        write_json(path, {"trial": best.run.name, "config": asdict(best.observation.config), "why": why})
    if not search.policy.observations:
        for each in sorted(_contenders(contest), key=lambda each: each.began):
            search.policy.observe(each.observation)
        write_json(search.journal, search.policy.state_dict())
    noted = json.loads(path.read_text(encoding="utf-8"))
    return _Choice(Run(trials_directory(contest.run) / noted["trial"]), Config(**noted["config"]), noted["why"])


def _contenders(contest: Contest) -> Iterator[_Contender]:
    for record in trials_directory(contest.run).glob("*/run.json"):
        run = Run(record.parent)
        (stage,) = run.config().trained_stages
        config, status = Config(**run.record()["search"]), run.status()
        whole = stage in run.results()
        result = run.results()[stage] if whole else _left_by(run, stage)
        has_model = bool(CheckpointStore(run.checkpoints(stage)).steps()) and result["tokens"] > 0
        error = "" if whole and has_model else (status.reason if status else "") or "it was not finished"
        seen = Observation(replace(config, num_iterations=result["iterations"]), result["tokens"], result["train_s"],
                           0.0, result["tokens_per_second"], None if error else result["val_bpb"], error)  # fmt: skip
        yield _Contender(run, seen, result["val_bpb"] if has_model else math.inf, record.stat().st_mtime)


def _left_by(run: Run, stage: str) -> dict[str, Any]:
    """What the events of a trial that did not end say of it."""
    steps, val_bpb = 0, math.inf
    train_s = tokens_per_second = 0.0
    for event in read_events(run.directory, stage):
        if isinstance(event, StepDone):
            steps, train_s, tokens_per_second = event.step, train_s + event.seconds, event.tokens_per_second
        elif isinstance(event, Validated) and event.step:
            val_bpb = event.val_bpb
    tokens = steps * run.config().stage(stage).total_batch_size
    return {"iterations": steps, "tokens": tokens, "train_s": train_s, "tokens_per_second": tokens_per_second,
            "val_bpb": val_bpb}  # fmt: skip


def _choice_path(contest: Contest) -> Path:
    return contest.run.directory / "search" / "choice.json"
