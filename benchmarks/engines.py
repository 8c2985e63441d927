"""Cost and accuracy of photometry engines in one run: python-fsps, bagpipes, the synthesis, its emulator, the public networks.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/engines.py [FILE]

Everything runs on one thread, the engines in turn, ROUNDS times over, so that a busy spell of the machine strikes all of them; rates are
medians, and the load of the machine at the start is kept with them. (Of two threads on a busy machine, one waits for the other: PASSIVE
keeps it from spinning, which costs a factor of ten.) FSPS runs on toy stars (tests/fsps_home.py): its cost per spectrum does not depend
on the stellar data. Errors are against the synthesis, where brighter than emulator.FAINT. Writes FILE (benchmarks/results/engines.json),
which docs/benchmarks.md and notebook 02 read.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.emulation import emulator, release
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.synthesis import filters, fsps_backend, sps
from popcosmos_lib.workflow import tables

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 5
N_ERROR, N_FSPS, N_BAGPIPES, N_SYNTHESIS, N_NETWORK = 20_000, 10, 40, 1_000, 16_384


@dataclass
class Engine:
    """One row of the table; a field that an engine does not have stays None.

    ``cost`` returns the seconds one galaxy takes, measured now; ``magnitudes`` takes theta and is differentiable; ``error`` returns
    magnitudes minus those of the synthesis, (n, n_band) with NaN where they do not count.
    """

    name: str
    note: str
    cost: callable
    magnitudes: callable = None
    error: callable = None
    module: torch.nn.Module = None
    batch: int = 0
    samples: dict = field(default_factory=lambda: {"rate": [], "two_threads": [], "gradient": [], "gpu": []})


def seconds(function, theta):
    """Time that one galaxy of a batch takes [s]."""
    began = time.perf_counter()
    function(theta)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / len(theta)


def backward(function):
    """The function followed by one pass back to the parameters, as a calibration step uses it."""

    def run(theta):
        theta = theta.clone().requires_grad_(True)
        torch.autograd.grad(function(theta).sum(), theta)

    return run


def fsps(sky):
    """The real FSPS in a worker process, everything on; warm before it is timed, as its first spectra build the stellar populations."""
    import fsps_home

    previous = os.environ.get("SPS_HOME")
    os.environ["SPS_HOME"] = str(fsps_home.build(sky.folder / "fsps"))
    try:
        reference = fsps_backend.load()
        reference.spectrum(sky.theta[: 4 * N_FSPS])
    finally:  # the torus of the synthesis would come from there too
        os.environ.pop("SPS_HOME") if previous is None else os.environ.update(SPS_HOME=previous)
    sky.closing.append(reference.close)
    note = "spectrum with everything on; toy stars, on which the cost does not depend"
    return Engine(f"FSPS (python-fsps {metadata.version('fsps')})", note, lambda: seconds(reference.spectrum, sky.theta[:N_FSPS]))


def bagpipes(sky):
    """bagpipes as shipped, ``model_galaxy.update`` for 26 bands, on the galaxies of tests/physics/test_bagpipes.py."""
    import bagpipes_model

    bands = filters.load("cosmos")
    theta = bagpipes_model.galaxies(150, torch.Generator().manual_seed(8))
    folder = sky.folder / "peer"
    folder.mkdir()

    def error():
        bluest = bands.wave[:, 0] / (1 + parameters.column(theta, "z")[:, None])
        theirs = torch.as_tensor(bagpipes_model.magnitudes(theta, bands, folder)[0])
        return torch.where(bluest > 1250, theirs - sky.synthesiser.magnitudes(theta), torch.nan)

    def cost():
        return statistics.median(bagpipes_model.magnitudes(theta[:N_BAGPIPES], bands, folder)[1])

    return Engine(f"bagpipes {metadata.version('bagpipes')}", "26 bands; error where the physics is shared", cost, error=error)


def synthesis(sky):
    """Our synthesis, the reference of the errors."""
    return _torch("synthesis", "26 bands, R = 300", sky.synthesiser, sky, N_SYNTHESIS, reference=True)


def emulated(sky):
    """The photometry emulator of this installation."""
    return _torch("emulator", "26 bands, lines included", emulator.load(), sky, N_NETWORK)


def public(sky):
    """The public networks, fused: emulators of FSPS, so their error is how two stellar libraries differ, not how well they were trained."""
    return _torch("public networks", "26 bands; error: another stellar library", release.photulators(), sky, N_NETWORK // 4)


def _torch(name, note, module, sky, batch, reference=False):
    def error():
        with torch.no_grad():
            return torch.where(sky.truth < emulator.FAINT, module.magnitudes(sky.theta) - sky.truth, torch.nan)

    def cost():
        with torch.no_grad():
            return seconds(module.magnitudes, sky.theta[:batch])

    return Engine(name, note, cost, module.magnitudes, None if reference else error, module, batch)


@dataclass
class Sky:
    """What the engines share: galaxies, the synthesiser and its magnitudes of them, a scratch folder, and what to call at the end."""

    folder: Path
    theta: torch.Tensor = None
    synthesiser: sps.Synthesiser = None
    truth: torch.Tensor = None
    closing: list = field(default_factory=list)


def measure(makers, sky, rounds=ROUNDS):
    """Rows of the table, in the order of ``makers``; an engine that is missing or fails becomes a row that says why."""
    rows, engines = {}, {}
    for label, make in makers.items():
        rows[label] = {"engine": label, "missing": None}
        try:
            engines[label] = make(sky)
            print(f"{label}: ready", flush=True)
        except Exception as error:  # whatever stops one engine must not stop the others
            rows[label]["missing"] = reason(error)
    for _ in range(rounds):
        for label, engine in list(engines.items()):
            try:
                _sample(engine, sky)
            except Exception as error:
                rows[label]["missing"] = reason(error)
                del engines[label]
    for label, engine in engines.items():
        rates = {kind: 1 / statistics.median(taken) if taken else None for kind, taken in engine.samples.items()}
        rows[label] |= {"engine": engine.name, "note": engine.note, **rates, **_accuracy(engine)}
    return list(rows.values())


def _sample(engine, sky):
    torch.set_num_threads(1)
    engine.samples["rate"].append(engine.cost())
    if engine.magnitudes:
        engine.samples["gradient"].append(seconds(backward(engine.magnitudes), sky.theta[: engine.batch]))
        torch.set_num_threads(2)
        engine.samples["two_threads"].append(engine.cost())
        torch.set_num_threads(1)
        if torch.cuda.is_available():
            with torch.no_grad():
                engine.samples["gpu"].append(seconds(engine.module.cuda().magnitudes, sky.theta.cuda().repeat(10, 1)))
            engine.module.cpu()


def _accuracy(engine):
    """Robust sigma and standard deviation [mag] of the median band."""
    if engine.error is None:
        return {"sigma": None, "sd": None}
    error = engine.error()
    sd = torch.stack([band[band.isfinite()].std() for band in error.T])
    return {"sigma": float(emulator.robust_sigma(error).median()), "sd": float(sd.median())}


def reason(error):
    """What an error says, on one line, without the places of this machine."""
    text = " ".join(str(error).split()) or type(error).__name__
    for place in (os.environ.get("POPCOSMOS_DATA"), str(store.home()), str(Path.home())):
        text = text.replace(place, "...") if place else text
    return text


def main(target):
    """Measure, write ``target``, print the table."""
    sys.path.insert(0, str(ROOT / "tests"))  # fsps_home, bagpipes_model
    torch.set_num_threads(1)
    made = provenance.benchmark(store.home(), "bagpipes")
    makers = {"FSPS": fsps, "bagpipes": bagpipes, "synthesis": synthesis, "emulator": emulated, "public networks": public}
    with tempfile.TemporaryDirectory() as folder:
        sky = Sky(Path(folder), universe.sample(N_ERROR, torch.Generator().manual_seed(0)), sps.load())
        with torch.no_grad():
            sky.truth = sky.synthesiser.magnitudes(sky.theta)
        try:
            rows = measure(makers, sky)
        finally:
            for close in sky.closing:
                close()
    content = {
        "what": "photometry engines on one thread; medians over rounds in which they took turns; rates in galaxies per second",
        **made,
        "rounds": ROUNDS,
        "rows": rows,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(target, json.dumps(content, indent=1) + "\n")
    print(tables.engines(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "engines.json")
