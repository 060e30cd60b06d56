"""How to spend hours: trials as long as what they teach is worth more than the training they take, then the final run.

Whoever drives the policy asks `decide`, does it, and tells `observe`; the clock and the machine are the driver's.
Almost everything the final run needs can be predicted, so a trial is insurance against a wrong prior: it is bought when
the expected gain of the final run (Frazier, Powell & Dayanik 2009, "The Knowledge-Gradient Policy for Correlated Normal
Beliefs") exceeds several times what its time would have brought.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from nanochat.search.decisions import Commit, Config, Device, Observation, Overheads, Trial
from nanochat.search.law import NAMES, Fit, Points, Prior, fit, predict
from nanochat.search.rates import Rates
from nanochat.search.space import Domain, Space

MIN_STEPS = 600  # of the final run, unless the space says otherwise; fewer lose at every cap
MIN_TRIAL_STEPS = 150
TRIAL_SHARES = (1 / 384, 1 / 192, 1 / 96, 1 / 48, 1 / 24)  # of the cap
MAX_EXPLORED = 0.08
WORTH = 3.0  # times its cost a package must be expected to gain
MAX_FAILED = 3  # trials without a result, and the rest of the time goes to the final run
CAP_IN_TRIALS = 100.0  # a shorter cap buys no trials at all
SPEED_TRIAL_S = 20.0
SAMPLES = 64
CANDIDATES = 80  # final configurations compared in a package's value
AS_GOOD = 0.1  # of the noise of a seed: a difference that is not worth time
LENGTHS = 2 ** (np.arange(60) / 2)  # times through repeated data that are considered
X0, ROWS = NAMES.index("x0"), "device_batch_size"
Array = np.ndarray


class BudgetPolicy:
    """Spends `cap_s` seconds, counted from the start of the command.

    Args:
        prior: what earlier runs and searches say about quality.
        unique_tokens: of the data; more are repeats.
        seed: of the samples behind the value of a trial.
    """

    def __init__(
        self,
        space: Space,
        cap_s: float,
        prior: Prior,
        overheads: Overheads,
        unique_tokens: float,
        seed: int,
        *,
        device: Device,
    ) -> None:
        self.space, self.cap_s, self.prior, self.overheads = space, cap_s, prior, overheads
        self.unique_tokens, self.seed, self.device = unique_tokens, seed, device
        self.observations: list[Observation] = []
        self.remembered: list[Observation] = []
        self.exploring = True
        self.explored_s = 0.0
        self._pending: list[Trial] = []
        self._running: list[Trial] = []
        self._refit()

    # --- asked by the driver ----------------------------------------------------------------------------------------

    def decide(self, now_s: float) -> Trial | Commit | None:
        """What to do next; None: nothing before a running trial is observed."""
        if not self._pending and not self._running and self.exploring:
            self._pending = self._package(now_s)
            self.exploring = bool(self._pending)
        if self._pending:
            self._running.append(self._pending.pop(0))
            return self._running[-1]
        return None if self._running else self._commit(now_s)

    def take_back(self, trial: Trial | None) -> None:
        """A trial that was decided on is not begun yet: it comes first when asked again."""
        if trial is not None:
            self._running.remove(trial)
            self._pending.insert(0, trial)

    def stop_exploring(self) -> None:
        """No more trials, whatever they might tell; those that run are given up."""
        self._pending, self._running, self.exploring = [], [], False

    def observe(self, observation: Observation) -> None:
        """Learn from a trial that has ended, well or badly."""
        self._running = [trial for trial in self._running if trial.config != observation.config]
        self.observations.append(observation)
        taken_s = observation.train_s + observation.startup_s + self.overheads.evaluation_s
        self.explored_s += taken_s / self.device.slots
        self._refit()

    def recall(self, observations: Iterable[Observation]) -> None:
        """Start from what earlier searches on this hardware and data have seen."""
        self.remembered = list(observations)
        self._refit()

    def predict(self, config: Config, tokens: float) -> tuple[float, float]:
        """Mean and standard deviation of the val_bpb of a training of that many tokens."""
        mean, sd = self.fit.predict(self._points([config], [tokens]))
        return float(mean[0]), float(sd[0])

    def forecast(self, config: Config) -> tuple[float, float]:
        """The same for a training by the clock, which has its tokens only if its throughput is what is believed."""
        mean, sd = self.predict(config, config.tokens)
        if config.ends_early:
            return mean, sd
        off = np.exp(self._rates.sd(config.depth))
        more, fewer = (self.predict(config, config.tokens * factor)[0] for factor in (off, 1 / off))
        return mean, float(np.hypot(sd, (more - fewer) / 2))

    def state_dict(self) -> dict[str, Any]:
        """All that was decided and observed, as plain data."""
        return {
            "observations": [asdict(observation) for observation in self.observations],
            "unfinished": [asdict(trial) for trial in (*self._running, *self._pending)],
            "exploring": self.exploring,
            "explored_s": self.explored_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`. What was running then is decided again; what was observed is not."""
        self.observations = [
            Observation(**{**data, "config": Config(**data["config"])}) for data in state["observations"]
        ]
        self._pending = [Trial(**{**data, "config": Config(**data["config"])}) for data in state["unfinished"]]
        self._running = []
        self.exploring, self.explored_s = state["exploring"], state["explored_s"]
        self._refit()

    # --- what is believed -------------------------------------------------------------------------------------------

    def _refit(self) -> None:
        good = [seen for seen in (*self.remembered, *self.observations) if seen.val_bpb is not None and seen.tokens > 0]
        points = self._points([seen.config for seen in good], [seen.tokens for seen in good]) if good else None
        self.fit: Fit = fit(self.prior, points, np.array([seen.val_bpb for seen in good]), self.unique_tokens)
        self._settings = self._fastest_rows()
        measured = [(seen.config.depth, seen.config.total_batch_size, seen.tokens_per_second)
                    for seen in (*self.remembered, *self.observations)
                    if seen.tokens_per_second > 0 and seen.config.settings == self._settings]  # fmt: skip
        self._rates = Rates(self.device.tokens_per_second, measured)
        too_large = [seen.config.depth for seen in self.observations if seen.error == "out_of_memory"]
        self.depths = [depth for depth in map(int, self.space["depth"].values()) if depth < min(too_large, default=999)]
        self.depths = self.depths or [int(self.space["depth"].low)]

    def _fastest_rows(self) -> dict[str, float]:
        """The device_batch_size that was fastest, of those a space has let us try."""
        tried = [seen for seen in self.observations if ROWS in seen.config.settings and seen.tokens_per_second > 0]
        fastest = max(tried, key=lambda seen: seen.tokens_per_second, default=None)
        return fastest.config.settings if fastest and ROWS in self.space else {}

    def tokens_per_second(self, depth: int, batch: int) -> float:
        """Of a trial, by all that was measured."""
        return self._rates.tokens_per_second(depth, batch)

    def _points(self, configs: Iterable[Config], tokens: Iterable[float]) -> Points:
        return Points.of(
            [
                (self.device.parameters(config.depth), count, config.total_batch_size, config.lr_multiplier)
                for config, count in zip(configs, tokens, strict=True)
            ]
        )

    # --- the final run ----------------------------------------------------------------------------------------------

    def final_seconds(self, now_s: float) -> float:
        """What is left for training if the final run is decided on now."""
        return max(self.cap_s - now_s - self.overheads.final_s - self.overheads.reserve_s, 1.0)

    def _commit(self, now_s: float) -> Commit:
        seconds = self.final_seconds(now_s)
        config = self.best(seconds, self.device.final_devices)
        mean, sd = self.forecast(config)
        learned = f"after {len(self.observations)} trials" if self.observations else "by what is known beforehand"
        why = f"lowest predicted val_bpb {learned}: {mean:.3f} ± {1.645 * sd:.3f}"
        if config.ends_early:
            times = config.tokens / self.unique_tokens
            why = f"all but the {why}; about {times:.1f} times through the text are enough, far more would harm it"
        return Commit(config, seconds, why)

    def best(self, seconds: float, devices: float = 1.0, min_steps: float | None = None) -> Config:
        """The configuration with the lowest predicted val_bpb after so many seconds of training. Where that ends before
        them, the shortest of those that are all but as good."""
        configs = self._grid(seconds, devices, min_steps)
        values = self._values(self.fit.theta[None], configs)[0]
        best, lr = configs[int(np.argmin(values))], self._best_lr(self.fit.theta[X0])
        if best.ends_early:
            alike = [configs[place] for place in np.flatnonzero(values <= values.min() + AS_GOOD * self.prior.noise)]
            best = min(alike, key=lambda c: c.tokens / self.tokens_per_second(c.depth, c.total_batch_size))
        return replace(best, lr_multiplier=lr, settings=self._settings)

    def _best_lr(self, x0: float) -> float:
        domain = self._domain("lr_multiplier")
        return float(np.clip(2**x0, domain.low, domain.high)) if domain else 1.0

    def _domain(self, name: str) -> Domain | None:
        return self.space.domains.get(name)

    def _grid(self, seconds: float, devices: float, min_steps: float | None = None) -> list[Config]:
        """Every depth and batch with enough steps; where none has, those with the most. No more than the space has.

        Where that is more than once through the data, shorter ones too.
        """
        domain = self._domain("num_iterations")
        least = min_steps or (domain.low if domain else MIN_STEPS)
        most_steps = domain.high if domain else np.inf

        def steps(depth: int, batch: int) -> int:
            return max(int(min(devices * seconds * self.tokens_per_second(depth, batch) / batch, most_steps)), 1)

        made = [
            Config(depth, batch, 1.0, steps(depth, batch))
            for depth in self.depths
            for batch in map(int, self.space["total_batch_size"].values())
        ]
        enough = [config for config in made if config.num_iterations >= least]
        most = max(config.num_iterations for config in made)
        enough = enough or [config for config in made if config.num_iterations == most]
        fewest = domain.low if domain else MIN_TRIAL_STEPS
        return [*enough, *(short for config in made for short in self._shorter(config, fewest))]

    def _shorter(self, config: Config, fewest: float) -> Iterator[Config]:
        """The same with fewer iterations, of a training that goes through the data more than once."""
        for times in LENGTHS.tolist():
            tokens = self.unique_tokens * times
            if tokens >= config.tokens:
                return
            if (steps := int(tokens / config.total_batch_size)) >= fewest:
                yield replace(config, num_iterations=steps, ends_early=True)

    def _values(self, thetas: Array, configs: Sequence[Config]) -> Array:
        """(samples, configs): predicted val_bpb, each with the learning rate that is best by its sample."""
        without = thetas.copy()
        without[:, X0] = 0.0  # the multiplier of a grid's configs is 1, so their learning rate costs nothing
        points = self._points(configs, [config.tokens for config in configs])
        return predict(without, points, self.prior, self.unique_tokens)

    # --- trials -----------------------------------------------------------------------------------------------------

    def _package(self, now_s: float) -> list[Trial]:
        """The trials most worth their time, or none."""
        allowed_s = MAX_EXPLORED * self.cap_s - self.explored_s
        failed = [seen.config for seen in self.observations if seen.error]
        if len(failed) >= MAX_FAILED or allowed_s <= 0 or self.cap_s < CAP_IN_TRIALS * self._cheapest_s():
            return []
        seconds = self.final_seconds(now_s)
        favourite = self.best(seconds, self.device.final_devices)
        if not self.observations and SPEED_TRIAL_S + self.overheads.fresh_s <= 0.01 * self.cap_s:
            return self._row_package(favourite) or [self._trial(favourite, SPEED_TRIAL_S, "to measure throughput")]
        rng = np.random.default_rng([self.seed, len(self.observations)])
        configs = self._contenders(seconds)
        best_now = self._lowest(seconds)
        worth, chosen = 0.0, []
        for package in self._packages(favourite):
            taken_s = self._seconds(package)
            if taken_s > allowed_s or taken_s > 0.5 * seconds or any(trial.config in failed for trial in package):
                continue
            points = self._points([trial.config for trial in package], [trial.config.tokens for trial in package])
            gain = self._gain(self.fit.after(points, SAMPLES, rng), configs, favourite)
            cost = self._lowest(seconds - taken_s) - best_now
            if gain - WORTH * cost > worth:
                worth, chosen = gain - WORTH * cost, package
        speeds = self._speed_package(seconds, favourite)
        taken_s = self._seconds(speeds)
        if speeds and taken_s <= min(allowed_s, 0.5 * seconds) and not any(t.config in failed for t in speeds):
            cost = self._lowest(seconds - taken_s) - best_now
            if self._speed_gain(speeds, seconds, rng) - WORTH * cost > worth:
                return speeds
        return chosen

    def _row_package(self, favourite: Config) -> list[Trial]:
        """Short trials of the rows of a forward pass, if the space has them, as many as a quarter of the time for
        trials holds: the most first, of which one that does not fit into memory is soon over."""
        domain = self._domain(ROWS)
        most = favourite.total_batch_size // self.device.row_tokens
        rows = [value for value in reversed(domain.values() if domain else []) if value <= most]
        a_trial_s = self.overheads.fresh_s + SPEED_TRIAL_S + self.overheads.evaluation_s
        count = int(0.25 * MAX_EXPLORED * self.cap_s / a_trial_s * self.device.slots)
        trials = [self._trial(favourite, SPEED_TRIAL_S, "to measure throughput") for _ in rows[:count]]
        return [replace(trial, config=replace(trial.config, settings={ROWS: value}))
                for trial, value in zip(trials, rows, strict=False)]  # fmt: skip

    def _speed_package(self, seconds: float, favourite: Config) -> list[Trial]:
        """A short trial of the depth most likely to be best of those whose throughput was not measured. With one device
        one at a time, as what it shows decides whether another is worth it."""
        values = self._best_by_depth(seconds)
        measured = set(self._rates.measured_depths.astype(int).tolist())
        depths = sorted(values.keys() - measured, key=lambda depth: values[depth])
        return [
            self._trial(replace(favourite, depth=depth), SPEED_TRIAL_S, "to measure throughput")
            for depth in depths[: self.device.slots]
        ]

    def _speed_gain(self, package: list[Trial], seconds: float, rng: np.random.Generator) -> float:
        """What knowing the throughput of those depths should gain: each then has more or fewer tokens than thought."""
        now, with_more = (self._best_by_depth(factor * seconds) for factor in (1.0, 1.1))
        depths = np.array(sorted(now.keys() & with_more.keys()), dtype=float)
        values = np.array([now[int(depth)] for depth in depths])
        per_rate = (np.array([with_more[int(depth)] for depth in depths]) - values) / np.log(1.1)
        asked = np.array([float(trial.config.depth) for trial in package])
        errors = self._rates.learned(asked, depths, 4 * SAMPLES, rng)
        learned = values[:, None] + per_rate[:, None] * errors  # (depths, samples)
        return float((learned[np.argmin(values)] - learned.min(axis=0)).mean())

    def _best_by_depth(self, seconds: float) -> dict[int, float]:
        """The lowest predicted val_bpb of each depth."""
        configs = self._grid(seconds, self.device.final_devices)
        best: dict[int, float] = {}
        for config, value in zip(configs, self._values(self.fit.theta[None], configs)[0], strict=True):
            best[config.depth] = min(best.get(config.depth, np.inf), float(value))
        return best

    def _gain(self, thetas: Array, configs: list[Config], favourite: Config) -> float:
        """By how much the final run should be better for knowing, on average over what may be learned."""
        known = self._values(thetas, configs).min(axis=1)
        unknowing = predict(thetas, self._points([favourite], [favourite.tokens]), self.prior, self.unique_tokens)[:, 0]
        return float(np.maximum(unknowing - known, 0.0).mean())

    def _contenders(self, seconds: float) -> list[Config]:
        configs = self._grid(seconds, self.device.final_devices)
        order = np.argsort(self._values(self.fit.theta[None], configs)[0])
        return [configs[place] for place in order[:CANDIDATES]]

    def _lowest(self, seconds: float) -> float:
        configs = self._grid(max(seconds, 1.0), self.device.final_devices)
        return float(self._values(self.fit.theta[None], configs).min())

    def _cheapest_s(self) -> float:
        """Of all trials that would tell anything."""
        batch = int(self.space["total_batch_size"].low)
        train_s = MIN_TRIAL_STEPS * batch / self.tokens_per_second(self.depths[0], batch)
        return self.overheads.warm_s + self.overheads.evaluation_s + train_s

    def _packages(self, favourite: Config) -> list[list[Trial]]:
        """Trials that tell most together: of learning rates, of batches, of both, and of depths."""
        spread = float(np.clip(np.sqrt(self.fit.covariance[X0, X0]), 0.7, 1.5))
        packages = []
        for share in TRIAL_SHARES:
            budget_s = share * self.cap_s
            small = self.best(budget_s, min_steps=MIN_TRIAL_STEPS)
            large = self.at(favourite.depth, favourite.total_batch_size, budget_s, favourite.lr_multiplier)
            for centre in {small.depth: small, large.depth: large}.values():
                lrs = [self._with_lr(centre, sign * spread) for sign in (-1, 1)]
                batches = [self._with_batch(centre, factor, budget_s) for factor in (0.5, 2.0)]
                wide = [self._with_batch(centre, factor, budget_s) for factor in (1 / 3, 1.0, 3.0)]
                packages += [
                    self._named("learning rates", lrs, budget_s),
                    self._named("batches", batches, budget_s),
                    self._named("batches", wide, budget_s),
                    self._named("learning rates and batches", [*lrs, *batches], budget_s),
                ]
            other = self._neighbour(favourite.depth)
            both = [self.at(depth, small.total_batch_size, budget_s, small.lr_multiplier)
                    for depth in (favourite.depth, other)]  # fmt: skip
            packages.append(self._named("depths", both, budget_s))
        return [package for package in packages if package]

    def _named(self, what: str, configs: list[Config], budget_s: float) -> list[Trial]:
        """The package, unless one of it would tell nothing or two are the same."""
        distinct = {(c.depth, c.total_batch_size, round(np.log2(c.lr_multiplier), 3)) for c in configs}
        short = any(config.num_iterations < MIN_TRIAL_STEPS for config in configs)
        if short or len(distinct) < len(configs):
            return []
        return [Trial(config, budget_s, f"to compare {what}") for config in configs]

    def _trial(self, config: Config, budget_s: float, why: str) -> Trial:
        return Trial(self.at(config.depth, config.total_batch_size, budget_s, config.lr_multiplier), budget_s, why)

    def at(
        self,
        depth: int,
        batch: int,
        budget_s: float,
        lr_multiplier: float,
        least_steps: float = MIN_TRIAL_STEPS,
        settings: dict[str, float] | None = None,
    ) -> Config:
        """That configuration for that long, with a smaller batch where the steps would be too few."""
        smaller = [int(value) for value in self.space["total_batch_size"].values() if value < batch]
        while smaller and budget_s * self.tokens_per_second(depth, batch) / batch < least_steps:
            batch = smaller.pop()
        steps = max(int(budget_s * self.tokens_per_second(depth, batch) / batch), 1)
        return Config(depth, batch, lr_multiplier, steps, self._settings if settings is None else settings)

    def _with_lr(self, config: Config, shift: float) -> Config:
        domain = self._domain("lr_multiplier")
        if domain is None:
            return config
        return replace(config, lr_multiplier=float(np.clip(config.lr_multiplier * 2**shift, domain.low, domain.high)))

    def _with_batch(self, config: Config, factor: float, budget_s: float) -> Config:
        batches = [int(value) for value in self.space["total_batch_size"].values()]
        batch = min(batches, key=lambda value: abs(np.log2(value / (config.total_batch_size * factor))))
        steps = max(int(budget_s * self.tokens_per_second(config.depth, batch) / batch), 1)
        return Config(config.depth, batch, config.lr_multiplier, steps, config.settings)

    def _neighbour(self, depth: int) -> int:
        others = [other for other in self.depths if other != depth]
        return min(others, key=lambda other: abs(np.log2(other / (0.7 * depth))), default=depth)

    def _seconds(self, package: list[Trial]) -> float:
        """What a package takes, with as many trials at a time as there are slots."""
        if not package:
            return 0.0
        total, warm_depth = 0.0, self.observations[-1].config.depth if self.observations else None
        for trial in package:
            start_s = self.overheads.warm_s if trial.config.depth == warm_depth else self.overheads.fresh_s
            total += start_s + trial.budget_s + self.overheads.evaluation_s
            warm_depth = trial.config.depth
        return total / min(self.device.slots, len(package))
