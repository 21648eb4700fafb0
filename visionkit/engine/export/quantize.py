"""Smaller files of an exported model: 8-bit integers, or half precision, where layers compute.

Which nodes that may be was measured on a trained detector. With its convolutions in 8 bits it lost
0.002 AP, with the concatenation of its scores too 0.018. In half precision a whole graph moved
boxes of an image of 1,312 pixels by 0.4 pixels and scores by 0.07; the layers alone and what is
between them, by 0.05 pixels and 0.001. So what decodes boxes and chooses them stays in float32.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionkit.config import Config
from visionkit.data.build import build_sources
from visionkit.data.contracts import read_sample
from visionkit.engine.export.metadata import KEY
from visionkit.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    DataError,
    install_hint,
    listed,
    shorten,
)
from visionkit.types import Classes

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

CALIBRATION = 32  # images; 100 changed the AP of that detector by 0.0001
NEEDED = "int8 is calibrated on training images: give data.train.images=..., ..., or export in fp16"
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Between layers these pass half precision on: they round no coordinate. By their data inputs.
BETWEEN = {
    **dict.fromkeys(("Relu", "LeakyRelu", "Sigmoid", "HardSwish", "HardSigmoid", "Clip"), 1),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization"), 1),
    **dict.fromkeys(("Add", "Mul"), 2),
}


def quantize_int8(
    model: str | Path, out: str | Path, feeds: Iterable[Mapping[str, np.ndarray]]
) -> None:
    """Write an ONNX file whose layers compute with integers of 8 bits.

    Weights get 7 bits and a scale for each channel, activations 8 and one from the range that they
    have with `feeds`, inputs of the model by name (static quantization, QDQ; Jacob et al. 2018,
    arXiv 1712.05877). ConfigError without onnxruntime's quantization, for a model without layers,
    and without feeds; CheckpointError for weights that are not finite; ArgumentError if `out`
    exists.
    """
    proto = _opened(model, out)
    kinds = _quantization()
    rest = iter(feeds)
    first = next(rest, None)
    if first is None:
        raise ConfigError(f"{model}: got no images; {NEEDED}")

    given = chain([first], rest)

    class Reader(kinds.CalibrationDataReader):  # type: ignore[name-defined]  # imported late
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({**feed} for feed in given), None)

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        folded = Path(scratch) / "folded.onnx"
        # It folds batch norms into the convolutions before them.
        kinds.shape_inference.quant_pre_process(str(model), str(folded), skip_symbolic_shape=True)
        names = [node.name for node in _layers(_load(folded))]
        kinds.quantize_static(
            str(folded),
            str(Path(scratch) / "quantized.onnx"),
            Reader(),
            quant_format=kinds.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # weights of 7 bits: CPUs without VNNI overflow with 8
            op_types_to_quantize=list(LAYERS),
            nodes_to_quantize=names,
            activation_type=kinds.QuantType.QUInt8,
            weight_type=kinds.QuantType.QInt8,
        )
        quantized = _load(Path(scratch) / "quantized.onnx")
    _write(quantized, proto, "int8", out)


def to_fp16(model: str | Path, out: str | Path) -> None:
    """Write an ONNX file whose layers, and what is between them, compute in half precision. Inputs
    and outputs stay as they are. Errors as those of `quantize_int8`."""
    proto = _opened(model, out)
    made = _copy(proto)
    _halve(made.graph, _half_nodes(proto))
    _write(made, proto, "fp16", out)


def training_images(
    config: Config,
    classes: dict[str, Classes],
    heads: Collection[str],
    count: int = CALIBRATION,
) -> Iterator[Tensor]:
    """About `count` training images to calibrate int8 with, as `spread_images` gives them."""
    try:
        yield from spread_images(config, classes, heads, "train", count)
    except (ConfigError, DataError) as error:
        raise type(error)(*error.lines, f"  {NEEDED}") from error


def spread_images(
    config: Config, classes: dict[str, Classes], heads: Collection[str], split: str, count: int
) -> Iterator[Tensor]:
    """About `count` images (3, h, w) uint8 of a split, before any transform, evenly spaced in each
    source that feeds one of the heads. `classes` are those of all heads. ConfigError or DataError
    if there are none, or if they cannot be read."""
    sources = build_sources(replace(config, workers=0), (split,), classes)
    found = [(s, getattr(s, split)) for s in sources if {*s.feeds} & {*heads}]
    pairs = [(source, dataset) for source, dataset in found if dataset is not None and len(dataset)]
    if not pairs:
        raise ConfigError(f"data: no source of {', '.join(heads)} has {split} images")
    for source, dataset in pairs:
        wanted = min(-(-count // len(pairs)), len(dataset))
        for index in np.linspace(0, len(dataset) - 1, wanted).round().astype(int).tolist():
            try:
                image = read_sample(dataset, index).image
            except DataError:
                if not source.skip_unreadable:
                    raise
            else:
                yield image


def _opened(model: str | Path, out: str | Path) -> onnx.ModelProto:
    """The model to make smaller, checked."""
    if Path(out).exists():
        raise ArgumentError(f"{out}: exists; delete it or choose another name")
    proto = _load(model)
    layers = _layers(proto)
    weights = {value for node in layers for value in node.input[1:]}
    wrong = [one.name for one in proto.graph.initializer if not _is_sound(one, one.name in weights)]
    if wrong:
        raise CheckpointError(f"{model}: weights have NaN or infinite values: {listed(wrong, 3)}")
    if not layers:
        raise ConfigError(
            f"{model}: has none of the layers that can compute with fewer bits "
            f"({', '.join(LAYERS)} with weights); export it in fp32"
        )
    return proto


def _load(path: str | Path) -> onnx.ModelProto:
    try:
        import onnx
    except Exception as error:  # an incomplete installation may raise anything
        raise _missing("int8 and fp16", error) from error
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf has its own
        why = shorten(str(error), 200)
        raise CheckpointError(f"{path}: cannot be read as an ONNX file: {why}") from error


def _missing(what: str, error: Exception) -> ConfigError:
    return ConfigError(f"export: {what}: {error}; run: {install_hint('onnx')}")


def _quantization() -> Any:
    """The module of onnxruntime, which smaller builds of it lack."""
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization import shape_inference  # noqa: F401  # an attribute then
    except Exception as error:  # an incomplete installation may raise anything
        raise _missing("int8 needs onnxruntime.quantization", error) from error
    return quantization


def _is_sound(tensor: onnx.TensorProto, is_weight: bool) -> bool:
    """Whether a constant has no NaN, and a weight only finite values; infinity may mask."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    if not np.issubdtype(values.dtype, np.floating):
        return True
    return bool(np.isfinite(values).all() if is_weight else not np.isnan(values).any())


