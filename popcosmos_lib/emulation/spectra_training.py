"""Training of the spectrum emulator. Introduced in notebook 02.

References
----------
Alsing et al. (2020), arXiv:1911.11778, sect. 2 and 3.
"""

import copy

import torch

from popcosmos_lib.emulation import training
from popcosmos_lib.emulation.spectra import BLOCK, QUANTILES, UNIT, Spectra, powers, residuals, synthesised, tabulate
from popcosmos_lib.emulation.training_sets import draw
from popcosmos_lib.galaxies import universe

__all__ = ["train"]

_FITTED = 16_384  # spectra from which the linear map and the components are computed
_KNEE = 0.002  # where the loss turns from quadratic to linear [ln]
_NARROW = 0.05  # least width by which an input is divided
_DIM = 1e-30  # [1e-15 Lsun/Hz/Msun] least luminosity of a pixel for a spectrum to be learned from: float32 ends soon below
_RIDGE = 1e-6  # of the least squares, against coefficients that cancel each other
_HELD_OUT = 4000  # population-like galaxies that measure the error kept with the weights


def train(synthesiser, *, n_train, steps, generator, hidden=(128, 128, 128), components=50, batch=(256, 2048), rate=6e-3, device=None):
    """Train an emulator of the spectra of a synthesiser.

    The linear map and the principal components come from the first spectra; of all others only their components are kept. The loss is
    close to the mean over galaxies of the root-mean-square error of ln L_nu over the pixels.

    Parameters
    ----------
    synthesiser : sps.Synthesiser
        Teacher; a copy of it goes to ``device``.
    n_train : int
        Galaxies synthesised, drawn by ``training_sets.draw``.
    steps, batch, rate : int, (int, int), float
        As for ``training.optimise``.
    generator : torch.Generator
        On the CPU.
    hidden : sequence of int
        Units of the hidden layers.
    components : int
        Principal components.
    device : str, optional
        Where to train; by default CUDA if available.

    Returns
    -------
    emulator : Spectra
        With ``error`` measured on fresh population-like galaxies.
    history : list of dict
        ``step``, ``loss`` [ln, mean since the last entry], ``missed`` [ln, 99 % of the held-out galaxies have a smaller root-mean-square
        error over the pixels, truncation of the components left out].
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    synthesiser = copy.deepcopy(synthesiser).to(device)
    emulator = Spectra(tabulate(synthesiser), hidden, components, generator).to(device)
    generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    theta = draw(n_train, generator)[torch.randperm(n_train, generator=generator, device=device)]
    _fit(emulator, *_concatenated(_examples(emulator, synthesiser, theta[:_FITTED])))
    inputs, target = _library(emulator, synthesiser, theta)
    held_out = universe.sample(_HELD_OUT, generator)
    held_inputs, held_target = _library(emulator, synthesiser, held_out)

    def loss(step, size):
        rows = torch.randint(len(inputs), (size,), generator=generator, device=device)
        square = _mean_square(emulator, inputs[rows], target[rows])
        return (torch.sqrt(square + _KNEE**2) - _KNEE).mean()

    @torch.no_grad()
    def score():
        return {"missed": float(_mean_square(emulator, held_inputs, held_target).quantile(0.99).sqrt())}

    history = training.optimise(emulator.network, loss, score, steps=steps, batch=batch, rate=rate, label="spectra")
    error = residuals(emulator, synthesiser, held_out).abs()
    emulator.error.copy_(torch.nanquantile(error, error.new_tensor(QUANTILES), dim=0))
    return emulator.eval().requires_grad_(False), history


def _mean_square(emulator, inputs, target):
    return ((emulator(inputs) - target) ** 2).sum(-1) / len(emulator.wave)


def _library(emulator, synthesiser, theta):
    """Inputs of the network, and the components that it shall predict."""
    examples = _examples(emulator, synthesiser, theta)
    return _concatenated((inputs, (rest - cells @ emulator.linear) @ emulator.basis.T) for inputs, cells, rest in examples)


def _concatenated(parts):
    return [torch.cat(column) for column in zip(*parts, strict=True)]


@torch.no_grad()
def _examples(emulator, synthesiser, theta):
    """Block by block, for galaxies bright enough in every pixel for float32: inputs, cells, ln L_nu without diffuse dust and level."""
    for block in torch.cat([torch.full_like(theta[:, :1], UNIT), theta[:, 1:]], -1).split(BLOCK[theta.device.type]):
        light = synthesised(emulator, synthesiser, block)
        bright = light.amin(-1) > _DIM
        block, light = block[bright], light[bright]
        inputs, level, cells = emulator.features(block)
        yield inputs, cells, light.log() - level + powers(block) @ emulator.curves


def _fit(emulator, inputs, cells, rest):
    """Linear map from cells to pixels by least squares, principal components of what it leaves, and scales of the network."""
    square = cells.double().T @ cells.double()
    square.diagonal().add_(_RIDGE * len(cells))  # the middle cell is zero by construction
    emulator.linear.copy_(torch.linalg.solve(square, cells.double().T @ rest.double()))
    left = rest - cells @ emulator.linear
    _, vectors = torch.linalg.eigh((left.T @ left).double())
    emulator.basis.copy_(vectors.T.flip(0)[: emulator.components])
    emulator.spread.copy_((left @ emulator.basis.T).std(0))
    emulator.shift.copy_(inputs.mean(0))
    emulator.scale.copy_(inputs.std(0).clamp_min(_NARROW))
