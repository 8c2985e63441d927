"""The real FSPS binary on a synthetic home: the 16 parameters mean there what they mean here."""

import os

import fsps_home
import numpy as np
import pytest
import torch

from popcosmos_lib import dust, filters, fsps_backend, igm, parameters, universe

Z = parameters.INDEX["z"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    previous = os.environ.get("SPS_HOME")
    os.environ["SPS_HOME"] = str(fsps_home.build(tmp_path_factory.mktemp("fsps")))
    backend = fsps_backend.load()
    yield backend
    backend.close()
    os.environ.pop("SPS_HOME") if previous is None else os.environ.update(SPS_HOME=previous)


def galaxies(n, **values):
    """1e10 Msun at z = 0.001, constant star formation, no dust, no torus; some parameters changed."""
    base = dict.fromkeys(parameters.NAMES, 0.0) | {"log10M_formed": 10.0, "lnfAGN": -11.5, "lntauAGN": 3.0, "log10Ugas": -2.5, "z": 1e-3}
    return torch.stack([torch.as_tensor(value, dtype=torch.float64).expand(n) for value in (base | values).values()], -1)


OLD = {f"log10SFR_ratio{i}": -2.0 for i in range(1, 7)}


def test_magnitudes_of_a_population_are_finite(reference):
    theta = universe.sample(6, generator=torch.Generator().manual_seed(4))
    m = reference.magnitudes(theta)
    assert m.shape == (6, 26) and m.isfinite().all()
    heavier = theta.clone()
    heavier[:, 0] += 0.5
    assert torch.allclose(m - reference.magnitudes(heavier), torch.tensor(1.25, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("ratio", [0.0, 0.4, -0.3])
def test_fsps_puts_the_mass_where_the_bins_are(reference, ratio):
    theta = galaxies(1, z=0.4, **{f"log10SFR_ratio{i}": ratio for i in range(1, 7)})
    ages, mass, _ = reference.pool.submit(fsps_home.weights, theta[0].numpy()).result()
    ours = parameters.mass_fractions(theta)[0].cumsum(-1).numpy()
    edges = 9 + np.log10(parameters.age_edges(theta[:, Z])[0, 1:].numpy())
    cells = np.append(0.5 * (ages[1:] + ages[:-1]), ages[-1])  # FSPS shares each interval between its two ends
    theirs = np.interp(edges, cells, mass.cumsum() / mass.sum())
    assert np.abs(theirs - ours)[:-1].max() < 0.03, (theirs, ours)
    assert mass.sum() == pytest.approx(1e10, rel=1e-3), "the table forms what _MASS says"


def test_surviving_mass_is_below_what_formed_and_falls_with_age(reference):
    young, old = reference.spectrum(torch.cat([galaxies(1, log10SFR_ratio1=1.0, log10SFR_ratio2=1.0), galaxies(1, **OLD)]))[2]
    assert 0.4 < old < young < 1.0


def test_diffuse_dust_follows_the_same_curve(reference):
    depth, index = torch.tensor([0.0, 1.0, 1.0, 0.3]), torch.tensor([0.0, 0.2, -0.7, -1.0])
    wave, light, _ = reference.spectrum(galaxies(4, dust2=depth, dust_index=index, **OLD))
    seen = (wave > 1300) & (wave < 9000)
    curves = dust.diffuse(torch.as_tensor(wave[seen]), index.double()).numpy()
    for row in (1, 2, 3):
        measured = -np.log(light[row, seen] / light[0, seen]) / depth[row].item()
        assert measured == pytest.approx(curves[row], rel=0.02), "old stars see the diffuse dust only"


def test_birth_clouds_dim_the_young_stars(reference):
    m = reference.magnitudes(galaxies(2, log10SFR_ratio1=3.0, dust2=1.0, dust1_fraction=torch.tensor([0.0, 1.0])))
    dimmed = m[1] - m[0]
    assert (dimmed[:4] > 0.2).all() and (dimmed[:3].diff() < 0).all(), dimmed


def test_intergalactic_absorption_is_the_same(reference):
    theta = galaxies(2, z=torch.tensor([3.0, 1e-3]), log10SFR_ratio1=4.0)  # nearly all light from the first 30 Myr, at both epochs
    wave, light, _ = reference.spectrum(theta)
    blue = (wave > 1040) & (wave < 1200)
    red = (wave > 1240) & (wave < 1270)
    ratio = light[0] / light[1]
    expected = igm.transmission(torch.as_tensor(wave), theta[:, Z]).numpy()
    assert ratio[blue] / ratio[red].mean() == pytest.approx((expected[0] / expected[1])[blue], rel=0.03)


def test_units_are_those_of_fsps_own_magnitudes(reference, tmp_path):
    theta = galaxies(1)
    names = []
    for index in (40, 70):
        low, high = fsps_home.band(index)
        edges = np.linspace(low, high, 15)
        path = tmp_path / f"toy_{index}.par"
        np.savetxt(path, np.column_stack([edges, np.r_[0, np.ones(13), 0]]))
        names.append(str(path))
    wave, light, _ = reference.spectrum(theta)
    flux = filters.load(names).average(wave, light[0] / 1e10)
    ours = -2.5 * torch.log10(flux * 3.839e33 / (4 * np.pi * 3.0856775814913673e19**2)) - 48.60
    theirs = reference.pool.submit(fsps_home.weights, theta[0].numpy()).result()[2]
    assert ours.numpy() == pytest.approx(theirs, abs=0.03)


def test_torus_table_is_read_from_the_home(reference):
    wave = np.geomspace(300, 1e7, 3000)
    depth, spectrum, source = dust.torus(wave)
    assert "Nenkova" in source and "SPS_HOME" in source and list(depth) == [5, 10, 20, 30, 40, 60, 80, 100, 150]
    wave, (off, on), _ = reference.spectrum(galaxies(2, lnfAGN=torch.tensor([-11.5, 0.0])))
    stars, both = (np.trapezoid(light * 2.99792458e18 / wave, np.log(wave)) for light in (off, on))
    assert both / stars - 1 == pytest.approx(1.0, abs=0.2), "ln fAGN = 0: as bright as the stars, within the coarse toy table"


def test_without_a_home_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("SPS_HOME", raising=False)
    with pytest.raises(FileNotFoundError, match="make data ID=fsps_home"):
        fsps_backend.load()
    monkeypatch.setenv("SPS_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no FSPS data"):
        fsps_backend.load()
