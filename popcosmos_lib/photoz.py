"""Zero points from galaxies of known redshift, never from those that are scored.

Used by notebook 08.

References
----------
Leistedt et al. (2023), arXiv:2207.07673 sect. 3 (zero points refined with spectroscopic redshifts).
"""

import torch

from popcosmos_lib import inference, likelihood

__all__ = ["cross_validated", "zero_points"]

_SIGNIFICANT = 5.0  # flux over error of the measurements that count
_FEWEST = 10  # galaxies that a band needs; below, its zero point is left alone


def zero_points(flux, flux_err, redshift, *, iterations=2, **options):
    """Catalogue flux over model flux in each band, from galaxies of known redshift.

    The galaxies are fitted at their redshifts; in each band the median over galaxies of measured over predicted flux is the correction, and
    the fit is repeated with it. What is common to all bands cannot be told from mass: the median of the bands is divided out.

    Parameters
    ----------
    flux, flux_err : Tensor of shape (n, 26)
        [µJy].
    redshift : Tensor of shape (n,)
    iterations : int
    **options
        Of ``inference.fit``.

    Returns
    -------
    Tensor of shape (26,)
        Ones where a band has too few detections. Divide fluxes and errors by it.
    """
    correction = torch.ones(flux.shape[1])
    for _ in range(iterations):
        fit = inference.fit(flux / correction, flux_err / correction, redshift=redshift, **options)
        usable = torch.as_tensor(fit.summary["flags"] & 32 == 0) & fit.samples[:, 0, 0].isfinite()
        model = likelihood.photometry(options["emulator"], fit.samples[usable].flatten(0, 1)).unflatten(0, fit.samples[usable].shape[:2])
        predicted = (likelihood.model_flux(model) * fit.weights[usable][..., None]).sum(1)
        seen = (flux > _SIGNIFICANT * flux_err)[usable]
        ratio = torch.where(seen, flux[usable] / predicted, torch.nan)
        correction = torch.where(seen.sum(0) >= _FEWEST, ratio.nanmedian(0).values, torch.nan)
        correction = (correction / correction.nanmedian()).nan_to_num(1.0)
    return correction


def cross_validated(flux, flux_err, redshift, generator, **options):
    """Photometry with zero points refined on the other half of the galaxies.

    Parameters
    ----------
    flux, flux_err, redshift, **options
        As for ``zero_points``.
    generator : torch.Generator
        Of the two halves.

    Returns
    -------
    flux, flux_err : Tensor of shape (n, 26)
        Each galaxy's corrected by what the half that it is not in says.
    corrections : Tensor of shape (2, 26)
    """
    order = torch.randperm(len(flux), generator=generator)
    halves = order.tensor_split(2)
    corrections = [zero_points(flux[rows], flux_err[rows], redshift[rows], **options) for rows in halves]
    factor = torch.ones_like(flux)
    for rows, correction in zip(halves, reversed(corrections), strict=True):
        factor[rows] = correction
    return flux / factor, flux_err / factor, torch.stack(corrections)
