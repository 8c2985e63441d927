"""Figures of the n(z) notebook."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from popcosmos_lib import figures

__all__ = ["distributions", "real_sky"]

_SKY, _MODEL, _START, _FIELD = "0.78", figures.COLOURS[1], figures.COLOURS[0], figures.COLOURS[2]


def _outline(edges, density):
    """Corners of a histogram's upper edge."""
    return np.repeat(edges, 2)[1:-1], np.repeat(density, 2)


def _band(axis, edges, low, high, **style):
    x, low = _outline(edges, low)
    axis.fill_between(x, low, _outline(edges, high)[1], lw=0, **style)


def _draw(axis, edges, sky, model, spread, offset=0.0):
    axis.stairs(sky + offset, edges, baseline=offset, fill=True, color=_SKY)
    _band(axis, edges, offset + model - spread, offset + model + spread, color=_MODEL, alpha=0.35)
    axis.stairs(model + offset, edges, baseline=None, color=_MODEL, lw=1.0)


def _reach(edges, density):
    """Redshift below which 99.5 % of a sample lie."""
    share = np.cumsum(density) / density.sum()
    return edges[min(np.searchsorted(share, 0.995) + 1, len(edges) - 1)]


def distributions(edges, samples, colours, errors, field):
    """n(z) of samples and of their tomographic bins, and the error of the mean redshift in each bin.

    Parameters
    ----------
    edges : ndarray of shape (k + 1,)
        Redshift bins.
    samples : dict of str to dict
        Title -> ``truth``, ``model``, ``start``, ``spread`` of shape (1 + bins, k): densities of all galaxies (row 0) and of the bins,
        and the standard deviation of the model's ensemble; ``cosmic`` (k,), the relative one of the counts of a field.
    colours : dict of str to str
        Title -> the colour whose quartiles make the bins.
    errors : dict of str to dict
        Title -> ``model``, ``start``, ``ensemble``, ``sampling``, ``cosmic`` of shape (1 + bins,): errors of the mean redshift of model and
        start, and standard deviations, all divided by 1 + z.
    field : str
        Whose cosmic variance it is.

    Returns
    -------
    Figure
        Double width.
    """
    fig, axes = plt.subplots(len(samples), 3, figsize=(figures.DOUBLE, 2.1 * len(samples) + 0.3), width_ratios=[1, 1, 0.85], squeeze=False)
    for row, (title, n) in zip(axes, samples.items(), strict=True):
        reach = _reach(edges, n["truth"][0])
        _all(row[0], edges, n)
        row[0].set(title=title, xlabel="redshift", ylabel="n(z)", xlim=(0, reach), ylim=(0, None))
        _bins(row[1], edges, n, reach)
        row[1].set(title=f"quartiles of ${colours[title]}$", xlabel="redshift", ylabel="n(z) + offset", yticks=[], xlim=(0, reach))
        _errors(row[2], errors[title])
    names = ["mock sky, held out", f"cosmic variance of {field}", "calibrated model and its ensemble", "before calibration"]
    keys = [Patch(color=_SKY), Patch(color=_FIELD, alpha=0.35), (Patch(color=_MODEL, alpha=0.35, lw=0), Line2D([], [], color=_MODEL))]
    keys.append(Line2D([], [], color=_START, ls=":", marker="s", mfc="none", ms=3.5))
    fig.legend(keys, names, loc="outside upper center", ncols=len(keys), columnspacing=1.2)
    return fig


def _all(axis, edges, n):
    _draw(axis, edges, n["truth"][0], n["model"][0], n["spread"][0])
    _band(axis, edges, n["truth"][0] * (1 - n["cosmic"]), n["truth"][0] * (1 + n["cosmic"]), color=_FIELD, alpha=0.35)
    axis.stairs(n["start"][0], edges, baseline=None, color=_START, ls=":", lw=1.0)


def _bins(axis, edges, n, reach):
    step = 1.05 * max(n["truth"][1:].max(), (n["model"] + n["spread"])[1:].max())
    for b in range(1, len(n["truth"])):
        offset = (b - 1) * step
        _draw(axis, edges, n["truth"][b], n["model"][b], n["spread"][b], offset)
        axis.axhline(offset, color="0.4", lw=0.4)
        axis.text(0.97 * reach, offset + 0.45 * step, f"bin {b}", ha="right", fontsize=7)
    axis.set_ylim(0, step * (len(n["truth"]) - 1) * 1.02)


def _errors(axis, error):
    place = np.arange(len(error["model"]))
    for x, half in zip(place, error["cosmic"], strict=True):
        axis.add_patch(Rectangle((x - 0.4, -half), 0.8, 2 * half, color=_FIELD, alpha=0.35, lw=0))
    axis.axhline(0, color="k", lw=0.5)
    axis.plot(place - 0.15, error["start"], "s", ms=3.5, mfc="none", color=_START)
    axis.errorbar(place + 0.15, error["model"], error["sampling"], fmt="none", color=_MODEL, lw=0.8, capsize=2)
    axis.errorbar(place + 0.15, error["model"], error["ensemble"], fmt="o", ms=3.5, color=_MODEL, lw=2.4)
    high, low = error["model"] + error["sampling"], error["model"] - error["sampling"]
    shown = np.concatenate([high, low, error["start"], error["cosmic"], -error["cosmic"]])
    margin = 0.08 * np.ptp(shown)
    axis.set(
        title="error of the mean",
        xlabel="bin",
        ylabel=r"$\Delta\langle z\rangle/(1+z)$",
        ylim=(shown.min() - margin, shown.max() + margin),
        xlim=(-0.6, place[-1] + 0.6),
    )
    axis.set_xticks(place, ["all", *map(str, place[1:])])
    axis.xaxis.set_minor_locator(plt.NullLocator())


def real_sky(panels):
    """Redshifts of the real sky beside those of the mock sky and of the model.

    Parameters
    ----------
    panels : dict of str to (str, edges, real, sky, model, cosmic)
        Title -> what the real redshifts are; bin edges (k + 1,); redshifts of the real sky, of the mock sky and of the model, (n,) each;
        relative standard deviation of the counts in a field like the real one (k,).

    Returns
    -------
    Figure
        Double width.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(figures.DOUBLE, 2.6), squeeze=False)
    for axis, (title, (name, edges, real, sky, model, cosmic)) in zip(axes[0], panels.items(), strict=True):
        density = {
            kind: np.histogram(z, edges)[0] / len(z) / np.diff(edges) for kind, z in (("real", real), ("sky", sky), ("model", model))
        }
        axis.stairs(density["real"], edges, fill=True, color=_SKY, label=name)
        _band(axis, edges, density["sky"] * (1 - cosmic), density["sky"] * (1 + cosmic), color=_FIELD, alpha=0.35, label="cosmic variance")
        axis.stairs(density["sky"], edges, baseline=None, color=_FIELD, lw=1.0, label="mock sky (literature)")
        axis.stairs(density["model"], edges, baseline=None, color=_MODEL, lw=1.0, label="calibrated model")
        axis.set(
            title=title, xlabel="redshift", ylabel="n(z)", xlim=(0, max(_reach(edges, density[kind]) for kind in density)), ylim=(0, None)
        )
        axis.legend(loc="upper right")
    return fig
