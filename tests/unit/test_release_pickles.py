"""Refusals: nothing that a pickle names is run, whichever file it is in."""

import os
import pickle
import types
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from popcosmos_lib.emulation import release, release_pickles
from popcosmos_lib.synthesis import filters

PHOTULATORS = [f"model_4x128_alsing20_{band}_cpu.pt" for band in filters.COSMOS26]
LINES = [f"emline_speculator_models/{name}" for name in ("speculator-emlinesabsmags", "PCABasis.npz", "elams.npy")]
LINES += [f"emline_bandpass_models/line_gengmmcoeffs_{band}.npy" for band in filters.COSMOS26]
MASS = ["stellar_mass_emulator.pt", "stellar_mass_parameter_shift-scale.pkl"]
READERS = [  # loader, its files, which of them holds the trap, what the loader is given
    (release.photulators, PHOTULATORS, 0, ""),
    (release.lines, LINES, 0, ""),
    (release.lines, LINES, 2, ""),
    (release.stellar_mass, MASS, 0, ""),
    (release.stellar_mass, MASS, 1, ""),
    (release.noise_model, ["noiseModel.pt"], 0, "noiseModel.pt"),
    (release.population, ["catalogueModelT25.pt"], 0, "catalogueModelT25.pt"),
]


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Gadget:
    def __reduce__(self):
        return eval, ("__import__('os').system('true')",)


class Recoded:
    """Bytes in a codec of the file's choice."""

    def __reduce__(self):
        return __import__("_codecs").encode, ("", "rot13")


def write(value, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.array([value], dtype=object), allow_pickle=True)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(value))
    else:
        torch.save(value, path)


@pytest.mark.parametrize(("load", "names", "trapped", "given"), READERS, ids=lambda value: getattr(value, "__name__", None))
def test_no_reader_runs_a_command(load, names, trapped, given, tmp_path, home):
    folder, trap = tmp_path / "files", tmp_path / "it_ran"
    for name in names:
        write({}, folder / name)
    if names is LINES:
        np.savez(folder / names[1], parameters_shift=np.zeros(16))
    write(Command(trap), folder / names[trapped])
    with pytest.raises((release_pickles.Refused, ValueError), match="system|allow_pickle"):
        load(folder / given)
    assert not trap.exists(), "the pickled command ran"
    assert not list((home / "artefacts").rglob("*.safetensors")), "a refused file left something in the store"


def test_the_trap_is_a_trap(tmp_path):
    torch.save(Command(tmp_path / "it_ran"), tmp_path / "bad.pt")
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (tmp_path / "it_ran").exists(), "the command of the other tests does nothing, so they show nothing"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Gadget, "builtins.eval|__builtin__.eval"),
        (Recoded, "rot13"),
        (lambda: {"a": nn.Conv1d(1, 1, 1)}, "torch.nn.modules.conv.Conv1d"),
        (lambda: torch.jit.ScriptModule, "ScriptModule"),
        (lambda: getattr, "getattr"),
        (lambda: types.SimpleNamespace(a=1), "types.SimpleNamespace"),
        (lambda: np.array([{}], dtype=object), "'O8'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_whatever_a_network_does_not_need_is_refused_by_name(make, name, suffix, tmp_path):
    write(make(), tmp_path / f"bad{suffix}")
    with pytest.raises(release_pickles.Refused, match=name):
        release_pickles.read(tmp_path / f"bad{suffix}")


def test_a_file_cannot_change_what_the_next_one_meets(tmp_path):
    """BUILD sets attributes on whatever the file has named, classes and functions among them."""
    state = b"}X\x08\x00\x00\x00__name__X\x04\x00\x00\x00maskX\x04\x00\x00\x00markK\x01ub."
    state = state.replace(b"}X", b"N}(X").replace(b"ub.", b"u\x86b.")  # (None, {...}): by setattr
    (tmp_path / "function.pkl").write_bytes(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state)
    assert release_pickles.read(tmp_path / "function.pkl").mark == 1
    assert not hasattr(release_pickles._tensor, "mark") and release_pickles._tensor.__name__ == "_tensor"
    (tmp_path / "class.pkl").write_bytes(b"\x80\x02ctorch.nn.modules.linear\nLinear\n" + state)
    with pytest.raises(ValueError, match="class.pkl is damaged"):
        release_pickles.read(tmp_path / "class.pkl")


def test_networks_and_arrays_are_read_as_they_were_written(tmp_path):
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2).double())
    write(network, tmp_path / "network.pt")
    found = release_pickles.tensors(release_pickles.read(tmp_path / "network.pt"))
    assert found.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype
    arrays = np.arange(6, dtype=np.float32).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))
    for protocol in (2, 4):
        (tmp_path / "arrays.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
        for read, array in zip(release_pickles.read(tmp_path / "arrays.pkl"), arrays, strict=True):
            np.testing.assert_array_equal(read.tensor.numpy(), array)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "network.pt"
    write(nn.Linear(20, 30), path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    path.write_bytes(whole[:-200])
    with pytest.raises(ValueError, match="network.pt is damaged"):
        release_pickles.read(path)
    path.write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match="network.pt is damaged"):
        release_pickles.read(path)
    short = next(name for name in records if name.endswith("/data/0"))
    records[short] = records[short][:8]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="shorter than its tensor"):
        release_pickles.read(path)


def test_a_plain_state_dict_is_not_a_network(tmp_path, home):
    write({"a": torch.ones(2)}, tmp_path / PHOTULATORS[0])
    with pytest.raises(ValueError, match="found a dict"):
        release.photulators(tmp_path, filters.COSMOS26[:1])
    write(nn.Linear(2, 2), tmp_path / "noiseModel.pt")
    with pytest.raises(ValueError, match="holds a Linear, not a NoiseModel"):
        release.noise_model(tmp_path / "noiseModel.pt")
