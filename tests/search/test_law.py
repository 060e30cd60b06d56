from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.search.law import NAMES, PUBLISHED, Points, bowl, fit, gradient, predict, used_share, useful_epochs
from nanochat.search.priors import SMALL_TEXT, prior_for

MEAN, SD = np.array(PUBLISHED.mean), np.array(PUBLISHED.sd)
ROWS = [(1e8 * size, 2e9 * size, 2.0**19, lr) for size in (0.1, 0.3, 1.0) for lr in (0.4, 1.0, 2.5)]
ROWS += [(5e7, 6e8, 2.0**power, 1.0) for power in (16, 17, 19, 20)]


def test_the_best_ratio_of_tokens_to_parameters_at_the_reference_is_r():
    """With all FLOPs at N0 fixed, the law's minimum lies where D = r N."""
    flops = 6 * 1e8 * 12.0 * 1e8
    parameters = np.geomspace(2e7, 5e8, 4001)
    tokens = flops / 6 / parameters
    theta = MEAN.copy()
    theta[NAMES.index("ln_kB")] = -50  # whatever the batch
    points = Points(parameters, tokens, np.full_like(tokens, 2.0**14), np.ones_like(tokens))
    best = int(np.argmin(predict(theta, points, PUBLISHED)))
    assert parameters[best] == pytest.approx(1e8, rel=0.02)


def test_batch_learning_rate_and_steps_have_their_optima():
    def at(batch: float, lr: float, tokens: float = 1.3e9) -> float:
        return float(predict(MEAN, Points.of([(1e8, tokens, batch, lr)]), PUBLISHED)[0])

    assert at(2**19, 1) < min(at(2**17, 1), at(2**21, 1), at(2**19, 0.3), at(2**19, 3))
    assert at(2**19, 1, tokens=100 * 2**19) > at(2**19, 1, tokens=600 * 2**19) + 0.1


@given(st.floats(1e3, 1e12), st.floats(1e3, 1e12), st.floats(1e4, 1e10))
def test_only_what_is_gone_through_again_is_learned_by_heart(tokens, unique, parameters):
    """The more so the more often and the larger the model, as far as the data can make use of it."""
    often = np.array([tokens, 2 * tokens, tokens])
    points = Points(np.array([parameters, parameters, 2 * parameters]), often, np.ones(3), np.ones(3))
    none = MEAN.copy()
    none[NAMES.index("ln_P")] = -np.inf
    by_heart = predict(MEAN, points, PUBLISHED, unique) - predict(none, points, PUBLISHED, unique)
    rounding = 1e-12 * predict(MEAN, points, PUBLISHED, unique)
    assert np.all(by_heart[often <= unique] == 0)
    assert np.all(by_heart[often > unique] >= 0)
    assert by_heart[1] >= by_heart[0] - rounding[1]
    assert by_heart[2] >= by_heart[0] - rounding[2]


@given(st.floats(1e4, 1e12))
def test_parameters_count_as_far_as_the_data_can_use_them(parameters):
    unique = np.array([np.inf, 1e3 * parameters, parameters, 1e-3 * parameters])
    used = parameters * used_share(parameters / 25 / unique)
    assert used[0] == parameters
    assert used[1] == pytest.approx(parameters, rel=1e-3)
    assert used[2] == pytest.approx(parameters, rel=0.03)
    assert used[3] == pytest.approx(25e-3 * parameters, rel=1e-3)


def test_repeating_a_text_helps_at_first_and_then_harms():
    """Not in the same way for every size: a smaller model may go through it more often."""
    assert 2 < useful_epochs(SMALL_TEXT, 1e6, 1e5) < useful_epochs(SMALL_TEXT, 1e5, 1e5) < 30
    often = np.geomspace(1, 64, 50)
    by_epochs = predict(np.array(SMALL_TEXT.mean), Points.of([(1e6, 1e5 * count, 1024, 5.0) for count in often]),
                        SMALL_TEXT, 1e5)  # fmt: skip
    best = int(np.argmin(by_epochs))
    assert np.all(np.diff(by_epochs[: best + 1]) < 0)
    assert np.all(np.diff(by_epochs[best:]) > 0)


