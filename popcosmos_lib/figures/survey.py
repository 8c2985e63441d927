"""Figures of the survey notebook: errors against magnitude, counts and redshifts, calibration of the noise."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from popcosmos_lib import figures

__all__ = ["calibration", "joint", "sky", "uncertainties"]

_GREY, _MODEL = "0.55", figures.COLOURS[1]


def _density(x, y, edges):
    """Histogram of the points, smoothed by one cell, as (n_y, n_x)."""
    counts = np.histogram2d(x, y, edges)[0].T
    for axis in (0, 1):
        counts = np.apply_along_axis(np.convolve, axis, counts, [0.25, 0.5, 0.25], "same")
    return counts


def _levels(counts, fractions):
    """Heights that enclose the given fractions of the total, rising."""
    ordered = np.sort(counts.ravel())[::-1]
    enclosed = ordered.cumsum() / ordered.sum()
    return sorted({ordered[np.searchsorted(enclosed, f)] for f in fractions})


def uncertainties(panels):
    """Distribution of flux errors against magnitude in the catalogue and in one or two models.

    Parameters
    ----------
    panels : dict of str to dict of str to (magnitude, log_sigma)
        Band -> label -> two arrays of shape (n,): observed AB asinh magnitude and log10 of the flux error [µJy]. The catalogue first, as
        a grey density, then the models, as contours.

    Returns
    -------
    Figure
        Double width, four panels a row.
    """
    rows = -(-len(panels) // 4)
    fig, axes = plt.subplots(rows, 4, figsize=(figures.DOUBLE, 1.65 * rows + 0.35))
    catalogue, *names = next(iter(panels.values()))
    styles = [{"colors": _MODEL, "linestyles": "-"}, {"colors": figures.COLOURS[0], "linestyles": "--"}][: len(names)]
    for axis, (band, (sky, *models)) in zip(axes.flat, ((b, p.values()) for b, p in panels.items()), strict=True):
        edges = [np.linspace(*np.percentile(sky[i], q), 41) for i, q in ((0, [0.3, 99.9]), (1, [0.1, 99.7]))]
        extent = [edges[0][0], edges[0][-1], edges[1][0], edges[1][-1]]
        grey = _density(*sky, edges)
        axis.imshow(np.sqrt(grey), origin="lower", aspect="auto", extent=extent, cmap="Greys", vmax=1.3 * np.sqrt(grey.max()))
        centres = [0.5 * (e[1:] + e[:-1]) for e in edges]
        for model, style in zip(models, styles, strict=True):
            counts = _density(*model, edges)
            axis.contour(*centres, counts, _levels(counts, [0.95, 0.68]), linewidths=[0.7, 1.1], **style)
        axis.text(0.95, 0.93, band, transform=axis.transAxes, va="top", ha="right", weight="bold")
        axis.xaxis.set_major_locator(plt.MaxNLocator(4, integer=True))
        axis.yaxis.set_major_locator(plt.MaxNLocator(4))
    fig.supxlabel("observed asinh magnitude [AB mag]", fontsize=8)
    fig.supylabel(r"$\log_{10}\,\sigma$ [µJy]", fontsize=8)
    keys = [Patch(color="0.6"), *(Line2D([], [], color=s["colors"], ls=s["linestyles"]) for s in styles)]
    fig.legend(keys, [catalogue, *(f"{name}, 68 and 95 %" for name in names)], loc="outside upper center", ncols=3)
    return fig


def joint(clouds, couples):
    """Errors of two bands against each other.

    Parameters
    ----------
    clouds : dict of str to list of array of shape (n, 2)
        Label -> for each couple, the residuals of ln sigma of the two bands; the first label is the sky.
    couples : list of (str, str)
        Names of the two bands.

    Returns
    -------
    Figure
        Double width: a row for each couple, a column for each label.
    """
    size = figures.DOUBLE, 1.75 * len(couples) + 0.4
    fig, axes = plt.subplots(len(couples), len(clouds), figsize=size, sharex="row", sharey="row", squeeze=False)
    for row, (x, y), i in zip(axes, couples, range(len(couples)), strict=True):
        edges = [np.linspace(*np.percentile(next(iter(clouds.values()))[i][:, k], [0.1, 99.9]), 51) for k in (0, 1)]
        extent = [edges[0][0], edges[0][-1], edges[1][0], edges[1][-1]]
        for axis, (label, values) in zip(row, clouds.items(), strict=True):
            counts = np.histogram2d(*values[i].T, edges)[0].T
            axis.imshow(np.sqrt(counts), origin="lower", aspect="auto", extent=extent, cmap="Blues")
            axis.set(xlabel=rf"residual of $\ln\sigma$ in {x}")
            if i == 0:
                axis.set_title(label, fontsize=8)
        row[0].set_ylabel(f"residual in {y}")
    return fig


def sky(magnitudes, redshifts, area):
    """Number counts and redshift distributions of the two selections.

    Parameters
    ----------
    magnitudes : dict of str to (array of shape (n,), float)
        Label -> observed magnitudes of a selection [AB mag] and its limit.
    redshifts : dict of str to array of shape (n,)
        Label -> true redshifts of a selection.
    area : float
        Sky area of the mock [deg^2].

    Returns
    -------
    Figure
        Double width.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(figures.DOUBLE, 2.5))
    edges = np.arange(17, 27.26, 0.25)
    for i, (label, (values, limit)) in enumerate(magnitudes.items()):
        counts = np.histogram(values, edges)[0] / area / 0.25
        left.stairs(np.where(counts > 0, counts, np.nan), edges, color=figures.COLOURS[i], label=label, lw=1.2)
        left.axvline(limit, color=figures.COLOURS[i], ls=":", lw=0.8)
    left.set(yscale="log", xlabel="observed magnitude [AB mag]", ylabel="galaxies [deg$^{-2}$ mag$^{-1}$]", xlim=(17, 27), ylim=(50, None))
    left.legend(loc="upper left")
    edges = np.arange(0, 6.01, 0.1)
    for i, (label, values) in enumerate(redshifts.items()):
        counts = np.histogram(values, edges)[0]
        density, error = (x / area / 0.1 / 1e4 for x in (counts, np.sqrt(counts)))
        right.stairs(density, edges, color=figures.COLOURS[i], label=label)
        right.stairs(density + error, edges, baseline=density - error, fill=True, color=figures.COLOURS[i], alpha=0.3, lw=0)
        right.axvline(np.median(values), color=figures.COLOURS[i], ls=":", lw=0.8)
    right.set(xlabel="redshift", ylabel="dN/dz [10$^4$ deg$^{-2}$]", xlim=(0, 6), ylim=(0, None))
    right.legend(title="dotted: median", loc="upper right")
    return fig


