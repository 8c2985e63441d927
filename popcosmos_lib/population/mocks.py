"""Mock catalogues: galaxies of the population as a survey would measure and select them, a few or a million.

Galaxies are drawn in chunks of fixed size, each from a seed of its own, and the catalogue is the first n that pass the selection: a shorter
mock of the same seed is the beginning of a longer one. (Another device, or number of threads, rounds differently in the last digit.) Names
follow the public mocks of Thorp et al. (2025), with fluxes in microjansky instead of maggies. ``population.mock`` and
``python -m popcosmos_lib mock`` are the ways in.

References
----------
Alsing et al. (2024), arXiv:2402.00935 sect. 3; Thorp et al. (2025), arXiv:2506.12122 sect. 3, sect. 4.6 (limits of mass) and appendix C
(derived quantities).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from astropy.table import Table, vstack
from torch import nn
from tqdm import tqdm

from popcosmos_lib import __version__, survey
from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.emulation.emulator import having
from popcosmos_lib.galaxies import parameters, relations, universe
from popcosmos_lib.population.model import load as load_population
from popcosmos_lib.survey import definitions, likelihood
from popcosmos_lib.survey.forward_model import SELECTION, Photometry
from popcosmos_lib.synthesis import sps

__all__ = ["CHUNK", "Mock", "load", "mock"]

CHUNK = 4096  # galaxies drawn from one seed; another number would give other galaxies
_ROWS = 16 * CHUNK  # galaxies in a table, which bounds the memory
_PATIENCE = 20  # chunks without success before a selection is called hopeless
_FEWEST = 1e-3  # fraction selected below which it is
_DERIVED = {"age": "Gyr", "log10M_remain": "dex(Msun)", "log10SFR": "dex(Msun / yr)", "log10sSFR": "dex(1 / yr)"}
_LIMITS = {  # column: what is true of a galaxy that has it
    "mass_complete": "surviving mass above the most frequent one at its redshift, below which the selection begins to lose galaxies",
    "mass_995": "surviving mass below the 99.5th percentile of the selected galaxies at its redshift",
}
_PILOT, _MOST, _BIN = 4 * CHUNK, 64, 1024  # galaxies from which the limits come, chunks that they may take, galaxies in a redshift bin
_ELSEWHERE = 2**62  # their stream, which is that of no mock
_FLUXES = ("flux", "flux_err", "flux_true")


class Mock:
    """Recipe of one mock catalogue.

    Parameters
    ----------
    model : population.Population
        Galaxies; anything with ``sample(n, generator)``. Its device is that of the computation.
    sky : survey.Survey
    synthesiser : sps.Synthesiser
        Of the survey's bands: derived quantities, and magnitudes where there is no emulator.
    emulator : object with ``magnitudes(theta)`` and ``bands``, optional
        Faster magnitudes; it needs the survey's bands among its own.
    selection : str, optional
        Cuts on observed flux, as for ``survey.select``; by default the survey's own.

    Attributes
    ----------
    units : dict of str to str
        Unit of each column, in order: the 16 parameters; mass-weighted ``age``, surviving mass ``log10M_remain``, ``log10SFR`` over 100 Myr
        and ``log10sSFR`` (per surviving mass); ``flux_<band>``, ``flux_err_<band>`` and, without noise, ``flux_true_<band>``. Tables end
        with two more, boolean and without unit, that ``limits`` decide: ``mass_complete`` and ``mass_995``.
    meta : dict
        Survey, selection, limits of mass and digests of the networks; it goes into every table.

    Raises
    ------
    ValueError
        If the selection cannot be read.
    """

    def __init__(self, model, sky, synthesiser, *, emulator=None, selection=None):
        self.model, self.sky, self.synthesiser = model, sky, synthesiser
        self.selection = selection or sky.cuts
        survey.select(torch.zeros(1, len(sky.bands)), self.selection, sky.bands)  # now rather than after the first chunk
        self.engine = emulator or synthesiser
        self.columns = [self.engine.bands.index(curve) for curve in sky.bands.values()]
        self.units = dict(zip(parameters.NAMES, parameters.UNITS, strict=True)) | _DERIVED
        self.units |= {f"{kind}_{band}": "uJy" for kind in _FLUXES for band in sky.bands}
        networks = {"population": model, "emulator": emulator, "uncertainty": sky.uncertainty}
        self.meta = {
            "selection": self.selection,
            "bands": {band: Path(curve).name for band, curve in sky.bands.items()},
            "photometry": "direct synthesis" if emulator is None else "emulator",
            "networks": {name: _digest(network) for name, network in networks.items() if isinstance(network, nn.Module)},
            "versions": {"popcosmos": __version__} | provenance.versions(),
        }

    def flux_true(self, theta: torch.Tensor) -> torch.Tensor:
        """Noiseless fluxes of galaxies (n, 16) in the bands of the survey, (n, n_band) [µJy]."""
        return likelihood.model_flux(likelihood.photometry(self.engine, theta)[:, self.columns])

    def observe(self, flux_true: torch.Tensor, generator: torch.Generator) -> Photometry:
        """Observe galaxies of given noiseless fluxes.

        Parameters
        ----------
        flux_true : Tensor of shape (n, n_band)
            Noiseless flux [µJy].
        generator : torch.Generator
            Errors and noise.

        Returns
        -------
        forward_model.Photometry
        """
        draws = torch.randn(len(flux_true), self.sky.uncertainty.width, generator=generator)
        flux_err = self.sky.sigma(flux_true, draws=draws)
        flux = self.sky.observe(flux_true, flux_err, draws=self.sky.noise(flux_true.shape, generator))
        return Photometry(flux, flux_err, flux_true, survey.select(flux, self.selection, self.sky.bands))

    @torch.no_grad()
    def photometry(self, theta: torch.Tensor, generator: torch.Generator) -> Photometry:
        """Observe galaxies of given parameters (n, 16): ``observe`` of their ``flux_true``."""
        return self.observe(self.flux_true(theta), generator)

    @torch.no_grad()
    def chunk(self, stream: int, index: int) -> torch.Tensor:
        """Galaxies that pass the selection, among ``CHUNK``.

        Parameters
        ----------
        stream, index : int
            Random stream, and number of the chunk in it.

        Returns
        -------
        Tensor of shape (m, n_column)
            In the order of ``units``, on the CPU; m is at most ``CHUNK``.
        """
        seed = np.random.SeedSequence([stream, index]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        generator = torch.Generator().manual_seed(int(seed))  # on the CPU, so that every device sees the same galaxies
        theta = self.model.sample(CHUNK, generator)
        seen = self.photometry(theta, generator)
        derived = self.synthesiser.derived(theta)
        derived = torch.stack([derived[name] for name in ("age", "log_mass", "log_sfr", "log_ssfr")], -1)
        return torch.cat([theta, derived, seen.flux, seen.flux_err, seen.flux_true], -1)[seen.selected].cpu()

    @cached_property
    def limits(self) -> dict:
        """Limits between which the selected galaxies are complete in mass, from 16,384 others that pass (fewer, if hardly any pass).

        Returns
        -------
        dict
            ``z``, the two redshifts between which there are galaxies enough to tell; for either column the arguments of
            ``universe.hermite_limit``: through the most frequent surviving mass and its 99.5th percentile in redshift bins of equal number,
            as Thorp+25 sect. 4.6 and appendix E.
        """
        rows, index = self.chunk(_ELSEWHERE, 0), 1
        while len(rows) < _PILOT and index < _MOST:
            rows, index = torch.cat([rows, self.chunk(_ELSEWHERE, index)]), index + 1
        mass, z = (rows[:, list(self.units).index(name)] for name in ("log10M_remain", "z"))
        z, *limits = relations.modal_mass(mass, z, max(1, len(rows) // _BIN)).T
        found = {name: relations.fit_limit(z, limit) for name, limit in zip(_LIMITS, limits, strict=True)}
        return {"z": [float(z[0]), float(z[-1])]} | found

    def tables(self, n: int, generator: torch.Generator) -> Iterator[Table]:
        """A catalogue of ``n`` galaxies, in pieces.

        Parameters
        ----------
        n : int
            Galaxies that pass the selection.
        generator : torch.Generator
            Used once, to choose the random stream.

        Yields
        ------
        Table
            With units and ``meta``; 65,536 rows, the last one fewer. Memory does not grow with n.

        Raises
        ------
        ValueError
            If n is not positive, or hardly any galaxy passes the selection.
        """
        if n < 1:
            raise ValueError(f"a mock needs at least one galaxy; got n = {n}")
        self.meta["seed"] = generator.initial_seed()
        stream = int(torch.randint(2**62, (), generator=generator))
        waiting, index, made = torch.empty(0, len(self.units)), 0, 0
        with tqdm(total=n, unit="galaxy", desc="mock", disable=None) as progress:
            while made + len(waiting) < n:
                rows = self.chunk(stream, index)
                waiting, index = torch.cat([waiting, rows]), index + 1
                progress.update(min(len(rows), n - progress.n))
                if index >= _PATIENCE and made + len(waiting) < _FEWEST * index * CHUNK:
                    raise ValueError(
                        f"fewer than one galaxy in {1 / _FEWEST:.0f} of the {SELECTION} population passes {self.selection!r}; "
                        "loosen the cut"
                    )
                while len(waiting) >= _ROWS and made + _ROWS < n:
                    yield self._table(waiting[:_ROWS])
                    waiting, made = waiting[_ROWS:], made + _ROWS
        yield self._table(waiting[: n - made])

    def _table(self, rows):
        table = Table(rows.numpy(), names=list(self.units), units=[unit or None for unit in self.units.values()])
        mass, z = (torch.as_tensor(table[name].data, dtype=torch.float64) for name in ("log10M_remain", "z"))
        first, last = self.limits["z"]
        lowest, highest = (universe.hermite_limit(z.clamp(first, last), **self.limits[name]) for name in _LIMITS)
        table["mass_complete"] = ((mass > lowest) & (first < z) & (z < last)).numpy()
        table["mass_995"] = (mass < highest).numpy()
        for name, meaning in _LIMITS.items():
            table[name].description = meaning
        table.meta = self.meta | {"mass_limits": self.limits}
        return table


def load(
    name: Path | str = "cosmos2020",
    selection: str | None = None,
    *,
    profile: str = "published",
    emulator: str | None = None,
    device: str | None = None,
) -> Mock:
    """Recipe of mock catalogues of the calibrated population in a survey.

    Parameters
    ----------
    name : str or Path
        Survey, see ``definitions.load``.
    selection : str, optional
        Cuts on observed flux; by default the survey's own. The population itself ends at r < 25 in COSMOS2020: galaxies beyond are in
        no mock, and in that survey the cut is always among the cuts.
    profile : str
        Whose population and uncertainty model, as for ``population.load``.
    emulator : str, optional
        Whose emulator, as for ``emulator.load``; that of the population by default.
    device : str, optional
        Where to compute; CUDA if it is there, by default.

    Returns
    -------
    Mock
        With the emulator of notebook 02 that has the survey's bands, or with the direct synthesis where none has.

    Raises
    ------
    ValueError
        If there is no such survey, or the selection names other bands than its own.
    store.Missing
        If the population, or the uncertainty model of COSMOS2020, has not been made; the message says how.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sky = definitions.load(name, profile)
    if isinstance(sky.uncertainty, nn.Module):
        sky.uncertainty.to(device)
    if str(name) == "cosmos2020" and selection not in (None, SELECTION):
        selection = f"{SELECTION} and {selection}"
    trained = having(sky.bands.values(), emulator or profile)
    made = Mock(
        load_population(profile).to(device),
        sky,
        sps.load(list(sky.bands.values())).to(device),
        emulator=None if trained is None else trained.to(device),
        selection=selection,
    )
    limit = f"p(theta | {SELECTION} in COSMOS2020)"
    about = {"survey": Path(name).name, "population": limit, "profile": profile}
    if Path(name).is_file():
        about["definition"] = provenance.sha256(name)
    made.meta = about | made.meta | {"code": provenance.git(store.home())}
    return made


