"""The contracts between the parts of visionkit. Read this file first.

A dataset gives samples; a source turns them into a `Batch`; a backbone (and a neck) turns a batch
into named feature maps; a head (`visionkit.models.head.Head`) turns feature maps into losses or
predictions; an `Evaluator` turns predictions into metrics. Nothing else needs to know how any of
them works inside.

Conventions, everywhere: boxes are xyxy floats in input pixels, unless a name says otherwise
(`boxes_orig`, `boxes_cxcywh`); labels count from 0 and have no background class; (h, w) order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypedDict, TypeGuard

import numpy as np

if TYPE_CHECKING:  # whoever reads an exported model needs these contracts, but has no torch
    import torch
    from torch import Tensor

# Named feature maps (B, C, h, w), from fine to coarse
Features: TypeAlias = "dict[str, Tensor]"
Size = tuple[int, int]  # (h, w)
IGNORE = 255  # in semantic maps: pixels without a label
# What a prediction can consist of, in the order in which it is drawn.
PREDICTION_KINDS = (
    "semantic",
    "objects",
    "box",
    "attributes",
    "classes",
    "embedding",
    "reconstruction",
)


class Level(NamedTuple):
    """One feature map of a backbone or a neck: its channels, and input pixels per cell."""

    channels: int
    stride: int


class Classes(NamedTuple):
    """Class names in label order, and the id that each has in the dataset's own files."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    @classmethod
    def numbered(cls, names: Iterable[str]) -> Classes:
        """Classes whose ids count from 0."""
        names = tuple(str(name) if isinstance(name, str) else name for name in names)
        return cls(names, tuple(range(len(names))))  # numpy's strings are none of a checkpoint's


class Loss(NamedTuple):
    """One loss term of a batch. Its value is sum / max(count, min_count).

    The training loop adds the counts of all ranks before it divides; a validation adds sums and
    counts over the dataset. Where nothing is labeled: a zero attached to the graph, and 0.
    """

    sum: Tensor  # () float, attached to the graph: the sum over what is counted
    # (), no gradient: objects, pixels, samples ... counted on this rank; hides tuple.count
    count: Tensor  # type: ignore[assignment]
    min_count: float = 1.0  # the divisor is at least this

    @property
    def value(self) -> Tensor:
        """() float, attached to the graph: the loss of this process alone."""
        return self.sum / self.count.clamp(min=self.min_count)


class Target(TypedDict, total=False):
    """The labels of one image of a batch. An absent key means: not labeled."""

    image_id: int
    size: Size  # (h, w) of the image in the batch; beyond is padding
    orig_size: Size  # (h, w) of the image as stored and annotated
    position: int  # its place in the stream of images, the key of all randomness
    # () int64: class of the whole image; or of several (K,) float32: 1 yes, 0 no, NaN unknown; or
    # of mixed images (K,) float32: the share of each class
    class_id: Tensor
    boxes: Tensor  # (N, 4) float32
    labels: Tensor  # (N,) int64
    labeled: Tensor  # (K,) bool: classes of `labels` of which every object is labeled; absent: all
    masks: Tensor  # (N, h, w) bool, at `size`, without padding; all False = unknown
    iscrowd: Tensor  # (N,) bool: a region of many objects; neither object nor background
    area: Tensor  # (N,) float32, in original pixels
    attributes: Tensor  # (N, A) float32 for each object: 1 yes, 0 no, NaN unknown
    semantic: Tensor  # (h, w) uint8 semantic map at `size`; 255 = IGNORE
    semantic_labeled: Tensor  # (S,) bool; a pixel of no labeled class may be any other class
    identity: Tensor  # () int64: who or what the image shows, for embeddings
    replaces: list[str]  # errors of unreadable images that it replaces; removed at once
    not_pasted: int  # objects of classes that are not labeled in it; removed at once


class HeadPrediction(TypedDict, total=False):
    """What a head finds in one image. Boxes, masks and maps are in original pixels.

    visionkit draws, scores and writes these keys; a custom head may add others.
    """

    boxes: Tensor  # (N, 4) float32, with `scores` and `labels`, best first
    scores: Tensor  # (N,) 0..1
    labels: Tensor  # (N,) int64 of `boxes`; without boxes (M,): the classes of the image
    masks: list[dict[str, Any]]  # N, in COCO's compressed RLE
    attributes: Tensor  # (N, A) 0..1, of `boxes`
    probs: Tensor  # (K,) 0..1 of the whole image
    label: Tensor  # () int64: the class of the whole image
    score: Tensor  # () 0..1, of `label`
    box: Tensor  # (4,) float32, of `label`
    semantic: Tensor  # (h, w) uint8 class of each pixel
    embedding: Tensor  # (D,) float32 of length 1
    reconstruction: Tensor  # (3, h, w) uint8, at `size`
    latent_mean: Tensor  # (L,) float32
    kl: Tensor  # () float32: divergence from the standard normal in nats


def prediction_kinds(prediction: Mapping[str, Any]) -> list[str]:
    """The `PREDICTION_KINDS` of a prediction, in their order; none if it has only custom keys."""
    keys = {"attributes": "attributes", "boxes": "objects", "box": "box", "probs": "classes"}
    found = [kind for key, kind in keys.items() if key in prediction][:1]  # the first explains all
    found += [key for key in ("semantic", "embedding", "reconstruction") if key in prediction]
    return sorted(found, key=PREDICTION_KINDS.index)


def is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether it is a tensor, of which there is none before torch is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_numpy(value: Any) -> np.ndarray:
    """A tensor, an array or a number as an array; floats of less than 32 bits as float32."""
    if not is_tensor(value):
        return np.asarray(value)
    plain = value.detach().cpu()
    return (plain.float() if plain.is_floating_point() and plain.itemsize < 4 else plain).numpy()


