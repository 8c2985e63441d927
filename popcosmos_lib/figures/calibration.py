"""Figures of notebook 04: solvers of the diffusion model, what calibration gained, and the 16 parameters before and after it."""

import corner as corner_plot
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from popcosmos_lib import figures

__all__ = ["closure", "corner", "history", "learning", "redshifts", "solvers"]

_TRUTH, _START, _MODEL, _BROAD = "0.75", figures.COLOURS[0], figures.COLOURS[1], figures.COLOURS[2]
_NAMES = {"start": "density of fits", "broad": "posterior,\nbroad prior"}
_COLOURS = {"posterior": figures.COLOURS[1], "transport": figures.COLOURS[0], "summaries": figures.COLOURS[2], "broad": figures.COLOURS[4]}


def _progress(steps):
    """Steps as a fraction of the run, so that runs of different kind share an axis."""
    return np.array(steps) / max(steps)


def history(ladder, floor, histories, mean_z):
    """Distances of the models from held-out photometry, and how the calibrations got there.

    Parameters
    ----------
    ladder : dict of str to float
        Sliced W2 of each model against the held-out photometry [standard deviations].
    floor : float
        The same between two halves of the sky.
    histories : dict of str to dict
        ``Calibration.history`` of "transport", "summaries" and "posterior".
    mean_z : float
        True mean redshift; NaN where it is not known.

    Returns
    -------
    Figure
        Double width.
    """
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(figures.DOUBLE, 2.5), width_ratios=[1.1, 1, 1])
    left.barh(range(len(ladder)), ladder.values(), color=[_COLOURS.get(name, "0.6") for name in ladder])
    left.axvline(floor, color="k", lw=0.8, ls=":", label="two halves of the sky")
    left.legend(loc="lower right", frameon=True, framealpha=1, edgecolor="none")
    left.set_yticks(range(len(ladder)), [_NAMES.get(name, name) for name in ladder])
    left.invert_yaxis()
    left.tick_params(axis="y", which="both", length=0)
    left.set(xscale="log", xlabel="sliced $W_2$ to held-out photometry")
    for name in ("transport", "summaries"):
        run, colour = histories[name], _COLOURS[name]
        for part, style in (("magnitudes", "-"), ("colours", "--")):
            middle.plot(_progress(run["step"]), run[part], style, color=colour, label=f"{name}, {part}")
        right.plot(_progress(run["step"]), run["mean_z"], "-", color=colour, label=name)
    middle.set(xlabel="fraction of the run", ylabel="sliced $W_2$, held out", ylim=(0, 1.55 * middle.get_ylim()[1]))
    middle.legend(loc="upper right", fontsize=6)
    run = histories["posterior"]
    drawn = [row[-1] for row in run["em_mean"]]
    right.plot(_progress(run["em_iteration"]), drawn, "o-", color=_COLOURS["posterior"], label="posterior, draws")
    right.axhline(mean_z, color="k", lw=0.8, ls=":", label="truth")
    right.set(xlabel="fraction of the run", ylabel="mean redshift")
    right.legend(fontsize=6)
    return fig


def learning(histories, labels, truth):
    """Mean (line) and mean plus and minus one standard deviation (thin) of each parameter in the course of the calibrations.

    Parameters
    ----------
    histories : dict of str to dict
        ``Calibration.history`` of "transport", "summaries" and "posterior".
    labels : list of str
        Axis labels.
    truth : (ndarray of shape (16,), ndarray of shape (16,)) or None
        Mean and standard deviation of the true parameters.

    Returns
    -------
    Figure
        Double width.
    """
    fig, axes = plt.subplots(4, 4, figsize=(figures.DOUBLE, 5.4), sharex=True)
    for i, (axis, label) in enumerate(zip(axes.flat, labels, strict=True)):
        if truth is not None:
            axis.axhspan(truth[0][i] - truth[1][i], truth[0][i] + truth[1][i], color="0.9")
            axis.axhline(truth[0][i], color="0.6", lw=0.8)
        for name, run in histories.items():
            step, mean, sd = ("em_iteration", "em_mean", "em_sd") if name == "posterior" else ("step", "mean", "sd")
            x, mean, sd = _progress(run[step]), np.array(run[mean])[:, i], np.array(run[sd])[:, i]
            axis.plot(x, mean, color=_COLOURS[name], marker="o" if name == "posterior" else None, ms=2)
            for side in (-1, 1):
                axis.plot(x, mean + side * sd, color=_COLOURS[name], lw=0.6, ls="--")
        axis.set_ylabel(label, fontsize=7, labelpad=1)
    for axis in axes[-1]:
        axis.set_xlabel("fraction of the run")
    handles = [Patch(color="0.9")] + [Line2D([], [], color=_COLOURS[name]) for name in histories]
    fig.legend(handles, ["truth, mean and sd", *histories], ncols=4, loc="outside upper center")
    return fig


