"""Calibrating a population: posterior draws for every galaxy of a catalogue, then transport of mock photometry onto the catalogue's.

Nothing here sees the truth of a mock: only observed fluxes and their errors. Introduced in notebook 04.

References
----------
Alsing et al. (2024), arXiv:2402.00935 sect. 4 (optimal transport with fixed base draws); Neal (2011), arXiv:1206.1901
(Hamiltonian Monte Carlo).
"""

import copy
import math

import torch
from scipy.stats import ks_2samp
from tqdm import tqdm

from popcosmos_lib import likelihood, parameters, transport
from popcosmos_lib.bands import asinh_magnitude
from popcosmos_lib.filters import SHORT

__all__ = ["OBJECTIVES", "Closure", "calibrate", "posterior_draws"]

OBJECTIVES = {"sliced": transport.sliced_wasserstein, "sinkhorn": transport.sinkhorn}
_ROWS = 8192  # mock galaxies evaluated at once: larger chunks fall out of cache
_GALAXIES = 2048  # sampled at once on a CPU: their networks' activations stay in cache
_TARGET = 0.75  # acceptance aimed at
_DIFFERENCE = 0.01  # step of the finite differences behind the metric, in units of the latent
_STUDENT_INFORMATION = 0.6  # (nu + 1) / (nu + 3) for nu = 2: Fisher information of a Student-t location, in 1 / scale^2


def posterior_draws(theta, flux, flux_err, *, emulator, prior, generator, trajectories=50, leapfrogs=8, keep=4, floor=0.0):
    """Draws from each galaxy's posterior by Hamiltonian Monte Carlo, from a fit.

    Each galaxy is whitened by its own Gauss-Newton metric at the start, and has its own step, tuned over the first 60 %
    of the trajectories. Chains are local: a galaxy stays in the redshift mode that its start found.

    Parameters
    ----------
    theta : Tensor of shape (n, 16)
        Starting points, such as maximum-posterior fits.
    flux, flux_err : Tensor of shape (n, n_band)
        Photometry and errors [µJy]; a band where either is not finite is left out.
    emulator : object with ``magnitudes(theta)``
    prior : Prospector or Broad
        Supplies ``log_prob(phi)`` and ``sample``.
    generator : torch.Generator
    trajectories, leapfrogs : int
        Length of the chain, and gradients per trajectory.
    keep : int
        States kept, evenly spread over the second half of the chain.
    floor : float or Tensor of shape (n_band,)
        Fractional floor of the model flux; the emulator's error is added.

    Returns
    -------
    draws : Tensor of shape (n, keep, 16)
        theta.
    acceptance : Tensor of shape (n,)
        Mean acceptance of each galaxy over the second half.
    """
    floor = likelihood.fractional_error(floor, emulator).to(flux)
    spread = _core_width(parameters.to_latent(prior.sample(4096, generator).to(flux)))
    size = _GALAXIES if theta.device.type == "cpu" else 16 * _GALAXIES
    chunks = list(zip(theta.split(size), flux.split(size), flux_err.split(size), strict=True))
    parts = [
        _chains(parameters.to_latent(t), f, e, emulator, prior, spread, floor, generator, trajectories, leapfrogs, keep)
        for t, f, e in tqdm(chunks, desc="posteriors", disable=None)
    ]
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def _core_width(phi):
    """Robust standard deviation of each column."""
    quartiles = phi.quantile(phi.new_tensor([0.25, 0.75]), dim=0)
    return (quartiles[1] - quartiles[0]) / 1.349


def _whitening(phi, flux, flux_err, emulator, spread, floor):
    """Matrices A, (n, 16, 16), such that phi0 + A z has roughly unit covariance in z: inverse root of the Gauss-Newton metric."""
    with torch.no_grad():
        magnitude = likelihood.photometry(emulator, parameters.to_theta(phi))
        slopes = []
        for k in range(phi.shape[-1]):
            moved = phi.clone()
            moved[:, k] += _DIFFERENCE
            slopes.append((likelihood.photometry(emulator, parameters.to_theta(moved)) - magnitude) / _DIFFERENCE)
        jacobian = torch.stack(slopes, -1).nan_to_num(0.0, 0.0, 0.0).double()  # (n, band, 16)
        model = likelihood.model_flux(magnitude)
        scale = (flux_err**2 + (floor * model) ** 2).sqrt()
        weight = _STUDENT_INFORMATION * (0.4 * math.log(10) * model / scale) ** 2  # per mag^2
        weight = torch.where(torch.isfinite(flux) & torch.isfinite(flux_err), weight, 0.0).double()
        metric = jacobian.mT @ (weight[..., None] * jacobian) + torch.diag(spread.double() ** -2)
        root = torch.linalg.cholesky(metric)
        identity = torch.eye(phi.shape[-1], dtype=root.dtype, device=root.device).expand_as(root)
        return torch.linalg.solve_triangular(root.mT, identity, upper=True).to(phi)


