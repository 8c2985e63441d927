"""The photometry emulator: 16 parameters to 26 magnitudes, differentiable, in a fraction of the time of the synthesis.

``features`` computes a first estimate; one fully connected network with the trainable activation of Speculator learns what is left of the
continuum. Normalisation is exact: the network sees unit mass, and N = mu(z) - 2.5 log10 M is added. Introduced in notebook 02.

References
----------
Alsing et al. (2020), arXiv:1911.11778, sect. 2 (activation) and 3 (photometry); Thorp et al. (2025), arXiv:2506.12122, sect. 3.2.
"""

import copy
import math

import torch
from torch import nn
from tqdm import tqdm

from popcosmos_lib import cosmology, filters, parameters, passbands, priors, store, universe
from popcosmos_lib.features import Features, magnitude, tabulate

__all__ = ["FAINT", "Emulator", "Speculator", "draw", "having", "jacobian", "load", "residuals", "restore", "robust_sigma", "train"]

FAINT = 30.0  # apparent magnitude beyond which an object counts neither in the loss nor in the quoted errors [mag]
_CHUNK = {"cpu": 4096, "cuda": 65_536}  # rows evaluated at once: few enough for a processor's cache, enough for a GPU
_BLOCK = 16_384  # rows synthesised at a time
_KNEE = 0.003  # where the loss turns from quadratic to linear [mag]
_NARROW = 0.05  # least width by which an input is divided: shares of light that are zero in most galaxies stay small
_ENTRIES = 40  # in the learning curve
_HELD_OUT, _GLANCE = 20_000, 4_000  # population-like galaxies that measure the error kept with the weights, and the learning curve
# Edges of the regions in which the error is kept apart: attenuation and intergalactic absorption are what makes a galaxy hard.
_REGIONS = {"z": (0.5, 1.0, 2.0, 3.5), "dust2": (0.3, 1.0, 2.0)}
_FEWEST = 50  # galaxies that measure the error of a region


class Speculator(nn.Module):
    """Fully connected network with the activation [gamma + (1 - gamma) sigmoid(beta x)] x on its hidden layers.

    Parameters
    ----------
    widths : sequence of int
        Units per layer, inputs and outputs included.
    generator : torch.Generator, optional
        Source of the initial weights.

    References
    ----------
    Alsing et al. (2020), eq. 8. Unlike in the public photulators the output layer is linear.
    """

    def __init__(self, widths, generator=None):
        super().__init__()
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.weights = nn.ParameterList([torch.randn(i, o, generator=generator) * math.sqrt(2.0 / i) for i, o in pairs])
        self.biases = nn.ParameterList([torch.zeros(o) for _, o in pairs])
        self.betas = nn.ParameterList([torch.ones(o) for o in widths[1:-1]])
        self.gammas = nn.ParameterList([torch.zeros(o) for o in widths[1:-1]])
        nn.init.zeros_(self.weights[-1])  # training starts from the first estimate itself

    def forward(self, x):
        for weight, bias, beta, gamma in zip(self.weights, self.biases, self.betas, self.gammas, strict=False):
            x = torch.addmm(bias, x, weight)
            x = x * (gamma + (1 - gamma) * torch.sigmoid(beta * x))
        return torch.addmm(self.biases[-1], x, self.weights[-1])


