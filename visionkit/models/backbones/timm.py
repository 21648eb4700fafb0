"""Any model of timm that has feature maps as a backbone; needs the extra `timm`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import lcm
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.config.config import Side
from visionkit.config.schema import Natural
from visionkit.errors import CheckpointError, ConfigError, DataError, install_hint
from visionkit.models.backbones.layers import by_depth, freeze_layers, keep_frozen
from visionkit.models.backbones.norm import Normalize, Rgb, resolve_norm
from visionkit.models.backbones.weights import fit, read
from visionkit.models.contracts import is_near
from visionkit.ops.layers import SkippingConv, level_name
from visionkit.runs.download import OFFLINE, is_offline
from visionkit.types import Level, Size

# With the first that a model has, it takes images of any size; many need neither.
FLEXIBLE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class Timm(nn.Module):
    """A model of timm without its classifier: convolutional, or a transformer with maps.

    Levels are the last map of each stride from 4 on: `c2` to `c5` of most models, one `c4` of a
    vision transformer (stride 16), or `s14` (stride 14). Images are padded with zeros to what the
    patches and windows of the model divide, and maps are cut to the images again.

    name: timm's name of the model.
    out_indices: timm's numbers of the feature maps that are the levels, which are then named `f3`
        and so on.
    image_size: side of the square images that the model is built for; null: as timm has it. Some
        models, such as Hiera, take no larger ones; MaxViT pads to a multiple of it.
    weights: null (random), `default` (timm's download), or the file of a timm classifier's
        state_dict. Misfits are reported as by `Torchvision`. With `image_size`, what depends on it
        is resized as timm does.
    norm: `batch`, `frozen`, or `auto`, which is `frozen` with weights and `batch` without.
    freeze_at: number of leading stages that do not train, neither parameters nor statistics: 1 is
        the stem, 2 adds the first stage; the stages of a vision transformer are its blocks.
    mean, std: of the pixels, in 0..1; null: those that the model was trained with.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        *,
        name: str,
        out_indices: list[Natural] | None = None,
        image_size: Side | None = None,
        weights: str | None = None,
        partial_weights: bool = False,
        norm: Literal["auto", "batch", "frozen"] = "auto",
        freeze_at: Natural = 0,
        mean: Rgb | None = None,
        std: Rgb | None = None,
    ) -> None:
        super().__init__()
        timm = timm_module()
        self.name = name
        self.body = _features(timm, name, out_indices, image_size, pretrained=weights == "default")
        self._sizes = _sizes_of(timm, name, out_indices, image_size, self.body)
        if weights not in (None, "default"):
            _load(timm, name, self.body, weights, partial_weights, image_size)
        if resolve_norm(norm, weights) == "frozen":
            self.body = timm.layers.freeze_batch_norm_2d(self.body)
        SkippingConv.replace_in(self.body)
        freeze_layers(self.body, self._groups(coarse=True) if freeze_at else [], freeze_at)
        trained = timm.get_pretrained_cfg(name)
        self.normalize = Normalize(mean or trained.mean, std or trained.std)

        levels = _levels(self.body)
        if out_indices is not None:
            self._indices = {f"f{number}": at for at, number in enumerate(sorted(set(out_indices)))}
        else:
            last = {level.stride: at for at, level in enumerate(levels) if level.stride >= 4}
            self._indices = {level_name(stride): at for stride, at in last.items()}
        self.levels = {level: levels[index] for level, index in self._indices.items()}
        self.train()

    def forward(
        self, images: Tensor, sizes: Sequence[Size] | Tensor | None = None
    ) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to one (B, channels, ~H / stride, ~W / stride) map per level.
        DataError for an image above the largest size that the model takes."""
        h, w = images.shape[-2:]
        if not isinstance(sizes, Tensor):
            self._check_sides(sizes or [(h, w)])
        pixels = self.normalize(images, sizes, like=self.body)
        missing_h, missing_w = (self._sizes.padded(side) - side for side in (h, w))
        pads = bool(missing_h or missing_w)
        if pads:
            pixels = F.pad(pixels, (0, missing_w, 0, missing_h))  # negative: padding is cut off
        maps = _maps(self.body, pixels)
        features = {level: maps[index] for level, index in self._indices.items()}
        if not pads:
            return features
        strides = {name: level.stride for name, level in self.levels.items()}
        return {
            name: x[..., : _parts(h, strides[name]), : _parts(w, strides[name])]
            for name, x in features.items()
        }

    def train(self, mode: bool = True) -> Timm:
        """Frozen layers stay in evaluation mode."""
        super().train(mode)
        keep_frozen(self.body)
        return self

    def layers(self) -> list[list[str]]:
        """The names of the parameters by layer, from the images on, as timm groups them."""
        return [[f"body.{name}" for name in names] for names in self._groups(coarse=False)]

    def no_weight_decay(self) -> set[str]:
        """The names of parameters that are not decayed: those that timm lists, such as positions
        and class tokens, and factors of channels or heads, whatever their shape."""
        model = self._classifier()
        listed: Iterable[str] = getattr(model, "no_weight_decay", tuple)()
        in_file = _file_keys(self.body, list(model.state_dict()))
        return {
            f"body.{name}"
            for name, parameter in self.body.named_parameters()
            if any(fnmatchcase(in_file(name), pattern) for pattern in listed)
            or (
                max(parameter.shape, default=1) == parameter.numel() and not name.endswith("weight")
            )
        }

    @classmethod
    def largest_side(
        cls,
        *,
        name: str,
        out_indices: list[int] | None = None,
        image_size: int | None = None,
        **others: Any,
    ) -> int | None:
        """The largest side of images that such a backbone takes, None for any. ConfigError for a
        model that can be none."""
        timm = timm_module()
        with torch.random.fork_rng(devices=[]):
            return _sizes_of(timm, name, out_indices, image_size).only

    def _groups(self, *, coarse: bool) -> list[list[str]]:
        """The parameters of the body by stage, or by block if not `coarse`."""
        timm, model = timm_module(), self._classifier()
        if not hasattr(model, "group_matcher"):
            return by_depth(self.body)
        numbers = timm.models.group_parameters(model, model.group_matcher(coarse), reverse=True)
        groups: dict[float, list[str]] = {}
        in_file = _file_keys(self.body, list(model.state_dict()))
        for name, _ in self.body.named_parameters():
            groups.setdefault(numbers[in_file(name)], []).append(name)
        return [groups[number] for number in sorted(groups)]

    def _classifier(self) -> Any:
        """The whole model as timm has it, without memory."""
        with torch.device("meta"):
            return timm_module().create_model(self.name)

    def _check_sides(self, sizes: Sequence[Size]) -> None:
        only = self._sizes.only
        for h, w in sizes:
            if only and max(h, w) > only:
                raise DataError(
                    f"Timm: got an image of {h}x{w} (height x width), but {self.name} takes at "
                    f"most {only}x{only}; set backbone.image_size, or a smaller data.image_size"
                )


def timm_module() -> ModuleType:
    """timm; ConfigError with what to install if it cannot be imported."""
    try:
        import timm
    except Exception as error:  # an incomplete installation may raise anything
        raise ConfigError(f"backbone Timm: timm: {error}; run: {install_hint('timm')}") from error
    return timm


@contextmanager
def _hub() -> Iterator[None]:
    """Within, timm's downloads are off if those of visionkit are; what is at hand loads."""
    from huggingface_hub import constants  # timm brings it

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or is_offline()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _features(
    timm: ModuleType,
    name: str,
    out_indices: list[int] | None,
    image_size: int | None,
    *,
    pretrained: bool,
) -> nn.Module:
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models()) or ["timm.list_models() shows all"]
        raise ConfigError(f"name: timm has no model {name!r}; nearest: {', '.join(close)}")
    if out_indices == []:
        raise ConfigError("out_indices: got []; expected at least one")
    chosen: dict[str, Any] = {"features_only": True, "pretrained": pretrained}
    if out_indices is not None:
        chosen["out_indices"] = sorted(set(out_indices))
    if image_size is not None:
        chosen["img_size"] = image_size
    try:
        with _hub() if pretrained else nullcontext():
            return _create(timm, name, chosen)
    except Exception as error:  # timm and its download raise many kinds
        if "unexpected keyword argument 'img_size'" in str(error):
            what = f"timm's {name!r} is not built for one size of images; remove it"
            raise ConfigError(f"image_size: got {image_size}, but {what}") from error
        if pretrained:
            off = f"downloads are off (--offline or {OFFLINE}), and " if is_offline() else ""
            raise CheckpointError(
                f"weights: 'default' of timm's {name!r} could not be loaded: {off}{error}; "
                "fetch the file elsewhere and give its path"
            ) from error
        raise ConfigError(
            f"name: timm's {name!r} does not return these feature maps: {error}"
        ) from error


