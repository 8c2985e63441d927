"""The synthesis: conservation laws, textbook relations, and an independent path from spectrum to magnitude."""

import numpy as np
import pytest
import torch
from astropy.cosmology import Planck18

from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.synthesis import dust, filters, igm, sps, ssp

LIGHT = 2.99792458e18  # Angstrom / s
LSUN = 3.828e33  # erg / s


@pytest.fixture(scope="module")
def synthesiser():
    return sps.load().double()


@pytest.fixture(scope="module")
def theta():
    return universe.sample(64, generator=torch.Generator().manual_seed(5)).double()


def galaxies(n, **values):
    """A dust-free, solar, constantly star-forming galaxy of 1e10 Msun at z = 0.5, n times, with some parameters changed."""
    base = dict.fromkeys(parameters.NAMES, 0.0) | {"log10M_formed": 10.0, "lnfAGN": -11.5, "lntauAGN": 3.0, "log10Ugas": -2.3, "z": 0.5}
    columns = [torch.as_tensor(value, dtype=torch.float64).expand(n) for value in (base | values).values()]
    return torch.stack(columns, -1)


def luminosity(spectrum, name):
    """Integral of a component over frequency [Lsun], by trapezoids."""
    wave = spectrum.wave.numpy()
    return np.trapezoid(spectrum.components[name].numpy() * LIGHT / wave, np.log(wave))


def test_absorbed_light_is_re_emitted(synthesiser, theta):
    spectrum = synthesiser.spectrum(theta)
    bare = theta.clone()
    bare[:, parameters.INDEX["dust2"]] = 0.0
    lines = (synthesiser.lines(bare) - spectrum.lines).sum(-1).numpy()
    lost = luminosity(spectrum, "intrinsic") - luminosity(spectrum, "stars") - luminosity(spectrum, "nebular") + lines
    assert np.abs(luminosity(spectrum, "dust") / lost - 1).max() < 0.01
    assert torch.allclose(spectrum.absorbed, torch.as_tensor(lost), rtol=0.01)


def test_nebula_does_not_shine_brighter_than_the_photons_that_power_it(synthesiser):
    grid = ssp.load().data
    ionising = []
    for hidden in (True, False):  # starlight of the first age cell with and without its ionising part
        light = grid["stars"][4, 0] * (LIGHT / grid["wave"] * 1e-15)
        ionising.append(grid["bolometric"][4, 0] if hidden else np.trapezoid(light, np.log(grid["wave"])))
    power = ionising[0] - ionising[1]
    continuum = np.trapezoid(grid["continuum"][4, 3, 0] * (LIGHT / grid["wave"] * 1e-15), np.log(grid["wave"]))
    nebular = grid["ionising"][4, 0] * (grid["lines"][4, 3, 0].sum() + continuum)
    assert 0.7 * power < nebular < 1.05 * power, (nebular, power)


def test_pixels_keep_the_energy_of_the_stars():
    grid = ssp.load().data
    old = grid["edges"][1:] > 1e9
    light = grid["stars"][:, old] * (1e-15 * LIGHT / grid["wave"])
    total = light.sum(-1) * np.log(grid["wave"][1] / grid["wave"][0])
    assert np.abs(total / grid["bolometric"][:, old] - 1).max() < 0.01, "between 300 Angstrom and 1 mm"


def test_formed_mass_is_conserved(synthesiser, theta):
    mass = synthesiser._cell_mass(theta)
    assert (mass >= 0).all() and torch.allclose(mass.sum(-1), torch.ones(len(theta), dtype=torch.float64), atol=1e-5)
    age = 0.5 * (synthesiser.edges[1:] + synthesiser.edges[:-1])
    assert torch.allclose((mass * age).sum(-1), parameters.mass_weighted_age(theta), rtol=0.02)


def test_surviving_mass_falls_with_age(synthesiser, theta):
    fraction = synthesiser.surviving_fraction(theta)
    assert ((fraction > 0.4) & (fraction < 1.0)).all()
    ratio = torch.linspace(2.0, -2.0, 9, dtype=torch.float64)  # from all stars young to all old
    steps = synthesiser.surviving_fraction(galaxies(9, **{f"log10SFR_ratio{i}": ratio for i in range(1, 7)})).diff()
    assert (steps < 0).all()


def test_light_is_linear_in_mass(synthesiser, theta):
    heavier = theta.clone()
    heavier[:, 0] += 1.7
    brighter = synthesiser.magnitudes(theta) - synthesiser.magnitudes(heavier)
    assert (brighter - 4.25).abs().max() < 1e-9


def test_recombination_lines_follow_case_b(synthesiser):
    theta = galaxies(1, log10Z=torch.log10(torch.tensor(0.02 / 0.0142)))
    lines, wave = synthesiser.lines(theta)[0], synthesiser.line_wave
    alpha, beta = (lines[(wave - line).abs().argmin()] for line in (6564.6, 4862.7))
    assert 2.7 < alpha / beta < 3.1
    calibration = np.log10(alpha.item() * LSUN) - parameters.log_sfr(theta).item()
    assert calibration == pytest.approx(41.27, abs=0.2), "Kennicutt & Evans (2012): log L(Halpha) - log SFR"


