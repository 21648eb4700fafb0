"""Optimizers, learning-rate schedules as functions of the step, and the moving average."""

from __future__ import annotations

import bisect
import copy
import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from visionkit.config import TrainConfig
from visionkit.distributed import collectives
from visionkit.errors import ConfigError
from visionkit.models.model import VisionModel

# --- How the gradients of several heads become one: their sum, or with their conflicts removed.


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
        gradients = [collectives.average(gradient) for gradient in self.flat.values()]
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


def gradient_combiner(weighting: str, model: VisionModel) -> Sum | PCGrad:
    return PCGrad(model) if weighting == "pcgrad" else Sum()


def check_patterns(model: nn.Module, patterns: Mapping[str, Iterable[str]]) -> None:
    """ConfigError if a regex matches the name of no parameter; `patterns` by key of the config."""
    names = [name for name, _ in model.named_parameters()]
    problems = []
    for key, regexes in patterns.items():
        unused = [p for p in regexes if not any(re.search(p, name) for name in names)]
        if unused:
            told = f"{key}: no parameter matches {unused}; names look like {names[0]!r}"
            problems.append(told)
    if problems:
        raise ConfigError("\n".join(problems))


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Stop training the parameters whose names match one of the regexes."""
    for name, parameter in model.named_parameters():
        if any(re.search(pattern, name) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"train.freeze: {patterns} leaves no parameter to train")


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW. Biases and norms are not decayed; `lr_scale` multiplies by name.

    Each group keeps its share of the learning rate as `scale`; see `set_lr`.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = math.prod(f for p, f in config.lr_scale.items() if re.search(p, name))
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((float(scale), decay), []).append(parameter)
    params = [
        {"params": members, "scale": scale, "weight_decay": decay}
        for (scale, decay), members in groups.items()
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(params, lr=config.lr, fused=True)
    optimizer = torch.optim.SGD(params, lr=config.lr, momentum=config.momentum, fused=True)
    if config.momentum:
        # The fused kernel takes memory for it that holds anything, and fills it at the first step;
        # not if the scaler of fp16 skips that one, as it usually does: the second would use it.
        for parameter in (p for group in params for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def lr_factor(step: int, total: int, config: TrainConfig) -> float:
    """That step's share of `train.lr`: linear warm-up, then the schedule."""
    warmup = config.warmup_steps
    if warmup is None:
        warmup = min(total // 10, 500)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "cosine":
        done = (step - warmup) / max(total - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "multistep":
        passed = bisect.bisect_right([m * total for m in sorted(config.milestones)], step)
        return config.gamma**passed
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


class ModelEMA:
    """A copy of the model whose weights follow the model's slowly (Polyak averaging).

    The decay starts small, min(decay, (1 + n) / (10 + n)) after n updates, so that the random
    start is forgotten quickly. Buffers, such as batch statistics, are copied as they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        both = (self.model, model)  # listed once: walking the modules costs as much as averaging
        self._parameters = [[*one.parameters()] for one in both]
        self._buffers = [[*one.buffers()] for one in both]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._parameters, 1 - decay)
        if self._buffers[0]:
            torch._foreach_copy_(*self._buffers)
