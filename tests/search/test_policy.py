"""The policy against its promises, in simulated worlds and by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.benchmarks.search import gpu_space
from nanochat.search.decisions import Commit, Observation, Trial
from nanochat.search.policy import AS_GOOD, LENGTHS, MAX_EXPLORED, BudgetPolicy
from nanochat.search.simulator import BASELINES, Machine, Shift, World, gpu, simulate
from nanochat.search.space import Domain, Space

SPACE, MACHINE = gpu_space(), gpu()


def policy(hours: float, machine: Machine = MACHINE, seed: int = 0) -> BudgetPolicy:
    return BudgetPolicy(SPACE, 3600 * hours, machine.prior, machine.overheads, machine.unique_tokens, seed,
                        device=machine.device)  # fmt: skip


@settings(max_examples=15)
@given(st.floats(0.2, 48), st.integers(0, 1000), st.sampled_from([None, Shift(1.5, 1.5)]))
def test_it_ends_within_its_hours_and_explores_little(hours, seed, shift):
    outcome = simulate(policy(hours, seed=seed), World(MACHINE, seed, shift))
    assert outcome.ended_s <= 3600 * hours + 1e-6
    assert outcome.explored_s <= (MAX_EXPLORED + 0.04) * 3600 * hours
    assert outcome.config.num_iterations >= 400


def test_a_wrong_prior_is_found_out():
    """At 6 hours, with learning rate and batch off by 2.8 times: well below the rule of thumb, and near the best."""
    ours, rule = [], []
    for seed in range(10):
        world = World(MACHINE, seed, Shift(1.5, 1.5))
        best = world.clairvoyant(SPACE, 6 * 3600)
        rule.append(BASELINES["rule of thumb"](World(MACHINE, seed, Shift(1.5, 1.5)), SPACE, 6 * 3600, seed) - best)
        ours.append(simulate(policy(6, seed=seed), world).quality - best)
    assert np.mean(ours) < 0.010 < np.mean(rule)


def test_a_right_prior_is_not_spoiled():
    regrets = []
    for seed in range(10):
        world = World(MACHINE, seed)
        regrets.append(simulate(policy(3, seed=seed), world).quality - world.clairvoyant(SPACE, 3 * 3600))
    assert np.mean(regrets) < 0.006


def test_the_fastest_device_batch_is_found_and_kept():
    rows = Domain("device_batch_size", "base", 1, 64, "log2", 1)
    space = Space("rows", {**SPACE.domains, "device_batch_size": rows})
    device = replace(MACHINE.device, row_tokens=2048)
    subject = BudgetPolicy(space, 6 * 3600, MACHINE.prior, MACHINE.overheads, np.inf, 0, device=device)
    world, tried = World(MACHINE, 0), []
    while (decision := subject.decide(0.0)) and isinstance(decision, Trial):
        asked = decision.config.settings["device_batch_size"]
        done, val_bpb, rate = world.train(decision.config, decision.budget_s)
        tried.append(asked)
        slower = {8: 1.0, 16: 0.9}.get(asked, 0.5)
        subject.observe(Observation(decision.config, done.tokens, decision.budget_s, 5.0, slower * rate, val_bpb))
    assert isinstance(decision, Commit)
    assert {8, 16} < set(tried)
    assert tried == sorted(set(tried), reverse=True) + [8] * (len(tried) - len(set(tried)))
    assert decision.config.settings == {"device_batch_size": 8}


def test_one_depth_alone_can_be_searched():
    space = Space("one", {**SPACE.domains, "depth": replace(SPACE["depth"], low=12, high=12)})
    subject = BudgetPolicy(space, 6 * 3600, MACHINE.prior, MACHINE.overheads, np.inf, 0, device=MACHINE.device)
    outcome = simulate(subject, World(MACHINE, 0, Shift(1.5, 1.5)))
    assert outcome.config.depth == 12
    assert len(subject.observations) > 1


@pytest.mark.parametrize(("low", "high"), [(50_000, 10**6), (100, 700)])
def test_iterations_stay_within_those_of_the_space(low, high):
    steps = replace(SPACE["depth"], name="num_iterations", low=low, high=high, scale="log2")
    space = Space("steps", {**SPACE.domains, "num_iterations": steps})
    for unique in (np.inf, 1e6):
        subject = BudgetPolicy(space, 6 * 3600, MACHINE.prior, MACHINE.overheads, unique, 0, device=MACHINE.device)
        assert low <= subject.best(5 * 3600).num_iterations <= high


def test_a_short_cap_buys_no_trials():
    decision = policy(0.25).decide(0.0)
    assert isinstance(decision, Commit)
    assert decision.budget_s == 900 - MACHINE.overheads.final_s - MACHINE.overheads.reserve_s
    assert decision.config.num_iterations >= 600


def observe(subject: BudgetPolicy, trial: Trial, world: World) -> None:
    done, val_bpb, rate = world.train(trial.config, trial.budget_s)
    subject.observe(Observation(trial.config, done.tokens, trial.budget_s, 5.0, rate, val_bpb))


def test_resumed_at_any_point_it_decides_the_same(tmp_path):
    """Its state goes through JSON after every decision; what ran is decided again, what was observed is not."""
    straight, world, again = policy(6), World(MACHINE, 1), World(MACHINE, 1)
    broken, now = policy(6), 0.0
    for _ in range(20):
        expected = straight.decide(now)
        broken.decide(now)
        state = json.loads(json.dumps(broken.state_dict()))
        broken = policy(6)
        broken.load_state_dict(state)
        assert broken.decide(now) == expected
        if isinstance(expected, Commit):
            assert straight.predict(expected.config, 1e9) == broken.predict(expected.config, 1e9)
            return
        observe(straight, expected, world)
        observe(broken, expected, again)
        now += expected.budget_s
    pytest.fail("it never commits")


def test_several_at_a_time():
    """With four slots a package's trials run together, and the policy waits for the last of them."""
    machine = replace(MACHINE, device=replace(MACHINE.device, slots=4, final_devices=4.0))
    subject, world, now = policy(6, machine), World(MACHINE, 2, Shift(1.5, 1.5)), 0.0
    sizes = []
    for _ in range(20):
        running = []
        while isinstance(decision := subject.decide(now), Trial):
            running.append(decision)
        if isinstance(decision, Commit):
            break
        assert decision is None
        sizes.append(len(running))
        for trial in reversed(running):
            assert subject.decide(now) is None
            observe(subject, trial, world)
        now += running[0].budget_s
    assert max(sizes) >= 2
    assert isinstance(decision, Commit)