def test_dust_dims_and_reddens(synthesiser):
    theta = galaxies(5, dust2=torch.linspace(0.0, 2.0, 5))
    m = dict(zip(filters.SHORT, synthesiser.magnitudes(theta).T, strict=True))
    for blue, red in (("u", "g"), ("g", "r"), ("r", "z"), ("z", "J")):
        assert ((m[blue] - m[red]).diff() > 0).all(), f"{blue} - {red} must grow with dust"
    assert (m["u"].diff() > 0.5).all()
    clouds = synthesiser.magnitudes(galaxies(3, dust2=0.5, dust1_fraction=torch.tensor([0.0, 1.0, 2.0])))
    assert (clouds[:, 0].diff() > 0).all() and clouds[:, 9].diff().abs().max() < 0.05, "birth clouds hide young stars, not old ones"


def test_attenuation_curve():
    wave = torch.tensor([1500.0, 2175.0, 3000.0, 5500.0, 30_000.0], dtype=torch.float64)
    steep, calzetti = dust.diffuse(wave, torch.tensor([-0.8, 0.0], dtype=torch.float64))
    assert calzetti[3].item() == pytest.approx(1.0, abs=0.02) and steep[3].item() == pytest.approx(1.0, abs=0.03)
    assert calzetti[4] < 0.05, "Calzetti's curve ends in the near infrared"
    assert steep[0] > 1.5 * calzetti[0]
    bump = dust.diffuse(wave, torch.tensor([-0.2], dtype=torch.float64))[0]
    assert bump[1] > 0.5 * (bump[0] + bump[2]), "the 2175 Angstrom bump"


def test_the_bump_follows_the_slope():
    """Kriek & Conroy (2013) eq. 3: E_b = 0.85 - 1.9 delta, the height of the bump above A(lambda) / E(B - V), R_V = 4.05."""
    wave, slope = torch.tensor([2175.0], dtype=torch.float64), torch.tensor([-0.8, 0.0, 0.4], dtype=torch.float64)
    untilted = dust.diffuse(wave, slope)[:, 0] / (wave / 5500.0) ** slope
    steps = (untilted - untilted[1]) * 4.05
    assert torch.allclose(steps, -1.9 * slope, atol=1e-9), f"E_b must change by -1.9 per unit of dust_index; got {steps.tolist()}"
    x = 1 / 0.2175  # Calzetti et al. (2000) eq. 4 [1 / micron]
    calzetti = 2.659 * (-2.156 + 1.509 * x - 0.198 * x**2 + 0.011 * x**3) + 4.05
    assert float(untilted[1]) * 4.05 - calzetti == pytest.approx(0.85, abs=0.02), "the bump of an untilted curve has E_b = 0.85"


def test_birth_clouds_attenuate_as_one_over_wavelength():
    """FSPS dust1_index = -1 (Thorp+25 sect. 3.2; Charlot & Fall 2000 have -0.7)."""
    depth = dust.birth_cloud(torch.tensor([2750.0, 5500.0, 11_000.0], dtype=torch.float64))
    assert depth.tolist() == pytest.approx([2.0, 1.0, 0.5]), "the optical depth of a birth cloud is proportional to 1 / lambda"


def test_lyman_break_moves_through_the_bands(synthesiser):
    theta = galaxies(6, log10SFR_ratio1=0.5, z=torch.tensor([0.5, 1.5, 3.3, 4.3, 5.3, 5.9]))
    m = dict(zip(filters.SHORT, synthesiser.magnitudes(theta).T, strict=True))
    for blue, red, dropped, kept in (("u", "g", 2, 1), ("g", "r", 3, 1), ("r", "i", 4, 2)):
        colour = m[blue] - m[red]
        assert colour[dropped] > 1.2 and colour[dropped] > colour[kept] + 1.0, f"{blue} - {red}: {colour}"
    assert m["u"].isfinite().all()


def test_intergalactic_transmission_is_the_sum_of_madau(theta):
    wave = torch.linspace(905, 1300, 400, dtype=torch.float64)
    z = 3.0
    observed, x = wave.numpy() * (1 + z), wave.numpy() * (1 + z) / 911.75
    tau = sum((wave.numpy() <= line) * a * (observed / line) ** 3.46 for line, a in igm._SERIES.items())
    tau = tau + (wave.numpy() <= 1215.67) * 0.0017 * (observed / 1215.67) ** 1.68
    limit = 0.25 * x**3 * ((1 + z) ** 0.46 - x**0.46) + 9.4 * x**1.5 * ((1 + z) ** 0.18 - x**0.18)
    limit = limit - 0.7 * x**3 * (x**-1.32 - (1 + z) ** -1.32) - 0.023 * ((1 + z) ** 1.68 - x**1.68)
    tau = tau + (wave.numpy() < 911.75) * limit
    assert torch.allclose(igm.transmission(wave, torch.tensor([z], dtype=torch.float64))[0], torch.as_tensor(np.exp(-tau)), atol=1e-6)


