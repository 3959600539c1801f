"""Per-channel statistics, computed batch by batch."""

import pytest
import torch

from mmasr.stripes import ChannelStatistics


def statistics(values):
    return ChannelStatistics.of(torch.tensor(values))


def test_a_small_example():
    found = statistics([[1.0, 5.0], [3.0, 5.0], [2.0, 8.0]])
    assert found.count == 3
    assert found.mean.tolist() == [2, 6]
    assert found.std.tolist() == pytest.approx([(2 / 3) ** 0.5, 2**0.5])
    assert (found.minimum.tolist(), found.maximum.tolist()) == ([1, 5], [3, 8])
    # Between channels, the means 2 and 6 have a variance of 4; within, it is (2/3 + 2) / 2 = 4/3.
    assert found.between_channels == pytest.approx(4 / (4 + 4 / 3))


@pytest.mark.parametrize(
    ('values', 'share'),
    [([[0.2, 0.9]] * 4, 1), ([[0.0, 0.0], [1.0, 1.0]], 0), ([[0.5, 0.5]] * 2, 1)],
    ids=['perfect stripes', 'no stripes', 'all equal'],
)
def test_extremes_of_between_channels(values, share):
    assert statistics(values).between_channels == share


@pytest.mark.parametrize('count', [1, 100_000])
def test_combined_batches_match_the_two_pass_formula(count):
    """The first channel has an offset of 1000, which would cancel in sums of squares."""
    scale, offset = torch.tensor([1e-3, 1.0, 10.0]), torch.tensor([1000.0, 0.0, -5.0])
    values = torch.rand(count, 3, dtype=torch.float64) * scale + offset
    combined = None
    for start in range(0, count, 7):  # the last batch is smaller
        batch = ChannelStatistics.of(values[start : start + 7])
        combined = combined.combined(batch) if combined else batch
    assert combined.count == count
    for found, expected in (
        (combined.mean, values.mean(dim=0)),
        (combined.std, values.std(dim=0, correction=0)),
        (combined.minimum, values.amin(dim=0)),
        (combined.maximum, values.amax(dim=0)),
    ):
        # A deviation of 3e-4 around 1000 loses up to ten of the sixteen digits of double precision, including
        # at most 1e5 rounding errors that add up.
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize('cut', [1, 5, 9])
def test_combining_is_symmetric(cut):
    values = torch.rand(10, 4)
    whole = ChannelStatistics.of(values)
    first, second = ChannelStatistics.of(values[:cut]), ChannelStatistics.of(values[cut:])
    for combined in (first.combined(second), second.combined(first)):
        torch.testing.assert_close(combined.std, whole.std, rtol=1e-12, atol=0)