def test_a_trial_that_fails_is_data():
    subject, now = policy(6), 0.0
    first = subject.decide(now)
    assert isinstance(first, Trial)
    subject.observe(Observation(first.config, 0, 10.0, 60.0, 0.0, None, "out_of_memory"))
    for _ in range(20):
        decision = subject.decide(100.0)
        assert decision is not None
        assert decision.config.depth < first.config.depth
        if isinstance(decision, Commit):
            return
        subject.observe(Observation(decision.config, 0, 10.0, 60.0, 0.0, None, "bug"))
    pytest.fail("it never commits")


def test_throughput_is_learned():
    """Half of what was estimated at one depth: less everywhere, and most where it was measured."""
    subject = policy(6)
    trial = subject.decide(0.0)
    estimate = MACHINE.device.tokens_per_second(trial.config.depth, trial.config.total_batch_size)
    subject.observe(Observation(trial.config, trial.config.tokens, 20.0, 60.0, estimate / 2, 1.0))
    ratio = [subject.tokens_per_second(depth, 2**19) / MACHINE.device.tokens_per_second(depth, 2**19)
             for depth in (4, trial.config.depth, 30)]  # fmt: skip
    assert ratio[1] == pytest.approx(0.5, rel=0.05)
    assert ratio[1] < ratio[0] < 0.65
    assert ratio[1] < ratio[2] < 0.65


