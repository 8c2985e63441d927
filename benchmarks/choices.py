"""Which choices of the photometry emulator help: one small training, and the same with exactly one thing changed.

    python benchmarks/choices.py [FILE]

Every row trains ``emulator.train`` on one thread from the same seed (the second baseline apart) and is scored where brighter than
emulator.FAINT, on the same fresh galaxies of the universe and on draws uniform in the bounds. A change is a patch that holds while its row
is made; the library has no option for it. Times are CPU seconds, so that other jobs of the machine weigh little. Writes FILE
(benchmarks/results/choices.json), which REPRODUCING reads.
"""

import json
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.emulation import emulator, inputs, photulator, photulator_training
from popcosmos_lib.galaxies import parameters, priors, universe
from popcosmos_lib.synthesis import lines, sps
from popcosmos_lib.workflow import tables

ROOT = Path(__file__).resolve().parents[1]
SIZE = {"n_train": 60_000, "steps": 2_500, "hidden": (128, 128, 128)}
N_TEST, N_SCALING, ROUNDS = 10_000, 16_384, 5


@dataclass
class Choice:
    """One row: what differs from the baseline. ``patches`` are (owner, attribute, replacement); ``size`` replaces entries of ``SIZE``."""

    name: str
    changed: str
    patches: tuple = ()
    size: dict = field(default_factory=dict)
    seed: int = 0

    def apply(self):
        """Context in which the patches hold."""
        stack = ExitStack()
        for owner, attribute, replacement in self.patches:
            stack.enter_context(patch.object(owner, attribute, replacement))
        return stack


class Bare(inputs.Features):
    """No first estimate: the inputs are the 15 parameters that are not the mass, and log10(1 + z)."""

    def __init__(self, tables):
        super().__init__(tables)
        self.size = len(parameters.NAMES)

    def forward(self, theta):
        nothing = theta.new_zeros(len(theta), len(self.effective))
        return torch.cat([theta[:, 1:], torch.log10(1 + parameters.column(theta, "z"))[:, None]], -1), nothing, nothing


class Plain(emulator.Emulator):
    """The magnitudes themselves from the network, as in Alsing+20: ``targets`` are their mean and width, by which it is scaled."""

    def __init__(self, *arguments, targets):
        super().__init__(*arguments)
        self.register_buffer("centre", targets[0])
        self.register_buffer("width", targets[1])

    def forward(self, inputs, continuum, lines):
        return self.centre + self.width * self.network((inputs - self.shift) / self.scale)


class Silu(emulator.Speculator):
    """The activation x sigmoid(x), where the trainable one starts, with nothing to train in it."""

    def forward(self, x):
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.nn.functional.silu(torch.addmm(bias, x, weight))
        return torch.addmm(self.biases[-1], x, self.weights[-1])


