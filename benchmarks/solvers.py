"""Error of each solver of the probability-flow ODE against its cost, on a score network trained on literature galaxies.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/solvers.py [FILE]

One network for each kind of noise learns N_GALAXIES galaxies in the standardised latent space, then ``diffusion.decode`` and
``diffusion.log_prob`` are run at several numbers of steps, in float64 so that rounding hides nothing. Cost is counted in network
evaluations per point, for densities in evaluations with the exact trace, each as dear as DIM without; the reference is dopri5 at a
tolerance of REFERENCE. The same is done for two densities known in closed form: how
much too wide a unit normal and the narrow component of a mixture come out. Under three minutes on one thread. Writes FILE
(benchmarks/results/solvers.json), which notebook 04 reads.
"""

import json
import sys
import time
from pathlib import Path

import torch

from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.density import diffusion, solvers
from popcosmos_lib.galaxies import parameters, universe

ROOT = Path(__file__).resolve().parents[1]
N_GALAXIES, TRAINING, N_DECODED, N_DENSITY, N_JACOBIAN = 8_000, 6_000, 400, 200, 40
REFERENCE = 1e-8
DIM = 16
EVALUATIONS = (8, 10, 12, 16, 20, 24, 32, 48, 64)
NODES = (6, 8, 10, 12, 16, 20, 24, 34, 48)  # of Gauss
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
GRIDS = {"even": None, "karras": 7.0}
FIXED = {"adams": (solvers.adams, 1), "dpm++": (solvers.dpm, 1), "heun": (solvers.heun, 2)}  # with their evaluations a step


class Counted:
    """A denoiser that counts its evaluations, without the trace of its Jacobian and with it."""

    def __init__(self, model):
        self.model, self.calls, self.traced = model, 0, 0

    def __call__(self, x, sigma):
        self.calls += 1
        return self.model(x, sigma)

    def with_trace(self, x, sigma):
        self.traced += 1
        return self.model.with_trace(x, sigma)


class Mixture:
    """Exact denoiser of a one-dimensional mixture about zero."""

    def __init__(self, weights, widths):
        self.weights, self.variances = (torch.tensor(value, dtype=torch.float64) for value in (weights, widths))
        self.variances = self.variances**2

    def shares(self, x, sigma):
        total = self.variances + sigma**2
        return torch.softmax(self.weights.log() - 0.5 * x**2 / total - 0.5 * total.log(), -1)

    def __call__(self, x, sigma):
        return (self.shares(x, sigma) * self.variances / (self.variances + sigma**2) * x).sum(-1, keepdim=True)


def learn(sde):
    """The galaxies and the network that learned them."""
    g = torch.Generator().manual_seed(0)
    phi = parameters.to_latent(universe.sample(N_GALAXIES, g)).float()
    x = (phi - phi.mean(0)) / phi.std(0)
    net = diffusion.ScoreNet(generator=g)
    began = time.process_time()
    diffusion.train(net, x, generator=g, steps=TRAINING, lr=4e-3, sde=sde)
    return x.double(), net.double().requires_grad_(False), time.process_time() - began


def volume(solve, u):
    """ln |dx/du| of the discretised map, whose error is that of the density of its draws."""
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: solve(row[None])[0]))(u)
    return torch.linalg.slogdet(jacobian).logabsdet


