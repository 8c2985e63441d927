"""The network of the emulators: fully connected, with the trainable activation of Speculator. Introduced in notebook 02.

References
----------
Alsing et al. (2020), arXiv:1911.11778, sect. 2.
"""

import math

import torch
from torch import nn

__all__ = ["Speculator"]


class Speculator(nn.Module):
    """Fully connected network with the activation [gamma + (1 - gamma) sigmoid(beta x)] x on its hidden layers.

    Parameters
    ----------
    widths : sequence of int
        Units per layer, inputs and outputs included.
    generator : torch.Generator, optional
        Source of the initial weights.

    References
    ----------
    Alsing et al. (2020), eq. 8. Unlike in the public photulators the output layer is linear.
    """

    def __init__(self, widths, generator=None):
        super().__init__()
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.weights = nn.ParameterList([torch.randn(i, o, generator=generator) * math.sqrt(2.0 / i) for i, o in pairs])
        self.biases = nn.ParameterList([torch.zeros(o) for _, o in pairs])
        self.betas = nn.ParameterList([torch.ones(o) for o in widths[1:-1]])
        self.gammas = nn.ParameterList([torch.zeros(o) for o in widths[1:-1]])
        nn.init.zeros_(self.weights[-1])  # training starts from the first estimate itself

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight, bias, beta, gamma in zip(self.weights, self.biases, self.betas, self.gammas, strict=False):
            x = torch.addmm(bias, x, weight)
            x = x * (gamma + (1 - gamma) * torch.sigmoid(beta * x))
        return torch.addmm(self.biases[-1], x, self.weights[-1])