def _layers(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes with weights of the model; products of two activations are none."""
    weights = {one.name for one in proto.graph.initializer}
    return [n for n in proto.graph.node if n.op_type in LAYERS and n.input[1] in weights]


def _half_nodes(proto: onnx.ModelProto) -> set[str]:
    """The names of the layers, and of the nodes between them all of whose data come from such."""
    names = {node.name for node in _layers(proto)}
    half: set[str] = set()  # values
    for node in proto.graph.node:  # in the order of computation
        data = node.input[: BETWEEN.get(node.op_type, 0)]
        if node.name in names or (data and half.issuperset(data)):
            names.add(node.name)
            half.update(node.output)
    return names


def _halve(graph: onnx.GraphProto, names: set[str]) -> None:
    """Let the nodes of those names, all of whose inputs are floats, compute in half precision."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {one.name: one for one in graph.initializer}
    computed: set[str] = set()  # values that those nodes give, which are in half precision
    casts: dict[str, str] = {}  # values in the other precision
    nodes: list[onnx.NodeProto] = []

    def cast(value: str, result: str) -> str:
        to = TensorProto.FLOAT if value in computed else TensorProto.FLOAT16
        nodes.append(helper.make_node("Cast", [value], [result], name=result, to=to))
        return result

    def halved(value: str, result: str) -> str:
        """Of a weight; the largest numbers become the largest of half precision."""
        limit = np.finfo(np.float16).max
        array = numpy_helper.to_array(weights[value]).clip(-limit, limit).astype(np.float16)
        graph.initializer.append(numpy_helper.from_array(array, result))
        return result

    for node in [*graph.node]:
        half = node.name in names
        for place, value in enumerate(node.input):
            if value and half != (value in computed):
                if value not in casts:
                    change = halved if half and value in weights else cast
                    casts[value] = change(value, f"{value}_cast")
                node.input[place] = casts[value]
        computed.update(node.output if half else ())
        nodes.append(node)
    outputs = [output.name for output in graph.output if output.name in computed]
    for name in outputs:  # they stay in float32
        for node in nodes:
            _rename(node, name, f"{name}_half")
        computed.add(f"{name}_half")
        cast(f"{name}_half", name)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {value for node in nodes for value in node.input}
    for unused in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(unused)
    for info in graph.value_info:
        if info.name in computed:
            info.type.tensor_type.elem_type = TensorProto.FLOAT16


def _rename(node: onnx.NodeProto, old: str, new: str) -> None:
    for values in (node.input, node.output):
        for place, value in enumerate(values):
            if value == old:
                values[place] = new


def _write(made: onnx.ModelProto, source: onnx.ModelProto, precision: str, out: str | Path) -> None:
    """Write it with the metadata of its source, which then name the precision."""
    import onnx

    metadata = {one.key: one.value for one in source.metadata_props}
    if KEY in metadata:
        metadata[KEY] = json.dumps({**json.loads(metadata[KEY]), "precision": precision})
    del made.metadata_props[:]
    onnx.helper.set_model_props(made, metadata)
    onnx.checker.check_model(made)
    onnx.save(made, str(out))


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copied = type(proto)()
    copied.CopyFrom(proto)
    return copied


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, onnxruntime logs no advice on how to call it."""
    import onnxruntime

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(3)  # errors
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # warnings, as at the start
        logging.disable(before)
