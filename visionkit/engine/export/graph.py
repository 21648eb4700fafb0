"""The graph that is exported: images to the outputs of heads, by torch.export and as ONNX."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from visionkit.engine.export.onnx_ops import translations
from visionkit.errors import ConfigError, install_hint, shorten
from visionkit.models.model import VisionModel
from visionkit.ops.inference import fold_norms
from visionkit.types import Features, Size

if TYPE_CHECKING:
    import onnx

Decode = Literal["full", "raw"]

MULTIPLE = 32  # what the sides of images are multiples of
# A newer one adds nothing that these graphs use, and takes from speed: onnxruntime 1.23 of 2025
# reads 23, the newest of torch, but runs its convolutions a quarter slower.
OPSET = 20
TRACED: Size = (10 * MULTIPLE, 13 * MULTIPLE)  # of a size that may vary: no map has a side of 1
WHOLE = 2**31  # the size that stands for the whole image


@dataclass
class Position:
    """The part of a model that computes. Not an attribute of the module: torch resets those."""

    part: str = "backbone"


class ExportModel(nn.Module):
    """Images to the outputs of some heads of a model; what is exported.

    decode: `full` for what `Head.postprocess` returns, `raw` for what `forward` returns.
    """

    def __init__(self, model: VisionModel, heads: Sequence[str], decode: Decode) -> None:
        super().__init__()
        self.model, self.decode = model, decode
        self.heads = with_bases(model, heads)
        self.at = Position()

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Outputs `<head>_<output>` of `images` (N, 3, H, W) uint8, with H and W multiples of 32,
        whose valid (h, w) are `sizes` (N, 2) int64."""
        model = self.model
        self.at.part = "backbone"
        features = model.backbone(images, sizes)
        if model.neck is not None:
            self.at.part = "neck"
            features = model.neck(features)
        return self.outputs(features, sizes, images.shape[-2:])

    def outputs(
        self, features: Features, sizes: Tensor, padded: Sequence[int]
    ) -> dict[str, Tensor]:
        """The same of the `features` of images of (h, w) `padded`."""
        found: dict[str, dict[str, Tensor]] = {}
        height, width = padded
        for name in self.heads:
            self.at.part, head = f"heads.{name}", self.model.head(name)
            boxes = () if head.boxes_from is None else (found[head.boxes_from]["boxes"],)
            outputs = head(features, sizes, *boxes)
            if self.decode == "full":
                outputs = head.postprocess(outputs, (height, width))
            found[name] = outputs
        # A copy of each: an output may be that of another head, or an input.
        return {f"{name}_{key}": x for name, outputs in found.items() for key, x in outputs.items()}


def with_bases(model: VisionModel, heads: Sequence[str]) -> list[str]:
    """The heads, each after that whose boxes it describes, which comes along."""
    bases = [model.head(name).boxes_from for name in heads]
    return list(dict.fromkeys([*(b for b in bases if b is not None), *heads]))


def exported_program(
    model: VisionModel,
    heads: Sequence[str],
    *,
    size: Size | None = None,
    batch: int | None = None,
    decode: Decode = "full",
) -> torch.export.ExportedProgram:
    """The graph of some heads of a model, in float32 on the CPU; the model stays as it is.

    `size` is the (h, w) of all images and `batch` their number; None: any, and sides are multiples
    of 32. ConfigError names the part that cannot be exported so.
    """
    model = copy.deepcopy(model).float().cpu().eval().to(memory_format=torch.contiguous_format)
    fold_norms(model)
    graph = ExportModel(model, heads, decode)
    count, (height, width) = batch or 2, size or TRACED
    images = torch.zeros(count, 3, height, width, dtype=torch.uint8)
    sizes = torch.tensor([[height, width]]).repeat(count, 1)
    dynamic_batch = {} if batch else {0: torch.export.Dim("batch")}
    sides = {} if size else {2 + i: MULTIPLE * torch.export.Dim(n) for i, n in enumerate("hw")}
    shapes = {"images": {**dynamic_batch, **sides}, "sizes": dynamic_batch}
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(graph, (images, sizes), dynamic_shapes=shapes)
            _check_dynamic(program, shapes)
            return program
    except Exception as error:  # of custom parts, and of torch about them
        raise _not_exported(graph, error, size, batch) from error


