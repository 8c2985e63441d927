"""Figures of the SED-fitting and photometric-redshift notebooks."""

import itertools
import math

import corner as corner_plots
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from popcosmos_lib import figures

__all__ = ["LABEL", "corner", "cost", "coverage", "ranks", "redshift_scatter", "redshift_scores", "spectrum", "trust"]

_COLOUR = {"pop-cosmos": figures.COLOURS[1], "prospector": figures.COLOURS[0]}
LABEL = {"pop-cosmos": "pop-cosmos prior", "prospector": "Prospector-like prior"}
_MARKER = {"pop-cosmos": "o", "prospector": "s"}
_TRUTH = "0.35"


def corner(draws, labels, truth, members=()):
    """Joint posterior of one galaxy under several priors.

    Parameters
    ----------
    draws : dict of str to ndarray of shape (k, d)
        Prior name -> equally weighted draws.
    labels : list of str
        Axis labels with units.
    truth : ndarray of shape (d,)
    members : sequence of ndarray of shape (k,)
        Weights of the pop-cosmos draws under each member of the ensemble: thin lines.

    Returns
    -------
    Figure
        Double width.
    """
    d = len(labels)
    fig = plt.figure(figsize=(figures.DOUBLE, figures.DOUBLE), layout="none")
    ends = [np.quantile(np.concatenate([points[:, i] for points in draws.values()]), [0.003, 0.997]) for i in range(d)]
    margin = [0.08 * (high - low) for low, high in ends]
    span = [(min(low, t) - m, max(high, t) + m) for (low, high), t, m in zip(ends, truth, margin, strict=True)]
    layers = [("pop-cosmos", weight * len(weight), 0.4) for weight in members] + [(name, None, 1.0) for name in draws]
    for name, weight, thick in layers:
        corner_plots.corner(
            draws[name], weights=weight, fig=fig, range=span, labels=labels, color=_COLOUR[name], bins=20, smooth=1.2, smooth1d=1.2,
            levels=(0.68, 0.95), plot_datapoints=False, plot_density=False, no_fill_contours=True, contour_kwargs={"linewidths": thick},
            max_n_ticks=3, hist_kwargs={"linewidth": thick}, label_kwargs={"fontsize": 7}, labelpad=0.2,
        )  # fmt: skip
    axes = np.array(fig.axes).reshape(d, d)
    for i in range(d):
        axes[i, i].set_ylim(0, 1.12 * max(line.get_ydata().max() for line in axes[i, i].lines))
        for j in range(i + 1):
            axes[i, j].axvline(truth[j], color=_TRUTH, lw=0.8, ls="--")
            axes[i, j].tick_params(labelsize=6)
            axes[i, j].minorticks_off()
            if j < i:
                axes[i, j].axhline(truth[i], color=_TRUTH, lw=0.8, ls="--")
    handles = [Line2D([], [], color=_COLOUR[name], label=LABEL[name]) for name in draws]
    if len(members):
        handles.insert(1, Line2D([], [], color=_COLOUR["pop-cosmos"], lw=0.4, label="members of its ensemble"))
    handles.append(Line2D([], [], color=_TRUTH, ls="--", label="truth"))
    fig.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.97, 0.96), fontsize=9)
    fig.subplots_adjust(left=0.11, bottom=0.11, right=0.98, top=0.98, wspace=0.08, hspace=0.08)
    return fig