def _create(timm: ModuleType, name: str, chosen: dict[str, Any]) -> nn.Module:
    """The model, made to take images of any size where it can be."""
    for flexible in FLEXIBLE:
        try:
            return timm.create_model(name, **chosen, **flexible)
        except TypeError as error:
            if not any(key in str(error) for key in flexible):
                raise
    raise AssertionError("the last of FLEXIBLE is empty")


class _Sizes(NamedTuple):
    """Which images a model takes: with sides of a multiple, or squares of one side only."""

    multiple: int
    only: int | None = None

    def padded(self, side: int) -> int:
        """The side of the images that the model gets for a side of the batch."""
        return self.only or _parts(side, self.multiple) * self.multiple


def _parts(side: int, of: int) -> int:
    """How many parts of that size cover a side. No `-(-side // of)`: exported to ONNX, the division
    of a negative number rounds towards 0."""
    return (side + of - 1) // of


_KNOWN: dict[tuple[Any, ...], _Sizes] = {}


def _sizes_of(
    timm: ModuleType,
    name: str,
    out_indices: list[int] | None,
    image_size: int | None,
    body: nn.Module | None = None,
) -> _Sizes:
    """Found with images of a few sizes, once for each model. ConfigError if its maps do not fit."""
    key = name, tuple(out_indices) if out_indices is not None else None, image_size
    if key not in _KNOWN:
        body = body or _features(timm, name, out_indices, image_size, pretrained=False)
        own = image_size or max(timm.get_pretrained_cfg(name).input_size[1:])
        _KNOWN[key] = _try_sizes(name, body, own)
    return _KNOWN[key]


