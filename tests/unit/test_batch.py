"""A whole catalogue: any chunks, any kills, any poisoned rows, and nothing lost, doubled or mixed."""

import inspect
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import standin
import torch
from astropy.table import Table

from popcosmos_lib import population
from popcosmos_lib.__main__ import main
from popcosmos_lib.artefacts import store
from popcosmos_lib.catalog import batch, catalogue, schema
from popcosmos_lib.emulation import emulator
from popcosmos_lib.fitting import inference
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.survey import likelihood
from popcosmos_lib.synthesis import filters, sps

ROOT = Path(__file__).resolve().parents[2]
N = 60


@pytest.fixture
def mock(tmp_path):
    path = tmp_path / "mock.parquet"
    standin.mock(N).write(path)
    return path


def poisoned(path):
    """The mock with one row of every kind of trouble: 5 makes the fit raise, 6 is empty, 7 has no errors, 8 is as bright as the Sun."""
    table = Table.read(path)
    fluxes = [name for name in table.colnames if name.startswith("flux_")]
    table["flux_r"][5] = standin.POISON
    for name in fluxes:
        table[name][6] = np.nan
        table[name][7] = 0.0 if "err" in name else table[name][7]
        table[name][8] = 1e30
    table.write(path, overwrite=True)
    return table


def run(path, out, fit=standin.fit, **options):
    settings = batch.Settings(**{name: options.pop(name) for name in list(options) if name in batch.Settings.__dataclass_fields__})
    made = batch.run(path, out, settings=settings, fit=fit, **options)
    return made.rows, made.failed


def same(one, two):
    assert one.colnames == two.colnames
    for name in one.colnames:
        np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(two[name]), err_msg=name)


def test_one_row_a_galaxy_in_the_columns_of_the_schema(mock, tmp_path):
    out = tmp_path / "p.parquet"
    assert run(mock, out, chunk=16, draws=5, engine="ensemble", prior="prospector") == (N, 0)
    table, source = Table.read(out), standin.mock(N)
    assert table.colnames == [column.name for column in schema.posteriors()]
    assert (table["id"] == source["id"]).all() and (table["engine"] == "ensemble").all() and (table["bands"] == 26).all()
    np.testing.assert_allclose(table["z_spec"], source["z_spec"], rtol=1e-6)
    np.testing.assert_array_equal(table["chi2"], source["flux_r"], err_msg="each galaxy has its own photometry's result")
    np.testing.assert_array_equal(table["flags"], np.where(source["flux_r"] > 3, 32, 0))
    assert table["age_q50"].unit == "Gyr" and table["flags"].dtype == np.int64 and table["z_q50"].dtype == np.float32
    assert set(os.listdir(tmp_path)) == {"mock.parquet", "p.parquet", "p_draws.parquet"}, "the parts are gone"
    about = json.loads(pyarrow.parquet.read_schema(out).metadata[b"popcosmos"])
    assert about["columns"]["z_q16"] == "redshift: 15.87 % of the posterior lies below" and about["key"]["prior"] == "prospector"
    assert about["key"]["rows"] == N and set(about["key"]["networks"]) >= {"emulator", "population"}
    drawn = Table.read(tmp_path / "p_draws.parquet")
    assert drawn.colnames == ["id", "weight", *parameters.NAMES] and (drawn["id"] == np.repeat(source["id"], 5)).all()
    np.testing.assert_allclose(drawn["weight"], 0.2)
    np.testing.assert_allclose(np.median(np.reshape(drawn["z"], (N, 5)), 1), table["z_q50"], rtol=1e-6)


def test_results_do_not_depend_on_the_chunks(mock, tmp_path, capsys):
    standin.mock(24).write(mock, overwrite=True)
    poisoned(mock)
    found = []
    for size in (1, 7, 1000):
        out = tmp_path / f"p{size}.parquet"
        assert run(mock, out, chunk=size, draws=4) == (24, 2)
        assert capsys.readouterr().err.count("galaxy 1006 failed: ArithmeticError: the chain has left the sky") == 1
        found.append([Table.read(out), Table.read(tmp_path / f"p{size}_draws.parquet")])
    for posteriors, draws in found[1:]:
        same(posteriors, found[0][0])
        same(draws, found[0][1])


