"""Redshift codes that others wrote and the papers' sampler beside the exact engine, on the same galaxies: CPU seconds, scatter, outliers.

    python benchmarks/codes.py [FILE] [N]

N (100) galaxies drawn from the model with all 26 bands, of which the ensemble engine gets ten; and where POPCOSMOS_DATA has them at most N
real COSMOS2020 galaxies of all redshifts and of z > 2.5, for the codes that are fast. EAZY (Brammer et al. 2008) and LePHARE
(Arnouts et al. 1999, Ilbert et al. 2006) have their templates on servers of their own, not on the package index. Here both get spectra of
the population, which is the best case for them: EAZY adds up twelve non-negative factors of them, made as its authors made theirs (sect.
2.2); LePHARE takes one at a time, five hundred, and reads our curves and our intergalactic absorption in place of its own. bagpipes
(Carnall et al. 2018) gets a delayed exponential and minutes for each galaxy, so a few galaxies only. Each foreign code runs in a process of
its own, in a folder that is thrown away; one that is not installed or fails leaves a row that says why. Writes FILE
(benchmarks/results/codes.json).
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from engines import ROOT, reason

from popcosmos_lib import population, survey
from popcosmos_lib.artefacts import data, provenance, store
from popcosmos_lib.catalog import real_galaxies
from popcosmos_lib.emulation import emulator
from popcosmos_lib.fitting import inference, proposal, sbc
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.population import metrics
from popcosmos_lib.synthesis import filters, igm, sps
from popcosmos_lib.workflow import tables

FLOOR = 0.01
SOME, FEW = 10, 2  # galaxies that the ensemble and bagpipes get
TEMPLATES, SPECTRA, FACTORING = 12, 2000, 2000  # factors, spectra that they are made of, updates of the factors
SINGLE = 500  # of these spectra, templates of LePHARE
LINE = 0.004  # width of the lines in the templates, in wavelength: a step of their grid
THIN = 8  # of the nodes of filter curves one is kept: with all 512 the set-up of EAZY takes six minutes
SYSTEMATIC, Z_STEP, Z_MAX = 0.02, 0.01, 6.0  # [mag] added to the errors; redshifts tried
EAZY_PARAMETERS = {
    "FILTERS_RES": "FILTER.RES", "TEMPLATES_FILE": "shapes.param", "TEMP_ERR_FILE": "error.def", "TEMP_ERR_A2": 1.0,
    "CATALOG_FILE": "galaxies.cat", "MAIN_OUTPUT_FILE": "out", "SYS_ERR": SYSTEMATIC, "APPLY_PRIOR": "n",
    "Z_MIN": Z_STEP, "Z_MAX": Z_MAX, "Z_STEP": Z_STEP, "CAT_HAS_EXTCORR": "y", "N_MIN_COLORS": 3,
}  # fmt: skip
LEPHARE_PARAMETERS = {  # where they differ from those of its authors for COSMOS; dust and lines are in the templates
    "FILTER_CALIB": "0", "ERR_FACTOR": "1", "EB_V": "0", "EXTINC_LAW": "MW_seaton.dat", "EM_LINES": "NO", "ADD_EMLINES": "-1,-1",
    "Z_STEP": f"{Z_STEP},{Z_STEP},{Z_MAX}", "MAG_ABS": "-30,0", "MABS_METHOD": "3", "RF_COLORS": "-1", "ZPHOTLIB": "CE_COSMOS",
    "PDZ_OUT": "NONE",
}  # fmt: skip
MISSING = -99.0  # flux of a band that was not observed, in the catalogues of EAZY and LePHARE


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
    """Write what EAZY reads: catalogue, translation, filters, templates, their error, parameters.

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
    (folder / "parameters.json").write_text(json.dumps(EAZY_PARAMETERS))


