"""Redshift codes that others wrote and the papers' sampler beside the exact engine, on the same galaxies: CPU seconds, scatter, outliers.

    python benchmarks/codes.py [FILE] [N]

N (100) galaxies drawn from the model with all 26 bands; the ensemble engine gets ten of them. EAZY (Brammer et al. 2008) gets twelve
templates that non-negative factors make of spectra of the population, as its authors made theirs (sect. 2.2): its own are a separate
download, and this is the best case for it. bagpipes (Carnall et al. 2018) gets a delayed exponential and minutes for each galaxy, so a few
galaxies only. Each foreign code runs in a process of its own, in a folder that is thrown away; one that is not installed or fails leaves a
row that says why. LePHARE (Arnouts & Ilbert) does nothing without 240 MB of spectra and curves from its own servers, which are neither in
its package nor on the package index: its row says so. Writes FILE (benchmarks/results/codes.json).
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from engines import ROOT, reason

from popcosmos_lib import (
    emulator,
    filters,
    inference,
    metrics,
    parameters,
    population,
    proposal,
    provenance,
    sps,
    store,
    survey,
    tables,
    trials,
)

FLOOR = 0.01
SOME, FEW = 10, 2  # galaxies that the ensemble and bagpipes get
TEMPLATES, SPECTRA, FACTORING = 12, 2000, 2000  # factors, spectra that they are made of, updates of the factors
LINE = 0.004  # width of the lines in the templates, in wavelength: a step of their grid
THIN = 8  # of the nodes of filter curves one is kept: with all 512 the set-up of EAZY takes six minutes
PARAMETERS = {
    "FILTERS_RES": "FILTER.RES", "TEMPLATES_FILE": "shapes.param", "TEMP_ERR_FILE": "error.def", "TEMP_ERR_A2": 1.0,
    "CATALOG_FILE": "galaxies.cat", "MAIN_OUTPUT_FILE": "out", "SYS_ERR": 0.02, "APPLY_PRIOR": "n", "Z_MIN": 0.01, "Z_MAX": 6.0,
    "Z_STEP": 0.01, "CAT_HAS_EXTCORR": "y", "N_MIN_COLORS": 3,
}  # fmt: skip
MISSING = -99.0  # flux of a band that was not observed, in EAZY's catalogues


def factors(spectra, n, generator, steps=FACTORING):
    """Non-negative templates whose sums come close to all spectra (Lee & Seung 2001, multiplicative updates).

    Parameters
    ----------
    spectra : Tensor of shape (m, n_wave)
    n : int
    generator : torch.Generator
    steps : int

    Returns
    -------
    Tensor of shape (n, n_wave)
    """
    weights, templates = (0.1 + torch.rand(shape, generator=generator) for shape in ((len(spectra), n), (n, spectra.shape[1])))
    for _ in range(steps):
        weights = weights * (spectra @ templates.T) / (weights @ (templates @ templates.T)).clamp_min(1e-30)
        templates = templates * (weights.T @ spectra) / ((weights.T @ weights) @ templates).clamp_min(1e-30)
    return templates


def eazy_files(folder, flux, flux_err, wave, templates, bands):
    """Write what EAZY reads: catalogue, translation, filters, templates, their error.

    Parameters
    ----------
    folder : Path
    flux, flux_err : ndarray of shape (n, n_band)
        [µJy]; NaN where missing.
    wave : ndarray of shape (n_wave,)
        Of the templates, at rest [Angstrom].
    templates : ndarray of shape (n_template, n_wave)
        Flux per wavelength.
    bands : filters.Filters
    """
    columns = [name for k in range(flux.shape[1]) for name in (f"f_{k}", f"e_{k}")]
    there = np.isfinite(flux) & np.isfinite(flux_err)
    values = np.stack([np.where(there, flux, MISSING), np.where(there, flux_err, MISSING)], -1).reshape(len(flux), -1)
    lines = [f"# id {' '.join(columns)}", *(f"{i} {' '.join(f'{x:.6g}' for x in row)}" for i, row in enumerate(values))]
    (folder / "galaxies.cat").write_text("\n".join(lines) + "\n")
    (folder / "translate").write_text("".join(f"f_{k} F{k + 1}\ne_{k} E{k + 1}\n" for k in range(flux.shape[1])))
    lines = []
    curves = zip(bands.names, bands.effective.tolist(), bands.wave.tolist(), bands.transmission.tolist(), strict=True)
    for name, middle, nodes, response in curves:
        nodes, response = [*nodes[:-1:THIN], nodes[-1]], [*response[:-1:THIN], response[-1]]
        lines.append(f"{len(nodes)} {name} lambda_c= {middle:.1f}")  # by that word EAZY knows where a curve begins
        lines += [f"{i + 1} {x:.4f} {y:.6f}" for i, (x, y) in enumerate(zip(nodes, response, strict=True))]
    (folder / "FILTER.RES").write_text("\n".join(lines) + "\n")
    for k, template in enumerate(templates):
        np.savetxt(folder / f"shape_{k}.dat", np.column_stack([wave, template]))
    (folder / "shapes.param").write_text("".join(f"{k + 1} shape_{k}.dat 1.0\n" for k in range(len(templates))))
    (folder / "error.def").write_text("100 0.02\n1000000 0.02\n")


EAZY = """
import json, time
from eazy import photoz
began = time.perf_counter()  # the set-up runs in processes of its own
fit = photoz.PhotoZ(param_file=None, translate_file="translate", zeropoint_file=None, load_prior=False, load_products=False,
                    params=json.load(open("parameters.json")), n_proc=0)
