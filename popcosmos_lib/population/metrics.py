"""Scores of photometric redshifts and posteriors, and distances between two samples.

Introduced in notebooks 05 (samples) and 08 (redshifts).

References
----------
Thorp et al. (2025), arXiv:2506.12122, sect. 4.3 (redshift scores) and appendix D (PP, QQ); Schmidt et al. (2020),
arXiv:2001.03621 (PIT, CDE loss; the outlier rule of RAIL); Gneiting & Raftery (2007), JASA 102, 359 (CRPS); Lemos et al. (2023),
arXiv:2302.03026 (TARP); Lopez-Paz & Oquab (2017), arXiv:1610.06545 (classifier two-sample test).
"""

import math

import torch
from scipy import stats
from torch import nn

from popcosmos_lib.population.optimal_transport import sliced_wasserstein

__all__ = [
    "binomial_range",
    "c2st",
    "cde_loss",
    "coverage",
    "crps",
    "ks",
    "ks_limit",
    "outlying",
    "photoz",
    "pit",
    "pp_qq",
    "sliced_wasserstein",
    "tarp",
]


def outlying(z_phot, z_spec):
    """Which estimated redshifts are outliers: |z_phot - z_spec| > 0.15 (1 + z_spec); not those where either is not finite."""
    return (z_phot - z_spec).abs() > 0.15 * (1 + z_spec)


def photoz(z_phot, z_spec):
    """Scores of point redshifts; dz = (z_phot - z_spec) / (1 + z_spec).

    Parameters
    ----------
    z_phot, z_spec : Tensor of shape (n,)
        Estimated and true redshift; pairs in which one is not finite are left out.

    Returns
    -------
    dict of str to float
        ``n``; ``median`` = median(dz); ``sigma_mad`` = 1.48 median|dz| (Thorp+25: no recentring); ``nmad`` = 1.4826
        median|dz - median(dz)|; ``outliers`` = share that is ``outlying``; ``outliers_rail`` = share of |dz| > max(0.06, 3 sigma_IQR), with
        sigma_IQR = (q75 - q25) / 1.349 of dz.

    Raises
    ------
    ValueError
        If no pair is finite.
    """
    dz = (z_phot - z_spec) / (1 + z_spec)
    both = torch.isfinite(dz)
    dz = dz[both].double()
    if not len(dz):
        raise ValueError("no galaxy has both redshifts; give finite z_phot and z_spec")
    median = dz.median()
    low, high = dz.quantile(torch.tensor([0.25, 0.75]).to(dz))
    return {
        "n": len(dz),
        "median": float(median),
        "sigma_mad": float(1.48 * dz.abs().median()),
        "nmad": float(1.4826 * (dz - median).abs().median()),
        "outliers": float(outlying(z_phot, z_spec)[both].double().mean()),
        "outliers_rail": float((dz.abs() > max(0.06, 3 * float(high - low) / 1.349)).double().mean()),
    }


def pit(draws, truth, weights=None):
    """Probability integral transform: the share of each posterior below the truth.

    Parameters
    ----------
    draws : Tensor of shape (n, k)
        Posterior draws of one quantity.
    truth : Tensor of shape (n,)
    weights : Tensor of shape (n, k), optional
        Of the draws, adding up to one for each; equal ones by default.

    Returns
    -------
    Tensor of shape (n,)
        Uniform on (0, 1) if the posteriors are calibrated; ties count half.
    """
    below = (draws < truth[:, None]).double() + 0.5 * (draws == truth[:, None]).double()
    return below.mean(1) if weights is None else (below * weights).sum(1)


def crps(draws, truth):
    """Continuous ranked probability score: E|x - truth| - E|x - x'| / 2 over independent pairs of draws, = ∫(F(x) - 1[x >= truth])^2 dx.

    Parameters
    ----------
    draws : Tensor of shape (n, k)
        Posterior draws of one quantity.
    truth : Tensor of shape (n,)

    Returns
    -------
    Tensor of shape (n,)
        In the unit of the quantity; the smaller the better, |x - truth| for a point.
    """
    ordered, k = draws.double().sort(-1).values, draws.shape[1]
    rank = 2 * torch.arange(1, k + 1, dtype=torch.float64, device=draws.device) - k - 1
    pairs = (ordered * rank).sum(-1) / (k * (k - 1))  # half the mean distance of two different draws
    return (ordered - truth[:, None]).abs().mean(-1) - pairs


def cde_loss(draws, truth):
    """Conditional-density loss E[∫p(x)^2 dx - 2 p(truth)], least for the true density of x given the data.

    p is the sum of Gaussians on the draws, of the width that is best for a normal density, 1.06 sigma k^(-1/5) with the smaller of the
    standard deviation and the interquartile range over 1.349; with Gaussians the integral has a closed form.

    Parameters
    ----------
    draws : Tensor of shape (n, k)
        Posterior draws of one quantity.
    truth : Tensor of shape (n,)

    Returns
    -------
    float
        In units of one over the quantity; lower is better, an unknown constant apart.
    """
    x, k = draws.double(), draws.shape[1]
    low, high = x.quantile(torch.tensor([0.25, 0.75]).to(x), dim=1)
    width = (1.06 * k**-0.2 * torch.minimum(x.std(1), (high - low) / 1.349).clamp_min(1e-4))[:, None]

    def density(distance, scale):
        return torch.exp(-0.5 * (distance / scale) ** 2) / (scale * math.sqrt(2 * math.pi))

    at_truth = density(x - truth[:, None], width).mean(1)
    squared = torch.stack([density(one[:, None] - one, math.sqrt(2) * scale).mean() for one, scale in zip(x, width, strict=True)])
    return float((squared - 2 * at_truth).mean())


