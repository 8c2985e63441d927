"""Mock catalogues: reproducible in any chunks, what they hold, which engine made them, and what a kill leaves."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from astropy.table import Table

from popcosmos_lib import catalog, population, survey
from popcosmos_lib.__main__ import main
from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.emulation import emulator, inputs
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.population import mocks
from popcosmos_lib.survey import definitions
from popcosmos_lib.synthesis import filters, sps

ROOT = Path(__file__).resolve().parents[2]
MINE = """\
bands: {g: decam_g, r: decam_r, i: decam_i}
depths: {g: [25.0, 5], r: [25.0, 5], i: [24.0, 5]}
cuts: r<23
"""


def rng(seed=1):
    return torch.Generator().manual_seed(seed)


def stack(tables):
    return {name: torch.cat([torch.as_tensor(table[name].data) for table in tables]) for name in tables[0].colnames}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A repository root with small stand-ins for what the notebooks train, and an emulator for MINE but none for COSMOS2020."""
    grid = sps.load(["decam_g", "decam_r", "decam_i"])  # makes the stellar grids of this checkout where they are not there
    root = tmp_path_factory.mktemp("root")
    (root / "artefacts").mkdir()
    (root / "artefacts" / "shared").symlink_to(store.home() / "artefacts" / "shared")
    (root / "notebooks").mkdir()
    (root / "mine.yaml").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POPCOSMOS_HOME", str(root))
        phi = 0.7 * torch.randn(3000, 16, generator=rng(2))
        phi[:, 0], phi[:, 15] = 17 + 1.5 * phi[:, 0], phi[:, 15] - 1
        model = population.Population.fit(parameters.to_theta(phi), generator=rng(3), steps=40, batch=256, width=32)[0]
        stand_in = emulator.Emulator(grid.bands, inputs.tabulate(grid), [8], rng(4))
        errors = survey.UncertaintyModel(hidden=8, generator=rng(5))
        errors.log_sigma_shift -= 4  # errors of about 0.02 microjansky
        for name, data, meta in (
            ("population", model.state_dict(), {}),
            ("emulator_survey", stand_in.state_dict(), stand_in.settings()),
            ("uncertainty", errors.state_dict(), {}),
        ):
            store.load_or_compute(name, lambda data=data, meta=meta: (data, meta), profile="smoke")
    return root


@pytest.fixture(autouse=True)
def small(root, monkeypatch):
    monkeypatch.setenv("POPCOSMOS_HOME", str(root))
    monkeypatch.setattr(mocks, "CHUNK", 256)
    monkeypatch.setattr(mocks, "_ROWS", 300)
    monkeypatch.setattr(mocks, "_PILOT", 1600)
    monkeypatch.setattr(mocks, "_BIN", 200)


def test_a_short_mock_is_the_beginning_of_a_long_one_in_any_pieces(root, monkeypatch):
    made = mocks.load(root / "mine.yaml", profile="smoke")
    long = list(made.tables(1000, rng()))
    assert [len(table) for table in long] == [300, 300, 300, 100], "tables of bounded length, n in all"
    monkeypatch.setattr(mocks, "_ROWS", 70)
    short, other = stack(list(made.tables(150, rng()))), stack(list(made.tables(150, rng(9))))
    long = stack(long)
    assert all(torch.equal(short[name], long[name][:150]) for name in short)
    assert not (other["z"][:, None] == short["z"]).any(), "another seed, other galaxies"
    assert len(long["z"].unique()) == 1000, "no galaxy twice"