def spectrum(wave, flux, bands, measured, predicted):
    """One galaxy's photometry, the model photometry of its posterior draws, and their spectra.

    Parameters
    ----------
    wave : ndarray of shape (n_wave,)
        Observed wavelength [µm].
    flux : ndarray of shape (3, n_wave)
        16, 50 and 84 % of the draws' continuum [µJy].
    bands : ndarray of shape (n_band,)
        Effective wavelengths [µm].
    measured : ndarray of shape (2, n_band)
        Flux and error [µJy].
    predicted : ndarray of shape (k, n_band)
        Noiseless model flux of the draws [µJy].

    Returns
    -------
    Figure
        Double width; residuals below.
    """
    fig, (top, below) = plt.subplots(2, 1, figsize=(figures.DOUBLE, 3.3), sharex=True, height_ratios=(3, 1))
    colour = _COLOUR["pop-cosmos"]
    top.fill_between(wave, flux[0], flux[2], color=colour, alpha=0.35, lw=0)
    top.plot(wave, flux[1], color=colour, lw=0.7)
    width = 0.04 * bands  # wider than the marks of what was measured, which lie on top
    box = {"widths": width, "positions": bands, "manage_ticks": False, "showfliers": False, "whis": (2.3, 97.7), "medianprops": {"lw": 0}}
    top.boxplot(predicted, boxprops={"color": figures.COLOURS[0], "lw": 0.8}, whiskerprops={"lw": 0}, capprops={"lw": 0}, **box)
    style = {"fmt": "o", "ms": 3, "color": "k", "lw": 0.8}
    top.errorbar(bands, measured[0], measured[1], **style)
    middle = np.median(predicted, 0)
    residual = (predicted - middle) / measured[1]
    below.boxplot(residual, boxprops={"color": figures.COLOURS[0], "lw": 0.8}, whiskerprops={"lw": 0.6}, capprops={"lw": 0}, **box)
    below.errorbar(bands, (measured[0] - middle) / measured[1], 1.0, **style)
    below.axhline(0, color="0.6", lw=0.6, zorder=0)
    low, high = measured[0][measured[0] > 0].min(), measured[0].max()
    top.set(yscale="log", xscale="log", ylabel="flux [µJy]", xlim=(0.3, 6.0), ylim=(0.3 * low, 3 * high))
    below.set(xlabel="observed wavelength [µm]", ylabel="residual / error", ylim=(-5, 5))
    below.xaxis.set_minor_formatter(NullFormatter())
    below.set_xticks([0.3, 0.5, 0.8, 1.2, 2, 3, 5], ["0.3", "0.5", "0.8", "1.2", "2", "3", "5"])
    handles = [
        Line2D([], [], color="k", marker="o", ls="", label="measured"),
        Line2D([], [], color=figures.COLOURS[0], marker="s", mfc="none", ls="", label="posterior prediction"),
        Line2D([], [], color=colour, label="continuum, 68 % of draws"),
    ]
    top.legend(handles=handles, loc="lower right")
    return fig


def coverage(labels, inside, n, low, high, expected=0.68):
    """How many truths lie in the central interval, parameter by parameter.

    Parameters
    ----------
    labels : list of str
    inside : dict of str to ndarray of shape (d,)
        Prior name -> number of galaxies.
    n : int
        Galaxies.
    low, high : int
        Range expected of a calibrated posterior.
    expected : float
        Content of the interval.

    Returns
    -------
    Figure
        Double width.
    """
    fig, axis = plt.subplots(figsize=(figures.DOUBLE, 2.4))
    axis.axhspan(low / n, high / n, color="0.88", lw=0)
    axis.axhline(expected, color="0.6", lw=0.8)
    for (name, count), shift in zip(inside.items(), (-0.12, 0.12), strict=False):
        axis.plot(np.arange(len(labels)) + shift, count / n, _MARKER[name], color=_COLOUR[name], label=LABEL[name], ms=4)
    axis.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axis.tick_params(axis="x", which="minor", bottom=False, top=False)
    axis.set(ylabel="truths inside the 68 % interval", ylim=(0, 1.0), xlim=(-0.6, len(labels) - 0.4))
    axis.legend(loc="lower right", ncols=2)
    return fig


def ranks(pit, names, shown, limit):
    """Whether truths are spread evenly through their posteriors, all parameters in one panel.

    Parameters
    ----------
    pit : dict of str to ndarray of shape (n, d)
        Title of each panel -> posterior probability below the truth.
    names : list of str
        Labels of the d columns.
    shown : sequence of int
        Columns drawn in colour; the others are grey.
    limit : float
        Kolmogorov-Smirnov distance that calibrated posteriors stay below.

    Returns
    -------
    Figure
        Double width.
    """
    fig, axes = plt.subplots(1, len(pit), figsize=(figures.DOUBLE, 2.6), sharey=True)
    p = np.linspace(0, 1, 301)
    for axis, (title, values) in zip(np.atleast_1d(axes), pit.items(), strict=True):
        axis.axhspan(-limit, limit, color="0.92", lw=0)
        axis.axhline(0, color="0.6", lw=0.8)
        below = np.stack([np.searchsorted(np.sort(column), p, side="right") / len(values) - p for column in values.T])
        axis.plot(p, np.delete(below, shown, 0).T, color="0.65", lw=0.6)
        for i, colour in zip(shown, figures.COLOURS, strict=False):
            axis.plot(p, below[i], color=colour, lw=1.2, label=names[i])
        axis.set(xlabel="posterior probability below the truth", xlim=(0, 1), ylim=(-1.6 * limit, 1.6 * limit), title=title)
    np.atleast_1d(axes)[0].set_ylabel("share of truths below, minus uniform")
    np.atleast_1d(axes)[0].legend(loc="lower left", ncols=len(shown))
    return fig


