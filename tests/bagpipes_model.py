"""Photometry of bagpipes itself (Carnall et al. 2018), run in a process of its own on a copy of the package.

Importing bagpipes writes a table into its folder, prints, and changes matplotlib's settings: hence the copy (its grids linked, not copied)
and the process. As a script, the second half of this file is what runs there: `python bagpipes_model.py FOLDER`.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

__all__ = ["copy", "differences", "galaxies", "magnitudes"]

_METALS = [0.005, 0.02, 0.2, 0.4, 1.0, 2.5, 5.0]  # of the grid, in units of 0.02


def galaxies(n, generator):
    """Population-like histories and dust at z = 0.05 to 5.5, (n, 16) in float64, kept to what both engines have.

    Gas has the metallicity of the stars, below solar (``ssp`` has no gas above); dust_index is 0 and birth clouds add nothing, so that the
    attenuation curves are one; the torus is at its lower bound.
    """
    import torch

    from popcosmos_lib.galaxies import parameters, universe
    from popcosmos_lib.synthesis import ssp

    theta = universe.sample(n, generator).double()
    u = torch.rand(2, n, generator=generator, dtype=torch.float64)
    to_gas = float(np.log10(ssp.SOLAR_STARS / ssp.SOLAR_GAS))
    stars = -1.85 + u[0] * (1.85 - to_gas)
    fixed = {"z": 0.05 + 5.45 * u[1], "log10Z": stars, "log10Zgas": stars + to_gas, "dust_index": 0.0, "dust1_fraction": 0.0}
    for name, value in (fixed | {"lnfAGN": float(parameters.BOUNDS[parameters.INDEX["lnfAGN"], 0])}).items():
        theta[:, parameters.INDEX[name]] = value
    return theta


def differences(theta, folder, resolution=None, same_z=False):
    """Magnitudes of the synthesis minus those of bagpipes in the 26 bands, where these see nothing bluewards of 1250 Angstrom at rest.

    There the laws of intergalactic absorption differ. Arguments as for ``magnitudes``.

    Returns
    -------
    ndarray of shape (n_counted,)
        In float64 [mag].
    """
    from popcosmos_lib.galaxies import parameters
    from popcosmos_lib.synthesis import filters, sps

    bands = filters.load("cosmos")
    theirs, _ = magnitudes(theta, bands, folder, resolution, same_z)
    bluest = bands.wave[:, 0] / (1 + parameters.column(theta, "z")[:, None])
    return (sps.load().double().magnitudes(theta).numpy() - theirs)[bluest.numpy() > 1250]


def magnitudes(theta, bands, folder, resolution=None, same_z=False):
    """Apparent magnitudes and cost, by bagpipes, of galaxies in the physics that it shares with ``sps``.

    That is: seven bins of star formation, one metallicity for stars and gas, nebular emission, the curve of ``dust_index`` 0 (for which
    the two laws are one: bagpipes' "Salim" with delta = 0 and B = 0.85) on young and old stars alike, Draine & Li (2007) emission. Birth
    clouds, ``dust_index``, ``log10Zgas`` and the torus are not read. The cosmology is set to Planck18. Between the metallicities of the
    grid bagpipes interpolates in Z and ``sps`` in log Z: it is given the Z at which it mixes the same two grids in the same proportion.

    Parameters
    ----------
    theta : Tensor of shape (n, 16)
        SPS parameters.
    bands : filters.Filters
    folder : Path
        Where the copy goes, and the files that pass between the processes: an empty one, or the one of an earlier call.
    resolution : float, optional
        R_phot of bagpipes, the sampling of its photometric models; 100 by default, as there.
    same_z : bool
        Give bagpipes the metallicity of ``theta`` itself, so that the two mix the grids in different proportions.

    Returns
    -------
    magnitude : ndarray of shape (n, n_band)
        AB, before noise.
    seconds : ndarray of shape (n,)
        Time that ``model_galaxy.update`` took.

    Raises
    ------
    RuntimeError
        If the process fails; with the end of what it said.
    """
    from popcosmos_lib.galaxies import parameters
    from popcosmos_lib.synthesis import ssp

    copy(folder)
    theta = theta.double()
    edges = parameters.age_edges(parameters.column(theta, "z"))
    value = {name: parameters.column(theta, name).numpy() for name in parameters.NAMES}
    metallicity = 10 ** value["log10Z"] * ssp.SOLAR_STARS / 0.02
    if not same_z:
        metallicity = np.interp(np.log10(metallicity), np.log10(_METALS), _METALS)
    np.savez(
        folder / "galaxies.npz",
        wave=bands.wave.numpy(),
        transmission=bands.transmission.numpy(),
        edges=edges.numpy() * 1e3,  # Myr
        log_sfr=(parameters.mass_fractions(theta) / edges.diff(dim=-1)).log10().numpy(),
        log_mass=value["log10M_formed"],
        metallicity=metallicity,
        log_u=value["log10Ugas"],
        attenuation=2.5 / np.log(10) * value["dust2"],  # [mag] of an optical depth
        z=value["z"],
        resolution=0.0 if resolution is None else resolution,
    )
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, str(Path(__file__).resolve()), "."]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"bagpipes ended with an error: {result.stderr.strip()[-2000:]}")
    with np.load(folder / "photometry.npz") as answer:
        return answer["magnitude"], answer["seconds"]


def copy(folder):
    """The installed package under ``folder``, with links in place of its large files."""
    source = Path(importlib.util.find_spec("bagpipes").submodule_search_locations[0])
    target = folder / "bagpipes"
    if not target.exists():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.fits", "__pycache__"))
        for grid in source.glob("models/grids/*.fits"):
            (target / "models/grids" / grid.name).symlink_to(grid)


def _work():
    """In the process: read ``galaxies.npz`` here, write ``photometry.npz``."""
    import bagpipes
    from astropy.cosmology import Planck18

    given = dict(np.load("galaxies.npz"))
    if given["resolution"]:
        bagpipes.config.R_phot = float(given["resolution"])
    bagpipes.utils.ldist_at_z = Planck18.luminosity_distance(bagpipes.utils.z_array).value
    bagpipes.utils.age_at_z = Planck18.age(bagpipes.utils.z_array).value
    names = [f"band_{k}.txt" for k in range(len(given["wave"]))]
    for name, *columns in zip(names, given["wave"], given["transmission"], strict=True):
        np.savetxt(name, np.column_stack(columns))
    flux, seconds, model = [], [], None
    for k, z in enumerate(given["z"]):
        oldest = 1e3 * np.interp(z, bagpipes.utils.z_array, bagpipes.utils.age_at_z)
        rates = given["log_sfr"][k, ::-1]  # oldest first
        history = {
            "massformed": given["log_mass"][k],
            "metallicity": given["metallicity"][k],
            "bin_edges": np.minimum(given["edges"][k], oldest).tolist(),
            **{f"dsfr{i + 1}": change for i, change in enumerate(np.diff(rates))},
        }
        dust = {"type": "Salim", "delta": 0.0, "B": 0.85, "eta": 1.0, "qpah": 2.0, "umin": 1.0, "gamma": 0.01}
        components = {
            "redshift": z,
            "continuity": history,
            "nebular": {"logU": given["log_u"][k]},
            "dust": dust | {"Av": given["attenuation"][k]},
        }
        if model is None:
            model = bagpipes.model_galaxy(components, filt_list=names, phot_units="mujy")
        began = time.perf_counter()
        model.update(components)
        seconds.append(time.perf_counter() - began)
        flux.append(model.photometry)
    np.savez("photometry.npz", magnitude=23.9 - 2.5 * np.log10(flux), seconds=seconds)


if __name__ == "__main__":
    _work()
