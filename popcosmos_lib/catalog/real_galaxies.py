"""Real galaxies with spectroscopic redshifts, each in the photometry of its own survey, ready for ``inference.fit``.

Surveys whose bands are not the 26 of COSMOS2020 are fitted through ``bandmap.BandMap``, with direct synthesis. Files are those of
``POPCOSMOS_DATA``. Used by notebook 08.

References
----------
Weaver et al. (2022), ADS 2022ApJS..258...11W; Khostovan et al. (2025), arXiv:2503.00120; Skelton et al. (2014), arXiv:1403.3689; Momcheva
et al. (2016), arXiv:1510.02106; Wright et al. (2019), arXiv:1812.06077 (KV450) and Hildebrandt et al. (2020), arXiv:1812.06076.
"""

from typing import NamedTuple

import numpy as np
import torch
from astropy.table import Table

from popcosmos_lib.catalog import catalogue, columns
from popcosmos_lib.fitting import inference
from popcosmos_lib.fitting.bandmap import BandMap
from popcosmos_lib.synthesis import filters

__all__ = ["FILES", "Sample", "cosmos", "distant", "kids", "threedhst"]

FILES = {
    "cosmos": "data/cosmos2020/cosmos2020_classic_26band_allz.fits",
    "distant": "data/cosmos2020/cosmos2020_classic_26band_z2.5plus.fits",
    "threedhst": "data/cosmos3dhst/cosmos_3dhst_v41_subset.fits",
    "kids": "data/kids/kv450_9band_specz.fits",
}
_INFLATE = {"u": 1.7, **dict.fromkeys("grizy", 1.4), "Y": 2.8, "J": 2.7, "H": 2.6, "Ks": 2.4, "Ch1": 1.0, "Ch2": 1.0}  # 1.6 for the others
_KIDS_FLOOR, _KIDS_FLOOR_U = 0.03, 0.05  # zero-point errors that steppz assumes (Leistedt+23)
_HST = {"g": "cfht_megacam_gs_9401", "r": "cfht_megacam_rs_9601", "i": "cfht_megacam_is_9701", "z": "cfht_megacam_zs_9801"}


class Sample(NamedTuple):
    """Galaxies of one survey.

    Attributes
    ----------
    id : list of str
    flux, flux_err : Tensor of shape (n, 26)
        [µJy], in the places of the 26 bands; NaN where there is none.
    z_spec : Tensor of shape (n,)
    published : Tensor of shape (n,)
        Photometric redshift of the survey's own code; NaN where none came with it.
    floor : Tensor of shape (26,)
        Fractional error of the model flux.
    bandmap : BandMap or None
        The emulator to fit with; None for the 26 bands themselves.
    """

    id: list
    flux: torch.Tensor
    flux_err: torch.Tensor
    z_spec: torch.Tensor
    published: torch.Tensor
    floor: torch.Tensor
    bandmap: object

    def of(self, rows):
        """Some of the galaxies."""
        index = torch.as_tensor(rows)
        parts = [getattr(self, name)[index] for name in ("flux", "flux_err", "z_spec", "published")]
        return Sample([self.id[i] for i in index.tolist()], *parts, self.floor, self.bandmap)


def _place(table, stems):
    """Fluxes and errors (n, 26) from columns: short name of the place -> stem of the column's name."""
    flux, flux_err = (torch.full((len(table), len(filters.SHORT)), torch.nan) for _ in range(2))
    for band, stem in stems.items():
        for values, suffix in ((flux, "FLUX"), (flux_err, "FLUXERR")):
            column = np.ma.filled(np.ma.asarray(table[f"{stem}_{suffix}"], float), np.nan)
            values[:, filters.SHORT.index(band)] = torch.from_numpy(np.asarray(column, np.float32))
    return flux, flux_err


def _redshift(table, name):
    z = torch.from_numpy(np.ma.filled(np.ma.asarray(table[name], float), np.nan)).float()
    return torch.where(z > 0, z, torch.nan)


def cosmos(path):
    """COSMOS2020 galaxies at all redshifts, errors as their authors fit them."""
    found = catalogue.read(path)
    nothing = torch.full_like(found.z_spec, torch.nan)
    ids = [f"cosmos {i}" for i in found.id]
    return Sample(ids, found.flux, found.flux_err, found.z_spec, nothing, inference.published_floor(), None)


def distant(path):
    """COSMOS2020 galaxies at z > 2.5 that the Lyman break does not contradict.

    Raw errors are inflated by the factors by which those of ``cosmos`` are larger for one galaxy that is in both; non-detections are
    limits. One in ten of the redshifts above 3.5 was wrong before the contradicted ones were left out; more may be.
    """
    found = catalogue.read(path)
    inflate = torch.tensor([_INFLATE.get(band, 1.6) for band in filters.SHORT])
    nothing = torch.full_like(found.z_spec, torch.nan)
    ids = [f"distant {i}" for i in found.id]
    sample = Sample(ids, found.flux, found.flux_err * inflate, found.z_spec, nothing, inference.published_floor(), None)
    return sample.of(torch.from_numpy(np.asarray(found.table["QC_LYMAN"]) == 0).nonzero()[:, 0])


def threedhst(path):
    """3D-HST galaxies of COSMOS with a spectroscopic or grism redshift: MegaCam griz, and 19 of the 26 bands."""
    table = Table.read(path)
    table = table[np.isin(table["z_type"], (1, 2))]
    same = {band: f"UVISTA_{band}" for band in ("Y", "J", "H", "Ks")} | {"u": "CFHT_u", "Ch1": "IRAC_CH1", "Ch2": "IRAC_CH2"}
    same |= {band: f"SC_IA{band[2:]}" for band in filters.SHORT if band[:2] in ("IA", "IB")}
    flux, flux_err = _place(table, {band: f"CFHT_{band}" for band in _HST} | same)
    curves = _HST | {band: filters.COSMOS26[filters.SHORT.index(band)] for band in same}
    ids = [f"3dhst {i}" for i in table["ID_3DHST"]]
    z = _redshift(table, "z_best")
    return Sample(ids, flux, flux_err, z, torch.full_like(z, torch.nan), inference.published_floor(), BandMap(curves))


def kids(path):
    """KiDS+VIKING galaxies in nine bands, with the published BPZ redshifts. Aperture fluxes: colours are right, totals low."""
    table = Table.read(path)
    flux, flux_err = _place(table, columns.KIDS)
    floor = torch.full((len(filters.SHORT),), _KIDS_FLOOR)
    floor[0] = _KIDS_FLOOR_U
    ids = [f"kids {i}" for i in table["ID"]]
    return Sample(ids, flux, flux_err, _redshift(table, "zspec"), _redshift(table, "z_BPZ"), floor, BandMap(columns.KIDS_CURVES))
