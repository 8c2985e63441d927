"""Converged posteriors of a few galaxies, kept as data: quantiles of long runs of the papers' ensemble sampler (an hour and a half).

The walkers move in the coordinates of the proposal, where the posterior is nearly normal: an affine-invariant sampler converges to the same
posterior in any coordinates of the prior's support, and here it does so in tens of thousands of steps. A flow stands for the population
meanwhile; draws are weighted by its density at the end. What is kept is theta only. Convergence: split R-hat below 1.01 in every parameter,
each walker a chain.

    python benchmarks/reference.py [FILE]

Writes FILE (benchmarks/results/reference.json), which benchmarks/inference.py reads.
"""

import json
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from popcosmos_lib import population, survey
from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.emulation import emulator
from popcosmos_lib.fitting import exact_engine, inference, proposal
from popcosmos_lib.fitting.sbc import galaxies
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.sampling import ensemble, rng
from popcosmos_lib.survey import likelihood

N, FLOOR = 12, 0.01
WALKERS, FIRST, STEPS, MOST = 64, 1000, 4000, 100_000  # ensemble steps: to begin with, between tests of convergence, at most
CONVERGED = 1.01
THIN, KEPT = 20, 8192  # steps from one state kept to the next; draws weighted by the density of the population


@torch.no_grad()
def converged(target, n, random):
    """Chains (steps, walkers, 16) of theta of n galaxies, and their R-hats; each goes on until it has converged."""

    def advance(walkers, rows, **size):
        return ensemble.ensemble(lambda w: target(w, rows)[0], walkers, random=random.of(rows.tolist()), **size)[0]

    walkers = advance(random.normal(WALKERS, 16), torch.arange(n), steps=FIRST, thin=FIRST)[:, -1]
    theta, rhat = [torch.empty(0, WALKERS, 16)] * n, torch.full((n,), torch.inf)
    for _ in tqdm(range(MOST // STEPS), desc="converged posteriors", unit=f"{STEPS} steps"):
        rows = (rhat >= CONVERGED).nonzero()[:, 0]
        if len(rows) == 0:
            break
        chain = advance(walkers[rows], rows, steps=STEPS, thin=THIN)
        walkers[rows] = chain[:, -1]
        for i, states in zip(rows.tolist(), chain, strict=True):
            theta[i] = torch.cat([theta[i], target(states, torch.tensor([i]).expand(len(states)))[1]])
            rhat[i] = max(float(ensemble.r_hat(theta[i][None, ..., k])) for k in range(16))
        print(f"R-hat {', '.join(f'{value:.3f}' for value in rhat)}", file=sys.stderr, flush=True)
    return theta, rhat


def main(target):
    """Run every galaxy to convergence and write those that came to it into ``target``."""
    made = provenance.benchmark(store.home())
    g = torch.Generator().manual_seed(11)
    model, people, guess = emulator.load(), population.load(), proposal.load()
    trial = galaxies(N, people, model, survey.load(), g, FLOOR)
    floor = likelihood.fractional_error(FLOOR, model).expand(26)
    density = exact_engine.Target(trial.flux, trial.flux_err, floor, guess, people, model)
    chains, rhat = converged(density, N, rng.Streams(range(N)))
    rows = []
    for i, chain in enumerate(chains):
        if rhat[i] >= CONVERGED:
            print(f"galaxy {i} is left out: R-hat {rhat[i]:.3f}", file=sys.stderr)
            continue
        theta = chain.flatten(0, 1)
        kept = theta[torch.randperm(len(theta), generator=g)[:KEPT]]
        weight = density.amends(kept, torch.full((len(kept),), 1 / len(kept)))[0]
        values = torch.cat([kept, parameters.log_sfr(kept)[:, None]], -1).T
        q = inference.quantiles(values, weight.expand(values.shape), torch.tensor(list(inference.QUANTILES.values())))
        rows.append(
            {
                "flux": trial.flux[i].tolist(), "flux_err": trial.flux_err[i].tolist(), "truth": trial.theta[i].tolist(),
                "rhat": float(rhat[i]), "steps": THIN * chain.shape[0],
                "quantiles": {name: q[:, k].tolist() for k, name in enumerate([*parameters.NAMES, "log10SFR"])},
            }
        )  # fmt: skip
    what = {"what": "quantiles of theta of converged runs of the ensemble sampler"}
    content = {**what, **made, "floor": FLOOR, "walkers": WALKERS, "rows": rows}
    store.write_text(target, json.dumps(content) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else store.home() / "benchmarks" / "results" / "reference.json")
