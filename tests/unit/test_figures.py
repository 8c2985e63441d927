"""Figures: declared, of a printed width, the same bytes twice, never smoke beside the real ones."""

import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from popcosmos_lib import figures

ENTRY = "{id}: {{notebook: 01_x, paper: Alsing+24, number: 1, width: {width}, status: analogue, caption: c, alt: a}}\n"


@pytest.fixture
def declared(home):
    (home / "figures" / "figures.yaml").write_text(ENTRY.format(id="line", width="single") + ENTRY.format(id="wide", width="double"))
    return home


def draw(width=figures.SINGLE):
    fig, ax = plt.subplots(figsize=(width, 2))
    ax.plot(np.arange(5.0) ** 2, label=r"$\log_{10} M$")
    ax.legend()
    return fig


def test_an_undeclared_figure_is_refused(declared):
    with pytest.raises(ValueError, match=r"'lime' is not declared: add it to figures/figures.yaml \(line, wide\)"):
        figures.save(draw(), "lime", "fast")


def test_a_figure_has_its_declared_width(declared):
    with pytest.raises(ValueError, match=r"'wide' is declared double \(6.97 in\) but is 3.32 in wide"):
        figures.save(draw(), "wide", "fast")
    assert figures.save(draw(figures.DOUBLE), "wide", "fast")


def test_equal_figures_are_equal_bytes(declared):
    assert figures.save(draw(), "line", "fast") == figures.save(draw(), "line", "fast")
    with Image.open(declared / "figures/line.png") as image:
        assert image.size[0] == round(200 * figures.SINGLE), "the page width must be the declared one, uncropped"
    text = (declared / "figures/line.pdf").read_bytes()
    assert b"/Type3" not in text and b"CreationDate" not in text and b"Producer" not in text


def test_smoke_figures_stay_out_of_figures(declared):
    smoke, fast = figures.save(draw(), "line", "smoke"), figures.save(draw(), "line", "fast")
    assert (declared / "build/smoke/figures/line.pdf").exists()
    assert smoke["png"] != fast["png"], "the smoke stamp must be on the page"


def test_previews_are_small_and_in_colour():
    with Image.open(io.BytesIO(figures.preview(draw()))) as image:
        assert image.size[0] == round(100 * figures.SINGLE) and image.mode == "P"
        assert (0, 114, 178) in {colour for _, colour in image.convert("RGB").getcolors(4096)}, "Okabe-Ito blue must survive the palette"


def test_the_style_is_printable():
    style = plt.rcParams
    assert style["pdf.fonttype"] == 42 and not style["text.usetex"] and style["savefig.bbox"] in (None, "standard")
    assert style["font.size"] == 8 and style["mathtext.fontset"] == "stixsans" and style["figure.constrained_layout.use"]
    assert len(set(figures.COLOURS)) == 8 and all(re.fullmatch(r"#?[0-9A-F]{6}", colour) for colour in figures.COLOURS)
