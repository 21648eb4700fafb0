"""Run a model and its exported file on the same images, before the file gets its name.

The images are those of the run's validation data, or generated ones where that is not at hand.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.data.build import build_sources
from visionkit.data.coco.ground_truth import GroundTruth, ground_truth_of
from visionkit.data.contracts import read_sample
from visionkit.data.datasets.shapes import Shapes
from visionkit.data.loading.source import Source, collate, split_key
from visionkit.data.loading.workers import image_name
from visionkit.data.resize import fit_within
from visionkit.data.sample import Sample
from visionkit.engine.evaluate import as_tensors
from visionkit.engine.export.compare import HeadComparison, has_rows, rows_of, tensor_differences
from visionkit.engine.export.graph import ExportModel, quiet
from visionkit.engine.export.metadata import ModelInfo
from visionkit.engine.onnx_model import OnnxPredictor, open_session
from visionkit.engine.torch_model import Predictor
from visionkit.errors import ConfigError, DataError
from visionkit.models.model import VisionModel
from visionkit.types import Batch, Evaluator, Features

ONNX = ".onnx"
GENERATED = 8  # images, where there are no others
GENERATED_SIZE = 320  # their pixels on a side
RUNS = 5  # of which the median is timed
TOGETHER = 2  # images of a batch; the first is alone


class Subset:
    """Some images of a dataset, evenly spaced, scored against their own labels alone."""

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset = dataset
        places = np.linspace(0, len(dataset) - 1, min(count, len(dataset)))
        self.indices: list[int] = [*dict.fromkeys(places.round().astype(int).tolist())]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # while a copy is made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(self.dataset, self.indices[index])

    @property
    def image_ids(self) -> list[int]:
        known = getattr(self.dataset, "image_ids", None)
        if known is None:
            return [read_sample(self.dataset, index).image_id for index in self.indices]
        return [int(known[index]) for index in self.indices]

    def ground_truth(self) -> GroundTruth:
        return ground_truth_of(self.dataset).of(images=self.image_ids)


class CheckSource(NamedTuple):
    """A source whose `val` is a `Subset`; `why` its images are generated, or empty for those of the
    validation data."""

    source: Source
    why: str = ""


def check_sources(predictor: Predictor, count: int, *, required: bool) -> list[CheckSource]:
    """At most `count` validation images for the heads of each source; generated images for those
    without any. The errors of the validation data are raised if it is `required`."""
    why = "the config has no validation data"
    try:
        opened = build_sources(replace(predictor.config, workers=0), ("val",), predictor.classes)
    except (ConfigError, DataError) as error:
        if required:
            raise
        opened, why = [], error.lines[0]
    found = []
    for source in opened:
        feeds = [head for head in source.feeds if head in predictor.heads]
        if source.val is not None and feeds:
            found.append(replace(source, feeds=feeds, val=Subset(source.val, count)))
    rest = {*predictor.heads}.difference(*(source.feeds for source in found))
    sizes = {head: predictor._image_size[head] for head in predictor.heads if head in rest}
    images = Shapes(num_images=min(count, GENERATED), size=GENERATED_SIZE) if rest else None
    generated = [
        Source(
            name="generated",
            feeds=[head for head, own in sizes.items() if own == size],
            train=None,
            val=Subset(images, count),
            batch_size=1,
            image_size=size,
        )
        for size in dict.fromkeys(sizes.values())
    ]
    return [*map(CheckSource, found), *(CheckSource(one, why) for one in generated)]


# Images (N, 3, H, W) uint8 and their valid sizes (N, 2) int64 to arrays by name
Run: TypeAlias = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]


class Exported(NamedTuple):
    """A file to check.

    predictor: what predicts with it; None where its outputs are not predictions.
    """

    run: Run
    info: ModelInfo
    predictor: OnnxPredictor | None = None


def opened(path: Path, info: ModelInfo) -> Exported:
    """The file at that path, ONNX or .pt2."""
    if path.suffix.lower() == ONNX:
        predictor = OnnxPredictor(path) if info.decode == "full" else None
        session = open_session(path) if predictor is None else predictor.session
        names = [one.name for one in session.get_outputs()]

        def run_onnx(images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
            found = session.run(names, {"images": images, "sizes": sizes})
            return dict(zip(names, found, strict=True))

        return Exported(_in_batches(run_onnx, info.batch), info, predictor)
    module = torch.export.load(path).module()

    def run(images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        found = module(torch.from_numpy(images), torch.from_numpy(sizes))
        return {name: value.numpy() for name, value in found.items()}

    return Exported(_in_batches(run, info.batch), info)


def _in_batches(run: Run, size: int | None) -> Run:
    """The same for any number of images, where the file takes `size` at once."""
    if size is None:
        return run

    def each(images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        count = len(images)
        rows = np.arange(-(-count // size) * size).clip(max=count - 1)  # the last image again
        parts = [run(images[some], sizes[some]) for some in rows.reshape(-1, size)]
        return {name: np.concatenate([p[name] for p in parts])[:count] for name in parts[0]}

    return each


def compared(
    predictor: Predictor, exported: Exported, sources: Sequence[CheckSource]
) -> dict[str, HeadComparison]:
    """What the model and its file find in the same images, by head."""
    decode: Any = exported.info.decode
    graph = ExportModel(predictor.model, predictor.heads, decode).eval()
    found = {head: HeadComparison(head) for head in predictor.heads}
    for source, why in sources:
        heads = {head: found[head] for head in source.feeds}
        scores = {} if why or exported.predictor is None else _evaluators(predictor, source)
        for batch, names in _batches(source, exported.info):
            _compare_batch(graph, exported, batch, heads, names, scores)
        for head, pair in scores.items():
            one = found[head]
            one.metric = predictor.model.head(head).main_metric
            with quiet():  # of classes that a few images lack
                one.expected, one.found = (e.compute()[one.metric] for e in pair)
    return found


def _evaluators(predictor: Predictor, source: Source) -> dict[str, tuple[Evaluator, Evaluator]]:
    """Two of each head: of the model and of the file."""
    make = predictor.model.evaluator
    assert source.val is not None
    return {head: (make(head, source.val), make(head, source.val)) for head in source.feeds}


def _batches(source: Source, info: ModelInfo) -> Iterator[tuple[Batch, list[str]]]:
    """The first image alone, then several together: each batch at the size of the input, and the
    names of its images."""
    subset: Any = source.val
    for start, stop in pairwise([0, *range(1, len(subset), TOGETHER), len(subset)]):
        samples = (subset[index] for index in range(start, stop))
        resized = [s.resize(fit_within(s.size, source.image_size, info.size)) for s in samples]
        items: Any = [
            (s.image, {**s.target(), "position": start + i}) for i, s in enumerate(resized)
        ]
        batch = collate(items, source.image_size)
        names = [image_name(subset.dataset, index) for index in subset.indices[start:stop]]
        yield _in_input(batch, info), names


def _in_input(batch: Batch, info: ModelInfo) -> Batch:
    """The batch with the padding that a file of fixed size wants."""
    if info.size is None:
        return batch
    (height, width), (h, w) = info.size, batch.padded_size
    return Batch(F.pad(batch.images, (0, width - w, 0, height - h)), batch.targets)


@torch.inference_mode()
def _compare_batch(
    graph: ExportModel,
    exported: Exported,
    batch: Batch,
    found: Mapping[str, HeadComparison],
    names: Sequence[str],
    scores: Mapping[str, tuple[Evaluator, Evaluator]],
) -> None:
    """Outputs of the graph before and after the export, from the features of `eval` and from what
    `predict` reads of the file; then the predictions that both make of them."""
    features, sizes = graph.model.features(batch), batch.size_tensor
    expected = graph.outputs(features, sizes, batch.padded_size)
    rows: list[dict[str, np.ndarray]] = []
    if exported.predictor is None:
        own = exported.run(batch.images.numpy(), sizes.numpy())
    else:
        pixels = [x[:, :h, :w].numpy() for x, (h, w) in zip(batch.images, batch.sizes, strict=True)]
        rows = exported.predictor.outputs(pixels, [*found])
        own = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    _compare_tensors({k: v.numpy() for k, v in expected.items()}, own, exported, found, names)
    if rows:
        _compare_predictions(graph.model, features, exported, rows, batch, names, found, scores)


def _compare_tensors(
    expected: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
    exported: Exported,
    found: Mapping[str, HeadComparison],
    names: Sequence[str],
) -> None:
    """Outputs; of files that nothing reads back, objects too."""
    for head, one in found.items():
        pair = [_of_head(outputs, head, exported.info) for outputs in (expected, own)]
        differences = tensor_differences(*pair)
        outputs = exported.info.heads[head].outputs
        one.add_tensors({name: differences[name] for name in outputs if name in differences})
        if exported.predictor is None and has_rows(pair[0]):
            for name, *objects in zip(names, *map(rows_of, pair), strict=True):
                one.add_predictions(name, *objects)


def _of_head(
    outputs: Mapping[str, np.ndarray], head: str, info: ModelInfo
) -> dict[str, np.ndarray]:
    """Its outputs, next to those of the head whose boxes it describes."""
    on = info.heads[head].boxes_from
    found = {} if on is None else _of_head(outputs, on, info)
    return found | {name: outputs[f"{head}_{name}"] for name in info.heads[head].outputs}


def _compare_predictions(
    model: VisionModel,
    features: Features,
    exported: Exported,
    rows: Sequence[Mapping[str, np.ndarray]],
    batch: Batch,
    names: Sequence[str],
    found: Mapping[str, HeadComparison],
    scores: Mapping[str, tuple[Evaluator, Evaluator]],
) -> None:
    """What `eval` scores, and what `predict` finds with the file: another implementation may round
    some of them in another way."""
    expected = model.predictions(features, batch, found)
    assert exported.predictor is not None
    before = [target["orig_size"] for target in batch.targets]
    own = exported.predictor.decoded(rows, batch.sizes, before, [*found])
    for head, one in found.items():
        theirs = [as_tensors(prediction[head]) for prediction in own]
        for name, *pair in zip(names, expected[head], theirs, strict=True):
            one.add_predictions(name, *pair)
        if head in scores:
            for evaluator, predictions in zip(scores[head], (expected[head], theirs), strict=True):
                evaluator.update(predictions, batch)


def feeds(images: Iterable[Tensor], info: ModelInfo) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of a file for images (3, h, w), one at a time, resized for each of its heads."""
    rules = dict.fromkeys(head.image_size for head in info.heads.values())
    for number, image in enumerate(images):
        height, width = image.shape[1:]
        for rule in rules:
            sample = Sample(image, number, orig_size=(height, width))
            sample = sample.resize(fit_within(sample.size, rule, info.size))
            batch = _in_input(collate([(sample.image, sample.target())], rule), info)
            rows = [0] * (info.batch or 1)
            yield {
                "images": batch.images.numpy()[rows],
                "sizes": batch.size_tensor.numpy()[rows],
            }