def tarp(draws, truth, *, generator):
    """Credibility of the truth in balls about random points (TARP): uniform if posteriors are right in all dimensions together.

    Each quantity is scaled by its spread over the truths; reference points are uniform in the box that holds the truths.

    Parameters
    ----------
    draws : Tensor of shape (n, k, d)
        Posterior draws.
    truth : Tensor of shape (n, d)
    generator : torch.Generator
        Of the reference points.

    Returns
    -------
    Tensor of shape (n,)
        Share of each posterior that lies nearer to the reference point than the truth.
    """
    low, high = truth.amin(0), truth.amax(0)
    point = low + (high - low) * torch.rand(truth.shape, generator=generator).to(truth)
    scale = truth.std(0)
    nearer = ((draws - point[:, None]) / scale).norm(dim=-1) < ((truth - point) / scale).norm(dim=-1)[:, None]
    return nearer.double().mean(1)


def coverage(draws, truth, level=0.68):
    """How many truths lie inside the central interval of their posterior.

    Parameters
    ----------
    draws : Tensor of shape (n, k, ...)
        Posterior draws.
    truth : Tensor of shape (n, ...)
    level : float
        Content of the interval.

    Returns
    -------
    Tensor of shape (...)
        Number of galaxies.
    """
    low, high = draws.quantile(draws.new_tensor([0.5 - level / 2, 0.5 + level / 2]), dim=1)
    return ((truth > low) & (truth < high)).sum(0)


def binomial_range(n, p, confidence=0.99):
    """Smallest and largest count to expect of ``n`` trials of probability ``p``, at a confidence; two ints."""
    low, high = stats.binom.interval(confidence, n, p)
    return int(low), int(high)


def ks(x, y=None):
    """Kolmogorov-Smirnov distance.

    Parameters
    ----------
    x : Tensor of shape (n,)
    y : Tensor of shape (m,), optional
        Second sample; the uniform distribution on (0, 1) by default.

    Returns
    -------
    float
        Largest difference of the two distribution functions.
    """
    x = x.detach().double().cpu().numpy()
    if y is None:
        return float(stats.kstest(x, "uniform").statistic)
    result = stats.ks_2samp(x, y.detach().double().cpu().numpy(), method="asymp")  # the exact p-value, not used, takes seconds
    return float(result.statistic)


def ks_limit(n, confidence=0.99):
    """The distance from uniform that ``n`` uniform draws exceed with probability 1 - ``confidence``."""
    return float(stats.kstwo.ppf(confidence, n))


def pp_qq(x, y, p):
    """Two samples of one quantity compared at the quantiles of the first.

    Parameters
    ----------
    x, y : Tensor of shape (n,) and (m,)
    p : Tensor of shape (k,)
        Probabilities.

    Returns
    -------
    pp : Tensor of shape (k,)
        Share of ``y`` below the p-quantile of ``x``, minus p.
    qq : Tensor of shape (k,)
        p-quantile of ``y`` minus that of ``x``, in the unit of the quantity.
    """
    at = x.quantile(p)
    return torch.searchsorted(y.sort().values, at) / len(y) - p, y.quantile(p) - at


def c2st(x, y, *, generator, epochs=25, width=128, folds=3):
    """Classifier two-sample test: how often a small network tells the two samples apart.

    Parameters
    ----------
    x, y : Tensor of shape (n, d) and (m, d)
        The samples; the larger is cut at random to the size of the smaller.
    generator : torch.Generator
        Order, weights and batches.
    epochs : int
        Passes over the training galaxies of each fold.
    width : int
        Units of the two hidden layers.
    folds : int
        Each galaxy is classified once, by a network that has not seen it.

    Returns
    -------
    float
        Accuracy: 0.5 for samples of one distribution, 1 for separate ones. Its sampling error is 0.5 / sqrt(2 n).
    """
    n = min(len(x), len(y))
    x, y = (rows[torch.randperm(len(rows), generator=generator)[:n]] for rows in (x, y))
    both, label = _whitened(torch.cat([x, y])), torch.cat([torch.zeros(n), torch.ones(n)])
    fold = torch.randint(folds, (2 * n,), generator=generator)
    right = 0.0
    for k in range(folds):
        net = _classifier(both.shape[1], width, generator)
        _train(net, both[fold != k], label[fold != k], epochs, generator)
        with torch.no_grad():
            right += float(((net(both[fold == k])[:, 0] > 0) == (label[fold == k] > 0.5)).sum())
    return right / (2 * n)


def _whitened(x):
    """Rows without outliers, rotated to unit covariance: a colour, the small difference of two like magnitudes, weighs as much as a sum."""
    low, middle, high = x.double().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    x = ((x.double() - middle) / (high - low).clamp_min(1e-12)).clamp(-10, 10)
    values, vectors = torch.linalg.eigh(torch.cov(x.T).reshape(x.shape[1], -1))
    return ((x - x.mean(0)) @ vectors / values.clamp_min(1e-9).sqrt()).clamp(-10, 10).float()


def _train(net, x, label, epochs, generator, batch=256):
    """Adam with a rate that rises and falls."""
    steps = max(1, epochs * len(x) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps + 1)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(x), (batch,), generator=generator)
            loss = nn.functional.binary_cross_entropy_with_logits(net(x[rows])[:, 0], label[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def _classifier(d, width, generator):
    """Two hidden layers whose weights come from ``generator``, not from the global state."""
    layers = [nn.Linear(d, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)]
    with torch.no_grad():
        for layer in layers[::2]:
            bound = 1 / math.sqrt(layer.in_features)
            layer.weight.copy_((2 * torch.rand(layer.weight.shape, generator=generator) - 1) * bound)
            layer.bias.zero_()
    return nn.Sequential(*layers)
