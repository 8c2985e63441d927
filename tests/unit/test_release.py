"""The public networks: values, order, conversion, and the published galaxy."""

import json
import os
import sys
import types

import pytest
import torch
from torch import nn

from popcosmos_lib.artefacts import data, provenance
from popcosmos_lib.emulation import release, release_pickles
from popcosmos_lib.galaxies import cosmology, parameters, universe
from popcosmos_lib.synthesis import filters

needs_files = pytest.mark.skipif("POPCOSMOS_DATA" not in os.environ, reason="the public networks are not at hand: set POPCOSMOS_DATA")

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
LINE_OFFSETS = {  # Thorp+25 table 6: vacuum wavelength [Angstrom] -> fraction added
    3729.86: 0.2642, 3869.86: -0.0880, 3971.20: -0.1504, 4102.89: -0.5235, 4341.69: -0.3297, 4862.71: -0.5577, 5008.24: 0.1160,
    5877.25: 0.3240, 6564.60: -0.3314, 6585.27: -0.5913, 9071.10: -1.0110, 9533.20: -1.0080,
}  # fmt: skip


class Photulator(nn.Module):
    """A network with the attributes of the public ones, small, with its own plain evaluation."""

    def __init__(self, widths, generator):
        super().__init__()
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        self.register_buffer("parameters_shift", torch.linspace(0.5, 1.5, 15))
        self.register_buffer("parameters_scale", torch.linspace(2.5, 1.0, 15))
        self.register_buffer("magnitudes_shift", draw(()))
        self.register_buffer("magnitudes_scale", draw(()))
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.W = nn.ParameterList([nn.Parameter(draw(a, b) / a**0.5) for a, b in pairs])
        for name in ("b", "alphas", "betas"):
            setattr(self, name, nn.ParameterList([nn.Parameter(draw(b)) for _, b in pairs]))

    def expected(self, theta):
        return plain(dict(self.state_dict()), theta)


def plain(state, theta):
    """One band's magnitudes, written out as in Alsing+20."""
    x = theta[:, 1:].clone()
    x[:, 7] = x[:, 7].sqrt()
    x = (x - state["parameters_shift"]) / state["parameters_scale"]
    for i in range(sum(name.startswith("W.") for name in state)):
        x = x @ state[f"W.{i}"] + state[f"b.{i}"]
        x = (state[f"betas.{i}"] + (1 - state[f"betas.{i}"]) / (1 + torch.exp(-state[f"alphas.{i}"] * x))) * x
    magnitude = x[:, 0] * state["magnitudes_scale"] + state["magnitudes_shift"]
    return magnitude + cosmology.distance_modulus(theta[:, 15]) - 2.5 * theta[:, 0]


@pytest.fixture
def theta():
    g = torch.Generator().manual_seed(1)
    lower, upper = parameters.BOUNDS.float().T
    return lower + (upper - lower) * torch.rand(600, 16, generator=g)


@pytest.fixture
def folder(tmp_path, monkeypatch, home):
    """Two band files written under the module name that the public files carry."""
    module = types.ModuleType("speculator.speculator")
    module.Photulator = Photulator
    monkeypatch.setitem(sys.modules, "speculator", types.ModuleType("speculator"))
    monkeypatch.setitem(sys.modules, "speculator.speculator", module)
    monkeypatch.setattr(Photulator, "__module__", "speculator.speculator")
    g = torch.Generator().manual_seed(2)
    nets = {band: Photulator([15, 12, 8, 1], g) for band in ("hsc_r", "irac1_cosmos")}
    for band, net in nets.items():
        torch.save(net, tmp_path / f"model_4x128_alsing20_{band}_cpu.pt")
    return tmp_path, nets


