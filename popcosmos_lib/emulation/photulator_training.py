"""Training of the photometry emulator, on galaxies synthesised on the way. Introduced in notebook 02.

References
----------
Alsing et al. (2020), arXiv:1911.11778, sect. 2 (activation) and 3 (photometry); Thorp et al. (2025), arXiv:2506.12122, sect. 3.2.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from popcosmos_lib.emulation import training
from popcosmos_lib.emulation.inputs import tabulate
from popcosmos_lib.emulation.photulator import FAINT, Emulator, normalisation, regions, residuals, robust_sigma
from popcosmos_lib.emulation.training_sets import draw
from popcosmos_lib.galaxies import universe

if TYPE_CHECKING:
    from popcosmos_lib.synthesis.sps import Synthesiser

__all__ = ["train"]

_BLOCK = 16_384  # rows synthesised at a time
_KNEE = 0.003  # where the loss turns from quadratic to linear [mag]
_NARROW = 0.05  # least width by which an input is divided: shares of light that are zero in most galaxies stay small
_HELD_OUT, _GLANCE = 20_000, 4_000  # population-like galaxies that measure the error kept with the weights, and the learning curve
_FEWEST = 50  # galaxies that measure the error of a region


def train(
    synthesiser: Synthesiser, *, n_train: int, steps: int, generator: torch.Generator, hidden: Sequence[int] = (128, 128, 128),
    batch: tuple[int, int] = (256, 2048), rate: float = 3e-3, pool: int = 500_000, device: str | None = None,
) -> tuple[Emulator, list[dict]]:  # fmt: skip
    """Train an emulator of a synthesiser, on galaxies that are synthesised during the training.

    The loss is close to the absolute error, so that a few difficult galaxies do not dominate; its weight fades beyond ``FAINT``. At most
    ``pool`` galaxies are held at a time; if ``n_train`` is larger, the oldest are replaced at a steady pace.

    Parameters
    ----------
    synthesiser : sps.Synthesiser
        Teacher; a copy of it goes to ``device``.
    n_train : int
        Galaxies synthesised in all.
    steps, batch, rate : int, (int, int), float
        As for ``training.optimise``.
    generator : torch.Generator
        On the CPU.
    hidden : sequence of int
        Units of the hidden layers.
    pool : int
        Galaxies held at a time.
    device : str, optional
        Where to train; by default CUDA if available.

    Returns
    -------
    emulator : Emulator
        With ``error`` measured on fresh population-like galaxies.
    history : list of dict
        ``step``, ``loss`` [mag, mean since the last entry], ``sigma`` [mag, median over bands of the robust error on held-out galaxies].
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    synthesiser = copy.deepcopy(synthesiser).to(device)
    emulator = Emulator(synthesiser.bands, tabulate(synthesiser), hidden, generator).to(device)
    generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    pool = _Pool(emulator, synthesiser, min(pool, n_train), generator)
    emulator.shift.copy_(pool.inputs.mean(0))
    emulator.scale.copy_(pool.inputs.std(0).clamp_min(_NARROW))
    held_out = universe.sample(_HELD_OUT, generator)
    truth = synthesiser.magnitudes(held_out)
    truth = torch.where(truth < FAINT, truth, torch.nan)

    fresh = (n_train - pool.size) // _BLOCK  # blocks still to be synthesised, at a steady pace

    def loss(step, size):
        if step * fresh // steps > (step - 1) * fresh // steps:
            pool.renew()
        return pool.loss(emulator, size)

    def score():
        return {"sigma": float(_error(emulator, held_out[:_GLANCE], truth[:_GLANCE]).median())}

    history = training.optimise(emulator.network, loss, score, steps=steps, batch=batch, rate=rate, label="emulator")
    emulator.error.copy_(_error(emulator, held_out, truth))
    emulator.regional.copy_(_regional(emulator, synthesiser, draw(2 * _HELD_OUT, generator)))
    return emulator.eval().requires_grad_(False), history


@torch.no_grad()
def _error(emulator, theta, truth):
    return robust_sigma(emulator.magnitudes(theta) - truth)


def _regional(emulator, synthesiser, theta):
    """Robust error (5, 4, n_band) in the regions [mag]; where too few galaxies are bright enough, that of all of them."""
    error, region = residuals(emulator, synthesiser, theta), regions(theta)
    table = robust_sigma(error).expand_as(emulator.regional).clone()
    for where in torch.cartesian_prod(*[torch.arange(size) for size in table.shape[:2]]).tolist():
        inside = error[(region[0] == where[0]) & (region[1] == where[1])]
        enough = inside.isfinite().sum(0) >= _FEWEST
        if enough.any():
            table[where[0], where[1], enough] = robust_sigma(inside[:, enough])
    return table


class _Pool:
    """Synthesised galaxies on the training device, with the features of the emulator; the oldest block is replaced on demand."""

    def __init__(self, emulator, synthesiser, size, generator):
        self.emulator, self.synthesiser, self.size, self.generator, self.oldest = emulator, synthesiser, size, generator, 0
        parts = [self._block(min(_BLOCK, size - start)) for start in range(0, size, _BLOCK)]
        self.inputs, self.continuum, self.lines, self.target, self.weight = (torch.cat(columns) for columns in zip(*parts, strict=True))

    @torch.no_grad()
    def _block(self, n):
        theta = draw(n, self.generator)
        apparent = self.synthesiser.magnitudes(theta)
        return *self.emulator.features(theta), apparent - normalisation(theta), torch.sigmoid((FAINT + 0.5 - apparent) / 0.25)

    def renew(self):
        """Replace the oldest block."""
        stop = min(self.oldest + _BLOCK, self.size)
        block = self._block(stop - self.oldest)
        for kept, new in zip((self.inputs, self.continuum, self.lines, self.target, self.weight), block, strict=True):
            kept[self.oldest : stop] = new
        self.oldest = stop % self.size

    def loss(self, emulator, n):
        """Weighted mean error of a random batch [mag]."""
        rows = torch.randint(self.size, (n,), generator=self.generator, device=self.generator.device)
        error = emulator(self.inputs[rows], self.continuum[rows], self.lines[rows]) - self.target[rows]
        return (self.weight[rows] * (torch.sqrt(error**2 + _KNEE**2) - _KNEE)).mean()
