"""Figures of the emulator notebook."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import SymLogNorm

from popcosmos_lib import figures

__all__ = ["accuracy", "domain", "engines", "sensitivity"]


def accuracy(error, first, history, short):
    """Error per band against the synthesis, and the learning curve.

    Parameters
    ----------
    error, first : ndarray of shape (n, n_band)
        Emulator and its first estimate minus synthesis [mag]; NaN where a galaxy is too faint to count.
    history : list of dict
        From ``emulator.train``.
    short : list of str
        Band labels.

    Returns
    -------
    Figure
        Double width.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(figures.DOUBLE, 2.7), width_ratios=(3, 1))
    x = np.arange(len(short))
    for values, colour, label in ((first, figures.COLOURS[4], "first estimate"), (error, figures.COLOURS[0], "emulator")):
        for percent, style in ((68, "-"), (99.9, ":")):
            name = f"{label}, {percent:g} %"
            left.plot(x, np.nanpercentile(np.abs(values), percent, axis=0), style, marker="o", ms=2, color=colour, label=name)
    left.axhline(0.01, color="0.6", lw=0.8, zorder=0)
    left.text(5, 0.0105, "0.01 mag", ha="center", va="bottom", fontsize=6, color="0.4")
    left.set(yscale="log", ylabel="|error| below which lie 68 or 99.9 % [mag]", xlim=(-0.7, len(short) - 0.3))
    left.set_xticks(x, short, rotation=90)
    left.tick_params(axis="x", which="minor", bottom=False, top=False)
    left.set_ylim(top=8 * np.nanmax(np.nanpercentile(np.abs(first), 99.9, axis=0)))
    left.legend(ncols=2, loc="upper left")
    steps = [entry["step"] for entry in history]
    right.plot(steps, [entry["loss"] for entry in history], color=figures.COLOURS[1], label="training loss")
    right.plot(steps, [entry["sigma"] for entry in history], color=figures.COLOURS[0], label="held out, robust $\\sigma$")
    right.set(yscale="log", xlabel="optimiser step", ylabel="error [mag]")
    right.legend()
    return fig


def domain(samples, panels):
    """Robust error against parameters, for samples that leave the population further and further behind.

    Parameters
    ----------
    samples : dict of str to (theta, error)
        Label -> arrays of shape (n, 16) and (n, n_band) [mag].
    panels : list of (int, str, float, float)
        Column of theta, axis label, and range of each panel.

    Returns
    -------
    Figure
        Double width.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(figures.DOUBLE, 2.2), sharey=True)
    for axis, (column, label, low, high) in zip(axes, panels, strict=True):
        edges = np.linspace(low, high, 13)
        for (name, (theta, error)), colour in zip(samples.items(), figures.COLOURS, strict=False):
            cell = np.digitize(theta[:, column], edges)
            inside = [np.abs(error[cell == k]) for k in range(1, len(edges))]
            curve = [np.nanpercentile(part, 68) if np.isfinite(part).sum() > 100 else np.nan for part in inside]
            axis.stairs(curve, edges, baseline=None, color=colour, label=name, lw=1.2)
        axis.axhline(0.01, color="0.6", lw=0.8, zorder=0)
        axis.set(xlabel=label, yscale="log", xlim=(low, high))
    axes[0].set_ylabel("68 % of |error|, all bands [mag]")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return fig


def engines(rows):
    """Accuracy against cost, one point per engine; below, those whose error is not measured (the reference itself, and FSPS on toy stars).

    Parameters
    ----------
    rows : list of dict
        Of ``tables.benchmark("engines")``. Engines that were missing are left out.

    Returns
    -------
    Figure
        Single width.
    """
    fig, (upper, lower) = plt.subplots(2, 1, figsize=(figures.SINGLE, 2.9), sharex=True, height_ratios=(5, 1))
    found = [(row, 1e3 / row["rate"]) for row in rows if not row["missing"]]
    costs, errors = [cost for _, cost in found], [row["sigma"] for row, _ in found if row["sigma"]]
    low, high = (np.log10(min(costs)) - 0.4, np.log10(max(costs)) + 0.4) if costs else (-2.0, 2.0)
    markers = iter("osD^vP*X")
    for (row, cost), colour in zip(found, [c for c in figures.COLOURS if c != "#F0E442"], strict=False):
        axis, height = (upper, row["sigma"]) if row["sigma"] else (lower, 0.0)
        axis.plot(cost, height, next(markers), color=colour, ms=6, mfc=colour if row["sigma"] else "none")
        place = (np.log10(cost) - low) / (high - low)  # the label runs towards the middle of the panel
        side, shift = ("left", 6) if place < 0.5 else ("right", -6)
        name = row["engine"].split(" (")[0]
        axis.annotate(name, (cost, height), (shift, 0), textcoords="offset points", ha=side, va="center", fontsize=7)
    upper.set(xscale="log", yscale="log", xlim=(10**low, 10**high), ylabel="robust $\\sigma$ against synthesis [mag]")
    upper.set_ylim((min(errors) / 2.5, max(errors) * 2.5) if errors else (1e-3, 1.0))
    lower.set(ylim=(-1, 1), yticks=[], xlabel="time per galaxy on one core [ms]", ylabel="none")
    return fig


def sensitivity(matrix, short, labels):
    """What each parameter does to each band: mean derivative times the spread of the parameter in the population.

    Parameters
    ----------
    matrix : ndarray of shape (n_parameter, n_band)
        Change of magnitude [mag].
    short, labels : list of str
        Bands, in the order of the figure, and parameters (LaTeX).

    Returns
    -------
    Figure
        Double width.
    """
    fig, axis = plt.subplots(figsize=(figures.DOUBLE, 3.2))
    image = axis.imshow(matrix, cmap="RdBu_r", norm=SymLogNorm(0.01, vmin=-2, vmax=2), aspect="auto")
    axis.set_xticks(range(len(short)), short, rotation=90)
    axis.set_yticks(range(len(labels)), labels)
    axis.tick_params(which="both", length=0)
    axis.minorticks_off()
    label = "$\\partial m/\\partial\\theta \\times \\sigma_\\theta$ [mag]; red is fainter"
    bar = fig.colorbar(image, ticks=[-1, -0.1, -0.01, 0, 0.01, 0.1, 1], format="%g", label=label, pad=0.01)
    bar.minorticks_off()
    return fig
