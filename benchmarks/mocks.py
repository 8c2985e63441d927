"""Mock galaxies per second: population, photometry, errors and noise, derived quantities, one after the other and together.

    python benchmarks/mocks.py [PROFILE]

Rates are medians of five, of the networks of PROFILE (published), on as many threads as torch takes; the bars are 3,000 galaxies/s on two
cores and 20,000 on a GPU. "Selected" counts what remains in the catalogue. The multiply-adds of the networks are counted from their
weights; the rest of the cost is activations, the tables of the emulator, and the search for the quantile of each flux error (30 halvings in
26 bands).
"""

import statistics
import sys
import time

import torch

from popcosmos_lib import mocks, store, surveys

_REPEATS = 5
_EVALUATIONS = {"population": 16, "emulator": 1, "uncertainty": 1}  # of each network per galaxy


def rate(function):
    """Galaxies per second of a chunk, and the last result."""
    result, times = function(), []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return mocks.CHUNK / statistics.median(times), result


def work(network, evaluations):
    """Multiply-adds of a galaxy [thousands]."""
    weights = [p for name, p in network.named_parameters() if "weight" in name and p.ndim > 1]
    return evaluations * sum(p.numel() for p in weights) / 1e3


@torch.no_grad()
def measure(made):
    """Print the cost of each stage of one survey."""
    generator = torch.Generator().manual_seed(0)
    print(f"\n{made.meta['survey']}, {made.selection}, {len(made.sky.bands)} bands, magnitudes by {made.meta['photometry']}")

    speed, theta = rate(lambda: made.model.sample(mocks.CHUNK, generator))
    print(f"  population         {speed:10,.0f} /s")
    speed, flux = rate(lambda: made.flux_true(theta))
    print(f"  photometry         {speed:10,.0f} /s")
    print(f"  errors and noise   {rate(lambda: made.observe(flux, generator))[0]:10,.0f} /s")
    print(f"  derived quantities {rate(lambda: made.synthesiser.derived(theta))[0]:10,.0f} /s")
    speed, rows = rate(lambda: made.chunk(0, 0))
    print(f"  together           {speed:10,.0f} drawn/s, {speed * len(rows) / mocks.CHUNK:,.0f} selected/s")
    networks = {"population": made.model, "emulator": made.engine, "uncertainty": made.sky.uncertainty}
    counted = [f"{name} {work(networks[name], _EVALUATIONS[name]):,.0f}" for name in made.meta["networks"]]
    print(f"  thousand multiply-adds per galaxy: {', '.join(counted)}")


def main(profile="published"):
    """Measure every built-in survey, or say what has to be made first."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    print(f"mock galaxies per second, {where}, chunks of {mocks.CHUNK}")
    for name in surveys.BUILT_IN:
        try:
            measure(mocks.load(name, profile=profile))
        except store.Missing as missing:
            print(f"\n{name}: not measured: {missing}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