def test_names_and_units_are_those_of_the_public_mocks(root):
    (table,) = mocks.load(root / "mine.yaml", profile="smoke").tables(200, rng())
    fluxes = [f"{kind}_{band}" for kind in ("flux", "flux_err", "flux_true") for band in "gri"]
    assert table.colnames == [*parameters.NAMES, "age", "log10M_remain", "log10SFR", "log10sSFR", *fluxes, "mass_complete", "mass_995"]
    assert str(table["flux_r"].unit) == "uJy" and str(table["age"].unit) == "Gyr" and table["z"].unit is None
    theta = torch.stack([torch.as_tensor(table[name].data) for name in parameters.NAMES], -1)
    assert torch.allclose(torch.as_tensor(table["log10SFR"].data), parameters.log_sfr(theta), atol=1e-4)
    remaining = table["log10M_remain"].data - table["log10M_formed"].data
    assert (remaining < 0).all() and (remaining > -0.5).all(), "a part of the stars is gone"
    assert abs(table["log10SFR"].data - table["log10M_remain"].data - table["log10sSFR"].data).max() < 1e-4, "per surviving mass"


def test_mass_limits_are_those_of_the_galaxies_that_the_survey_selects(root):
    deep, bright = (mocks.load("cosmos2020", cut) for cut in ("r<25", "r<23"))  # the published model: the limit is physics
    z = torch.linspace(0.3, 1.0, 20).double()
    limits = [universe.hermite_limit(z, **made.limits["mass_complete"]) for made in (deep, bright)]
    assert 0.4 < (limits[1] - limits[0]).mean() < 1.2, "two magnitudes are 0.8 dex of mass at a given ratio of mass to light"
    assert (limits[0] > universe.mass_completeness(z)).all(), "3.6 micron to 26 mag reach lower masses than r to 25 mag"
    made = mocks.load(root / "mine.yaml", profile="smoke")
    table = stack(list(made.tables(2000, rng())))
    assert table["mass_995"].dtype == torch.bool and 0.98 < float(table["mass_995"].float().mean()) < 1.0
    known = (table["z"] > made.limits["z"][0]) & (table["z"] < made.limits["z"][1])
    assert 0.3 < float(table["mass_complete"][known].float().mean()) < 0.9, "the mode is inside the distribution of masses"
    (table,) = made.tables(200, rng())
    limit = universe.hermite_limit(torch.as_tensor(table["z"].data).double(), **table.meta["mass_limits"]["mass_complete"])
    above = torch.as_tensor(table["log10M_remain"].data) > limit
    assert (above | ~torch.as_tensor(table["mass_complete"].data)).all(), "the metadata say what the columns mean"
    assert "begins to lose" in table["mass_complete"].description


def test_a_survey_with_an_emulator_uses_it_and_any_other_the_synthesis(root):
    (table,) = mocks.load(root / "mine.yaml", profile="smoke").tables(100, rng())
    theta = torch.stack([torch.as_tensor(table[name].data) for name in parameters.NAMES], -1)
    seen = torch.stack([torch.as_tensor(table[f"flux_true_{band}"].data) for band in "gri"], -1)
    fast = filters.flux_from_magnitude(emulator.load("survey", "smoke").magnitudes(theta))
    slow = filters.flux_from_magnitude(sps.load(["decam_g", "decam_r", "decam_i"]).magnitudes(theta))
    assert table.meta["photometry"] == "emulator" and torch.allclose(seen, fast, rtol=1e-3)
    assert not torch.allclose(slow, fast, rtol=1e-3), "the stand-in can be told from the synthesis"
    (root / "two.yaml").write_text("bands: {i: sdss_i0, z: sdss_z0}\ndepths: {i: [24.0, 5], z: [23.0, 5]}\ncuts: i<22\n")
    (table,) = mocks.load(root / "two.yaml", profile="smoke").tables(100, rng())
    theta = torch.stack([torch.as_tensor(table[name].data) for name in parameters.NAMES], -1)
    slow = filters.flux_from_magnitude(sps.load(["sdss_i0", "sdss_z0"]).magnitudes(theta))
    assert table.meta["photometry"] == "direct synthesis" and "emulator" not in table.meta["networks"]
    assert torch.allclose(torch.as_tensor(table["flux_true_z"].data), slow[:, 1], rtol=1e-3)


