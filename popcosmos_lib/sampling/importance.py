"""Adaptive multiple importance sampling of many densities at once, with Pareto-smoothed weights.

Each target is a density of w that is roughly a unit normal. Rounds of draws come from mixtures of Student-t components, refitted to what
was drawn so far; every draw is weighted by the average of all the densities it could have come from, so that none of the effort is lost
and a poor early round cannot spoil a good later one. A mixture that is fitted to draws is large where they are: weighted by it, they come
out more even than fresh draws would, effective draws are overstated (1.5 times here) and widths are too small (3 per cent). Draws are
therefore kept in folds, and those of a fold come from, and are weighted by, mixtures that were fitted to the other folds. Used by
``exact_engine``.

References
----------
Cornuet et al. (2012), arXiv:0907.1254 (adaptive multiple importance sampling); Cappe et al. (2008), arXiv:0710.4242 (mixtures of t);
Chernozhukov et al. (2018), arXiv:1608.00060 (cross-fitting); Vehtari et al. (2024), arXiv:1507.02646 (Pareto smoothing, k-hat);
Zhang & Stephens (2009), Technometrics 51, 316 (its fit); Fearnhead & Clifford (2003), JRSS B 65, 887 (resampling with weights).
"""

import math
from typing import NamedTuple

import torch

__all__ = ["Draws", "Mixture", "effective", "fit", "pareto_smooth", "sample", "thin", "tilted"]

_FOLDS = 4  # of the draws; each mixture is fitted to three of them and draws for the fourth
_STEADY = 8  # a round brings at least this part of all draws so far: the cost of all mixtures on all draws then stays small
_NU = 16.0  # degrees of freedom of the components
_COMPONENTS = 2
_DEFENSIVE, _WIDE = 0.1, 1.1  # weight and width of the normal that every round draws from as well
_ITERATIONS = 4  # of the fit of a mixture
_FITTED = 2048  # draws it is fitted to, those of the largest weight
_LEAST = 120.0  # effective draws that a fit needs; weights are tempered until there are as many
_COOLEST = 1 / 128  # least exponent tried, and the resolution of it
_SHRINK = 30.0  # draws that the common covariance counts for in that of each component
_HOPELESS = 0.1  # share of its effective draws that the caller has use for, below which a target is given up
_TAIL = 3.0  # tail of n weights that is smoothed, in units of sqrt(n); at most a fifth of them
_FEWEST = 5  # weights that a tail needs


class Draws(NamedTuple):
    """Weighted draws of one target.

    Attributes
    ----------
    w : Tensor of shape (n, d)
    extra : Tensor of shape (n, e)
        What the target returned beside its value.
    log_weight : Tensor of shape (n,)
        Smoothed, normalised: the exponentials add up to one.
    ess, khat : float
        Effective draws; index of the Pareto tail of the raw weights, to be trusted below 0.7.
    log_integral : float
        ln of the integral of the target: where that is likelihood times prior, the evidence.
    rounds : int
    """

    w: torch.Tensor
    extra: torch.Tensor
    log_weight: torch.Tensor
    ess: float
    khat: float
    log_integral: float
    rounds: int


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
        return torch.logaddexp(t + math.log(1 - _DEFENSIVE), _log_wide(w) + math.log(_DEFENSIVE))

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
        return torch.where(wide[..., None], _WIDE * normal[..., :d], t)

    def of(self, rows):
        """The mixtures of some targets."""
        return Mixture(*(x[rows] for x in self))


def _log_wide(w):
    d = w.shape[-1]
    return -0.5 * (w / _WIDE).square().sum(-1) - d * math.log(_WIDE) - d / 2 * math.log(2 * math.pi)


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


