"""Figures of the spectrum emulator."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullLocator

from popcosmos_lib import figures

__all__ = ["accuracy"]

_APART = 1.5  # dex between the examples
_BAR = (0.2, 2.0, 0.01)  # wavelengths [micron] over which 99 % of spectra shall be this close


def accuracy(wave, synthesised, emulated, labels, error):
    """Example spectra, emulated over synthesised, and the error per wavelength below them.

    Parameters
    ----------
    wave : ndarray of shape (n_wave,)
        Rest wavelength [Angstrom].
    synthesised, emulated : ndarray of shape (n_example, n_wave)
        Luminosity density of a few galaxies, any unit: each is drawn relative to its synthesised value at 1 micron, 1.5 dex apart.
    labels : list of str, length n_example
    error : ndarray of shape (n, n_wave)
        Emulated over synthesised minus one, of many galaxies.

    Returns
    -------
    Figure
        Double width.
    """
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(figures.DOUBLE, 4.4), sharex=True, height_ratios=(1.25, 1))
    micron = wave / 1e4
    pivot = np.abs(micron - 1.0).argmin()
    unit = 10.0 ** (_APART * np.arange(len(labels)))[:, None] / (synthesised[:, [pivot]] * micron)
    for truth, guess, label, colour in zip(unit * synthesised, unit * emulated, labels, figures.COLOURS, strict=False):
        top.plot(micron, truth, color=colour, lw=2.4, alpha=0.4, label=label)
        (line,) = top.plot(micron, guess, color="black", lw=0.5)
    line.set_label("emulated")
    top.set(xscale="log", yscale="log", ylabel=r"$\nu L_\nu$ (scaled)", xlim=(micron[0], micron[-1]))
    drawn = unit * synthesised
    top.set_ylim(max(0.5 * drawn.min(), 1e-4), 12 * drawn.max())
    top.legend(loc="upper right", ncols=len(labels) + 1)

    for percent, colour in ((99, figures.COLOURS[1]), (95, figures.COLOURS[0]), (68, figures.COLOURS[2])):
        curve = 100 * np.nanpercentile(np.abs(error), percent, axis=0)
        bottom.plot(micron, curve, color=colour, lw=0.9, label=f"{percent} % of galaxies")
    low, high, bar = _BAR
    bottom.hlines(100 * bar, low, high, color="0.3", lw=1.0, ls="--")
    bottom.text(high, 108 * bar, "1 % for 99 % of galaxies", ha="right", va="bottom", fontsize=6, color="0.3")
    bottom.set(yscale="log", xlabel=r"rest wavelength [$\mu$m]", ylabel="|emulated / synthesised - 1| [%]")
    bottom.legend(loc="upper right", ncols=3)
    bottom.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
    bottom.set_ylim(0.4 * 100 * np.nanpercentile(np.abs(error), 68, axis=0).min(), 15 * 100 * bar)
    ticks = [0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5]
    bottom.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    for axis in (top, bottom):
        axis.xaxis.set_minor_locator(NullLocator())
    return fig
