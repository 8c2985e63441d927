"""Reading the public networks: values, order and the refusal of anything that could run."""

import os
import pickle
import sys
import types
import zipfile

import pytest
import torch
from torch import nn

from popcosmos_lib import cosmology, filters, parameters, release

# Cosmo-Pop/pop-cosmos demo/sed_fitting.ipynb: the mock galaxy nearest Farmer 5963; slot 0 is N [mag]; fluxes in nanomaggies
PUBLISHED_THETA = [
    20.0272, -1.4193, 0.1677, 0.1611, 0.1254, -0.0325, -0.1381, -0.0569,
    0.4827, 0.3139, 0.8754, -1.3199, 3.0758, -1.3194, -1.9458, 1.2390,
]  # fmt: skip
PUBLISHED_FLUX = [
    0.0911, 0.1041, 0.1187, 0.1365, 0.2211, 0.2474, 0.2406, 0.2753, 0.3222, 0.3930, 0.0934, 0.0921, 0.0985,
    0.0985, 0.0966, 0.0954, 0.1109, 0.1354, 0.1193, 0.1218, 0.1254, 0.1372, 0.1210, 0.1223, 0.4129, 0.4119,
]  # fmt: skip
ZERO_POINTS = [  # Thorp+25 table 5
    1.0094, 1.0857, 1.0758, 1.0199, 1.0233, 1.0489, 0.9993, 1.0042, 0.9702, 1.0423, 0.9766, 0.9726, 1.0204,
    1.0087, 0.9941, 0.9291, 1.0130, 1.1318, 0.9769, 0.9697, 0.9654, 0.9206, 0.9877, 0.9298, 0.9601, 0.9211,
]  # fmt: skip
LINE_CORRECTED = ["z", "y", "Y", "Ks", "IB827"]  # hold H-delta, H-gamma, H-beta, [S III] and [O II] at z = 1.239


class Photulator(nn.Module):
    """A network with the attributes of the public ones, small, with its own plain evaluation."""

    def __init__(self, widths, generator):
        super().__init__()
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        for name, n in (("parameters_shift", 15), ("parameters_scale", 15)):
            self.register_buffer(name, draw(n).abs() + 0.5)
        self.register_buffer("magnitudes_shift", draw(()))
        self.register_buffer("magnitudes_scale", draw(()))
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.W = nn.ParameterList([nn.Parameter(draw(a, b) / a**0.5) for a, b in pairs])
        for name in ("b", "alphas", "betas"):
            setattr(self, name, nn.ParameterList([nn.Parameter(draw(b)) for _, b in pairs]))

    def expected(self, theta):
        x = theta[:, 1:].clone()
        x[:, 7] = x[:, 7].sqrt()
        x = (x - self.parameters_shift) / self.parameters_scale
        for w, b, alpha, beta in zip(self.W, self.b, self.alphas, self.betas, strict=True):
            x = x @ w + b
            x = (beta + (1 - beta) / (1 + torch.exp(-alpha * x))) * x
        magnitude = x[:, 0] * self.magnitudes_scale + self.magnitudes_shift
        return magnitude + cosmology.distance_modulus(theta[:, 15]) - 2.5 * theta[:, 0]


@pytest.fixture
def theta():
    g = torch.Generator().manual_seed(1)
    lower, upper = parameters.BOUNDS.float().T
    return lower + (upper - lower) * torch.rand(300, 16, generator=g)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two band files written under the module name that the public files carry."""
    module = types.ModuleType("speculator.speculator")
    module.Photulator = Photulator
    monkeypatch.setitem(sys.modules, "speculator", types.ModuleType("speculator"))
    monkeypatch.setitem(sys.modules, "speculator.speculator", module)
    monkeypatch.setattr(Photulator, "__module__", "speculator.speculator")
    g = torch.Generator().manual_seed(2)
    nets = {band: Photulator([15, 8, 8, 1], g) for band in ("hsc_r", "irac1_cosmos")}
    for band, net in nets.items():
        torch.save(net, tmp_path / f"model_4x128_alsing20_{band}_cpu.pt")
    return tmp_path, nets


def test_values_and_band_order(folder, theta):
    path, nets = folder
    got = release.photulators(path, ["irac1_cosmos", "hsc_r"]).magnitudes(theta)
    expected = torch.stack([nets["irac1_cosmos"].expected(theta), nets["hsc_r"].expected(theta)], -1)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=1e-4)


def test_missing_band_names_the_file(folder):
    with pytest.raises(FileNotFoundError, match="u_megaprime_sagem"):
        release.photulators(folder[0])


def test_unset_folder_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("POPCOSMOS_DATA", raising=False)
    monkeypatch.setenv("POPCOSMOS_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="POPCOSMOS_DATA"):
        release.photulators()


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Gadget:
    def __reduce__(self):
        return eval, ("__import__('os').system('true')",)


@pytest.mark.parametrize("make, name", [(Command, "system"), (lambda _: Gadget(), "eval"), (lambda _: {"a": nn.Linear(1, 1)}, "Linear")])
def test_code_is_refused_by_name_and_does_not_run(tmp_path, make, name):
    trap = tmp_path / "it_ran"
    torch.save(make(trap), tmp_path / "bad.pt")
    with pytest.raises(pickle.UnpicklingError, match=name):
        release.state(tmp_path / "bad.pt")
    assert not trap.exists(), "the pickled command ran"


def test_truncated_file_is_named(folder):
    path = folder[0] / "model_4x128_alsing20_hsc_r_cpu.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="hsc_r"):
        release.state(path)


def test_plain_state_dict_is_not_a_network(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="dict, not a network"):
        release.state(tmp_path / "plain.pt")


def test_storage_shorter_than_its_tensor_is_refused(folder):
    path = folder[0] / "model_4x128_alsing20_hsc_r_cpu.pt"
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    short = next(name for name in records if name.endswith("/data/0"))
    records[short] = records[short][:8]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="damaged"):
        release.state(path)


def test_public_networks_reproduce_the_published_galaxy():
    if "POPCOSMOS_DATA" not in os.environ:
        pytest.skip("POPCOSMOS_DATA is not set: the public networks are not at hand")
    net = release.photulators()
    theta = torch.tensor(PUBLISHED_THETA)
    theta[0] = 0.4 * (cosmology.distance_modulus(theta[15]) - theta[0])
    magnitude = net.magnitudes(theta[None])[0]
    assert abs(magnitude[0] - 25.11) < 0.005, "u of the published galaxy: is the activation applied to the output layer?"
    flux = 10 ** (0.4 * (22.5 - magnitude)) * torch.tensor(ZERO_POINTS)
    difference = flux / torch.tensor(PUBLISHED_FLUX) - 1
    clean = torch.tensor([band not in LINE_CORRECTED for band in filters.SHORT])
    assert difference[clean].abs().max() < 0.004, "bands without a corrected line agree to the printed digits"
    assert difference.abs().max() < 0.05, "line corrections of Thorp+25 table 6 stay below 5 % for this galaxy"


def test_public_networks_are_differentiable():
    if "POPCOSMOS_DATA" not in os.environ:
        pytest.skip("POPCOSMOS_DATA is not set: the public networks are not at hand")
    theta = torch.tensor([PUBLISHED_THETA]).repeat(2, 1)
    theta[:, 0], theta[0, 8] = 10.0, 0.0
    theta.requires_grad_(True)
    release.photulators().magnitudes(theta).sum().backward()
    assert theta.grad.isfinite().all(), "the gradient must stay finite at zero dust"
    torch.testing.assert_close(theta.grad[:, 0], torch.full((2,), -2.5 * 26))
