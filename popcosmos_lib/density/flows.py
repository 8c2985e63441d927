"""Normalising flows: densities, conditional or not, that are sampled and evaluated in one pass.

A flow maps points x to unit normal u: first an affine map with a full matrix, then couplings, each of which bends half of the dimensions
by rational-quadratic splines whose knots depend on the other half. With a context (photometry, say) the matrix and the knots depend on it
too: the affine map then centres and whitens each posterior, which narrow posteriors need, and the splines see coordinates of order one.
Used by ``expectation_maximisation`` and ``proposal``.

The splines are our own because points run along the last axis and bins along the first: on a CPU that is 4 to 6 times as fast as splines
with the bins last (zuko 1.6), and one pass gives the inverse together with its density.

References
----------
Durkan et al. (2019), arXiv:1906.04032 (neural spline flows); Papamakarios et al. (2021), arXiv:1912.02762.
"""

import math

import torch
from torch import nn
from torch.nn import functional
from tqdm import trange

from popcosmos_lib.artefacts.checkpoint import Checkpoint

__all__ = ["Flow", "log_normal", "restore", "train"]

_BOUND = 5.0  # splines act within +-5 and are the identity beyond
_LEAST = 0.01  # smallest width and height of a bin, as a share of all
_STEEPEST = 7.0  # largest |ln slope| at a knot
_WIDEST = 8.0  # largest |ln| of an entry on the diagonal of the affine map
_CLIP = 5.0  # norm at which gradients are cut
_WARM = 0.05  # share of the steps over which the rate rises
_SAVED = 500  # steps between checkpoints


def _spline(knots, x, inverse=False):
    """Monotonic rational-quadratic splines of many points at once.

    Parameters
    ----------
    knots : Tensor of shape (3 K - 1, ...)
        Unconstrained widths and heights of the K bins, and slopes at the K - 1 inner knots; all zero is the identity.
    x : Tensor of shape (...)
    inverse : bool

    Returns
    -------
    y : Tensor of shape (...)
    log_slope : Tensor of shape (...)
        ln of the slope of the spline, not of its inverse, in either direction.

    References
    ----------
    Durkan et al. (2019), eq. 4 to 8.
    """
    bins = (len(knots) + 1) // 3
    width, height, slope = knots.split([bins, bins, bins - 1])
    width, height = (2 * _BOUND * (_LEAST + (1 - _LEAST * bins) * torch.softmax(v, 0)) for v in (width, height))
    slope = slope / (1 + slope.abs() / _STEEPEST)
    slope = functional.pad(slope.flatten(1).exp(), (0, 0, 1, 1), value=1.0).view(bins + 1, *x.shape)
    right, top = width.cumsum(0), height.cumsum(0)
    place = x + _BOUND
    k = (place >= (top if inverse else right)[:-1]).sum(0, keepdim=True)
    width, height, right, top, before = (values.gather(0, k)[0] for values in (width, height, right, top, slope))
    after = slope.gather(0, k + 1)[0]
    mean = height / width
    bend = before + after - 2 * mean
    if inverse:
        rise = (place - top + height).clamp_min(0.0)
        a, b, c = height * (mean - before) + rise * bend, height * before - rise * bend, -mean * rise
        share = (2 * c / (-b - (b**2 - 4 * a * c).clamp_min(0.0).sqrt())).clamp(0.0, 1.0)
    else:
        share = ((place - right + width) / width).clamp(0.0, 1.0)
    both = share * (1 - share)
    below = mean + bend * both
    if inverse:
        y = right - width + share * width - _BOUND
    else:
        y = top - height + height * (mean * share**2 + before * both) / below - _BOUND
    log_slope = torch.log(mean**2 * (2 * mean * both + before * (1 - share) ** 2 + after * share**2) / below**2)
    inside = x.abs() < _BOUND
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


class _Linear(nn.Module):
    """A linear layer on columns, with weights from the generator; without inputs the bias is what is left."""

    def __init__(self, inputs, outputs, generator, gain=1.0):
        super().__init__()
        device = None if generator is None else generator.device
        self.weight = nn.Parameter(gain / math.sqrt(max(1, inputs)) * torch.randn(outputs, inputs, generator=generator, device=device))
        self.bias = nn.Parameter(torch.zeros(outputs, 1, device=device))

    def forward(self, x):
        """(inputs, n) to (outputs, n)."""
        return torch.addmm(self.bias, self.weight, x)