def cost(path: Path, info: ModelInfo, sources: Sequence[CheckSource]) -> dict[str, float]:
    """The size of a file, and the time that it takes for the first image of a check."""
    dataset: Any = sources[0].source.val
    feed = next(feeds([dataset[0].image], info))
    run = opened(path, info).run
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run(feed["images"], feed["sizes"])
        seconds.append(time.perf_counter() - start)
    return {"bytes": path.stat().st_size, "milliseconds": 1e3 * median(seconds)}


def problems_of(found: Mapping[str, HeadComparison], max_drop: float | None) -> list[str]:
    """What is out of bounds; with `max_drop`, for a file of lower precision."""
    problems = []
    for head, one in found.items():
        if max_drop is None or max_drop == 1:
            problems += one.problems(max_drop)
        elif math.isnan(one.drop):
            problems.append(
                f"{head}: its main metric cannot be measured on these images; give labeled ones "
                "(data.val...), more of them (--check), or --max-drop 1"
            )
        else:
            problems += one.problems(max_drop)
    return problems


def record_of(
    found: Mapping[str, HeadComparison], sources: Sequence[CheckSource]
) -> dict[str, Any]:
    """For JSON: the images, and what was compared of each head."""
    return {
        "images": {
            "generated" if why else split_key(source.name, "val"): len(source.val or ())
            for source, why in sources
        },
        "generated": next((why for _, why in sources if why), None),
        "heads": {head: one.record() for head, one in found.items()},
    }
