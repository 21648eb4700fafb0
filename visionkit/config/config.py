"""A checked config: what `load_config` returns and everything else reads."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal

from visionkit.config.renamed import FREEZE
from visionkit.config.schema import (
    Count,
    Form,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Range,
)
from visionkit.config.yaml import dump
from visionkit.errors import printable

VERSION = 1  # of the format of configs
Metrics = str | dict[str, float]
Seed = Annotated[int, Range(low=0, high=2**32 - 1)]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The comments are the help texts of the config reference."""

    epochs: Count | None = 12  # passes over the largest source; null when `steps` is given
    steps: Count | None = None  # optimizer steps, instead of `epochs`
    lr: Positive = 0.01  # learning rate after the warm-up
    optimizer: str | dict[str, Any] = "sgd"  # sgd, adamw, another one of torch, or custom
    momentum: Annotated[float, Range(0, 1)] = 0.9  # of SGD
    weight_decay: NonNegative = 1e-4  # of weights; biases and norms are not decayed
    warmup_steps: Natural | None = None  # linear warm-up; null: a tenth of the run, at most 500
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"  # of the learning rate
    milestones: list[Fraction] = field(  # parts of the run after which `multistep` lowers the rate
        default_factory=lambda: [0.67, 0.92]
    )
    gamma: Positive = 0.1  # factor of the learning rate at each milestone
    accumulate_grad_batches: Count = 1  # batches of each source per optimizer step
    clip_norm: Positive | None = 10.0  # largest norm of the whole gradient; null: no limit
    weighting: Literal["fixed", "uncertainty", "pcgrad"] = "fixed"  # of the heads' losses
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where it is fast
    channels_last: bool = True  # memory order of images and features; faster for convolutions
    ema: Annotated[float, Range(0, 1)] = 0.0  # decay of the moving average of weights; 0: none
    freeze: list[str] = field(  # regexes of parameters; `init_heads`: the heads of `init_from`
        default_factory=list
    )
    lr_scale: dict[str, NonNegative] = field(  # factors of the learning rate by regex, multiplied
        default_factory=dict
    )
    layer_decay: Annotated[float, Range(0, 1, open=True)] = 1.0  # of the rate, by layer; 1: none
    unfreeze_after: dict[str, NonNegative] = field(  # epochs without training, by regex
        default_factory=dict
    )
    on_nonfinite: Literal["error", "skip"] = "error"  # a loss or gradient that is NaN or infinite
    sync_batchnorm: bool = False  # batch norms over the batch of all ranks; GPUs only
    early_stop: Count | None = None  # validations without improvement before the run ends
    best_metric: Metrics | None = None  # metric of the best checkpoint, or weights of several
    best_constraints: dict[str, float] = field(  # values that the best checkpoint must reach
        default_factory=dict
    )
    validate: bool | Count = True  # every epoch, at least 8 times; n: every n epochs; false: never
    eval_batch_size: Count | None = None  # null: the source's own batch size
    save_every: NonNegative = 600.0  # seconds between two checkpoints; 0: one after every step
    log_every: Count = 20  # steps between two lines of the log
    seed: Seed = 0  # of weights, order of images and augmentation
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: a GPU if there is one
    deterministic: bool = False  # only algorithms that repeat bit by bit, also on a GPU
    plots: bool = True  # write curves and images to the run directory
    report: bool = True  # write report.html at the end, if there was a validation
    loggers: list[str | dict[str, Any]] = field(  # trackers: tensorboard, wandb, mlflow, or custom
        default_factory=list
    )


def problems_of(config: TrainConfig) -> dict[str, str]:
    """Problems that annotations cannot express, by the name of the setting."""
    found = {}
    if config.epochs is None and config.steps is None:
        found["epochs"] = "got null, and no 'steps'; give one of the two"
    for name in ("ema", "momentum"):
        if getattr(config, name) == 1:
            found[name] = "got 1.0; expected a number >= 0 and < 1"
    patterns = [(f"freeze.{index}", pattern) for index, pattern in enumerate(config.freeze)]
    for name in ("lr_scale", "unfreeze_after"):
        patterns += [(name, pattern) for pattern in getattr(config, name)]
    late = max(config.unfreeze_after.values(), default=0)
    if config.epochs is not None and late and late >= config.epochs:
        what = f"got {late:g} epochs; expected fewer than the {config.epochs} of the run"
        found["unfreeze_after"] = f"{what}, or use train.freeze"
    for name, pattern in patterns:
        if pattern in FREEZE:
            found[name] = f"got {pattern!r}, renamed to {FREEZE[pattern]!r} in 0.2"
        try:
            re.compile(pattern)
        except re.error as error:
            found[name] = f"got {pattern!r}, which is not a regular expression: {error}"
    return found


