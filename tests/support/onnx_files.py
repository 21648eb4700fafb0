"""Small ONNX files that stand for exported models, built by hand."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from visionkit.engine.export.metadata import KEY, HeadInfo, ModelInfo
from visionkit.types import Classes

KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
KINDS |= {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.float16): TensorProto.FLOAT16}
CLASSES = Classes(("cat", "dog", "cow"), (1, 2, 7))


def write_onnx(path, info, outputs, *, batch="batch", size=("h", "w"), sizes=True):
    """An ONNX file whose `outputs` are these arrays, of one image, repeated for each image.

    It has one more output, `seen` (N, 3): of each image the mean of all pixels of the input, and
    its valid height and width, so that a test sees what the reader fed. `info`: a `ModelInfo`, or
    the text of the metadata; None: none.
    """
    shape = [batch, 3, *size]
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)]
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Shape", ["images"], ["count"], start=0, end=1),
    ]
    values = {"axes": np.array([1, 2, 3]), "last": np.array([1])}
    if sizes:
        inputs.append(helper.make_tensor_value_info("sizes", TensorProto.INT64, ["1 or batch", 2]))
        values["sizes"] = np.full((1, 2), 2**31)
        nodes += [
            helper.make_node("Concat", ["count", "two"], ["count2"], axis=0),
            helper.make_node("Expand", ["sizes", "count2"], ["expanded"]),
            helper.make_node("Cast", ["expanded"], ["valid"], to=TensorProto.FLOAT),
            helper.make_node("Concat", ["column", "valid"], ["seen"], axis=1),
        ]
        values["two"] = np.array([2])
    else:
        nodes.append(helper.make_node("Identity", ["column"], ["seen"]))
    declared = [helper.make_tensor_value_info("seen", TensorProto.FLOAT, [batch, None])]
    for name, array in outputs.items():
        array = np.asarray(array)
        values |= {f"{name}_one": array[None], f"{name}_rest": np.array(array.shape, np.int64)}
        nodes += [
            helper.make_node("Concat", ["count", f"{name}_rest"], [f"{name}_shape"], axis=0),
            helper.make_node("Expand", [f"{name}_one", f"{name}_shape"], [name]),
        ]
        kind = KINDS[array.dtype]
        declared.append(helper.make_tensor_value_info(name, kind, [batch, *array.shape]))
    constants = [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()]
    graph = helper.make_graph(nodes, "by hand", inputs, declared, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    if info is not None:
        text = info.to_json() if isinstance(info, ModelInfo) else info
        helper.set_model_props(proto, {"other": "x", KEY: text})
    onnx.save(proto, path)
    return path


def head_info(kind, outputs, **others):
    """A head with the three `CLASSES` whose images become at most 64 pixels long."""
    given = {"image_size": 64, "classes": CLASSES} | others
    return HeadInfo(kind, outputs=tuple(outputs), **given)


def model_info(heads, **others):
    return ModelInfo("by hand", heads, {"version": 1}, **others)