def _check_dynamic(program: torch.export.ExportedProgram, shapes: dict[str, Any]) -> None:
    """ValueError if torch fixed a size that should vary."""
    for name, dimensions in shapes.items():
        node = next(node for node in program.graph.nodes if node.name == name)
        fixed = [node.meta["val"].shape[i] for i in dimensions]
        if found := [size for size in fixed if not isinstance(size, torch.SymInt)]:
            raise ValueError(f"its code fixes a size of {name!r} to {found[0]}")


def _not_exported(
    graph: ExportModel, error: Exception, size: Size | None, batch: int | None
) -> ConfigError:
    if isinstance(error, NotImplementedError) and graph.at.part.startswith("heads."):
        return ConfigError(
            f"{graph.at.part}: it has no `postprocess()`; export it with --decode raw"
        )
    fixed = [
        option for option, given in (("--size H,W", size), ("--batch N", batch)) if given is None
    ]
    advice = f"; try {' and '.join(fixed)}" if fixed else ""
    return ConfigError(f"{graph.at.part}: torch cannot export it: {_reason(error)}{advice}")


def to_onnx(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    """The program as ONNX, checked. Its input `sizes` (1 or N, 2) is optional: without it, all of
    each image is valid. ConfigError without the extra `onnx`, and for what ONNX cannot express."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch needs it
    except ImportError as error:
        raise ConfigError(f"export: {error}; run: {install_hint('onnx')}") from error
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=translations(),
                input_names=["images", "sizes"],
                output_names=output_names(program),
                verbose=False,
            )
    except Exception as error:  # of many kinds, each wrapped in another
        raise ConfigError(f"export: ONNX cannot express this model: {_reason(error)}") from error
    assert made is not None
    proto = made.model_proto
    _clean(proto)
    _make_sizes_optional(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def output_names(program: torch.export.ExportedProgram) -> list[str]:
    """The names of the outputs, in their order."""
    spec = program.call_spec.out_spec
    return [*tree_unflatten([None] * spec.num_leaves, spec)]


def _reason(error: BaseException) -> str:
    """What caused an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return shorten(" ".join(str(error).split()) or type(error).__name__, 300)


def _clean(proto: onnx.ModelProto) -> None:
    """Remove what torch notes of its code, such as paths of this machine, and name the sizes:
    `batch`, `h` and `w` in units of 32 pixels, and `rows1`, ... for what is long to say."""
    graph = proto.graph
    images = next(value for value in graph.input if value.name == "images")
    sizes = [d.dim_param.rpartition("*")[2] for d in images.type.tensor_type.shape.dim]
    names = {s: new for s, new in zip(sizes, ("batch", "", "h", "w"), strict=True) if s}
    pattern = re.compile("|".join(rf"\b{symbol}\b" for symbol in names) or r"(?!)")
    rows: dict[str, str] = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                text = pattern.sub(lambda match: names[match[0]], size.dim_param)
                if "(" in text:  # runtimes take equal names for equal sizes
                    text = rows.setdefault(text, f"rows{len(rows) + 1}")
                size.dim_param = text
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del graph.metadata_props[:], proto.metadata_props[:]


def _make_sizes_optional(proto: onnx.ModelProto) -> None:
    """Give the input `sizes` a value, limit it to the images, and expand it to their number."""
    from onnx import TensorProto, helper

    graph = proto.graph
    for node in graph.node:
        node.input[:] = ["sizes_of_all" if name == "sizes" else name for name in node.input]
    first = [
        helper.make_node("Shape", ["images"], ["sizes_padded"], start=2, end=4),
        helper.make_node("Shape", ["images"], ["sizes_count"], start=0, end=1),
        helper.make_node("Min", ["sizes", "sizes_padded"], ["sizes_limited"]),
        helper.make_node("Concat", ["sizes_count", "sizes_one"], ["sizes_shape"], axis=0),
        helper.make_node("Expand", ["sizes_limited", "sizes_shape"], ["sizes_of_all"]),
    ]
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        [
            helper.make_tensor("sizes", TensorProto.INT64, (1, 2), [WHOLE, WHOLE]),
            helper.make_tensor("sizes_one", TensorProto.INT64, (1,), [1]),
        ]
    )
    value = next(value for value in graph.input if value.name == "sizes")
    shape: list[str | int | None] = ["1 or batch", 2]
    value.CopyFrom(helper.make_tensor_value_info("sizes", TensorProto.INT64, shape))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, torch's progress and warnings are not shown; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