def _chains(start, flux, flux_err, emulator, prior, spread, floor, generator, trajectories, leapfrogs, keep):
    whiten = _whitening(start, flux, flux_err, emulator, spread, floor)
    random = {"generator": generator, "device": generator.device}

    def latent(z):
        return start + (whiten @ z[..., None])[..., 0]

    def value_and_slope(z):
        z = z.detach().requires_grad_()
        phi = latent(z)
        magnitude = likelihood.photometry(emulator, parameters.to_theta(phi))
        log_p = likelihood.log_likelihood(magnitude, flux, flux_err, floor) + prior.log_prob(phi)
        return log_p.detach(), torch.autograd.grad(log_p.sum(), z)[0].nan_to_num(0.0, 0.0, 0.0)

    z = torch.zeros_like(start)
    log_p, slope = value_and_slope(z)
    step = torch.full_like(log_p, 0.1)
    wanted = {trajectories - 1 - (i * trajectories) // (2 * keep) for i in range(keep)}
    kept, acceptance = [], torch.zeros_like(log_p)
    for t in range(trajectories):
        momentum = torch.randn(start.shape, **random).to(start)
        energy = log_p - 0.5 * (momentum**2).sum(-1)
        length = (step * (0.8 + 0.4 * torch.rand(len(start), **random).to(start)))[:, None]
        new, new_slope = z, slope
        for _ in range(leapfrogs):
            momentum = momentum + 0.5 * length * new_slope
            new = new + length * momentum
            new_log_p, new_slope = value_and_slope(new)
            momentum = momentum + 0.5 * length * new_slope
        odds = (new_log_p - 0.5 * (momentum**2).sum(-1) - energy).nan_to_num(-torch.inf, -torch.inf, -torch.inf).clamp_max(0.0).exp()
        taken = torch.rand(len(start), **random).to(start) < odds
        z, slope = torch.where(taken[:, None], new, z), torch.where(taken[:, None], new_slope, slope)
        log_p = torch.where(taken, new_log_p, log_p)
        if t < 0.6 * trajectories:
            step = (step * torch.exp(0.6 * (odds - _TARGET) / (1 + t) ** 0.3)).clamp(0.005, 1.0)
        if t >= trajectories // 2:
            acceptance += odds / (trajectories - trajectories // 2)
        if t in wanted:
            kept.append(parameters.to_theta(latent(z)))
    return torch.stack(kept, 1), acceptance


def calibrate(population, forward, flux, *, generator, objective="sliced", iterations=60, batch=1024, lr=1e-4, inside=0.2, every=10):
    """Move a population so that its mock photometry lies on a catalogue's.

    The loss is the distance plus a second term, -ln P(selected | theta), that pulls back the galaxies which a smooth density
    leaks across the sharp limit of the catalogue; without it the cheapest way to lower the distance is to leak more. Base
    draws are fixed, so the loss is a smooth function of the weights. A third of the catalogue is held out and the weights
    of the smallest held-out loss are kept. A falling distance is no proof of a better redshift distribution: few and small
    steps are taken.

    Parameters
    ----------
    population : Population
        Calibrated in place.
    forward : ForwardModel
        Parameters to photometry.
    flux : Tensor of shape (n, 26)
        Observed flux of the selected catalogue [µJy], finite.
    generator : torch.Generator
        Base draws, batches and directions.
    objective : {"sliced", "sinkhorn"}
        Distance on 26 standardised asinh magnitudes and 25 colours.
    iterations, batch, lr : int, int, float
        Adam steps, mock galaxies a step, and rate (cosine to zero).
    inside : float
        Weight of the second term.
    every : int
        Steps between held-out scores.

    Returns
    -------
    history : dict of str to list
        ``iteration``; held out, ``loss`` and its first part ``distance`` (sliced W2 whatever the objective); ``mean_z`` of the mock
        and the fraction ``selected``.

    Raises
    ------
    ValueError
        If the objective is unknown.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")
    cut = (2 * len(flux)) // 3
    features = transport.Features(asinh_magnitude(flux[:cut]))
    data, held = features(asinh_magnitude(flux[:cut])), features(asinh_magnitude(flux[cut:]))
    size = max(8 * batch, len(held))
    base = torch.randn(size, 16, generator=generator, device=generator.device).to(flux)
    draws = forward.draws(size, generator)

    def mock(rows):
        theta = population.from_base(base[rows])
        seen = forward(theta, type(draws)(*(d[rows] for d in draws)))
        return theta, seen, features(asinh_magnitude(seen.flux[seen.selected]))

    def record(step):
        with torch.no_grad():
            parts = [mock(rows) for rows in torch.arange(size).split(_ROWS)]
            missed = torch.cat([-forward.log_selected(part[1]) for part in parts]).mean()
        cloud, passed = torch.cat([part[2] for part in parts]), torch.cat([part[1].selected for part in parts])
        z = parameters.column(torch.cat([part[0] for part in parts]), "z")[passed]
        distance = transport.sliced_wasserstein(cloud, held)
        scores = step, float(distance + inside * missed), float(distance), float(z.mean()), float(passed.float().mean())
        for name, value in zip(history, scores, strict=True):
            history[name].append(value)

    history = {name: [] for name in ("iteration", "loss", "distance", "mean_z", "selected")}
    record(0)
    best = copy.deepcopy(population.state_dict())
    population.requires_grad_(True)
    optimiser = torch.optim.Adam(population.net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / iterations)))
    for step in tqdm(range(1, iterations + 1), desc=f"transport ({objective})", disable=None):
        target = data
        if objective == "sinkhorn":  # its cost is a matrix
            target = data[_rows(len(data), batch, generator)]
        _, seen, cloud = mock(_rows(size, batch, generator))
        loss = OBJECTIVES[objective](cloud, target, generator=generator) - inside * forward.log_selected(seen).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % every == 0 or step == iterations:
            record(step)
            if history["loss"][-1] == min(history["loss"]):
                best = copy.deepcopy(population.state_dict())
    population.load_state_dict(best)
    population.requires_grad_(False)
    return history


def _rows(n, size, generator):
    return torch.randint(n, (size,), generator=generator, device=generator.device)


class Closure:
    """Scores of a population against galaxies whose truth is known: the half of a mock that calibration never saw.

    Parameters
    ----------
    flux : Tensor of shape (n, 26)
        Observed flux of the selected galaxies [µJy].
    theta : Tensor of shape (n, 16)
        Their true parameters.
    """

    BINS = 4  # quartiles of observed r - i

    def __init__(self, flux, theta):
        magnitude = asinh_magnitude(flux)
        self.features = transport.Features(magnitude)
        self.cloud, self.z = self.features(magnitude), parameters.column(theta, "z")
        self.edges = self._colour(magnitude).quantile(torch.linspace(0, 1, self.BINS + 1)[1:-1].to(flux))
        self.bins = torch.bucketize(self._colour(magnitude), self.edges)

    @staticmethod
    def _colour(magnitude):
        return magnitude[:, SHORT.index("r")] - magnitude[:, SHORT.index("i")]

    def __call__(self, flux, theta):
        """Scores of mock galaxies.

        Parameters
        ----------
        flux : Tensor of shape (m, 26)
            Observed flux of the selected mock galaxies [µJy].
        theta : Tensor of shape (m, 16)
            Their parameters.

        Returns
        -------
        dict of str to float
            ``sliced_w2`` of 51 standardised features; ``ks_z``; ``mean_z``, the error of the mean redshift over (1 + z);
            ``worst_bin``, the largest such error in quartiles of r - i.
        """
        magnitude, z = asinh_magnitude(flux), parameters.column(theta, "z")
        bins = torch.bucketize(self._colour(magnitude), self.edges)
        errors = [self._error(z[bins == b], self.z[self.bins == b]) for b in range(self.BINS)]
        return {
            "sliced_w2": float(transport.sliced_wasserstein(self.features(magnitude), self.cloud)),
            "ks_z": float(ks_2samp(z.cpu().numpy(), self.z.cpu().numpy()).statistic),
            "mean_z": self._error(z, self.z),
            "worst_bin": max(errors, key=abs),
        }

    @staticmethod
    def _error(z, truth):
        return float((z.mean() - truth.mean()) / (1 + truth.mean()))