def lephare_files(folder, flux, flux_err, wave, templates, bands):
    """Write what LePHARE reads: catalogue, filters, templates, opacities, and files that it opens but does not use here.

    Those are the spectra of Vega, the Sun and BD+17 for other magnitude systems, an extinction curve (E(B-V) is zero), and the list of
    dust spectra (ADD_DUSTEM is NO).

    Parameters
    ----------
    folder, flux, flux_err, wave, templates, bands
        As for ``eazy_files``.
    """
    there = np.isfinite(flux) & np.isfinite(flux_err)
    seen = {name: np.where(there, 1e-29 * values, MISSING) for name, values in (("flux", flux), ("error", flux_err))}  # [erg/s/cm2/Hz]
    np.savez(folder / "galaxies.npz", **seen)
    for name in ("filt", "vega", "ext", "opa", "sed/GAL/BETHERMIN12"):
        (folder / name).mkdir(parents=True)
    save = lambda name, *columns: np.savetxt(folder / name, np.column_stack(columns), fmt="%.6g")  # noqa: E731
    for name, nodes, response in zip(bands.names, bands.wave.numpy(), bands.transmission.numpy(), strict=True):
        save(f"filt/{name}.pb", nodes[::THIN], response[::THIN])
    for k, template in enumerate(templates):
        save(f"sed/GAL/{k}.sed", wave, template)
    (folder / "sed/GAL/shapes.list").write_text("".join(f"{k}.sed\n" for k in range(len(templates))))
    below, redshifts = torch.arange(300.0, 1216.0), torch.arange(81) / 10
    for k, transmission in enumerate(igm.transmission(below, redshifts)):
        save(f"opa/{k}.out", below, transmission)
    (folder / "opa/OPACITY.dat").write_text("".join(f"{z:.1f} {k}.out\n" for k, z in enumerate(redshifts.tolist())))
    flat = np.geomspace(500.0, 1e5, 200)
    for name in ("vega/VegaLCB.sed", "vega/SunLCB.sed", "vega/BD+17o4708.sed", "ext/MW_seaton.dat", "sed/GAL/dust.sed"):
        save(name, flat, flat**-2)
    (folder / "sed/GAL/BETHERMIN12/BETHERMIN12_MOD.list").write_text("dust.sed 1 0.0\n")
    lists = {"FILTER_REP": str(folder / "filt"), "FILTER_LIST": ",".join(f"{name}.pb" for name in bands.names)}
    lists |= {"GAL_SED": str(folder / "sed/GAL/shapes.list"), "ERR_SCALE": ",".join([str(SYSTEMATIC)] * len(bands.names))}
    (folder / "parameters.json").write_text(json.dumps(LEPHARE_PARAMETERS | lists))


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

LEPHARE = """
import json, os, time
os.environ["LEPHAREDIR"] = os.environ["LEPHAREWORK"] = os.getcwd()
import lephare, numpy as np
keys = lephare.all_types_to_keymap(lephare.default_cosmos_config | json.load(open("parameters.json")))
began = time.process_time()
lephare.prepare(keys, star_config=None, qso_config=None)
fit = lephare.PhotoZ(keys)
ready = time.process_time()
given, galaxies = np.load("galaxies.npz"), []
for k, (flux, error) in enumerate(zip(given["flux"], given["error"])):
    galaxies.append(lephare.onesource(k, fit.gridz))
    galaxies[-1].readsource(str(k), flux, error, 0, -99.0, "")
    fit.prep_data(galaxies[-1])
fit.run_photoz(galaxies, fit.compute_offsets([]))
middle = [galaxy.zgmed[0] for galaxy in galaxies]  # of the probability of z
json.dump({"z": middle, "start": ready - began, "seconds": time.process_time() - ready}, open("found.json", "w"))
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


def installed(package, code):
    """Whether there is a package to run.

    Raises
    ------
    ImportError
        If not, with the remedy.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{code} is not installed: .venv/bin/pip install -e .[bench]")


def shapes(law, n, generator):
    """Rest wavelengths (n_wave,) [Angstrom] and spectra (n, n_wave) per wavelength, of mean one, of galaxies of a population."""
    light = sps.load().spectrum(law.sample(n, generator))
    inside = (light.wave > 900) & (light.wave < 6e4)
    wave = light.wave[inside]
    apart = (wave[:, None] / light.line_wave - 1) / LINE
    lines = torch.exp(-0.5 * apart**2) / (math.sqrt(2 * math.pi) * LINE * light.line_wave)
    spectra = light.total[:, inside] * filters.LIGHT / wave**2 + light.lines @ lines.T
    return wave, spectra / spectra.mean(1, keepdim=True)


@cache
def mixtures(law):
    """Wavelengths and templates whose sums are the spectra of a population."""
    generator = torch.Generator().manual_seed(3)
    wave, spectra = shapes(law, SPECTRA, generator)
    typical = spectra.mean(0)  # without it the infrared would weigh nothing
    return wave, typical * factors((spectra / typical).float(), TEMPLATES, generator)


def eazy(sample, tools, folder):
    """EAZY on all galaxies."""
    installed("eazy", "EAZY")
    wave, templates = mixtures(tools["population"])
    eazy_files(folder, sample.flux.numpy(), sample.flux_err.numpy(), wave.numpy(), templates.numpy(), filters.load("cosmos"))
    return process(EAZY, folder)


def lephare(sample, tools, folder):
    """LePHARE on all galaxies."""
    installed("lephare", "LePHARE")
    wave, spectra = shapes(tools["population"], SINGLE, torch.Generator().manual_seed(3))
    lephare_files(folder, sample.flux.numpy(), sample.flux_err.numpy(), wave.numpy(), spectra.numpy(), filters.load("cosmos"))
    return process(LEPHARE, folder)


