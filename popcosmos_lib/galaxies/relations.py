"""Relations between galaxy properties, measured from samples: running medians, mass functions, mass limits.

The published curves that they are compared with are functions of ``universe``, or points of ``relations.csv`` through
`published`. Used by notebooks 09 and 10.
"""

import csv
from importlib import resources

import numpy as np
import torch
from scipy.optimize import least_squares

from popcosmos_lib.galaxies import cosmology, universe

__all__ = ["fit_limit", "mass_function", "modal_mass", "published", "running"]


def published(relation, z=None):
    """Published points of a relation.

    Parameters
    ----------
    relation : {"stellar_metallicity", "gas_metallicity", "star_forming_sequence", "quiescent_fraction", "mass_function"}
    z : float, optional
        Redshift, where the relation has several.

    Returns
    -------
    ndarray of shape (n, 4)
        x, y, low, high as the header of ``relations.csv`` says; NaN where no error is given.

    Raises
    ------
    ValueError
        If the file has no such relation and redshift.
    """
    lines = (resources.files("popcosmos_lib.galaxies") / "relations.csv").read_text().splitlines()
    rows = [row for row in csv.DictReader(line for line in lines if not line.startswith("#")) if row["relation"] == relation]
    rows = [row for row in rows if z is None or float(row["z"]) == z]
    if not rows:
        raise ValueError(f"no published {relation!r} at z = {z}; relations.csv lists what there is")
    return np.array([[float(row[name] or "nan") for name in ("x", "y", "low", "high")] for row in rows])


def running(x, y, edges, least=30):
    """Median and 16-84 % range of y in bins of x; for a boolean y, its fraction and binomial error.

    Parameters
    ----------
    x, y : Tensor of shape (n,)
    edges : sequence of float
        Bin edges, rising.
    least : int
        Bins with fewer galaxies give NaN.

    Returns
    -------
    ndarray of shape (n_bin, 4)
        Bin centre, median, 16th and 84th percentile.
    """
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        values = y[(x >= low) & (x < high)].double()
        if len(values) < least:
            rows.append([0.5 * (low + high), *[np.nan] * 3])
        elif y.dtype == torch.bool:
            mean = values.mean()
            error = (mean * (1 - mean) / len(values)).sqrt()
            rows.append([0.5 * (low + high), mean, mean - error, mean + error])
        else:
            rows.append([0.5 * (low + high), *(torch.quantile(values, q) for q in (0.5, 0.16, 0.84))])
    return np.array(rows, float)


def mass_function(log_mass, z, window, edges, area):
    """Galaxies per volume and dex of mass in a redshift window.

    Parameters
    ----------
    log_mass, z : Tensor of shape (n,)
        Surviving mass [log10 Msun] and redshift of a sample.
    window : (float, float)
        Redshift range.
    edges : sequence of float
        Edges of the mass bins, equally wide [dex].
    area : float
        Sky area the sample stands for [deg^2].

    Returns
    -------
    ndarray of shape (n_bin, 3)
        Bin centre, log10 phi [Mpc^-3 dex^-1] (NaN where empty), number of galaxies.
    """
    grid = torch.linspace(*window, 101, dtype=torch.float64)
    volume = float(torch.trapezoid(cosmology.comoving_volume(grid), grid)) / (4 * np.pi) * universe.SQUARE_DEGREE * area
    chosen = (z >= window[0]) & (z < window[1])
    counts = np.histogram(log_mass[chosen].numpy(), edges)[0]
    width = np.diff(edges)
    phi = np.log10(np.where(counts > 0, counts, np.nan) / (volume * width))
    return np.stack([edges[:-1] + 0.5 * width, phi, counts], -1)


def modal_mass(log_mass, z, n_bins, step=0.05, smooth=0.2, percentile=99.5):
    """Most frequent mass in redshift bins of equal number: where a sample begins to lose galaxies (Thorp+25 sect. 4.6).

    Parameters
    ----------
    log_mass, z : Tensor of shape (n,)
        Surviving mass [log10 Msun] and redshift.
    n_bins : int
        Redshift bins.
    step, smooth : float
        Width of the mass bins and of the Gaussian that smooths their counts [dex]; the papers' 20,000 galaxies a bin need no smoothing.
    percentile : float
        Upper limit that is returned too.

    Returns
    -------
    ndarray of shape (n_bins, 3)
        Median redshift, modal mass and upper percentile of the mass [log10 Msun].
    """
    order = torch.argsort(z)
    edges = np.arange(6.0, 13.0 + step / 2, step)
    offset = np.arange(-4 * smooth, 4 * smooth + step / 2, step)
    kernel = np.exp(-0.5 * (offset / smooth) ** 2)
    rows = []
    for part in torch.tensor_split(order, n_bins):
        counts = np.convolve(np.histogram(log_mass[part].numpy(), edges)[0], kernel, "same")
        peak = int(np.clip(counts.argmax(), 1, len(counts) - 2))
        a, b, c = counts[peak - 1 : peak + 2]  # parabola through the highest bin and its neighbours
        mode = edges[peak] + step * (0.5 + 0.5 * (a - c) / max(a - 2 * b + c, 1e-9, key=abs))
        rows.append([float(z[part].median()), mode, np.percentile(log_mass[part].numpy(), percentile)])
    return np.array(rows)


def fit_limit(z, log_mass):
    """Least-squares two-segment Hermite spline through mass limits (Thorp+25 appendix E).

    Parameters
    ----------
    z, log_mass : ndarray of shape (n,)
        Redshifts, rising from 0 to 6, and limits [log10 Msun]. The fit means nothing outside their range.

    Returns
    -------
    dict
        ``knot``, ``values`` (3) and ``slopes`` (3): the arguments of `universe.hermite_limit`.
    """
    z = torch.as_tensor(z, dtype=torch.float64)

    def unpack(p):
        return {"knot": float(p[0]), "values": tuple(map(float, p[1:4])), "slopes": tuple(map(float, p[4:7]))}

    start = [0.75, *np.interp([0.0, 0.75, 6.0], z, log_mass), 3.0, 0.5, 0.1]
    lower, upper = [0.3, 4, 6, 6, -3, -3, -3], [3.0, 13, 13, 13, 20, 8, 3]
    miss = lambda p: universe.hermite_limit(z, **unpack(p)).numpy() - log_mass  # noqa: E731
    return unpack(least_squares(miss, start, bounds=(lower, upper), loss="soft_l1", f_scale=0.1).x)
