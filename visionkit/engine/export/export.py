"""`visionkit export`: a trained model as one file that needs no visionkit, checked before it gets
its name."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch

from visionkit.config.config import fixed_size
from visionkit.engine.export import verify
from visionkit.engine.export.bundle import write_bundle
from visionkit.engine.export.compare import HeadComparison
from visionkit.engine.export.graph import exported_program, output_names, to_onnx, with_bases
from visionkit.engine.export.metadata import KEY, MULTIPLE, HeadInfo, ModelInfo
from visionkit.engine.export.onnx_file import add_digest
from visionkit.engine.export.quantize import quantize_int8, to_fp16, training_images
from visionkit.engine.predict import Overrides
from visionkit.engine.torch_model import Predictor, load_model
from visionkit.errors import (
    ArgumentError,
    ConfigError,
    VisionkitError,
    check_counts,
    check_flags,
    install_hint,
    listed,
    shorten,
    unknown,
)
from visionkit.models.published import fetch, find, is_model_name
from visionkit.runs import checkpoint, download, files
from visionkit.types import Size

log = logging.getLogger("visionkit")

Format: TypeAlias = Literal["onnx", "torch-export", "bundle"]
Decode: TypeAlias = Literal["full", "raw"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2", "bundle": ""}
IMAGES = 32  # with which a file is checked
MAX_DROP = 0.02  # of the main metric, of a file of lower precision
NOT_OF_A_BUNDLE = "not for a bundle, which has the run as it is"
LARGEST = 2**31  # bytes of an ONNX file


@dataclass(frozen=True)
class Options:
    """What is exported; see `export`."""

    format: Format
    size: Size | None
    batch: int | None
    decode: Decode
    precision: Precision
    check: int
    max_drop: float
    names_data: bool = False  # overrides name the data, so generated images cannot replace them


def export(
    run: str | Path,
    out: str | Path | None = None,
    overrides: Overrides = (),
    *,
    format: Format = "onnx",
    heads: Sequence[str] | None = None,
    size: Size | None = None,
    batch: int | None = None,
    decode: Decode = "full",
    precision: Precision = "fp32",
    check: int = IMAGES,
    max_drop: float = MAX_DROP,
    overwrite: bool = False,
    allow_plugins: bool = False,
) -> dict[str, Any]:
    """Write a trained model as one file, `out`, which `visionkit.load` and other programs read.

    `run`, `overrides`, `heads` and `allow_plugins` as for `load`. `out` is by default
    RUN/model.onnx, or NAME.onnx in the current folder for a checkpoint or a published model.

    format: `onnx`; `torch-export`, a .pt2 file of the same graph; `bundle`, a folder of weights,
        config and model card for a hub.
    size: (h, w) of all images, multiples of 32; None: any, unless the model takes one size only.
    batch: the number of images; None: any.
    decode: `full`: outputs are predictions; `raw`: they are what the heads' `forward` returns.
    precision: of the weights: `fp32`, `fp16` or `int8`, calibrated on training images.
    check: how many validation images the file is checked with.
    max_drop: of a head's main metric, for `fp16` and `int8`.

    The file gets its name only if it predicts what the model does. Returns what `visionkit export
    --json` prints: `file`, `bytes`, `seconds`, and the differences of the `check`. Raises
    VisionkitError if the file does not predict the same, ConfigError for wrong arguments, and the
    errors of `load`.
    """
    names_data = any(str(one).startswith("data.") for one in overrides)
    options = Options(format, size, batch, decode, precision, check, max_drop, names_data)
    _check_options(options)
    check_flags(overwrite=overwrite, allow_plugins=allow_plugins)
    target = _target(run, out, options, overwrite=overwrite)
    if format == "bundle":
        return _bundle(run, target, overrides, heads, allow_plugins=allow_plugins)
    _check_packages(format)
    with _beside(target) as folder:
        predictor = _loaded(run, overrides, heads, allow_plugins=allow_plugins)
        options = replace(options, size=_input_size(predictor, size))
        record = _exported(run, predictor, folder / target.name, options)
        _give_name(folder / target.name, target, overwrite=overwrite)
    return {"file": str(target), **record}


def _check_options(options: Options) -> None:
    """ArgumentError that lists all values that are wrong."""
    problems = []
    for name, kind in (("format", Format), ("decode", Decode), ("precision", Precision)):
        value = getattr(options, name)
        if value not in get_args(kind):
            what = f"{name}: got {shorten(repr(value))}"
            problems.append(unknown(value, get_args(kind), what))
    for name in ("batch", "check"):
        try:
            if name == "check" or options.batch is not None:
                check_counts(**{name: getattr(options, name)})
        except ArgumentError as error:
            problems.append(str(error))
    problems += _size_problems(options.size)
    drop = options.max_drop
    if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop <= 1:
        problems.append(f"max_drop: got {shorten(repr(drop))}; expected a number from 0 to 1")
    if options.format == "torch-export" and options.precision != "fp32":
        problems.append(f"precision: a torch-export file has fp32, not {options.precision!r}")
    if options.format == "bundle":
        own = Options("bundle", None, None, "full", "fp32", options.check, options.max_drop)
        own = replace(own, names_data=options.names_data)
        given = [key for key, value in vars(options).items() if value != getattr(own, key)]
        if given:
            problems.append(f"{listed(given)}: {NOT_OF_A_BUNDLE}")
    if problems:
        raise ArgumentError(*problems)


def _size_problems(size: Any) -> list[str]:
    """What is wrong with it. Other sides than multiples of 32 are left to `_input_size`."""
    if size is None:
        return []
    if not isinstance(size, list | tuple) or [type(side) for side in size] != [int, int]:
        return [f"size: got {shorten(repr(size))}; expected two integers, height and width"]
    return [f"size: got {side}; expected sides >= 1" for side in size if side < 1]


def _target(run: str | Path, out: str | Path | None, options: Options, *, overwrite: bool) -> Path:
    """The path to write. ArgumentError if it cannot be, before anything is computed."""
    suffix = SUFFIX[options.format]
    if out is None:
        stem = {"fp32": "model"}.get(options.precision, f"model.{options.precision}")
        name = f"{stem}{suffix}" if suffix else "bundle"
        path = Path(run) / name if Path(run).is_dir() else Path(f"{Path(run).stem}{suffix}")
    else:
        path = Path(out)
    if path.suffix.lower() != suffix and suffix:
        raise ArgumentError(f"{path}: expected a file name that ends in {suffix}")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise ArgumentError(f"{path}: the folder {parent} does not exist")
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        hint = "" if options.format == "bundle" else ", give --overwrite"
        raise ArgumentError(f"{path}: exists; delete it{hint} or choose another name with --out")
    return path


def _check_packages(format: Format) -> None:
    """ConfigError if a package of the extra is missing."""
    if format != "onnx":
        return
    try:
        import onnx  # noqa: F401  # used later
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except Exception as error:  # an incomplete installation may raise anything
        raise ConfigError(f"export: {error}; run: {install_hint('onnx')}") from error


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder next to the target, for what is not checked yet; removed at the end."""
    try:
        parent = target.absolute().parent
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=parent)
    except OSError as error:
        raise ArgumentError(f"{target}: cannot be written: {files.reason(error)}") from error
    with folder as name:
        try:
            yield Path(name)
        except OSError as error:
            if error.filename is not None and not str(error.filename).startswith(name):
                raise
            raise VisionkitError(f"{target}: cannot be written: {files.reason(error)}") from error


