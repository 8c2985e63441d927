"""Pickled network files, read as data: what they hold, without running what they could carry.

The trained models of pop-cosmos were published as whole pickled Python objects, and a pickle can call any function it names. ``read``
knows the names that a trained network needs and replaces each by a stand-in that only keeps its state; every other name is refused
before anything has happened. ``converted`` then keeps the tensors as safetensors, so that each pickle is opened once.
"""

import hashlib
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from popcosmos_lib.artefacts import provenance, store

__all__ = ["Inert", "Refused", "converted", "read", "tensors"]


class Refused(pickle.UnpicklingError):
    """A file asks for something that a trained network does not need; the message names it."""


class Inert:
    """Stands in for an object whose class is known by name only: keeps its state, has no behaviour.

    Attributes
    ----------
    attributes : dict
        The pickled ``__dict__``; of a network, its tensors are in the groups ``_buffers``, ``_parameters`` and ``_modules``.
    """

    attributes = {}

    def __setstate__(self, state):
        self.attributes = dict(state)

    def __getitem__(self, name):
        """Attribute, submodule, buffer or parameter of that name."""
        for group in ("_modules", "_buffers", "_parameters"):
            if name in self.attributes.get(group, {}):
                return self.attributes[group][name]
        if name not in self.attributes:
            raise ValueError(f"the pickled {type(self).__name__} has no {name!r}: is this one of the published files?")
        return self.attributes[name]


class _Dtype:
    def __init__(self, code, *_):
        if not re.fullmatch(r"[fiub]\d+", code):
            raise Refused(f"an array of type {code!r} is not plain numbers; refused")
        self.code = code

    def __setstate__(self, state):
        self.code = state[1].replace("|", "") + self.code


class _Array:
    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        array = np.frombuffer(bytearray(raw), dtype=dtype.code).reshape(shape, order="F" if fortran else "C")
        self.tensor = torch.from_numpy(np.ascontiguousarray(array))


def _array(*_):
    return _Array()


def _latin1(text, encoding):  # how protocol 2 spells bytes
    if encoding != "latin1":
        raise Refused(f"bytes in {encoding!r}; refused")
    return text.encode("latin1")


def _tensor(storage, offset, size, stride, *_):
    return torch.as_strided(storage, size, stride, offset)


def _parameter(data, *_):
    return data


def _empty_dict(*_):
    return {}


_CLASSES = {
    "speculator.speculator": ("Photulator", "PhotulatorModelStack", "Speculator"),
    "flowfusion.diffusion": ("MLP", "ScoreModel", "VESDE", "VPSDE", "PopulationModelDiffusion", "PopulationModelDiffusionConditional"),
    "pop_cosmos.catalogue": ("CatalogueGenerator", "NoiseModel", "NoiseModelMDN"),
    "pop_cosmos.emlines": ("EmLineEmulator",),
    "torch.nn.modules.container": ("ModuleList", "ParameterList", "Sequential"),
    "torch.nn.modules.linear": ("Linear",),
    "torch.nn.modules.activation": ("SiLU", "Tanh"),
    "torch.distributions.studentT": ("StudentT",),
    "torch.distributions.chi2": ("Chi2",),
    "torch.optim.adam": ("Adam",),
    "numpy": ("ndarray",),
}
_VALUES = {
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "BoolStorage"): torch.bool,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("__builtin__", "dict"): dict,
    ("builtins", "dict"): dict,
}
_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "device"): str,
    ("collections", "defaultdict"): _empty_dict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
}


class _Reader(pickle.Unpickler):
    """Hands out stand-ins made for one file, so that no file can change those of the next by setting attributes on them."""

    def __init__(self, file, path, storage):
        super().__init__(file)
        self.path, self.storage, self.made = path, storage, {}

    def find_class(self, module, name):
        if (module, name) in _VALUES:
            return _VALUES[module, name]
        if (module, name) in _FUNCTIONS:
            function = _FUNCTIONS[module, name]
            return lambda *arguments: function(*arguments)
        if name in _CLASSES.get(module, ()):
            return self.made.setdefault((module, name), type(name, (Inert,), {}))
        raise Refused(f"{self.path} asks for {module}.{name}, which a trained network does not need; refused, and nothing was run")

    def persistent_load(self, key):
        kind, dtype, name, _, count = key
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise Refused(f"{self.path} holds an object of kind {kind!r} where a tensor is expected; refused")
        raw = self.storage(name)
        if len(raw) < count * dtype.itemsize:
            raise ValueError(f"storage {name} is shorter than its tensor")
        return torch.frombuffer(bytearray(raw), dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def read(path):
    """What a file of ``torch.save`` (zip format) or of ``pickle.dump`` holds, as data.

    Parameters
    ----------
    path : path

    Returns
    -------
    object
        Dicts, lists, numbers, strings and Tensors as they are; `Inert` for the objects of a model; an array as an object whose
        ``tensor`` is its content.

    Raises
    ------
    Refused
        If the file names anything that a trained network does not need: it is refused by that name before it can run.
    ValueError
        If the file is damaged.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
        file.seek(0)
        try:
            if not zipped:
                return _Reader(file, path, storage=None).load()
            with zipfile.ZipFile(file) as archive:
                (root,) = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
                return _Reader(archive.open(f"{root}/data.pkl"), path, lambda name: archive.read(f"{root}/data/{name}")).load()
        except Refused:
            raise
        except Exception as error:  # a cut or altered pickle can fail in any way
            raise ValueError(f"{path} is damaged or not a file of torch.save ({type(error).__name__}: {error}); fetch it again") from None


def tensors(network, prefix=""):
    """Buffers and parameters of a pickled network, as in a state dict.

    Parameters
    ----------
    network : Inert
    prefix : str
        Put before every name.

    Returns
    -------
    dict of str to Tensor
        ``parameters_shift``, ``W.0``, ...

    Raises
    ------
    ValueError
        If it is not a network.
    """
    if not isinstance(network, Inert):
        raise ValueError(f"found a {type(network).__name__} where a pickled network is expected: is this the right file?")
    found = {}
    for group in ("_buffers", "_parameters"):
        found |= {prefix + name: value for name, value in network.attributes.get(group, {}).items() if value is not None}
    for name, child in network.attributes.get("_modules", {}).items():
        found |= tensors(child, f"{prefix}{name}.") if child is not None else {}
    return found


def converted(name, paths, parse):
    """The tensors of published files, kept as safetensors: the files are parsed once, then only compared with the digests on record.

    Parameters
    ----------
    name : str
        What the files are: part of the artefact's name, as is a digest of theirs.
    paths : sequence of path
        Source files; their sha256 go into the artefact's sidecar.
    parse : callable
        Without arguments; returns a dict of Tensors, or that and a dict of JSON values.

    Returns
    -------
    store.Artefact
    """
    digests = {Path(path).name: provenance.sha256(path) for path in paths}
    tag = hashlib.sha256("".join(digests.values()).encode()).hexdigest()[:12]
    return store.load_or_compute(f"release_{name}_{tag}", parse, profile="shared", inputs=digests)