def _try_sizes(name: str, body: nn.Module, own: int) -> _Sizes:
    coarsest = lcm(*(level.stride for level in _levels(body)))
    above = -(-own // coarsest) * coarsest + coarsest  # some fail above their own size alone
    if _misfit(body, above, 5 * coarsest) is None:
        return _Sizes(coarsest)
    if _misfit(body, 2 * own, own) is None:
        return _Sizes(own)
    fault = _misfit(body, own, own)
    if fault is None:
        return _Sizes(own, only=own)
    raise ConfigError(
        f"name: timm's {name!r} cannot be a backbone: with images of {own}x{own} pixels {fault}; "
        "choose another model (visionkit weights list --timm)"
    )


@torch.no_grad()
def _misfit(body: nn.Module, height: int, width: int) -> str | None:
    """What is wrong with the maps of images of this size, None if nothing is."""
    levels, was_training = _levels(body), body.training
    try:
        maps = _maps(body.eval(), torch.zeros(1, 3, height, width))
    except Exception as error:  # asserts and indices in the code of timm
        return f"it raises {type(error).__name__}: {error}"
    finally:
        body.train(was_training)
    for (channels, stride), found in zip(levels, maps, strict=True):
        cells = zip(found.shape[2:], (height / stride, width / stride), strict=True)
        if found.ndim != 4 or found.shape[1] != channels or not all(is_near(*c) for c in cells):
            return f"a map of stride {stride} is {' x '.join(map(str, found.shape[1:]))}"
    return None


def _levels(body: nn.Module) -> list[Level]:
    info: Any = body.feature_info
    return [Level(*level) for level in zip(info.channels(), info.reduction(), strict=True)]


def _maps(body: nn.Module, pixels: Tensor) -> list[Tensor]:
    """All maps as (B, C, h, w); some models have the channels last."""
    maps = body(pixels)
    if getattr(body, "output_fmt", "NCHW") == "NHWC":
        return [found.permute(0, 3, 1, 2) for found in maps]
    return maps


def _load(
    timm: ModuleType,
    name: str,
    body: nn.Module,
    path: str,
    partial: bool,
    image_size: int | None,
) -> None:
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(name, **({"img_size": image_size} if image_size else {}))
    tensors, classifier_keys = read(path), list(model.state_dict())
    resize = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if image_size and resize:
        tensors = resize(tensors, model)
    fit(
        body,
        tensors,
        origin=path,
        file_key=_file_keys(body, classifier_keys),
        ignored=classifier_keys,
        partial=partial,
    )


class _file_keys:
    """Names in a body to those in the classifier: timm writes `stages_0` in a backbone for what is
    `stages.0` in the classifier, or keeps the classifier as a part."""

    def __init__(self, body: nn.Module, classifier_keys: list[str]) -> None:
        first, *others = (name for name, _ in body.named_children())
        self.prefix = f"{first}." if first in ("model", "body") and not others else ""
        self.known = {key.replace(".", "_"): key for key in classifier_keys}

    def __call__(self, key: str) -> str:
        return self.known.get(key.removeprefix(self.prefix).replace(".", "_"), key)