Side = Annotated[int, Range(8, 8192)]  # of an image, in pixels
FixedSize = Annotated[str, Form(r"[1-9]\d*x[1-9]\d*", "'WIDTHxHEIGHT'")]
DIVISOR = 32  # batches are padded to a multiple of the coarsest stride of the usual backbones


def fixed_size(image_size: int | tuple[int, int] | str) -> tuple[int, int] | None:
    """The (h, w) that `WIDTHxHEIGHT` gives every image; None for an `image_size` that keeps the
    aspect ratio."""
    if not isinstance(image_size, str):
        return None
    width, height = map(int, image_size.split("x"))
    return height, width


def scaled_side(pixels: int, factor: float) -> int:
    """A side of a batch whose size changes by `multi_scale`, a multiple of `DIVISOR`."""
    return max(1, round(pixels * factor / DIVISOR)) * DIVISOR


@dataclass(frozen=True)
class SourceConfig:
    """One source: datasets with the same labels, and the heads that they feed."""

    feeds: list[str]  # heads that learn from it
    batch_size: Count = 8  # images per step, over all ranks
    # Longest side, or at most (shortest, longest), or `WIDTHxHEIGHT` of every image
    image_size: Side | tuple[Side, Side] | FixedSize = 320
    value_range: tuple[float, float] | None = None  # of pixels of more than 8 bits, as [low, high]
    transforms: list[dict[str, Any]] | None = None  # null: the default of the heads; []: none
    # Share of the run at whose end transforms of several images, such as Mosaic, do nothing
    close_last: Fraction = 0.1
    # (low, high) of a random factor of `image_size` for each training batch; null: none
    multi_scale: tuple[Positive, Positive] | None = None
    progressive: bool = False  # the factor is not random, but grows from low to high in the run
    # `repeat_factor: 0.01` repeats images of rare classes, `balanced: class` makes classes equal
    sampling: dict[str, Any] | None = None
    labeled_classes: list[str] | None = None  # null: all classes of the dataset
    images_per_identity: Annotated[int, Range(2)] | None = None  # in a batch
    group_by_aspect_ratio: bool | None = None  # null: if the sizes of the images are known
    check_images: bool = True  # before training
    on_unreadable_image: Literal["error", "skip"] = "error"  # skip: replace it
    train: dict[str, Any] | None = None  # dataset to learn from; null: none
    val: dict[str, Any] | None = None  # dataset to validate with; null: none
    # Share of the training images that validates instead of training; `val` is then as `train`
    holdout: Annotated[float, Range(0, 0.9, open=True)] | None = None


SOURCE_KEYS = tuple(field.name for field in fields(SourceConfig))


@dataclass(frozen=True)
class Config:
    """The complete config in the long form. A component is a dict of `type` and its arguments."""

    name: str
    backbone: dict[str, Any]
    neck: dict[str, Any] | None
    heads: dict[str, dict[str, Any]]  # with `weight`, the factor of a head's loss
    data: dict[str, SourceConfig]
    workers: int  # processes of each source that load images
    train: TrainConfig
    weights: str | None = None  # file with weights of the whole model to start from
    partial_weights: bool = False  # whether tensors that `weights` or `init_from` lack are random
    rename: dict[str, str] = field(default_factory=dict)  # classes there, by their names here
    init_from: dict[str, Any] | None = None  # `run` to grow, `heads` reused from it
    output: str | None = None  # run directory; null: runs/<name>-001, -002, ...
    version: int = VERSION

    @property
    def architecture(self) -> str:
        """Backbone and neck in a few words: `Torchvision resnet50 + FPN`."""
        name = self.backbone.get("name")
        words = [self.backbone["type"] + (f" {name}" if isinstance(name, str) else "")]
        return " + ".join([*words, *([self.neck["type"]] if self.neck else [])])

    def __repr__(self) -> str:
        """What it describes in a line each; `to_yaml()` has everything."""
        lines = [f"Config {self.name!r}: {self.architecture}"]
        for name, source in self.data.items():
            split = source.train or source.val or {}
            heads = [f"{head} ({self.heads[head]['type']})" for head in source.feeds]
            lines.append(f"data {name}: {split.get('type')} -> {', '.join(heads)}")
        length = f"{self.train.steps} steps" if self.train.steps else f"{self.train.epochs} epochs"
        return "\n  ".join(map(printable, [*lines, f"train: {length}, output: {self.output}"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `load_config` turns into an equal config."""
        values = {"version": self.version, **asdict(self)}
        values["data"] = {"workers": values.pop("workers"), **values["data"]}
        return _plain(values)

    def to_yaml(self, *, ascii: bool = False) -> str:
        """The text of a config file that loads to an equal config; `ascii` escapes other
        characters."""
        return dump(self.to_dict(), ascii=ascii)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
