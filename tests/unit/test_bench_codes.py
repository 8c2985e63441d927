"""Other codes beside ours: what EAZY and LePHARE get, rows for what cannot run. A catalogue: time kept over kills, the table."""

import json

import numpy as np
import pytest
import torch
from scripts import DEVICE, script

from popcosmos_lib.catalog.real_galaxies import Sample
from popcosmos_lib.synthesis import filters, igm
from popcosmos_lib.workflow import tables

TRUTH = (0.3, 0.6, 0.9)


@pytest.fixture(scope="module")
def codes():
    return script("codes")


@pytest.fixture(scope="module")
def sky():
    """Five bands, two templates with a break at 4000 Angstrom, and galaxies of the second one at three redshifts: flux and error."""
    bands = filters.load(list(filters.load("cosmos").names[:5]))
    wave = np.geomspace(900.0, 6e4, 800)
    templates = np.stack([np.ones(len(wave)), np.where(wave > 4000, 1.0, 0.2)])
    flux = np.stack([bands.average(wave * (1 + z), templates[1] * wave**2) for z in TRUTH])
    flux /= flux.max(1, keepdims=True)
    return bands, wave, templates, flux, np.full_like(flux, 0.02)


def test_factors_find_the_templates_of_a_sum(codes):
    g = torch.Generator().manual_seed(1)
    spectra = torch.rand(60, 3, generator=g) @ torch.rand(3, 200, generator=g)
    templates = codes.factors(spectra, 3, g, steps=3000)
    weights = torch.linalg.lstsq(templates.T, spectra.T).solution
    assert (templates >= 0).all() and float((weights.T @ templates - spectra).norm() / spectra.norm()) < 0.01
    fewer = codes.factors(spectra, 1, g, steps=300)
    weights = torch.linalg.lstsq(fewer.T, spectra.T).solution
    assert float((weights.T @ fewer - spectra).norm() / spectra.norm()) > 0.05, "one factor cannot be enough for three"


def test_eazy_gets_every_flux_curve_and_template(codes, sky, tmp_path):
    bands, wave, templates, flux, error = sky
    flux = flux.copy()
    flux[1, 2] = np.nan
    codes.eazy_files(tmp_path, flux, error, wave, templates, bands)
    head, *rows = (tmp_path / "galaxies.cat").read_text().splitlines()
    values = np.array([row.split() for row in rows], dtype=float)
    assert head.split()[1:] == ["id", *(f"{kind}_{k}" for k in range(5) for kind in "fe")] and values[:, 0].tolist() == [0, 1, 2]
    assert values[1, 5:7].tolist() == [codes.MISSING] * 2, "a missing band has neither flux nor error"
    np.testing.assert_allclose(values[0, 1::2], flux[0], rtol=1e-5)
    assert (tmp_path / "translate").read_text().split() == [
        word for k in range(5) for word in (f"f_{k}", f"F{k + 1}", f"e_{k}", f"E{k + 1}")
    ]
    lines = (tmp_path / "FILTER.RES").read_text().splitlines()
    heads = [k for k, line in enumerate(lines) if "lambda_c" in line]
    assert [int(lines[k].split()[0]) + 1 for k in heads] == np.diff([*heads, len(lines)]).tolist(), (
        "as many nodes as the head of a curve says"
    )
    assert [lines[k].split()[1] for k in heads] == list(bands.names)
    listed = [line.split()[1] for line in (tmp_path / "shapes.param").read_text().splitlines()]
    np.testing.assert_allclose([np.loadtxt(tmp_path / name)[:, 1] for name in listed], templates)


def test_eazy_itself_finds_the_break(codes, sky, tmp_path):
    pytest.importorskip("eazy", reason="EAZY is not installed: .venv/bin/pip install -e .[bench]")
    bands, wave, templates, flux, error = sky
    codes.eazy_files(tmp_path, flux, error, wave, templates, bands)
    (tmp_path / "parameters.json").write_text(json.dumps(codes.EAZY_PARAMETERS | {"Z_MAX": 1.5, "Z_STEP": 0.02}))
    np.testing.assert_allclose(codes.process(codes.EAZY, tmp_path)["z"], TRUTH, atol=0.03)