class Emulator(nn.Module):
    """Apparent magnitudes from parameters: a computed first estimate and a learned correction to its continuum.

    Parameters
    ----------
    bands : sequence of str
    tables : dict of str to Tensor
        From ``features.tabulate``.
    hidden : sequence of int
        Units of the hidden layers.
    generator : torch.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    bands : list of str
        In the order of the magnitudes.
    error : Tensor of shape (n_band,)
        Robust standard deviation against the synthesis, on held-out population-like galaxies [mag]; NaN before training.
    regional : Tensor of shape (5, 4, n_band)
        The same in bins of redshift and dust2, on held-out galaxies drawn like the training set, so that it holds in the corners too.
    """

    def __init__(self, bands, tables, hidden, generator=None):
        super().__init__()
        self.bands, self.hidden = list(bands), list(hidden)
        self.features = Features(tables)
        self.network = Speculator([self.features.size, *hidden, len(self.bands)], generator)
        self.register_buffer("shift", torch.zeros(self.features.size))
        self.register_buffer("scale", torch.ones(self.features.size))
        self.register_buffer("error", torch.full((len(self.bands),), math.nan))
        shape = [len(edges) + 1 for edges in _REGIONS.values()]
        self.register_buffer("regional", torch.full((*shape, len(self.bands)), math.nan))

    def magnitudes(self, theta):
        """Apparent magnitudes of a batch.

        Parameters
        ----------
        theta : Tensor of shape (..., 16)
            SPS parameters in the order of ``parameters.NAMES``. Nothing is checked beyond the shape, for speed: outside the bounds the
            network extrapolates. The mass only scales the light.

        Returns
        -------
        Tensor of shape (..., n_band)
            Apparent AB magnitude before noise, with the type of ``theta``; differentiable, with finite gradients at dust2 = 0 too.

        Raises
        ------
        ValueError
            If the last axis is not 16 long.
        """
        if theta.shape[-1:] != (len(parameters.NAMES),):
            raise ValueError(f"theta needs the {len(parameters.NAMES)} columns of parameters.NAMES; got shape {tuple(theta.shape)}")
        rows = theta.reshape(-1, theta.shape[-1]).to(self.shift)
        chunks = rows.split(_CHUNK[rows.device.type])
        unit_mass = torch.cat([self(*self.features(chunk)) for chunk in chunks])
        return unit_mass.reshape(*theta.shape[:-1], -1).to(theta) + _normalisation(theta)

    def lines(self, theta):
        """Luminosities of the 44 lines of ``lines.CALIBRATED``, the ones whose strengths the calibration scales.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)

        Returns
        -------
        Tensor of shape (n, 44)
            After the galaxy's own dust, of all its mass [Lsun]; tables of the synthesis, not learned.
        """
        rows = theta.to(self.shift)
        return 10.0 ** parameters.column(rows, "log10M_formed")[:, None] * self.features.lines(rows)

    def line_flux(self, theta):
        """What each of the 44 lines adds to the flux of each band, (n, 44, n_band) [microjansky], after the intergalactic medium.

        A line whose strength is off by a fraction beta changes the flux of a band by beta times this (Thorp+25 sect. 3.4).
        """
        rows = theta.to(self.shift)
        flux = self.features.line_flux(rows)
        return filters.flux_from_magnitude(passbands.AB_ZERO + _normalisation(rows))[..., None] * flux

    def errors(self, theta):
        """Error of the emulator where galaxies are, (n, n_band) [mag]: ``regional`` of the bin of each, as the likelihood wants it."""
        return self.regional[_region(theta)].to(theta)

    def forward(self, inputs, continuum, lines):
        """Magnitudes for N = 0 from what ``Features`` returns, (n, n_band) [mag]."""
        correction = self.network((inputs - self.shift) / self.scale)
        return magnitude(continuum * torch.exp(-0.4 * math.log(10) * correction) + lines)

    def settings(self):
        """What ``restore`` needs beside the state to build this emulator again; plain values."""
        return {"bands": self.bands, "hidden": self.hidden}


def _region(theta):
    """Bins of ``_REGIONS`` in which galaxies lie, one index tensor (n,) for each parameter."""
    return tuple(
        torch.bucketize(parameters.column(theta, name).contiguous(), torch.tensor(edges).to(theta)) for name, edges in _REGIONS.items()
    )


def _normalisation(theta):
    """N = mu(z) - 2.5 log10 M_formed, shape (..., 1) [mag]."""
    return (cosmology.distance_modulus(parameters.column(theta, "z")) - 2.5 * parameters.column(theta, "log10M_formed"))[..., None]


def load(kind="photometry", profile="published"):
    """A trained emulator.

    Parameters
    ----------
    kind : {"photometry", "spectra", "survey"}
        The 26 bands; rest-frame spectra, see ``spectra.Spectra``; or the bands of the other surveys that notebook 02 was asked for.
    profile : str
        ``"published"``, trained at full size and shipped with the package, or the profile in which notebook 02 trained another.

    Returns
    -------
    Emulator or spectra.Spectra
        On the CPU, in evaluation mode, its parameters frozen.

    Raises
    ------
    ValueError
        If the kind is unknown.
    store.Missing
        If there are no such weights; the message says which command makes them.
    """
    from popcosmos_lib import spectra  # it is built on this module

    kinds = {"photometry": ("emulator", restore), "spectra": ("spectra", spectra.restore), "survey": ("emulator_survey", restore)}
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}; got {kind!r} (the profile is the second argument)")
    name, restored = kinds[kind]
    return restored(store.load(name, profile))


def having(bands, profile="published"):
    """The trained emulator whose bands include these, or None.

    Parameters
    ----------
    bands : collection of str
        Names, as ``filters.load`` takes them.
    profile : str
        As for ``load``.

    Returns
    -------
    Emulator or None
    """
    for kind in ("photometry", "survey"):
        try:
            found = load(kind, profile)
        except store.Missing:
            continue
        if set(bands) <= set(found.bands):
            return found
    return None


def restore(artefact):
    """The emulator of a ``store.Artefact``, ready for evaluation."""
    tables = {name.removeprefix("features."): table for name, table in artefact.data.items() if name.startswith("features.")}
    emulator = Emulator(artefact.meta["bands"], tables, artefact.meta["hidden"])
    emulator.load_state_dict(artefact.data)
    return emulator.eval().requires_grad_(False)


