"""Galaxies under the names, reddening, zero points and flags of COSMOS2020 FARMER: what its authors' file looks like."""

import torch
from astropy.table import Table

from popcosmos_lib import survey

REDDENING = 0.02  # E(B-V)


def farmer(folder, flux, flux_err):
    """Write galaxies (n, 26) [µJy], with 30 flagged objects and 20 stars among them; the path of the file."""
    n, bands = len(flux), survey.BANDS
    table = Table({"ID": range(n), "EBV_MW": [REDDENING] * n, "MODEL_FLAG": [0] * n, "FLAG_COMBINED": [0] * (n - 30) + [1] * 30})
    table["lp_type"] = [0] * 40 + [1] * 20 + [2] * (n - 60)  # twenty stars
    undo = 10 ** (0.4 * (torch.as_tensor(bands["offset_farmer"]) - REDDENING * torch.as_tensor(bands["extinction"])))
    for i, name in enumerate(bands["column"]):
        for values, suffix in ((flux, "FLUX"), (flux_err, "FLUXERR")):
            table[f"{name}_{suffix}"] = (values[:, i] * undo[i]).numpy()
            table[f"{name}_{suffix}"].unit = "uJy"
    path = folder / "COSMOS2020_FARMER.fits"
    table.write(path)
    return path