def test_lephare_gets_every_flux_curve_template_and_opacity(codes, sky, tmp_path):
    bands, wave, templates, flux, error = sky
    flux = flux.copy()
    flux[1, 2] = np.nan
    codes.lephare_files(tmp_path, flux, error, wave, templates, bands)
    given, keys = np.load(tmp_path / "galaxies.npz"), json.loads((tmp_path / "parameters.json").read_text())
    assert given["flux"][1, 2] == given["error"][1, 2] == codes.MISSING, "a missing band has neither flux nor error"
    np.testing.assert_allclose(-2.5 * np.log10(given["flux"][0]) - 48.6, 23.9 - 2.5 * np.log10(flux[0]), atol=1e-6)  # AB
    curves = [np.loadtxt(tmp_path / "filt" / name) for name in keys["FILTER_LIST"].split(",")]
    middle = [float((w * t).sum() / t.sum()) for w, t in (curve.T for curve in curves)]
    np.testing.assert_allclose(middle, bands.effective, rtol=0.02)
    assert len(keys["ERR_SCALE"].split(",")) == len(bands.names)
    listed = (tmp_path / "sed/GAL/shapes.list").read_text().split()
    np.testing.assert_allclose([np.loadtxt(tmp_path / "sed/GAL" / name)[:, 1] for name in listed], templates)
    opacities = dict(line.split() for line in (tmp_path / "opa/OPACITY.dat").read_text().splitlines())
    below, transmission = np.loadtxt(tmp_path / "opa" / opacities["3.0"]).T
    expected = igm.transmission(torch.as_tensor(below), torch.tensor([3.0]))[0]
    np.testing.assert_allclose(transmission, expected, atol=1e-5)
    assert len(opacities) == 81 and below[-1] < igm.LYMAN_ALPHA


def test_lephare_itself_finds_the_break(codes, sky, tmp_path):
    pytest.importorskip("lephare", reason="LePHARE is not installed: .venv/bin/pip install -e .[bench]")
    codes.lephare_files(tmp_path, *sky[3:], *sky[1:3], sky[0])
    keys = json.loads((tmp_path / "parameters.json").read_text()) | {"Z_STEP": "0.02,0.02,1.5"}
    (tmp_path / "parameters.json").write_text(json.dumps(keys))
    np.testing.assert_allclose(codes.process(codes.LEPHARE, tmp_path)["z"], TRUTH, atol=0.03)


def test_a_process_that_fails_says_why(codes, tmp_path):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        codes.process("1 / 0", tmp_path)


def test_a_code_that_cannot_run_leaves_a_row_and_stops_no_other(codes):
    truth, z = torch.ones(4), torch.tensor([1.0, 1.01, 0.99, 3.0])
    absent = lambda sample, tools, folder: codes.installed("no_such_package", "LePHARE")  # noqa: E731
    whole = lambda sample, tools, folder: {"z": z.tolist(), "start": 2.0, "seconds": 8.0}  # noqa: E731
    galaxies = Sample(list("abcd"), torch.ones(4, 26), torch.ones(4, 26), truth, truth, torch.zeros(26), None)
    rows = codes.measure({"LePHARE": absent, "EAZY": whole}, "model", galaxies, None)
    assert rows[0]["code"] == "LePHARE" and "pip install" in rows[0]["missing"]
    assert rows[1]["n"] == 4 and rows[1]["seconds"] == 2.0 and rows[1]["outliers"] == 0.25 and rows[1]["wrong"] == ["d"]
    text = tables.codes(DEVICE | {"rows": rows})
    assert "| model | LePHARE | - | - | - | - | - | - | LePHARE is not installed" in text
    assert "| model | EAZY | 4 | 2 | 2 | " in text and "| 25% | redshift only" in text and "outliers of every code" not in text
    real = codes.measure({"EAZY": whole}, "COSMOS2020", galaxies, None)
    assert "1 galaxies of COSMOS2020 are outliers of every code" in tables.codes(DEVICE | {"rows": rows + real})
    other = [real[0] | {"wrong": ["a"]}]
    assert "0 galaxies of COSMOS2020 are outliers of every code" in tables.codes(DEVICE | {"rows": rows + real + other})


def test_time_of_an_earlier_run_counts(tmp_path):
    catalogue = script("catalogue")
    first = catalogue.watched(["--help"], tmp_path / "log.json")
    second = catalogue.watched(["--help"], tmp_path / "log.json", workers=3)
    assert first["runs"] == 1 and second["runs"] == 2 and second["wall_s"] > first["wall_s"] > 0.01
    assert second["core_s"] == pytest.approx(first["wall_s"] + 3 * (second["wall_s"] - first["wall_s"]))
    with pytest.raises(SystemExit):
        catalogue.watched(["fti"], tmp_path / "log.json")


def test_larger_catalogues_are_extrapolated_by_core_hours():
    row = {"n": 1000, "wall_s": 3600.0, "core_s": 7200.0, "cpu_s": 6000.0, "runs": 3, "bytes": 500.0, "sigma_mad": 0.0123}
    row |= {"trusted": 0.99, "effective": 0.98, "chains": 0.01, "quiet": 0.9, "outliers": 0.02}
    text = tables.catalogue(DEVICE | {"rows": [row]})
    assert "| 1,000 | 2.00 | 500 | 6.00 | 99.0% | 98.0% | 1.0% | 90.0% | 2.0% | 0.0123 |" in text
    assert "| a deep field, 3 x 10^5 | 600 | 0.025 | 0.1 GB |" in text and "| a survey, 10^9 | 2,000,000 | 83 | 500.0 GB |" in text
    assert "3 runs" in text
