"""A population by expectation-maximisation on the posteriors of its galaxies.

Each iteration draws every galaxy's posterior under the current population, then refits the population to the pooled draws. What is modelled
is p(theta | selected), so a galaxy's likelihood is that of data that passed the selection, L / P(selected | theta).

The draws are Hamiltonian: each galaxy's chain goes on from where it was, under a density that has changed a little. The density is
smoothed by noise that shrinks: unsmoothed it learns where the chains are, and they stay there. Introduced in notebook 04.

References
----------
Dempster, Laird & Rubin (1977); Wei & Tanner (1990), JASA 85, 699 (expectation by Monte Carlo); Neal (2011), arXiv:1206.1901;
Thorp et al. (2025), arXiv:2506.12122 sect. 3.6 (Student-t likelihood).
"""

from typing import NamedTuple

import torch
from tqdm import tqdm, trange

from popcosmos_lib.artefacts.checkpoint import Checkpoint
from popcosmos_lib.density import flows
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.population import chains
from popcosmos_lib.sampling import hamiltonian
from popcosmos_lib.survey import likelihood
from popcosmos_lib.survey.forward_model import Photometry

__all__ = ["Posteriors", "posteriors"]

_ROWS = 8192  # points evaluated at once on a CPU: larger chunks fall out of cache
_KEPT = 2  # iterations whose draws are pooled


class Posteriors(NamedTuple):
    """Draws of every galaxy's posterior under the population that they make up.

    Attributes
    ----------
    theta : Tensor of shape (n, k, 16)
        Equally weighted draws, of the last iterations.
    history : dict of str to list
        One entry an iteration. Before the density is refitted: ``iteration``; ``accepted``, mean acceptance of the chains; ``mean`` and
        ``sd`` of the draws, lists of 16, and those of the star-formation rate, ``log_sfr`` and ``log_sfr_sd``. After it: ``fitted`` and
        ``held_out``, its -ln density of the draws of galaxies that it was and was not fitted to [nat per unit of standardised phi].
    flow : flows.Flow
        Density of the last refit, on the standardised latent (phi - shift) / scale.
    shift, scale : Tensor of shape (16,)
    """

    theta: torch.Tensor
    history: dict
    flow: flows.Flow
    shift: torch.Tensor
    scale: torch.Tensor


def posteriors(
    flux, flux_err, *, forward, start, generator, checkpoint=None, floor=0.02, iterations=4, trajectories=20, leapfrogs=8, keep=4,
    start_steps=400, refit_steps=200, smoothing=(0.1, 0.03), held_out=0.1, width=96, depth=6,
):  # fmt: skip
    """Draw every galaxy's posterior under the population that the catalogue itself implies.

    Stops early when the density describes held-out galaxies worse than in the iteration before: from then on it overfits.

    Parameters
    ----------
    flux, flux_err : Tensor of shape (n, 26)
        Photometry and errors of galaxies that passed the selection [µJy]; a band where either is not finite is ignored.
    forward : ForwardModel
        Parameters to photometry, corrections included; its selection is that of the catalogue.
    start : Tensor of shape (n, 16) or (n, k, 16)
        One point per galaxy, or draws of its posterior under a prior. Their density is learned first; chains begin at the last draw.
    generator : torch.Generator
        Source of all randomness.
    checkpoint : checkpoint.Checkpoint, optional
        Written after every iteration; a resumed run ends at the same result.
    floor : float or Tensor of shape (26,)
        Fractional error of the model flux; the emulator's error is added.
    iterations, trajectories, leapfrogs, keep : int
        Maximum number of iterations, and the chains of each, as for ``chains.posterior_draws``.
    start_steps, refit_steps, width, depth : int
        Adam steps of the density, at the start and in each iteration; size of the flow.
    smoothing : (float, float)
        Noise added to the draws that the density learns from, first and last, in units of the starting standard deviation.
    held_out : float
        Fraction of galaxies that no density is fitted to and that score it; with 0 there is no early stop and scores are NaN.

    Returns
    -------
    Posteriors

    Raises
    ------
    ValueError
        If the start is not finite, or does not have points for every galaxy.
    """
    checkpoint = checkpoint or Checkpoint(None, {})
    catalogue = _Catalogue(flux, flux_err, forward, floor)
    phi = parameters.to_latent(start.to(flux))
    phi = phi[:, None] if phi.dim() == 2 else phi
    if len(phi) != len(flux) or not phi.isfinite().all():
        raise ValueError(f"the start must be finite and have points for each of the {len(flux)} galaxies: drop failed fits first")
    state = _State(catalogue, phi, generator, {"width": width, "depth": depth})
    found = checkpoint.load()
    if found is None:
        state.refit(phi[state.parts(held_out)[1]].flatten(0, 1), start_steps, smoothing[0])
        checkpoint.save(state.saved())
    else:
        state.restore(found)
    for i in trange(len(state.history["iteration"]), iterations, desc="expectation-maximisation", disable=None):
        if state.overfits():
            break
        state.expect(trajectories, leapfrogs, keep)
        state.maximise(refit_steps, smoothing[0] * (smoothing[1] / smoothing[0]) ** (i / max(1, iterations - 1)), held_out)
        checkpoint.save(state.saved())
    return Posteriors(parameters.to_theta(torch.cat(state.pools, 1)), state.history, state.density, state.shift, state.scale)