def mock(
    n: int, survey: Path | str = "cosmos2020", selection: str | None = None, *, generator: torch.Generator, profile: str = "published"
) -> Table:
    """A mock catalogue of the calibrated population, in memory; ``python -m popcosmos_lib mock`` writes one of any size.

    Parameters
    ----------
    n : int
        Number of galaxies in the catalogue.
    survey : str or Path
        ``"cosmos2020"``, ``"kids"``, ``"lsst-y1"``, or the path of a YAML file, see ``definitions.load``.
    selection : str, optional
        Cuts on observed flux, such as ``"r<25"`` or ``"i>=17.5 and i<22.5"``; by default the survey's own. All galaxies pass r < 25 in
        COSMOS2020 in any case.
    generator : torch.Generator
        Source of randomness.
    profile : str
        As for ``load``.

    Returns
    -------
    Table
        Columns and units: see `Mock`.

    Raises
    ------
    ValueError
        If the survey or the selection cannot be read, or hardly any galaxy passes.
    store.Missing
        If notebook 04 has not been run; the message says how.
    """
    parts = list(load(survey, selection, profile=profile).tables(n, generator))
    table = vstack(parts, metadata_conflicts="silent")
    table.meta = parts[0].meta  # which vstack would repeat for each part
    return table


def _digest(network):
    """SHA-256 of the weights as ``store`` would write them: that of the artefact's file, where nothing was changed since."""
    return hashlib.sha256(safetensors.torch.save({name: t.cpu().contiguous() for name, t in network.state_dict().items()})).hexdigest()