def test_values_and_band_order(folder, theta):
    path, nets = folder
    got = release.photulators(path, ["irac1_cosmos", "hsc_r"]).magnitudes(theta)
    expected = torch.stack([nets["irac1_cosmos"].expected(theta), nets["hsc_r"].expected(theta)], -1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_with_and_without_gradient_the_values_are_the_same(folder, theta):
    model = release.photulators(folder[0], list(folder[1]))
    torch.testing.assert_close(model.magnitudes(theta.clone().requires_grad_()).detach(), model.magnitudes(theta), rtol=0, atol=1e-5)


def test_gradient_is_that_of_the_plain_networks(folder, theta):
    path, nets = folder
    theta = theta[:3].double().requires_grad_()
    got = torch.autograd.grad(release.photulators(path, list(nets)).double().magnitudes(theta).sum(), theta)[0]
    expected = torch.autograd.grad(sum(net.double().expected(theta).sum() for net in nets.values()), theta)[0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_pickles_are_opened_once(folder, theta, home, monkeypatch):
    path, nets = folder
    first = release.photulators(path, list(nets)).magnitudes(theta)
    source = path / "model_4x128_alsing20_hsc_r_cpu.pt"
    (side,) = [json.loads(found.read_text()) for found in (home / "artefacts" / "shared").glob("release_photulators_*.json")]
    assert side["kind"] == "safetensors" and side["key"]["inputs"][source.name] == provenance.sha256(source)
    with monkeypatch.context() as patch:
        patch.setattr(release_pickles, "read", lambda path: pytest.fail(f"{path} was unpickled again"))
        assert torch.equal(release.photulators(path, list(nets)).magnitudes(theta), first)
    torch.save(nets["irac1_cosmos"], source)  # another network under the same name is noticed by its digest
    changed = release.photulators(path, list(nets)).magnitudes(theta)
    torch.testing.assert_close(changed[:, 0], nets["irac1_cosmos"].expected(theta), rtol=1e-5, atol=1e-4)


def test_networks_that_cannot_share_a_product_are_named(folder, theta):
    path, nets = folder
    nets["hsc_r"].parameters_shift += 1
    torch.save(nets["hsc_r"], path / "model_4x128_alsing20_hsc_r_cpu.pt")
    with pytest.raises(ValueError, match="hsc_r.*scale their inputs differently"):
        release.photulators(path, list(nets))
    torch.save(Photulator([15, 4, 1], torch.Generator().manual_seed(0)), path / "model_4x128_alsing20_hsc_r_cpu.pt")
    with pytest.raises(ValueError, match="hsc_r.*different shape"):
        release.photulators(path, list(nets))


def test_missing_band_names_the_file(folder):
    with pytest.raises(FileNotFoundError, match="u_megaprime_sagem"):
        release.photulators(folder[0])


@pytest.mark.parametrize("load", [release.photulators, release.lines, release.stellar_mass, release.noise_model, release.population])
def test_unset_folder_says_what_to_do(load, monkeypatch, home):
    monkeypatch.delenv("POPCOSMOS_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="POPCOSMOS_DATA"):
        load()


@needs_files
def test_fused_networks_agree_with_each_band_to_a_tenth_of_a_millimagnitude(home):
    theta = universe.sample(1000, torch.Generator().manual_seed(3))
    folder = data.shared("popcosmos_release/trained_models/photulator_models")
    files = [folder / f"model_4x128_alsing20_{band}_cpu.pt" for band in filters.COSMOS26]
    with torch.no_grad():
        expected = torch.stack([plain(release_pickles.tensors(release_pickles.read(path)), theta) for path in files], -1)
        assert (release.photulators().magnitudes(theta) - expected).abs().max() < 1e-4


@needs_files
def test_public_networks_reproduce_the_published_galaxy(home):
    theta = torch.tensor(PUBLISHED_THETA)
    theta[0] = 0.4 * (cosmology.distance_modulus(theta[15]) - theta[0])
    magnitude = release.photulators().magnitudes(theta[None])[0]
    assert abs(magnitude[0] - 25.11) < 0.005, "u of the published galaxy: is the activation applied to the output layer?"
    lines = release.lines()
    offset = torch.zeros(44)
    for wavelength, value in LINE_OFFSETS.items():
        offset[(lines.wavelength - wavelength).abs().argmin()] = value
    flux = filters.flux_from_magnitude(magnitude) + lines.fluxes(theta[None])[0] @ offset
    nanomaggies = flux / 10 ** (0.4 * 1.4) * torch.tensor(ZERO_POINTS)
    difference = nanomaggies / torch.tensor(PUBLISHED_FLUX) - 1
    assert difference.abs().max() < 0.004, "zero points of table 5 and line corrections of table 6 give the printed digits"


@needs_files
def test_public_networks_are_differentiable(home):
    theta = torch.tensor([PUBLISHED_THETA]).repeat(2, 1)
    theta[:, 0], theta[0, 8] = 10.0, 0.0
    theta.requires_grad_(True)
    release.photulators().magnitudes(theta).sum().backward()
    assert theta.grad.isfinite().all(), "the gradient must stay finite at zero dust"
    torch.testing.assert_close(theta.grad[:, 0], torch.full((2,), -2.5 * 26))


@needs_files
def test_surviving_mass_is_that_of_old_and_young_stars(home):
    theta = universe.sample(2000, torch.Generator().manual_seed(4))
    model = release.stellar_mass()
    fraction = model.surviving_fraction(theta)
    assert fraction.min() > 0.54 and fraction.max() < 0.92 and abs(fraction.median() - 0.65) < 0.04
    age = parameters.mass_weighted_age(theta)
    assert fraction[age < age.quantile(0.1)].mean() > fraction[age > age.quantile(0.9)].mean() + 0.05, "older stars have lost more"
    heavier = theta.clone()
    heavier[:, 0] = (theta[:, 0] - 1).clamp_min(7)
    assert (model.surviving_fraction(heavier) - fraction).abs().max() < 2e-3, "the mass itself is an idle input"
