"""The map of the library: rooms from the ground up, and which imports which."""

import textwrap

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

from popcosmos_lib import figures

__all__ = ["rooms", "save"]

_BLUE, _GREY = figures.COLOURS[0], "0.85"


def rooms(names, about, imports):
    """Rooms as boxes, the ground at the bottom, beside a matrix of the imports between them.

    Parameters
    ----------
    names : list of str
        Rooms, the lowest first.
    about : dict of str to str
        One line on each.
    imports : dict of (str, str) to int
        Number of imports of the first room from the second.

    Returns
    -------
    Figure
        Double width. A row of the matrix is the importing room; everything lies below its diagonal where imports run one way.
    """
    n = len(names)
    fig, (left, right) = plt.subplots(1, 2, figsize=(figures.DOUBLE, 4.4), width_ratios=(1.25, 1), layout="none")
    fig.subplots_adjust(left=0.01, right=0.96, top=0.80, bottom=0.02, wspace=0.02)
    for row, name in enumerate(names):
        box = {"boxstyle": "round,pad=0,rounding_size=0.03", "fc": "white", "ec": _BLUE, "lw": 0.8}
        left.add_patch(FancyBboxPatch((0.02, row + 0.12), 0.96, 0.76, **box))
        left.text(0.045, row + 0.5, name, va="center", fontsize=8, fontweight="bold")
        lines = textwrap.wrap(about[name].replace("`", "").rstrip("."), 64)
        left.text(0.25, row + 0.5, "\n".join(lines), va="center", fontsize=5.2, linespacing=1.1)
        right.axhspan(row, row + 1, color=_GREY if row % 2 else "white", alpha=0.45, lw=0)
        right.text(row + 0.5, n + 0.15, name, rotation=60, ha="left", va="bottom", fontsize=6.5)
        right.add_patch(plt.Rectangle((row, row), 1, 1, color="0.6", lw=0))
        for column, other in enumerate(names):
            count = imports.get((name, other))
            if count:
                right.scatter(column + 0.5, row + 0.5, s=18 + 9 * count, color=_BLUE, alpha=0.35, lw=0)
                right.text(column + 0.5, row + 0.5, str(count), ha="center", va="center", fontsize=6.5)
    for axis, width in ((left, 1), (right, n)):
        axis.set(xlim=(0, width), ylim=(0, n))
        axis.set_axis_off()
    fig.text(0.02, 0.83, "rooms, the ground at the bottom", fontsize=7, style="italic")
    fig.text(0.545, 0.975, "imports of the room in the row from the room in the column", fontsize=7, style="italic")
    return fig


def save(fig, path):
    """Write a drawing as SVG without date and with fixed ids, and close it."""
    with plt.rc_context({"svg.hashsalt": "popcosmos", "svg.fonttype": "path"}):
        fig.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(fig)
