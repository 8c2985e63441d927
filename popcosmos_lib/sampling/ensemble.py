"""Ensemble sampling of many posteriors at once, and its convergence diagnostics.

Arrays are (galaxy, walker, parameter): every galaxy has its own ensemble, and all ensembles advance together, so that one evaluation of the
networks serves all of them. Introduced in notebook 07.

References
----------
Goodman & Weare (2010), CAMCoS 5, 65 (stretch move, used by the papers: Thorp et al. 2025, arXiv:2506.12122, sect. 3.6);
ter Braak (2006), Stat. Comput. 16, 239 (differential evolution); Vehtari et al. (2021), Bayesian Anal. 16, 667 (R-hat, ESS).
"""

import math

import torch

__all__ = ["anneal", "effective_size", "ensemble", "r_hat", "resample", "reweight"]

_STRETCH = 2.0  # the a of Goodman & Weare
_DIFFERENCE = 0.8  # share of the moves that are differential evolution, where both kinds are used
_JUMP = 0.1  # share of those that take the whole difference, which carries walkers between modes
_KEEP = 0.5  # effective share of particles that one rise in temperature must leave
_RISES = 20  # temperatures after which the target itself is forced


def _propose(x, others, kind, random):
    """Proposal for the walkers x (n, h, d) from the other half of the ensemble, and the ln of its Hastings factor (n, h)."""
    n, h, d = x.shape
    m = others.shape[1]
    *u, one, two = random.uniform(5 * h).reshape(n, 5, h, 1).unbind(1)
    one = (m * one).long()
    two = (one + 1 + ((m - 1) * two).long()) % m  # a different one
    first, second = (others.gather(1, index.expand(-1, -1, d)) for index in (one, two))
    z = ((_STRETCH - 1) * u[0] + 1) ** 2 / _STRETCH
    stretched = first + z * (x - first)
    # the scale is drawn afresh for each move: ridges of unequal width need unequal steps
    scale = torch.where(u[1] < _JUMP, 1.0, 2.38 / math.sqrt(2 * d) * 4 ** (u[0] - 0.75))
    moved = x + scale * (first - second) + 1e-3 * random.normal(h, d)
    stretch = torch.ones_like(u[2], dtype=torch.bool) if kind == "stretch" else u[2] > _DIFFERENCE
    return torch.where(stretch, stretched, moved), torch.where(stretch, (d - 1) * z.log(), 0.0)[..., 0]


def _step(x, value, target, kind, random):
    """Update one half of every ensemble, then the other; returns the share of accepted moves (n,)."""
    half = x.shape[1] // 2
    accepted = 0.0
    for here, there in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        proposal, factor = _propose(x[:, here], x[:, there], kind, random)
        new = target(proposal).nan_to_num(-torch.inf, posinf=-torch.inf)
        take = random.uniform(new.shape[1]).log() < factor + new - value[:, here]
        x[:, here] = torch.where(take[..., None], proposal, x[:, here])
        value[:, here] = torch.where(take, new, value[:, here])
        accepted = accepted + take.float().mean(1) / 2
    return accepted


@torch.no_grad()
def ensemble(target, start, *, steps, random, thin=1, kind="mixed"):
    """Affine-invariant ensemble sampling.

    Parameters
    ----------
    target : callable
        Maps (n, k, d) to ln density of each of the n targets, (n, k) [nat].
    start : Tensor of shape (n, walkers, d)
        Initial walkers; an even number, more than 2 d.
    steps : int
        Updates of every walker.
    random : rng.Streams
        One stream per galaxy.
    thin : int
        Keep every thin-th step.
    kind : {"mixed", "stretch"}
        Stretch moves only, as in the papers, or mixed with differential evolution.

    Returns
    -------
    chain : Tensor of shape (n, steps // thin, walkers, d)
    acceptance : Tensor of shape (n,)
        Fraction of accepted moves.
    """
    x = start.clone()
    value = target(x).nan_to_num(-torch.inf, posinf=-torch.inf)
    chain, accepted = [], 0.0
    for i in range(steps):
        accepted = accepted + _step(x, value, target, kind, random)
        if (i + 1) % thin == 0:
            chain.append(x.clone())
    return torch.stack(chain, 1), accepted / steps


def resample(log_weight, n, u):
    """Systematic resampling: indices (rows, n) in proportion to exp(``log_weight``) (rows, m), for a number ``u`` (rows, 1) from 0 to 1."""
    cdf = torch.softmax(log_weight, -1).cumsum(-1)
    return torch.searchsorted(cdf, (u + torch.arange(n, device=cdf.device)) / n).clamp_max(log_weight.shape[-1] - 1)


def _effective_share(log_weight):
    w = torch.softmax(log_weight, -1)
    return 1 / (w**2).sum(-1) / w.shape[-1]


def _rise(gain, beta):
    """Largest next inverse temperature in (beta, 1] whose weights keep ``_KEEP`` of the particles; gain is ln target - ln start."""
    low, high = beta.clone(), torch.ones_like(beta)
    for _ in range(20):
        middle = 0.5 * (low + high)
        good = _effective_share((middle - beta)[:, None] * gain) > _KEEP
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.where(_effective_share((1 - beta)[:, None] * gain) > _KEEP, torch.ones_like(beta), torch.maximum(low, beta + 1e-4))


