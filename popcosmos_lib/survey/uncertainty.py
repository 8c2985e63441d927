"""Flux errors of a survey: the distribution of the 26 errors of a galaxy with given magnitudes.

`TwoDepths` is the closed form that makes the built-in mock; `UncertaintyModel` is a mixture-density network that learns it from a
catalogue's own errors, and `joint_errors.ConditionalDiffusion`, on top of it, how the bands belong together. All offer ``sample(flux,
generator)`` or, for common random numbers, ``sample(flux, draws=...)`` with ``width`` normal draws per galaxy.

A simulation needs the errors of galaxies with noiseless fluxes, but a catalogue has noisy ones. A network that sees all 26 noisy magnitudes
recognises a noisy galaxy by its irregular spectrum, and then predicts too small errors for the smooth spectra of the simulation. The error
of a band therefore depends on the magnitude in that band only. Introduced in notebook 03.

References
----------
Alsing et al. (2024) sect. 3.4 (one Gaussian per band); Thorp et al. (2025) sect. 3.4 (a conditional diffusion model, for two depths).
"""

import math

import torch
from torch import nn
from tqdm import trange

from popcosmos_lib.survey.photometry import BANDS, asinh_magnitude

__all__ = ["TwoDepths", "UncertaintyModel", "pit", "train"]

_GROUPS = {"u": 0.45, "nir": 0.40, "irac": 0.16}  # fraction of galaxies on the shallow tiles, fitted as the columns of the band table
_SHARED = 0.6  # share of the variance of ln sigma at fixed flux that all bands have in common (size and crowding of the galaxy)
_CHUNK = 2048  # rows evaluated at once; small chunks stay in the processor's cache


def _normal(flux, width, generator, draws):
    if draws is None:
        draws = torch.randn(len(flux), width, generator=generator, device=flux.device)
    if draws.shape != (len(flux), width):
        raise ValueError(f"draws must have shape ({len(flux)}, {width}), {width} per galaxy; got {tuple(draws.shape)}")
    return draws.to(flux)


class TwoDepths:
    """Errors of a survey whose u, near-infrared and IRAC images have deep and shallow tiles: the truth of the mock.

    ln sigma = ln sigma_deep + growth ln(1 + F / (knee sigma_deep)) + step if the tile is shallow + scatter. The second term
    stands for photon noise and for the larger area that a brighter galaxy covers; a part of the scatter is common to all
    bands. Constants: the band table.
    """

    width = 26 + 1 + len(_GROUPS)

    def sample(self, flux, generator=None, draws=None):
        """Draw errors; see `UncertaintyModel.sample`."""
        draws = _normal(flux, self.width, generator, draws)
        bands = {k: v.to(flux) for k, v in BANDS.items() if torch.is_tensor(v)}
        log_sigma = (0.4 * (23.9 - bands["depth"])) * math.log(10) - math.log(3)
        log_sigma = log_sigma + bands["growth"] * torch.log1p(flux.clamp_min(0) / (bands["knee"] * log_sigma.exp()))
        own, common, tiles = draws[:, :26], draws[:, 26:27], draws[:, 27:]
        log_sigma = log_sigma + bands["scatter"] * (math.sqrt(_SHARED) * common + math.sqrt(1 - _SHARED) * own)
        for i, (name, fraction) in enumerate(_GROUPS.items()):
            member = torch.tensor([group == name for group in BANDS["group"]], device=flux.device)
            shallow = torch.special.ndtr(tiles[:, i : i + 1]) < fraction
            log_sigma = log_sigma + bands["step"] * member * shallow
        return log_sigma.exp()


class Learned(nn.Module):
    """What the two networks share: how they are called."""

    width = 26

    def sample(self, flux, generator=None, draws=None):
        """Draw errors for galaxies of given flux.

        Parameters
        ----------
        flux : Tensor of shape (n, 26)
            Noiseless flux [µJy]; the result is differentiable in it. NaN = missing.
        generator : torch.Generator, optional
            Source of the draws where ``draws`` is not given.
        draws : Tensor of shape (n, width), optional
            Standard normal draws, kept fixed by a calibration so that its loss is a smooth function of its parameters.

        Returns
        -------
        Tensor of shape (n, 26)
            Error [µJy]: a continuous function of flux and draws.

        Raises
        ------
        ValueError
            If the draws do not have one row per galaxy.
        """
        draws = _normal(flux, self.width, generator, draws)
        return torch.cat([self._sample(f, d) for f, d in zip(flux.split(_CHUNK), draws.split(_CHUNK), strict=True)])


