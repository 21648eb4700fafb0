"""The layers of a backbone by depth, and those of them that do not train."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from visionkit.errors import ConfigError

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def layers_of(backbone: nn.Module) -> list[list[str]]:
    """The names of the parameters of a backbone by layer, from the images on.

    A backbone with a method `layers()` says so itself. Of others, a layer is a convolution or a
    block, in the order in which the modules are registered; a norm belongs to the layer before it.
    """
    own = getattr(backbone, "layers", None)
    return own() if callable(own) and not isinstance(own, nn.Module) else by_depth(backbone)


def by_depth(module: nn.Module) -> list[list[str]]:
    """The layers in a module, as by `layers_of`: its containers are taken apart, blocks are not."""
    layers: list[list[str]] = []
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if own:
        layers.append(own)
    children = [(name, child) for name, child in module.named_children() if has_parameters(child)]
    for name, child in children:
        is_taken_apart = isinstance(child, CONTAINERS) or (len(children) == 1 and not own)
        inner = (
            by_depth(child) if is_taken_apart else [[key for key, _ in child.named_parameters()]]
        )
        inner = [[f"{name}.{key}" for key in layer] for layer in inner if layer]
        is_norm = not [*child.children()] and all(p.ndim < 2 for p in child.parameters())
        if is_norm and layers:
            layers[-1] += [key for layer in inner for key in layer]
        else:
            layers += inner
    return layers


def has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def freeze_layers(module: nn.Module, layers: Sequence[Sequence[str]], freeze_at: int) -> None:
    """Stop training the first `freeze_at` of the layers, given by the names of their parameters."""
    if freeze_at > len(layers):
        raise ConfigError(f"freeze_at: got {freeze_at}; this backbone has {len(layers)} stages")
    for names in layers[:freeze_at]:
        for name in names:
            module.get_parameter(name).requires_grad_(False)


def keep_frozen(module: nn.Module) -> None:
    """Put the modules of which nothing trains into evaluation mode, with their dropout and the
    statistics of their norms. For the end of `train()`."""
    for part in module.children():  # eval() of the module itself would come back here
        for child in part.modules():
            if has_parameters(child) and not any(p.requires_grad for p in child.parameters()):
                child.eval()
