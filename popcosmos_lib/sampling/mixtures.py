"""Mixtures of Student-t distributions, fitted to weighted draws: the proposals of ``importance``.

One mixture for each of many targets, all evaluated at once; each has a wide normal as a defensive component. Introduced in notebook 07.

References
----------
Cappe et al. (2008), arXiv:0710.4242 (mixtures of t by importance sampling).
"""

import math
from typing import NamedTuple

import torch

__all__ = ["WIDE", "Mixture", "effective", "fit", "log_wide"]

WIDE = 1.1  # width of the defensive normal
_DEFENSIVE = 0.1  # its weight: each round draws from it as well
_NU = 16.0  # degrees of freedom of the components
_COMPONENTS = 2
_ITERATIONS = 4  # of the fit of a mixture
_FITTED = 2048  # draws it is fitted to, those of the largest weight
_LEAST = 120.0  # effective draws that a fit needs; weights are tempered until there are as many
_COOLEST = 1 / 128  # least exponent tried, and the resolution of it
_SHRINK = 30.0  # draws that the common covariance counts for in that of each component


class Mixture(NamedTuple):
    """Mixtures of Student-t components with a defensive normal, one for each of g targets.

    Attributes
    ----------
    log_weight : Tensor of shape (g, c)
    mean : Tensor of shape (g, c, d)
    factor : Tensor of shape (g, c, d, d)
        Lower Cholesky factors of the scale matrices.
    """

    log_weight: torch.Tensor
    mean: torch.Tensor
    factor: torch.Tensor

    def _whitened(self, w):
        """Squared distances of w (g, n, d) from the components (g, c, n), and ln det of the factors (g, c)."""
        inverse = torch.linalg.inv(self.factor)  # (g, c, d, d)
        y = (inverse.flatten(1, 2) @ w.mT).unflatten(1, self.mean.shape[1:]) - inverse @ self.mean[..., None]
        return y.square().sum(2), self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def terms(self, w):
        """ln of weight x density of each t component at w (g, n, d), and the squared distance from it: (g, c, n) each."""
        d = w.shape[-1]
        distance, volume = self._whitened(w)
        constant = math.lgamma((_NU + d) / 2) - math.lgamma(_NU / 2) - d / 2 * math.log(_NU * math.pi)
        return (self.log_weight - volume + constant)[..., None] - 0.5 * (_NU + d) * torch.log1p(distance / _NU), distance

    def log_prob(self, w):
        """ln density at w (g, n, d), defensive part included: (g, n)."""
        t = self.terms(w)[0].logsumexp(1)
        return torch.logaddexp(t + math.log(1 - _DEFENSIVE), log_wide(w) + math.log(_DEFENSIVE))

    def sample(self, n, random):
        """Draws (g, n, d) from ``random``, a `rng.Streams`."""
        d = self.mean.shape[-1]
        normal, uniform = random.normal(n, d + int(_NU)), random.uniform(n)
        wide = uniform < _DEFENSIVE
        cumulative = self.log_weight.exp().cumsum(-1)
        c = torch.searchsorted(cumulative, (uniform - _DEFENSIVE).clamp_min(0.0) / (1 - _DEFENSIVE)).clamp_max(cumulative.shape[-1] - 1)
        spread = (_NU / normal[..., d:].square().sum(-1, keepdim=True)).sqrt()
        rows = torch.arange(len(c), device=c.device)[:, None]
        factor, mean = self.factor[rows, c], self.mean[rows, c]
        t = mean + (factor @ normal[..., :d, None])[..., 0] * spread
        return torch.where(wide[..., None], WIDE * normal[..., :d], t)

    def of(self, rows):
        """The mixtures of some targets."""
        return Mixture(*(x[rows] for x in self))


def log_wide(w):
    """ln density of the defensive normal at w (..., d): (...)."""
    d = w.shape[-1]
    return -0.5 * (w / WIDE).square().sum(-1) - d * math.log(WIDE) - d / 2 * math.log(2 * math.pi)


def effective(log_weight):
    """Effective number of draws (Kish) of weights (..., n): (...)."""
    return torch.exp(2 * log_weight.logsumexp(-1) - (2 * log_weight).logsumexp(-1))


def fit(w, log_weight, random):
    """Mixtures for weighted draws.

    The weights are tempered until enough draws count: a mixture then wider than the target draws what is needed to fit it closer in the
    next round.

    Parameters
    ----------
    w : Tensor of shape (g, n, d)
    log_weight : Tensor of shape (g, n)
    random : rng.Streams
        Chooses the first centres.

    Returns
    -------
    Mixture
    """
    if w.shape[1] > _FITTED:
        log_weight, rows = log_weight.topk(_FITTED, -1)
        w = w.gather(1, rows[..., None].expand(-1, -1, w.shape[-1]))
    g, n, d = w.shape
    temper, step = torch.full_like(log_weight[:, :1], _COOLEST), 1.0
    while step > _COOLEST:  # the largest exponent that leaves enough, by bisection
        more, step = (temper + step).clamp_max(1.0), step / 2
        temper = torch.where(effective(log_weight * more)[:, None] >= _LEAST, more, temper)
    p = torch.softmax(log_weight * temper, -1)
    mean = (p[..., None] * w).sum(1)
    x = w - mean[:, None]
    eye = torch.eye(d).to(w)
    common = (p[..., None] * x).mT @ x + 1e-4 * eye
    first = torch.searchsorted(p.cumsum(-1), random.uniform(_COMPONENTS)).clamp_max(n - 1)
    mixture = Mixture(
        torch.full((g, _COMPONENTS), -math.log(_COMPONENTS)).to(w),
        w.gather(1, first[..., None].expand(-1, -1, d)),
        torch.linalg.cholesky(common)[:, None].expand(-1, _COMPONENTS, -1, -1),
    )
    count = effective(p.log())[:, None]
    for _ in range(_ITERATIONS):
        terms, distance = mixture.terms(w)
        share = torch.softmax(terms, 1) * p[:, None]  # (g, c, n)
        total = share.sum(-1)
        robust = share * (_NU + d) / (_NU + distance)
        mean = (robust @ w) / robust.sum(-1, keepdim=True).clamp_min(1e-12)
        x = w[:, None] - mean[:, :, None]
        scatter = (robust[..., None] * x).mT @ x
        held = _SHRINK / count  # share of all draws
        covariance = (scatter + held[..., None, None] * common[:, None]) / (total + held)[..., None, None] + 1e-6 * eye
        mixture = Mixture((total + 1e-3).log().log_softmax(-1), mean, torch.linalg.cholesky(covariance))
    return mixture