def test_torus_has_the_luminosity_asked_for(synthesiser):
    theta = galaxies(3, lnfAGN=0.0, lntauAGN=torch.tensor([5.0, 30.0, 150.0]).log().clamp(1.61, 5.01))
    spectrum = synthesiser.spectrum(theta)
    stars = luminosity(spectrum, "stars") + luminosity(spectrum, "nebular") + spectrum.lines.sum(-1).numpy()
    assert luminosity(spectrum, "agn") == pytest.approx(stars, rel=0.05), "ln fAGN = 0: as bright as the stars"


def test_magnitudes_agree_with_the_spectrum_seen_through_the_curves(synthesiser, theta):
    """Redshift, distance, absorption, lines and band averages once more, on a fine grid in numpy with astropy's distances."""
    few, bands = theta[:6], filters.load("cosmos")
    spectrum, expected = synthesiser.spectrum(few), []
    fine = np.geomspace(400, 60_000, 150_000)
    for i, z in enumerate(few[:, 15].tolist()):
        light = np.interp(fine, spectrum.wave.numpy(), spectrum.total[i].numpy())
        for line, power in zip(spectrum.line_wave.numpy(), spectrum.lines[i].numpy(), strict=True):
            width = 3e-4 * line
            near = slice(*np.searchsorted(fine, [line - 6 * width, line + 6 * width]))
            profile = np.exp(-0.5 * ((fine[near] - line) / width) ** 2) / (np.sqrt(2 * np.pi) * width)
            light[near] += power * profile * fine[near] ** 2 / LIGHT  # L_lambda to L_nu
        light = light * igm.transmission(torch.as_tensor(fine), torch.tensor([z], dtype=torch.float64))[0].numpy()
        area = 4 * np.pi * Planck18.luminosity_distance(z).to("cm").value ** 2
        flux = bands.average(fine * (1 + z), light * (1 + z) * LSUN / area)
        expected.append(-2.5 * torch.log10(flux) - 48.60)
    expected = torch.stack(expected)
    seen = expected < 30
    assert (synthesiser.magnitudes(few) - expected)[seen].abs().max() < 0.02


def test_gradients_are_those_of_the_magnitudes(synthesiser):
    theta = galaxies(1, dust2=0.5, dust1_fraction=0.8, dust_index=-0.3, lnfAGN=-1.0, log10Zgas=-0.3, log10Z=-0.45, z=0.8).requires_grad_()
    (slope,) = torch.autograd.grad(synthesiser.magnitudes(theta)[0, [1, 3, 9, 24]].sum(), theta)
    step = 1e-5
    for i in range(16):
        up, down = theta.detach().clone(), theta.detach().clone()
        up[0, i] += step
        down[0, i] -= step
        m = synthesiser.magnitudes(torch.cat([up, down]))[:, [1, 3, 9, 24]].sum(-1)
        assert slope[0, i].item() == pytest.approx((m[0] - m[1]).item() / (2 * step), rel=1e-3, abs=1e-5), parameters.NAMES[i]


def test_float32_is_finite_in_the_corners():
    lower, upper = parameters.BOUNDS.T.float()
    corner = torch.randint(0, 2, (200, 16), generator=torch.Generator().manual_seed(2))
    theta = torch.where(corner == 1, upper, lower).requires_grad_()
    m = sps.load().magnitudes(theta)
    (slope,) = torch.autograd.grad(m.sum(), theta)
    assert m.isfinite().all() and slope.isfinite().all()


def test_batches_do_not_matter(synthesiser, theta):
    many = theta.repeat(6, 1)
    order = torch.randperm(len(many), generator=torch.Generator().manual_seed(1))
    whole = synthesiser.magnitudes(many)
    assert torch.allclose(synthesiser.magnitudes(many[order]), whole[order], atol=1e-6)
    assert torch.allclose(synthesiser.magnitudes(theta[:1]), whole[:1], atol=1e-6)
    assert synthesiser.magnitudes(theta[:0]).shape == (0, 26)


def test_resolution_hardly_matters(theta):
    few = theta[:40].float()
    difference = (sps.load(resolution=300).magnitudes(few) - sps.load(resolution=600).magnitudes(few)).abs()
    assert difference.median() < 0.003 and difference[sps.load().magnitudes(few) < 28].max() < 0.05


def test_a_parameter_out_of_bounds_is_named(synthesiser, theta):
    bad = theta.clone()
    bad[2, parameters.INDEX["dust2"]] = 9.0
    with pytest.raises(ValueError, match="dust2"):
        synthesiser.magnitudes(bad)


def test_an_unknown_provider_is_named():
    with pytest.raises(ValueError, match="galaxev"):
        ssp.load("galaxev")