class _Catalogue:
    """Photometry as a likelihood."""

    def __init__(self, flux, flux_err, forward, floor):
        there = torch.isfinite(flux) & torch.isfinite(flux_err)
        self.flux, self.flux_err = torch.where(there, flux, torch.nan), torch.where(there, flux_err, torch.nan)
        self.forward, self.floor = forward, likelihood.fractional_error(floor, forward.emulator).to(flux)
        # the truncation is felt by galaxies whose flux in the selection band is known
        self.truncated = there[:, forward.reference]

    def log_likelihood(self, phi, rows):
        """ln L / P(selected | theta) of points phi (g, 16), one for each of the galaxies ``rows``; (g,), -inf outside the mass bounds."""
        theta = parameters.to_theta(phi)
        model = self.forward.flux(theta)
        seen = self.forward.survey.on_zero_points(model)
        log_l = likelihood.log_likelihood(likelihood.ZERO_POINT - 2.5 * seen.log10(), self.flux[rows], self.flux_err[rows], self.floor)
        known = self.truncated[rows]
        error = torch.where(self.flux_err[rows].isfinite(), self.flux_err[rows], 1.0)
        width = torch.sqrt(error**2 + (self.floor * seen) ** 2)
        log_l = log_l - torch.where(known, self.forward.log_selected(Photometry(seen, width, model, None)), 0.0)
        mass, (lower, upper) = parameters.column(theta, "log10M_formed"), parameters.BOUNDS[0].tolist()
        return torch.where((mass >= lower) & (mass <= upper), log_l, -torch.inf)


class _State:
    """What an iteration changes: the density, the chains, the pooled draws."""

    _TENSORS = ("order", "phi", "step")

    def __init__(self, catalogue, phi, generator, size):
        self.catalogue, self.generator = catalogue, generator
        everyone = phi.flatten(0, 1)
        self.shift, self.scale = everyone.mean(0), everyone.std(0)
        self.density = flows.Flow(generator=generator, **size).to(phi)
        self.order = torch.randperm(len(phi), generator=generator, device=generator.device).to(phi.device)  # its first are held out
        self.phi, self.step = phi[:, -1].clone(), torch.full_like(phi[:, 0, 0], hamiltonian.FIRST_STEP)
        self.pools = []
        self.history = {name: [] for name in "iteration accepted mean sd log_sfr log_sfr_sd fitted held_out".split()}

    def saved(self):
        return {name: getattr(self, name) for name in self._TENSORS} | {
            "density": self.density.state_dict(), "pools": self.pools, "history": self.history, "generator": self.generator.get_state(),
        }  # fmt: skip

    def restore(self, found):
        for name in self._TENSORS:
            setattr(self, name, found[name].to(getattr(self, name)))
        self.density.load_state_dict(found["density"])
        self.pools, self.history = [pool.to(self.phi) for pool in found["pools"]], found["history"]
        self.generator.set_state(found["generator"])

    def parts(self, held_out):
        """Galaxies held out, and the others."""
        cut = round(held_out * len(self.order))
        return self.order[:cut], self.order[cut:]

    def overfits(self):
        scores = self.history["held_out"]
        return len(scores) > 1 and scores[-1] > scores[-2]

    def _standard(self, phi):
        return (phi - self.shift) / self.scale

    def refit(self, phi, steps, noise):
        """Fit the density to points phi (n, 16), with noise added to each batch."""
        x = self._standard(phi)

        def batch(generator):
            chosen = x[torch.randint(len(x), (1024,), generator=generator, device=generator.device).to(x.device)]
            return chosen + noise * torch.randn(chosen.shape, generator=generator, device=generator.device).to(x), None

        flows.train(self.density, batch, generator=self.generator, steps=steps, label="density")

    def expect(self, trajectories, leapfrogs, keep):
        """Continue every galaxy's chain under the current density, pool the draws, and note how it went."""
        self.density.requires_grad_(False)
        spread = hamiltonian.core_width(self.phi)
        rows = torch.arange(len(self.phi), device=self.phi.device).split(hamiltonian.rows_at_once(self.phi))
        parts = [self._walk(r, spread, trajectories, leapfrogs, keep) for r in tqdm(rows, desc="posteriors", disable=None, leave=False)]
        self.density.requires_grad_(True)
        draws, accepted, self.step = (torch.cat(columns) for columns in zip(*parts, strict=True))
        self.phi, self.pools = draws[:, -1].clone(), [*self.pools, draws][-_KEPT:]
        theta = parameters.to_theta(draws).flatten(0, 1)
        log_sfr = parameters.log_sfr(theta)
        note = {
            "iteration": len(self.history["iteration"]) + 1, "accepted": float(accepted.mean()), "mean": theta.mean(0).tolist(),
            "sd": theta.std(0).tolist(), "log_sfr": float(log_sfr.mean()), "log_sfr_sd": float(log_sfr.std()),
        }  # fmt: skip
        for name, value in note.items():
            self.history[name].append(value)

    def _walk(self, rows, spread, trajectories, leapfrogs, keep):
        c, phi = self.catalogue, self.phi[rows]

        def log_density(phi):
            return c.log_likelihood(phi, rows) + self.density.log_prob(self._standard(phi))

        whiten = chains.whitening(phi, c.flux[rows], c.flux_err[rows], c.forward.emulator, spread, c.floor)
        return hamiltonian.walk(phi, log_density, whiten, self.step[rows], self.generator, trajectories, leapfrogs, keep)

    def maximise(self, steps, noise, held_out):
        """Refit the density to the pooled draws, and score it."""
        held, fitted = self.parts(held_out)
        self.refit(torch.cat([pool[fitted].flatten(0, 1) for pool in self.pools]), steps, noise)
        for name, rows in (("fitted", fitted[: max(len(held), 1)]), ("held_out", held)):
            with torch.no_grad():
                points = self._standard(self.pools[-1][rows].flatten(0, 1)).split(_ROWS)
                self.history[name].append(-float(torch.cat([self.density.log_prob(part) for part in points]).mean()))
