"""Student-t likelihood of photometry in flux, so that negative and missing measurements need no special case. Introduced in notebook 07.

References
----------
Thorp et al. (2025), arXiv:2506.12122, sect. 3.6 (likelihood); Leistedt et al. (2023), arXiv:2207.07673 (floors).
"""

import math

import torch

from popcosmos_lib.galaxies import parameters

__all__ = [
    "FLOOR_MINIMUM", "STUDENT_INFORMATION", "ZERO_POINT", "fractional_error", "log_likelihood", "log_tail", "model_flux", "photometry",
    "residual_and_scale", "scaled_residual",
]  # fmt: skip

ZERO_POINT = 23.9  # AB magnitude of 1 µJy
FLOOR_MINIMUM = 0.03  # fractional: stellar libraries differ from the sky, and from each other, by more than the smallest published floors
_FAINTEST, _BRIGHTEST = 60.0, -10.0  # magnitudes at which a model flux is held, so that float32 neither overflows nor loses its gradient
_ROWS = 8192  # model evaluations per chunk on a CPU: larger ones fall out of cache
STUDENT_INFORMATION = 0.6  # (nu + 1) / (nu + 3) for nu = 2: Fisher information of a Student-t location, in 1 / scale^2


def model_flux(magnitude):
    """AB magnitudes to fluxes [µJy], same shape."""
    return 10.0 ** (0.4 * (ZERO_POINT - magnitude.clamp(_BRIGHTEST, _FAINTEST)))


def fractional_error(floor, emulator=None, theta=None):
    """Error of the model as a fraction of its flux: floor and emulator error in quadrature.

    Parameters
    ----------
    floor : float or Tensor of shape (n_band,)
        Fractional floor: zero-point and stellar-library systematics that the catalogue's errors leave out.
    emulator : Emulator, optional
        Its ``error`` (n_band,) [mag] is added.
    theta : Tensor of shape (n, 16), optional
        Where the model is; the emulator's error is then that of each galaxy's region.

    Returns
    -------
    Tensor of shape (), (n_band,) or (n, n_band)
        Fractional error.
    """
    squared = torch.as_tensor(floor, dtype=torch.float32) ** 2
    error = getattr(emulator, "error", None) if theta is None else emulator.errors(theta)
    return (squared if error is None else squared + (0.4 * math.log(10) * error.to(squared)) ** 2).sqrt()


def residual_and_scale(magnitude, flux, flux_err, floor):
    """Residual over scale (zero where nothing was measured), the scale [µJy], and where there is a measurement."""
    there = torch.isfinite(flux) & torch.isfinite(flux_err)
    model = model_flux(magnitude)
    scale = torch.sqrt(torch.where(there, flux_err, 1.0) ** 2 + (floor * model) ** 2)
    return torch.where(there, (torch.where(there, flux, 0.0) - model) / scale, 0.0), scale, there


def scaled_residual(magnitude, flux, flux_err, floor=0.0):
    """(Measured - model) / scale, zero where nothing was measured; arguments as for ``log_likelihood``."""
    return residual_and_scale(magnitude, flux, flux_err, floor)[0]


def log_likelihood(magnitude, flux, flux_err, floor=0.0):
    """Student-t (nu = 2) likelihood in flux, independent between bands.

    Parameters
    ----------
    magnitude : Tensor of shape (..., n_band)
        Model apparent magnitudes (AB).
    flux, flux_err : Tensor, broadcastable to (..., n_band)
        Measured flux and its error [µJy]; a band where either is not finite is left out.
    floor : float or Tensor of shape (n_band,)
        Fractional error of the model flux, added in quadrature: emulator error, zero points, stellar library.

    Returns
    -------
    Tensor of shape (...)
        ln likelihood [nat, flux in µJy], with the -ln(scale) term: the scale follows the model.

    References
    ----------
    Thorp et al. (2025), arXiv:2506.12122, sect. 3.6.
    """
    residual, scale, there = residual_and_scale(magnitude, flux, flux_err, floor)
    terms = -1.5 * torch.log1p(residual**2 / 2) - scale.log() - math.log(2 * math.sqrt(2))
    return torch.where(there, terms, 0.0).sum(-1)


def log_tail(t):
    """ln of the probability that Student's t with two degrees of freedom exceeds t; its tail has a closed form, free of cancellation."""
    root = (2 + t**2).sqrt()
    beyond = 1 / (root * (root + t.abs()))
    return torch.where(t > 0, beyond, 1 - beyond).log()


def photometry(emulator, theta):
    """Magnitudes of any mass: the emulator is asked at 10^10 Msun and the result rescaled, which is exact and never out of its bounds.

    Parameters
    ----------
    emulator : object with ``magnitudes(theta)``
        ``Emulator``, ``Photulators`` or ``Synthesiser``.
    theta : Tensor of shape (n, 16)
        SPS parameters; only the mass may lie outside its bounds.

    Returns
    -------
    Tensor of shape (n, n_band)
        Apparent AB magnitude.
    """
    mass = parameters.column(theta, "log10M_formed")[:, None]
    reference = torch.cat([torch.full_like(mass, 10.0), theta[:, 1:]], -1)
    rows = _ROWS if theta.device.type == "cpu" else 64 * _ROWS
    return torch.cat([emulator.magnitudes(part) for part in reference.split(rows)]) - 2.5 * (mass - 10.0)