def corner(truth, model, labels):
    """Joint distributions of a few parameters, 39 and 86 per cent contours (one and two sigma in two dimensions).

    Parameters
    ----------
    truth, model : ndarray of shape (n, k)
        Parameters of the held-out galaxies and of the calibrated model.
    labels : list of str
        Axis labels.

    Returns
    -------
    Figure
        Double width.
    """
    k = truth.shape[1]
    # corner places its own axes: constrained layout would move them
    with plt.rc_context({"figure.constrained_layout.use": False, "xtick.minor.visible": False, "ytick.minor.visible": False}):
        fig = plt.figure(figsize=(figures.DOUBLE, figures.DOUBLE))
        span = [tuple(np.percentile(truth[:, i], [0.3, 99.7])) for i in range(k)]
        common = {
            "labels": labels, "range": span, "bins": 36, "smooth": 1.0, "levels": (0.393, 0.865), "plot_datapoints": False,
            "plot_density": False, "max_n_ticks": 4, "labelpad": 0.08, "label_kwargs": {"fontsize": 8}, "fig": fig,
        }  # fmt: skip
        corner_plot.corner(truth, color="0.55", hist_kwargs={"density": True, "lw": 1.8}, contour_kwargs={"linewidths": 1.8}, **common)
        corner_plot.corner(model, color=_MODEL, hist_kwargs={"density": True, "lw": 1.0}, contour_kwargs={"linewidths": 1.0}, **common)
        handles = [Line2D([], [], color="0.55", lw=1.8), Line2D([], [], color=_MODEL)]
        fig.legend(handles, ["truth, held out", "calibrated"], loc="upper right", bbox_to_anchor=(0.97, 0.97), fontsize=9)
    return fig


def redshifts(truth, prior, start, model, members):
    """Redshift distributions, and the differences of their cumulative forms from the truth.

    Parameters
    ----------
    truth, prior, start, model : ndarray of shape (n,)
        Redshifts of selected galaxies.
    members : list of ndarray
        The same of the members of the ensemble.

    Returns
    -------
    Figure
        Single width.
    """
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(figures.SINGLE, 3.4), sharex=True, height_ratios=[2, 1])
    edges, grid = np.linspace(0, 4, 61), np.linspace(0, 4, 400)
    cumulative = lambda z: np.searchsorted(np.sort(z), grid) / len(z)  # noqa: E731
    top.hist(truth, edges, density=True, color=_TRUTH, label="truth, held out")
    band = 1.36 * np.sqrt(2 / len(truth))  # Kolmogorov: two samples of this size
    bottom.axhspan(-band, band, color="0.88")
    for z in members:
        top.hist(z, edges, density=True, histtype="step", color=_MODEL, lw=0.4, alpha=0.6)
        bottom.plot(grid, cumulative(z) - cumulative(truth), color=_MODEL, lw=0.4, alpha=0.6)
    for z, colour, style, label in (
        (prior, _BROAD, ":", "prior"), (start, _START, "--", "density of the fits"), (model, _MODEL, "-", "calibrated"),
    ):  # fmt: skip
        top.hist(z, edges, density=True, histtype="step", color=colour, ls=style, lw=1.1, label=label)
        bottom.plot(grid, cumulative(z) - cumulative(truth), color=colour, ls=style, lw=1.1)
    top.set(ylabel="$n(z)$, $r<25$", xlim=(0, 4))
    top.legend(loc="upper right")
    bottom.axhline(0, color="k", lw=0.5)
    bottom.set(xlabel="redshift", ylabel=r"$\Delta P(<z)$", ylim=(-0.08, 0.08))
    fig.align_ylabels()
    return fig


_SOLVERS = {  # panel: lines with their colour, marker and what selects their rows; evaluations of the default; unit of these
    "decode": (
        {
            "Adams": (0, "o", {"solver": "adams", "grid": "even"}),
            "DPM-Solver++(2M)": (1, "s", {"solver": "dpm++", "grid": "even"}),
            "Heun": (2, "D", {"solver": "heun", "grid": "karras"}),
            "dopri5, adaptive": (7, "^", {"solver": "dopri5"}),
        },
        {"VE": 16, "VP": 16},
        "",
    ),
    "log_prob": (
        {
            "Gauss": (4, "o", {"solver": "gauss", "trace": "exact"}),
            "the same, Hutchinson trace (noisy)": (3, "s", {"trace": "hutchinson"}),
            "dopri5, adaptive": (7, "^", {"solver": "dopri5"}),
        },
        {"VE": 36.25, "VP": 51.25},
        "with the trace ",
    ),
}


