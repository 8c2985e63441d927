"""The survey's data model: asinh magnitudes, noise, selection and the learned uncertainty model."""

import copy
import math

import pytest
import torch

from popcosmos_lib import survey
from popcosmos_lib.survey import definitions, uncertainty
from popcosmos_lib.synthesis import filters


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def fluxes(n=4000, seed=2):
    """Magnitudes 20 to 29 with slowly varying colours, in µJy."""
    m = 20 + 9 * torch.rand(n, 1, generator=generator(seed)).sqrt() + 0.5 * torch.randn(n, 26, generator=generator(seed + 1))
    return 10 ** (0.4 * (23.9 - m))


def test_band_table_follows_the_order_of_the_filters():
    assert survey.BANDS["short"] == filters.SHORT and survey.BANDS["filter"] == filters.COSMOS26
    assert survey.BANDS["column"][0] == "CFHT_u" and survey.BANDS["column"][-1] == "IRAC_CH2"
    assert torch.isclose(survey.BANDS["softening"][0] / 3.631, torch.tensor(0.00108, dtype=torch.float64), rtol=1e-4)


def test_asinh_magnitude_limits_and_inverse():
    flux = torch.linspace(-1, 50, 2001, dtype=torch.float64)[:, None].expand(-1, 26)
    m = survey.asinh_magnitude(flux)
    assert m.isfinite().all() and (m.diff(dim=0) < 0).all(), "defined and falling through zero flux"
    assert torch.allclose(survey.flux_from_asinh(m), flux, atol=1e-10)
    bright = flux > 20 * survey.BANDS["softening"]
    assert ((m + 2.5 * flux.clamp_min(1e-9).log10() - 23.9).abs()[bright] < 3e-3).all(), "logarithmic above 20 softenings"
    faintest = 23.9 - 2.5 * survey.BANDS["softening"].log10()  # Thorp+25 call it the effective depth: 29.92 in u
    assert torch.allclose(survey.asinh_magnitude(torch.zeros(26, dtype=torch.float64)), faintest)
    assert abs(float(faintest[0]) - 29.92) < 0.01
    assert survey.asinh_magnitude(torch.full((1, 26), torch.nan)).isnan().all()


def test_asinh_magnitude_refuses_a_softening_of_zero():
    with pytest.raises(ValueError, match="softening must be positive"):
        survey.asinh_magnitude(torch.ones(2), softening=torch.zeros(2))


def test_student_t_has_the_quantiles_of_two_degrees_of_freedom():
    t = survey.student_t((200_000,), generator())
    for p in (0.6, 0.75, 0.9, 0.99):
        exact = (2 * p - 1) / math.sqrt(2 * p * (1 - p))
        assert abs(torch.quantile(t, p) - exact) < 0.03 * max(1, exact), f"quantile {p}"


def test_noise_scales_with_sigma_and_follows_the_zero_point():
    flux, zero_point = torch.full((50_000, 26), 3.0), torch.linspace(0.9, 1.1, 26)
    sky = survey.Survey(uncertainty.TwoDepths(), zero_point)
    sigma = torch.linspace(0.1, 1, 26).expand_as(flux)
    z = (sky.observe(flux, sigma, generator()) - flux * zero_point) / sigma
    assert ((z.abs().median(0).values - 0.8165).abs() < 0.03).all(), "median |t| of nu = 2"
    assert (z.median(0).values.abs() < 0.03).all()


@pytest.mark.parametrize(
    ("cut", "expected"), [("r<25", [1, 0, 0, 0]), ("r >= 25", [0, 1, 1, 0]), ("r<30", [1, 1, 0, 0]), ("r>20.5", [1, 1, 1, 0])]
)
def test_selection_on_observed_flux(cut, expected):
    flux = torch.ones(4, 26)
    flux[:, 2] = torch.tensor([10 ** (0.4 * (23.9 - 24.9)), 10 ** (0.4 * (23.9 - 25.1)), -0.1, torch.nan])
    assert survey.select(flux, cut).tolist() == [bool(x) for x in expected], "missing fails every cut, negative flux is faint"


def test_cuts_joined_by_and_must_all_pass():
    flux = torch.ones(3, 26)
    flux[:, 3] = filters.flux_from_magnitude(torch.tensor([17.0, 20.0, 23.0]))
    assert survey.select(flux, "i>=17.5 and i<22.5").tolist() == [False, True, False]
    assert survey.select(flux, "i<22.5 and Ch1 < 24.5").tolist() == [True, True, False]


