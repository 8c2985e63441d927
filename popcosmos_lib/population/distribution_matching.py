"""Matching a mock to a catalogue: the loop that moves a population's weights, zero points and line strengths down a loss.

The loss is any of ``optimal_transport.Transport`` and ``summary_statistics.Summaries``, plus ``ForwardModel.leak``, which pulls back the
galaxies that a smooth density leaks across the sharp limit of the catalogue; without it the cheapest way to lower the distance is to leak
more. Base draws are fixed, so the loss is a smooth function of what is learned, and there are more of them than galaxies, so that enough
are left after the selection. What is kept is what does best on galaxies and base draws that the steps never saw. Introduced in notebook 04.

References
----------
Alsing et al. (2024), arXiv:2402.00935 sect. 4; Thorp et al. (2025), arXiv:2506.12122 sect. 3.5.
"""

import copy
import math

import torch
from tqdm import tqdm

from popcosmos_lib.artefacts.checkpoint import Checkpoint
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.population import optimal_transport
from popcosmos_lib.population.model import inside
from popcosmos_lib.survey.photometry import asinh_magnitude

__all__ = ["match"]

_ROWS = 8192  # mock galaxies evaluated at once: larger chunks fall out of cache
_NEAR = 1.05  # corrections go on changing after the loss has reached the scatter of its sample, of a few per cent
_MATTERS = 0.2  # of the largest first gradient of a line: one with less moves less, where Adam would move it on noise alone
_LEAST = 0.02  # fraction of a start's galaxies that must pass the selection


class _Mock:
    """Galaxies of fixed base draws and fixed noise: ``more`` for every galaxy of a catalogue of ``n``, the first n that pass are taken."""

    def __init__(self, n, more, forward, generator, like):
        self.n, self.size = n, math.ceil(more * n)
        self.base = torch.randn(self.size, 16, generator=generator, device=generator.device).to(like)
        self.draws = forward.draws(self.size, generator)

    def observe(self, population, forward, rows):
        """Galaxies and their photometry; what ``Population.sample`` would replace, a mass out of bounds, counts as not selected."""
        theta = population.from_base(self.base[rows])
        seen = forward(theta, type(self.draws)(*(d[rows] for d in self.draws)))
        return theta, seen._replace(selected=seen.selected & inside(theta.detach()))

    @torch.no_grad()
    def whole(self, population, forward):
        """Parameters and magnitudes of the galaxies taken, fraction that passes, and mean leak."""
        theta, magnitude, missed, passed = [], [], 0.0, 0
        for rows in torch.arange(self.size).split(_ROWS):
            points, seen = self.observe(population, forward, rows)
            theta.append(points[seen.selected])
            magnitude.append(asinh_magnitude(seen.flux[seen.selected]))
            missed += float(forward.leak(seen)) * len(rows)
            passed += int(seen.selected.sum())
        return torch.cat(theta)[: self.n], torch.cat(magnitude)[: self.n], passed / self.size, missed / self.size


