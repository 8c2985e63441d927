"""Agreement of the synthesis with engines that others wrote: bagpipes, python-fsps and the public networks.

    python benchmarks/agreement.py [FILE]

One thread, about two minutes. bagpipes has the stellar and nebular grids of the synthesis; FSPS runs on toy stars (tests/fsps_home.py) that
the synthesis reads through it, so both comparisons are of the code, not of the stellar data. The public networks emulate FSPS on its own
stars and show how two stellar libraries differ. The same comparisons are asserted in tests/physics (test_bagpipes, test_fsps,
test_release_agreement). Writes FILE (benchmarks/results/agreement.json), which REPRODUCING reads.
"""

import json
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from unittest.mock import patch

import torch
from engines import reason

from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.emulation import release
from popcosmos_lib.galaxies import universe
from popcosmos_lib.synthesis import filters, fsps_backend, sps, ssp
from popcosmos_lib.workflow import tables

ROOT = Path(__file__).resolve().parents[1]
N_BAGPIPES, N_PUBLIC = 150, 4_000
FAINT = 30.0  # [mag] of the public networks, where the comparison with them ends


def summary(difference):
    """Size of differences in magnitudes: number, median, 95 % and 99 %, largest; NaN does not count."""
    size = difference[difference.isfinite()].abs().double()
    middle, p95, p99 = size.quantile(torch.tensor([0.5, 0.95, 0.99], dtype=torch.float64)).tolist()
    return {"n": len(size), "median": middle, "p95": p95, "p99": p99, "largest": size.max().item()}


def bagpipes(folder):
    """Rows against bagpipes, on the galaxies of tests/physics/test_bagpipes.py."""
    import bagpipes_model

    name, theta = f"bagpipes {metadata.version('bagpipes')}", bagpipes_model.galaxies(N_BAGPIPES, torch.Generator().manual_seed(8))
    mixture = "bagpipes interpolates in Z, the synthesis in log Z; here bagpipes has the Z at which it mixes the same two grids alike."
    sampling = "Most of the difference is how bagpipes samples the light for its bands; the rest comes from its age cells of 0.1 dex."
    same_z = "At one Z the two mix the grids in other proportions: the rest is how the two interpolate between seven metallicities."
    cases = [
        ("26 bands redwards of 1250 Angstrom; as shipped (R_phot = 100), same mixture of grids", mixture, {}),
        ("26 bands redwards of 1250 Angstrom; R_phot = 1000, same mixture of grids", sampling, {"resolution": 1000}),
        ("26 bands redwards of 1250 Angstrom; as shipped (R_phot = 100), same Z", same_z, {"same_z": True}),
    ]
    for what, note, options in cases:
        yield row(name, what, note, torch.as_tensor(bagpipes_model.differences(theta, folder, **options)))


