"""Spectra of the same 16 parameters by FSPS (python-fsps): slow, and the reference where its data are installed.

FSPS keeps its state in Fortran and needs ``SPS_HOME`` before it is imported, so it runs in worker processes only; a crash there does not
take the notebook with it. Settings are those of the released pop-cosmos parameter file (Thorp+25 sect. 3.2): Chabrier mass function,
dust_type 4, Draine & Li dust, Madau absorption, metallicities smoothed by a three-point kernel. Introduced in notebook 01.

The FSPS inside fsps 0.4.7 (3.3) attenuates the torus with an optical depth of one whatever ``dust2`` is (FSPS issue 81); the papers used
3.2, and ``sps`` follows 3.2, so bright tori differ between the two by that factor. FSPS also lets dust absorb its own emission, and
does not let the intergalactic medium absorb the torus; ``sps`` does the opposite in both.
"""

import hashlib
import math
import multiprocessing
import os
import queue
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from popcosmos_lib.artefacts import store
from popcosmos_lib.galaxies import cosmology, parameters
from popcosmos_lib.synthesis import filters

__all__ = ["LSUN", "SOLAR", "Reference", "available", "data_digest", "load", "once", "population"]

LSUN = 3.839e33  # solar luminosity of FSPS [erg / s]
SOLAR = LSUN / 3.828e33  # over the nominal one (IAU 2015), in which this library counts
_STEP = 1e-6  # Gyr between the two sides of a bin's edge: a tabulated history must increase in time
_MASS = 1e10  # Msun, formed in the table so that no rate is tiny
_SETTINGS = {
    "zcontinuous": 2, "pmetals": -99.0, "imf_type": 1, "sfh": 3, "dust_type": 4, "dust1_index": -1.0, "dust_tesc": 7.0,
    "add_dust_emission": True, "duste_gamma": 0.01, "duste_umin": 1.0, "duste_qpah": 2.0, "add_agb_dust_model": True,
    "add_neb_emission": True, "add_neb_continuum": True, "nebemlineinspec": True, "add_igm_absorption": True,
}  # fmt: skip
_PARTS = ("nebular", "dust", "agn")
_DATA = ["ISOCHRONES", "SPECTRA", "dust", "nebular", "data"]  # below SPS_HOME
_population = _bands = None  # of this process, once _start has run


def available():
    """Whether ``SPS_HOME`` names a folder of FSPS data."""
    return os.path.isfile(os.path.join(os.environ.get("SPS_HOME", ""), "data", "emlines_info.dat"))


def load(bands=filters.COSMOS26, processes=1):
    """FSPS behind worker processes.

    Parameters
    ----------
    bands : str or list of str
        Anything ``filters.load`` takes.
    processes : int
        Workers; each takes about 0.7 GB and ten seconds to start, at the first spectrum.

    Returns
    -------
    Reference

    Raises
    ------
    FileNotFoundError
        If ``SPS_HOME`` does not name an FSPS data folder.
    """
    _require()
    return Reference(filters.load(bands), processes)


