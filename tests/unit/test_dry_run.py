"""A catalogue beside the model: right photometry raises no suspicion, a slip of one band or of the unit is seen."""

import numpy as np
import pytest
import torch
from astropy.table import Table

from popcosmos_lib import catalog, population, survey
from popcosmos_lib.catalog import columns, dry_run, readers
from popcosmos_lib.emulation import emulator
from popcosmos_lib.survey.forward_model import ForwardModel
from popcosmos_lib.synthesis import filters

N = 6000


@pytest.fixture(scope="module")
def sky():
    """Galaxies of the published population as COSMOS2020 would see them."""
    generator = torch.Generator().manual_seed(77)
    forward = ForwardModel(emulator.load(), survey.load())
    seen = forward(population.load().sample(N, generator), forward.draws(N, generator))
    table = Table({"id": np.arange(N)})
    for i, band in enumerate(filters.SHORT):
        table[f"flux_{band}"], table[f"flux_err_{band}"] = seen.flux[:, i].numpy(), seen.flux_err[:, i].numpy()
    return table[seen.selected.numpy()]


def scaled(table, bands, factor):
    table = table.copy()
    for band in bands:
        for kind in ("flux", "flux_err"):
            table[f"{kind}_{band}"] *= factor
    return table


def suspects(table):
    found = dry_run.compare(catalog.from_table(table))
    return found, [row["band"] for row in found if row["suspect"]]


def test_galaxies_of_the_model_are_beyond_suspicion(sky):
    found, bad = suspects(sky)
    assert not bad and found.meta["reference"] == "r"
    assert np.abs(found["offset"]).max() < 0.15 and np.abs(found["colour"]).max() < 0.15
    bright = sky[np.asarray(sky["flux_r"]) > float(filters.flux_from_magnitude(torch.tensor(22.5)))]
    found, bad = suspects(bright)
    assert not bad and np.median(found["offset"]) < -1.5, "a bright sample differs in brightness, not in colours"
    assert np.abs(found["colour"]).max() < 0.3
    assert not suspects(sky[:25])[1], "a handful of galaxies gives no certainty"


@pytest.mark.parametrize(("band", "factor"), [("IA679", 2.0), ("Ch1", 0.4), ("u", 3.0), ("r", 0.5)])
def test_a_zero_point_that_slipped_is_marked_and_no_other(sky, band, factor):
    found, bad = suspects(scaled(sky, [band], factor))
    assert bad == [band]


def test_a_unit_that_slipped_shows_in_all_bands(sky, tmp_path):
    table = scaled(sky, filters.SHORT, 1000.0)
    assert np.median(suspects(table)[0]["offset"]) == pytest.approx(-7.5, abs=0.3)
    table.write(tmp_path / "t.parquet")
    source = readers.load(tmp_path / "t.parquet")
    lines = list(dry_run.report(source, columns.resolve(source)))
    assert any("all bands are 7.5 mag brighter than the model" in line and "a factor 1000 is 7.5 mag" in line for line in lines)


def test_without_r_the_nearest_band_takes_its_place(sky):
    table = sky.copy()
    table.remove_columns([f"{kind}_{band}" for band in ("r", "IA624", "IB574") for kind in ("flux", "flux_err")])
    found, bad = suspects(table)
    assert not bad and found.meta["reference"] == "IA679" and np.isnan(found["catalogue"][2])


def test_another_survey_is_compared_through_its_own_curves(tmp_path):
    catalog.write(tmp_path / "kids.parquet", [population.mock(3000, "kids", generator=torch.Generator().manual_seed(5))])
    source = readers.load(tmp_path / "kids.parquet")
    mapping = columns.resolve(source)
    found = columns.sample(source, mapping, 3000)
    own, nearest = (np.abs(dry_run.compare(found, curves=curves)["colour"]) for curves in (mapping.curves, None))
    own, nearest = (offset[[filters.SHORT.index(band) for band in ("i", "z", "Y")]].mean() for offset in (own, nearest))
    assert own < 0.03 < nearest, "the bands of COSMOS2020 stand apart by their colour terms, its own do not"


def test_the_report_says_what_was_understood(sky, tmp_path):
    table = scaled(sky, ["J"], 3.0)
    table.rename_columns(["flux_J", "flux_err_J", "flux_g", "flux_err_g", "flux_r", "flux_err_r"], ["fj", "ej", "fg", "eg", "fr", "er"])
    table.write(tmp_path / "t.fits")
    told = "id: id\nbands: {J: [fj, ej], g: [fg, eg], r: [fr, er]}\nunit: uJy\nebv: 0.0\nzero_points: {g: 0.01}\n"
    (tmp_path / "map.yaml").write_text(told)
    source = readers.load(tmp_path / "t.fits")
    lines = list(dry_run.report(source, columns.resolve(source, tmp_path / "map.yaml")))
    text = "\n".join(lines)
    assert lines[0] == f"t.fits: {len(table):,} rows" and "names of map.yaml; id id; spectroscopic redshift none" in text
    assert "3 of 26 bands" in text and "  J      fj, ej [uJy]" in text and "missing bands: u i z y Y H Ks" in text
    assert "corrected with E(B-V) = 0.0" in text and "zero points: g +0.010" in text
    (marked,) = [line for line in lines if "<--" in line]
    assert marked.split()[0] == "J" and int(marked.split()[1].replace(",", "")) > 1000
    assert any(line.split()[:2] == ["z_q50", "-"] for line in lines) and any("2048: the fit failed" in line for line in lines)


def test_fluxes_in_place_of_errors_are_noticed(sky, tmp_path):
    table = sky["id", "flux_r", "flux_err_r"][:50]
    table["flux_r"], table["flux_err_r"] = table["flux_err_r"], table["flux_r"]
    table.write(tmp_path / "t.parquet")
    source = readers.load(tmp_path / "t.parquet")
    assert any("the right way round?" in line for line in dry_run.report(source, columns.resolve(source)))