@torch.no_grad()
def anneal(both, start, *, walkers, moves, random):
    """Move draws of a tractable density to the target by sequential Monte Carlo along base^(1-b) target^b.

    Each galaxy has its own schedule of b; after each increase its particles are resampled by weight and moved, until b is one.

    Parameters
    ----------
    both : callable
        Maps points (m, k, d) of the galaxies (m,) to ln density of the base, from which ``start`` is drawn, and of the target: (2, m, k).
    start : Tensor of shape (n, k, d)
        Draws of the base; more draws than walkers improve the first resampling.
    walkers : int
        Number of particles kept.
    moves : int
        Ensemble steps at each temperature.
    random : rng.Streams
        One stream per galaxy.

    Returns
    -------
    Tensor of shape (n, walkers, d)
    """
    n, _, d = start.shape
    done, rises = start.new_empty(n, walkers, d), 0
    rows, x, low = torch.arange(n, device=start.device), start, start.new_zeros(n)  # of those on their way, inverse temperatures
    while len(rows):
        rises, part = rises + 1, random.of(rows.tolist())
        base, target = both(x, rows).nan_to_num(-torch.inf, posinf=-torch.inf)
        gain = (target - base).nan_to_num(-1e6).clamp(-1e6, 1e6)
        high = _rise(gain, low) if rises < _RISES else torch.ones_like(low)
        index = resample((high - low)[:, None] * gain, walkers, part.uniform(1))
        x = x.gather(1, index[..., None].expand(-1, -1, d))

        def mixed(y, b=high[:, None], rows=rows):
            base, target = both(y, rows)
            return (1 - b) * base + b * target

        value = mixed(x).nan_to_num(-torch.inf, posinf=-torch.inf)
        for _ in range(moves):
            _step(x, value, mixed, "mixed", part)
        done[rows] = x
        rows, x, low = (values[high < 1] for values in (rows, x, high))
    return done


def reweight(log_weight, n, u):
    """Resample draws in proportion to importance weights.

    Parameters
    ----------
    log_weight : Tensor of shape (galaxies, draws)
        Weights are truncated at the mean times the square root of their number: a small bias for much less variance (Ionides 2008).
    n : int
        Number of draws to return.
    u : Tensor of shape (galaxies, 1)
        Uniform random numbers between 0 and 1.

    Returns
    -------
    index : Tensor of shape (galaxies, n)
    efficiency : Tensor of shape (galaxies,)
        Effective fraction of the draws; 1 if all weights are equal.
    """
    m = log_weight.shape[-1]
    log_weight = torch.minimum(log_weight, log_weight.logsumexp(-1, keepdim=True) - 0.5 * math.log(m))
    return resample(log_weight, n, u), _effective_share(log_weight)


def _autocovariance(x):
    """Of (..., t, chains) along t, by FFT."""
    n = x.shape[-2]
    centred = x - x.mean(-2, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=-2)
    return torch.fft.irfft(spectrum.abs() ** 2, n=2 * n, dim=-2)[..., :n, :] / n


def _split(chain):
    """(n, t, walkers) to (n, t // 2, 2 walkers)."""
    half = chain.shape[1] // 2
    return torch.cat([chain[:, :half], chain[:, half : 2 * half]], -1).double()


def _variances(x):
    n = x.shape[1]
    within = x.var(1).mean(-1)
    between = x.mean(1).var(-1)
    return within, (n - 1) / n * within + between


def r_hat(chain):
    """Split R-hat of one quantity, with every walker as a chain.

    Parameters
    ----------
    chain : Tensor of shape (n, t, walkers)

    Returns
    -------
    Tensor of shape (n,)
        Near 1 if every walker has explored the whole posterior; well above 1 if walkers still depend on their start.
    """
    within, total = _variances(_split(chain))
    return (total / within.clamp_min(1e-30)).sqrt().to(chain)


def effective_size(chain):
    """Effective number of independent draws of one quantity, with every walker as a chain (Geyer's initial monotone sequence).

    Parameters
    ----------
    chain : Tensor of shape (n, t, walkers)

    Returns
    -------
    Tensor of shape (n,)
        At most the number of draws. Not reliable where R-hat exceeds 1.1, as it cannot fall much below the number of walkers.
    """
    x = _split(chain)
    within, total = _variances(x)
    covariance = _autocovariance(x).mean(-1)  # (n, t)
    rho = 1 - (within[:, None] - covariance * x.shape[1] / (x.shape[1] - 1)) / total.clamp_min(1e-30)[:, None]
    rho[:, 0] = 1
    pairs = rho[:, : rho.shape[1] // 2 * 2].reshape(len(rho), -1, 2).sum(-1)
    pairs = torch.where((pairs > 0).cumprod(1).bool(), pairs, 0.0).cummin(1).values
    time = (2 * pairs.sum(1) - 1).clamp_min(1.0)
    return (x.shape[1] * x.shape[2] / time).to(chain)