def data_digest():
    """Digest of the FSPS data by name, size and time of change of every file: a gigabyte is not read each time.

    Returns
    -------
    str
        64 hexadecimal characters.

    Raises
    ------
    FileNotFoundError
        If ``SPS_HOME`` does not name an FSPS data folder.
    """
    _require()
    home = Path(os.environ["SPS_HOME"])
    files = sorted(path for folder in _DATA for path in (home / folder).rglob("*") if path.is_file())
    lines = [f"{path.relative_to(home).as_posix()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join([repr(_SETTINGS), *lines]).encode()).hexdigest()


def once(task, *arguments):
    """``task(*arguments)`` in an FSPS process of its own, where ``population`` works; the task is a function of a module."""
    _require()
    worker = _Worker(_start, (None,))
    try:
        return worker.run(task, *arguments)
    finally:
        worker.close()


def population():
    """The ``fsps.StellarPopulation`` of this process; None outside a worker."""
    return _population


class Reference:
    """FSPS spectra and magnitudes for ``theta``, galaxy by galaxy.

    A galaxy whose process dies or raises is tried once more in a fresh one; if that fails too, its row is NaN, a line on stderr names it,
    and the others go on.

    Parameters
    ----------
    bands : filters.Filters
    processes : int

    Attributes
    ----------
    seconds : float
        Mean cost of a spectrum in the last call [s of one process]; also for rows that were read from disk.
    failures : dict of int to str
        Galaxies of the last call whose row is NaN, and why.
    computed : int
        Chunks of the last call that were not on disk.
    """

    def __init__(self, bands, processes):
        self.filters, self.bands = bands, list(bands.names)
        self.seconds, self.failures, self.computed = math.nan, {}, 0
        self.workers = [_Worker(_start, (bands,)) for _ in range(processes)]

    def spectrum(self, theta, without=(), folder=None, chunk=100):
        """Rest-frame spectra with everything in them: dust, lines, torus, intergalactic absorption.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters.
        without : sequence of {"nebular", "dust", "agn"}
            What to leave out: nebular emission, dust emission (not absorption), the torus.
        folder : str, optional
            Folder below ``artefacts`` for finished chunks. A later call with the same arguments computes only what is not there.
        chunk : int
            Galaxies per file.

        Returns
        -------
        wave : ndarray of shape (n_wave,)
            Rest wavelength [Angstrom].
        light : ndarray of shape (n, n_wave)
            Luminosity density [Lsun/Hz] of all the mass; NaN where FSPS failed.
        surviving : ndarray of shape (n,)
            Mass in stars and remnants per mass formed.

        Raises
        ------
        ValueError
            If a parameter is out of bounds, or a part is unknown.
        RuntimeError
            If FSPS does not start at all.
        """
        rows = parameters.check(theta).detach().double().cpu()
        result = self._rows(rows, _spectrum, without, folder, chunk)
        return self.wave, result["values"] * 10 ** parameters.column(rows, "log10M_formed").numpy()[:, None], result["surviving"]

    def magnitudes(self, theta, without=(), folder=None, chunk=100):
        """Apparent AB magnitudes through the curves of ``filters``, (n, n_band), at Planck18 distances; arguments as for ``spectrum``."""
        rows = parameters.check(theta).detach().double().cpu()
        absolute = torch.as_tensor(self._rows(rows, _magnitudes, without, folder, chunk)["values"])
        distance = cosmology.distance_modulus(parameters.column(rows, "z"))
        return absolute + (distance - 2.5 * parameters.column(rows, "log10M_formed"))[:, None]

    @property
    def wave(self):
        """Rest wavelength of the spectra [Angstrom], (n_wave,)."""
        if not hasattr(self, "_wave"):
            self._wave = self.workers[0].run(_wavelengths)
        return self._wave

    def close(self):
        """End the workers."""
        for worker in self.workers:
            worker.close()

    def _rows(self, theta, task, without, folder, chunk):
        """``task`` for every galaxy; dict of ``values`` (n, n_column), ``surviving`` (n,) and ``seconds`` (n,)."""
        unknown = set(without) - set(_PARTS)
        if unknown:
            raise ValueError(f"cannot leave out {', '.join(sorted(unknown))}: FSPS switches {', '.join(_PARTS)}")
        width = len(self.bands) if task is _magnitudes else len(self.wave)
        digest = data_digest() if folder else None
        idle, failures, computed = queue.SimpleQueue(), {}, []
        for worker in self.workers:
            idle.put(worker)
        bar = tqdm(total=len(theta), desc="FSPS", disable=None)

        def compute(start):
            """Rows of one chunk; a failed galaxy is NaN and keeps its chunk from being stored."""
            computed.append(start)
            worker, rows = idle.get(), []
            try:
                for i, row in enumerate(theta[start : start + chunk].numpy(), start):
                    try:
                        rows.append(worker.run(task, row, without))
                    except _Failed as error:
                        rows.append((np.full(width, np.nan), np.nan, np.nan))
                        failures[i] = str(error)
                        named = ", ".join(f"{name} {value:.6g}" for name, value in zip(parameters.NAMES, row, strict=True))
                        print(f"FSPS: galaxy {i} (chunk {start // chunk}) failed twice: {error}; its row is NaN; {named}", file=sys.stderr)
                    bar.update()
            finally:
                idle.put(worker)
            data = dict(zip(("values", "surviving", "seconds"), map(np.array, zip(*rows, strict=True)), strict=True))
            if folder is not None and any(i in failures for i in range(start, start + chunk)):
                raise _Incomplete(data)
            return data

        def one(start):
            if folder is None:
                return compute(start)
            try:
                return store.load_or_compute(
                    f"{task.__name__.strip('_')}_{start // chunk:05d}",
                    lambda: compute(start),
                    profile=folder,
                    kind="npz",
                    parameters={"without": sorted(without), "bands": self.bands if task is _magnitudes else None},
                    inputs={"theta": hashlib.sha256(theta[start : start + chunk].numpy().tobytes()).hexdigest(), "fsps_data": digest},
                ).data
            except _Incomplete as error:
                return error.data

        with ThreadPoolExecutor(len(self.workers)) as threads:
            jobs = {threads.submit(one, start): start for start in range(0, len(theta), chunk)}
            try:
                parts = {jobs[job]: job.result() for job in as_completed(jobs)}
            except BaseException:
                threads.shutdown(cancel_futures=True)  # chunks in progress end; finished ones are on disk
                raise
            finally:
                bar.close()
        result = {name: np.concatenate([parts[start][name] for start in sorted(parts)]) for name in ("values", "surviving", "seconds")}
        self.seconds, self.failures, self.computed = float(np.nanmean(result["seconds"])), dict(sorted(failures.items())), len(computed)
        return result


class _Failed(RuntimeError):
    """A task that failed in two processes."""


class _Incomplete(RuntimeError):
    """A chunk with failed galaxies, which is returned but not kept."""

    def __init__(self, data):
        super().__init__("a chunk with failed galaxies")
        self.data = data


class _Worker:
    """One process, started when it is first needed and replaced when it fails."""

    def __init__(self, start, arguments):
        self.start, self.arguments, self.pool = start, arguments, None

    def run(self, task, *arguments):
        """``task(*arguments)`` in the process; _Failed if it dies or raises, there and in a fresh one."""
        for _ in range(2):
            pool = self._ready()
            try:
                return pool.submit(task, *arguments).result()
            except BrokenExecutor:
                reason = "the process died"
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            self.close()
        raise _Failed(reason)

    def close(self):
        if self.pool is not None:
            self.pool.shutdown()
        self.pool = None

    def _ready(self):
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=self.start, initargs=self.arguments)
            try:
                self.pool.submit(os.getpid).result()
            except BrokenExecutor:
                self.close()
                raise RuntimeError("FSPS does not start: its messages are above; check the data below SPS_HOME") from None
        return self.pool