class _Block(nn.Module):
    """Residual block: adds two linear layers to its input."""

    def __init__(self, size, generator):
        super().__init__()
        self.first = _Linear(size, size, generator, math.sqrt(2))
        self.second = _Linear(size, size, generator, 0.3)

    def forward(self, x):
        """(size, n), unchanged in shape."""
        return x + self.second(functional.silu(self.first(x)))


class _Coupling(nn.Module):
    """Bends the second half of the (permuted) dimensions by splines that depend on the first half and on the context."""

    def __init__(self, order, context, width, bins, generator):
        super().__init__()
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())
        self.kept = len(order) // 2
        self.own = _Linear(self.kept, width, generator)
        self.given = _Linear(context, width, generator)
        self.hidden = _Linear(width, width, generator, math.sqrt(2))
        self.knots = _Linear(width, (3 * bins - 1) * (len(order) - self.kept), generator, 0.01)  # close to the identity

    def forward(self, x, context, inverse=False):
        """x (dim, g, k), of which the k share a column of the context (size, g), to its image and ln of the slope (g, k)."""
        kept, bent = x[self.order].tensor_split([self.kept])
        hidden = self.own(kept.flatten(1)).view(-1, *x.shape[1:]) + self.given(context)[..., None]
        hidden = functional.silu(self.hidden(functional.silu(hidden).flatten(1)))
        bent, log_slope = _spline(self.knots(hidden).view(-1, *bent.shape), bent, inverse)
        return torch.cat([kept, bent])[self.back], log_slope.sum(0)


