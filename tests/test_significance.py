import numpy as np
import pytest
from scipy import stats

from helpers.significance import mean_interval, paired_difference


def scores(seed=0, size=400):
    return np.random.default_rng(seed).uniform(size=size)


def test_the_interval_is_near_the_normal_one():
    sample = scores()
    found = mean_interval(sample)
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    assert found.mean == pytest.approx(sample.mean())
    assert found.low == pytest.approx(sample.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(sample.mean() + 1.96 * error, abs=0.1 * error)


def test_p_value_is_near_the_paired_t_test():
    before = scores()
    after = before + np.random.default_rng(1).normal(0.01, 0.1, size=len(before))
    found = paired_difference(before, after)
    assert found.p_value == pytest.approx(stats.ttest_rel(after, before).pvalue, abs=0.02)
    assert found.mean == pytest.approx((after - before).mean())


def test_pairing_sees_what_separate_intervals_do_not():
    before = scores()
    after = before + 0.01
    after[0] -= 0.005
    assert mean_interval(after).low < mean_interval(before).high
    assert paired_difference(before, after).p_value < 0.001


def test_a_small_difference_in_noise_is_not_seen():
    found = paired_difference(scores(2), scores(3))
    assert found.low < 0 < found.high
    assert found.p_value > 0.05
    assert "no difference seen" in str(found)


def test_no_difference_at_all():
    found = paired_difference(scores(), scores())
    assert found == (0, 0, 0, 1)


def test_order_of_the_two_turns_the_sign():
    before = scores()
    after = np.clip(before + np.random.default_rng(1).normal(0.05, 0.1, size=400), 0, 1)
    there, back = paired_difference(before, after), paired_difference(after, before)
    assert there.mean == pytest.approx(-back.mean)
    assert there.low > 0 > back.high
    assert "no difference" not in str(there)


def test_seeded():
    before, after = scores(0), scores(1)
    assert paired_difference(before, after) == paired_difference(before, after)
    assert paired_difference(before, after) != paired_difference(before, after, seed=1)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([1, 2, 3], [1, 2], "before has 3 scores and after 2"),
        ([1], [2], r"before has shape \(1,\)"),
        ([1, 2], [[1, 2]], r"after has shape \(1, 2\)"),
        ([1, float("nan")], [1, 2], "before holds NaN at query 1"),
    ],
)
def test_bad_input_is_named(before, after, said):
    with pytest.raises(ValueError, match=said):
        paired_difference(before, after)