def test_a_forecast_knows_how_well_throughput_is_known():
    subject = policy(6)
    config = subject.best(subject.final_seconds(0.0))
    mean, sd = subject.forecast(config)
    assert mean == subject.predict(config, config.tokens)[0]
    certain = subject.predict(config, config.tokens)[1]
    rate = subject.tokens_per_second(config.depth, config.total_batch_size)
    subject.observe(Observation(config, 0, 60.0, 5.0, rate, None))
    assert subject.predict(config, config.tokens) == (mean, certain), "only its throughput was told"
    later = subject.forecast(config)[1]
    assert certain < later < certain + 0.3 * (sd - certain)
    # By how much it is wider is what a throughput off by one standard deviation makes of the result.
    off = subject.predict(config, config.tokens * np.exp(0.26))[0] - mean
    assert abs(off) == pytest.approx(np.sqrt(sd**2 - certain**2), rel=0.3)


def test_repeated_data_calls_for_a_larger_model_and_fewer_tokens():
    plenty, scarce = policy(12), policy(12, replace(MACHINE, unique_tokens=2e8))
    assert scarce.best(40_000).depth >= plenty.best(40_000).depth
    assert scarce.best(40_000).tokens < 0.8 * plenty.best(40_000).tokens


@pytest.mark.parametrize("hours", [6, 24])
def test_no_hours_are_spent_on_learning_a_small_text_by_heart(hours):
    """More hours than the data is good for buy nothing, and the clock does not go on for them."""
    machine = replace(MACHINE, unique_tokens=1e7)
    committed = policy(hours, machine)._commit(0.0)
    assert committed.config.ends_early
    assert 1 < committed.config.tokens / 1e7 < 40
    assert f"about {committed.config.tokens / 1e7:.1f} times through the text are enough" in committed.why
    outcome = simulate(policy(hours, machine), World(machine, 0))
    assert outcome.config.ends_early
    assert np.abs(outcome.config.tokens / (1e7 * LENGTHS) - 1).min() < 0.01, "and no longer than was decided"
    assert outcome.quality < World(machine, 0).quality([replace(outcome.config, num_iterations=10**6)])[0] - 0.1
    mean, sd = policy(hours, machine).forecast(committed.config)
    assert (mean, sd) == policy(hours, machine).predict(committed.config, committed.config.tokens), "not by the clock"


def test_of_what_is_all_but_as_good_the_shortest_is_trained():
    noisy = replace(MACHINE.prior, noise=0.05)
    subject = policy(24, replace(MACHINE, unique_tokens=1e7, prior=noisy))
    chosen, configs = subject.best(80_000), subject._grid(80_000, 1.0)
    values = subject._values(subject.fit.theta[None], configs)[0]
    lowest = configs[int(np.argmin(values))]
    assert subject.predict(chosen, chosen.tokens)[0] == pytest.approx(values.min(), abs=1.01 * AS_GOOD * noisy.noise)
    seconds = [config.tokens / subject.tokens_per_second(config.depth, config.total_batch_size)
               for config in (chosen, lowest)]  # fmt: skip
    assert seconds[0] < 0.9 * seconds[1]


def test_time_that_nothing_is_made_of_costs_nothing():
    subject = policy(24, replace(MACHINE, unique_tokens=1e7))
    assert subject.best(80_000).ends_early
    assert subject._lowest(79_000) - subject._lowest(80_000) == pytest.approx(0, abs=1e-6)


def test_a_clairvoyant_does_not_learn_by_heart_either():
    for unique in (1e7, 1e5):
        machine = replace(MACHINE, unique_tokens=unique)
        few, many = (World(machine, 0).clairvoyant(SPACE, hours * 3600) for hours in (6, 24))
        assert few == pytest.approx(many, abs=0.005)
