"""The real FSPS binary on a synthetic home: the 16 parameters mean there what they mean here, and give the same light."""

import os

import fsps_home
import fsps_model
import numpy as np
import pytest
import torch

from popcosmos_lib.emulation import inputs
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.synthesis import dust, filters, fsps_backend, igm, lines, sps, ssp

Z = parameters.INDEX["z"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """SPS_HOME, and a root of its own for artefacts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPS_HOME", str(fsps_home.build(tmp_path_factory.mktemp("fsps"))))
        patch.setenv("POPCOSMOS_HOME", str(tmp_path_factory.mktemp("root")))
        yield


@pytest.fixture(scope="module")
def reference(home):
    backend = fsps_backend.load()
    yield backend
    backend.close()


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
    ages, mass, _ = reference.workers[0].run(fsps_home.weights, theta[0].numpy())
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
    ours = -2.5 * torch.log10(flux * 3.828e33 / (4 * np.pi * 3.0856775814913673e19**2)) - 48.60
    theirs = reference.workers[0].run(fsps_home.weights, theta[0].numpy())[2]
    assert ours.numpy() == pytest.approx(theirs, abs=0.03)


def test_torus_table_is_read_from_the_home(reference):
    wave = np.geomspace(300, 1e7, 3000)
    depth, spectrum, source = dust.torus(wave)
    assert "Nenkova" in source and "SPS_HOME" in source and list(depth) == [5, 10, 20, 30, 40, 60, 80, 100, 150]
    wave, (off, on), _ = reference.spectrum(galaxies(2, lnfAGN=torch.tensor([-11.5, 0.0])))
    stars, both = (np.trapezoid(light * 2.99792458e18 / wave, np.log(wave)) for light in (off, on))
    assert both / stars - 1 == pytest.approx(1.0, abs=0.2), "ln fAGN = 0: as bright as the stars, within the coarse toy table"


@pytest.fixture(scope="module")
def grid(home):
    return ssp.load("fsps").data


@pytest.fixture(scope="module")
def mixed():
    return fsps_model.population()


def assert_close(difference, median=0.005, most=0.02):
    """The bars of the comparison, in magnitudes: of the median, and of 99 % of all."""
    size = difference[difference.isfinite()].abs()
    measured = f"median {size.median():.4f}, 99 % {size.quantile(0.99):.4f}, largest {size.max():.4f} of {len(size)}"
    print(measured)
    assert size.median() <= median and size.quantile(0.99) <= most, measured


def test_composite_spectra_agree(reference, grid, mixed):
    assert_close(fsps_model.composite(reference, grid, mixed))


def test_magnitudes_agree(reference, grid, mixed):
    difference = fsps_model.magnitudes(reference, grid, mixed)
    assert len(difference["all"]) > 1900
    assert_close(difference["all"])
    assert_close(difference["red"], 0.0005, 0.005)  # the rest is the Lyman series cut by FSPS's pixels


def test_nebular_emission_agrees(reference, grid, mixed):
    """The gas is the same; FSPS draws each line two pixels wide, and narrow bands see that. Drawn like that, ours give its magnitudes."""
    difference = fsps_model.nebular(reference, grid, mixed[::2])
    assert_close(difference["clear"])
    assert_close(difference["all"], 0.005, 0.3)
    assert_close(difference["drawn"])


def test_dust_emission_agrees(reference, grid, mixed):
    """With nebular emission: without it FSPS lets dust take the ionising photons, which have become nebular emission here.

    What is left, up to 0.13 mag in a few galaxies, is light of the home's hot grains between 1 and 2 micron, which FSPS lets dust absorb.
    """
    difference = fsps_model.dust_emission(reference, grid, mixed[1::2])
    assert_close(difference["bands"])
    assert_close(difference["infrared"])


def test_torus_agrees_where_dust2_is_one(reference, grid, mixed):
    """FSPS 3.3 hides the torus behind an optical depth of one whatever ``dust2`` is; 3.2, the papers and ``sps`` behind ``dust2``."""
    difference = fsps_model.torus(reference, grid, mixed)
    far_off = difference.abs() > 0.02
    print(f"{far_off.sum()} magnitudes off by more than 0.02, up to {difference[far_off].abs().max():.2f}")
    assert far_off.sum() > 50
    deeper = (mixed[:, parameters.INDEX["dust2"]] - 1).sign()[:, None]
    assert (difference.sign() == deeper)[far_off].all(), "fainter here where dust2 > 1, brighter below"
    assert_close(fsps_model.torus(reference, grid, mixed, depth=1.0))


def test_surviving_mass_is_that_of_fsps(reference, grid, mixed):
    theirs = reference.spectrum(mixed, without=fsps_model.OFF)[2]
    assert fsps_model.synthesiser(grid).surviving_fraction(mixed).numpy() == pytest.approx(theirs, abs=0.002)


def test_young_stars_have_the_cloud_that_fsps_gives_them(grid):
    assert 1.0e7 < grid["birth_cloud"] < 1.13e7, "half way, in mass, from the isochrone of 10 Myr to the next"
    assert grid["ionising"].shape[1] == (grid["edges"] <= grid["birth_cloud"]).sum(), "gas shines up to 20 Myr: one cell out of the cloud"


def test_the_grid_is_read_once(home, monkeypatch):
    first = ssp.load("fsps")
    monkeypatch.setattr(fsps_backend, "once", lambda *_: pytest.fail("FSPS must not start"))
    assert ssp.load("fsps").sha256 == first.sha256


def test_without_a_home_there_is_no_grid(monkeypatch):
    monkeypatch.delenv("SPS_HOME", raising=False)
    with pytest.raises(FileNotFoundError, match="make data ID=fsps_home"):
        sps.load(provider="fsps")


@pytest.fixture
def fragile(home, monkeypatch, tmp_path):
    """Workers that start at once and fail at 1e8 and 1e9 Msun."""
    monkeypatch.setenv("POPCOSMOS_HOME", str(tmp_path))
    monkeypatch.setattr(fsps_backend, "_start", fsps_home.start_without_fsps)
    monkeypatch.setattr(fsps_backend, "_magnitudes", fsps_home.poisoned)
    backend = fsps_backend.load()
    yield backend
    backend.close()


def masses(*values):
    return galaxies(len(values), log10M_formed=torch.tensor(values, dtype=torch.float64))


def test_a_killed_process_is_replaced(fragile):
    before = fragile.magnitudes(masses(10.0))
    (process,) = fragile.workers[0].pool._processes
    os.kill(process, 9)
    assert torch.equal(fragile.magnitudes(masses(10.0)), before) and fragile.failures == {}


def test_a_galaxy_that_kills_its_process_costs_its_row(fragile, tmp_path, capfd):
    theta = masses(10.0, 10.5, 8.0, 11.0, 9.0, 11.5)
    m = fragile.magnitudes(theta, folder="training", chunk=2)
    lost = torch.tensor([False, False, True, False, True, False])
    assert m[lost].isnan().all() and m[~lost].isfinite().all()
    assert list(fragile.failures) == [2, 4] and fragile.seconds == 0.25
    told = capfd.readouterr().err
    assert "galaxy 2 (chunk 1) failed twice: the process died" in told and "log10M_formed 8," in told
    assert "galaxy 4 (chunk 2) failed twice: ArithmeticError: isochrone out of reach" in told
    kept = [path.stem for path in (tmp_path / "artefacts/training").glob("*.npz")]
    assert kept == ["poisoned_00000"], "a chunk with holes is not kept: the next run tries it again"


def test_a_run_goes_on_where_it_was_cut(fragile, tmp_path, capfd):
    theta = masses(*np.linspace(9.5, 12, 11))
    whole = fragile.magnitudes(theta, folder="training", chunk=3)
    assert fragile.computed == 4
    chunks = sorted((tmp_path / "artefacts/training").glob("*.npz"))
    assert len(chunks) == 4 and not list(tmp_path.rglob("*.tmp"))
    chunks[0].unlink()
    chunks[2].write_bytes(chunks[2].read_bytes()[:100])
    capfd.readouterr()
    assert torch.equal(fragile.magnitudes(theta, folder="training", chunk=3), whole) and fragile.computed == 2
    assert f"{chunks[2].relative_to(tmp_path)} is truncated or altered" in capfd.readouterr().err
    assert torch.equal(fragile.magnitudes(theta, folder="training", chunk=3), whole) and fragile.computed == 0
    theta[4, 1] = -0.5
    fragile.magnitudes(theta, folder="training", chunk=3)
    assert fragile.computed == 1, "other parameters, another chunk"


def test_fsps_that_does_not_start_ends_the_run(home, monkeypatch):
    monkeypatch.setattr(fsps_backend, "_start", fsps_home.start_broken)
    with pytest.raises(RuntimeError, match="FSPS does not start"):
        fsps_backend.load().magnitudes(galaxies(2))


def test_an_unknown_part_is_named(reference):
    with pytest.raises(ValueError, match="gas: FSPS switches nebular, dust, agn"):
        reference.magnitudes(galaxies(1), without=["gas"])


def test_without_a_home_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("SPS_HOME", raising=False)
    with pytest.raises(FileNotFoundError, match="make data ID=fsps_home"):
        fsps_backend.load()
    monkeypatch.setenv("SPS_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no FSPS data"):
        fsps_backend.load()


def test_the_tables_of_the_emulator_hold_the_gas_that_shines_out_of_the_clouds(home):
    """FSPS lets stars between 10 and 20 Myr power gas that no birth cloud dims: behind thick clouds that is what is left of Lyman alpha."""
    synthesiser = sps.load(["hsc_r"], provider="fsps")
    theta = galaxies(8, z=0.5, dust2=0.3, dust1_fraction=torch.linspace(0.0, 2.0, 8))
    theta = theta.float()
    ours = inputs.Features(inputs.tabulate(synthesiser)).lines(theta)
    theirs = synthesiser.lines(theta)[:, lines.matched(synthesiser.line_wave)] / 1e10
    strong = theirs[0] > 1e-3 * theirs[0].max()
    assert strong.sum() >= 4
    assert (ours / theirs - 1)[:, strong].abs().max() < 0.01
    assert synthesiser.bare_ionising.numel() > 0, "or this test sees nothing"
