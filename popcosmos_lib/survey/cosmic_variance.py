"""Cosmic variance: scatter of the counts in one field that is due to the clustering of matter.

As in the cosmic variance cookbook it is the relative variance of dark matter in the volume of a field and a redshift bin, by linear theory,
times the bias of galaxies of given stellar mass. The cookbook has fits for five fields, which the tests compare with; ``dark_matter``
computes any rectangle. Introduced in notebook 06.

References
----------
Moster et al. (2011), ApJ 731, 113 (arXiv:1001.1737): eq. 13 and table 4 (``bias``), sect. 3.4 (recipe).
Newman & Davis (2002), ApJ 564, 567, eq. 2 (variance of a box). The tables were read in three public implementations, not in the paper; two
of them disagree on the sign of sigma_b of COSMOS, and the one taken here gives the 6 and 12 per cent that the paper's abstract states.
"""

from functools import cache

import numpy as np

__all__ = ["bias", "box_variance", "dark_matter", "galaxies", "of_mean"]

_MASSES = np.arange(8.75, 11.5, 0.5)  # middles of the mass bins of table 4 [log10 Msun]
_BIAS = np.array([(0.062, 2.59, 1.025), (0.074, 2.58, 1.039), (0.042, 3.17, 1.147),
                  (0.053, 3.07, 1.225), (0.069, 3.19, 1.269), (0.173, 2.89, 1.438)])  # fmt: skip
_OMEGA, _SIGMA8, _GAMMA = 0.26, 0.77, 0.1872  # the cookbook's cosmology, to which its biases belong; distances in Mpc/h
_HUBBLE = 2997.92  # c / H0 [Mpc/h]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


def bias(log_mass, z):
    """Large-scale bias of galaxies, b = b0 (1 + z)^b1 + b2 (eq. 13), linear in mass between the bins of table 4.

    Parameters
    ----------
    log_mass, z : ndarray of shape (n,)
        Surviving stellar mass [log10 Msun], held at 8.75 and 11.25; redshift (fitted below 4).

    Returns
    -------
    ndarray of shape (n,)
    """
    place = np.clip((np.asarray(log_mass, float) - _MASSES[0]) / 0.5, 0, len(_MASSES) - 1)
    lower = np.minimum(place.astype(int), len(_MASSES) - 2)
    values = [row[..., 0] * (1 + z) ** row[..., 1] + row[..., 2] for row in (_BIAS[lower], _BIAS[lower + 1])]
    return values[0] + (place - lower) * (values[1] - values[0])


def dark_matter(z, dz, sides):
    """Relative standard deviation of dark matter in a rectangular field and a redshift bin, by linear theory.

    Parameters
    ----------
    z : ndarray of shape (n,)
        Middle of the redshift bin.
    dz : float
        Its width.
    sides : (float, float)
        Of the field [degree].

    Returns
    -------
    ndarray of shape (n,)
    """
    z = np.asarray(z, float)
    near, middle, far = (_distance(np.maximum(edge, 0.0)) for edge in (z - dz / 2, z, z + dz / 2))
    boxes = [(*np.radians(sides) * across, deep) for across, deep in zip(middle, far - near, strict=True)]
    return _growth(z) * np.sqrt([box_variance(box, _correlation) for box in boxes])


def galaxies(z, log_mass, edges, area):
    """Relative standard deviation of the counts of a galaxy sample in redshift bins, in a square field.

    Parameters
    ----------
    z, log_mass : ndarray of shape (n,)
        The sample; surviving stellar mass [log10 Msun].
    edges : ndarray of shape (k + 1,)
        Of the bins, equally spaced.
    area : float
        Of the field [square degree].

    Returns
    -------
    ndarray of shape (k,)
        Mean bias of the galaxies of a bin times ``dark_matter``; in an empty bin that of unbiased ones.
    """
    count, total = (np.histogram(z, edges, weights=weights)[0] for weights in (None, bias(log_mass, z)))
    mean = np.divide(total, count, out=np.ones(len(count)), where=count > 0)
    return mean * dark_matter(0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0], 2 * (float(np.sqrt(area)),))


def of_mean(n, middle, sigma):
    """Standard deviation of the mean redshift, to first order, where bins fluctuate independently.

    Parameters
    ----------
    n : ndarray of shape (..., k)
        n(z), in any units.
    middle, sigma : ndarray of shape (k,)
        Middles of the bins, relative standard deviation of their counts.

    Returns
    -------
    ndarray of shape (...)
    """
    share = n / n.sum(-1, keepdims=True)
    offset = middle - (share * middle).sum(-1, keepdims=True)
    return np.sqrt(((share * sigma * offset) ** 2).sum(-1))


def box_variance(sides, correlation):
    """Variance of the mean of a random field in a box, 8 times the integral over (1 - x)(1 - y)(1 - z) xi(r) of the unit cube.

    Parameters
    ----------
    sides : (float, float, float)
        Of the box [Mpc/h].
    correlation : callable
        Of the separation [Mpc/h].

    Returns
    -------
    float
    """
    u, w = 0.5 * (_NODES + 1), 0.5 * _WEIGHTS
    t, weight = u**3, 3 * u**2 * w * (1 - u**3)  # nodes crowd at small separations, where the correlation is steep
    x, y, z = np.meshgrid(*(side * t for side in sides), indexing="ij")
    return 8 * np.einsum("i,j,k,ijk", weight, weight, weight, correlation(np.sqrt(x**2 + y**2 + z**2)))


def _correlation(r):
    """Linear correlation function of matter today at separations [Mpc/h]."""
    at, xi = _correlation_table()
    return np.interp(np.log(r), at, xi)


@cache
def _correlation_table():
    log_k, log_r = np.linspace(np.log(1e-5), np.log(1e3), 6000), np.linspace(np.log(1e-3), np.log(3e3), 320)
    k, step = np.exp(log_k), log_k[1] - log_k[0]
    power = k**3 * k * _transfer(k) ** 2 / (2 * np.pi**2)  # per ln k
    window = 3 * (np.sin(8 * k) - 8 * k * np.cos(8 * k)) / (8 * k) ** 3
    power *= _SIGMA8**2 / ((power * window**2).sum() * step)
    kr = k * np.exp(log_r)[:, None]
    return log_r, (power * np.sinc(kr / np.pi) * np.exp(-((kr / 50) ** 2))).sum(1) * step  # waves far shorter than r cancel


def _transfer(k):
    """Cold dark matter, Bardeen et al. (1986) eq. G3, k in h/Mpc."""
    q = k / _GAMMA
    return np.log1p(2.34 * q) / (2.34 * q) * (1 + 3.89 * q + (16.1 * q) ** 2 + (5.46 * q) ** 3 + (6.71 * q) ** 4) ** -0.25


def _distance(z):
    """Comoving distance [Mpc/h], flat."""
    x = 0.5 * (_NODES + 1) * np.asarray(z)[..., None]
    return _HUBBLE * 0.5 * np.asarray(z) * (_WEIGHTS / np.sqrt(_OMEGA * (1 + x) ** 3 + 1 - _OMEGA)).sum(-1)


def _growth(z):
    """Linear growth over that of today, Carroll, Press & Turner (1992) eq. 29."""

    def growth(z):
        matter = _OMEGA * (1 + z) ** 3
        m, v = matter / (matter + 1 - _OMEGA), (1 - _OMEGA) / (matter + 1 - _OMEGA)
        return 2.5 * m / (m ** (4 / 7) - v + (1 + m / 2) * (1 + v / 70)) / (1 + z)

    return growth(np.asarray(z, float)) / growth(0.0)