ready, cpu = time.perf_counter(), time.process_time()
fit.fit_catalog(n_proc=0)
middle = fit.pz_percentiles(percentiles=[50])[:, 0]
json.dump({"z": middle.tolist(), "start": ready - began, "seconds": time.process_time() - cpu}, open("found.json", "w"))
"""

BAGPIPES = """
import json, time
import bagpipes, numpy as np
given = np.load("galaxies.npz")
bands = [f"band_{k}.txt" for k in range(given["flux"].shape[1])]
for name, *columns in zip(bands, given["wave"], given["transmission"]):
    np.savetxt(name, np.column_stack(columns))
history = {"age": (0.05, 13.0), "tau": (0.1, 10.0), "massformed": (6.0, 13.0), "metallicity": (0.01, 2.5)}
model = {"redshift": (0.0, 6.0), "delayed": history, "dust": {"type": "Calzetti", "Av": (0.0, 4.0), "eta": 2.0},
         "nebular": {"logU": (-4.0, -1.0)}}
began, found = time.process_time(), []
for k in range(len(given["flux"])):
    seen = np.column_stack([given["flux"][k], given["error"][k]])
    galaxy = bagpipes.galaxy(str(k), lambda _: seen, spectrum_exists=False, filt_list=bands, phot_units="mujy")
    fit = bagpipes.fit(galaxy, model, run="bench")
    fit.fit(verbose=False, n_live=400, sampler="nautilus")
    found.append(float(np.median(fit.posterior.samples["redshift"])))
