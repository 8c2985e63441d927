"""Joint distribution of the 26 flux errors of a galaxy: a diffusion model of what the magnitude in each band does not determine.

A Gaussian copula cannot say that Y, J, H and Ks lie on one tile, deep or shallow; a diffusion model can. It learns standardised
residuals of ln sigma, whose means and widths follow each band's own magnitude (`uncertainty` says why). Introduced in notebook 03.

References
----------
Thorp et al. (2025) sect. 3.4: a diffusion model of 26 ln sigma given 26 asinh magnitudes.
"""

import torch

from popcosmos_lib.density import diffusion
from popcosmos_lib.survey.photometry import BANDS, asinh_magnitude
from popcosmos_lib.survey.uncertainty import Learned, UncertaintyModel, covariance, measured, standardise

__all__ = ["ConditionalDiffusion", "from_state", "train"]

_CHUNK = 2048  # rows evaluated at once; small chunks stay in the processor's cache
_MEDIANS = [  # bands over which a median says how bright a galaxy is
    [BANDS["short"].index(name) for name in names.split()]
    for names in (
        "u g IB427 IB464 IA484 IB505 IA527",
        "r i z y IB574 IA624 IA679 IB709 IA738 IA767 IB827 NB711 NB816",
        "Y J H Ks",
        "Ch1 Ch2",
    )
]
_NOISE = diffusion.VE(0.04, 5.0)  # noise of the diffusion: the ridges of a depth are at least 0.2 wide in the whitened residuals
_STEPS = 12  # of the solver; see the docstring of ConditionalDiffusion
_FARTHEST = 8.0  # whitened residuals: no one learned from lies beyond, where the network says anything: one draw in 50,000 would run away


class ConditionalDiffusion(Learned):
    """Joint density of the 26 ln sigma: mean and width in each band from its own magnitude, the residuals from a diffusion model.

    The residuals are first whitened by their Cholesky factor, so that the diffusion model need not learn the scatter common to all bands.
    It is conditioned on the median magnitudes of the blue, red, near-infrared and IRAC bands, which measure the brightness of a galaxy but
    not the noise in its spectrum. With twelve evaluations of the network per draw the PIT is within 0.01 of that of the adaptive solver.

    Parameters
    ----------
    hidden : int
        Units in each hidden layer of a band, as for `UncertaintyModel`.
    units, depth : int
        Units per hidden layer and hidden layers of the diffusion's network.
    generator : torch.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    margin : UncertaintyModel
        One Gaussian per band, the model of Alsing et al. (2024): means and widths.
    """

    def __init__(self, hidden=32, units=96, depth=2, *, generator=None):
        super().__init__()
        self.margin = UncertaintyModel(hidden, 1, generator=generator)
        self.net = diffusion.ScoreNet(26, units, depth, context=len(_MEDIANS), generator=generator)
        self.register_buffer("centre", torch.zeros(26))
        self.register_buffer("mixing", torch.eye(26))  # Cholesky factor of the covariance of the residuals
        self.register_buffer("context_shift", torch.zeros(len(_MEDIANS)))
        self.register_buffer("context_scale", torch.ones(len(_MEDIANS)))

    def _place(self, flux):
        """Mean and width of ln sigma in each band, (n, 26) each."""
        _, mean, log_width = (x[..., 0] for x in self.margin._mixture(flux))
        scale = self.margin.log_sigma_scale
        return mean * scale + self.margin.log_sigma_shift, log_width.exp() * scale

    def _context(self, flux):
        x = (_medians(flux) - self.context_shift) / self.context_scale
        return torch.nan_to_num(x.clamp(-5.0, 5.0))

    def _sample(self, flux, draws):
        mean, width = self._place(flux)
        denoise = self.net.given(self._context(flux))
        bounded = lambda x, sigma: denoise(x, sigma).clamp(-_FARTHEST, _FARTHEST)  # noqa: E731
        white = diffusion.decode(bounded, draws, sde=_NOISE, steps=_STEPS)
        return (mean + width * (self.centre + white @ self.mixing.T)).exp()

    def residual(self, flux, sigma):
        """(ln sigma - mean) / width in each band, (n, 26): a natural space for comparing errors of galaxies of different magnitudes."""
        mean, width = self._place(flux)
        return (sigma.log() - mean) / width

    def joint_log_prob(self, flux, sigma):
        """Log density of the 26 ln sigma together, by the probability-flow ODE and an exact trace.

        Parameters
        ----------
        flux, sigma : Tensor of shape (n, 26)
            Flux and its error [µJy]; no band may be missing.

        Returns
        -------
        Tensor of shape (n,)
            ln p(ln sigma | flux) [nat].
        """
        white = torch.linalg.solve_triangular(self.mixing, (self.residual(flux, sigma) - self.centre).T, upper=False).T
        volume = self.mixing.diagonal().log().sum() + self._place(flux)[1].log().sum(-1)
        parts = zip(flux.split(_CHUNK), white.split(_CHUNK), strict=True)
        log_p = [diffusion.log_prob(self.net.given(self._context(f)), w, sde=_NOISE) for f, w in parts]
        return torch.cat(log_p) - volume


