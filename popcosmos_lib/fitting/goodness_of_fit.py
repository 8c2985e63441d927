"""Goodness of fit: tests that detect stars, quasars and wrong photometry.

Residuals of a correct model are Student-t with two degrees of freedom, whatever the parameters, so two tests have a closed-form reference:
the sum over bands of ln(1 + r^2 / 2), sensitive to a wrong spectrum, and the largest |r|, sensitive to a single wrong band. The third test
is how common the galaxies of the posterior are under the prior: a star can be fitted, but only by galaxies that hardly exist. Introduced in
notebook 07.

References
----------
Gelman, Meng & Stern (1996), Stat. Sinica 6, 733 (posterior-predictive p-values); Thorp et al. (2025), arXiv:2506.12122 sect. 3.6 (noise).
"""

import math

import torch

from popcosmos_lib.survey import likelihood

__all__ = ["RARE", "TESTS", "UNLIKELY", "combined", "goodness", "p_values", "rarity"]

TESTS = ("p_fit", "p_band", "p_rare")  # columns of a summary, in the order that `combined` takes
UNLIKELY = 0.05  # p of all tests together below which a galaxy is flagged: so many false alarms at most
RARE = 0.01  # share of the galaxies of the prior that may be rarer
_SHARES = 0.2, 0.8  # of them that each test may raise: a wrong spectrum leaves no doubt, one wrong band competes with the noise
_MEAN, _VARIANCE = 2 - 2 * math.log(2), 0.8427**2  # of ln(1 + t^2 / 2)


def goodness(theta, weight, flux, flux_err, floor, emulator):
    """Goodness of fit of galaxies under their posteriors.

    Parameters
    ----------
    theta : Tensor of shape (n, draws, 16)
    weight : Tensor of shape (n, draws)
        Weights of the draws; their sum is one.
    flux, flux_err : Tensor of shape (n, 26)
        [µJy]; NaN where missing.
    floor : Tensor of shape (26,)
        Fractional error of the model flux, that of the emulator included.
    emulator : object with ``magnitudes(theta)``

    Returns
    -------
    dict of Tensor of shape (n,)
        ``chi2`` of the most likely draw, ``p_fit`` and ``p_band`` of `p_values`.
    """
    magnitude = likelihood.photometry(emulator, theta.flatten(0, 1)).unflatten(0, theta.shape[:2])
    data = flux[:, None], flux_err[:, None], floor
    best = likelihood.log_likelihood(magnitude, *data).argmax(-1, keepdim=True)
    residual = likelihood.scaled_residual(magnitude, *data)
    whole, worst = p_values(residual, flux.isfinite(), weight)
    return {"chi2": residual.square().sum(-1).gather(1, best)[:, 0], "p_fit": whole, "p_band": worst}


def p_values(residual, there, weight):
    """Posterior-predictive p-values of galaxies.

    Parameters
    ----------
    residual : Tensor of shape (n, draws, n_band)
        (Measured - model) / scale of posterior draws; zero where nothing was measured.
    there : Tensor of shape (n, n_band), bool
        Measured bands.
    weight : Tensor of shape (n, draws)
        Weights of the draws; their sum is one.

    Returns
    -------
    whole, worst : Tensor of shape (n,)
        p-values of the sum (approximated by a gamma distribution of the same mean and variance) and of the largest residual. Because the
        parameters are fitted to the data, both are larger than uniform numbers for galaxies of the model.
    """
    bands = there.sum(-1, keepdim=True).clamp_min(1).to(residual)
    total = torch.log1p(residual**2 / 2).sum(-1)
    shape, rate = _MEAN**2 / _VARIANCE, _MEAN / _VARIANCE
    whole = torch.special.gammaincc(shape * bands, rate * total)
    largest = residual.abs().amax(-1)
    root = (2 + largest**2).sqrt()
    worst = -torch.expm1(bands * torch.log1p(-2 / (root * (root + largest))))  # any of n bands as far out
    return (whole * weight).sum(-1), (worst * weight).sum(-1)


def rarity(log_p, weight, levels):
    """Fraction of prior galaxies that are rarer than those of a posterior.

    Parameters
    ----------
    log_p : Tensor of shape (n, draws)
        ln prior density of posterior draws.
    weight : Tensor of shape (n, draws)
        They add up to one.
    levels : Tensor of shape (m,)
        ln prior density of draws of the prior, rising.

    Returns
    -------
    Tensor of shape (n,)
        Fraction of prior galaxies with a lower density, averaged over the draws. Single draws of many posteriors are draws of the prior, so
        the fraction has mean 0.5, and it is below p for at most 2 p of the galaxies (in practice for far fewer, because it is an average).
    """
    share = torch.searchsorted(levels, log_p.contiguous()) / len(levels)
    return (share * weight).sum(-1)


def combined(whole, worst, rare):
    """The p-value of all tests together, of the same shape, at most 1.

    The smallest of: both `p_values`, each divided by its share of the false alarms (Bonferroni), and `rarity`, scaled so that ``RARE`` maps
    to ``UNLIKELY``. Galaxies of the model do not come near this value, so rarity needs no share.
    """
    return torch.minimum(torch.minimum(whole / _SHARES[0], worst / _SHARES[1]), rare * (UNLIKELY / RARE)).clamp_max(1.0)
