"""Figures of notebook 01: bands, what each parameter does, the parts of a spectrum, histories and breaks."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from popcosmos_lib.figures import COLOURS, DOUBLE
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.synthesis import filters

__all__ = ["bands", "components", "effects", "histories"]

_BROAD = [*range(10), 24, 25]  # of filters.COSMOS26


def bands(curves, wave, magnitudes, labels):
    """The 26 transmission curves in two rows, and spectra above them.

    Parameters
    ----------
    curves : filters.Filters
        The COSMOS2020 bands.
    wave, magnitudes : ndarray of shape (n, n_wave)
        Observed wavelength [micron] and AB magnitude of example galaxies.
    labels : list of str
        Their names.

    Returns
    -------
    Figure
    """
    fig, (top, broad, narrow) = plt.subplots(3, 1, figsize=(DOUBLE, 4.3), sharex=True, height_ratios=[2.2, 1, 1])
    for x, y, label, colour in zip(wave, magnitudes, labels, COLOURS, strict=False):
        shown = (x > 0.29) & (x < 5.6)
        top.plot(x[shown], y[shown], color=colour, lw=0.8, label=label)
    top.set(ylabel="AB magnitude", ylim=(27.8, 20.2))
    top.legend(loc="lower right", ncols=1)
    colour = plt.get_cmap("turbo")(Normalize(np.log(3500), np.log(50_000))(np.log(curves.effective.numpy())))
    order = np.argsort(curves.effective.numpy())
    for i in order:
        ax = broad if i in _BROAD else narrow
        ax.fill_between(curves.wave[i] / 1e4, curves.transmission[i], color=colour[i], alpha=0.35, lw=0)
        ax.plot(curves.wave[i] / 1e4, curves.transmission[i], color=colour[i], lw=0.7)
        label = filters.SHORT[i]
        upright = ax is broad or label.startswith("NB")
        height = 1.95 if label.startswith("NB") else 1.08
        side = {"NB711": "right", "NB816": "left"}.get(label, "center")
        ax.text(curves.effective[i] / 1e4, height, label, ha=side, va="bottom", fontsize=6, rotation=0 if upright else 90)
    for ax, top_limit, name in ((broad, 1.4, "broad"), (narrow, 2.35, "medium, narrow")):
        ax.set(ylim=(0, top_limit), ylabel="response", yticks=[0, 0.5, 1])
        ax.text(0.995, 0.93, name, transform=ax.transAxes, ha="right", va="top", fontsize=7)
    narrow.set(xscale="log", xlim=(0.29, 5.6), xlabel=r"observed wavelength [$\mu$m]")
    ticks = [0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 3, 4, 5]
    narrow.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    narrow.minorticks_off()
    return fig


def effects(wave, magnitudes, values):
    """One panel per parameter: the observed spectrum while that parameter alone moves through its range.

    Parameters
    ----------
    wave, magnitudes : ndarray of shape (16, n_value, n_wave)
        Observed wavelength [micron] and AB magnitude.
    values : ndarray of shape (16, n_value)
        Values of the parameter that moves.

    Returns
    -------
    Figure
    """
    fig, axes = plt.subplots(4, 4, figsize=(DOUBLE, 6.6), sharex=True, sharey=True)
    colour = plt.get_cmap("viridis")
    for i, ax in enumerate(axes.flat):
        shade = Normalize(0, len(values[i]) - 0.6)
        for k, value in enumerate(values[i]):
            shown = (wave[i, k] > 0.28) & (wave[i, k] < 8)
            ax.plot(wave[i, k][shown], magnitudes[i, k][shown], color=colour(shade(k)), lw=0.7, label=f"{value:.3g}")
        ax.text(0.5, 0.05, parameters.LABELS[i], transform=ax.transAxes, ha="center", fontsize=8)
        ax.legend(loc="lower right", fontsize=5, handlelength=0.8, labelspacing=0.1, borderaxespad=0.2, handletextpad=0.3)
    axes[0, 0].set(xscale="log", xlim=(0.28, 8), ylim=(29.5, 18.5))
    axes[0, 0].set_xticks([0.3, 0.5, 1, 2, 5], ["0.3", "0.5", "1", "2", "5"])
    axes[0, 0].minorticks_off()
    fig.supxlabel(r"observed wavelength [$\mu$m]", fontsize=8)
    fig.supylabel("AB magnitude", fontsize=8)
    return fig


def components(spectrum, z, curves):
    """The parts that add up to one spectrum, in the rest frame, with the bands that see them.

    Parameters
    ----------
    spectrum : sps.Spectrum
        Of one galaxy.
    z : float
        Its redshift.
    curves : filters.Filters
        Bands to mark at their rest wavelength.

    Returns
    -------
    Figure
    """
    fig, ax = plt.subplots(figsize=(DOUBLE, 3.0))
    wave = spectrum.wave.numpy()
    frequency = filters.LIGHT / wave
    styles = {
        "intrinsic": ("stars and gas, no dust", "0.6", "--"),
        "stars": ("stars", COLOURS[0], "-"),
        "nebular": ("nebular continuum", COLOURS[3], "-"),
        "dust": ("dust emission", COLOURS[1], "-"),
        "agn": ("AGN torus", COLOURS[2], "-"),
    }
    for name, (label, colour, line) in styles.items():
        ax.plot(wave / 1e4, frequency * spectrum.components[name][0].numpy(), color=colour, ls=line, lw=1.0, label=label)
    total = frequency * spectrum.total[0].numpy()
    ax.plot(wave / 1e4, total, color="black", lw=0.6, label="total, before the IGM")
    strong = spectrum.lines[0] > spectrum.lines[0].max() / 60
    at, power = spectrum.line_wave[strong].numpy(), spectrum.lines[0, strong].numpy()
    base = np.interp(at, wave, total)
    resolution = 1 / np.log(wave[1] / wave[0])
    ax.vlines(at / 1e4, base, base + resolution * power, color=COLOURS[3], lw=0.7, label="lines, one pixel wide")
    top = total.max() * 8
    for rank, i in enumerate(_BROAD):
        low, high = curves.wave[i, [0, -1]].numpy() / 1e4 / (1 + z)
        height = top * 2.2 ** (rank % 2)
        ax.hlines(height, low, high, color="0.4", lw=2)
        ax.text(np.sqrt(low * high), height * 1.15, filters.SHORT[i], ha="center", fontsize=6)
    ax.set(xscale="log", yscale="log", xlim=(0.06, 1000), ylim=(total.max() / 3e3, top * 6))
    ax.set(xlabel=r"rest wavelength [$\mu$m]", ylabel=r"$\nu L_\nu$ [$L_\odot$]")
    ticks = [0.1, 1, 10, 100, 1000]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.legend(loc="upper right", ncols=2)
    return fig


def histories(edges, rates, labels, z, tracks):
    """Star-formation histories, and how their galaxies move through magnitudes and colours with redshift.

    Parameters
    ----------
    edges : ndarray of shape (n, 8)
        Lookback time of the bins [Gyr].
    rates : ndarray of shape (n, 7)
        Star-formation rate per formed mass [1/Gyr].
    labels : list of str, length n
    z : ndarray of shape (n_z,)
        Redshift.
    tracks : ndarray of shape (n, n_z, 26)
        AB magnitudes of the same histories at each redshift.

    Returns
    -------
    Figure
    """
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(DOUBLE, 2.6), width_ratios=[1, 1, 1.15])
    for edge, rate, label, colour in zip(edges, rates, labels, COLOURS, strict=False):
        left.stairs(rate, np.maximum(edge, 0.01), color=colour, lw=1.2, label=label, baseline=None)
    left.set(xscale="log", yscale="log", xlabel="lookback time [Gyr]", ylabel=r"SFR per formed mass [Gyr$^{-1}$]", xlim=(0.01, 14))
    left.set_ylim(rates.min() / 3, rates.max() * 12)
    left.legend(loc="upper right")
    u, g, r, i = (filters.SHORT.index(name) for name in "ugri")
    for k, colour in zip((u, g, r, i, 5, 6), plt.get_cmap("turbo")(np.linspace(0.1, 0.95, 6)), strict=True):
        middle.plot(z, tracks[0, :, k], color=colour, label=filters.SHORT[k])
    middle.set(xlabel="redshift", ylabel=f"AB magnitude ({labels[0]})", ylim=(32, 20), xlim=(0, 6))
    middle.legend(loc="lower left", ncols=2)
    for track, colour in zip(tracks, COLOURS, strict=False):
        seen = track[:, r] < 30
        x, y = (track[:, r] - track[:, i])[seen], (track[:, g] - track[:, r])[seen]
        right.plot(x, y, color=colour, lw=0.8)
        points = right.scatter(x, y, c=z[seen], cmap="viridis", norm=Normalize(0, 6), s=6, zorder=3)
    right.set(xlabel="$r - i$", ylabel="$g - r$", xlim=(-0.4, 2.2), ylim=(-0.5, 4.0))
    fig.colorbar(ScalarMappable(points.norm, points.cmap), ax=right, label="redshift")
    return fig