class Averaged(torch.optim.Adam):
    """Adam that leaves, after its last step, an exponential moving average of the weights; while it is young, their mean."""

    def __init__(self, *arguments, decay, steps):
        super().__init__(*arguments)
        self.decay, self.steps, self.taken = decay, steps, 0
        self.weights = self.param_groups[0]["params"]
        self.average = [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        self.taken += 1
        torch._foreach_lerp_(self.average, self.weights, max(1 - self.decay, 1 / self.taken))
        if self.taken == self.steps:
            torch._foreach_copy_(self.weights, self.average)


def dark(luminosity, wave, z, response, start):
    """In place of ``lines.band_flux``: no line adds anything."""
    return luminosity.new_zeros(len(luminosity), response.shape[-1])


def uniform(n, generator):
    """Like the uniform quarter of ``emulator.draw``, dust2 uniform in its square root."""
    theta, dust2 = priors.Broad().sample(n, generator), parameters.INDEX["dust2"]
    theta[:, dust2] = theta[:, dust2] ** 2 / float(parameters.BOUNDS[dust2, 1])
    return theta


@torch.no_grad()
def targets(synthesiser):
    """Mean and standard deviation per band [mag] of magnitudes for N = 0, over training draws brighter than ``FAINT``."""
    theta = emulator.draw(N_SCALING, torch.Generator().manual_seed(9))
    apparent = synthesiser.magnitudes(theta)
    bands = (apparent - parameters.to_latent(theta)[:, :1]).T
    counted = [band[seen] for band, seen in zip(bands, (apparent < emulator.FAINT).T, strict=True)]
    return torch.stack([band.mean() for band in counted]), torch.stack([band.std() for band in counted])


def choices(scaling):
    """The rows, the baseline first. ``scaling`` is what ``targets`` returns."""
    plain = ((photulator, "Features", Bare), (photulator_training, "Emulator", partial(Plain, targets=scaling)))
    unlit = SimpleNamespace(matched=lines.matched, band_flux=dark)
    adam = [partial(Averaged, decay=decay, steps=SIZE["steps"]) for decay in (0.99, 0.998)]
    return [
        Choice("baseline", "The choices of the library at a small size."),
        Choice("baseline again", "Another seed: other initial weights and galaxies.", seed=1),
        Choice("inputs", "No computed first estimate: parameters and log10(1 + z) in, magnitudes out.", plain),
        Choice("lines", "Emission lines left out of the first estimate, so the network must learn them.", ((inputs, "lines", unlit),)),
        Choice("loss", "Mean square error (quadratic to 1 mag) instead of nearly absolute.", ((photulator_training, "_KNEE", 1.0),)),
        Choice("sampling, uniform", "All training galaxies uniform in the bounds.", ((photulator_training, "draw", uniform),)),
        Choice(
            "sampling, universe", "All training galaxies from the literature universe.", ((photulator_training, "draw", universe.sample),)
        ),
        Choice("averaging, 100", "Moving average of the weights over the last 100 steps, on top.", ((torch.optim, "Adam", adam[0]),)),
        Choice("averaging, 500", "Moving average over the last 500 steps, on top.", ((torch.optim, "Adam", adam[1]),)),
        Choice("activation", "SiLU instead of the trainable activation.", ((photulator, "Speculator", Silu),)),
        Choice("width, 64", "Half as many units in each hidden layer.", size={"hidden": (64, 64, 64)}),
        Choice("width, 256", "Twice as many units in each hidden layer.", size={"hidden": (256, 256, 256)}),
        Choice("data, 15,000", "A quarter of the galaxies, as many steps.", size={"n_train": 15_000}),
        Choice("data, 240,000", "Four times the galaxies, as many steps.", size={"n_train": 240_000}),
        Choice("steps, 10,000", "Four times the steps, as many galaxies.", size={"steps": 10_000}),
    ]


def measure(choice, synthesiser, galaxies, corners):
    """Train one choice and score it.

    Returns
    -------
    dict
        ``sigma``, ``sd``, ``tail`` (99.9 % are within) on ``galaxies`` and ``corners`` (robust sigma there), each [median band, worst band]
        in mag; ``cpu_s`` of the training [s]; ``rate`` [galaxies per CPU second].
    """
    with choice.apply():
        began = time.process_time()
        generator = torch.Generator().manual_seed(choice.seed)
        model, _ = emulator.train(synthesiser, **SIZE | choice.size, generator=generator, device="cpu")
        spent = time.process_time() - began
        error = emulator.residuals(model, synthesiser, galaxies)
        outside = emulator.residuals(model, synthesiser, corners)
        rate = 1 / statistics.median(_cost(model, galaxies) for _ in range(ROUNDS))
    bands = {
        "sigma": emulator.robust_sigma(error),
        "sd": torch.stack([band[band.isfinite()].std() for band in error.T]),
        "tail": torch.nanquantile(error.abs(), 0.999, dim=0),
        "corners": emulator.robust_sigma(outside),
    }
    scores = {name: [float(band.median()), float(band.max())] for name, band in bands.items()}
    return {"choice": choice.name, "changed": choice.changed, **scores, "cpu_s": spent, "rate": rate}


@torch.no_grad()
def _cost(model, theta):
    """Time that one galaxy of a batch takes [CPU s]."""
    began = time.process_time()
    model.magnitudes(theta)
    return (time.process_time() - began) / len(theta)


def main(target):
    """Measure, write ``target``, print the table."""
    torch.set_num_threads(1)
    made = provenance.benchmark(store.home())
    synthesiser = sps.load()
    galaxies = universe.sample(N_TEST, torch.Generator().manual_seed(10))
    corners = priors.Broad().sample(N_TEST, torch.Generator().manual_seed(11))
    content = {
        "what": "photometry emulators trained small on one thread, one choice changed at a time; errors [median band, worst band] in mag",
        **made,
        "size": SIZE | {"n_test": N_TEST},
        "rows": [],
    }
    for choice in choices(targets(synthesiser)):
        row = measure(choice, synthesiser, galaxies, corners)
        content["rows"].append(row)
        print(f"{choice.name}: sigma {row['sigma'][0]:.4f} mag in the median band, {row['cpu_s']:.0f} CPU s; {choice.changed}", flush=True)
        store.write_text(target, json.dumps(content, indent=1) + "\n")  # after every row, so that a run cut short leaves its rows
    print(tables.choices(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "choices.json")