json.dump({"z": found, "start": 0.0, "seconds": time.process_time() - began}, open("found.json", "w"))
"""


def process(script, folder):
    """Run a script in a folder and return what it left in found.json.

    Raises
    ------
    RuntimeError
        If it fails, with the last line of what it said.
    """
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    (folder / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads((folder / "found.json").read_text())


def eazy(trial, tools, folder):
    """EAZY on all galaxies."""
    if importlib.util.find_spec("eazy") is None:
        raise ImportError("EAZY is not installed: .venv/bin/pip install -e .[bench]")
    generator = torch.Generator().manual_seed(3)
    light = sps.load().spectrum(tools["population"].sample(SPECTRA, generator))
    wave = light.wave[(light.wave > 900) & (light.wave < 6e4)]
    apart = (wave[:, None] / light.line_wave - 1) / LINE
    lines = torch.exp(-0.5 * apart**2) / (math.sqrt(2 * math.pi) * LINE * light.line_wave)
    spectra = light.total[:, (light.wave > 900) & (light.wave < 6e4)] * filters.LIGHT / wave**2 + light.lines @ lines.T  # [Lsun / Angstrom]
    spectra = spectra / spectra.mean(1, keepdim=True)
    typical = spectra.mean(0)  # without it the infrared would weigh nothing
    templates = typical * factors((spectra / typical).float(), TEMPLATES, generator)
    eazy_files(folder, trial.flux.numpy(), trial.flux_err.numpy(), wave.numpy(), templates.numpy(), filters.load("cosmos"))
    (folder / "parameters.json").write_text(json.dumps(PARAMETERS))
    return process(EAZY, folder)


def bagpipes(trial, tools, folder):
    """bagpipes on the first few galaxies; five per cent are added to the errors, as is usual with it."""
    import bagpipes_model

    bagpipes_model.copy(folder)
    flux, bands = trial.flux[:FEW].numpy(), filters.load("cosmos")
    error = np.hypot(trial.flux_err[:FEW].numpy(), 0.05 * flux)
    np.savez(folder / "galaxies.npz", flux=flux, error=error, wave=bands.wave.numpy(), transmission=bands.transmission.numpy())
    return process(BAGPIPES, folder)


def lephare(trial, tools, folder):
    """Never runs here."""
    raise FileNotFoundError("LePHARE reads its spectra, filters and extinction laws from servers of its own (240 MB of lephare-data)")


def ours(n=None, **options):
    """An engine of this package on the first ``n`` galaxies, under the prior that they were drawn from."""

    def code(trial, tools, folder):
        began = time.process_time()
        fit = inference.fit(trial.flux[:n], trial.flux_err[:n], floor=FLOOR, **tools, **options).summary
        return {"z": np.asarray(fit["z_q50"]).tolist(), "start": 0.0, "seconds": time.process_time() - began}

    return code


LONG = {"engine": "ensemble", "n_walkers": 64, "n_steps": 4800}  # the papers' sampler until it has converged
CODES = {"exact engine": ours(), "ensemble engine": ours(SOME, **LONG), "EAZY": eazy, "bagpipes": bagpipes, "LePHARE": lephare}
NOTES = {
    "exact engine": "16 parameters, under the prior that the galaxies are from",
    "ensemble engine": "the same posteriors by an affine-invariant ensemble, 64 walkers and 4,800 steps",
    "EAZY": "redshift only; templates from spectra of the same population",
    "bagpipes": "delayed exponential, flat priors, nautilus",
}


def measure(codes, trial, tools):
    """Rows of all codes; one that cannot run leaves a row that says why."""
    truth, rows = parameters.column(trial.theta, "z"), []
    for name, code in codes.items():
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = code(trial, tools, Path(folder))
        except Exception as error:  # whatever stops one code must not stop the others
            rows.append({"code": name, "missing": reason(error)})
            continue
        n = len(found["z"])
        scores = metrics.photoz(torch.tensor(found["z"], dtype=torch.float32), truth[:n])
        kept = {key: scores[key] for key in ("median", "sigma_mad", "nmad", "outliers")}
        cost = {"start": found["start"], "seconds": found["seconds"] / n}
        rows.append({"code": name, "missing": None, "n": n, **cost, **kept, "note": NOTES.get(name, "")})
        print(rows[-1], flush=True)
    return rows


def main(target, n=100):
    """Measure, write ``target``, print the table."""
    sys.path.insert(0, str(ROOT / "tests"))  # bagpipes_model
    torch.set_num_threads(1)
    made = provenance.benchmark(store.home(), "bagpipes")
    tools = {"emulator": emulator.load(), "population": population.load(), "guess": proposal.load()}
    trial = trials.galaxies(n, tools["population"], tools["emulator"], survey.load(), torch.Generator().manual_seed(31), FLOOR)
    content = {"what": "redshift codes on galaxies of the model, CPU seconds of one thread", **made, "rows": measure(CODES, trial, tools)}
    store.write_text(target, json.dumps(content, indent=1) + "\n")
    print(tables.codes(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "codes.json", *map(int, sys.argv[2:3]))
