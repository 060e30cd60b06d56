"""Worlds to try policies in: quality drawn around the law, with everything that makes real searches hard."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from nanochat.search.decisions import Commit, Config, Device, Observation, Overheads, Trial
from nanochat.search.law import NAMES, PUBLISHED, Points, Prior, fit, predict
from nanochat.search.policy import LENGTHS, BudgetPolicy
from nanochat.search.priors import SMALL
from nanochat.search.space import Space

FEATURES = 64
RATE_ERROR, DEPTH_RATE_ERROR, RUN_RATE_ERROR = 0.15, 0.05, 0.01  # of the logarithm of throughput
DEPTH_LUCK = 0.001  # of one depth, unlike its neighbours
WARM_UP_TRIALS, NEW_PLACE = 4, 0.25  # of the sampler that prefers what did well
Array = np.ndarray


@dataclass(frozen=True)
class Machine:
    """A kind of device as worlds know it: what the planner would say of it, and what does not train."""

    device: Device
    overheads: Overheads
    preset: Config
    """What a user would train without looking at the hours."""
    prior: Prior = PUBLISHED
    unique_tokens: float = np.inf


def gpu(unique_tokens: float = np.inf) -> Machine:
    """Like an A100: models from 5 to 700 million parameters, in bf16."""

    def parameters(depth: int) -> float:
        return 768.0 * depth**3 * 64 + 32_768 * 64.0 * depth

    def rate(depth: int, batch: int) -> float:
        utilisation = 0.45 * depth / (depth + 2.5)
        return 312e12 * utilisation / (6.5 * parameters(depth)) * batch / (batch + 16_384)

    preset = Config(12, 524_288, 1.0, 2000)
    return Machine(Device(parameters, rate), Overheads(60.0, 6.0, 5.0, 60.0, 40.0), preset, PUBLISHED, unique_tokens)


def two_cores(prior: Prior = SMALL) -> Machine:
    """Like the CPU of a small machine: models up to a few million parameters, in fp32."""

    def parameters(depth: int) -> float:
        return 12.0 * depth * (64 * depth) ** 2 + 1024 * 64.0 * depth

    def rate(depth: int, batch: int) -> float:
        utilisation = 0.35 * depth / (depth + 1)
        return 0.3e12 * utilisation / (6.5 * parameters(depth)) * batch / (batch + 256)

    return Machine(Device(parameters, rate), Overheads(12.0, 3.0, 3.0, 31.0, 14.0), Config(3, 3072, 5.0, 400), prior)


@dataclass(frozen=True)
class Shift:
    """How wrong the prior is in a world, in octaves."""

    lr: float = 0.0
    batch: float = 0.0


class World:
    """One truth: what any configuration would reach, and how long it would take."""

    def __init__(self, machine: Machine, seed: int, shift: Shift | None = None, spread: float = 0.5) -> None:
        """`spread` is how far the truth lies from the prior, in its standard deviations; `shift` is in place of that
        for learning rate and batch."""
        self.machine, self.rng = machine, np.random.default_rng([seed, 1])
        prior, rng = machine.prior, np.random.default_rng([seed, 0])
        believed = fit(prior, None, np.zeros(0))
        self.theta = believed.theta + spread * np.linalg.cholesky(believed.covariance) @ rng.standard_normal(len(NAMES))
        for name, sd in (("x0", 0.3), ("lB", 0.4)):
            self.theta[NAMES.index(name)] = believed.theta[NAMES.index(name)] + sd * rng.standard_normal()
        if shift:
            self.theta[NAMES.index("x0")] += shift.lr * rng.choice([-1, 1])
            self.theta[NAMES.index("lB")] += shift.batch * rng.choice([-1, 1])
        self._frequencies = rng.standard_normal((FEATURES, 2))
        self._phases = rng.uniform(0, 2 * np.pi, FEATURES)
        self._luck = DEPTH_LUCK * rng.standard_normal(200)
        self._rate_error = RATE_ERROR * rng.standard_normal()
        self._depth_rate_error = DEPTH_RATE_ERROR * rng.standard_normal(200)

    def quality(self, configs: list[Config]) -> Array:
        """val_bpb without the luck of a seed."""
        parameters = self.machine.device.parameters
        points = Points.of([(parameters(c.depth), c.tokens, c.total_batch_size, c.lr_multiplier) for c in configs])
        places = np.stack([np.log(points.parameters), np.log(points.tokens)], axis=1)
        waves = np.cos(places @ self._frequencies.T + self._phases) * np.sqrt(2 / FEATURES)
        luck = self._luck[[config.depth for config in configs]]
        law = predict(self.theta, points, self.machine.prior, self.machine.unique_tokens)
        return law + self.machine.prior.model_error * waves.sum(axis=1) + luck

    def rate(self, config: Config) -> float:
        """Tokens per second."""
        errors = self._rate_error + self._depth_rate_error[config.depth]
        return self.machine.device.tokens_per_second(config.depth, config.total_batch_size) * float(np.exp(errors))

    def train(self, config: Config, seconds: float) -> tuple[Config, float, float]:
        """What comes of it: the config with the steps it made, its val_bpb, and the throughput of this very run."""
        rate = self.rate(config) * float(np.exp(RUN_RATE_ERROR * self.rng.standard_normal()))
        steps = max(min(config.num_iterations, int(seconds * rate / config.total_batch_size)), 1)
        done = replace(config, num_iterations=steps)
        return done, float(self.quality([done])[0] + self.machine.prior.noise * self.rng.standard_normal()), rate

    def clairvoyant(self, space: Space, cap_s: float) -> float:
        """The best that could be had if everything were known, without the luck of a seed."""
        seconds = cap_s - self.machine.overheads.final_s - self.machine.overheads.reserve_s
        longest = self.full_length(space, seconds)
        tokens = self.machine.unique_tokens * LENGTHS
        shorter = [replace(config, num_iterations=int(count / config.total_batch_size)) for config in longest
                   for count in tokens if config.total_batch_size <= count < config.tokens]  # fmt: skip
        return float(self.quality([*longest, *shorter]).min())

    def full_length(self, space: Space, seconds: float) -> list[Config]:
        """Every depth and batch of a space for so long, with the learning rate that is best in this world."""
        lr = float(2 ** self.theta[NAMES.index("x0")])
        made = [Config(depth, batch, lr, 1) for depth in map(int, space["depth"].values())
                for batch in map(int, space["total_batch_size"].values())]  # fmt: skip
        return [replace(c, num_iterations=max(int(seconds * self.rate(c) / c.total_batch_size), 1)) for c in made]


@dataclass(frozen=True)
class Outcome:
    """How a search ended."""

    config: Config
    quality: float
    """Of its final model, without the luck of a seed."""
    achieved: float
    predicted: float
    predicted_sd: float
    explored_s: float
    ended_s: float


def simulate(policy: BudgetPolicy, world: World) -> Outcome:
    """Drive a policy through a world to its end."""
    now, warm_depth, overheads = 0.0, None, world.machine.overheads
    while True:
        decision = policy.decide(now)
        if isinstance(decision, Commit):
            break
        if not isinstance(decision, Trial):
            raise RuntimeError("one trial at a time, and yet the policy waits")
        startup_s = overheads.warm_s if decision.config.depth == warm_depth else overheads.fresh_s
        warm_depth = decision.config.depth
        done, val_bpb, rate = world.train(decision.config, 2 * decision.budget_s)
        train_s = done.tokens / rate
        now += startup_s + train_s + overheads.evaluation_s
        policy.observe(Observation(decision.config, done.tokens, train_s, startup_s, rate, val_bpb))
    explored_s = now
    config = decision.config
    if not config.ends_early:
        config = replace(config, num_iterations=2 * config.num_iterations)  # the clock ends it
    done, achieved, _ = world.train(config, decision.budget_s)
    mean, sd = policy.forecast(decision.config)
    ended_s = explored_s + overheads.final_s + decision.budget_s + overheads.reserve_s
    return Outcome(done, float(world.quality([done])[0]), achieved, mean, sd, explored_s, ended_s)


Search = Callable[[World, Space, float, int], float]


def all_but_luck(world: World, space: Space, cap_s: float, seed: int) -> float:
    """What knowing the law's true numbers and every throughput gives: the rest cannot be learned by it."""
    del seed
    seconds = cap_s - world.machine.overheads.final_s - world.machine.overheads.reserve_s
    configs = world.full_length(space, seconds)
    parameters = world.machine.device.parameters
    points = Points.of([(parameters(c.depth), c.tokens, c.total_batch_size, c.lr_multiplier) for c in configs])
    law = predict(world.theta, points, world.machine.prior, world.machine.unique_tokens)
    return float(world.quality([configs[int(np.argmin(law))]])[0])


