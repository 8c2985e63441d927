"""Figures of the population and completeness notebooks: model against truth against published curves."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from popcosmos_lib import figures

__all__ = ["limits", "mass_functions", "relations"]

_TRUTH, _MODEL = "0.8", figures.COLOURS[1]
_PUBLISHED = figures.COLOURS[0]


def _legend(fig, **names):
    keys = {
        "truth": Patch(color=_TRUTH), "model": Line2D([], [], color=_MODEL), "curve": Line2D([], [], color=_PUBLISHED, ls="--"),
        "points": Line2D([], [], color=_PUBLISHED, ls="", marker="s"),
    }  # fmt: skip
    fig.legend([keys[name] for name in names], list(names.values()), loc="outside upper center", ncols=len(names))


def mass_functions(panels):
    """Mass functions of selected galaxies in redshift windows.

    Parameters
    ----------
    panels : list of dict
        ``window`` (low, high); ``truth`` and ``model``, arrays (n, 3) of log mass, log10 phi and count; ``spread``, array (n,), scatter
        of log10 phi in the ensemble; ``curve``, array (n, 2).

    Returns
    -------
    Figure
        Double width.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(figures.DOUBLE, 2.35), sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        x, phi, _ = panel["truth"].T
        axis.bar(x, phi + 7, width=x[1] - x[0], bottom=-7, color=_TRUTH)
        x, phi, count = panel["model"].T
        axis.fill_between(x, phi - panel["spread"], phi + panel["spread"], color=_MODEL, alpha=0.3, lw=0)
        axis.errorbar(x, phi, 0.434 / np.sqrt(np.maximum(count, 1)), color=_MODEL, lw=1.0, elinewidth=0.7)
        axis.plot(*panel["curve"].T, color=_PUBLISHED, ls="--", lw=1.0)
        axis.text(0.94, 0.94, "{:g} < z < {:g}".format(*panel["window"]), transform=axis.transAxes, ha="right", va="top")
        axis.set(xlim=(7.6, 11.9), ylim=(-5.6, -0.6))
    fig.supxlabel(r"$\log_{10} M_\star$ [$M_\odot$]", fontsize=8)
    axes[0].set_ylabel(r"$\log_{10}\phi$ [Mpc$^{-3}$ dex$^{-1}$]")
    _legend(fig, truth="mock, r < 25 (truth)", model="calibrated model, its ensemble", curve="Leja+20, all galaxies")
    return fig


def relations(panels, columns, height):
    """Running medians: truth, model and published curves.

    Parameters
    ----------
    panels : list of dict
        ``x``, ``y``: axis labels with units; ``xlim``, ``ylim``; ``note``: text in the upper left; ``series``: list of (truth, model,
        spread, line style), the first two arrays (n, 4) of centre, median and 16-84 % range, the third (n,) the scatter of the model's
        median in its ensemble; ``curves``: list of arrays (n, 2); ``points``: list of arrays (n, 4).
    columns : int
    height : float
        Of a row [in].

    Returns
    -------
    Figure
        Double width.
    """
    rows = -(-len(panels) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(figures.DOUBLE, height * rows + 0.25), squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=True):
        for truth, model, spread, style in panel["series"]:
            x, middle, low, high = truth.T
            axis.fill_between(x, low, high, color=_TRUTH, lw=0)
            axis.plot(x, middle, color="0.45", lw=1.0, ls=style)
            x, middle, low, high = model.T
            axis.plot(x, middle, color=_MODEL, ls=style)
            axis.fill_between(x, middle - spread, middle + spread, color=_MODEL, alpha=0.3, lw=0)
            axis.plot(x, low, color=_MODEL, lw=0.5, ls=":")
            axis.plot(x, high, color=_MODEL, lw=0.5, ls=":")
        for curve in panel["curves"]:
            axis.plot(*curve.T, color=_PUBLISHED, ls="--", lw=1.0)
        for point in panel["points"]:
            error = np.abs(point[:, 2:] - point[:, 1:2]).T
            axis.errorbar(point[:, 0], point[:, 1], error, color=_PUBLISHED, ls="", marker="s", ms=2, elinewidth=0.5)
        axis.set(xlabel=panel["x"], ylabel=panel["y"], xlim=panel["xlim"], ylim=panel["ylim"])
        axis.text(0.05, 0.95, panel["note"], transform=axis.transAxes, fontsize=7, va="top")
    names = {"truth": "mock: median, 16-84 % (truth)", "model": "calibrated model, its ensemble"}
    names |= {"curve": "published curve"} if any(panel["curves"] for panel in panels) else {}
    names |= {"points": "published data"} if any(panel["points"] for panel in panels) else {}
    _legend(fig, **names)
    return fig


def limits(panels):
    """Mass against redshift with the limits of a selection.

    Parameters
    ----------
    panels : list of dict
        ``title``; ``z``, ``log_mass`` of galaxies; ``modes``: list of (label, array (n, 3) of redshift, lower and upper limit, marker
        and colour; ``curves``: list of (label or None, z, array of shape z, colour, style); ``band``, if any: (z, lower, upper, colour).

    Returns
    -------
    Figure
        Double width.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(figures.DOUBLE, 2.9), sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        grid = np.histogram2d(panel["z"], panel["log_mass"], [np.linspace(0, 6, 61), np.linspace(6.8, 12.2, 55)])[0].T
        axis.imshow(np.sqrt(grid), origin="lower", aspect="auto", extent=[0, 6, 6.8, 12.2], cmap="Greys", vmax=1.4 * np.sqrt(grid.max()))
        for label, points, marker, colour in panel["modes"]:
            axis.plot(points[:, 0], points[:, 1], marker, color=colour, ms=3, label=label)
            axis.plot(points[:, 0], points[:, 2], marker, color=colour, ms=3, mfc="none")
        for label, z, values, colour, style in panel["curves"]:
            axis.plot(z, values, color=colour, ls=style, label=label)
        for z, low, high, colour in [panel["band"]] if "band" in panel else ():
            axis.fill_between(z, low, high, color=colour, alpha=0.3, lw=0)
        axis.set(xlabel="redshift", xlim=(0, 6), ylim=(6.8, 12.2), title=panel["title"])
        axis.legend(loc="lower right", fontsize=6.5)
    axes[0].set_ylabel(r"$\log_{10} M_\star$ [$M_\odot$]")
    return fig