class UncertaintyModel(Learned):
    """Mixture-density networks: p(ln sigma_b | asinh magnitude in b), bands tied by a Gaussian copula.

    Each band has its own small network and sees its own magnitude only.

    Parameters
    ----------
    hidden : int
        Units in each of the two hidden layers of a band.
    components : int
        Gaussians per band: one is the model of Alsing et al. (2024), two follow tiles of two depths.
    generator : torch.Generator, optional
        Source of the initial weights.
    """

    def __init__(self, hidden=32, components=2, *, generator=None):
        super().__init__()
        self.components = components
        sizes = [(1, hidden), (hidden, hidden), (hidden, 3 * components)]
        self.weights = nn.ParameterList([torch.randn(26, i, o, generator=generator) * math.sqrt(2 / i) for i, o in sizes])
        self.biases = nn.ParameterList([torch.zeros(26, 1, o) for _, o in sizes])
        with torch.no_grad():
            self.weights[-1].mul_(0.1)
            apart = torch.linspace(-1, 1, components + 2)[1:-1] * 1.5  # the means start at different places
            self.biases[-1][..., components : 2 * components] = apart
        for name in ("magnitude_shift", "magnitude_scale", "log_sigma_shift", "log_sigma_scale"):
            self.register_buffer(name, torch.full((26,), float(name.endswith("scale"))))
        self.register_buffer("copula", torch.eye(26))  # Cholesky factor of the correlation of normal scores between bands

    def _mixture(self, flux):
        """Log weights, means and log widths of the standardised ln sigma, each (n, 26, components). A missing band enters at its mean."""
        x = (asinh_magnitude(flux) - self.magnitude_shift) / self.magnitude_scale
        x = torch.nan_to_num(x.clamp(-5.0, 5.0)).T[..., None]  # beyond what was trained the errors of the edge are kept
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x if i == 0 else nn.functional.silu(x), weight)
        weight, mean, log_width = x.transpose(0, 1).unflatten(-1, (3, self.components)).unbind(2)
        return torch.log_softmax(weight, -1), mean, log_width.clamp(-5.0, 2.0)

    def _standard(self, sigma):
        return ((sigma.log() - self.log_sigma_shift) / self.log_sigma_scale)[..., None]

    @staticmethod
    def _density(x, log_weight, mean, log_width):
        terms = log_weight - 0.5 * ((x - mean) / log_width.exp()) ** 2 - log_width - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(terms, -1)

    @staticmethod
    def _cumulative(x, log_weight, mean, log_width):
        return (log_weight.exp() * torch.special.ndtr((x - mean) / log_width.exp())).sum(-1)

    def log_prob(self, flux, sigma):
        """Log density of ln sigma in each band.

        Parameters
        ----------
        flux, sigma : Tensor of shape (n, 26)
            Flux and its error [µJy]; NaN = missing.

        Returns
        -------
        Tensor of shape (n, 26)
            ln p(ln sigma_b | flux) [nat]; NaN where sigma is.
        """
        return self._density(self._standard(sigma), *self._mixture(flux)) - self.log_sigma_scale.log()

    def cdf(self, flux, sigma):
        """Probability integral transform of each error, (n, 26): uniform on 0-1 if the model is right. Arguments as `log_prob`."""
        return self._cumulative(self._standard(sigma), *self._mixture(flux))

    def joint_log_prob(self, flux, sigma):
        """Log density of the 26 ln sigma together under the copula, (n,) [nat]; no band may be missing. Arguments as `log_prob`."""
        score = torch.special.ndtri(self.cdf(flux, sigma).clamp(1e-6, 1 - 1e-6))
        free = torch.linalg.solve_triangular(self.copula, score.T, upper=False).T
        tied = 0.5 * (score**2 - free**2).sum(-1) - self.copula.diagonal().log().sum()
        return self.log_prob(flux, sigma).sum(-1) + tied

    def _sample(self, flux, draws):
        """The mixture is inverted, no component is switched. The gradient is bounded between two well separated depths, where the true
        one diverges."""
        mixture = self._mixture(flux)
        with torch.no_grad():
            wanted = torch.special.ndtr(draws @ self.copula.T).clamp(1e-5, 1 - 1e-5)
            _, mean, log_width = mixture
            low, high = (mean - 5 * log_width.exp()).amin(-1), (mean + 5 * log_width.exp()).amax(-1)
            for _ in range(30):
                middle = 0.5 * (low + high)
                below = self._cumulative(middle[..., None], *mixture) < wanted
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            root = 0.5 * (low + high)
            slope = self._density(root[..., None], *mixture).exp().clamp_min(0.02)
        # one step from the root is zero in value and carries the gradient of the implicit function
        miss = self._cumulative(root[..., None], *mixture)
        root = root - (miss - miss.detach()) / slope
        return (root * self.log_sigma_scale + self.log_sigma_shift).exp()


