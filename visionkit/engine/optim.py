"""What changes a model: gradients, optimizer, learning-rate schedule and the moving average."""

from __future__ import annotations

import bisect
import copy
import inspect
import logging
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from visionkit.config import TrainConfig
from visionkit.config.components import build, optimizer_spec
from visionkit.distributed import collectives
from visionkit.errors import ConfigError
from visionkit.models.backbones.layers import layers_of
from visionkit.models.backbones.norm import batch_statistics
from visionkit.models.model import VisionModel

log = logging.getLogger("visionkit")


class Learner:
    """A model in training mode and everything that changes it in a step."""

    def __init__(
        self,
        model: VisionModel,
        settings: TrainConfig,
        total_steps: int,
        dtype: torch.dtype,
        *,
        steps_per_epoch: int = 0,
    ) -> None:
        """Without `steps_per_epoch` all that trains does so from the first step on."""
        self.model, self.settings, self.total_steps = model, settings, total_steps
        self.device, self.dtype = next(model.parameters()).device, dtype
        self.optimizer = build_optimizer(model, settings)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self._starts = first_steps(model, settings.unfreeze_after, steps_per_epoch, total_steps)
        self._trained = -1  # how many groups of `unfreeze_after` train by now
        self.unfreeze(0)
        self.ema = ModelEMA(model, settings.ema) if settings.ema else None
        self.terms_checked = False  # whether the losses of a first step are alike on all ranks

    @property
    def averaged(self) -> VisionModel:
        """The model to validate and to predict with: the moving average, if there is one."""
        return self.ema.model if self.ema else self.model

    def unfreeze(self, step: int) -> None:
        """Let train in that step what `train.unfreeze_after` says, and nothing else of it. What
        does not train yet has no gradient, no statistics and no state in the optimizer."""
        trained = sum(start <= step for start in {*self._starts.values()})
        if trained == self._trained:
            return
        if self._trained >= 0:
            log.info("step %d: more parameters train (train.unfreeze_after)", step + 1)
        self._trained = trained
        for parameter, start in self._starts.items():
            parameter.requires_grad_(start <= step)
        self.model.train()  # batch norms follow their weights
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ConfigError("train.unfreeze_after: leaves no parameter to train at first")
        self.statistics = batch_statistics(self.model)
        self.gradients = gradient_combiner(self.settings.weighting, self.model)

    def set_lr(self, step: int) -> float:
        """Set the learning rate of that step and return it."""
        lr = self.settings.lr * lr_factor(step, self.total_steps, self.settings)
        set_lr(self.optimizer, lr)
        return lr

    def update(self, norm: Tensor, step: int) -> None:
        """Clip the gradients, whose norm is given, and change the weights and their average."""
        if self.settings.clip_norm:
            clip_grads_with_norm_(self.parameters, self.settings.clip_norm, norm)
        self.scaler.step(self.optimizer)
        if self.ema:
            self.ema.update(step)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.ema.model.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore everything except the weights of the model itself."""
        if self.ema:
            self.ema.model.load_state_dict(saved["average"])
        arguments = {*inspect.signature(type(self.optimizer)).parameters} - {"lr"}
        settings = {*arguments, "params", "param_names", "scale", "weight_decay"}
        own = self.optimizer.state_dict()
        self.optimizer.load_state_dict(_regrouped(saved["optimizer"], own, settings))
        self.scaler.load_state_dict(saved["scaler"])


@dataclass
class StepResult:
    """What a step computed before its update. Losses are unweighted terms, `<head>/<term>`, and the
    weighted `total`; means over the batches of the step."""

    losses: dict[str, Tensor]  # of all ranks
    own_losses: dict[str, Tensor]  # of this rank alone
    norm: Tensor  # () of all gradients
    lr: float
    metrics: dict[str, float]  # on how the gradients of the heads were combined


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm () of all gradients together; infinite also where their squares overflow."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients or gradients[0].device.type != "cpu":
        return get_total_norm(gradients)
    rows = list(map(_flat_in_memory, gradients))  # a third of the time of get_total_norm
    return torch.stack([torch.dot(row, row) for row in rows]).sum().sqrt()


def _flat_in_memory(gradient: Tensor) -> Tensor:
    """The values in the order of memory, channels last or not."""
    if gradient.ndim == 4 and not gradient.is_contiguous():
        gradient = gradient.permute(0, 2, 3, 1)
    return gradient.reshape(-1)


class SumGradients:
    """One backward through the sum of all losses."""

    def backward(self, parts: Mapping[str, Tensor]) -> None:
        """Add the gradients of one batch; `parts` are the weighted losses of its heads."""
        total = reduce(torch.add, parts.values())
        if not total.requires_grad:
            raise ConfigError(
                f"the losses of {', '.join(parts)} have no trainable parameters; unfreeze some "
                "(train.freeze), or let a head compute its loss from the features"
            )
        total.backward()

    def finish(self, step: int) -> dict[str, float]:
        """Called once per step, after all batches. Returns metrics for the log, by name."""
        return {}


class PCGrad:
    """Gradient surgery (Yu et al. 2020, arXiv 2001.06782) on the parameters that heads share.

    Where the gradients of two heads conflict (negative dot product), each loses its component
    along the other. A head's own parameters are trained as before. Costs one backward through the
    backbone and one copy of its gradient for each head.
    """

    def __init__(self, model: VisionModel) -> None:
        private = (*model.heads.parameters(), *model.log_variances.parameters())
        known = set(map(id, private))
        self.shared = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        self.flat: dict[str, Tensor] = {}  # (P,) for each head, all shared parameters

    def backward(self, parts: Mapping[str, Tensor]) -> None:
        last = [*parts][-1]
        for head, loss in parts.items():
            loss.backward(retain_graph=head != last)
            gradient = torch.cat([_take_gradient(p).flatten() for p in self.shared])
            self.flat[head] = gradient + self.flat[head] if head in self.flat else gradient

    def finish(self, step: int) -> dict[str, float]:
        gradients = [collectives.all_reduce_mean(gradient) for gradient in self.flat.values()]
        order = torch.Generator().manual_seed(step)  # the same on all ranks
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


def _take_gradient(parameter: Tensor) -> Tensor:
    """Remove the gradient from the parameter and return it."""
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient


def gradient_combiner(weighting: str, model: VisionModel) -> SumGradients | PCGrad:
    return PCGrad(model) if weighting == "pcgrad" else SumGradients()


def check_patterns(model: nn.Module, patterns: Mapping[str, Iterable[str]]) -> None:
    """Raise ConfigError if a regex matches no parameter name; `patterns` by key of the config."""
    names = [name for name, _ in model.named_parameters()]
    problems = []
    for key, regexes in patterns.items():
        unused = [p for p in regexes if not any(re.search(p, name) for name in names)]
        if unused:
            problems.append(f"{key}: no parameter matches {unused}; one name is {names[0]!r}")
    if problems:
        raise ConfigError(*problems)


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Stop training the parameters whose names match one of the regexes."""
    for name, parameter in model.named_parameters():
        if any(re.search(pattern, name) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"train.freeze: {patterns} leaves no parameter to train")