def fixed_preset(world: World, space: Space, cap_s: float, seed: int) -> float:
    """The same training whatever the hours, cut off where they are too few."""
    del space, seed
    seconds = cap_s - world.machine.overheads.final_s - world.machine.overheads.reserve_s
    preset = world.machine.preset
    steps = min(preset.num_iterations, int(seconds * world.rate(preset) / preset.total_batch_size))
    return float(world.quality([replace(preset, num_iterations=max(steps, 1))])[0])


def rule_of_thumb(world: World, space: Space, cap_s: float, seed: int) -> float:
    """Eight tokens a parameter at the measured throughput, batch and learning rate by the scaling rules."""
    del seed
    lr = world.machine.preset.lr_multiplier
    seconds = cap_s - world.machine.overheads.final_s - world.machine.overheads.reserve_s
    best, distance = None, np.inf
    for depth in map(int, space["depth"].values()):
        batch = _rule_batch(world, space, seconds, depth)
        config = Config(depth, batch, lr, max(int(seconds * world.rate(Config(depth, batch, lr, 1)) / batch), 1))
        away = abs(np.log(config.tokens / world.machine.device.parameters(depth) / 8))
        if away < distance:
            best, distance = config, away
    assert best is not None
    return float(world.quality([best])[0])


def _rule_batch(world: World, space: Space, seconds: float, depth: int) -> int:
    prior, batches = world.machine.prior, [int(value) for value in space["total_batch_size"].values()]
    tokens = seconds * world.rate(Config(depth, batches[len(batches) // 2], 1.0, 1))
    best = prior.reference_batch * 2 ** prior.mean[5] * (tokens / prior.reference_tokens) ** prior.mean[6]
    return min(batches, key=lambda value: abs(np.log(value / min(best, tokens / 600))))


def _random(world: World, space: Space, seconds: float, rng: np.random.Generator) -> Config:
    """Depth, batch and learning rate at random, of those that make a hundred steps or more."""
    while True:
        depth, batch = (int(rng.choice(space[name].values())) for name in ("depth", "total_batch_size"))
        lr = float(rng.choice(space["lr_multiplier"].values()))
        steps = int(seconds * world.rate(Config(depth, batch, lr, 1)) / batch)
        if steps >= 100:
            return Config(depth, batch, lr, steps)


def random_trials(world: World, space: Space, cap_s: float, seed: int, count: int = 3) -> float:
    """A few random configurations trained in full; the best is the model."""
    rng, overheads = np.random.default_rng([seed, 2]), world.machine.overheads
    seconds = (cap_s - overheads.reserve_s) / count - overheads.fresh_s - overheads.evaluation_s
    configs = [_random(world, space, seconds, rng) for _ in range(count)]
    measured = [world.train(config, seconds)[1] for config in configs]
    return float(world.quality([configs[int(np.argmin(measured))]])[0])


def asha(world: World, space: Space, cap_s: float, seed: int, reduction: int = 3, rungs: int = 4) -> float:
    """Successive halving: many short ones, the best third of them three times as long, and so on; each length has its
    own schedule, which favours it over what stops a running trial."""
    rng, overheads = np.random.default_rng([seed, 3]), world.machine.overheads
    count = reduction ** (rungs - 1)
    overhead_s = sum(reduction**rung for rung in range(rungs)) * (overheads.fresh_s + overheads.evaluation_s)
    a_rung_s = max((cap_s - overheads.reserve_s - overhead_s) / rungs, cap_s / 100)
    lengths = [a_rung_s / count * reduction**rung for rung in range(rungs)]
    alive = [_random(world, space, lengths[-1], rng) for _ in range(count)]
    for rung, length in enumerate(lengths):
        configs = [replace(c, num_iterations=max(int(length * world.rate(c) / c.total_batch_size), 1)) for c in alive]
        order = np.argsort([world.train(config, length)[1] for config in configs])
        alive = [configs[place] for place in order[: max(count // reduction ** (rung + 1), 1)]]
    return float(world.quality(alive)[0])


def proxies(world: World, space: Space, cap_s: float, seed: int, trials: int = 12) -> float:
    """A quarter of the cap on short trials of a sampler that prefers what did well (TPE's habit), then the best of
    them for the rest."""
    rng, overheads = np.random.default_rng([seed, 4]), world.machine.overheads
    length = 0.25 * cap_s / trials - overheads.fresh_s - overheads.evaluation_s
    rest = 0.75 * cap_s - overheads.final_s - overheads.reserve_s
    if length < 1:
        trials, length = 2, max(0.125 * cap_s - overheads.fresh_s - overheads.evaluation_s, 1.0)
    seen: list[tuple[float, Config]] = []
    for number in range(trials):
        if number < WARM_UP_TRIALS or rng.random() < NEW_PLACE:
            config = _random(world, space, length, rng)
        else:
            config = _near(world, space, length, rng, min(seen, key=lambda pair: pair[0])[1])
        seen.append((world.train(config, length)[1], config))
    best = min(seen, key=lambda pair: pair[0])[1]
    final = replace(best, num_iterations=max(int(rest * world.rate(best) / best.total_batch_size), 1))
    return float(world.quality([final])[0])


def _near(world: World, space: Space, seconds: float, rng: np.random.Generator, config: Config) -> Config:
    def moved(name: str, value: float) -> float:
        values = space[name].values()
        place = int(np.argmin(np.abs(np.log(np.array(values) / value))))
        return values[int(np.clip(place + rng.integers(-1, 2), 0, len(values) - 1))]

    depth, batch = int(moved("depth", config.depth)), int(moved("total_batch_size", config.total_batch_size))
    near = Config(depth, batch, moved("lr_multiplier", config.lr_multiplier), 1)
    return replace(near, num_iterations=max(int(seconds * world.rate(near) / batch), 1))


def ladder(world: World, space: Space, cap_s: float, seed: int) -> float:
    """A fifth of the cap on a ladder of small compute-optimal runs, whose best ratio of tokens to parameters is then
    used for the rest."""
    del seed
    overheads = world.machine.overheads
    rest = 0.8 * cap_s - overheads.final_s - overheads.reserve_s
    length = max(0.2 * cap_s / 4 - overheads.fresh_s - overheads.evaluation_s, 1.0)
    results = []
    for ratio in (2.0, 5.0, 12.0, 30.0):
        config = _by_ratio(world, space, length, ratio)
        results.append((world.train(config, length)[1], ratio))
    return float(world.quality([_by_ratio(world, space, rest, min(results)[1])])[0])


def _by_ratio(world: World, space: Space, seconds: float, ratio: float) -> Config:
    made = []
    for depth in map(int, space["depth"].values()):
        batch = _rule_batch(world, space, seconds, depth)
        steps = max(int(seconds * world.rate(Config(depth, batch, 1.0, 1)) / batch), 1)
        made.append(Config(depth, batch, world.machine.preset.lr_multiplier, steps))
    return min(made, key=lambda c: abs(np.log(c.tokens / world.machine.device.parameters(c.depth) / ratio)))


BASELINES: dict[str, Search] = {
    "all but luck": all_but_luck,
    "fixed preset": fixed_preset,
    "rule of thumb": rule_of_thumb,
    "random x3": random_trials,
    "ASHA": asha,
    "TPE on proxies": proxies,
    "ladder": ladder,
}