def train(flux, sigma, steps, generator, *, hidden=32, components=2, batch=512, rate=3e-3):
    """Fit the network to a catalogue's own fluxes and errors.

    Parameters
    ----------
    flux, sigma : Tensor of shape (n, 26)
        Observed flux and its error [µJy]; NaN = missing.
    steps : int
        Adam steps, learning rate falling to zero as a cosine.
    generator : torch.Generator
        Initial weights and batches.
    hidden, batch : int
    rate : float
        Initial learning rate.

    Returns
    -------
    model : UncertaintyModel
    history : Tensor of shape (steps,)
        Training loss, mean -ln p per band [nat].

    Raises
    ------
    ValueError
        If an error is not positive: its logarithm is what is learned.
    """
    flux, sigma, usable = measured(flux, sigma)
    model = UncertaintyModel(hidden, components, generator=generator)
    standardise(model, "magnitude", asinh_magnitude(flux))
    standardise(model, "log_sigma", sigma.log())
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    history = torch.zeros(steps)
    for step in trange(steps, desc="uncertainty", disable=None):
        rows = torch.randint(len(flux), (batch,), generator=generator)
        known = usable[rows]
        loss = -model.log_prob(flux[rows], torch.where(known, sigma[rows], 1.0))[known].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        history[step] = loss.detach()
    _fit_copula(model, flux, sigma)
    return model.eval(), history


def measured(flux, sigma):
    """Flux and error in float32, NaN where either is missing, and which are not."""
    usable = flux.isfinite() & sigma.isfinite()
    if not (sigma[usable] > 0).all():
        raise ValueError(f"{int((sigma[usable] <= 0).sum())} flux errors are not positive: mark those bands as missing (NaN) first")
    return torch.where(usable, flux, torch.nan).float(), torch.where(usable, sigma, torch.nan).float(), usable


def standardise(model, name, values):
    """Set the buffers ``name_shift`` and ``name_scale`` to the mean and the spread of the values (n, k); NaN = missing."""
    shift = values.nanmean(0)
    getattr(model, f"{name}_shift").copy_(shift.nan_to_num())
    getattr(model, f"{name}_scale").copy_((values - shift).square().nanmean(0).sqrt().nan_to_num(1.0).clamp_min(1e-3))


def covariance(x):
    """Second moments (k, k) in float64 of centred values (n, k), over the galaxies that have both; made positive definite."""
    known, filled = x.isfinite().double(), x.nan_to_num().double()
    value, vector = torch.linalg.eigh((filled.T @ filled) / (known.T @ known).clamp_min(1.0))
    return (vector * value.clamp_min(1e-3)) @ vector.T


@torch.no_grad()
def pit(model, flux, sigma, generator, draws=20):
    """Probability integral transform of each error by its rank among draws, for any model.

    Parameters
    ----------
    model : object with ``sample``
    flux, sigma : Tensor of shape (n, 26)
        Flux and its error [µJy].
    generator : torch.Generator
        Source of the draws, and of the place within a rank, so that a calibrated model gives exactly uniform values.
    draws : int
        Draws per galaxy; with too few, two ridges cannot be told from one broad one.

    Returns
    -------
    Tensor of shape (n, 26)
        Uniform on (0, 1) if the model is right.
    """
    rank = sum((model.sample(flux, generator=generator) < sigma).float() for _ in range(draws))
    return (rank + torch.rand(rank.shape, generator=generator)) / (draws + 1)


@torch.no_grad()
def _fit_copula(model, flux, sigma):
    """Correlation between bands of the normal scores of the errors; a galaxy on a shallow tile is shallow in the whole group."""
    scores = torch.cat([model.cdf(f, s) for f, s in zip(flux.split(_CHUNK), sigma.split(_CHUNK), strict=True)])
    tied = covariance(torch.special.ndtri(scores.clamp(1e-5, 1 - 1e-5)))
    spread = tied.diagonal().sqrt()
    model.copula.copy_(torch.linalg.cholesky(tied / (spread[:, None] * spread)))
