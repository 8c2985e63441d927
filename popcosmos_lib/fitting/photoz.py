"""Zero points from galaxies of known redshift other than those that are scored, and redshift posteriors as a qp ensemble.

Introduced in notebook 08.

References
----------
Leistedt et al. (2023), arXiv:2207.07673 sect. 3 (zero points refined with spectroscopic redshifts); Malz et al.
(2018), arXiv:1806.00014 (qp, the format of RAIL).
"""

import h5py
import numpy as np
import torch

from popcosmos_lib.artefacts import store
from popcosmos_lib.fitting import inference
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.survey import likelihood

__all__ = ["cross_validated", "write_qp", "zero_points"]

_SIGNIFICANT = 5.0  # flux over error of the measurements that count
_STEP = 0.01  # in redshift, of the histograms of ``write_qp``
_FEWEST = 10  # galaxies that a band needs; below, its zero point is left alone


def zero_points(flux, flux_err, redshift, *, iterations=2, **options):
    """Catalogue flux over model flux in each band, from galaxies of known redshift.

    The galaxies are fitted at their redshifts; in each band the median over galaxies of measured over predicted flux is the correction, and
    the fit is repeated with it. A factor common to all bands is degenerate with mass, so the median over bands is divided out.

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
        Correction by which to divide fluxes and errors; one for a band with too few detections.
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
        Source of the random split into halves.

    Returns
    -------
    flux, flux_err : Tensor of shape (n, 26)
        Photometry of each galaxy, corrected with the zero points of the other half.
    corrections : Tensor of shape (2, 26)
    """
    order = torch.randperm(len(flux), generator=generator)
    halves = order.tensor_split(2)
    corrections = [zero_points(flux[rows], flux_err[rows], redshift[rows], **options) for rows in halves]
    factor = torch.ones_like(flux)
    for rows, correction in zip(halves, reversed(corrections), strict=True):
        factor[rows] = correction
    return flux / factor, flux_err / factor, torch.stack(corrections)


def write_qp(path, z, weight, **ancillary):
    """Write redshift posteriors as a qp ensemble of histograms, which ``qp.read`` and RAIL can read.

    Parameters
    ----------
    path : Path
        HDF5 file.
    z, weight : Tensor of shape (n, draws)
        Weighted draws; galaxies without draws are omitted.
    **ancillary : array_like of shape (n,)
        Further columns of the ensemble.
    """
    upper = float(parameters.BOUNDS[parameters.INDEX["z"], 1])
    edges = np.linspace(0, upper, round(upper / _STEP) + 1)
    kept = z.isfinite().all(1).numpy()
    rows = [np.histogram(values, edges, weights=w)[0] for values, w in zip(z.numpy()[kept], weight.numpy()[kept], strict=True)]
    density = np.array(rows) / _STEP
    groups = {
        "data": {"pdfs": density / (density.sum(1, keepdims=True) * _STEP)},
        "meta": {"bins": edges[None], "pdf_name": np.array([b"hist"]), "pdf_version": np.array([0])},
        "ancil": {name: np.asarray(values)[kept] for name, values in ancillary.items()},
    }
    with store.replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for group, columns in groups.items():
            for name, values in columns.items():
                file[f"{group}/{name}"] = values
