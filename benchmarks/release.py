"""The released networks: 26 bands at once against a loop over bands, one thread; and the cost of the released flux errors.

    python benchmarks/release.py [FILE]

Needs the released files below POPCOSMOS_DATA; without them the table says so. Writes FILE (benchmarks/results/release.json), which
REPRODUCING reads.

Rates are medians of seven, the engines taking turns so that a busy machine is busy for all; ratios are medians of the seven ratios.
The loop is written as the networks are published, one after the other, without a record for gradients; the columns "recording" and
"gradient" are the same loop as the released code runs it (weights that want gradients), and followed by a pass back to the parameters.

What can be won: fused or not, a galaxy costs 26 x (15 x 128 + 3 x 128 x 128 + 128) multiply-adds in matrix products and 26 x 513 sigmoids.
A processor core at full speed needs half of the loop's time at batch 1,000 for the products alone (last lines of the table), so there no
evaluation of these networks can win more than a factor of two; at small batches, where a loop mostly waits for its own calls, fusing does.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from engines import reason

from popcosmos_lib.artefacts import data, provenance, store
from popcosmos_lib.emulation import release, release_pickles
from popcosmos_lib.galaxies import cosmology, parameters, universe
from popcosmos_lib.survey import photometry
from popcosmos_lib.synthesis import filters
from popcosmos_lib.workflow import tables

ROOT = Path(__file__).resolve().parents[1]
BATCHES = (1, 10, 100, 1000, 4000)
_REPEATS = 7
_LAYERS = 5
_SQUARE = 1024  # rows of the large matrix


class Loop:
    """The published networks one by one, in plain torch."""

    def __init__(self):
        folder = data.shared("popcosmos_release/trained_models/photulator_models")
        self.states = [
            release_pickles.tensors(release_pickles.read(folder / f"model_4x128_alsing20_{band}_cpu.pt")) for band in filters.COSMOS26
        ]

    def recording(self):
        """The same, with weights that want gradients, as the released modules have them."""
        copy = Loop()
        for state in copy.states:
            for name in state:
                state[name].requires_grad_("." in name)
        return copy

    def magnitudes(self, theta):
        """As ``Photulators.magnitudes``."""
        dust = parameters.INDEX["dust2"]
        x = torch.cat([theta[:, 1:dust], theta[:, dust : dust + 1].clamp_min(1e-8).sqrt(), theta[:, dust + 1 :]], -1)
        unit_mass = torch.cat([self._band(state, x) for state in self.states], -1)
        mu = cosmology.distance_modulus(parameters.column(theta, "z"))
        return unit_mass + (mu - 2.5 * parameters.column(theta, "log10M_formed"))[:, None]

    @staticmethod
    def _band(state, x):
        x = (x - state["parameters_shift"]) / state["parameters_scale"]
        for i in range(_LAYERS):
            x = x @ state[f"W.{i}"] + state[f"b.{i}"]
            x = (state[f"betas.{i}"] + (1 - state[f"betas.{i}"]) * torch.sigmoid(state[f"alphas.{i}"] * x)) * x
        return x * state["magnitudes_scale"] + state["magnitudes_shift"]


def without_record(function):
    """The function under ``no_grad``."""

    def run(theta):
        with torch.no_grad():
            return function(theta)

    return run


def backward(function):
    """The function followed by one pass back to the parameters."""

    def run(theta):
        theta = theta.clone().requires_grad_(True)
        return torch.autograd.grad(function(theta).sum(), theta)[0]

    return run


def seconds(functions, argument):
    """Times of each function, (_REPEATS, n_function), taken in turns after one call to warm up."""
    for function in functions:
        function(argument)
    table = []
    for _ in range(_REPEATS):
        row = []
        for function in functions:
            start = time.perf_counter()
            function(argument)
            row.append(time.perf_counter() - start)
        table.append(row)
    return table


def compare(slow, fast, theta):
    """Galaxies per second of both and the median ratio."""
    times = seconds([slow, fast], theta)
    ratio = statistics.median(a / b for a, b in times)
    return *(len(theta) / statistics.median(column) for column in zip(*times, strict=True)), ratio


def rates(loop, fused, galaxies):
    """Rows of the table, one per batch."""
    recording, rows = loop.recording(), []
    for batch in BATCHES:
        theta, row = galaxies[:batch], {"batch": batch}
        row["loop"], row["fused"], row["ratio"] = compare(without_record(loop.magnitudes), without_record(fused.magnitudes), theta)
        row["recording"], _, row["recording_ratio"] = compare(recording.magnitudes, without_record(fused.magnitudes), theta)
        slopes = compare(backward(loop.magnitudes), backward(fused.magnitudes), theta)
        row["loop_gradient"], row["fused_gradient"], row["gradient_ratio"] = slopes
        rows.append(row)
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    return rows


def bound(loop, few):
    """What the matrix products alone allow on this core: flop of a galaxy, flop/s of large products, galaxies/s, and over the loop."""
    work = 2 * len(filters.COSMOS26) * (15 * 128 + 3 * 128**2 + 128)
    square = torch.randn(_SQUARE, _SQUARE, generator=torch.Generator().manual_seed(0))
    engines = (lambda _: square @ square, lambda _: loop.magnitudes(few))
    product, slow = (statistics.median(column) for column in zip(*seconds([without_record(f) for f in engines], None), strict=True))
    peak = 2 * _SQUARE**3 / product
    return {"batch": len(few), "flop": work, "peak": peak, "most": peak / work, "ratio": peak / work * slow / len(few)}


def flux_errors(fused, galaxies):
    """Cost and error of the released flux errors, by the number of their steps, and the scatter of ln sigma."""
    errors = release.noise_model()
    with torch.no_grad():
        magnitude = photometry.asinh_magnitude(filters.flux_from_magnitude(fused.magnitudes(galaxies)), errors.softening)
    u = torch.randn(magnitude.shape, generator=torch.Generator().manual_seed(1))
    exact, rows = errors.from_base(magnitude, u, steps=512).log(), []
    for steps in (16, 32, 64):
        (cost,) = zip(*seconds([lambda given, steps=steps: errors.from_base(given, u, steps)], magnitude), strict=True)
        wrong = (errors.from_base(magnitude, u, steps).log() - exact).pow(2).mean().sqrt().item()
        rows.append({"steps": steps, "rate": len(magnitude) / statistics.median(cost), "wrong": wrong})
    return {"scatter": exact.std(0).median().item(), "rows": rows}


def measure():
    """All the numbers, or the reason why there are none."""
    try:
        loop, fused = Loop(), release.photulators()
    except FileNotFoundError as error:
        return {"missing": reason(error)}
    galaxies = universe.sample(BATCHES[-1], torch.Generator().manual_seed(0))
    with torch.no_grad():
        apart = (fused.magnitudes(galaxies) - loop.magnitudes(galaxies)).abs().max().item()
    rows = rates(loop, fused, galaxies)
    return {
        "missing": None,
        "n": len(galaxies),
        "apart": apart,
        "rounds": _REPEATS,
        "rows": rows,
        "bound": bound(loop, galaxies[:1000]),
        "flux_errors": flux_errors(fused, galaxies[:2048]),
    }


def main(target):
    """Measure, write ``target``, print the tables."""
    torch.set_num_threads(1)
    made = provenance.benchmark(store.home())
    content = {
        "what": "the 26 released networks at once against a loop over bands, on one thread; rates in galaxies per second",
        **made,
        **measure(),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(target, json.dumps(content, indent=1) + "\n")
    print(tables.release(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "release.json")
