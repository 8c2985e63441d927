"""The public pop-cosmos trained files, read without running the code that pickles can carry.

The band networks were published as whole pickled Python objects (Cosmo-Pop/pop-cosmos, MIT). ``state`` reads such a
file with an unpickler that knows seven harmless names and refuses every other; ``photulators`` stacks the 26 networks
so that one batched product per layer evaluates them all. Used as a reference by notebooks 01 and 02.

References
----------
Alsing et al. (2020), arXiv:1911.11778 (architecture); Thorp et al. (2025), arXiv:2506.12122 sect. 3.2 (training).
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from popcosmos_lib import cosmology, data, filters, parameters

__all__ = ["Photulators", "photulators", "state"]

_FOLDER = "popcosmos_release/trained_models/photulator_models"
_CHUNK = 256  # galaxies; 26 x 256 x 128 activations stay in cache on a CPU


class _Inert:
    """Stands in for a pickled module: keeps its attributes, has no behaviour."""

    def __setstate__(self, attributes):
        self.attributes = dict(attributes)


def _tensor(storage, offset, size, stride, *_):
    return torch.as_strided(storage, size, stride, offset)


def _parameter(data, *_):
    return data


_ALLOWED = {
    ("speculator.speculator", "Photulator"): _Inert,
    ("torch.nn.modules.container", "ParameterList"): _Inert,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "FloatStorage"): torch.float32,
    ("collections", "OrderedDict"): OrderedDict,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
}


class _Reader(pickle.Unpickler):
    def __init__(self, archive, root, path):
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root, self.path = archive, root, path

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"{self.path} asks for {module}.{name}, which a trained network does not need; refused, and nothing was run"
            )
        return _ALLOWED[module, name]

    def persistent_load(self, key):
        kind, dtype, name, _, count = key
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"{self.path} holds an object of kind {kind!r} where a tensor is expected; refused")
        raw = self.archive.read(f"{self.root}/data/{name}")
        if len(raw) < count * dtype.itemsize:
            raise ValueError(f"{self.path} is damaged: storage {name} is shorter than its tensor; fetch it again")
        return torch.frombuffer(bytearray(raw), dtype=dtype, count=count)


def state(path):
    """Tensors of a pickled network, by name.

    Parameters
    ----------
    path : path
        File written by ``torch.save`` in the zip format.

    Returns
    -------
    dict of str to Tensor
        Buffers and parameters as in a state dict: ``parameters_shift``, ``W.0``, ...

    Raises
    ------
    pickle.UnpicklingError
        If the file names anything but plain tensors and the two network containers: it is refused by that name before it can run.
    ValueError
        If the file is not in the zip format of ``torch.save``.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a complete zip-format torch file; fetch it again")
    with zipfile.ZipFile(path) as archive:
        roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"{path} holds {len(roots)} pickles where a torch file holds one; fetch it again")
        network = _Reader(archive, roots[0], path).load()
    if not isinstance(network, _Inert):
        raise ValueError(f"{path} holds a {type(network).__name__}, not a network; name a model_*.pt file")
    return dict(_flatten(network.attributes))


def _flatten(attributes, prefix=""):
    for group in ("_buffers", "_parameters"):
        for name, value in attributes.get(group, {}).items():
            yield prefix + name, value
    for name, child in attributes.get("_modules", {}).items():
        yield from _flatten(child.attributes, f"{prefix}{name}.")


class Photulators(nn.Module):
    """The public band networks, evaluated together.

    Parameters
    ----------
    states : sequence of dict
        One ``state`` per band, all of the same shape.
    bands : sequence of str
        Band names, in the order of ``states``.
    """

    def __init__(self, states, bands):
        super().__init__()
        self.bands = list(bands)
        self.layers = sum(name.startswith("W.") for name in states[0])
        for name in ("parameters_shift", "parameters_scale"):
            self.register_buffer(name, torch.stack([s[name] for s in states])[:, None, :])  # (26, 1, 15)
        for name in ("magnitudes_shift", "magnitudes_scale"):
            self.register_buffer(name, torch.stack([s[name].reshape(()) for s in states]))  # (26,)
        for i in range(self.layers):
            self.register_buffer(f"weight{i}", torch.stack([s[f"W.{i}"] for s in states]))  # (26, in, out)
            for name in ("b", "alphas", "betas"):
                self.register_buffer(f"{name}{i}", torch.stack([s[f"{name}.{i}"].reshape(-1) for s in states])[:, None, :])

    def magnitudes(self, theta):
        """Apparent magnitudes.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters in the order of ``parameters.NAMES``; differentiable (the gradient in dust2 is zero below 1e-8, where
            the square root upstream has none).

        Returns
        -------
        Tensor of shape (n, 26)
            Apparent AB magnitude, without zero-point or line corrections, before noise.
        """
        theta = parameters.check(theta)
        return torch.cat([self._chunk(part.to(self.parameters_shift)) for part in theta.split(_CHUNK)]).to(theta)

    def _chunk(self, theta):
        dust = parameters.INDEX["dust2"]
        root = theta[:, dust : dust + 1].clamp_min(1e-8).sqrt()
        x = torch.cat([theta[:, 1:dust], root, theta[:, dust + 1 :]], -1)
        x = (x - self.parameters_shift) / self.parameters_scale  # (26, n, 15)
        for i in range(self.layers):
            x = torch.baddbmm(getattr(self, f"b{i}"), x, getattr(self, f"weight{i}"))
            alpha, beta = getattr(self, f"alphas{i}"), getattr(self, f"betas{i}")
            x = (beta + (1 - beta) * torch.sigmoid(alpha * x)) * x  # on the output layer too: the files were trained so
        unit_mass = x[..., 0].T * self.magnitudes_scale + self.magnitudes_shift
        mu = cosmology.distance_modulus(parameters.column(theta, "z"))
        return unit_mass + (mu - 2.5 * parameters.column(theta, "log10M_formed"))[:, None]


def photulators(folder=None, bands=None):
    """Load the public band networks.

    Parameters
    ----------
    folder : path, optional
        Where the ``model_4x128_alsing20_<band>_cpu.pt`` files lie; by default ``data.shared`` finds it under
        ``POPCOSMOS_DATA`` or among the downloads.
    bands : sequence of str, optional
        Band names; by default ``filters.COSMOS26``.

    Returns
    -------
    Photulators
        In evaluation mode, on the CPU.

    Raises
    ------
    FileNotFoundError
        If the folder or the file of a band is not there.
    """
    if folder is None:
        folder = data.shared(_FOLDER)
    bands = filters.COSMOS26 if bands is None else bands
    paths = [Path(folder, f"model_4x128_alsing20_{band}_cpu.pt") for band in bands]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{folder} lacks {missing[0]}{more}; `make data ID=popcosmos_trained` says where to get it")
    return Photulators([state(path) for path in paths], bands).eval()