def test_the_bowl_is_square_inside_and_straight_outside():
    assert bowl(np.array(0.1)) == pytest.approx(0.01, rel=0.01)
    assert bowl(np.array(40.0)) == pytest.approx(4 * 40, rel=0.1)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_what_was_put_in_is_found_again(seed):
    """Enough runs of a world: its predictions, and the numbers they depend on, within their own uncertainty."""
    rng = np.random.default_rng(seed)
    truth = MEAN + 0.7 * SD * rng.standard_normal(len(NAMES))
    points = Points.of(ROWS)
    seen = predict(truth, points, PUBLISHED) + PUBLISHED.noise * rng.standard_normal(len(ROWS))
    found = fit(PUBLISHED, points, seen)
    target = Points.of([(2e8, 4e9, 2.0**20, 1.2)])
    mean, sd = found.predict(target)
    assert abs(mean[0] - predict(truth, target, PUBLISHED)[0]) < 4 * sd[0]
    x0 = NAMES.index("x0")
    assert abs(found.theta[x0] - truth[x0]) < 4 * np.sqrt(found.covariance[x0, x0]) + 0.2


def test_most_worlds_tell_where_their_best_learning_rate_is():
    x0, left = NAMES.index("x0"), []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        points, truth = Points.of(ROWS), MEAN + 0.7 * SD * rng.standard_normal(len(NAMES))
        seen = predict(truth, points, PUBLISHED) + PUBLISHED.noise * rng.standard_normal(len(ROWS))
        left.append(fit(PUBLISHED, points, seen).covariance[x0, x0] / SD[x0] ** 2)
    assert np.median(left) < 0.05


def test_without_observations_it_is_the_prior():
    found = fit(PUBLISHED, None, np.zeros(0))
    assert np.array_equal(found.theta, MEAN)
    _, sd = found.predict(Points.of([ROWS[0]]))
    assert sd[0] > 0.1


def test_an_outlier_does_not_carry_it_off():
    points = Points.of(ROWS)
    seen = predict(MEAN, points, PUBLISHED)
    seen[0] += 3.0
    assert np.all(np.abs(fit(PUBLISHED, points, seen).theta - MEAN) < 8 * SD)


def test_what_may_be_learned_is_spread_as_the_uncertainty_it_removes():
    """Knowing runs of every learning rate pins x0: its posterior means vary almost as the prior did."""
    found = fit(PUBLISHED, None, np.zeros(0))
    points = Points.of([(1e8, 2e9, 2.0**19, 2.0**x) for x in (-3, -1.5, 0, 1.5, 3)])
    moved = found.after(points, 4000, np.random.default_rng(0))
    slope = gradient(found.theta, points, PUBLISHED, np.inf)
    assert moved.mean(axis=0) == pytest.approx(MEAN, abs=0.1)
    x0 = NAMES.index("x0")
    assert 0.3 * SD[x0] < moved[:, x0].std() <= SD[x0] * 1.05
    assert np.abs(slope[:, x0]).max() > 0


def test_how_often_a_text_is_useful_does_not_hang_on_the_batch():
    mean = list(SMALL_TEXT.mean)
    mean[NAMES.index("ln_kB")] = mean[NAMES.index("ln_kL")] = 1.0
    other = replace(SMALL_TEXT, mean=tuple(mean), reference_batch=2**20)
    assert useful_epochs(other, 1e6, 1e5) == useful_epochs(SMALL_TEXT, 1e6, 1e5)


def test_more_parameters_than_a_text_can_use_change_nothing():
    theta = np.array(SMALL_TEXT.mean)
    large, larger = predict(theta, Points.of([(1e8, 4e5, 1024, 5.0), (1e10, 4e5, 1024, 5.0)]), SMALL_TEXT, 1e5)
    assert large == pytest.approx(larger, abs=1e-3)


def test_little_text_on_a_gpu_is_held_for_what_it_is_on_a_cpu():
    assert prior_for("cuda", "mine.txt", 1e6).mean[:5] == SMALL_TEXT.mean[:5]
    assert prior_for("cuda", "mine.txt", 1e6).sd[0] > SMALL_TEXT.sd[0]
    assert prior_for("cuda", "mine.txt", 1e8) is prior_for("cuda", "climbmix") is PUBLISHED
    assert prior_for("cpu", "mine.txt", 1e8) is SMALL_TEXT


def test_the_prior_is_chosen_by_the_data_first():
    """TinyWorld is far easier than text of people, on a GPU too, where less is certain of it."""
    cpu, gpu, web = prior_for("cpu", "tinyworld"), prior_for("cuda", "tinyworld"), prior_for("cuda", "climbmix")
    point = Points.of([(1e8, 3e7, 65_536, 5.0)])
    (seen, unsure), (there, more_unsure), (harder, _) = (
        fit(prior, None, np.zeros(0), 4e6).predict(point) for prior in (cpu, gpu, web)
    )
    assert seen < there < harder / 2
    assert more_unsure > 3 * unsure
    assert abs(there - 0.635) < 1.645 * more_unsure, "which a training there ended at"
