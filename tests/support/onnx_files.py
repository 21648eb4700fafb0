"""Small ONNX files that stand for exported models, built by hand."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from visionkit.engine.export.metadata import KEY, HeadInfo, ModelInfo
from visionkit.metrics.thresholds import Thresholds
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


OBJECTS = {
    "boxes": np.array([[4, 2, 20, 12], [0, 0, 32, 16], [0, 0, 0, 0]], np.float32),
    "scores": np.array([0.9, 0.4, 0], np.float32),
    "labels": np.array([2, 0, 0]),
    "count": np.array(2),
}
FOUND = Thresholds(0.3, {"cat": 0.35, "cow": 0.95}, {"": {90: 0.5}})


def outputs_of(head, outputs):
    return {f"{head}_{name}": array for name, array in outputs.items()}


def noise(width=64, height=32, seed=0):
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


# What needs no torch, as a program: a file of `model_of_all_kinds`, a folder of images, a new one.
READ_ALL = """
import sys
import numpy as np
import visionkit
from visionkit.cli.main import main
path, folder, out = sys.argv[1:]
model = visionkit.load(path)
model.use_threshold("best")
found = model.predict(folder + "/a.png")
print(repr(model), repr(found), found.above().names, found.to_dict())
assert found.draw().size and found.masks.shape[1:] == found.size and found.image.dtype == np.uint8
assert len(visionkit.predict(path, folder, batch_size=2, skip_unreadable=True)) == 3
assert visionkit.search(path, folder + "/a.png", folder, head="vector")[0].nearest
assert main(["predict", path, folder, "--out", out, "--threshold", "best"]) == 3
try:
    visionkit.load(folder)
except visionkit.ConfigError as error:
    assert "need torch, which is not installed" in str(error)
else:
    raise AssertionError
assert sys.modules.get("torch") is None
"""


def model_of_all_kinds(path):
    """Every kind of head in one file."""
    masks = np.ones((3, 28, 28), np.float32)
    logits = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    heads = {
        "objects": ("MaskRCNN", OBJECTS | {"masks": masks}, {}),
        "look": (
            "Attributes",
            {"attributes": np.full((3, 3), 0.7, np.float32)},
            {"boxes_from": "objects"},
        ),
        "scene": ("Classification", {"probs": np.array([0.2, 0.7, 0.1], np.float32)}, {}),
        "map": ("FCN", {"map": np.zeros((64, 64), np.uint8), "logits": logits}, {}),
        "vector": ("Embedding", {"embedding": np.array([0.6, 0.8], np.float32)}, {}),
    }
    info = {h: head_info(kind, outputs, **more) for h, (kind, outputs, more) in heads.items()}
    given = {
        k: v for h, (_, outputs, _) in heads.items() for k, v in outputs_of(h, outputs).items()
    }
    return write_onnx(path, model_info(info, thresholds={"objects": FOUND}), given)


def folder_of_images(folder):
    folder.mkdir()
    Image.fromarray(noise(128, 64)).save(folder / "a.png")
    Image.fromarray(noise(1, 1)).save(folder / "b.png")
    (folder / "c.png").write_bytes(b"no image")
    return folder


def check_written(out, printed):
    """What `READ_ALL` has written and printed."""
    names = {path.name for path in out.iterdir()}
    assert {"a.jpg", "b.jpg", "a_map.png", "embeddings.npz", "predictions.json"} <= names
    assert "objects: MaskRCNN" in printed and "1 image could not be read" in printed