def _give_name(made: Path, target: Path, *, overwrite: bool) -> None:
    """Move the checked file to its name. ArgumentError if another process has taken it by now."""
    if not overwrite:
        with suppress(OSError):  # taken, or a file system without hard links
            os.link(made, target)  # unlike a rename, it replaces nothing
            return
        if os.path.lexists(target):
            raise ArgumentError(
                f"{target}: exists: something else wrote it during the export; delete it or "
                "choose another name with --out"
            )
    os.replace(made, target)


def _loaded(
    run: str | Path,
    overrides: Overrides,
    heads: Sequence[str] | None,
    *,
    allow_plugins: bool,
) -> Predictor:
    """The model as `eval` computes in float32, with the heads whose boxes others describe."""
    plain = {"train.precision": "fp32", "train.device": "cpu", "train.channels_last": False}
    if isinstance(overrides, Mapping):
        overrides = {**overrides, **plain}
    else:
        overrides = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in plain.items())]
    predictor = load_model(run, overrides, heads=heads, fold=False, allow_plugins=allow_plugins)
    predictor.heads = with_bases(predictor.model, predictor.heads)
    return predictor


def _input_size(predictor: Predictor, size: Size | None) -> Size | None:
    """The (h, w) of the input; None: any. ArgumentError for one that the model cannot have."""
    rules = {head: predictor._image_size[head] for head in predictor.heads}
    fixed = {head: given for head, rule in rules.items() if (given := fixed_size(rule)) is not None}
    sizes = {*fixed.values()}
    if len(sizes) > 1:
        named = listed([f"{head} {h},{w}" for head, (h, w) in fixed.items()])
        raise ArgumentError(f"size: the heads take different ones ({named}); choose heads")
    if size is None:
        return sizes.pop() if sizes else None
    height, width = size
    if sizes and (height, width) not in sizes:
        head, (h, w) = next(iter(fixed.items()))
        raise ArgumentError(f"size: got {height},{width}; {head} takes images of {h},{w} alone")
    if not sizes and (height % MULTIPLE or width % MULTIPLE):
        low, high = ([_multiple(side, up) for side in (height, width)] for up in (False, True))
        raise ArgumentError(
            f"size: got {height},{width}; expected multiples of {MULTIPLE}: the nearest are "
            f"{low[0]},{low[1]} and {high[0]},{high[1]}"
        )
    return height, width


