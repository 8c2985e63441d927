"""Interpolation in tables with continuous first derivatives: samplers and fits follow gradients and stall at kinks.

All weights are positive or limited, so that a table of fluxes never yields a negative one. Used by ``sps`` and ``inputs``; introduced in
notebook 01.
"""

import torch

__all__ = ["hermite", "monotone_slopes", "rounded", "spline", "weighted_rows"]

_ROUND = 0.25  # half width over which a kink is rounded, in units of the shorter of the two intervals that meet there


def rounded(x, nodes):
    """Weights of linear interpolation with rounded corners.

    Straight between the nodes; within a quarter of the shorter interval around a node a parabola joins the two lines, which mixes at most a
    sixteenth of the neighbours into a node (FSPS smooths metallicities more: ``zcontinuous=2``). Beyond the ends the value is constant.

    Parameters
    ----------
    x : Tensor of shape (n,)
        Where to interpolate; differentiable.
    nodes : Tensor of shape (n_node,)
        Increasing.

    Returns
    -------
    Tensor of shape (n, n_node)
        Positive weights that sum to one; at most three in a row are not zero.
    """
    step = nodes.diff()
    beside = torch.cat([step[:1], step, step[-1:]])
    half = _ROUND * torch.minimum(beside[:-1], beside[1:])
    away = (x[:, None] - nodes).clamp_min(-half)
    bend = torch.where(away < half, (away + half) ** 2 / (4 * half), away)  # a ramp from zero with a rounded foot
    slope = torch.diff(torch.eye(len(nodes)).to(nodes), dim=0) / step[:, None]
    edge = torch.zeros_like(slope[:1])
    change = torch.cat([slope, edge]) - torch.cat([edge, slope])  # of the slope at each node
    first = torch.nn.functional.one_hot(torch.zeros_like(x, dtype=torch.long), len(nodes))
    return (first + bend @ change).clamp_min(0.0)  # rounding errors only


def spline(position, length):
    """Quadratic B-spline on a uniform grid: three positive weights that vary smoothly, for grids much finer than what they sample.

    Parameters
    ----------
    position : Tensor of shape (...)
        In units of the step, 0 at the first node; held within the grid.
    length : int
        Nodes of the grid.

    Returns
    -------
    index : Tensor of shape (..., 3), int64
        Rows of the table.
    weight : Tensor of shape (..., 3)
        Their weights, which sum to one.
    """
    position = position.clamp(1, length - 2)
    nearest = position.detach().round()
    t = position - nearest
    weight = torch.stack([0.5 * (0.5 - t) ** 2, 0.75 - t**2, 0.5 * (0.5 + t) ** 2], -1)
    return nearest.long()[..., None] + torch.tensor([-1, 0, 1], device=position.device), weight


def hermite(position, length):
    """Cubic Hermite interpolation on a uniform grid, from values and slopes.

    Parameters
    ----------
    position, length
        As for ``spline``.

    Returns
    -------
    index : Tensor of shape (...), int64
        Node below.
    weight : Tensor of shape (..., 2, 2)
        For the node below and the one above, the weight of its value and of its slope per step.
    """
    position = position.clamp(0, length - 1)
    below = position.detach().floor().clamp(max=length - 2)
    t = position - below
    rest = 1 - t
    low = torch.stack([(1 + 2 * t) * rest**2, t * rest**2], -1)
    high = torch.stack([t**2 * (3 - 2 * t), -(t**2) * rest], -1)
    return below.long(), torch.stack([low, high], -2)


def monotone_slopes(table, dim):
    """Slopes per step that make ``hermite`` monotone between neighbours, so that positive tables stay positive.

    Parameters
    ----------
    table : Tensor
        Values on a uniform grid along ``dim``.
    dim : int

    Returns
    -------
    Tensor
        Of the shape of ``table``: five-point differences, no steeper than three times the gentler side, zero at an extremum.

    References
    ----------
    Fritsch & Carlson (1980), SIAM J. Numer. Anal. 17, 238.
    """
    table = table.movedim(dim, 0)
    step = table.diff(dim=0)
    left, right = step[:-1], step[1:]
    gentler = torch.minimum(left.abs(), right.abs())
    central = 0.5 * (left + right)
    if len(central) > 2:
        central = torch.cat([central[:1], (8 * central[1:-1] - central[:-2] - central[2:]) / 6, central[-1:]])
    inner = torch.where(left * right > 0, left.sign() * torch.minimum((left.sign() * central).clamp_min(0.0), 3 * gentler), 0.0)
    return torch.cat([step[:1], inner, step[-1:]]).movedim(0, dim)


def weighted_rows(rows, table, weight):
    """Sum of rows of a table, each with its weight, gathered and summed in one pass.

    Parameters
    ----------
    rows : Tensor of shape (n, ...), int64
    table : Tensor of shape (n_row, n_column)
    weight : Tensor of shape (n, ...)
        Differentiable.

    Returns
    -------
    Tensor of shape (n, n_column)
    """
    return torch.nn.functional.embedding_bag(rows.flatten(1), table, mode="sum", per_sample_weights=weight.flatten(1))