class Flow(nn.Module):
    """Density of standardised points, or of points given a context.

    Parameters
    ----------
    dim : int
        Dimensions of x, which should have zero mean and unit variance: splines end at +-5.
    context : int
        Features of the context, standardised; 0 for none.
    width : int
        Units per hidden layer of the couplings, and length of the embedded context that they receive.
    depth : int
        Couplings.
    bins : int
        Bins of a spline.
    embedding : int
        Units of the network that embeds the context. It runs once for all points that share a context and sets the centre and the matrix of
        each posterior, so a wide one is cheap and useful.
    blocks : int
        Residual blocks of that network.
    generator : torch.Generator, optional
        Source of the initial weights and of the permutations.

    Notes
    -----
    A context may have fewer points than x: shape (n, 1, features) serves x of shape (n, k, dim) and is embedded n times only.
    """

    def __init__(self, dim=16, context=0, *, width=96, depth=6, bins=8, embedding=384, blocks=3, generator=None):
        super().__init__()
        self.dim, self.context = dim, context
        size = width if context else 0
        wide = embedding if context else 0
        inner = [_Block(wide, generator) for _ in range(blocks if context else 0)]
        self.embedding = nn.ModuleList([_Linear(context, wide, generator), *inner, _Linear(wide, size, generator, math.sqrt(2))])
        self.affine = _Linear(size, dim + dim * (dim + 1) // 2, generator, 0.1)
        orders = []
        for _ in range((depth + 1) // 2):  # every dimension is bent once in a pair of couplings
            order = torch.randperm(dim, generator=generator, device=None if generator is None else generator.device)
            orders += [order, order.flip(0)]
        self.couplings = nn.ModuleList([_Coupling(order, size, width, bins, generator) for order in orders[:depth]])

    def _conditions(self, x, context):
        """Embedded context (size, g); centre (g, 1, dim), lower-triangular matrix (g, dim, dim) and its log-determinant (g, 1)."""
        if (context is None) != (self.context == 0):
            raise ValueError(f"this flow was made for a context of {self.context} features; got {'none' if context is None else 'one'}")
        hidden = x.new_zeros(0, 1) if context is None else context.flatten(0, -2).T
        for layer in self.embedding if self.context else ():
            hidden = functional.silu(layer(hidden))
        centre, log_diagonal, below = self.affine(hidden).T.split([self.dim, self.dim, self.dim * (self.dim - 1) // 2], -1)
        log_diagonal = _WIDEST * torch.tanh(log_diagonal / _WIDEST)
        matrix = torch.diag_embed(log_diagonal.exp())
        rows, columns = torch.tril_indices(self.dim, self.dim, -1)
        matrix[:, rows, columns] = below * log_diagonal.exp()[:, rows]
        return hidden, centre[:, None], matrix, log_diagonal.sum(-1, keepdim=True)

    def to_base(self, x, context=None):
        """Points to unit-normal u.

        Parameters
        ----------
        x : Tensor of shape (..., dim)
        context : Tensor of shape (..., context), or (n, 1, context) for x of shape (n, k, dim), or None

        Returns
        -------
        u : Tensor of shape (..., dim)
        log_det : Tensor of shape (...)
            ln |du / dx|.
        """
        hidden, centre, matrix, log_det = self._conditions(x, context)
        u = (x.reshape(len(centre), -1, self.dim) - centre) @ matrix.mT
        u = u.permute(2, 0, 1)
        for coupling in self.couplings:
            u, log_slope = coupling(u, hidden)
            log_det = log_det + log_slope
        return u.permute(1, 2, 0).reshape(x.shape), log_det.reshape(x.shape[:-1])

    def from_base(self, u, context=None):
        """Inverse of ``to_base``: x of shape (..., dim) and ln |du / dx| there."""
        hidden, centre, matrix, log_det = self._conditions(u, context)
        x = u.reshape(len(centre), -1, self.dim).permute(2, 0, 1)
        for coupling in reversed(self.couplings):
            x, log_slope = coupling(x, hidden, inverse=True)
            log_det = log_det + log_slope
        x = torch.linalg.solve_triangular(matrix, x.permute(1, 0, 2), upper=False).mT + centre
        return x.reshape(u.shape), log_det.reshape(u.shape[:-1])

    def log_prob(self, x, context=None):
        """ln density of x [nat per unit x], shape (...); arguments as ``to_base``. Differentiable."""
        u, log_det = self.to_base(x, context)
        return log_normal(u) + log_det

    def sample(self, n, generator, context=None):
        """Draw points.

        Parameters
        ----------
        n : int
            Number of points, for each row of the context where there is one.
        generator : torch.Generator
            Source of the base draws.
        context : Tensor of shape (m, context), optional

        Returns
        -------
        x : Tensor of shape (n, dim) or (m, n, dim)
        log_prob : Tensor of shape (n,) or (m, n)
            ln density at x [nat per unit x].
        """
        shape = (n, self.dim) if context is None else (len(context), n, self.dim)
        like = self.affine.bias
        u = torch.randn(shape, generator=generator, device=generator.device).to(like)
        x, log_det = self.from_base(u, context if context is None else context[:, None])
        return x, log_normal(u) + log_det


def log_normal(u):
    return -0.5 * (u**2).sum(-1) - 0.5 * u.shape[-1] * math.log(2 * math.pi)


def restore(state, prefix=""):
    """The flow among the tensors of a state dict (name -> Tensor) whose names begin with ``prefix``; its size is read from them."""
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    depth = 1 + max(int(name.split(".")[1]) for name in own if name.startswith("couplings."))
    dim, width = len(own["couplings.0.order"]), len(own["couplings.0.own.bias"])
    bins = (len(own["couplings.0.knots.bias"]) // (dim - dim // 2) + 1) // 3
    embedding, context = own["embedding.0.weight"].shape
    blocks = sum(name.endswith("first.bias") for name in own)
    flow = Flow(dim, context, width=width, depth=depth, bins=bins, embedding=embedding, blocks=blocks)
    flow.load_state_dict(own)
    return flow


def train(flow, batches, *, generator, steps, lr=1e-3, label="flow", checkpoint=None):
    """Fit a flow by maximum likelihood, with Adam; the rate rises, then falls as a cosine to zero.

    Parameters
    ----------
    flow : Flow
        Trained in place.
    batches : callable
        ``batches(generator)`` gives the next x (n, dim) and its context (n, features), or None.
    generator : torch.Generator
        Source of the batches.
    steps : int
    lr : float
        Peak rate.
    label : str
        Name of the progress bar.
    checkpoint : checkpoint.Checkpoint, optional
        Lets an interrupted training resume; the caller clears it.

    Returns
    -------
    history : Tensor of shape (steps,)
        -ln density, mean of each batch [nat].
    """
    optimiser = torch.optim.Adam(flow.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    history, first, checkpoint = torch.zeros(steps), 0, checkpoint or Checkpoint(None, {})
    if saved := checkpoint.load():
        flow.load_state_dict(saved["flow"])
        optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        history, first = saved["history"], saved["step"]
    for step in trange(first, steps, initial=first, total=steps, desc=label, disable=None, leave=False):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / (_WARM * steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = -flow.log_prob(*batches(generator)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), _CLIP)
        optimiser.step()
        history[step] = loss.detach()
        if (step + 1) % _SAVED == 0 or step + 1 == steps:
            state = {"flow": flow.state_dict(), "optimiser": optimiser.state_dict(), "generator": generator.get_state()}
            checkpoint.save(state | {"history": history, "step": step + 1})
    return history