def bagpipes(sample, tools, folder):
    """bagpipes on the first few galaxies; five per cent are added to the errors, as is usual with it."""
    import bagpipes_model

    bagpipes_model.copy(folder)
    flux, bands = sample.flux[:FEW].numpy(), filters.load("cosmos")
    error = np.hypot(sample.flux_err[:FEW].numpy(), 0.05 * flux)
    np.savez(folder / "galaxies.npz", flux=flux, error=error, wave=bands.wave.numpy(), transmission=bands.transmission.numpy())
    return process(BAGPIPES, folder)


def ours(n=None, **options):
    """An engine of this package on the first ``n`` galaxies."""

    def code(sample, tools, folder):
        began = time.process_time()
        fit = inference.fit(sample.flux[:n], sample.flux_err[:n], id=sample.id[:n], floor=sample.floor, **tools, **options).summary
        return {"z": np.asarray(fit["z_q50"]).tolist(), "start": 0.0, "seconds": time.process_time() - began}

    return code


LONG = {"engine": "ensemble", "n_walkers": 64, "n_steps": 4800}  # the papers' sampler until it has converged
CODES = {"exact engine": ours(), "ensemble engine": ours(SOME, **LONG), "EAZY": eazy, "LePHARE": lephare, "bagpipes": bagpipes}
FAST = ("exact engine", "EAZY", "LePHARE")  # these get the real galaxies too
REAL = {"cosmos": "COSMOS2020", "distant": "COSMOS2020, z > 2.5"}
NOTES = {
    "exact engine": "16 parameters, under the calibrated population",
    "ensemble engine": "the same posteriors by an affine-invariant ensemble, 64 walkers and 4,800 steps",
    "EAZY": f"redshift only; sums of {TEMPLATES} templates from spectra of the same population",
    "LePHARE": f"redshift only; {SINGLE} spectra of the same population",
    "bagpipes": "delayed exponential, flat priors, nautilus",
}


def measure(codes, title, sample, tools):
    """Rows of all codes on a ``real_galaxies.Sample``; one that cannot run leaves a row that says why."""
    rows = []
    for name, code in codes.items():
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = code(sample, tools, Path(folder))
        except Exception as error:  # whatever stops one code must not stop the others
            rows.append({"sample": title, "code": name, "missing": reason(error)})
            continue
        z, truth = torch.tensor(found["z"], dtype=torch.float32), sample.z_spec[: len(found["z"])]
        scores = metrics.photoz(z, truth)
        wrong = metrics.outlying(z, truth).nonzero()[:, 0].tolist()
        kept = {key: scores[key] for key in ("median", "sigma_mad", "nmad", "outliers")}
        kept |= {"start": found["start"], "seconds": found["seconds"] / len(z), "wrong": [sample.id[i] for i in wrong]}
        rows.append({"sample": title, "code": name, "missing": None, "n": len(z), **kept, "note": NOTES.get(name, "")})
        print(rows[-1], flush=True)
    return rows


def main(target, n=100):
    """Measure, write ``target``, print the table."""
    sys.path.insert(0, str(ROOT / "tests"))  # bagpipes_model
    torch.set_num_threads(1)
    made = provenance.benchmark(store.home(), "bagpipes")
    tools = {"emulator": emulator.load(), "population": population.load(), "guess": proposal.load()}
    trial = sbc.galaxies(n, tools["population"], tools["emulator"], survey.load(), torch.Generator().manual_seed(31), FLOOR)
    z, floor = parameters.column(trial.theta, "z"), torch.full((len(filters.SHORT),), FLOOR)
    drawn = real_galaxies.Sample(
        [f"model {i}" for i in range(n)], trial.flux, trial.flux_err, z, torch.full_like(z, torch.nan), floor, None
    )
    rows = measure(CODES, "model", drawn, tools)
    for name, title in REAL.items():
        try:
            real = getattr(real_galaxies, name)(data.shared(real_galaxies.FILES[name]))
        except FileNotFoundError as missing:
            print(f"only galaxies of the model: {missing}")
            continue
        some = torch.randperm(len(real.id), generator=torch.Generator().manual_seed(32))[:n].sort().values
        rows += measure({code: CODES[code] for code in FAST}, title, real.of(some), tools)
    content = {"what": "redshift codes on the same galaxies, CPU seconds of one thread", **made, "rows": rows}
    store.write_text(target, json.dumps(content, indent=1) + "\n")
    print(tables.codes(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "codes.json", *map(int, sys.argv[2:3]))
