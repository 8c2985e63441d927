"""Figures: data in, ``Figure`` out, in one style and two widths, saved by declared id; nothing is computed here.

May import catalog (names of columns), synthesis and galaxies (curves, labels) and artefacts.
Introduced in notebook 00. Importing this room applies ``popcosmos.mplstyle``; ``save`` writes a figure that ``figures/figures.yaml``
declares, with no date and no path in the file, so that equal figures are equal bytes.
"""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import yaml
from PIL import Image

from popcosmos_lib.artefacts import provenance, store

__all__ = ["COLOURS", "DOUBLE", "SINGLE", "declared", "folder", "preview", "save", "with_units"]

SINGLE = 3.32  # one MNRAS column [in]
DOUBLE = 6.97  # the text width [in]

plt.style.use(Path(__file__).resolve().with_name("popcosmos.mplstyle"))
COLOURS = plt.rcParams["axes.prop_cycle"].by_key()["color"]  # Okabe-Ito: blue, vermilion, green, purple, orange, sky, yellow, black

# units of logarithms, as papers write them
_SYMBOLS = {"dex(Msun)": r"$M_\odot$", "dex(Zsun)": r"$Z_\odot$", "dex(Msun/yr)": r"$M_\odot$ yr$^{-1}$"}
_METADATA = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}


def with_units(labels, units, between=" "):
    """Axis labels of quantities and their units, as a list; the unit of a logarithm is that of its argument."""
    return [f"{label}{between}[{_SYMBOLS.get(unit, unit)}]" if unit else label for label, unit in zip(labels, units, strict=True)]


def declared():
    """The declared figures: id -> {notebook, paper, number, width, status, caption, alt}."""
    return yaml.safe_load((store.home() / "figures" / "figures.yaml").read_text()) or {}


def folder(profile):
    """Where a profile's figures go: ``figures/``, but never for smoke."""
    return store.home() / ("build/smoke/figures" if profile == "smoke" else "figures")


def save(fig, id, profile):
    """Write a declared figure as PDF and 200-dpi PNG.

    Parameters
    ----------
    fig : Figure
        ``SINGLE`` or ``DOUBLE`` inches wide, as declared. The smoke profile stamps it.
    id : str
        A key of ``figures/figures.yaml``; also the file name.
    profile : str

    Returns
    -------
    dict of str to str
        sha256 by extension.

    Raises
    ------
    ValueError
        If the id is not declared, or the figure does not have the declared width.
    """
    entries = declared()
    if id not in entries:
        raise ValueError(f"figure {id!r} is not declared: add it to figures/figures.yaml ({', '.join(sorted(entries)) or 'empty so far'})")
    wanted = {"single": SINGLE, "double": DOUBLE}[entries[id]["width"]]
    if abs(fig.get_figwidth() - wanted) > 0.01:
        raise ValueError(f"figure {id!r} is declared {entries[id]['width']} ({wanted} in) but is {fig.get_figwidth():.2f} in wide")
    if profile == "smoke":
        fig.text(0.5, 0.5, "smoke profile - not science", color="crimson", alpha=0.4, ha="center", va="center", rotation=20, fontsize=12)
    target = folder(profile)
    target.mkdir(parents=True, exist_ok=True)
    digests = {}
    for extension, metadata in _METADATA.items():
        path = target / f"{id}.{extension}"
        with store.replacing(path) as temporary:
            fig.savefig(temporary, format=extension, metadata=metadata)
        digests[extension] = provenance.sha256(path)
    return digests


def preview(fig, dpi=100):
    """PNG bytes of a figure for the page: 100 dpi and 256 colours, to keep the reading copies small."""
    buffer, small = io.BytesIO(), io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, metadata=_METADATA["png"])
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()