def test_a_poisoned_row_costs_that_row_only(mock, tmp_path):
    run(mock, tmp_path / "clean.parquet")
    poisoned(mock)
    run(mock, tmp_path / "p.parquet", chunk=20, draws=3)
    clean, table = Table.read(tmp_path / "clean.parquet"), Table.read(tmp_path / "p.parquet")
    assert table["flags"][5:9].tolist() == [2048, 16, 1 | 16, 2048] and table["id"][5:9].tolist() == [1006, 1007, 1008, 1009]
    assert np.isnan(table["z_q50"][5:9]).all() and (table["engine"][5:9] == "").all()
    others = np.r_[:5, 9:N]
    settings = [name for name in table.colnames if name.split("_")[-1] not in inference.QUANTILES]  # of other numbers of draws
    same(clean[settings][others], table[settings][others])
    assert np.isfinite(table["z_q50"][others]).all()
    drawn = Table.read(tmp_path / "p_draws.parquet")
    assert set(drawn["id"]) == set(table["id"][others]) and len(drawn) == 3 * len(others)


def test_a_reason_that_is_no_rows_own_stops_the_run(mock, tmp_path):
    def broken(*args, **options):
        raise ArithmeticError("no sky today")

    with pytest.raises(RuntimeError, match="every one of 20 galaxies failed, .* galaxy 1001 failed: ArithmeticError: no sky today"):
        run(mock, tmp_path / "p.parquet", broken, chunk=20)

    def untrained(*args, **options):
        raise store.Missing("run notebook 04")

    with pytest.raises(store.Missing, match="notebook 04"):
        run(mock, tmp_path / "q.parquet", untrained, chunk=1)
    assert not (tmp_path / "p.parquet").exists() and run(mock, tmp_path / "p.parquet", chunk=20) == (N, 0), "and it goes on afterwards"


def log(path):
    return path.read_text().split() if path.exists() else []


def test_ten_kills_lose_and_double_nothing(tmp_path, monkeypatch):
    n, chunk = 320, 8
    table = standin.mock(n)
    table.write(tmp_path / "mock.parquet")
    run(tmp_path / "mock.parquet", tmp_path / "whole.parquet", draws=3)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("STANDIN_SLEEP", "0.06")  # of 40 chunks no kill lets more than four pass
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def parts():
        return sorted((tmp_path / "p.parts").glob("*.posteriors.parquet"))

    context = multiprocessing.get_context("forkserver")  # imports once, so that a start takes milliseconds
    context.set_forkserver_preload(["standin", "pandas"])  # pyarrow imports pandas where it is installed
    out, rng, counts = tmp_path / "p.parquet", np.random.default_rng(8), []
    signs = [lambda: True, parts, parts, parts, lambda: log(tmp_path / "log")]  # of life that a kill waits for: none, a part, a galaxy
    for kill in range(11):
        process = context.Process(target=standin.work, args=(tmp_path / "mock.parquet", out, chunk))
        seen = signs[kill % 5]
        before, began = seen(), time.monotonic()
        process.start()
        if kill < 10:
            while before is not True and seen() == before and time.monotonic() - began < 60:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.15))
            os.kill(process.pid, signal.SIGKILL)
        process.join(120)
        assert process.exitcode == (-signal.SIGKILL if kill < 10 else 0)
        counts.append(len(parts()))
    assert counts == sorted(counts[:10]) + [0] and 6 <= counts[9] < n // chunk, "kills fell into the work and took nothing away"
    found = Table.read(out)
    assert found["id"].tolist() == table["id"].tolist()
    same(found, Table.read(tmp_path / "whole.parquet"))
    same(Table.read(tmp_path / "p_draws.parquet"), Table.read(tmp_path / "whole_draws.parquet"))
    fitted = log(tmp_path / "log")
    assert set(fitted) == {str(id) for id in table["id"]} and len(fitted) <= n + 10 * chunk, "at most one chunk a kill is fitted again"
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(("p", ".p"))} == {"p.parquet", "p_draws.parquet"}


