"""An exported model, for predictions in the pixels of the images: onnxruntime and numpy, no torch.

The file itself says how images are resized, which classes there are and from which scores objects
are drawn; see `visionkit.engine.export.metadata`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np

from visionkit.config.config import SourceConfig
from visionkit.config.schema import convert, expected
from visionkit.config.yaml import parse
from visionkit.data.image_io import read_array, to_array
from visionkit.data.resize import ImageSize, fit_within, resized, resized_floats, scaled
from visionkit.engine.export.metadata import HeadInfo, ModelInfo
from visionkit.engine.export.onnx_file import is_onnx, read_onnx_info
from visionkit.engine.predictor import BasePredictor, ImageInput, chosen, file_of
from visionkit.errors import ArgumentError, CheckpointError, ConfigError, install_hint, plural
from visionkit.metrics.thresholds import Thresholds, draw_thresholds
from visionkit.ops.merging import merged
from visionkit.ops.original import encode_masks, rescaled, semantic_map
from visionkit.ops.views import View
from visionkit.types import Size
from visionkit.visualization.draw import Threshold

__all__ = ["OnnxPredictor", "is_onnx", "load_onnx"]

CPU = "CPUExecutionProvider"
# Outputs with a place for each class: how many axes they have, and which is of the classes.
OF_CLASSES = {"probs": (2, 1), "logits": (4, 1), "attributes": (3, 2)}
PROVIDERS = {"auto": CPU, "cpu": CPU, "cuda": "CUDAExecutionProvider"}  # by `train.device`


class Place(NamedTuple):
    """The (h, w) of an image in the network, of the network's input, and as it was given."""

    size: Size
    padded: Size
    orig: Size


