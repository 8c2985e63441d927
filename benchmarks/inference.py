"""Posteriors: the gates that the exact engine must pass, and what each engine costs for how much exactness.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/inference.py [FILE] [N]

Gates: N (500) galaxies of the model with all bands, and the same with five random bands missing: k-hat, effective draws, uniform ranks,
CPU time, and with CUDA the time of a galaxy on it. Objects that are no galaxies: flagged or not. Engines: the galaxies of
benchmarks/results/reference.json, whose posteriors are known from converged runs; CPU seconds on this machine, the distance of the medians
from the converged ones, and redshift scores. Each engine that is missing leaves a row that says why. Writes FILE
(benchmarks/results/inference.json); exits with 1 where a bar is missed.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from engines import ROOT, reason

from popcosmos_lib import population, survey
from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.emulation import emulator
from popcosmos_lib.fitting import exact_engine, inference, proposal, sbc
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.population import metrics
from popcosmos_lib.sampling import importance, rng
from popcosmos_lib.survey import forward_model, likelihood
from popcosmos_lib.synthesis import filters
from popcosmos_lib.workflow import tables

FLOOR = 0.01
QUANTITIES = (*parameters.NAMES, "log10SFR")
PLANTED = 60  # objects of each kind


def timed(work):
    """Result and CPU seconds of a function, all threads added up."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def gates(n, tools, sky):
    """Rows of the samples on which the exact engine must pass."""
    g = torch.Generator().manual_seed(21)
    trial = sbc.galaxies(n, tools["population"], tools["emulator"], sky, g, FLOOR)
    part = sbc.without(trial, 5, g)
    rows = []
    for name, sample in {"26 bands": trial, "21 of 26 bands": part}.items():
        began = time.perf_counter()
        fit, cpu = timed(lambda sample=sample: inference.fit(sample.flux, sample.flux_err, floor=FLOOR, **tools))
        gpu = 1e3 * (time.perf_counter() - began) / len(sample.theta) if torch.cuda.is_available() else None
        table = fit.summary
        ranks = sbc.ranks(fit, sample.theta, g)
        rows.append(
            {
                "sample": name, "n": len(sample.theta), "trusted": float((table["khat"] < exact_engine.KHAT).mean()),
                "effective": float((table["ess"] >= exact_engine.ESS).mean()), "chains": float((table["engine"] == "chains").mean()),
                "seconds": cpu / len(sample.theta), "gpu_ms": gpu, "ranks": ranks.distance.tolist(),
                "spread": ranks.spread, "limit": ranks.limit, "flagged": float(((table["flags"] & 32) > 0).mean()),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def oddities(tools, sky):
    """Share of planted objects of each kind that are flagged, and that would be if the galaxy's true parameters were known."""
    g = torch.Generator().manual_seed(22)
    catalogue = sbc.galaxies(20 * PLANTED, tools["population"], tools["emulator"], sky, g, FLOOR)
    rows = []
    for kind in sbc.ODDITIES:
        odd = sbc.planted(kind, catalogue, PLANTED, g)
        table = inference.fit(odd.flux, odd.flux_err, floor=FLOOR, **tools).summary
        possible = None
        if kind in sbc.GALACTIC:
            possible = float(sbc.caught(odd, tools["emulator"], FLOOR).float().mean())
        rows.append({"kind": kind, "n": len(table), "flagged": float(((table["flags"] & 32) > 0).mean()), "possible": possible})
        print(rows[-1], flush=True)
    return rows


def summarised(fit):
    """Medians of all quantities, (n, 17)."""
    return np.stack([np.asarray(fit.summary[f"{name}_q50"]) for name in QUANTITIES], -1)


def quantities(theta):
    """Parameters (..., 16) and the star-formation rate, (..., 17)."""
    return torch.cat([theta, parameters.log_sfr(theta)[..., None]], -1)


@torch.no_grad()
def evidence(flux, flux_err, tools):
    """ln evidence of one galaxy by importance sampling, the density of the population in place of the flow that stands for it."""
    floor = likelihood.fractional_error(FLOOR, tools["emulator"]).expand(len(filters.SHORT))
    target = exact_engine.Target(flux, flux_err, floor, tools["guess"], tools["population"], tools["emulator"])
    draws = importance.sample(target, rng.Streams([1]), ess=4000.0)[0]
    kept, weight = importance.thin(draws.log_weight, 4000, 0.5)
    theta = draws.extra[kept]
    flow = lambda phi: tools["guess"].log_prior(phi, theta)  # noqa: E731
    return draws.log_integral + float((weight.log() + population.log_ratio(tools["population"], theta, flow)).logsumexp(0))


def nautilus(flux, flux_err, tools):
    """Medians and ln evidence of one galaxy by nautilus, in the base noise of the population: a unit-normal prior in 16 dimensions."""
    from nautilus import Prior, Sampler
    from scipy.stats import norm

    floor = likelihood.fractional_error(FLOOR, tools["emulator"]).expand(len(filters.SHORT))
    prior = Prior()
    for i in range(16):
        prior.add_parameter(f"u{i}", dist=norm(0, 1))

    @torch.no_grad()
    def log_likelihood(u):
        u = torch.as_tensor(np.asarray(u), dtype=torch.float32)
        theta = tools["population"].from_base(u)
        magnitude = likelihood.photometry(tools["emulator"], theta)
        value = likelihood.log_likelihood(magnitude, flux, flux_err, floor) - forward_model.log_passing(magnitude, flux, flux_err, floor)
        return torch.where(population.inside(theta), value, -1e10).double().numpy()

    sampler = Sampler(prior, log_likelihood, n_live=500, pass_dict=False, vectorized=True, seed=1)
    sampler.run(n_eff=1000, verbose=False)
    points, log_weight, _ = sampler.posterior()
    theta = quantities(tools["population"].from_base(torch.as_tensor(points, dtype=torch.float32)))
    weight = torch.as_tensor(np.exp(log_weight - log_weight.max()), dtype=torch.float32)
    weight = (weight / weight.sum())[None]
    medians = [float(inference.quantiles(values[None], weight, torch.tensor([0.5]))) for values in theta.T]
    return np.array([medians]), sampler.log_z


def without_weights(flux, flux_err, tools):
    """The proposal alone: 512 draws taken at their word."""
    floor = likelihood.fractional_error(FLOOR, tools["emulator"]).expand(len(filters.SHORT))
    target = exact_engine.Target(flux, flux_err, floor, tools["guess"], tools["population"], tools["emulator"])
    w = torch.randn(len(flux), 512, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theta = target(w, torch.arange(len(flux)))[1]
    return quantities(theta).median(1).values.numpy()


def engines(reference, tools):
    """Rows of all engines on the galaxies whose posteriors are known."""
    rows = reference["rows"]
    flux, flux_err = (torch.tensor([row[key] for row in rows]) for key in ("flux", "flux_err"))
    truth = torch.tensor([row["truth"] for row in rows])[:, parameters.INDEX["z"]]
    q = np.array([[row["quantiles"][name] for name in QUANTITIES] for row in rows])  # (n, 17, 5)
    middle, width = q[..., 2], (q[..., 3] - q[..., 1]) / 2
    fit = lambda **options: lambda: (summarised(inference.fit(flux, flux_err, floor=FLOOR, **(tools | options))), None)  # noqa: E731
    ensemble = {"engine": "ensemble", "n_walkers": 64}
    makers = {
        "proposal alone": lambda: (without_weights(flux, flux_err, tools), None),
        "exact": fit(),
        "exact, 5 x the draws": fit(ess=2000.0, n_draws=2000),
        "ensemble, 600 steps": fit(**ensemble, n_steps=600),
        "ensemble, 600 stretch moves": fit(**ensemble, n_steps=600, moves="stretch"),
        "ensemble, 4,800 steps": fit(**ensemble, n_steps=4800),
        "nautilus, one galaxy": lambda: nautilus(flux[:1], flux_err[:1], tools),  # twenty minutes
    }
    found = []
    for name, make in makers.items():
        try:
            (medians, log_z), cpu = timed(make)
        except Exception as error:  # whatever stops one engine must not stop the others
            found.append({"engine": name, "missing": reason(error)})
            continue
        note = ""
        if log_z is not None:
            note = f"ln evidence {log_z:.1f}; {evidence(flux[:1], flux_err[:1], tools):.1f} by importance sampling"
        n = len(medians)
        apart = (medians - middle[:n]) / width[:n]
        scores = metrics.photoz(torch.tensor(medians[:, parameters.INDEX["z"]]).float(), truth[:n])
        rms = dict(zip(QUANTITIES, np.sqrt((apart**2).mean(0)).tolist(), strict=True))
        followed = apart[:, [QUANTITIES.index(key) for key in sbc.FOLLOWED]]
        found.append(
            {
                "engine": name, "missing": None, "note": note, "seconds": cpu / n, "distance": float(np.sqrt((followed**2).mean())),
                "largest": float(np.abs(followed).max()), "worst_of_16": max(rms[key] for key in parameters.NAMES),
                "sigma_mad": scores["sigma_mad"], "outliers": scores["outliers"], **{key: rms[key] for key in sbc.FOLLOWED},
            }
        )  # fmt: skip
        print(found[-1], flush=True)
    return found


def main(target, n=500):
    """Measure, write ``target``, print the tables; the number of missed bars."""
    torch.set_num_threads(1)  # of two on one small batch, each waits for the other half of the time
    made = provenance.benchmark(store.home(), "nautilus-sampler")
    tools = {"emulator": emulator.load(), "population": population.load(), "guess": proposal.load()}
    sky = survey.load()
    content = {"what": "gates of the exact engine; engines against converged posteriors; CPU seconds of one thread", **made}
    content |= {"gates": gates(n, tools, sky), "oddities": oddities(tools, sky)}
    reference = tables.benchmark("reference")
    content["rows"] = engines(reference, tools)
    store.write_text(target, json.dumps(content, indent=1) + "\n")
    print(tables.inference(content))
    problems = list(sbc.missed(content))
    print("\n".join(problems) or "every bar is met")
    return 1 if problems else 0


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "inference.json"
    sys.exit(main(where, *map(int, sys.argv[2:3])))
