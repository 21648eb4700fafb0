"""How the gradients of several heads become one: their sum, or with their conflicts removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from visionkit import distributed
from visionkit.errors import ConfigError
from visionkit.model import VisionModel


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm () of all gradients together; infinite also where their squares pass float32."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients or gradients[0].device.type != "cpu":
        return get_total_norm(gradients)
    rows = list(map(_in_a_row, gradients))
    return torch.stack([torch.dot(row, row) for row in rows]).sum().sqrt()  # a third of the time


def _in_a_row(gradient: Tensor) -> Tensor:
    """Its values as they lie in memory, channels last or not."""
    if gradient.ndim == 4 and not gradient.is_contiguous():
        gradient = gradient.permute(0, 2, 3, 1)
    return gradient.reshape(-1)


class Sum:
    """One backward through the sum of all losses."""

    def backward(self, parts: Mapping[str, Tensor]) -> None:
        """Add the gradients of one batch; `parts` are the weighted losses of its heads."""
        total = sum(parts.values())
        if not total.requires_grad:
            raise ConfigError(
                f"the losses of {', '.join(parts)} depend on no parameter that is trained; freeze "
                "less (train.freeze), or let a head compute its loss from the features"
            )
        total.backward()

    def finish(self, step: int) -> dict[str, float]:
        """Called once per step, after all batches. Figures for the log, by name."""
        return {}


class PCGrad:
    """Gradient surgery (Yu et al. 2020, arXiv 2001.06782) on the parameters that heads share.

    Where the gradients of two heads point against each other, each loses its part along the
    other. A head's own parameters are trained as ever. Costs one backward through the backbone
    and one copy of its gradient for each head.
    """

    def __init__(self, model: VisionModel) -> None:
        private = (*model.heads.parameters(), *model.log_variances.parameters())
        known = set(map(id, private))
        self.shared = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        self.flat: dict[str, Tensor] = {}  # (P,) for each head, all shared parameters in a row

    def backward(self, parts: Mapping[str, Tensor]) -> None:
        last = [*parts][-1]
        for head, loss in parts.items():
            loss.backward(retain_graph=head != last)
            gradient = torch.cat([_taken(p).flatten() for p in self.shared])
            self.flat[head] = gradient + self.flat[head] if head in self.flat else gradient

    def finish(self, step: int) -> dict[str, float]:
        gradients = [distributed.average(gradient) for gradient in self.flat.values()]
        order = torch.Generator().manual_seed(step)  # the same in all processes
        total, conflicts = torch.zeros_like(gradients[0]), 0
        for i, own in enumerate(gradients):
            changed = own.clone()
            for j in torch.randperm(len(gradients), generator=order).tolist():
                along = torch.dot(changed, gradients[j])
                if j != i and along < 0:
                    changed -= along / gradients[j].square().sum() * gradients[j]
                    conflicts += 1
            total += changed
        parts = total.split([p.numel() for p in self.shared])
        for parameter, part in zip(self.shared, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        pairs = len(gradients) * (len(gradients) - 1)
        self.flat = {}
        return {"conflicts": conflicts / pairs if pairs else 0.0}


def _taken(parameter: Tensor) -> Tensor:
    """The gradient that a backward left, taken away from the parameter."""
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient


def combiner(weighting: str, model: VisionModel) -> Sum | PCGrad:
    return PCGrad(model) if weighting == "pcgrad" else Sum()