def calibration(pit, residual, exact):
    """How well the errors are learned and the noise recovered.

    Parameters
    ----------
    pit : dict of str to array of shape (n, n_band)
        Label -> probability integral transform of the errors of held-out galaxies.
    residual : array of shape (n,)
        (Observed - true flux) / error.
    exact : dict of str to (x, survival)
        Label -> a distribution's probability to exceed x in absolute value.

    Returns
    -------
    Figure
        Double width.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(figures.DOUBLE, 2.5))
    edges = np.linspace(0, 1, 21)
    for i, (label, values) in enumerate(pit.items()):
        density = np.array([np.histogram(column, edges, density=True)[0] for column in values.T])
        for row in density:
            left.stairs(row, edges, color=figures.COLOURS[i], lw=0.3, alpha=0.4)
        left.stairs(density.mean(0), edges, color=figures.COLOURS[i], lw=1.4, label=label, baseline=None)
    chance = 2 * np.sqrt(20 / len(values))
    left.axhspan(1 - chance, 1 + chance, color="0.85", zorder=0, label=r"2$\sigma$ of chance, one band")
    left.set(xlabel=r"PIT of $\sigma$ given the flux", ylabel="density", xlim=(0, 1), ylim=(0.5, 1.5))
    left.legend(loc="lower center")
    x = np.sort(np.abs(residual))
    right.plot(x, 1 - np.arange(len(x)) / len(x), color=_GREY, lw=3, label="mock, 24 bands", rasterized=True)
    for (label, (points, survival)), style in zip(exact.items(), ("-", "--"), strict=True):
        right.plot(points, survival, color=figures.COLOURS[1], ls=style, label=label)
    right.set(xscale="log", yscale="log", xlim=(0.1, 100), ylim=(1e-4, 1.5))
    right.set(xlabel=r"$|F_\mathrm{obs}-F_\mathrm{true}|/\sigma$", ylabel="fraction beyond")
    right.legend(loc="lower left")
    return fig
