"""How long predictions take: a run in its precisions, and its ONNX files, measured in turn."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from visionkit.config import Config, load_config
from visionkit.data.datasets.shapes import Shapes
from visionkit.engine.export.quantize import spread_images
from visionkit.engine.onnx_model import OnnxPredictor, load_onnx
from visionkit.engine.torch_model import Overrides, Predictor, load_model
from visionkit.errors import CheckpointError, ConfigError, DataError
from visionkit.ops import nms
from visionkit.ops.inference import pick_precision
from visionkit.runs import checkpoint, directory, files, hub
from visionkit.types import Classes

BATCHES = (1, 8)  # images that are predicted together
PARTS = ("resize", "network", "decode", "nms")
WARM_UP = 2  # batches before the clock counts
PROFILED = 3  # batches, of which the shares of the parts are
PAUSE = 0.005  # seconds: threads of onnxruntime wait busily for the next call, for a while
GENERATED = 320  # pixels on a side, of images where there are no others
# Nodes that compute with weights, by a part of their types, also of fused ones.
LAYERS = ("Conv", "Gemm", "MatMul")
FILES = ("model.onnx", "model.fp16.onnx", "model.int8.onnx")  # of a run


class Stopwatch:
    """Adds up the seconds of named parts, each without those within it; waits for a GPU before it
    reads the clock. Calling it gives a context manager and decorator for a part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._within = [0.0]  # seconds of the parts within each open one

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self.now()
        self._within.append(0.0)
        yield
        seconds = self.now() - start
        self.seconds[part] += seconds - self._within.pop()
        self._within[-1] += seconds

    @contextmanager
    def wrapping(self, calls: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Within, each call of the method or function of that name of an object, or a module,
        belongs to the part."""
        before = [(owner, name, vars(owner).get(name)) for owner, name, _ in calls]
        try:
            for owner, name, part in calls:
                setattr(owner, name, self(part)(getattr(owner, name)))
            yield
        finally:
            for owner, name, own in before:
                delattr(owner, name)
                if own is not None:
                    setattr(owner, name, own)


class Variant(NamedTuple):
    """One way to predict: `predict` a batch of images, and the seconds of the parts of one."""

    name: str
    file: str | None
    predict: Callable[[Sequence[Any]], Any]
    parts: Callable[[Sequence[Any]], dict[str, float]]


def is_model(target: Any) -> TypeGuard[str | Path]:
    """Whether it is a run, a file of weights or an ONNX file, and not a config."""
    if not isinstance(target, str | Path):
        return False
    path = Path(target)
    if path.is_dir():
        return directory.holds_run(path) or checkpoint.is_bundle(path)
    return hub.is_hub(target) or path.suffix.lower() in files.WEIGHTS


def latency(
    model: str | Path,
    overrides: Overrides = (),
    *,
    steps: int = 20,
    allow_plugins: bool = False,
) -> dict[str, Any]:
    """Measure how fast a run, or an ONNX file of one, predicts.

    Of a run: its best weights in bfloat16, where the hardware computes in it, and in float32, and
    its files `model.onnx`, `model.fp16.onnx` and `model.int8.onnx` where they are. Of an ONNX
    file: the file, the run in whose folder it is, and its neighbors of other precisions. Images are
    those of the validation data, else generated ones.

    For batches of 1 and 8 images, each of `steps` rounds predicts one batch with each of them, in
    turn. Returns `model`, `threads`, `steps`, `images` (their (h, w)), `advice`, and `variants`: by
    name `file`, and by number of images `images_per_second` (of the median), `milliseconds` of a
    batch as `p50`, `p90` and `p99`, and `shares` of PARTS, from a few batches with a clock inside.
    """
    run, files = _run_and_files(model)
    with torch.random.fork_rng():  # which the first weights of a model change
        eager = [] if run is None else [*_eager(run, overrides, allow_plugins=allow_plugins)]
    exported, advice = _exported(files, overrides, required=Path(model))
    if run is None:
        advice.append(f"{model}: is in no folder of a run, so eager models were not measured")
    if not exported:
        advice.append(f"no ONNX file: visionkit export {model} writes one, which is measured too")
    variants = _named([*map(_eager_variant, eager), *map(_onnx_variant, exported)])
    if eager:
        config, classes = eager[0].config, eager[0].classes
    else:
        config, classes = load_config(exported[0].info.config), exported[0].classes
    images = _images(config, classes, max(BATCHES))
    result: dict[str, Any] = {
        variant.name: {"file": variant.file, "batches": {}} for variant in variants
    }
    for size in BATCHES:
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        for variant, seconds in zip(variants, _in_turn(variants, batches, steps), strict=True):
            result[variant.name]["batches"][str(size)] = {
                **_figures(seconds, size),
                "shares": _shares(variant, batches),
            }
    return {
        "model": str(model),
        "threads": torch.get_num_threads(),
        "steps": steps,
        "images": [list(image.shape[1:]) for image in images],
        "variants": result,
        "advice": advice,
    }


def _named(variants: Sequence[Variant]) -> list[Variant]:
    """Those whose name another one has already, with their file in it."""
    found: dict[str, Variant] = {}
    for one in variants:
        name = one.name if one.name not in found else f"{one.name} {one.file}"
        found[name] = one._replace(name=name)
    return [*found.values()]


def _in_turn(
    variants: Sequence[Variant], batches: Sequence[Sequence[Any]], steps: int
) -> list[list[float]]:
    """For each variant the seconds of `steps` batches."""
    seconds: list[list[float]] = [[] for _ in variants]
    for step in range(WARM_UP + steps):
        for variant, found in zip(variants, seconds, strict=True):
            time.sleep(PAUSE)
            start = time.perf_counter()
            variant.predict(batches[step % len(batches)])
            if step >= WARM_UP:
                found.append(time.perf_counter() - start)
    return seconds


def _figures(seconds: Sequence[float], size: int) -> dict[str, Any]:
    p50, p90, p99 = np.percentile(seconds, (50, 90, 99)).tolist()
    return {
        "images_per_second": size / p50,
        "milliseconds": {"p50": 1e3 * p50, "p90": 1e3 * p90, "p99": 1e3 * p99},
    }


def _shares(variant: Variant, batches: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Of the time of some batches, by part."""
    found: dict[str, float] = defaultdict(float)
    for number in range(PROFILED):
        for part, seconds in variant.parts(batches[number % len(batches)]).items():
            found[part] += seconds
    total = sum(found.values())
    return {part: found[part] / total for part in PARTS}


def _run_and_files(model: str | Path) -> tuple[str | Path | None, list[Path]]:
    """The run to measure, if there is one, and the ONNX files next to it or to the given file."""
    path = Path(model)
    if path.suffix.lower() != ".onnx":
        return model, [path / name for name in FILES if (path / name).is_file()]
    folder, stem = path.absolute().parent, path.name.partition(".")[0]
    others = [path.with_name(name.replace("model", stem, 1)) for name in FILES]
    files = [path, *(one for one in others if one.is_file() and one != path)]
    return (folder if directory.holds_run(folder) else None), files


def _exported(
    files: Sequence[Path], overrides: Overrides, *, required: Path
) -> tuple[list[OnnxPredictor], list[str]]:
    """The models of ONNX files, and a line for each that cannot be used. The `required` one must
    be usable. Of the overrides an exported file takes the size of images alone."""
    pairs: Iterable[tuple[str, Any]] = (
        overrides.items()
        if isinstance(overrides, Mapping)
        else (word.partition("=")[::2] for word in overrides)
    )
    size = {key: value for key, value in pairs if key == "data.image_size"}
    given = size if isinstance(overrides, Mapping) else [f"{k}={v}" for k, v in size.items()]
    models, lines = [], []
    for file in files:
        try:
            models.append(load_onnx(file, given))
        except (CheckpointError, ConfigError) as error:
            if file == required:
                raise
            lines.append(f"not measured: {error.lines[0]}")
    return models, lines


def _eager(run: str | Path, overrides: Overrides, *, allow_plugins: bool) -> Iterator[Predictor]:
    """The run in bfloat16, if its device computes in it, and in float32."""
    for precision in ("bf16", "fp32"):
        changed: Overrides = (
            {**overrides, "train.precision": precision}
            if isinstance(overrides, Mapping)
            else [*overrides, f"train.precision={precision}"]
        )
        predictor = load_model(run, changed, allow_plugins=allow_plugins)
        if precision == "fp32" or pick_precision("auto", predictor.device) == torch.bfloat16:
            yield predictor


def _images(config: Config, classes: dict[str, Classes], count: int) -> list[Tensor]:
    """Validation images, over and over if there are fewer; else generated ones."""
    try:
        found = [*spread_images(config, classes, [*config.heads], "val", count)]
    except (ConfigError, DataError):
        shapes = Shapes(num_images=count, size=GENERATED)
        found = [shapes[index].image for index in range(count)]
    return (found * count)[:count]


def _eager_variant(predictor: Predictor) -> Variant:
    def parts(images: Sequence[Any]) -> dict[str, float]:
        watch = Stopwatch(predictor.device)
        heads = [predictor.model.head(name) for name in predictor.heads]
        calls: list[tuple[Any, str, str]] = [(nms, "nms", "nms")]
        calls += [(predictor.model, "features", "network")]
        calls += [(head, "forward", "network") for head in heads]
        calls += [(head, "decode", "decode") for head in heads]
        with watch.wrapping(calls), watch("resize"):
            predictor.predict_batch(images)
        return watch.seconds

    where = "" if predictor.device.type == "cpu" else f" on {predictor.device}"
    name = f"eager {str(predictor.dtype).removeprefix('torch.')}{where}"
    return Variant(name, None, predictor.predict_batch, parts)


def _onnx_variant(predictor: OnnxPredictor) -> Variant:
    def parts(images: Sequence[Any]) -> dict[str, float]:
        watch, session = Stopwatch(torch.device("cpu")), predictor.session
        feeds: list[dict[str, np.ndarray]] = []

        def run(names: list[str], given: dict[str, np.ndarray]) -> Any:
            feeds.append(given)
            with watch("graph"):
                return session.run(names, given)

        predictor.session = SimpleNamespace(run=run)
        try:
            with watch.wrapping([(predictor, "_decoded", "decode")]), watch("resize"):
                predictor.predict_batch(images)
        finally:
            predictor.session = session
        graph = watch.seconds.pop("graph")
        for part, share in _graph_shares(predictor.path, feeds, predictor.threads).items():
            watch.seconds[part] += share * graph
        return watch.seconds

    name = f"onnxruntime {predictor.info.precision}"
    return Variant(name, str(predictor.path), predictor.predict_batch, parts)


def _graph_shares(
    file: Path, feeds: Sequence[Mapping[str, np.ndarray]], threads: int
) -> dict[str, float]:
    """Of the time of an ONNX graph the shares of its nodes, by part: up to the last layer they are
    the network, behind it they decode."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.enable_profiling, options.profile_file_prefix = True, f"{scratch}/profile"
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        for feed in (*feeds, *feeds):  # the first time memory is reserved
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    found = dict.fromkeys(("network", "decode", "nms"), 0.0)
    for start, end in pairwise([*starts[len(feeds) :], math.inf]):
        nodes = [
            (event["args"]["op_name"], event["dur"])
            for event in sorted(events, key=lambda event: event["ts"])
            if event["name"].endswith("_kernel_time") and start <= event["ts"] < end
        ]
        layers = [i for i, (kind, _) in enumerate(nodes) if any(part in kind for part in LAYERS)]
        for number, (kind, microseconds) in enumerate(nodes):
            part = "network" if number <= max(layers, default=-1) else "decode"
            found["nms" if kind == "NonMaxSuppression" else part] += microseconds
    return {part: spent / sum(found.values()) for part, spent in found.items()}
