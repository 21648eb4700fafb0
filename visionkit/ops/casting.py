"""Weights rounded once, instead of by autocast at every call: for use, not for training."""

from __future__ import annotations

import torch
from torch import nn

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@torch.no_grad()
def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the weights of all convolutions and linear layers the precision of autocast.

    Under autocast the outputs stay exactly the same; outside it they cannot be called any more.
    Biases stay as they are: they are small, and a head may add one by itself, unrounded.
    """
    for module in model.modules():
        if type(module) in LAYERS:
            module.weight.data = module.weight.data.to(dtype)