def match(
    population, forward, loss, held, *, generator, checkpoint=None, iterations=100, batch=1024, lr=1e-4, charge=0.2, corrections=False,
    lr_zero_point=3e-3, lr_lines=3e-2, more=1.25, every=10, patience=8,
):  # fmt: skip
    """Move a population, and where asked its corrections, until its mock photometry lies on a catalogue's.

    Parameters
    ----------
    population : Population
        Where to start; not changed.
    forward : ForwardModel
        Its corrections are where those start; not changed.
    loss : transport.Transport or summaries.Summaries
        Of the galaxies that are learned from.
    held : Tensor of shape (n, 26)
        asinh magnitudes of the galaxies that decide when to stop.
    generator : torch.Generator
        Base draws, batches and directions.
    checkpoint : checkpoint.Checkpoint, optional
        Written every ``every`` steps; a run that finds one goes on from it and ends at the same weights, bit by bit.
    iterations, batch, lr : int, int, float
        Adam steps, galaxies a step (all, where there are fewer) and rate of the weights; all rates fall to zero as a cosine.
    charge : float
        Weight of ``ForwardModel.leak``.
    corrections : bool
        Learn zero points and line strengths as well, at rates ``lr_zero_point`` and ``lr_lines`` (a step of Adam is about its rate).
    more : float
        Base draws per galaxy, more than one.
    every, patience : int
        Steps between held-out records, and records without a better one after which to stop.

    Returns
    -------
    population : Population
        That of the best held-out loss; with corrections, of the last one that is as good to 5 %.
    corrections : tuple of two Tensors, (26,) and (44,)
        Zero points and line strengths that belong to it.
    history : dict of str to list
        One entry a record: ``step``; ``training``, the mean loss of the steps since the last; held out, ``loss``, and sliced W2 of
        ``magnitudes`` and of ``colours`` whatever the loss; of the mock, ``mean_z``, ``sd_z``, the fraction ``selected``, and ``mean``
        and ``sd`` of the 16 parameters; ``log_zero_point`` and ``line_scale``.

    Raises
    ------
    ValueError
        If hardly any galaxy of the start passes the selection, or the loss or its gradient stops being finite.
    """
    checkpoint = checkpoint or Checkpoint(None, {})
    saved = checkpoint.load()
    begin = saved["begin"] if saved else generator.get_state()
    generator.set_state(begin)  # so that a run that goes on has the base draws of the one that was killed
    population = copy.deepcopy(population).requires_grad_(True)
    learned = [x.detach().to(held).clone().requires_grad_(corrections) for x in (forward.log_zero_point, forward.line_scale)]
    forward = forward.corrected(*learned)
    mock, other = (_Mock(n, more, forward, generator, held) for n in (len(loss.target), len(held)))
    groups = [{"params": list(population.net.parameters()), "rate": lr}]
    groups += [{"params": [x], "rate": rate} for x, rate in zip(learned, (lr_zero_point, lr_lines), strict=True) if corrections]
    optimiser = torch.optim.Adam(groups, lr=lr)
    near = _NEAR if corrections else 1.0
    ruler, judge = optimal_transport.Transport(loss.target).against(held), loss.against(held)

    def weights():
        return {"population": population.state_dict(), "log_zero_point": learned[0].detach(), "line_scale": learned[1].detach()}

    def restore(state):
        population.load_state_dict(state["population"])
        for value, name in zip(learned, ("log_zero_point", "line_scale"), strict=True):
            value.data.copy_(state[name])

    def record(step, training):
        theta, magnitude, selected, missed = other.whole(population, forward)
        if selected < _LEAST:
            raise ValueError(
                f"only {selected:.1%} of the mock galaxies pass {forward.selection} at step {step}: start from galaxies that do, "
                "or lower the rate lr"
            )
        apart = ruler.parts(magnitude)
        z = parameters.column(theta, "z")
        values = {
            "step": step, "training": training, "loss": float(judge(magnitude)) + charge * missed, "magnitudes": float(apart[0]),
            "colours": float(apart[1]), "mean_z": float(z.mean()), "sd_z": float(z.std()), "selected": selected,
            "mean": theta.mean(0).tolist(), "sd": theta.std(0).tolist(), "log_zero_point": learned[0].tolist(),
            "line_scale": learned[1].tolist(),
        }  # fmt: skip
        for name, value in values.items():
            history.setdefault(name, []).append(value)
        return _stale(history["loss"], near) == 0

    if saved:
        history, best, first = saved["history"], saved["best"], saved["history"]["step"][-1]
        restore(saved["weights"])
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
    else:
        history, first = {}, 0
        record(0, math.nan)
        best = copy.deepcopy(weights())

    losses = []
    for step in tqdm(range(first + 1, iterations + 1), desc="calibration", initial=first, total=iterations, disable=None):
        if _stale(history["loss"], near) >= patience:
            break
        optimiser.zero_grad(set_to_none=True)
        value = _backward(population, forward, loss, mock, min(batch, mock.n), charge, generator)
        steep = torch.nn.utils.get_total_norm([x.grad for group in groups for x in group["params"] if x.grad is not None])
        if not math.isfinite(value + steep):
            raise ValueError(f"the loss is {value} and its gradient {steep} at step {step}: lower the rate lr")
        if step == 1 and corrections:
            optimiser.param_groups[2]["eps"] = _MATTERS * float(learned[1].grad.abs().max())
        for group in optimiser.param_groups:
            group["lr"] = group["rate"] * 0.5 * (1 + math.cos(math.pi * (step - 1) / iterations))
        optimiser.step()
        learned[1].data.clamp_(min=-1.0)  # a line can be absent, not negative
        losses.append(value)
        if step % every == 0 or step == iterations:
            if record(step, sum(losses) / len(losses)):
                best = copy.deepcopy(weights())
            losses = []
            state = {"begin": begin, "weights": weights(), "best": best, "optimiser": optimiser.state_dict(), "history": history}
            checkpoint.save(state | {"generator": generator.get_state()})
    restore(best)
    checkpoint.clear()
    return population.eval().requires_grad_(False), tuple(x.detach() for x in learned), history


def _backward(population, forward, loss, mock, batch, charge, generator):
    """Gradients of a batch of base draws, or of all of them in their one order, trimmed to as many galaxies as a batch of the catalogue.

    Brightness and leaking move the galaxies alone: zero points and lines would otherwise make up for a population, or a sample, that is too
    bright by chance, since magnitudes scatter by more than one and colours by a few tenths. They learn from the colours.
    """
    count = math.ceil(batch * mock.size / mock.n)
    rows = torch.arange(mock.size)
    if count < mock.size:
        rows = torch.randperm(mock.size, generator=generator, device=generator.device)[:count]
    theta, seen = mock.observe(population, forward, rows)
    brightness, colours = loss.parts(asinh_magnitude(seen.flux[seen.selected][:batch]), generator)
    brightness = brightness + charge * forward.leak(seen)
    pull = torch.autograd.grad(brightness, theta, retain_graph=True)[0]
    torch.autograd.backward([colours, theta], [None, pull])
    return float((brightness + colours).detach())


def _stale(losses, near):
    """Records since the best one, or since the last whose loss is less than ``near`` times the smallest."""
    first = losses.index(min(losses))
    return len(losses) - 1 - max(i for i, loss in enumerate(losses) if i == first or loss < near * losses[first])
