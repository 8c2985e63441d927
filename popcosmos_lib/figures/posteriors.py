"""The summary page of a catalogue's posteriors, written beside them by ``python -m popcosmos_lib fit``."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from popcosmos_lib import figures
from popcosmos_lib.artefacts import store
from popcosmos_lib.catalog import schema, summary

__all__ = ["check", "page", "write"]

_BLUE, _RED = figures.COLOURS[:2]


def page(table, title):
    """Redshifts, masses, quality and flags of a catalogue at a glance.

    Parameters
    ----------
    table : dict of str to ndarray of shape (n,)
        What ``summary.read`` returns; NaN for a galaxy without posterior.
    title : str

    Returns
    -------
    Figure
        Double width.
    """
    fig = plt.figure(figsize=(figures.DOUBLE, 7.4), layout="none")  # the solver of layouts rounds differently from one run to the next
    fig.suptitle(title, y=0.99)
    right = {"right": 0.985, "wspace": 0.2}
    (first, second), (third, fourth) = fig.add_gridspec(2, 2, left=0.075, top=0.955, bottom=0.395, hspace=0.22, **right).subplots()
    fifth, sixth = fig.add_gridspec(1, 2, left=0.3, top=0.33, bottom=0.055, width_ratios=(0.7, 1), **right).subplots()
    z, mass = table["z_q50"], table["log10M_remain_q50"]
    there = np.isfinite(z) & np.isfinite(mass)
    _redshifts(first, table)
    _plane(fig, second, z[there], mass[there])
    least, largest, unlikely = (summary.LIMITS[name] for name in ("ess", "khat", "p"))
    _quality(third, np.log10(table["ess"].clip(1)), np.log10(least), f"above {least:g}", r"$\log_{10}$ effective draws")
    _quality(fourth, table["khat"].clip(-1, 2), largest, f"below {largest}", r"Pareto $\hat{k}$ of the importance weights")
    _flags(fifth, table["flags"])
    _quality(sixth, table["p"], unlikely, f"below {unlikely}", "chance of a worse fit")
    return fig


def _quality(axis, values, limit, side, label):
    """Histogram of a diagnostic and the share on one side of its limit."""
    values = values[np.isfinite(values)]
    axis.hist(values, 40, color=_BLUE)
    axis.axvline(limit, 0, 0.86, color=_RED, ls="--")
    passed = values > limit if side.startswith("above") else values < limit
    _note(axis, f"{100 * passed.mean():.1f} % {side}" if len(values) else "none")
    axis.set(xlabel=label, ylabel="galaxies")


def _note(axis, text):
    axis.text(0.97, 0.94, text, transform=axis.transAxes, ha="right", va="top", fontsize=7)
    axis.set_ylim(0, 1.18 * axis.get_ylim()[1])


def _redshifts(axis, table):
    z, spec = (table[name][np.isfinite(table[name])] for name in ("z_q50", "z_spec"))
    reach = np.quantile(z, 0.998) if len(z) else 1.0
    edges = np.linspace(0, max(1.05 * reach, 0.1), 41)
    axis.hist(z, edges, color=_BLUE, label="posterior medians")
    if len(spec):
        axis.hist(spec, edges, histtype="step", color=_RED, label=f"spectroscopic ({len(spec):,})")
    axis.set(xlabel="redshift", ylabel="galaxies", xlim=edges[[0, -1]])
    axis.set_ylim(0, 1.18 * axis.get_ylim()[1])
    axis.legend(loc="upper right")


def _plane(fig, axis, z, mass):
    """Density on the mass-redshift plane, points where there are few."""
    axis.set(xlabel="redshift", ylabel=r"$\log_{10}\,M_\star\ [\mathrm{M}_\odot]$")
    if len(z) < 3000:
        axis.plot(z, mass, "o", ms=2, mew=0, alpha=0.6, color=_BLUE)
        return
    low, high = np.quantile(mass, [0.0005, 0.9995])
    counts = axis.hexbin(z, mass, gridsize=40, extent=(0, np.quantile(z, 0.998), low, high), mincnt=1, norm=LogNorm(), lw=0.1)
    bar = axis.inset_axes([0.6, 0.12, 0.36, 0.03])  # over faint galaxies far away, of which there are few
    fig.colorbar(counts, cax=bar, orientation="horizontal", label="galaxies", ticklocation="top")


def _flags(axis, flags):
    """Share of the galaxies that have each bit; every bit has its row, so that two pages can be compared."""
    share = np.array([100 * np.mean(flags & bit != 0) if len(flags) else 0.0 for bit in schema.FLAGS])
    rows = np.arange(len(share))
    axis.barh(rows, share, color=_BLUE, height=0.7)
    for row, value in zip(rows, share, strict=True):
        axis.text(value, row, f" {value:.1f} %" if value else " 0", va="center", fontsize=6)
    axis.set_yticks(rows, [_short(bit, text) for bit, text in schema.FLAGS.items()], fontsize=6)
    axis.invert_yaxis()
    axis.tick_params(axis="y", which="both", length=0)
    axis.set(xlabel="share of the galaxies [%]", xlim=(0, max(1.0, 1.25 * share.max())))


def _short(bit, text):
    text = text.split(":")[0].split(" (")[0]
    return f"{text if len(text) < 42 else text[:40].rsplit(' ', 1)[0] + ' ...'}  {bit}"


def check(target):
    """Refuse a path that no page can be written to, before the work is done.

    Raises
    ------
    ValueError
        If it does not end in ``.pdf`` or its folder is not there.
    """
    if target.suffix != ".pdf" or not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: give a path that ends in .pdf, in a folder that exists")


def write(path, target):
    """Write the page of a table of posteriors.

    Parameters
    ----------
    path : Path
        Parquet file as ``batch.run`` writes it.
    target : Path
        PDF file; it is replaced.
    """
    fig = page(summary.read(path), f"{path.name}: {summary.rows(path):,} galaxies")
    outlines = {"pdf.fonttype": 3}  # embedding whole fonts takes longer than drawing the page
    with store.replacing(target) as temporary, plt.rc_context(outlines):
        fig.savefig(temporary, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    plt.close(fig)