@pytest.mark.parametrize("stage", ["p_draws.parquet", "p.parquet", "rmtree"])
def test_a_kill_while_joining(mock, tmp_path, monkeypatch, stage):
    class Killed(BaseException):
        pass

    def dying(path, *rest, **options):
        if stage in (Path(path).name, "rmtree"):
            raise Killed
        return write(path, *rest)

    write = catalogue.write
    with monkeypatch.context() as patch:
        patch.setattr(*((batch.shutil, "rmtree") if stage == "rmtree" else (catalogue, "write")), dying)
        with pytest.raises(Killed):
            run(mock, tmp_path / "p.parquet", chunk=16, draws=2)
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "log"))
    assert run(mock, tmp_path / "p.parquet", chunk=16, draws=2) == (N, 0)
    assert not log(tmp_path / "log"), "everything had been fitted"
    assert len(Table.read(tmp_path / "p_draws.parquet")) == 2 * N and not (tmp_path / "p.parts").exists()


def interrupted(mock, out, after, **options):
    """A run that stops after some chunks."""

    class Stop(BaseException):
        pass

    calls = []

    def fit(*args, **more):
        if len(calls) == after:
            raise Stop
        calls.append(1)
        return standin.fit(*args, **more)

    with pytest.raises(Stop):
        run(mock, out, fit, **options)


def test_parts_belong_to_their_settings(mock, tmp_path):
    out = tmp_path / "p.parquet"
    interrupted(mock, out, 2, chunk=10, seed=1)
    with pytest.raises(ValueError, match=r"p.parts belongs to a run with other settings \(seed 1 then, 2 now\): go on with the old ones"):
        run(mock, out, chunk=10, seed=2)
    with pytest.raises(ValueError, match=r"\(prior pop-cosmos then, prospector now; draws 0 then, 3 now\)"):
        run(mock, out, seed=1, prior="prospector", draws=3)
    table = standin.mock(N)
    table["flux_J"][3] += 1
    table.write(mock, overwrite=True)
    with pytest.raises(ValueError, match=r"\(catalogue .* then, .* now\)"):
        run(mock, out, seed=1)
    standin.mock(N).write(mock, overwrite=True)
    assert run(mock, out, seed=1) == (N, 0)
    with pytest.raises(ValueError, match=r"p.parquet belongs to a run with other settings \(seed 1 then, 0 now\): give another --out"):
        run(mock, out)
    Table({"a": [1]}).write(tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="foreign.parquet is there and is no result of this command"):
        run(mock, tmp_path / "foreign.parquet")
    assert len(Table.read(tmp_path / "foreign.parquet")) == 1


def test_another_mapping_is_another_run(mock, tmp_path):
    for name, band in (("one.yaml", "g"), ("two.yaml", "i")):
        (tmp_path / name).write_text(f"id: id\nunit: uJy\nbands: {{r: [flux_r, flux_err_r], {band}: [flux_{band}, flux_err_{band}]}}\n")
    out = tmp_path / "p.parquet"
    interrupted(mock, out, 1, chunk=10, mapping=tmp_path / "one.yaml")
    with pytest.raises(ValueError, match=r"\(other columns\)"):
        run(mock, out, mapping=tmp_path / "two.yaml")
    run(mock, out, mapping=tmp_path / "one.yaml")
    assert (Table.read(out)["bands"] == 2).all()