def fsps(folder):
    """Rows against the real FSPS on toy stars, each component of the light switched on alone, as in tests/physics/test_fsps.py."""
    import fsps_home
    import fsps_model

    name = f"FSPS (python-fsps {metadata.version('fsps')})"
    places = {"SPS_HOME": str(fsps_home.build(folder / "fsps")), "POPCOSMOS_HOME": str(folder)}
    with patch.dict(os.environ, places):  # the torus and the populations of the synthesis come from there too
        reference = fsps_backend.load()
        try:
            grid, theta = ssp.load("fsps").data, fsps_model.population()
            note = "The histories, metallicities, dust and distance of one are those of the other."
            yield row(name, "spectra, 1250 Angstrom to 10 micron; all three off", note, fsps_model.composite(reference, grid, theta))
            difference = fsps_model.magnitudes(reference, grid, theta)
            note = "The tail is the Lyman series, cut by the pixels of FSPS."
            yield row(name, "26 bands; nebular emission, dust emission and AGN off", note, difference["all"])
            yield row(name, "of these, bands redwards of the Lyman series", "", difference["red"])
            difference = fsps_model.nebular(reference, grid, theta[::2])
            note = "FSPS draws lines as Gaussians two of its pixels wide, which narrow bands see; in the synthesis a line has no width."
            yield row(name, "26 bands; nebular emission on", note, difference["all"])
            yield row(name, "of these, bands that no line touches", "The gas is the same.", difference["clear"])
            yield row(name, "all of these, our lines drawn as FSPS draws them", "The lines are the same too.", difference["drawn"])
            note = "FSPS lets dust absorb its own light again: in the tail, that of hot toy grains at 1 to 2 micron."
            difference = fsps_model.dust_emission(reference, grid, theta[1::2])
            yield row(name, "bands that no line touches; dust and nebular emission on", note, difference["bands"])
            yield row(name, "spectra, 30 micron to 1 mm; the same", "The energy balance is the same.", difference["infrared"])
            note = "Without nebular emission FSPS gives the ionising photons to dust, the synthesis to none."
            difference = fsps_model.dust_emission(reference, grid, theta[1::2], without=("nebular", "agn"))
            yield row(name, "spectra, 30 micron to 1 mm; dust emission on alone", note, difference["infrared"])
            note = "FSPS 3.3 dims the torus by an optical depth of one whatever dust2 is; the papers' 3.2 and the synthesis by dust2."
            yield row(name, "26 bands; AGN on (ln fAGN = 0.5)", note, fsps_model.torus(reference, grid, theta))
            note = "Where dust2 is one the two agree: it is this one difference."
            yield row(name, "26 bands; AGN on, dust2 = 1", note, fsps_model.torus(reference, grid, theta, depth=1.0))
        finally:
            reference.close()


def row(engine, what, note, difference):
    """One line of the table, also printed as it comes."""
    measured = summary(difference)
    print(f"{engine}, {what}: median {measured['median']:.5f}, 95 % {measured['p95']:.4f}, 99 % {measured['p99']:.4f} mag", flush=True)
    return {"engine": engine, "missing": None, "what": what, "note": note, **measured}


def public():
    """Offset (median of ours minus theirs) and robust sigma of each band against the public networks [mag]."""
    theta = universe.sample(N_PUBLIC, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        ours, theirs = sps.load().magnitudes(theta), release.photulators().magnitudes(theta)
    rows = []
    for band, difference in zip(filters.SHORT, torch.where(theirs < FAINT, ours - theirs, torch.nan).T, strict=True):
        low, middle, high = difference.nanquantile(torch.tensor([0.16, 0.5, 0.84])).tolist()
        rows.append({"band": band, "n": int(difference.isfinite().sum()), "offset": middle, "sigma": 0.5 * (high - low)})
    return rows


def measure(comparisons):
    """Rows of all comparisons (dict of a label to a callable that gives rows); one that is missing or fails ends in a row that says why."""
    rows = []
    for label, compare in comparisons.items():
        try:
            for made in compare():
                rows.append(made)
        except Exception as error:  # whatever stops one engine must not stop the others
            rows.append({"engine": label, "missing": reason(error).replace(tempfile.gettempdir(), "...")})
            print(f"{label}: not measured: {rows[-1]['missing']}", flush=True)
    return rows


def main(target):
    """Measure, write ``target``, print the tables."""
    sys.path.insert(0, str(ROOT / "tests"))  # bagpipes_model, fsps_model
    torch.set_num_threads(1)
    made = provenance.benchmark(store.home(), "bagpipes")
    with tempfile.TemporaryDirectory() as scratch:
        peer, toy = (Path(scratch) / name for name in ("peer", "toy"))
        peer.mkdir(), toy.mkdir()
        rows = measure({"bagpipes": lambda: bagpipes(peer), "FSPS": lambda: fsps(toy)})
    networks = measure({"public networks": public})
    content = {
        "what": "the synthesis minus other engines: sizes of the differences; offset and robust sigma of each band of the networks; mag",
        **made,
        "rows": rows,
        "networks": networks,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(target, json.dumps(content, indent=1) + "\n")
    print(tables.agreement(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "agreement.json")