def decoded(net, sde, u):
    """Rows of the decode panel: root mean square and median displacement, error of the width, and sd of the error of ln |dx/du|."""
    reference = diffusion.decode(net, u, sde=sde, solver="dopri5", tolerance=REFERENCE)
    known = volume(lambda v: solvers.adams(net, v * sde.base_scale, sde.grid(200)), u[:N_JACOBIAN])

    def row(solver, grid, evaluations, solve):
        x = solve(u)
        error, nat = x - reference, volume(solve, u[:N_JACOBIAN]) - known
        quantities = {"rms": error.pow(2).mean().sqrt(), "median": error.abs().median()}
        quantities |= {"width": (x.std(0) / reference.std(0) - 1).mean(), "nat_mean": nat.mean(), "nat_sd": nat.std()}
        return {"solver": solver, "grid": grid, "evaluations": evaluations} | {name: float(value) for name, value in quantities.items()}

    for solver, (solve, each) in FIXED.items():
        for grid, curvature in GRIDS.items():
            for n in EVALUATIONS:
                levels = sde.grid(n // each, curvature)
                yield row(solver, grid, n, lambda v, solve=solve, levels=levels: solve(net, v * sde.base_scale, levels))
    for tolerance in TOLERANCES:
        counted = Counted(net)
        x = diffusion.decode(counted, u, sde=sde, solver="dopri5", tolerance=tolerance)
        error = x - reference
        errors = {"rms": float(error.pow(2).mean().sqrt()), "median": float(error.abs().median())}
        yield {"solver": "dopri5", "grid": "adaptive", "evaluations": counted.calls, "tolerance": tolerance} | errors


def densities(net, sde, x):
    """Rows of the density panel: root mean square error of ln p [nat]."""
    reference = diffusion.log_prob(net, x, sde=sde, solver="dopri5", tolerance=REFERENCE)
    g = torch.Generator().manual_seed(1)
    settings = [("gauss", "exact", {"steps": n}) for n in NODES]
    settings += [("gauss", "hutchinson", {"steps": n, "generator": g}) for n in NODES]
    settings += [("dopri5", "exact", {"tolerance": tolerance}) for tolerance in (*TOLERANCES, 1e-6)]
    for solver, trace, options in settings:
        counted = Counted(net)
        error = diffusion.log_prob(counted, x, sde=sde, solver=solver, trace=trace, **options) - reference
        cost = counted.traced + counted.calls / DIM
        row = {"solver": solver, "trace": trace, "evaluations": cost, "tolerance": options.get("tolerance")}
        yield row | {"rms": float(error.pow(2).mean().sqrt()), "mean": float(error.mean()), "sd": float(error.std())}


def widths(sde):
    """Rows of the closed forms: relative error of the standard deviation, in 16 and 32 evaluations."""
    spread = (1 - 0.1 * 0.05**2) / 0.9
    exact = {"unit normal": Mixture([1.0], [1.0]), "component of width 0.05": Mixture([0.1, 0.9], [0.05, spread**0.5])}
    u = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)[:, None]
    for name, model in exact.items():
        reference = diffusion.decode(model, u, sde=sde, solver="dopri5", tolerance=1e-10)
        share = model.shares(reference, sde.sigma_min)[:, :1]
        width = lambda x, share=share: float(((share * x**2).sum() / share.sum()).sqrt())  # noqa: E731
        for solver, (solve, each) in FIXED.items():
            for grid, curvature in GRIDS.items():
                for n in (16, 32):
                    x = solve(model, u * sde.base_scale, sde.grid(n // each, curvature))
                    yield {"density": name, "solver": solver, "grid": grid, "evaluations": n, "error": width(x) / width(reference) - 1}


def main(target):
    """Measure, write ``target``, print what 16 evaluations give."""
    torch.set_num_threads(1)
    made = provenance.benchmark(store.home())
    rows = {"decode": [], "log_prob": [], "width": []}
    for kind, sde in (("VE", diffusion.VE()), ("VP", diffusion.VP())):
        x, net, seconds = learn(sde)
        print(f"{kind}: trained in {seconds:.0f} CPU-s", flush=True)
        u = torch.randn(N_DECODED, x.shape[-1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        with torch.no_grad():
            for name, found in (("decode", decoded(net, sde, u)), ("log_prob", densities(net, sde, x[:N_DENSITY])), ("width", widths(sde))):
                rows[name] += [{"sde": kind} | row for row in found]
    content = {
        "what": "error of solvers of the probability-flow ODE of a 16-dimensional score network against network evaluations per point",
        **made,
        "galaxies": N_GALAXIES,
        "training_steps": TRAINING,
        "reference": f"dopri5, tolerance {REFERENCE:g}",
        "rows": rows,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(target, json.dumps(content, indent=1) + "\n")
    for row in rows["decode"] + rows["width"]:
        if row["evaluations"] == 16:
            print(", ".join(f"{key} {value:+.4f}" if isinstance(value, float) else str(value) for key, value in row.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "solvers.json")