def test_a_run_goes_on_with_its_chunks_and_counts_from_there(mock, tmp_path, monkeypatch):
    begun, log_file = [], tmp_path / "log"

    class Bar(batch.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            begun.append((options["initial"], options["total"], options["unit"]))

    monkeypatch.setattr(batch, "tqdm", Bar)
    interrupted(mock, tmp_path / "p.parquet", 2, chunk=16)
    monkeypatch.setenv("STANDIN_LOG", str(log_file))
    run(mock, tmp_path / "p.parquet", chunk=5)
    assert begun == [(0, N, "galaxy"), (32, N, "galaxy")]
    assert log(log_file) == [str(id) for id in standin.mock(N)["id"][32:]]


def test_a_damaged_part_is_made_again(mock, tmp_path):
    interrupted(mock, tmp_path / "p.parquet", 2, chunk=16)
    part = sorted((tmp_path / "p.parts").glob("*.parquet"))[1]
    part.write_bytes(part.read_bytes()[:500])
    assert run(mock, tmp_path / "p.parquet") == (N, 0)
    assert Table.read(tmp_path / "p.parquet")["id"].tolist() == standin.mock(N)["id"].tolist()


def test_identifiers_of_text_and_their_galaxies(mock, tmp_path):
    table = standin.mock(N)
    table["id"] = [f"galaxy {'x' * i}" for i in range(N)]
    table.write(mock, overwrite=True)
    run(mock, tmp_path / "p.parquet", chunk=7)
    found = Table.read(tmp_path / "p.parquet")
    assert found["id"].tolist() == table["id"].tolist() and (found["chi2"] == table["flux_r"]).all()


def test_another_survey_is_fitted_through_its_own_curves(mock, tmp_path):
    (tmp_path / "map.yaml").write_text(
        "id: id\nunit: uJy\nbands: {g: [flux_g, flux_err_g], Ks: [flux_Ks, flux_err_Ks]}\ncurves: {g: sdss_g0, Ks: vista_vircam_Ks}\n"
    )
    engines = []

    def fit(flux, flux_err, prior, *, emulator, **options):
        engines.append(emulator)
        return standin.fit(flux.nan_to_num(1.0), flux_err, prior, **options)

    assert run(mock, tmp_path / "p.parquet", fit, mapping=tmp_path / "map.yaml", chunk=40) == (N, 0)
    (first, second), places = engines, [filters.SHORT.index(band) for band in ("g", "Ks")]
    assert first.places == second.places == places and isinstance(first.emulator, emulator.Emulator), "an emulator that is shipped has both"
    (tmp_path / "map.yaml").write_text((tmp_path / "map.yaml").read_text().replace("sdss_g0", "decam_g"))
    assert run(mock, tmp_path / "q.parquet", fit, mapping=tmp_path / "map.yaml") == (N, 0)
    assert isinstance(engines[-1].emulator, sps.Synthesiser), "and where none has, they are synthesised"
    with pytest.raises(ValueError, match="other settings .other columns"):
        run(mock, tmp_path / "p.parquet", fit, mapping=tmp_path / "map.yaml")


def test_a_hats_folder_gives_what_its_rows_give(mock, tmp_path):
    table = standin.mock(N)
    for start, stop, pixel in ((0, 25, 4), (25, N, 31)):
        path = tmp_path / "sky" / "dataset" / "Norder=1" / "Dir=0" / f"Npix={pixel}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table[start:stop].write(path)
    assert run(mock, tmp_path / "p.parquet") == run(tmp_path / "sky", tmp_path / "q.parquet", chunk=1000) == (N, 0)
    same(Table.read(tmp_path / "p.parquet"), Table.read(tmp_path / "q.parquet"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "p.fits"}, "cannot write .*p.fits: give a path that ends in .parquet"),
        ({"out": "none/p.parquet"}, "in a folder that exists"),
        ({"prior": "prospektor"}, "it is one of pop-cosmos, prospector"),
        ({"chunk": 0}, "chunk and workers are at least 1"),
        ({"draws": -1}, "draws at least 0"),
    ],
)
def test_requests_that_make_no_sense(mock, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(mock, tmp_path / options.pop("out", "p.parquet"), **options)
    assert not (tmp_path / "p.parts").exists()


def test_what_is_wrong_with_all_rows_is_said_before_the_first_fit(mock, tmp_path):
    table = standin.mock(N)
    for name in table.colnames[2:]:
        table[name] = table[name] * 1e-20
    table.write(mock, overwrite=True)
    with pytest.raises(ValueError, match="the typical flux is .* convert to µJy first"):
        run(mock, tmp_path / "p.parquet")
    table = standin.mock(N)
    table["id"][3] = table["id"][4]
    table.write(mock, overwrite=True)
    with pytest.raises(ValueError, match="1 values of id in mock.parquet occur more than once .the first: 1005."):
        run(mock, tmp_path / "p.parquet")


def test_the_command_from_catalogue_to_page(mock, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inference, "fit", standin.fit)
    out = tmp_path / "p.parquet"
    words = ["--draws", "4", "--seed", "3", "--workers", "1"]  # other processes would not see the stand-in
    assert main(["fit", str(mock), "--out", str(out), "--chunk", "16", *words]) == 0
    said, flagged = capsys.readouterr().out, int((Table.read(out)["flags"] == 32).sum())
    assert "60 galaxies, of which 0 could not be fitted (flag 2048); summary page:" in said
    assert f"flag 32, {flagged} galaxies: no galaxy of the model" in said and said.count("galaxies: ") == 1 and flagged > 0
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF") and len(Table.read(tmp_path / "p_draws.parquet")) == 4 * N
    (tmp_path / "p.pdf").unlink()
    assert main(["fit", str(mock), "--out", str(out), *words, "--plots", str(tmp_path / "page.pdf")]) == 0
    assert "holds all 60 galaxies already" in capsys.readouterr().out and (tmp_path / "page.pdf").exists()
    run(mock, tmp_path / "q.parquet", seed=3, draws=4)
    same(Table.read(out), Table.read(tmp_path / "q.parquet"))
    assert main(["fit", str(mock), "--dry-run"]) == 0 and "median magnitudes of detections" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "fit needs --out posteriors.parquet"),
        (["--out", "p.parquet", "--plots", "page.png"], "give a path that ends in .pdf"),
        (["--out", "p.parquet", "--columns", "none.yaml"], "--columns takes a YAML file"),
        (["--out", "none/p.parquet"], "in a folder that exists"),
    ],
)
def test_the_command_says_what_is_wrong(mock, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", str(mock), *words]) == 2
    assert message in capsys.readouterr().err


def test_every_flag_and_column_has_a_meaning():
    names = [column.name for column in schema.posteriors()]
    assert len(names) == len(set(names)) and all(column.meaning for column in (*schema.posteriors(), *schema.draws()))
    assert all(bit & (bit - 1) == 0 for bit in schema.FLAGS) and schema.FLAGS.items() >= inference.FLAGS.items()
    assert {f"{name}_q50" for name in parameters.NAMES} < set(names)
    assert all(f"{bit}: " in next(column for column in schema.posteriors() if column.name == "flags").meaning for bit in schema.FLAGS)


def test_real_posteriors_do_not_depend_on_the_chunks(tmp_path):
    """The contract with ``inference.fit``: columns, engine, and random numbers that follow from the galaxy alone."""
    if "engine" not in inspect.signature(inference.fit).parameters:
        pytest.skip("inference.fit has no engines yet")
    theta = population.load().sample(2, torch.Generator().manual_seed(3))
    flux = likelihood.model_flux(emulator.load().magnitudes(theta)).numpy()
    table = standin.mock(2)
    for i, band in enumerate(filters.SHORT):
        table[f"flux_{band}"], table[f"flux_err_{band}"] = flux[:, i], 0.05 * flux[:, i]
    table.write(tmp_path / "mock.parquet")
    try:
        for size in (1, 2):
            made = batch.run(tmp_path / "mock.parquet", tmp_path / f"p{size}.parquet", chunk=size)
            assert (made.rows, made.failed) == (2, 0)
    except store.Missing as error:
        pytest.skip(str(error))
    one, two = (Table.read(tmp_path / f"p{size}.parquet") for size in (1, 2))
    for name in one.colnames:
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-3, err_msg=name)
    assert np.isfinite(one["z_q50"]).all() and (one["ess"] > 1).all() and (one["engine"] != "").all()