def _medians(flux):
    """Medians of the magnitudes over groups of bands, (n, 4); NaN where a galaxy has none of a group."""
    magnitude = asinh_magnitude(flux)
    return torch.stack([magnitude[:, group].nanmedian(-1).values for group in _MEDIANS], -1)


def train(flux, sigma, margin, steps, generator, *, units=96, depth=2, batch=512, rate=1e-2):
    """Fit the diffusion model to a catalogue's own fluxes and errors.

    Parameters
    ----------
    flux, sigma : Tensor of shape (n, 26)
        Observed flux and its error [µJy]; NaN = missing. Residuals of missing bands are drawn given the others, as if Gaussian.
    margin : UncertaintyModel
        Model with one component, trained on the same catalogue.
    steps : int
        Adam steps.
    generator : torch.Generator
        Initial weights, batches and noise.
    units, depth, batch : int
    rate : float
        Peak learning rate; at lower ones a narrow pair of ridges in a single band, as in u, is found late or never.

    Returns
    -------
    model : ConditionalDiffusion
    history : Tensor of shape (steps,)
        Loss of `diffusion.train`.

    Raises
    ------
    ValueError
        If an error is not positive.
    """
    flux, sigma, _ = measured(flux, sigma)
    model = ConditionalDiffusion(margin.weights[0].shape[-1], units, depth, generator=generator)
    model.margin.load_state_dict(margin.state_dict())
    with torch.no_grad():
        standardise(model, "context", _medians(flux))
        residual = torch.cat([model.residual(f, s) for f, s in zip(flux.split(_CHUNK), sigma.split(_CHUNK), strict=True)]).clamp(-6.0, 6.0)
        model.centre.copy_(residual.nanmean(0).nan_to_num())
        spread = covariance(residual - model.centre)
        model.mixing.copy_(torch.linalg.cholesky(spread))
        white = torch.linalg.solve_triangular(model.mixing, _impute(residual - model.centre, spread, generator).T, upper=False).T
        context = model._context(flux)
    history = diffusion.train(model.net, white, generator=generator, steps=steps, batch=batch, lr=rate, sde=_NOISE, context=context)
    return model.eval(), history


def _impute(x, covariance, generator):
    """Centred Gaussian values (n, k) with those that are missing drawn given the others: a draw of all, moved by what is known."""
    known = x.isfinite()
    drawn = torch.randn(x.shape, generator=generator, dtype=covariance.dtype) @ torch.linalg.cholesky(covariance).T
    for rows in (~known.all(-1)).nonzero()[:, 0].split(_CHUNK):
        mask = known[rows].to(covariance)
        among = covariance * mask[:, :, None] * mask[:, None, :] + torch.diag_embed(1 - mask)
        miss = torch.where(known[rows], x[rows].to(covariance) - drawn[rows], 0.0)
        drawn[rows] += torch.linalg.solve(among, miss) @ covariance
    return torch.where(known, x, drawn.to(x))


def from_state(state):
    """The model of a state dictionary, in evaluation mode: a `ConditionalDiffusion` or an `UncertaintyModel`, with its sizes."""
    if "mixing" in state:
        depth = sum(name.startswith("net.layers.") and name.endswith(".bias") for name in state) - 1
        model = ConditionalDiffusion(state["margin.weights.0"].shape[-1], len(state["net.layers.0.bias"]), depth)
    else:
        model = UncertaintyModel(state["weights.0"].shape[-1], state["weights.2"].shape[-1] // 3)
    model.load_state_dict(state)
    return model.eval()