def pareto_smooth(log_weight):
    """Replace the largest weights by the quantiles of the Pareto tail that fits them.

    Parameters
    ----------
    log_weight : Tensor of shape (g, n)

    Returns
    -------
    smoothed : Tensor of shape (g, n)
        Normalised; none larger than the largest raw one.
    khat : Tensor of shape (g,)
        Shape of the tail, shrunk a little towards 0.5 as its authors do; infinite where there is no tail to fit.
    """
    n = log_weight.shape[-1]
    size = min(n // 5, math.ceil(_TAIL * math.sqrt(n)))
    if size < _FEWEST:
        return log_weight.log_softmax(-1), torch.full_like(log_weight[:, 0], torch.inf)
    log_weight = (log_weight - log_weight.amax(-1, keepdim=True)).double()
    top, rows = log_weight.topk(size + 1, -1)
    cut = top[:, -1:].exp()
    x = (top[:, :-1].exp() - cut).flip(-1).clamp_min(1e-300)  # ascending
    good = (x[:, size // 4] > 1e-290) & x.isfinite().all(-1)
    x = torch.where(good[:, None], x, torch.linspace(0.1, 1, size).to(x))
    grid = 30 + int(math.sqrt(size))
    prior = 1 - (grid / (torch.arange(1, grid + 1).to(x) - 0.5)).sqrt()
    b = prior / (3 * x[:, size // 4 - 1, None]) + 1 / x[:, -1:]  # (g, grid)
    k = torch.log1p((-b[..., None] * x[:, None]).clamp_min(-1 + 1e-15)).mean(-1)
    profile = size * ((-b / k).log() - k - 1)
    weight = torch.softmax(profile.nan_to_num(-torch.inf), -1)
    b = (b * weight).sum(-1, keepdim=True)
    k = torch.log1p((-b * x).clamp_min(-1 + 1e-15)).mean(-1, keepdim=True)
    sigma = -k / b
    k = (size * k + 5.0) / (size + 10.0)
    u = (torch.arange(1, size + 1).to(x) - 0.5) / size
    smooth = cut + sigma * torch.expm1(-k * torch.log1p(-u)) / k
    smooth = smooth.clamp(max=1.0).log().flip(-1)
    smoothed = log_weight.scatter(-1, rows[:, :-1], torch.where(good[:, None], smooth, top[:, :-1]))
    return smoothed.log_softmax(-1).to(torch.float32), torch.where(good, k[:, 0], torch.inf).float()


def tilted(weight, gain):
    """Weights of draws whose density is changed by exp(gain), their tail smoothed.

    Parameters
    ----------
    weight : Tensor of shape (..., n)
        They add up to one along the last axis.
    gain : Tensor of shape (..., n)
        [nat]; anything where the weight is zero, as outside of a prior's support.

    Returns
    -------
    Tensor of shape (..., n)
        They add up to one along the last axis.
    """
    log_weight = weight.log() + gain.masked_fill(weight == 0, -torch.inf)
    return pareto_smooth(log_weight.view(-1, log_weight.shape[-1]))[0].view(log_weight.shape).exp()


def sample(log_target, random, *, dim=16, draws=1024, rounds=34, ess=400.0, khat=0.7, count=None, spare=1.0):
    """Draw from many targets until each has enough effective draws.

    Parameters
    ----------
    log_target : callable
        ``log_target(w, rows)`` for w (k, n, dim) of the targets ``rows`` (k,) gives ln of the target (k, n), unnormalised, and what else is
        to be kept of each draw, (k, n, e).
    random : rng.Streams
        One for each target.
    dim : int
    draws : int
        In each of the first rounds, a multiple of the four folds; later rounds are larger.
    rounds : int
        At most.
    ess, khat : float
        A target is done when it has as many effective draws and its weights a Pareto tail below ``khat``.
    count : callable, optional
        ``count(rows, draws)`` is asked for the targets ``rows`` (k,) that are done, with their `Draws`: the effective draws that the caller
        makes of them (k,). Those that fall short of ``ess`` go on until they should not, and are asked for again; those that keep less
        than a tenth of their effective draws are given up, as the draws of all rounds would not be enough.
    spare : float
        Times ``ess`` are the effective draws before ``count`` is first asked.

    Returns
    -------
    list of Draws
        One for each target, in order.
    """
    active = torch.arange(len(random.generators))
    found, needed = [None] * len(active), torch.full((len(active),), spare * ess)
    # the lists have one entry a round, the folds of a target in successive rows: (g x folds, n, ...); the density of each draw under all
    # rounds so far is kept as a running logsumexp
    w, target, extra, density, mixtures, sizes = [], [], [], [], [], []
    part = random.of(active.repeat_interleave(_FOLDS).tolist())
    for i in range(rounds):
        sizes.append(draws * max(1, sum(sizes) // (_STEADY * draws)))
        n = sizes[-1] // _FOLDS
        new = _WIDE * part.normal(n, dim) if i == 0 else mixtures[-1].sample(n, part)
        value, kept = (_folded(x) for x in log_target(_joined(new), active))
        own = _log_wide(new) + math.log(sizes[0])
        for mixture, size in zip(mixtures, sizes[1:], strict=True):
            own = torch.logaddexp(own, mixture.log_prob(new) + math.log(size))
        if mixtures:
            density = [torch.logaddexp(old, mixtures[-1].log_prob(x) + math.log(sizes[-1])) for old, x in zip(density, w, strict=True)]
        w, extra = [*w, new], [*extra, kept]
        target, density = [*target, value.nan_to_num(-torch.inf, -torch.inf, -torch.inf)], [*density, own]
        log_weight = _joined(torch.cat(target, 1) - torch.cat(density, 1))
        nothing = (log_weight.amax(-1) == -torch.inf)[:, None]  # yet allowed: look wider
        smoothed, tail = pareto_smooth(log_weight.masked_fill(nothing, 0.0))
        enough = effective(smoothed)
        over = (enough.cpu() >= needed[active]) & (tail.cpu() < khat) | (i == rounds - 1)
        for j in over.nonzero()[:, 0].tolist():
            rows = slice(_FOLDS * j, _FOLDS * (j + 1))
            everything, values = (torch.cat([x[rows] for x in kinds], 1).flatten(0, 1) for kinds in (w, extra))
            integral = float(log_weight[j].logsumexp(-1))
            found[active[j]] = Draws(everything, values, smoothed[j], float(enough[j]), float(tail[j]), integral, i + 1)
        if count and over.any():
            counted = count(active[over], [found[j] for j in active[over]])
            needed[active[over]] = enough.cpu()[over] * ess / counted.clamp_min(1.0)
            over[over.clone()] = (counted >= ess) | (counted < _HOPELESS * enough.cpu()[over]) | (i == rounds - 1)
        if over.all():
            break
        if over.any():
            left = ~over
            active, smoothed, rows = active[left], smoothed[left], left.repeat_interleave(_FOLDS).to(smoothed.device)
            w, target, extra, density = ([x[rows] for x in kinds] for kinds in (w, target, extra, density))
            mixtures = [old.of(rows) for old in mixtures]
            part = random.of(active.repeat_interleave(_FOLDS).tolist())
        mixtures.append(fit(_others(torch.cat(w, 1)), _others(_folded(smoothed)), part))
    return found


def _joined(x):
    """Rows of folds (g x folds, n, ...) to rows of targets (g, folds x n, ...)."""
    return x.unflatten(0, (-1, _FOLDS)).flatten(1, 2)


def _folded(x):
    """Inverse of ``_joined``."""
    return x.unflatten(1, (_FOLDS, -1)).flatten(0, 1)


def _others(x):
    """For each fold (g x folds, n, ...) the draws of the other folds of its target, (g x folds, (folds - 1) n, ...)."""
    fold = torch.arange(_FOLDS, device=x.device)
    others = ((fold[:, None] + fold[1:]) % _FOLDS).sort(-1).values
    return x.unflatten(0, (-1, _FOLDS))[:, others].flatten(2, 3).flatten(0, 1)


def thin(log_weight, n, uniform):
    """The best ``n`` draws to keep of many weighted ones: all the heavy ones, and of the light ones a fair sample.

    Parameters
    ----------
    log_weight : Tensor of shape (m,)
        Normalised.
    n : int
    uniform : float
        One uniform deviate.

    Returns
    -------
    rows : Tensor of shape (n,)
        Without repetition where n draws have weight.
    weight : Tensor of shape (n,)
        They add up to one; no expectation is changed on average.
    """
    p = log_weight.double().exp()
    ordered = p.sort(descending=True)
    rest = p.sum() - ordered.values.cumsum(0) + ordered.values  # of this draw and all lighter ones
    k = torch.arange(len(p), device=p.device)
    # the largest weight that light draws get, c: draws heavier than c are kept as they are
    heavy = int(((n - k).clamp_min(1) * ordered.values > rest)[: min(n, len(p)) - 1].int().cumprod(0).sum())
    light = ordered.indices[heavy:]
    level = p[light].cumsum(0)
    at = (torch.arange(n - heavy, device=p.device).double() + uniform) / (n - heavy) * level[-1]
    rows = torch.cat([ordered.indices[:heavy], light[torch.searchsorted(level, at).clamp_max(len(light) - 1)]])
    weight = torch.cat([ordered.values[:heavy], (level[-1] / (n - heavy)).expand(n - heavy)])
    return rows, (weight / weight.sum()).float()