def test_cuts_are_on_the_bands_of_the_survey():
    flux = torch.tensor([[1.0, 100.0], [100.0, 1.0]])
    assert survey.select(flux, "VIS<22", ["VIS", "Y"]).tolist() == [False, True]
    with pytest.raises(ValueError, match='write cuts as "VIS<25", joined by "and", with a band of VIS, Y'):
        survey.select(flux, "r<25", ["VIS", "Y"])


@pytest.mark.parametrize("cut", ["r25", "R<25", "r<", "r=25", "", "r<25 and", "r<25 or i<24", "r<25, i<24", "__import__('os')"])
def test_a_cut_that_cannot_be_read_is_refused(cut):
    with pytest.raises(ValueError, match="cannot read the selection"):
        survey.select(torch.ones(1, 26), cut)


def test_truth_has_two_depths_shared_within_a_group():
    faint = torch.full((20_000, 26), 1e-4)
    log_sigma = survey.truth().sigma(faint, generator()).log()
    y, j, g = (log_sigma[:, filters.SHORT.index(b)] for b in ("Y", "J", "g"))
    shallow = y > (y.quantile(0.05) + y.quantile(0.95)) / 2
    assert 0.35 < shallow.float().mean() < 0.45, "40 % of the near-infrared tiles are shallow"
    assert j[shallow].mean() - j[~shallow].mean() > 0.85, "J is shallow where Y is"
    assert (g[shallow].mean() - g[~shallow].mean()).abs() < 0.02, "g does not care"
    depth = 23.9 - 2.5 * torch.log10(3 * y[~shallow].exp().median())
    assert abs(depth - 27.81) < 0.05, "3-sigma depth of the deep tiles"


@pytest.fixture(scope="module")
def learned():
    flux = fluxes()
    sigma = survey.truth().sigma(flux, generator(5))
    observed = survey.truth().observe(flux, sigma, generator(6))
    model, history = uncertainty.train(observed, sigma, steps=250, generator=generator(7))
    return model, history


def test_learned_errors_are_calibrated_for_noiseless_fluxes(learned):
    flux = fluxes(seed=20)
    sigma = survey.truth().sigma(flux, generator(21))
    with torch.no_grad():
        pit = learned[0].cdf(flux, sigma).sort(0).values
        drawn = learned[0].sample(flux, generator=generator(22))
    ks = (pit - torch.linspace(0, 1, len(pit))[:, None]).abs().max(0).values
    assert ks.max() < 0.08, f"PIT of sigma not flat in {filters.SHORT[int(ks.argmax())]}: KS {ks.max():.3f}"
    assert ((drawn.log().std(0) / sigma.log().std(0) - 1).abs() < 0.15).all(), "spread of ln sigma"
    correlation = torch.corrcoef(drawn.log().T)
    assert correlation[6, 7] > 0.6 > correlation[6, 24], "Y and J share their tiles, Y and Ch1 do not"


def test_fixed_draws_give_smooth_errors_with_the_right_gradient(learned):
    model, flux = copy.deepcopy(learned[0]).double(), fluxes(50).double()
    draws = torch.randn(50, model.width, generator=generator(3)).double()
    probe = flux.clone().requires_grad_()
    model.sample(probe, draws=draws).log().sum().backward()
    step = 1e-4 * flux
    with torch.no_grad():
        change = (model.sample(flux + step, draws=draws).log() - model.sample(flux - step, draws=draws).log()) / (2 * step)
    agree = torch.isclose(probe.grad, change, rtol=0.05, atol=1e-2)
    assert agree.float().mean() > 0.97, "implicit gradient; between two depths it is bounded on purpose"
    assert (probe.grad * flux).abs().max() < 30
    assert torch.equal(model.sample(flux, draws=draws), model.sample(flux, draws=draws))


def test_missing_bands_are_learned_around_and_zero_errors_refused(learned):
    flux = fluxes(500)
    sigma = survey.truth().sigma(flux, generator())
    flux[::2, 0] = torch.nan
    model, history = uncertainty.train(flux, sigma, steps=5, generator=generator())
    assert history.isfinite().all() and model.sample(flux, generator=generator()).isfinite().all()
    sigma[3, 3] = 0
    with pytest.raises(ValueError, match="1 flux errors are not positive"):
        uncertainty.train(flux, sigma, steps=5, generator=generator())


def test_draws_of_another_shape_are_refused(learned):
    with pytest.raises(ValueError, match="26 per galaxy"):
        learned[0].sample(fluxes(10), draws=torch.zeros(10, 3))


def test_state_survives_a_round_trip(learned):
    other = survey.UncertaintyModel(hidden=learned[0].weights[0].shape[-1])
    other.load_state_dict(learned[0].state_dict())
    flux = fluxes(20)
    assert torch.equal(other.sample(flux, generator=generator()), learned[0].sample(flux, generator=generator()))