@dataclass
class Batch:
    """Images padded at the right and the bottom to one size, and a target for each."""

    images: Tensor  # (B, 3, H, W) uint8, RGB
    targets: list[Target]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def sizes(self) -> list[Size]:
        """The valid (h, w) of each image."""
        return [target["size"] for target in self.targets]

    @property
    def padded_size(self) -> Size:
        """The (h, w) of all images with their padding."""
        height, width = self.images.shape[-2:]
        return height, width

    @property
    def size_tensor(self) -> Tensor:
        """The valid (h, w) of each image, (B, 2) int64, on the device of the images."""
        import torch

        return torch.tensor(self.sizes, device=self.images.device).reshape(-1, 2)

    def to(self, device: torch.device) -> Batch:
        if self.images.device == device:
            return self  # asking each label of a batch takes longer than a small model's backward

        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        from torch import Tensor

        targets = [
            {key: change(value) if isinstance(value, Tensor) else value for key, value in t.items()}
            for t in self.targets
        ]
        return Batch(change(self.images), targets)  # type: ignore[arg-type]  # of Target


class Backbone(Protocol):
    """A backbone: pixels in, named feature maps out. A neck is the same, feature maps in and out.

    A class whose instances are an `nn.Module`; all its arguments are what a config may set, those
    of a neck after `levels`, the levels below it.

    `forward(images (B,3,H,W) uint8, sizes)` normalizes the pixels itself, so that batches travel
    as bytes and a checkpoint is self-contained. Beyond each image's valid size the normalized
    input is zero; while the model is exported, `sizes` is a tensor (B, 2). It returns a float map
    (B, channels, H / stride, W / stride) for each of `levels` in their order, from fine to coarse.
    The layers inside are not part of this contract. It may also have `layers()`, the names of its
    parameters by layer for `train.layer_decay`, and class methods `largest_side(**arguments)` and
    `smallest_side(**arguments)`, the sides of images that it takes or None, which are checked with
    the config.
    """

    levels: dict[str, Level]

    def __call__(
        self, images: Tensor, sizes: Sequence[Size] | Tensor | None = None
    ) -> dict[str, Tensor]: ...


class Evaluator(Protocol):
    """One evaluation of one head. Keeps counts and records, never averages of averages.

    It may also have `coverage()`: a `visionkit.metrics.report.Coverage` for each metric that is
    over classes.
    """

    def update(self, predictions: list[Any], batch: Batch) -> None:
        """Take in the `HeadPrediction` of each image of a batch."""

    def state(self) -> Any:
        """What other processes need for `merge`: picklable."""

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of all processes' states."""

    def compute(self) -> dict[str, float]:
        """Metrics by name; NaN where a metric is not defined (no ground truth)."""


class Dataset(Protocol):
    """Images with their labels, before any transform.

    `keys` are the target keys of its samples; `classes` has the class list of each key with
    classes; `__getitem__` returns a `visionkit.data.sample.Sample`, the same each time. What else a
    dataset may have:

    - `ground_truth()` for scoring objects: a `visionkit.data.coco.ground_truth.GroundTruth`
    - `semantic_truth(image_id)` for scoring semantic maps: (h, w) uint8
    - `image_ids` (N,) ints, the `image_id` of each sample
    - `identities` (N,) int64 with the key `identity`
    - `sizes` (N, 2): the (h, w) of all images, known before any is read
    - `value_range`: an attribute that the source sets, see `visionkit.data.image_io.eight_bits`
    - `image_path(index)`, `map_path(index)`: its files, which are checked before training
    - `findings()`, `counts()`: what the checks at opening found, see `visionkit.data.checks`
    - `class_counts()`: the number of objects or images of each class, by class_key
    - `occurrences()`: by class_key, the images (M,) and the classes (M,) of what that counts
    - `multilabel`: whether `class_id` of a sample is a list with a number for each class
    - `fingerprint`: a hash of its content
    - `unusable`: by target key, the `Problems` that are errors only if a head needs the key
    """

    keys: tuple[str, ...]
    classes: dict[str, Classes]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Transform(Protocol):
    """A random change of a training image with its labels.

    It returns a new `visionkit.data.sample.Sample`, made by the sample's methods or
    `dataclasses.replace`; it changes nothing in place. All its randomness comes from `rng`, a
    `numpy.random.Generator`. `size` is the `image_size` of the config. Images have the network's
    size already, unless a transform of the list has `resizes = True`: then that one resizes them.

    A transform of several images has an attribute `others`, how many more it takes, and gets them
    as a list: `transform(sample, rng, size, others)`. They have passed the transforms before it,
    but for those of several images. It is called with the probability `p`, if it has this
    attribute, until `data.close_last`. If it has `mixes_classes = True`, the `class_id` of samples
    is a tuple with the share of each class.
    """

    def __call__(self, sample: Any, rng: Any, size: Any, *others: Any) -> Any: ...


class Logger(Protocol):
    """An experiment tracker: `train.loggers` names its class. Its methods are called in rank 0.

    All its arguments are keyword-only: what a config may set. An error that it raises is reported
    once, and ends the logging, not the run.
    """

    def begin(self, run: Path, config: Mapping[str, Any]) -> None:
        """The run in that directory begins, or is resumed: then metrics.jsonl has what was logged
        so far, and steps after its last one may be logged again."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """A record of metrics.jsonl: losses and learning rate, or the metrics of a validation."""

    def images(self, step: int, images: Mapping[str, Any]) -> None:
        """Pillow images by name: training images with labels, validation images with
        predictions."""

    def end(self, status: str) -> None:
        """The run ends: `finished`, `failed` or `preempted`."""