class OnnxPredictor(BasePredictor):
    """The model of an ONNX file that `visionkit export` wrote. Its predictions have numpy arrays
    where those of `Predictor` have tensors.

    heads: only these predict; None: all.
    image_size: as in a config, for all heads, instead of the rules in the file.
    providers: of onnxruntime, in the order in which they are tried.
    threads: of onnxruntime; None: as many as torch would use.

    Raises CheckpointError for a file that cannot be used, ConfigError without onnxruntime.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        heads: Sequence[str] | None = None,
        image_size: ImageSize | None = None,
        providers: Sequence[str] = (CPU,),
        threads: int | None = None,
    ) -> None:
        self.path, self.info = Path(path), read_onnx_info(path)
        if self.info.decode != "full":
            raise CheckpointError(
                f"{path}: was exported with `--decode raw`: its outputs are not predictions yet; "
                "export it with `--decode full`, or compute them with onnxruntime itself"
            )
        known = self.info.heads
        self.heads = chosen(heads, [*known])
        self.classes = {head: one.classes for head, one in known.items()}
        self.value_range = self.info.value_range
        self.threads = threads or _default_threads()
        self._image_size = {
            h: one.image_size if image_size is None else image_size for h, one in known.items()
        }
        self.session = open_session(self.path, providers, self.threads)
        self._takes_sizes = "sizes" in _input_names(self.session)
        self._check_graph()
        self.draw_threshold = self._default_threshold()

    def _check_graph(self) -> None:
        try:
            problem = next(_differences(self.session, self.info), None)
        except ValueError as error:  # a name of the graph is not UTF-8
            raise CheckpointError(f"{self.path}: is damaged: {_first_line(error)}") from error
        if problem is not None:
            raise CheckpointError(
                f"{self.path}: {problem}, unlike its metadata says: export it again"
            )

    @property
    def thresholds(self) -> dict[str, Thresholds]:
        return self.info.thresholds

    def _default_threshold(self) -> dict[str, Threshold]:
        heads = self.info.heads
        return draw_thresholds(
            {name: (one.boxes_from, one.draw_threshold) for name, one in heads.items()},
            {name: one.classes.names for name, one in heads.items()},
            self.info.thresholds,
        )

    def base_of(self, head: str) -> str | None:
        return self.info.heads[head].boxes_from

    def has_embedding(self, head: str) -> bool:
        return "embedding" in self.info.heads[head].outputs

    def __repr__(self) -> str:
        """Where it runs, and each head with its classes, on one line each."""
        provider = self.session.get_providers()[0]
        return self._titled(
            f"OnnxPredictor of {self.info.name!r} ({provider}, {self.info.precision})",
            [
                (h, f"{self.info.heads[h].type}, image size {self._image_size[h]}")
                for h in self.heads
            ],
        )

    def read(self, image: ImageInput) -> np.ndarray:
        """The image as (3, h, w) uint8, as `predict` reads it."""
        file = file_of(image)
        if file is None:
            return to_array(image, self.value_range)
        return read_array(file, value_range=self.value_range)

    @contextmanager
    def divided(self, most: int) -> Generator[tuple[int, None], None, None]:
        """They share onnxruntime's threads."""
        yield min(most, self.threads), None

    def infer(
        self,
        images: Sequence[np.ndarray],
        heads: Sequence[str] | None = None,
        *,
        scale: float = 1.0,
        views: bool = False,
    ) -> list[dict[str, dict[str, Any]]]:
        if scale != 1 and self.info.size is not None:
            height, width = self.info.size
            raise ArgumentError(
                f"tta: {self.path} was exported for images of {height}x{width} (height x width), "
                "so no other scale can be given to it; export it with --dynamic"
            )
        results: list[dict[str, dict[str, Any]]] = [{} for _ in images]
        wanted = self.heads if heads is None else heads
        for rule in dict.fromkeys(self._image_size[head] for head in wanted):
            own = [head for head in wanted if self._image_size[head] == rule]
            sizes = [
                scaled(fit_within(image.shape[1:], rule, self.info.size), scale) for image in images
            ]
            small = [resized(*pair) for pair in zip(images, sizes, strict=True)]
            shapes = [image.shape[1:] for image in images]
            found = self.infer_resized(small, shapes, own, views=views)
            for result, one in zip(results, found, strict=True):
                result |= one
        return results

    def infer_resized(
        self,
        images: Sequence[np.ndarray],
        orig: Sequence[Size],
        heads: Sequence[str],
        *,
        views: bool = False,
    ) -> list[dict[str, dict[str, Any]]]:
        """The results of these heads for images (3, h, w) that are resized already; `orig` are the
        (h, w) that they had. With `views`, those from which several views are merged."""
        rows = self.outputs(images, heads)
        return self.decoded(rows, [image.shape[1:] for image in images], orig, heads, views=views)

    def outputs(
        self, images: Sequence[np.ndarray], heads: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """The outputs `<head>_<output>` of the file for images (3, h, w) that are resized already:
        those of these heads, and of the heads whose boxes they describe."""
        padded = self._padded([image.shape[1:] for image in images])
        sources = {name: None for h in heads for name in (h, self.base_of(h)) if name}
        names = [n for head in sources for n in _outputs(head, self.info.heads[head])]
        return self._run(images, padded, names)

    def decoded(
        self,
        rows: Sequence[Mapping[str, np.ndarray]],
        sizes: Sequence[Size],
        orig: Sequence[Size],
        heads: Sequence[str],
        *,
        views: bool = False,
    ) -> list[dict[str, dict[str, Any]]]:
        """The results of these heads from the `outputs` for images of these (h, w), which had the
        (h, w) `orig` before."""
        padded = self._padded(sizes)
        places = [Place(size, padded, before) for size, before in zip(sizes, orig, strict=True)]
        return [
            {head: self._decoded(head, row, place, views) for head in heads}
            for row, place in zip(rows, places, strict=True)
        ]

    def _padded(self, sizes: Sequence[Size]) -> Size:
        """The (h, w) of an input for images of these sizes."""
        if self.info.size is not None:
            return self.info.size
        unit = self.info.multiple
        height, width = (-(-max(sides) // unit) * unit for sides in zip(*sizes, strict=True))
        return height, width

    def _run(
        self, images: Sequence[np.ndarray], padded: Size, names: list[str]
    ) -> list[dict[str, np.ndarray]]:
        """These outputs for each image. A batch of fixed size is filled up with black images."""
        count = self.info.batch or len(images)
        rows: list[dict[str, np.ndarray]] = []
        for start in range(0, len(images), count):
            part = images[start : start + count]
            pixels = np.zeros((count, 3, *padded), np.uint8)
            sizes = np.full((count, 2), padded, np.int64)
            for slot, valid, image in zip(pixels, sizes, part, strict=False):
                valid[:] = image.shape[1:]
                slot[:, : valid[0], : valid[1]] = image
            feeds = {"images": pixels} | ({"sizes": sizes} if self._takes_sizes else {})
            try:
                found = self.session.run(names, feeds)
            except Exception as error:  # onnxruntime raises its own kinds
                raise CheckpointError(
                    f"{self.path}: onnxruntime cannot run it with images {pixels.shape}: "
                    f"{_first_line(error)}"
                ) from error
            columns = dict(zip(names, map(_exact, found), strict=True))
            rows += [{name: c[i] for name, c in columns.items()} for i in range(len(part))]
        return rows

    def _decoded(
        self, head: str, row: Mapping[str, np.ndarray], place: Place, views: bool
    ) -> dict[str, Any]:
        """A `HeadPrediction` of arrays, from the outputs for one image: what `decode` of the head
        does after `postprocess`. Outputs of a custom head stay as they are."""
        info = self.info.heads[head]
        own = {name: row[f"{head}_{name}"] for name in info.outputs}
        if info.boxes_from is not None:
            base = info.boxes_from
            count = int(row[f"{base}_count"])
            boxes = rescaled(row[f"{base}_boxes"][:count], place.size, place.orig)
            scores = row[f"{base}_scores"][:count]
            return {"attributes": own["attributes"][:count], "boxes": boxes, "scores": scores}
        if {"boxes", "count"} <= {*own}:
            known = len(info.classes.names)
            if not ((own["labels"] >= 0) & (own["labels"] < known)).all():
                raise CheckpointError(
                    f"{self.path}: {head}: finds classes beyond the {known} of its metadata: "
                    "export it again"
                )
            return _objects(own, place)
        if "probs" in own:
            found = self._classes_of(head, own["probs"])
            if "box" in own:
                found["box"] = rescaled(own["box"], place.size, place.orig)
            return found
        if "logits" in own and views:
            return {"logits": own["logits"], "size": place.size, "padded": place.padded}
        if "logits" in own:
            return {"semantic": semantic_map(own["logits"], *place)}
        if "embedding" in own:
            return {"embedding": own["embedding"]}
        height, width = place.size
        if "reconstruction" in own:
            return {"reconstruction": own["reconstruction"][:, :height, :width]}
        if not {"images", "latent_mean", "kl"} <= {*own}:  # of a custom head
            return own
        image = own["images"]
        if image.shape[1:] != place.size:
            image = resized_floats(image, place.size)
        latent = {key: np.asarray(own[key]) for key in ("latent_mean", "kl")}
        return {"reconstruction": np.rint(image * np.float32(255)).astype(np.uint8), **latent}

    def merge(
        self, head: str, found: Sequence[dict[str, Any]], views: Sequence[View]
    ) -> dict[str, Any]:
        if "box" in found[0] or "probs" not in found[0]:
            return merged(found, views)
        probs = merged([{"probs": one["probs"]} for one in found], views)["probs"]
        return self._classes_of(head, probs)

    def _classes_of(self, head: str, probs: np.ndarray) -> dict[str, Any]:
        default = self.info.heads[head].threshold
        if default is None:
            label = np.asarray(probs.argmax())
            return {"probs": probs, "label": label, "score": np.asarray(probs[label])}
        lowest = np.array(self.present_from(head, default), np.float32)
        ranked = np.argsort(-probs, kind="stable")
        return {"probs": probs, "labels": ranked[(probs >= lowest)[ranked]]}


def _objects(own: Mapping[str, np.ndarray], place: Place) -> dict[str, Any]:
    count = int(own["count"])
    found: dict[str, Any] = {
        "boxes": rescaled(own["boxes"][:count], place.size, place.orig),
        "scores": own["scores"][:count],
        "labels": own["labels"][:count],
    }
    if "masks" in own:
        found["masks"] = encode_masks(own["masks"][:count], found["boxes"], place.orig)
    return found


def load_onnx(
    path: str | Path, overrides: Any = (), *, heads: Sequence[str] | None = None
) -> OnnxPredictor:
    """The model of an ONNX file; see `visionkit.load`. ConfigError for overrides other than
    `data.image_size` and `train.device`: all else is in the file."""
    given = dict(_parsed(overrides))
    image_size, device = given.pop("data.image_size", None), given.pop("train.device", "auto")
    if given:
        raise ConfigError(
            f"{next(iter(given))}: does not apply to {path}: an exported file has its config in "
            "itself; only data.image_size and train.device can be changed"
        )
    if image_size is not None:
        annotation = get_type_hints(SourceConfig, include_extras=True)["image_size"]
        try:
            image_size = convert(image_size, annotation)
        except ValueError as error:
            what = f"got {image_size!r}; expected {expected(annotation)}"
            raise ConfigError(f"data.image_size: {what}") from error
    if not isinstance(device, str) or device not in PROVIDERS:
        valid = ", ".join(PROVIDERS)
        raise ConfigError(f"train.device: got {device!r}; expected one of {valid} for ONNX")
    providers = dict.fromkeys((PROVIDERS[device], CPU))
    return OnnxPredictor(path, heads=heads, image_size=image_size, providers=[*providers])


def _parsed(overrides: Any) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return [*overrides.items()]
    if isinstance(overrides, (str, bytes)) or not isinstance(overrides, Sequence):
        raise ArgumentError(
            f"overrides: got {overrides!r:.60}; expected a dict, or a list of 'key=value'"
        )
    pairs = [str(word).lstrip("-").partition("=") for word in overrides]
    if wrong := [word for word, sign, _ in pairs if not sign]:
        raise ConfigError(f"overrides: got {wrong[0]!r}; expected key=value")
    try:
        return [(key, parse(value)) for key, _, value in pairs]
    except ValueError as error:
        raise ConfigError(f"overrides: {error}") from error


def open_session(path: Path, providers: Sequence[str] = (CPU,), threads: int | None = None) -> Any:
    """The file in onnxruntime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"{path}: onnxruntime cannot be imported ({error}); run: {install_hint('onnx')}"
        ) from error
    missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if missing:
        have = ", ".join(onnxruntime.get_available_providers())
        raise ConfigError(f"{path}: this onnxruntime has no {missing[0]}; it has {have}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or _default_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: it warns of what nobody can change
    try:
        # Its fallback would print on the standard output, and try the same again.
        return onnxruntime.InferenceSession(
            path, options, providers=[*providers], enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises its own kinds
        raise CheckpointError(
            f"{path}: is damaged, or needs a newer onnxruntime than {onnxruntime.__version__}: "
            f"{_first_line(error)}"
        ) from error


def _input_names(session: Any) -> set[str]:
    """The optional ones too."""
    inputs = (*session.get_inputs(), *session.get_overridable_initializers())
    return {one.name for one in inputs}


def _differences(session: Any, info: ModelInfo) -> Iterator[str]:
    """What a graph has that its metadata does not say."""
    outputs = {one.name: one.shape for one in session.get_outputs()}
    for head, one in info.heads.items():
        for name in one.outputs:
            if f"{head}_{name}" not in outputs:
                yield f"has no output '{head}_{name}'"
                continue
            shape = outputs[f"{head}_{name}"]
            rank, axis = OF_CLASSES.get(name, (0, 0))
            count = shape[axis] if len(shape) == rank else None
            if isinstance(count, int) and count != len(one.classes.names):
                yield f"its output '{head}_{name}' has {plural(count, 'class', 'classes')}"
    images = next((one for one in session.get_inputs() if one.name == "images"), None)
    if images is None:
        yield "has no input 'images'"
        return
    height, width = info.size or (None, None)
    expected = [info.batch, 3, height, width]
    if [side if isinstance(side, int) else None for side in images.shape] != expected:
        yield f"takes images of shape {tuple(images.shape)}"


def _outputs(head: str, info: HeadInfo) -> list[str]:
    return [f"{head}_{name}" for name in info.outputs]


def _exact(values: np.ndarray) -> np.ndarray:
    """Halves as float32, so that the rest computes as it does for eager models."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _default_threads() -> int:
    """As many as torch uses."""
    if torch := sys.modules.get("torch"):
        return torch.get_num_threads()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) else len(os.sched_getaffinity(0))