def first_steps(
    model: nn.Module, unfreeze_after: Mapping[str, float], steps_per_epoch: int, total_steps: int
) -> dict[nn.Parameter, int]:
    """The first step of each parameter that `train.unfreeze_after`, epochs by regex, holds back;
    of several regexes that match, the latest. ConfigError for one that changes nothing."""
    starts: dict[nn.Parameter, int] = {}
    for pattern, epochs in unfreeze_after.items():
        start, key = round(epochs * steps_per_epoch), f"train.unfreeze_after: {pattern!r}"
        found = {n: p for n, p in model.named_parameters() if re.search(pattern, n)}
        late = [parameter for parameter in found.values() if parameter.requires_grad]
        if found and not late:
            raise ConfigError(
                f"{key}: never trains, as train.freeze or backbone.freeze_at freezes it for good; "
                "remove one of the two"
            )
        if start >= max(total_steps, 1):
            raise ConfigError(
                f"{key}: got {epochs:g} epochs of {steps_per_epoch} steps; the run ends after "
                f"{total_steps} steps: give fewer, or use train.freeze"
            )
        starts |= {parameter: max(start, starts.get(parameter, 0)) for parameter in late}
    return starts


def layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """The factors of the learning rate of the backbone's parameters by name: `layer_decay` for the
    last layer, its square for the one before (Clark et al. 2020, arXiv 2003.10555; Bao et al. 2021,
    2106.08254)."""
    if layer_decay == 1:
        return {}
    layers = layers_of(model.get_submodule("backbone"))
    return {
        f"backbone.{name}": layer_decay ** (len(layers) - number)
        for number, names in enumerate(layers)
        for name in names
    }


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the config. Biases, norms and what the backbone's `no_weight_decay()` names
    are not decayed; `lr_scale` multiplies by name, `layer_decay` by layer.

    Each group keeps its factor of the learning rate as `scale`; see `set_lr`.
    """
    by_layer = layer_scales(model, config.layer_decay)
    listed: set[str] = getattr(getattr(model, "backbone", None), "no_weight_decay", set)()
    undecayed = {f"backbone.{name}" for name in listed}
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = math.prod(f for p, f in config.lr_scale.items() if re.search(p, name))
            scale *= by_layer.get(name, 1.0)
            decays = parameter.ndim > 1 and name not in undecayed
            decay = config.weight_decay if decays else 0.0
            groups.setdefault((float(scale), decay), []).append((name, parameter))
    params: list[dict[str, Any]] = [
        {"params": members, "scale": scale, "weight_decay": decay}
        for (scale, decay), members in groups.items()
    ]
    optimizer = build("optimizers", optimizer_spec(config), params, key="train.optimizer")
    if isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"]:
        # The fused kernel allocates it uninitialized and fills it at the first step, unless fp16's
        # scaler skips that one, as it usually does: then the second step would read garbage.
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _regrouped(
    saved: dict[str, Any], own: dict[str, Any], settings: Collection[str]
) -> dict[str, Any]:
    """The saved state of each parameter, by name, in the own groups with their own settings.

    So a resumed run may change the groups and their settings, such as `lr_scale`. What is not
    an argument of the optimizer, such as a count of steps, stays as saved, and so does `lr`, which
    each step sets: a state that is restored and saved is the same.
    """
    old = {
        name: (saved["state"].get(index), group)
        for group in saved["param_groups"]
        for name, index in zip(group["param_names"], group["params"], strict=True)
    }
    state, groups = dict(own["state"]), []
    for group in own["param_groups"]:
        names = [name for name in group["param_names"] if name in old]
        before = old[names[0]][1] if names else group
        kept = {key: before[key] for key in group if key not in settings and key in before}
        groups.append({**group, **kept})
        for name, index in zip(group["param_names"], group["params"], strict=True):
            found = old.get(name, (None,))[0]
            if found is not None:
                state[index] = found
    return {"state": state, "param_groups": groups}


def lr_factor(step: int, total: int, config: TrainConfig) -> float:
    """The factor of `train.lr` at that step: linear warm-up, then the schedule."""
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
    start is forgotten quickly. Buffers, such as batch statistics, are copied.
    """

    def __init__(self, model: VisionModel, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False)
        self.decay = decay
        # Listed once: walking the modules costs as much as averaging.
        self._mean: list[Tensor] = [*self.model.parameters()]
        self._now: list[Tensor] = [*model.parameters()]
        self._mean_buffers, self._now_buffers = [*self.model.buffers()], [*model.buffers()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, self._now, 1 - decay)
        if self._now_buffers:
            torch._foreach_copy_(self._mean_buffers, self._now_buffers)
