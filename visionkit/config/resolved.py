"""A checked config: what `load_config` returns and everything else reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from visionkit.config.training import TrainConfig
from visionkit.config.yaml import dump
from visionkit.types import Count, Positive, Range

Side = Annotated[int, Range(8, 8192)]  # of a picture, in pixels


@dataclass(frozen=True)
class SourceConfig:
    """One source: data sets with the same labelling, and the heads that they feed."""

    feeds: list[str]
    batch_size: Count = 8
    image_size: Side | tuple[Side, Side] = 320  # longest side, or at most (shortest, longest)
    transforms: list[dict[str, Any]] | None = None  # null: the default of the heads; []: none
    labelled: list[str] | None = None  # the classes that are labelled here; null: all it has
    per_identity: Annotated[int, Range(2)] | None = None  # pictures of each identity in a batch
    group_shapes: bool | None = None  # batches of similar aspect ratio; null: if sizes are known
    cache_gb: Positive | None = None  # limit of decoded pictures kept on disk; null: none are
    check_pictures: bool = True  # look at every picture before training
    on_broken_picture: Literal["error", "skip"] = "error"  # while training; skip: use another one
    train: dict[str, Any] | None = None
    val: dict[str, Any] | None = None


SOURCE_KEYS = tuple(field.name for field in fields(SourceConfig))


@dataclass(frozen=True)
class Config:
    """The resolved long form. A component is a dict of its `type` and the arguments given."""

    name: str
    backbone: dict[str, Any]
    neck: dict[str, Any] | None
    heads: dict[str, dict[str, Any]]  # with `weight`, the factor of a head's loss
    data: dict[str, SourceConfig]
    workers: int  # processes that load pictures, for each source
    train: TrainConfig
    weights: str | None = None  # file with weights of a whole model to begin from
    init_from: dict[str, Any] | None = None  # `run` to grow from, `heads` taken over from it
    output: str | None = None  # run directory; None: runs/<name>-NNN

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `load_config` turns into an equal config."""
        values = asdict(self)
        sources = values.pop("data")
        result = {}
        for key, value in values.items():
            if key == "workers":
                result["data"] = {"workers": value, **sources}
            else:
                result[key] = value
        return _plain(result)

    def to_yaml(self) -> str:
        """The text of a config file that loads to an equal config."""
        return dump(self.to_dict())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