def test_population_and_emulator_are_chosen_apart(root):
    assert mocks.load(root / "mine.yaml", profile="smoke").meta["photometry"] == "emulator"
    shipped = mocks.load(root / "mine.yaml", profile="smoke", emulator="published")
    assert shipped.meta["photometry"] == "direct synthesis", "no shipped emulator has these bands, and the trained one was not asked for"
    for name in ("kids", "lsst-y1"):
        made = mocks.load(name, profile="smoke", emulator="published")
        assert made.meta["photometry"] == "emulator" and made.meta["networks"]["population"], "a trained population, a shipped emulator"
        assert made.meta["networks"]["emulator"] == provenance.sha256(store.SHIPPED / "emulator_survey.safetensors")


def test_given_galaxies_are_observed_as_those_of_a_mock(root):
    made = mocks.load(root / "mine.yaml", profile="smoke")
    theta = made.model.sample(400, rng())
    seen = made.photometry(theta, rng(2))
    assert torch.equal(seen.flux_true, made.flux_true(theta)) and torch.equal(seen.flux, made.photometry(theta, rng(2)).flux)
    assert torch.equal(seen.selected, survey.select(seen.flux, "r<23", "gri")) and 0 < seen.selected.sum() < 400


def test_noise_is_that_of_the_survey_and_every_galaxy_passes(root):
    made = mocks.load(root / "mine.yaml", "r<40", profile="smoke")  # nothing but negative fluxes fails
    table = stack(list(made.tables(3000, rng())))
    for band in "gi":  # r is selected on
        pull = (table[f"flux_{band}"] - table[f"flux_true_{band}"]) / table[f"flux_err_{band}"]
        assert abs(float(pull.std()) - 1) < 0.05 and abs(float(pull.mean())) < 0.08
    cut = stack(list(mocks.load(root / "mine.yaml", "r>=20 and r<22", profile="smoke").tables(400, rng())))
    magnitude = filters.magnitude_from_flux(cut["flux_r"])
    assert magnitude.min() >= 20 - 1e-4 and magnitude.max() <= 22 + 1e-4


def test_selections_that_make_no_sense_are_refused(root):
    with pytest.raises(ValueError, match="with a band of g, r, i"):
        mocks.load(root / "mine.yaml", "Ch1<26", profile="smoke")
    with pytest.raises(ValueError, match="fewer than one galaxy in 1000 of the r<25 population passes 'r<8'"):
        list(mocks.load(root / "mine.yaml", "r<8", profile="smoke").tables(10, rng()))
    with pytest.raises(ValueError, match="at least one galaxy"):
        list(mocks.load(root / "mine.yaml", profile="smoke").tables(0, rng()))


def test_population_mock_observes_with_the_learned_errors(root):
    table = population.mock(300, survey="cosmos2020", selection="Ch1<24", generator=rng(), profile="smoke")
    assert len(table) == 300 and table.meta["selection"] == "r<25 and Ch1<24"
    flux = torch.stack([torch.as_tensor(table[f"flux_{band}"].data) for band in filters.SHORT], -1)
    assert survey.select(flux, "r<25").all() and survey.select(flux, "Ch1<24").all()
    artefact = root / "artefacts" / "smoke"
    for name in ("population", "uncertainty"):
        assert table.meta["networks"][name] == provenance.sha256(artefact / f"{name}.safetensors")
    true, err = (torch.stack([torch.as_tensor(table[f"{kind}_{b}"].data) for b in filters.SHORT], -1) for kind in ("flux_true", "flux_err"))
    pit = survey.load("smoke").uncertainty.cdf(true, err)[:, [0, 1, 5, 6, 10, 20]]
    assert ((pit.mean(0) - 0.5).abs() < 0.08).all() and ((pit.std(0) - 12**-0.5).abs() < 0.05).all(), "errors drawn from the learned law"
    bright = (true > 10 * err).all(-1)
    spread = ((flux - true) / err)[bright][:, [0, 1, 5, 6, 10, 20]].abs()
    assert abs(float(spread.median()) - 0.8165) < 0.15 and spread.max() > 6, "Student's t with two degrees of freedom: heavy tails"
    default = population.mock(50, generator=rng(), profile="smoke")
    assert default.meta["selection"] == "r<25", "the cut of the survey"