def solvers(rows):
    """Error of the solvers of the probability-flow ODE against their cost.

    Parameters
    ----------
    rows : dict of list of dict
        ``tables.benchmark("solvers")["rows"]``: ``decode`` and ``log_prob``.

    Returns
    -------
    Figure
        Double width. Solid and filled for variance-exploding noise, dashed and open for variance-preserving.
    """
    fig, axes = plt.subplots(1, 2, figsize=(figures.DOUBLE, 3.2))
    for axis, (name, (lines, default, unit)) in zip(axes, _SOLVERS.items(), strict=True):
        for label, (place, marker, chosen) in lines.items():
            colour = figures.COLOURS[place]
            for sde, style, face in (("VE", "-", colour), ("VP", "--", "w")):
                found = [row for row in rows[name] if row["sde"] == sde and chosen.items() <= row.items()]
                cost, error = [row["evaluations"] for row in found], [row["rms"] for row in found]
                axis.plot(cost, error, style, marker=marker, color=colour, mfc=face, lw=1, label=label if sde == "VE" else None)
        for sde, style in (("VE", ":"), ("VP", (0, (1, 4)))):
            axis.axvline(default[sde], color="0.5", lw=0.7, ls=style, zorder=0)
        axis.text(default["VE"], 0.98, "default ", transform=axis.get_xaxis_transform(), fontsize=6, color="0.4", ha="right", va="top")
        axis.set(xscale="log", yscale="log", xlabel=f"network evaluations {unit}per point")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_major_locator(FixedLocator([4, 8, 16, 32, 64, 128]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(top=3 * axis.get_ylim()[1])
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    axes[0].set_ylabel("rms error of a draw [population sd]")
    axes[1].set_ylabel(r"rms error of $\ln p$ [nat]")
    handles = [Line2D([], [], color="k", lw=1, ls="-", marker="o"), Line2D([], [], color="k", lw=1, ls="--", marker="o", mfc="w")]
    fig.legend(handles, ["variance exploding", "variance preserving"], ncols=2, loc="outside upper center")
    return fig


_MODELS = tuple(zip((0, 4, 3, 2, 7, 5, 6), "s^DvX<P", strict=True))  # place in COLOURS, marker; the last model is vermilion


def closure(bars, scores):
    """Every test of closure: scores of the models, with bar, goal and sampling floor.

    Parameters
    ----------
    bars : sequence
        ``closure_test.BARS``: ``name``, ``scores`` (key -> label), ``bar``, ``goal``, ``unit``, ``perfect``.
    scores : dict of str to dict
        Model -> scores by key; the last one is the calibrated model. ``floor`` is what two samples of one sky show.

    Returns
    -------
    Figure
        Double width. Left, tests with a bar, in its units; right, distances that are reported. Scores too small for the axis sit on its
        edge.
    """
    judged = [(bar, key) for bar in bars if np.isfinite(bar.bar) for key in bar.scores]
    reported = [(bar, key) for bar in bars if not np.isfinite(bar.bar) for key in bar.scores]
    fig, axes = plt.subplots(1, 2, figsize=(figures.DOUBLE, 4.6), width_ratios=[1.25, 1])
    for axis, rows, least in zip(axes, (judged, reported), (0.02, 0.003), strict=True):
        scale = lambda bar, value: max(abs(value) - bar.perfect, 0) / (bar.bar - bar.perfect if np.isfinite(bar.bar) else 1)  # noqa: E731
        floors = [scale(bar, scores["floor"].get(key, np.nan)) for bar, key in rows]
        axis.barh(range(len(rows)), floors, 0.8, color="0.85", label="two samples of one sky")
        axis.scatter([scale(bar, bar.goal) for bar, _ in rows], range(len(rows)), 60, color="k", marker="|", lw=0.9, label="goal")
        models = [name for name in scores if name != "floor"]
        for name, (colour, marker) in zip(models, [*_MODELS[: len(models) - 1], (1, "o")], strict=True):
            places = np.maximum([scale(bar, scores[name].get(key, np.nan)) for bar, key in rows], 1.12 * least)
            axis.plot(places, range(len(rows)), marker, color=figures.COLOURS[colour], ms=4, mec="k", mew=0.3, label=name)
        limits = [
            rf" $\leq$ {bar.bar:g}" + ("$\\,(1+z)$" if bar.unit == "1 + z" else "") if np.isfinite(bar.bar) else "" for bar, _ in rows
        ]
        labels = [bar.scores[key] + limit for (bar, key), limit in zip(rows, limits, strict=True)]
        axis.set_yticks(range(len(rows)), labels)
        axis.tick_params(axis="y", which="both", length=0)
        axis.set(ylim=(len(rows) - 0.4, -0.6), xscale="log")
        axis.grid(axis="y", lw=0.3)
    axes[0].axvline(1, color="k", lw=0.8)
    axes[0].set(xlabel="distance from perfect, in units of the bar", xlim=(0.02, None))
    axes[1].set(xlabel="KS distance from the truth", xlim=(0.003, 1))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return fig
