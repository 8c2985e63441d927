"""Cost and accuracy of the photometry engines in one run, on one thread: synthesis, first estimate, emulator, public networks.

    python benchmarks/emulator.py

Rates are the best of five on the same galaxies of the literature universe; errors are against the synthesis, where brighter than 30 mag.
The public networks emulate FSPS: their column shows how two stellar libraries differ, not how well they were trained.
"""

import time

import torch

from popcosmos_lib import emulator, features, parameters, release, sps, universe

N_COST, N_ERROR = 4096, 20_000


def rate(function, theta):
    """Galaxies per second, best of five."""
    took = []
    for _ in range(5):
        start = time.perf_counter()
        function(theta)
        took.append(time.perf_counter() - start)
    return len(theta) / min(took)


def backward(function):
    """The function followed by one pass back to the parameters, as a calibration step uses it."""

    def run(theta):
        theta = theta.clone().requires_grad_(True)
        torch.autograd.grad(function(theta).sum(), theta)

    return run


def main():
    """Print the table."""
    torch.set_num_threads(1)
    synthesiser, model = sps.load(), emulator.load()

    def estimate(theta):
        _, continuum, lines = model.features(theta)
        return features.magnitude(continuum + lines) + parameters.to_latent(theta)[:, :1]

    engines = {"synthesis": synthesiser.magnitudes, "first estimate": estimate, "emulator": model.magnitudes}
    try:
        engines["public networks"] = release.photulators().magnitudes
    except FileNotFoundError as missing:
        print(f"(public networks left out: {missing})")
    theta = universe.sample(N_ERROR, torch.Generator().manual_seed(0))
    few = theta[:N_COST]
    with torch.no_grad():
        truth = synthesiser.magnitudes(theta)
    print(f"{'engine':16s}{'galaxies/s':>12s}{'with gradient':>15s}   {'robust sigma':>12s}{'sd':>9s}{'99.9 %':>9s}  [mag, median band]")
    for name, function in engines.items():
        with torch.no_grad():
            error = torch.where(truth < emulator.FAINT, function(theta) - truth, torch.nan)
            cost = rate(function, few)
        sd = torch.stack([band[band.isfinite()].std() for band in error.T]).median()
        tail = error.abs().nanquantile(0.999, dim=0).median()
        row = f"{emulator.robust_sigma(error).median():12.4f}{sd:9.4f}{tail:9.3f}" if name != "synthesis" else ""
        print(f"{name:16s}{cost:12.0f}{rate(backward(function), few):15.0f}   {row}")


if __name__ == "__main__":
    main()
