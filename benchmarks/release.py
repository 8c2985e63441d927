"""The released networks: 26 bands at once against a loop over bands, one thread; and the cost of the released flux errors.

    python benchmarks/release.py

Rates are medians of seven, the engines taking turns so that a busy machine is busy for all; ratios are medians of the seven ratios.
The loop is written as the networks are published, one after the other, without a record for gradients; the columns "recording" and
"gradient" are the same loop as the released code runs it (weights that want gradients), and followed by a pass back to the parameters.

What can be won: fused or not, a galaxy costs 26 x (15 x 128 + 3 x 128 x 128 + 128) multiply-adds in matrix products and 26 x 513 sigmoids.
A processor core at full speed needs half of the loop's time at batch 1,000 for the products alone (last lines of the table), so there no
evaluation of these networks can win more than a factor of two; at small batches, where a loop mostly waits for its own calls, fusing does.
"""

import statistics
import time

import torch

from popcosmos_lib import bands, cosmology, data, filters, parameters, pickles, release, universe

BATCHES = (1, 10, 100, 1000, 4000)
_REPEATS = 7
_LAYERS = 5


class Loop:
    """The published networks one by one, in plain torch."""

    def __init__(self):
        folder = data.shared("popcosmos_release/trained_models/photulator_models")
        self.states = [pickles.tensors(pickles.read(folder / f"model_4x128_alsing20_{band}_cpu.pt")) for band in filters.COSMOS26]

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


def main():
    """Print the tables."""
    torch.set_num_threads(1)
    loop, fused = Loop(), release.photulators()
    recording = loop.recording()
    galaxies = universe.sample(BATCHES[-1], torch.Generator().manual_seed(0))
    with torch.no_grad():
        apart = (fused.magnitudes(galaxies) - loop.magnitudes(galaxies)).abs().max()
    print(f"26 bands at once against a loop over bands: largest difference {apart:.1e} mag over {len(galaxies)} galaxies")
    heads = ("loop /s", "fused /s", "ratio", "recording /s", "ratio", "gradient /s", "fused /s", "ratio")
    print(f"{'batch':>7s}" + "".join(f"{head:>13s}" for head in heads))
    for batch in BATCHES:
        theta = galaxies[:batch]
        plain = compare(without_record(loop.magnitudes), without_record(fused.magnitudes), theta)
        record = compare(recording.magnitudes, without_record(fused.magnitudes), theta)
        slope = compare(backward(loop.magnitudes), backward(fused.magnitudes), theta)
        print(f"{batch:7d}" + "".join(f"{x:13.0f}" if x > 30 else f"{x:13.2f}" for x in (*plain, record[0], record[2], *slope)))

    work = 2 * len(filters.COSMOS26) * (15 * 128 + 3 * 128**2 + 128)
    square, few = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0)), galaxies[:1000]
    engines = (lambda _: square @ square, lambda _: loop.magnitudes(few))
    product, slow = (statistics.median(column) for column in zip(*seconds([without_record(f) for f in engines], None), strict=True))
    peak = 2 * 1024**3 / product
    print(f"a galaxy costs {work / 1e6:.2f} Mflop of products; this core multiplies large matrices at {peak / 1e9:.0f} Gflop/s,")
    print(f"so they alone allow {peak / work:.0f} galaxies/s: {peak / work * slow / 1000:.2f} times the loop at batch 1,000")

    errors = release.noise_model()
    with torch.no_grad():
        magnitude = bands.asinh_magnitude(filters.flux_from_magnitude(fused.magnitudes(galaxies[:2048])), errors.softening)
    u = torch.randn(magnitude.shape, generator=torch.Generator().manual_seed(1))
    exact = errors.from_base(magnitude, u, steps=512).log()
    print(f"\nflux errors, whose ln sigma scatters by {exact.std(0).median():.2f}")
    print(f"{'steps':>7s}{'galaxies/s':>13s}{'rms error of ln sigma':>24s}")
    for steps in (16, 32, 64):
        (cost,) = zip(*seconds([lambda given, steps=steps: errors.from_base(given, u, steps)], magnitude), strict=True)
        wrong = (errors.from_base(magnitude, u, steps).log() - exact).pow(2).mean().sqrt()
        print(f"{steps:7d}{len(magnitude) / statistics.median(cost):13.0f}{wrong:24.4f}")


if __name__ == "__main__":
    main()