def trust(quality, p, unlikely, ess, khat):
    """The quality of every fit, and which objects are flagged as unlike any galaxy of the model.

    Parameters
    ----------
    quality : dict of str to (ess, khat)
        Sample -> effective draws and Pareto index, each of shape (n,).
    p : dict of str to ndarray of shape (n,)
        Sample -> p-value of all tests together.
    unlikely, ess, khat : float
        Limits, drawn as lines.

    Returns
    -------
    Figure
        Double width.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(figures.DOUBLE, 2.7))
    for (name, (effective, tail)), marker, colour in zip(quality.items(), "os^", figures.COLOURS, strict=False):
        left.plot(tail, effective, marker, ms=3, color=colour, label=name, alpha=0.8)
    left.axvline(khat, color="0.5", lw=0.8, ls="--")
    left.axhline(ess, color="0.5", lw=0.8, ls="--")
    left.set(xlabel=r"Pareto index $\hat k$ of the weights", ylabel="effective draws", yscale="log")
    left.yaxis.set(major_locator=FixedLocator([100 * 2**k for k in range(-2, 8)]), major_formatter="{x:.0f}", minor_locator=NullLocator())
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    for (name, values), style, colour in zip(p.items(), ("-", "--", "-.", ":"), ("k", *figures.COLOURS), strict=False):
        ordered = np.sort(np.clip(values, 1e-6, 1))
        right.step(
            np.concatenate([[1e-6], ordered]), np.arange(len(ordered) + 1) / len(ordered), where="post", color=colour, ls=style, label=name
        )
    right.axvline(unlikely, color="0.5", lw=0.8)
    right.set(xscale="log", xlim=(1e-6, 1), ylim=(0, 1.02), xlabel="chance of a worse fit", ylabel="share of objects below")
    right.legend(loc="center left", bbox_to_anchor=(0.0, 0.42))
    return fig


def cost(rows, bar):
    """How far the medians of each engine are from converged ones, against what it costs.

    Parameters
    ----------
    rows : list of dict
        Of ``tables.benchmark("inference")``.
    bar : float
        Distance drawn as a line [posterior sigma].

    Returns
    -------
    Figure
        Double width.
    """
    fig, axis = plt.subplots(figsize=(figures.DOUBLE, 2.9))
    found = [row for row in rows if not row["missing"]]
    styles = zip(itertools.cycle("ospD^vX<>"), itertools.cycle(("k", *figures.COLOURS)), strict=False)
    for row, (marker, colour) in zip(found, styles, strict=False):
        ends = [row[name] for name in ("z", "log10M_formed", "log10SFR")]
        axis.plot([row["seconds"]] * 2, [min(ends), max(ends)], color=colour, lw=1)
        axis.plot(row["seconds"], row["distance"], marker, color=colour, ms=6, ls="", label=row["engine"])
    axis.axhline(bar, color="0.6", lw=0.8, ls="--", zorder=0)
    axis.set(xscale="log", yscale="log", xlabel="CPU seconds per galaxy", ylabel=r"distance from converged [posterior $\sigma$]")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def redshift_scatter(panels, note):
    """Photometric against reference redshifts, one panel a sample, at most three in a row, and below each its residuals, larger.

    Parameters
    ----------
    panels : dict of str to (prior, z_true, quantiles)
        Title -> prior, which gives the colour; reference redshift (n,); 16, 50, 84 % of the posterior (3, n).
    note : dict of str to str
        Text of each panel.

    Returns
    -------
    Figure
        Double width. Residuals beyond a strip, five times what holds 68 % of them, lie on its edge.
    """
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = figures.DOUBLE, 9.5 / columns * rows
    fig, axes = plt.subplots(2 * rows, columns, figsize=size, height_ratios=[4, 1] * rows, squeeze=False)
    pairs = [axes[2 * row : 2 * row + 2, column] for row in range(rows) for column in range(columns)]
    for (axis, strip), (title, (prior, z, (low, middle, high))) in zip(pairs, panels.items(), strict=False):
        style = {"fmt": _MARKER[prior], "ms": 2, "color": _COLOUR[prior], "elinewidth": 0.5, "alpha": 0.7}
        top = 1.08 * max(z.max(), middle.max())
        line = np.linspace(0, top, 200)
        axis.fill_between(line, line - 0.15 * (1 + line), line + 0.15 * (1 + line), color="0.92", lw=0)
        axis.plot(line, line, color="0.6", lw=0.8)
        error = np.array([np.maximum(middle - low, 0), np.maximum(high - middle, 0)])
        axis.errorbar(z, middle, error, **style)
        axis.text(0.04, 0.96, f"{title}\n{note[title]}", transform=axis.transAxes, va="top", fontsize=6)
        axis.set(xlim=(0, top), ylim=(0, top), xticklabels=[])
        residual = (middle - z) / (1 + z)
        edge = min(0.15, 5 * np.quantile(np.abs(residual), 0.68))
        strip.axhline(0, color="0.6", lw=0.8)
        strip.errorbar(z, residual.clip(-edge, edge), error / (1 + z), **style)
        strip.set(xlim=(0, top), ylim=(-1.1 * edge, 1.1 * edge))
    for axis, strip in pairs[len(panels) :]:
        axis.axis("off"), strip.axis("off")
    for axis, strip in pairs[::columns]:
        axis.set_ylabel("photometric redshift")
        strip.set_ylabel(r"$\Delta z/(1+z)$")
    fig.supxlabel("reference redshift", fontsize=9)
    return fig


def redshift_scores(pit, magnitude, error, width, members=()):
    """Whether redshift posteriors are calibrated, and how errors grow towards faint galaxies.

    Parameters
    ----------
    pit : dict of str to ndarray of shape (n,)
        Prior name -> posterior probability below the reference redshift.
    magnitude : ndarray of shape (n,)
        r magnitude.
    error, width : dict of str to ndarray of shape (n,)
        |dz| and half the 68 % interval, both over 1 + z.
    members : sequence of ndarray of shape (n,)
        PIT under each member of the ensemble of pop-cosmos priors: thin lines.

    Returns
    -------
    Figure
        Double width.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(figures.DOUBLE, 2.7))
    n = len(magnitude)
    p = np.linspace(0, 1, 201)
    band = 1.63 * np.ones_like(p) / np.sqrt(n)  # 99 % of the Kolmogorov-Smirnov distance
    left.fill_between(p, -band, band, color="0.9", lw=0)
    edges = np.quantile(magnitude, np.linspace(0, 1, 6))
    centre = [np.median(magnitude[(magnitude >= a) & (magnitude <= b)]) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    for values in members:
        left.plot(p, np.searchsorted(np.sort(values), p, side="right") / n - p, color=_COLOUR["pop-cosmos"], lw=0.4)
    for name, values in pit.items():
        ordered = np.searchsorted(np.sort(values), p, side="right") / n
        left.plot(p, ordered - p, color=_COLOUR[name], label=LABEL[name])
        right.plot(magnitude, error[name].clip(2e-4), _MARKER[name], ms=2, alpha=0.5, color=_COLOUR[name])
        running = [np.median(width[name][(magnitude >= a) & (magnitude <= b)]) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        right.plot(centre, running, color=_COLOUR[name], lw=1.5)
    left.axhline(0, color="0.6", lw=0.8)
    left.set(xlabel="PIT", ylabel="share of PIT below, minus PIT", xlim=(0, 1))
    reach = 1.25 * max(np.abs(left.get_ylim()).max(), band[0])
    left.set_ylim(-reach, reach)
    left.legend(loc="upper right")
    right.axhline(0.15, color="0.6", lw=0.8, ls=":")
    right.set(yscale="log", xlabel="r [mag]", ylabel=r"$|\Delta z|\,/\,(1+z)$", ylim=(1.5e-4, 5))
    handles = [Line2D([], [], color="0.3", marker="o", ls="", label="error"), Line2D([], [], color="0.3", label="median posterior width")]
    right.legend(handles=handles, loc="upper left")
    return fig