def _multiple(side: int, up: bool) -> int:
    """The next multiple; no side is smaller than one."""
    return max(1, side // MULTIPLE + (up and side % MULTIPLE > 0)) * MULTIPLE


def _exported(
    run: str | Path, predictor: Predictor, path: Path, options: Options
) -> dict[str, Any]:
    """Write the file and check it. VisionkitError if it does not find what the model finds."""
    start = time.perf_counter()
    exact, plain = options.precision == "fp32", replace(options, precision="fp32")
    first = path if exact else path.with_stem("fp32")
    info = _write(predictor, first, plain, _checksum(run))
    if not exact:
        info = _lowered(predictor, first, path, info, options.precision)
    if options.format == "onnx":
        add_digest(path)
    made = time.perf_counter()
    sources = verify.check_sources(predictor, options.check, required=options.names_data)
    exported = verify.opened(path, info)
    found = verify.compared(predictor, exported, sources)
    if exact and any(one.is_empty for one in found.values()):
        _compare_all(predictor, path.with_stem("all"), options, sources, found)
    done = time.perf_counter()
    if problems := verify.problems_of(found, None if exact else options.max_drop):
        raise VisionkitError(
            "export: the file does not find what the model finds, and is not written",
            *(f"  {problem}" for problem in problems),
        )
    return {
        "format": options.format,
        "precision": options.precision,
        "decode": options.decode,
        "bytes": path.stat().st_size,
        "fp32": None if exact else verify.cost(first, info, sources),
        "milliseconds": None if exact else verify.cost(path, info, sources)["milliseconds"],
        "size": options.size,
        "batch": options.batch,
        "outputs": {name: list(head.outputs) for name, head in info.heads.items()},
        "seconds": {"export": made - start, "check": done - made},
        "check": verify.record_of(found, sources),
    }


def _write(predictor: Predictor, path: Path, options: Options, checksum: str) -> ModelInfo:
    """Write the file, and return what it says about itself."""
    program = exported_program(
        predictor.model,
        predictor.heads,
        size=options.size,
        batch=options.batch,
        decode=options.decode,
    )
    info = _info(predictor, output_names(program), options, checksum)
    if options.format == "torch-export":
        torch.export.save(program, path, extra_files={KEY: info.to_json()})
        return info
    proto = to_onnx(program)
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, info.to_json()
    if proto.ByteSize() >= LARGEST:
        raise ConfigError(
            f"export: the model has {proto.ByteSize() / 1e9:.1f} GB, an ONNX file at most 2; "
            "export it with --format torch-export"
        )
    with open(path, "wb") as file:
        file.write(proto.SerializeToString())
    return info


def _lowered(
    predictor: Predictor, source: Path, path: Path, info: ModelInfo, precision: Precision
) -> ModelInfo:
    """Write the file `source` in that precision."""
    if precision == "fp16":
        to_fp16(source, path)
    else:
        images = training_images(predictor.config, predictor.classes, predictor.heads)
        quantize_int8(source, path, verify.feeds(images, info))
    return replace(info, precision=precision)


def _compare_all(
    predictor: Predictor,
    path: Path,
    options: Options,
    sources: Sequence[verify.CheckSource],
    found: Mapping[str, HeadComparison],
) -> None:
    """Where no object is found, nothing would be compared: do it with the same graph but for the
    score from which candidates count as objects."""
    modules = [m for m in predictor.model.modules() if hasattr(m, "score_threshold")]
    before = [module.score_threshold for module in modules]
    try:
        for module in modules:
            module.score_threshold = 0.0  # type: ignore[assignment]  # no tensor
        exported = verify.opened(path, _write(predictor, path, options, ""))
        every = verify.compared(predictor, exported._replace(predictor=None), sources)
    finally:
        for module, threshold in zip(modules, before, strict=True):
            module.score_threshold = threshold
        path.unlink(missing_ok=True)
    for head, one in found.items():
        if one.is_empty:
            one.take(every[head])


def _bundle(
    run: str | Path,
    target: Path,
    overrides: Overrides,
    heads: Sequence[str] | None,
    *,
    allow_plugins: bool,
) -> dict[str, Any]:
    """The weights of the run as they are: nothing is computed that could differ."""
    if overrides or heads:
        what = "overrides" if overrides else "heads"
        raise ArgumentError(f"{what}: {NOT_OF_A_BUNDLE}")
    path = write_bundle(run, target, allow_plugins=allow_plugins)
    size = sum(file.stat().st_size for file in path.iterdir())
    return {"file": str(path), "format": "bundle", "precision": "fp32", "bytes": size}


def _info(predictor: Predictor, names: Sequence[str], options: Options, checksum: str) -> ModelInfo:
    """What a file with outputs of these names says about the model."""
    config = predictor.config
    heads = {}
    for name in predictor.heads:
        head = predictor.model.head(name)
        longer = tuple(f"{other}_" for other in predictor.heads if other.startswith(f"{name}_"))
        own = [o for o in names if o.startswith(f"{name}_") and not o.startswith(longer)]
        threshold: Any = getattr(head, "threshold", None)
        heads[name] = HeadInfo(
            type=config.heads[name]["type"],
            classes=predictor.classes[name],
            image_size=predictor._image_size[name],
            outputs=tuple(output.removeprefix(f"{name}_") for output in own),
            boxes_from=head.boxes_from,
            draw_threshold=head.draw_threshold,
            threshold=threshold if getattr(head, "multilabel", False) else None,
        )
    return ModelInfo(
        name=config.name,
        heads=heads,
        config=config.to_dict(),
        decode=options.decode,
        precision=options.precision,
        checkpoint=checksum,
        size=options.size,
        batch=options.batch,
        value_range=predictor.value_range,
        thresholds=predictor.model.thresholds,
        torch=torch.__version__,
    )


def _checksum(run: str | Path) -> str:
    """SHA-256 of the file of the weights."""
    if is_model_name(run):
        return download.sha256(fetch(find(str(run), "model")))
    return download.sha256(checkpoint.load_latest(run)[0])