def _require():
    if not available():
        home = os.environ.get("SPS_HOME")
        found = f"SPS_HOME={home} holds no FSPS data" if home else "SPS_HOME is not set"
        raise FileNotFoundError(f"{found}: `make data ID=fsps_home` fetches them; then set SPS_HOME to the unpacked folder")


def _start(bands):
    global _population, _bands
    import fsps

    torch.set_num_threads(1)
    _population, _bands = fsps.StellarPopulation(**_SETTINGS), bands
    _population._all_ssp_spec()  # builds the simple populations, so that the first spectrum costs what the others do


def _wavelengths():
    return _population.wavelengths


def _apply(row, without=()):
    """Hand one theta (16,) to this process's FSPS; returns the age of the universe [Gyr]."""
    theta = torch.as_tensor(row)
    edges = parameters.age_edges(theta[-1]).numpy()
    rate = _MASS * parameters.mass_fractions(theta).numpy() / (np.diff(edges) * 1e9)  # Msun / yr, youngest bin first
    start, stop = edges[-1] - edges[1:] + _STEP, edges[-1] - edges[:-1]
    _population.set_tabular_sfh(np.column_stack([start, stop])[::-1].ravel(), np.repeat(rate[::-1], 2))
    value = dict(zip(parameters.NAMES, row.tolist(), strict=True))
    settings = {
        "logzsol": value["log10Z"], "dust2": value["dust2"], "dust1": value["dust2"] * value["dust1_fraction"],
        "dust_index": value["dust_index"], "fagn": 0.0 if "agn" in without else math.exp(value["lnfAGN"]),
        "agn_tau": math.exp(value["lntauAGN"]), "gas_logz": value["log10Zgas"], "gas_logu": value["log10Ugas"], "zred": value["z"],
        "add_neb_emission": "nebular" not in without, "add_dust_emission": "dust" not in without,
    }  # fmt: skip
    for name, setting in settings.items():
        _population.params[name] = setting
    return edges[-1]


def _spectrum(row, without):
    """Light [Lsun/Hz] per Msun formed, surviving mass per Msun formed, and what they cost [s]."""
    began = time.perf_counter()
    _, light = _population.get_spectrum(tage=_apply(row, without))
    return light * (SOLAR / _MASS), _population.stellar_mass / _MASS, time.perf_counter() - began


def _magnitudes(row, without):
    """Absolute AB magnitudes of the redshifted spectrum of 1 Msun at 10 pc, and as ``_spectrum``."""
    light, surviving, seconds = _spectrum(row, without)
    stretch = 1 + row[parameters.INDEX["z"]]
    flux = _bands.average(_population.wavelengths * stretch, light * stretch)
    return (filters.AB_SOLAR - 2.5 * torch.log10(flux)).numpy(), surviving, seconds