def draw(n, generator):
    """Training draws: half like the literature universe, a quarter uniform in the bounds, a quarter in between.

    The last quarter is the library of the Prospector-like prior, where the fits of later notebooks begin. In the uniform quarter dust2 is
    uniform in its square root, as in the training set of the public networks.

    Parameters
    ----------
    n : int
        Number of draws.
    generator : torch.Generator
        Its device is that of the draws.

    Returns
    -------
    Tensor of shape (n, 16)
        SPS parameters, float32, in no particular order.
    """
    quarter = n // 4
    uniform = priors.Broad().sample(quarter, generator)
    dust2, top = parameters.INDEX["dust2"], float(parameters.BOUNDS[parameters.INDEX["dust2"], 1])
    uniform[:, dust2] = uniform[:, dust2] ** 2 / top
    return torch.cat([universe.sample(n - 2 * quarter, generator), uniform, priors.Prospector().library(quarter, generator)])


def jacobian(magnitudes, theta):
    """Derivatives of a function of each row such as ``model.magnitudes``, (n, n_band, 16) [mag per unit of each parameter]."""
    theta = theta.detach().clone().requires_grad_(True)
    columns = magnitudes(theta).sum(0)
    return torch.stack([torch.autograd.grad(column, theta, retain_graph=True)[0] for column in columns], 1)


def residuals(emulator, synthesiser, theta):
    """Emulated minus synthesised magnitudes.

    Parameters
    ----------
    emulator : Emulator
    synthesiser : sps.Synthesiser
        On the same device.
    theta : Tensor of shape (n, 16)
        SPS parameters.

    Returns
    -------
    Tensor of shape (n, n_band)
        Difference [mag]; NaN where the synthesised galaxy is fainter than ``FAINT``.
    """
    with torch.no_grad():
        truth = synthesiser.magnitudes(theta)
        return torch.where(truth < FAINT, emulator.magnitudes(theta) - truth, torch.nan)


def robust_sigma(error):
    """Half the distance between the 15.87 and 84.13 percentiles over the first axis, NaN left out."""
    low, high = torch.nanquantile(error, torch.tensor([0.1587, 0.8413]).to(error), dim=0)
    return 0.5 * (high - low)


def train(synthesiser, *, n_train, steps, generator, hidden=(128, 128, 128), batch=(256, 2048), rate=3e-3, pool=500_000, device=None):
    """Train an emulator of a synthesiser, on galaxies synthesised on the way.

    The loss is close to the absolute error, so that the few galaxies that are hard do not decide for all; its weight fades beyond
    ``FAINT``. Batches grow and the learning rate follows one cycle. At most ``pool`` galaxies are held at a time: where more are asked for,
    the oldest are replaced at a steady pace, so the training set is as large as patience allows.

    Parameters
    ----------
    synthesiser : sps.Synthesiser
        Teacher; a copy of it goes to ``device``.
    n_train : int
        Galaxies synthesised in all.
    steps : int
        Optimiser steps; their number, not time, ends the training.
    generator : torch.Generator
        On the CPU.
    hidden : sequence of int
        Units of the hidden layers.
    batch : (int, int)
        First and last batch size; geometric in between.
    rate : float
        Peak learning rate.
    pool : int
        Galaxies held at a time.
    device : str, optional
        Where to train; CUDA if it is there, by default.

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
    optimiser = torch.optim.Adam(emulator.network.parameters(), rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    history, losses = [], []
    for step in tqdm(range(steps), disable=None, desc="emulator"):
        if step * fresh // steps > (step - 1) * fresh // steps:
            pool.renew()
        loss = pool.loss(emulator, round(batch[0] * (batch[1] / batch[0]) ** (step / steps)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cycle.step()
        losses.append(loss.detach())
        if (step + 1) % max(1, steps // _ENTRIES) == 0:
            sigma = _error(emulator, held_out[:_GLANCE], truth[:_GLANCE]).median()
            history.append({"step": step + 1, "loss": float(torch.stack(losses).mean()), "sigma": float(sigma)})
            losses.clear()
    emulator.error.copy_(_error(emulator, held_out, truth))
    emulator.regional.copy_(_regional(emulator, synthesiser, draw(2 * _HELD_OUT, generator)))
    return emulator.eval().requires_grad_(False), history


@torch.no_grad()
def _error(emulator, theta, truth):
    return robust_sigma(emulator.magnitudes(theta) - truth)


def _regional(emulator, synthesiser, theta):
    """Robust error (5, 4, n_band) in the regions [mag]; where too few galaxies are bright enough, that of all of them."""
    error, region = residuals(emulator, synthesiser, theta), _region(theta)
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
        return *self.emulator.features(theta), apparent - _normalisation(theta), torch.sigmoid((FAINT + 0.5 - apparent) / 0.25)

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