def test_the_command_writes_the_same_catalogue(root, capsys):
    out = root / "mock.parquet"
    command = ["mock", "--n", "650", "--survey", str(root / "mine.yaml"), "--profile", "smoke", "--seed", "7", "--out", str(out)]
    assert main(command) == 0 and "650 galaxies of mine.yaml, r<23; magnitudes by emulator" in capsys.readouterr().out
    read = Table.read(out)
    same = population.mock(650, root / "mine.yaml", generator=rng(7), profile="smoke")
    assert read.colnames == same.colnames and all((read[name] == same[name]).all() for name in same.colnames)
    assert read.meta == same.meta and read.meta["seed"] == 7 and read["flux_r"].unit == "uJy"
    assert read.meta["definition"] == provenance.sha256(root / "mine.yaml")
    schema = pyarrow.parquet.read_schema(out)
    plain = json.loads(schema.metadata[b"popcosmos"])
    assert plain["selection"] == "r<23" and plain["units"]["flux_r"] == "uJy" and schema.field("flux_r").metadata[b"unit"] == b"uJy"
    assert pyarrow.parquet.ParquetFile(out).num_row_groups == 3, "written in pieces"


def test_a_mock_of_cosmos2020_can_be_read_as_a_catalogue(root):
    made = population.mock(20, generator=rng(), profile="smoke")
    catalog.write(root / "cosmos.parquet", [made])
    read = catalog.read(root / "cosmos.parquet")
    assert torch.equal(read.flux, torch.stack([torch.as_tensor(made[f"flux_{band}"].data) for band in filters.SHORT], -1))
    assert torch.equal(read.z_spec, torch.as_tensor(made["z"].data)) and not read.flag.any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--survey", "hubble"], "unknown survey 'hubble'"),
        (["--survey", "kids", "--selection", "Ch1<26"], "with a band of u, g, r, i, Z, Y, J, H, Ks"),
        (["--survey", "kids", "--out", "mock.fits"], "ends in .parquet"),
        (["--survey", "kids", "--profile", "full"], "no 'population' for profile 'full' yet"),
    ],
)
def test_the_command_says_what_is_wrong(words, message, capsys):
    assert main(["mock", "--n", "5", "--out", "mock.parquet", "--profile", "smoke", *words]) == 2
    assert message in capsys.readouterr().err


SLOW = """
import sys, time
from astropy.table import Table
from popcosmos_lib import catalog
def tables():
    while True:
        yield Table({"z": [0.5] * 1000})
        print("one", flush=True)
        time.sleep(0.05)
catalog.write(sys.argv[1], tables())
"""


def test_a_kill_leaves_no_half_file_and_the_old_one_stays(tmp_path):
    path = tmp_path / "mock.parquet"
    catalog.write(path, [Table({"z": [1.0, 2.0]})])
    running = subprocess.Popen([sys.executable, "-c", SLOW, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert running.stdout.readline() == "one\n"
    assert len(list(tmp_path.glob(".mock.parquet.*.tmp"))) == 1, "being written beside it"
    running.kill()
    running.wait()
    running.stdout.close()
    assert list(Table.read(path)["z"]) == [1.0, 2.0]
    catalog.write(path, [Table({"z": [3.0]}), Table({"z": [4.0]})])
    assert list(Table.read(path)["z"]) == [3.0, 4.0] and list(tmp_path.iterdir()) == [path], "what the kill left is swept"


def test_built_in_surveys_can_be_mocked(root):
    assert definitions.BUILT_IN == ["cosmos2020", "kids", "lsst-y1"]
    for name in ("kids", "lsst-y1"):
        table = population.mock(60, name, generator=rng(), profile="smoke")
        assert len(table) == 60 and table.meta["survey"] == name and table.meta["photometry"] == "direct synthesis"
