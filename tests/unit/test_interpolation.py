"""Weights that interpolate: they sum to one, stay positive, pass through the table, and have no kinks."""

import pytest
import torch

from popcosmos_lib.galaxies import interpolation

NODES = torch.tensor([-2.1, -1.5, -0.5, -0.2, 0.2, 0.6], dtype=torch.float64)


def test_rounded_weights_are_a_mean_of_neighbours():
    weight = interpolation.rounded(torch.linspace(-3, 1, 900, dtype=torch.float64), NODES)
    assert (weight >= 0).all()
    torch.testing.assert_close(weight.sum(-1), torch.ones(900, dtype=torch.float64))
    used = weight > 1e-12
    first, last = used.double().argmax(-1), 5 - used.flip(-1).double().argmax(-1)
    assert (last - first).max() <= 2


def test_rounded_is_linear_between_nodes_and_constant_beyond():
    table = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0, 4.5], dtype=torch.float64)
    middle = 0.5 * (NODES[1:] + NODES[:-1])
    torch.testing.assert_close(interpolation.rounded(middle, NODES) @ table, 0.5 * (table[1:] + table[:-1]))
    ends = interpolation.rounded(torch.tensor([-9.0, 9.0], dtype=torch.float64), NODES) @ table
    torch.testing.assert_close(ends, table[[0, -1]])
    near = interpolation.rounded(NODES[1:-1], NODES) @ table - table[1:-1]
    assert (near.abs() <= (table.diff().abs()[1:] + table.diff().abs()[:-1]) / 16 + 1e-12).all()


def second_difference(function, low, high):
    """Largest jump of the slope on a fine grid, over the largest slope."""
    x = torch.linspace(low, high, 20_001, dtype=torch.float64)
    slope = function(x).diff()
    return slope.diff().abs().max() / slope.abs().max()


def test_no_kinks():
    table = torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert second_difference(lambda x: interpolation.rounded(x, NODES) @ table, -2.5, 0.9) < 0.02

    def from_splines(x):
        index, weight = interpolation.spline(x, 6)
        return (table[index] * weight).sum(-1)

    slopes = interpolation.monotone_slopes(table, 0)

    def from_slopes(x):
        below, weight = interpolation.hermite(x, 6)
        pair = torch.stack([below, below + 1], -1)
        return (torch.stack([table[pair], slopes[pair]], -1) * weight).sum((-1, -2))

    assert second_difference(from_splines, 1.0, 4.0) < 0.02
    assert second_difference(from_slopes, 0.0, 5.0) < 0.02
    torch.testing.assert_close(from_slopes(torch.arange(6.0, dtype=torch.float64)), table)


@pytest.mark.parametrize("decades", [1, 8])
def test_monotone_slopes_keep_a_table_positive(decades):
    table = 10.0 ** (decades * (torch.rand(40, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 1))
    slopes = interpolation.monotone_slopes(table, 0)
    below, weight = interpolation.hermite(torch.linspace(0, 39, 5000, dtype=torch.float64), 40)
    pair = torch.stack([below, below + 1], -1)
    value = (torch.stack([table[pair], slopes[pair]], -1) * weight[..., None, :]).sum((-1, -3))
    low, high = torch.minimum(table[below], table[below + 1]), torch.maximum(table[below], table[below + 1])
    assert ((value >= low * (1 - 1e-9)) & (value <= high * (1 + 1e-9))).all()


def test_monotone_slopes_are_accurate_where_a_table_is_smooth():
    x = torch.linspace(0, 3, 61, dtype=torch.float64)
    slopes = interpolation.monotone_slopes(torch.exp(x), 0)
    torch.testing.assert_close(slopes[2:-2], (torch.exp(x) * 0.05)[2:-2], rtol=1e-5, atol=0)
