"""The summary page: every galaxy counted, also those without a posterior, and the same bytes twice."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import standin
import torch

from popcosmos_lib import figures
from popcosmos_lib.catalog import batch, schema, summary
from popcosmos_lib.figures import posteriors
from popcosmos_lib.fitting import goodness_of_fit


def table(n):
    rng = np.random.default_rng(4)
    found = {name: rng.uniform(0, 1, n) for name in ("z_q16", "z_q50", "z_q84", "khat", "p_fit", "p_band", "p_rare")}
    found |= {"ess": np.full(n, 1000.0), "log10M_remain_q50": rng.normal(10, 0.5, n), "z_spec": np.full(n, np.nan)}
    return found | {"flags": np.zeros(n, int), "p": together(found)}


def together(table):
    return goodness_of_fit.combined(*(torch.tensor(table[name]) for name in goodness_of_fit.TESTS)).numpy()


def axes(page):
    return [axis for axis in page.findobj(plt.Axes) if axis.get_xlabel() not in ("", "galaxies")]  # the second is the colour bar


def words(page):
    return [text.get_text().strip() for text in page.findobj(plt.Text) if text.get_text().strip()]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_shares_are_those_of_the_table():
    given = table(200)
    given["flags"][:10], given["flags"][5:7] = 32, 32 | schema.FAILED
    given["ess"][:50], given["khat"][:] = 100, np.linspace(0, 1.0001, 200)
    given["p_fit"][:], given["p_rare"][:], given["p_band"][:] = 1.0, 1.0, np.linspace(0, 1, 200)
    given["z_spec"][:7], given["p"] = 0.5, together(given)
    said = words(posteriors.page(given, "mine: 200 galaxies"))
    assert "mine: 200 galaxies" in said and "75.0 % above 400" in said and "70.0 % below 0.7" in said and "4.0 % below 0.05" in said
    assert "5.0 %" in said and "1.0 %" in said and said.count("0") >= len(schema.FLAGS) - 2 and "spectroscopic (7)" in said
    assert any(word.startswith("the fit failed") and word.endswith("2048") for word in said)


def test_every_axis_has_a_label_and_few_or_many_galaxies_fit():
    for n in (40, 5000):
        page = posteriors.page(table(n), "t")
        assert page.get_figwidth() == pytest.approx(figures.DOUBLE) and len(axes(page)) == 6
        assert sum(bool(axis.collections) for axis in axes(page)) == (n == 5000), "a density of many, points of few"
        assert all(axis.get_ylabel() for axis in axes(page) if "share" not in axis.get_xlabel())
        page.canvas.draw()


def test_galaxies_without_a_posterior_leave_a_page():
    for n in (0, 3):
        given = table(n)
        for name in given:
            if name != "flags":
                given[name][:] = np.nan
        given["flags"][:] = schema.FAILED
        page = posteriors.page(given, "t")
        page.canvas.draw()
        assert words(page).count("none") == 3


def test_the_page_of_a_run_is_the_same_bytes_twice(tmp_path, monkeypatch):
    standin.mock(30).write(tmp_path / "mock.parquet")
    batch.run(tmp_path / "mock.parquet", tmp_path / "p.parquet", fit=standin.fit)
    for name in ("a.pdf", "b.pdf"):
        posteriors.write(tmp_path / "p.parquet", tmp_path / name)
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    assert len(summary.read(tmp_path / "p.parquet")["z_q50"]) == 30
    monkeypatch.setattr(summary, "_ROWS", 10)
    assert 0 < len(summary.read(tmp_path / "p.parquet")["z_q50"]) <= 30