@pytest.mark.parametrize("name", [name for name in definitions.BUILT_IN if name != "cosmos2020"])
def test_a_built_in_survey_reaches_its_depth(name):
    sky = definitions.load(name)
    flux = torch.full((20_000, len(sky.bands)), 1e-6)
    sigma = sky.sigma(flux)
    depth = dict(zip(sky.bands, filters.magnitude_from_flux(5 * sigma[0]).tolist(), strict=True))
    known = {"kids": ("r", 25.02), "lsst-y1": ("i", 25.13)}[name]
    assert abs(depth[known[0]] - known[1]) < 1e-3, "5 sigma"
    noise = (sky.observe(flux, sigma, generator()) - flux) / sigma
    assert (noise.std(0) - 1).abs().max() < 0.03, "Gaussian, in units of the error"
    bright = torch.full((1, len(sky.bands)), 1e6)
    assert ((sky.sigma(bright) / bright) < 0.02).all() and ((sky.sigma(bright) / bright) > 0.001).all(), "the floor limits bright galaxies"


MINE = "bands: {blue: sdss_g0, red: curve.par}\ndepths: {blue: [25.0, 5], red: [24.0, 10]}\ncuts: red<22\nfloor: {blue: 0.1, red: 0}\n"


def test_a_survey_of_ones_own_may_bring_its_curve(tmp_path):
    (tmp_path / "mine.yaml").write_text(MINE)
    (tmp_path / "curve.par").write_text("6000 0\n6500 1\n7000 0\n")
    sky = definitions.load(tmp_path / "mine.yaml")
    assert list(sky.bands) == ["blue", "red"] and sky.cuts == "red<22"
    flux = torch.tensor([[0.0, filters.flux_from_magnitude(torch.tensor(24.0))], [1000.0, 1000.0]])
    sigma = sky.sigma(flux)
    assert torch.isclose(flux[0, 1] / sigma[0, 1], torch.tensor(10.0)), "ten sigma at its depth"
    assert torch.isclose(sigma[1, 0], torch.tensor(100.0), rtol=1e-3) and torch.isclose(sigma[1, 1], sigma[0, 1]), "a floor per band"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cuts: red<22", ""), "there is no field 'cuts'"),
        (("cuts: red<22", "cut: red<22"), "the fields are bands, depths, cuts, floor, source; got"),
        (("red: [24.0, 10]", "nir: [24.0, 10]"), "depths need one entry for each band, blue, red"),
        (("[24.0, 10]", "24.0"), "the depth of red is"),
        (("[24.0, 10]", "[24.0, 0]"), "the depth of red is"),
        (("red: 0}", "red: 1e-2}"), "floor is a fraction between 0 and 1"),
        (("curve.par", "curve_without"), "unknown band 'curve_without'"),
        (("cuts: red<22", "cuts: r<22"), "with a band of blue, red"),
        (("blue: sdss_g0", "427: sdss_g0"), "short name that begins with a letter"),
        (("{blue: sdss_g0,", "{blue: sdss_g0:"), "is not YAML"),
    ],
)
def test_what_is_wrong_with_a_definition_is_said(tmp_path, change, message):
    assert change[0] in MINE
    (tmp_path / "curve.par").write_text("6000 0\n6500 1\n7000 0\n")
    (tmp_path / "mine.yaml").write_text(MINE.replace(*change))
    with pytest.raises(ValueError, match=message):
        definitions.load(tmp_path / "mine.yaml")


def test_an_unknown_survey_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="use one of cosmos2020, kids, lsst-y1, or the path of a YAML file"):
        definitions.load("sdss")


def test_the_survey_of_a_catalogue_has_its_errors():
    """Errors of a tenth of the flux, whatever the built-in survey would quote."""
    generator = torch.Generator().manual_seed(2)
    flux = 10 ** (0.5 * torch.randn(600, 26, generator=generator))
    sky = survey.learn(flux, 0.1 * flux * torch.exp(0.05 * torch.randn(flux.shape, generator=generator)), 200, generator)
    ratio = sky.sigma(flux, generator=generator) / flux
    assert 0.08 < float(ratio.median()) < 0.12


@pytest.mark.parametrize("cut, passes", [("r<25", False), ("r<=25", True), ("r>25", False), ("r>=25", True)])
def test_a_galaxy_on_the_limit_passes_where_the_limit_is_included(cut, passes):
    flux = filters.flux_from_magnitude(torch.full((1, 26), 25.0))
    assert bool(survey.select(flux, cut)) is passes, f"a magnitude of exactly 25 {'passes' if passes else 'fails'} {cut}"
