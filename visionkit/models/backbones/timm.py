"""Any convolutional model of timm as a backbone; needs the extra `timm`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from types import ModuleType
from typing import Any, Literal

from torch import Tensor, nn

from visionkit.config.schema import Natural
from visionkit.errors import CheckpointError, ConfigError, install_hint
from visionkit.models.backbones.norm import Normalize, Rgb, resolve_norm
from visionkit.models.backbones.weights import fit, read
from visionkit.runs.download import OFFLINE, is_offline
from visionkit.types import Level, Size


class Timm(nn.Module):
    """A convolutional model of timm without its classifier; levels `c2` to `c5`.

    name: timm's name of the model.
    out_indices: timm's numbers of the feature maps that are the levels, which are then named `f3`
        and so on.
    weights: null (random), `default` (timm's download), or the file of a timm classifier's
        state_dict. Misfits are reported as by `Torchvision`.
    norm: `batch`, `frozen`, or `auto`, which is `frozen` with weights and `batch` without.
    mean, std: of the pixels, in 0..1; null: those that the model was trained with.
    """

    levels: dict[str, Level]

    def __init__(
        self,
        *,
        name: str,
        out_indices: list[Natural] | None = None,
        weights: str | None = None,
        partial_weights: bool = False,
        norm: Literal["auto", "batch", "frozen"] = "auto",
        mean: Rgb | None = None,
        std: Rgb | None = None,
    ) -> None:
        super().__init__()
        timm = timm_module()
        self.body = _features(timm, name, out_indices, pretrained=weights == "default")
        if weights not in (None, "default"):
            _load(timm, name, self.body, weights, partial_weights)
        if resolve_norm(norm, weights) == "frozen":
            self.body = timm.layers.freeze_batch_norm_2d(self.body)
        trained = timm.get_pretrained_cfg(name)
        self.normalize = Normalize(mean or trained.mean, std or trained.std)

        info: Any = self.body.feature_info
        levels = [Level(*level) for level in zip(info.channels(), info.reduction(), strict=True)]
        if out_indices is not None:
            self._indices = {f"f{number}": at for at, number in enumerate(sorted(set(out_indices)))}
        else:
            last = {level.stride: at for at, level in enumerate(levels) if level.stride >= 4}
            self._indices = {f"c{stride.bit_length() - 1}": at for stride, at in last.items()}
        self.levels = {level: levels[index] for level, index in self._indices.items()}

    def forward(
        self, images: Tensor, sizes: Sequence[Size] | Tensor | None = None
    ) -> dict[str, Tensor]:
        """(B, 3, H, W) uint8 RGB to one (B, channels, ~H / stride, ~W / stride) map per level."""
        maps = self.body(self.normalize(images, sizes, like=self.body))
        return {level: maps[index] for level, index in self._indices.items()}


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
    timm: ModuleType, name: str, out_indices: list[int] | None, *, pretrained: bool
) -> nn.Module:
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models()) or ["timm.list_models() shows all"]
        raise ConfigError(f"name: timm has no model {name!r}; nearest: {', '.join(close)}")
    if out_indices == []:
        raise ConfigError("out_indices: got []; expected at least one")
    chosen = {} if out_indices is None else {"out_indices": sorted(set(out_indices))}
    try:
        with _hub() if pretrained else nullcontext():
            body = timm.create_model(name, features_only=True, pretrained=pretrained, **chosen)
    except Exception as error:  # timm and its download raise many kinds
        if pretrained:
            off = f"downloads are off (--offline or {OFFLINE}), and " if is_offline() else ""
            raise CheckpointError(
                f"weights: 'default' of timm's {name!r} could not be loaded: {off}{error}; "
                "fetch the file elsewhere and give its path"
            ) from error
        raise ConfigError(
            f"name: timm's {name!r} does not return these feature maps: {error}"
        ) from error
    if getattr(body, "output_fmt", "NCHW") != "NCHW":
        raise ConfigError(
            f"name: timm's {name!r} is not a convolutional network; choose one that is"
        )
    return body


def _load(timm: ModuleType, name: str, body: nn.Module, path: str, partial: bool) -> None:
    """timm writes `stages_0` in a backbone for what is `stages.0` in the classifier."""
    classifier_keys = list(timm.create_model(name).state_dict())
    in_file = {key.replace(".", "_"): key for key in classifier_keys}
    fit(
        body,
        read(path),
        origin=path,
        file_key=lambda key: in_file.get(key.replace(".", "_"), key),
        ignored=classifier_keys,
        partial=partial,
    )
