"""Adaptive multiple importance sampling of many densities at once, with Pareto-smoothed weights.

Each target is a density of w that is roughly a unit normal. Rounds of draws come from mixtures of Student-t components, refitted to what
was drawn so far; every draw is weighted by the average of all the densities it could have come from, so that none of the effort is lost and
a poor early round cannot spoil a good later one. A mixture that is fitted to draws is large where they are: weighted by it, they come out
more even than fresh draws would, effective draws are overstated (1.5 times here) and widths are too small (3 per cent). Draws are therefore
kept in folds, and those of a fold come from, and are weighted by, mixtures that were fitted to the other folds. Used by ``exact_engine``.

References
----------
Cornuet et al. (2012), arXiv:0907.1254 (adaptive multiple importance sampling); Cappe et al. (2008), arXiv:0710.4242 (mixtures of t);
Chernozhukov et al. (2018), arXiv:1608.00060 (cross-fitting); Vehtari et al. (2024), arXiv:1507.02646 (Pareto smoothing, k-hat);
Zhang & Stephens (2009), Technometrics 51, 316 (its fit); Fearnhead & Clifford (2003), JRSS B 65, 887 (resampling with weights).
"""

import math
from typing import NamedTuple

import torch

from popcosmos_lib.sampling.mixtures import WIDE, effective, fit, log_wide

__all__ = ["Draws", "pareto_smooth", "sample", "thin", "tilted"]

_FOLDS = 4  # of the draws; each mixture is fitted to three of them and draws for the fourth
_STEADY = 8  # a round brings at least this part of all draws so far: the cost of all mixtures on all draws then stays small
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


class _Rounds:
    """Draws of all rounds so far, of the targets that are not done yet.

    Each list has one entry per round; the folds of a target are successive rows, (g x folds, n, ...). The density of each draw under the
    mixtures of all rounds is kept as a running logsumexp.
    """

    def __init__(self):
        self.w, self.target, self.extra, self.density, self.mixtures, self.sizes = [], [], [], [], [], []

    def next(self, draws, dim, part):
        """Draws of a new round; it brings at least one in ``_STEADY`` of all draws."""
        self.sizes.append(draws * max(1, sum(self.sizes) // (_STEADY * draws)))
        n = self.sizes[-1] // _FOLDS
        return self.mixtures[-1].sample(n, part) if self.mixtures else WIDE * part.normal(n, dim)

    def add(self, new, value, kept):
        """Take the draws of a round, each weighted by the average of all densities that it could have come from."""
        own = log_wide(new) + math.log(self.sizes[0])
        for mixture, size in zip(self.mixtures, self.sizes[1:], strict=True):
            own = torch.logaddexp(own, mixture.log_prob(new) + math.log(size))
        if self.mixtures:
            last, size = self.mixtures[-1], math.log(self.sizes[-1])
            self.density = [torch.logaddexp(old, last.log_prob(x) + size) for old, x in zip(self.density, self.w, strict=True)]
        self.w, self.extra = [*self.w, new], [*self.extra, kept]
        self.target = [*self.target, value.nan_to_num(-torch.inf, -torch.inf, -torch.inf)]
        self.density = [*self.density, own]

    def log_weight(self):
        """Unnormalised ln weights of all draws of each target, (g, n)."""
        return _joined(torch.cat(self.target, 1) - torch.cat(self.density, 1))

    def of(self, j):
        """All draws of a target, and what else was kept of them."""
        rows = slice(_FOLDS * j, _FOLDS * (j + 1))
        return [torch.cat([x[rows] for x in kinds], 1).flatten(0, 1) for kinds in (self.w, self.extra)]

    def keep(self, rows):
        """Drop the targets that are done."""
        lists = (self.w, self.target, self.extra, self.density)
        self.w, self.target, self.extra, self.density = ([x[rows] for x in kinds] for kinds in lists)
        self.mixtures = [old.of(rows) for old in self.mixtures]

    def refit(self, smoothed, part):
        """Fit the mixtures of the next round: that of each fold to the draws of the others."""
        self.mixtures.append(fit(_others(torch.cat(self.w, 1)), _others(_folded(smoothed)), part))


def sample(log_target, random, *, dim=16, draws=1024, rounds=34, ess=400.0, khat=0.7, count=None, spare=1.0):
    """Draw from many targets until each has enough effective draws.

    Parameters
    ----------
    log_target : callable
        ``log_target(w, rows)``, for w (k, n, dim) of the targets ``rows`` (k,), returns ln of the unnormalised target, (k, n), and any
        further quantities to keep with each draw, (k, n, e).
    random : rng.Streams
        One stream for each target.
    dim, draws, rounds : int
        Dimension; draws in each of the first rounds, a multiple of the four folds (later rounds are larger); maximum number of rounds.
    ess, khat : float
        A target is done when it has ``ess`` effective draws and the Pareto shape of its weights is below ``khat``.
    count : callable, optional
        ``count(rows, draws)`` receives the targets ``rows`` (k,) that are done and their `Draws`, and returns how many effective draws the
        caller is left with, (k,). A target left with fewer than ``ess`` is sampled further and counted again; one left with less than a
        tenth of its effective draws is given up, because no number of rounds would suffice.
    spare : float
        ``count`` is first called when a target has ``spare`` times ``ess`` effective draws.

    Returns
    -------
    list of Draws
        One for each target, in order.
    """
    active, so_far = torch.arange(len(random.generators)), _Rounds()
    found, needed = [None] * len(active), torch.full((len(active),), spare * ess)
    part = random.of(active.repeat_interleave(_FOLDS).tolist())
    for i in range(rounds):
        new = so_far.next(draws, dim, part)
        so_far.add(new, *(_folded(x) for x in log_target(_joined(new), active)))
        log_weight = so_far.log_weight()
        nothing = (log_weight.amax(-1) == -torch.inf)[:, None]  # no draw is allowed yet: look wider
        smoothed, tail = pareto_smooth(log_weight.masked_fill(nothing, 0.0))
        enough, last = effective(smoothed), i == rounds - 1
        over = (enough.cpu() >= needed[active]) & (tail.cpu() < khat) | last
        for j in over.nonzero()[:, 0].tolist():
            integral = float(log_weight[j].logsumexp(-1))
            found[active[j]] = Draws(*so_far.of(j), smoothed[j], float(enough[j]), float(tail[j]), integral, i + 1)
        if count and over.any():
            counted = count(active[over], [found[j] for j in active[over]])
            needed[active[over]] = enough.cpu()[over] * ess / counted.clamp_min(1.0)
            over[over.clone()] = (counted >= ess) | (counted < _HOPELESS * enough.cpu()[over]) | last
        if over.all():
            break
        if over.any():
            active, smoothed = active[~over], smoothed[~over]
            so_far.keep((~over).repeat_interleave(_FOLDS).to(smoothed.device))
            part = random.of(active.repeat_interleave(_FOLDS).tolist())
        so_far.refit(smoothed, part)
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
