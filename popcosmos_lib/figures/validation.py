"""Figures of the overview, the validation, the extrapolation and the explainability notebooks."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from popcosmos_lib import figures

__all__ = ["components", "contours", "extrapolation", "information", "marginals", "parameters", "pipeline"]

_TRUTH, _MODEL, _START = "0.75", figures.COLOURS[1], figures.COLOURS[0]


def _histograms(axis, edges, truth, model, start=None):
    """Densities of the mock sky (filled), the model (line) and where it started (dotted)."""
    axis.hist(truth, edges, density=True, color=_TRUTH)
    if start is not None:
        axis.hist(start, edges, density=True, histtype="step", color=_START, ls=":", lw=1.0)
    axis.hist(model, edges, density=True, histtype="step", color=_MODEL, lw=1.0)


def _legend(fig, names, **options):
    keys = {
        "truth": Patch(color=_TRUTH), "model": Line2D([], [], color=_MODEL), "start": Line2D([], [], color=_START, ls=":"),
    }  # fmt: skip
    handles = [keys[kind] for kind in names]
    fig.legend(handles, list(names.values()), loc="outside upper center", ncols=len(names), **options)


def marginals(rows):
    """One-dimensional distributions of photometry.

    Parameters
    ----------
    rows : list of dict of str to (truth, model, start)
        One dict per row: axis label with unit -> three arrays of shape (n,) [mag]; ``start`` is the model before calibration.

    Returns
    -------
    Figure
        Double width.
    """
    columns = max(map(len, rows))
    fig, axes = plt.subplots(len(rows), columns, figsize=(figures.DOUBLE, 1.45 * len(rows) + 0.2))
    for row, panels in zip(axes, rows, strict=True):
        for axis, (label, (truth, model, start)) in zip(row, panels.items(), strict=True):
            edges = np.linspace(*np.percentile(truth, [0.2, 99.8]), 36)
            _histograms(axis, edges, truth, model, start)
            axis.set(xlabel=label, yticks=[], xlim=(edges[0], edges[-1]))
            axis.xaxis.set_major_locator(plt.MaxNLocator(4))
        row[0].set_ylabel("density")
    _legend(fig, {"truth": "mock sky, held out", "model": "calibrated model", "start": "before calibration"})
    return fig


def _contours(axis, x, y, levels, bins, span, **style):
    """Lines that enclose the given fractions of the points (x, y)."""
    counts, xs, ys = np.histogram2d(x, y, bins, span)
    kernel = np.array([1.0, 2.0, 1.0]) / 4
    for _ in range(3):
        counts = np.apply_along_axis(np.convolve, 0, np.apply_along_axis(np.convolve, 1, counts, kernel, "same"), kernel, "same")
    ordered = np.sort(counts.ravel())[::-1]
    enclosed = np.cumsum(ordered) / len(x)  # of all points, those outside the frame included
    heights = sorted({ordered[min(np.searchsorted(enclosed, level), len(ordered) - 1)] for level in levels})
    axis.contour((xs[1:] + xs[:-1]) / 2, (ys[1:] + ys[:-1]) / 2, counts.T, heights, **style)


def contours(panels, levels=(0.68, 0.95)):
    """Two-dimensional distributions of magnitudes and colours, as contours that enclose the given fractions.

    Parameters
    ----------
    panels : list of (label_x, label_y, truth, model)
        Labels, and two arrays of shape (n, 2) [mag]; three panels a row.
    levels : tuple of float
        Enclosed fractions.

    Returns
    -------
    Figure
        Double width.
    """
    rows = len(panels) // 3
    fig, axes = plt.subplots(rows, 3, figsize=(figures.DOUBLE, 2.0 * rows + 0.4))
    for axis, (label_x, label_y, truth, model) in zip(axes.flat, panels, strict=True):
        span = np.percentile(truth, [0.5, 99.5], axis=0).T + np.array([-0.15, 0.15])
        _contours(axis, *truth.T, levels, 36, span, colors="0.35", linewidths=1.6, linestyles=["-", "-"])
        _contours(axis, *model.T, levels, 36, span, colors=_MODEL, linewidths=1.0)
        axis.set(xlabel=f"{label_x} [mag]", ylabel=f"{label_y} [mag]", xlim=span[0], ylim=span[1])
    lines = [Line2D([], [], color="0.35", lw=1.6), Line2D([], [], color=_MODEL, lw=1.0)]
    named = " and ".join(f"{level:.0%}" for level in levels)
    fig.legend(lines, [f"mock sky, held out ({named})", "calibrated model"], loc="outside upper center", ncols=2)
    return fig


def components(variance, vectors, labels, p, curves):
    """Principal components of the colours: scree, vectors, and how far the model's distribution along each is from the sky's.

    Parameters
    ----------
    variance : ndarray of shape (k,)
        Cumulative fraction of the variance.
    vectors : ndarray of shape (c, m)
        The first c vectors over m colours.
    labels : list of str
        Names of the m colours.
    p : ndarray of shape (q,)
        Probabilities.
    curves : dict of str to (pp, pp_range, qq, qq_range)
        One entry for each of the c vectors, title -> arrays of shape (q,): model distribution at the sky's quantiles minus p, model
        quantile minus the sky's [mag], each with the half width of what two samples of one sky show.

    Returns
    -------
    Figure
        Double width.
    """
    fig = plt.figure(figsize=(figures.DOUBLE, 5.4))
    top, bottom = fig.subfigures(2, 1, height_ratios=[1, 1.15])
    scree, loads = top.subplots(1, 2, width_ratios=[1, 1.5])
    scree.plot(np.arange(1, len(variance) + 1), 100 * variance, "o-", color=figures.COLOURS[0])
    scree.set(xlabel="component", ylabel="cumulative variance [%]", ylim=(0, 105))
    scree.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    scree.xaxis.set_minor_locator(plt.NullLocator())
    image = loads.imshow(vectors, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    loads.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    loads.set_yticks(range(len(vectors)), [f"PC{i + 1}" for i in range(len(vectors))])
    loads.tick_params(which="both", length=0)
    top.colorbar(image, ax=loads, label="weight in vector")
    axes = bottom.subplots(2, len(curves), sharex=True, sharey="row")
    for column, (title, parts) in zip(axes.T, curves.items(), strict=True):
        column[0].set_title(title)
        for axis, curve, half in zip(column, parts[::2], parts[1::2], strict=True):
            axis.fill_between(p, -half, half, color="0.85", lw=0)
            axis.axhline(0, color="k", lw=0.4)
            axis.plot(p, curve, color=_MODEL, lw=0.9)
        column[1].set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
    reach = 1.15 * max(max(np.abs(pp).max(), half.max()) for pp, half, *_ in curves.values())
    axes[0, 0].set(ylim=(-reach, reach), ylabel="PP $-$ p")
    # the last quantiles of a heavy tail would hide the rest
    reach = 1.15 * np.percentile(np.abs([qq for *_, qq, _ in curves.values()]), 99)
    axes[1, 0].set(ylim=(-reach, reach), ylabel="QQ [mag]")
    bottom.supxlabel("probability p in the mock sky", fontsize=8)
    handles = [Line2D([], [], color=_MODEL), Patch(color="0.85")]
    bottom.legend(handles, ["calibrated model", "95 % of what two samples of one sky show"], ncols=2, loc="outside upper center")
    return fig


def parameters(truth, prior, model, labels, width, apart, decided, names=("truth, held out", "prior, as selected", "calibrated model")):
    """The 16 parameters in three samples; those that photometry leaves to the prior stand on a tinted ground.

    Parameters
    ----------
    truth, prior, model : ndarray of shape (n, 16)
        Galaxies that pass one selection: of the sky, of the prior, of the calibrated model.
    labels : list of str
        Axis labels.
    width, apart : ndarray of shape (16,)
        Posterior over prior width, see ``closure_test.widths``; KS distance of two calibrations from two priors.
    decided : ndarray of shape (16,), bool
        Whether photometry decides.
    names : sequence of str
        What the three samples are called.

    Returns
    -------
    Figure
        Double width.
    """
    fig, axes = plt.subplots(4, 4, figsize=(figures.DOUBLE, 6.0))
    for i, (axis, label) in enumerate(zip(axes.flat, labels, strict=True)):
        edges = np.linspace(*np.percentile(np.concatenate([truth[:, i], model[:, i]]), [0.3, 99.7]), 40)
        _histograms(axis, edges, truth[:, i], model[:, i], prior[:, i])
        axis.set_facecolor("w" if decided[i] else "#fdf1d8")
        axis.set_title(f"width {width[i]:.2f}, starts {apart[i]:.2f}", fontsize=7, loc="right", pad=2)
        top = 1.12 * max(np.histogram(values[:, i], edges, density=True)[0].max() for values in (truth, model))
        axis.set(xlabel=label, yticks=[], xlim=(edges[0], edges[-1]), ylim=(0, top))
        axis.xaxis.set_major_locator(plt.MaxNLocator(4))
    for axis in axes[:, 0]:
        axis.set_ylabel("density")
    _legend(fig, dict(zip(("truth", "start", "model"), names, strict=True)))
    return fig


def extrapolation(rows):
    """What a model calibrated at r < 25 says of a Ch1 < 26 sky, inside and beyond its own selection; counts, so that what is missing shows.

    Parameters
    ----------
    rows : dict of str to dict of str to (edges, truth, model, copies)
        Title -> axis label -> bin edges, sky values of shape (n,), and pairs (values, weights) of shape (m,), weights in sky galaxies: a
        list of them for the model and then the members of its ensemble, one for dimmer copies of its faintest galaxies, or None.

    Returns
    -------
    Figure
        Double width.
    """
    fig, axes = plt.subplots(len(rows), max(map(len, rows.values())), figsize=(figures.DOUBLE, 1.75 * len(rows) + 0.2))
    for row, (title, panels) in zip(axes, rows.items(), strict=True):
        for axis, (label, (edges, truth, model, copies)) in zip(row, panels.items(), strict=True):
            axis.hist(truth, edges, color=_TRUTH)
            if copies:
                axis.hist(copies[0], edges, weights=copies[1], histtype="step", lw=1.0, color=_START, ls=":")
            for i, (values, weights) in enumerate(model):
                axis.hist(values, edges, weights=weights, histtype="step", lw=0.4 if i else 1.0, color=_MODEL, alpha=0.6 if i else 1.0)
            axis.set(xlabel=label if label == "redshift" else f"{label} [mag]", xlim=(edges[0], edges[-1]))
            axis.xaxis.set_major_locator(plt.MaxNLocator(4))
            axis.yaxis.set_major_locator(plt.MaxNLocator(3))
        row[0].set(ylabel=f"{title}\ngalaxies per bin")
    _legend(fig, {"truth": "mock sky, Ch1 < 26", "model": "model calibrated at r < 25", "start": "its faintest galaxies, dimmed"})
    return fig


def information(share, widths, parameters, bands):
    """Which band informs which parameter.

    Parameters
    ----------
    share : ndarray of shape (n_parameter, n_band)
        Fraction of a parameter's Fisher information that comes from each band; rows add up to one.
    widths : dict of str to ndarray of shape (n_parameter,)
        Legend entry -> width of the parameter's posterior in units of the broad prior's.
    parameters, bands : list of str
        Labels.

    Returns
    -------
    Figure
        Double width.
    """
    fig, (heat, bar) = plt.subplots(1, 2, figsize=(figures.DOUBLE, 3.4), width_ratios=[4, 1], sharey=True)
    image = heat.imshow(100 * share, cmap="cividis", aspect="auto", norm=PowerNorm(0.5, vmin=0))
    heat.set_xticks(range(len(bands)), bands, rotation=90)
    heat.set_yticks(range(len(parameters)), parameters)
    heat.tick_params(which="both", length=0)
    heat.minorticks_off()
    fig.colorbar(image, ax=heat, label="share of the information [%]", pad=0.01)
    for i, (label, width) in enumerate(widths.items()):
        bar.barh(np.arange(len(width)) + 0.4 * (i - 0.5), width, 0.4, color=figures.COLOURS[i], label=label)
    bar.set(xlabel="posterior width /\nbroad prior width", xscale="log", xlim=(None, 1.3))
    fig.legend(loc="outside upper right", ncols=2)
    bar.tick_params(axis="y", which="both", length=0)
    return fig


_BOXES = {  # id: (x, y, text, colour)
    "theta": (0.9, 3.3, "16 parameters\n$\\theta$", 4), "sps": (3.0, 3.3, "stars, gas, dust,\nAGN, IGM", 5),
    "emulator": (5.1, 3.3, "26 magnitudes\n(emulated)", 5), "noise": (7.2, 3.3, "zero points,\nerrors, noise", 2),
    "cut": (9.2, 3.3, "selection\n$r<25$", 2), "population": (0.9, 1.75, "score-based\ndiffusion $p(\\theta)$", 1),
    "distance": (7.2, 1.75, "posteriors, or\ntransport distance", 1), "sky": (9.2, 1.75, "observed\ncatalogue", 7),
    "nz": (0.9, 0.2, "n(z), population\nrelations, mocks", 0), "fit": (5.1, 0.2, "SED fits and\nphotometric $z$", 0),
}  # fmt: skip
_ARROWS = [  # from, to, label, place of the label along the arrow
    ("population", "theta", "draw", 0.5), ("theta", "sps", "01", 0.5), ("sps", "emulator", "02", 0.5), ("emulator", "noise", "03", 0.5),
    ("noise", "cut", "03", 0.5), ("cut", "distance", "model sky", 0.42), ("sky", "distance", "", 0.5), ("sky", "fit", "data", 0.5),
    ("distance", "population", "calibration  04", 0.67), ("population", "nz", "05, 06, 09-11", 0.5),
    ("population", "fit", "prior", 0.55), ("emulator", "fit", "likelihood  07, 08", 0.72),
]  # fmt: skip


def pipeline():
    """The model in one drawing: generation along the top, calibration back along the middle, use at the bottom.

    Returns
    -------
    Figure
        Double width; the numbers are the notebooks'.
    """
    fig, axis = plt.subplots(figsize=(figures.DOUBLE, 2.9))
    axis.set(xlim=(-0.1, 10.2), ylim=(-0.35, 3.85))
    axis.axis("off")
    frames = {}
    for name, (x, y, text, colour) in _BOXES.items():
        shape = {"xy": (x - 0.78, y - 0.3), "width": 1.56, "height": 0.6, "boxstyle": "round,pad=0.06"}
        axis.add_patch(FancyBboxPatch(**shape, fc=figures.COLOURS[colour], alpha=0.22, ec="none"))
        frames[name] = axis.add_patch(FancyBboxPatch(**shape, fc="none", ec=figures.COLOURS[colour], lw=0.9))
        axis.text(x, y, text, ha="center", va="center", fontsize=7.5)
    for start, end, label, place in _ARROWS:
        a, b = np.array(_BOXES[start][:2]), np.array(_BOXES[end][:2])
        axis.add_patch(FancyArrowPatch(a, b, patchA=frames[start], patchB=frames[end], arrowstyle="-|>", mutation_scale=9, color="0.3"))
        x, y = a + place * (b - a)
        level = abs(b - a)[1] < 0.1
        if level:
            axis.text(x, y + 0.08, label, fontsize=7, color="0.25", ha="center", va="bottom")
        else:
            axis.text(x + 0.12, y + (0.06 if b[0] >= a[0] else -0.12), label, fontsize=7, color="0.25", ha="left", va="center")
    return fig
