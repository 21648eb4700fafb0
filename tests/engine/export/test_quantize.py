"""int8 and fp16 files: layers compute with fewer bits, everything else as before."""

import json
import sys

import numpy as np
import pytest

from support.small_runs import SMALL_RUNS
from visionkit.config import load_config
from visionkit.engine.export import quantize
from visionkit.engine.export.quantize import quantize_int8, to_fp16, training_images
from visionkit.errors import ArgumentError, CheckpointError, ConfigError, DataError
from visionkit.types import Classes

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper, shape_inference  # noqa: E402  # after the skip

BOTH = {"int8": lambda path, out: quantize_int8(path, out, feeds()), "fp16": to_fp16}


def weight(rng, name, *shape, scale=0.2):
    return numpy_helper.from_array((rng.normal(size=shape) * scale).astype(np.float32), name)


def detector(path):
    """A file in the manner of an exported detector: images to two maps of scores, which are joined,
    and to coordinates that half precision could not hold; with an input that may be left out."""
    rng = np.random.default_rng(2)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], name="cast", to=TensorProto.FLOAT),
            helper.make_node("Div", ["pixels", "scale"], ["unit"], name="div"),
            helper.make_node("Conv", ["unit", "w0", "b0"], ["c0"], name="conv0", pads=[1] * 4),
            helper.make_node("BatchNormalization", ["c0", *"gbmv"], ["n0"], name="norm"),
            helper.make_node("Relu", ["n0"], ["r0"], name="relu"),
            helper.make_node("Conv", ["r0", "w1"], ["c1"], name="conv1", pads=[1] * 4),
            helper.make_node("Add", ["r0", "c1"], ["sum"], name="add"),
            helper.make_node("Conv", ["sum", "w2"], ["logits"], name="conv2"),
            helper.make_node("Conv", ["sum", "w2"], ["more"], name="conv3", strides=[2, 2]),
            helper.make_node("Flatten", ["logits"], ["f0"], name="flat0"),
            helper.make_node("Flatten", ["more"], ["f1"], name="flat1"),
            helper.make_node("Concat", ["f0", "f1"], ["joined"], name="join", axis=1),
            helper.make_node("Sigmoid", ["joined"], ["scores"], name="sigmoid"),
            helper.make_node("Cast", ["sizes"], ["limits"], name="limit", to=TensorProto.FLOAT),
            helper.make_node("Add", ["limits", "far"], ["corner"], name="far_away"),
        ],
        "detector",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, "h", "w"]),
            helper.make_tensor_value_info("sizes", TensorProto.INT64, ["1 or batch", 2]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("corner", TensorProto.FLOAT, None),
        ],
        [
            numpy_helper.from_array(np.array(255, np.float32), "scale"),
            numpy_helper.from_array(np.array(0.3333, np.float32), "far"),
            numpy_helper.from_array(np.array([[9000, 9000]]), "sizes"),
            *(
                weight(rng, "w0", 16, 3, 3, 3),
                weight(rng, "b0", 16),
                weight(rng, "w1", 16, 16, 3, 3),
            ),
            weight(rng, "w2", 4, 16, 1, 1),
            *(weight(rng, "g", 16), weight(rng, "b", 16), weight(rng, "m", 16)),
            numpy_helper.from_array(np.ones(16, np.float32), "v"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(
        proto, {"visionkit": json.dumps({"format": 1, "precision": "fp32"}), "mine": "kept"}
    )
    proto = shape_inference.infer_shapes(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path


def feeds(count=4, size=(32, 64)):
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield {"images": rng.integers(0, 256, (1, 3, *size), dtype=np.uint8)}


def outputs(path, **feed):
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def kinds(path):
    """The nodes of a file by the type of what they compute with."""
    proto = onnx.load(path)
    types = {one.name: one.data_type for one in proto.graph.initializer}
    return {node.name: types.get(node.input[1]) for node in proto.graph.node if len(node.input) > 1}


@pytest.fixture
def path(tmp_path):
    return detector(tmp_path / "model.onnx")


@pytest.mark.parametrize(("precision", "near"), [("int8", 0.03), ("fp16", 0.002)])
def test_outputs_are_near_for_any_batch_and_size(path, tmp_path, precision, near):
    BOTH[precision](path, tmp_path / "out.onnx")
    for batch, size in ((1, (32, 64)), (3, (64, 32))):
        images = np.concatenate([one["images"] for one in feeds(batch, size)])
        want, got = (outputs(p, images=images) for p in (path, tmp_path / "out.onnx"))
        assert want.keys() == got.keys()
        for name, value in want.items():
            assert value.dtype == got[name].dtype and value.shape == got[name].shape
            assert np.abs(value - got[name]).max() <= near * max(1, np.abs(value).max())
        # 9000.3333 would be 9000 in half precision; what is not a layer stays exact
        assert np.array_equal(want["corner"], got["corner"])
        assert not np.array_equal(want["scores"], got["scores"])


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_interface_and_the_metadata_stay(path, tmp_path, precision):
    BOTH[precision](path, tmp_path / "out.onnx")
    made = onnx.load(tmp_path / "out.onnx")
    metadata = {one.key: one.value for one in made.metadata_props}
    assert json.loads(metadata["visionkit"]) == {"format": 1, "precision": precision}
    assert metadata["mine"] == "kept"
    assert [one.name for one in made.graph.input] == ["images", "sizes"]
    sizes = np.array([[10, 20]])
    found = outputs(tmp_path / "out.onnx", images=next(feeds())["images"], sizes=sizes)
    assert np.allclose(found["corner"], sizes + 0.3333)
    onnx.checker.check_model(made, full_check=True)


def test_int8_has_integer_weights_by_channel_and_no_norms(path, tmp_path):
    quantize_int8(path, tmp_path / "out.onnx", feeds())
    proto = onnx.load(tmp_path / "out.onnx")
    weights = {one.name: one for one in proto.graph.initializer}
    for name, channels in (("w1", 16), ("w2", 4)):
        assert weights[f"{name}_quantized"].data_type == TensorProto.INT8
        assert list(weights[f"{name}_scale"].dims) == [channels]
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    # Only inputs and outputs of convolutions are quantized: not those of the others.
    producers = {value: node for node in proto.graph.node for value in node.output}
    for name in ("Sigmoid", "Concat", "Div"):
        (node,) = (node for node in proto.graph.node if node.op_type == name)
        assert all(producers[x].op_type != "QuantizeLinear" for x in node.input if x in producers)


def test_fp16_halves_layers_and_what_is_between_them(path, tmp_path):
    to_fp16(path, tmp_path / "out.onnx")
    found = kinds(tmp_path / "out.onnx")
    for name in ("conv0", "norm", "conv1", "conv2", "conv3"):
        assert found[name] == TensorProto.FLOAT16, name
    assert found["div"] == TensorProto.FLOAT
    proto = onnx.load(tmp_path / "out.onnx")
    casts = [node.output[0] for node in proto.graph.node if node.op_type == "Cast"]
    # Into the first layer and out of the last ones; nothing is cast between layers.
    assert sorted(casts) == [
        "limits",
        "logits",
        "logits_cast",
        "more_cast",
        "pixels",
        "unit_cast",
    ]
    assert not {"w0", "w1", "w2", "b0"} & {one.name for one in proto.graph.initializer}
    assert {"scale", "far", "sizes"} <= {one.name for one in proto.graph.initializer}


def test_fp16_keeps_numbers_that_are_too_large_for_it_finite(path, tmp_path):
    proto = onnx.load(path)
    (big,) = (one for one in proto.graph.initializer if one.name == "b0")
    big.CopyFrom(numpy_helper.from_array(np.full(16, 1e6, np.float32), "b0"))
    onnx.save(proto, path)
    to_fp16(path, tmp_path / "out.onnx")
    made = onnx.load(tmp_path / "out.onnx").graph.initializer
    (found,) = (numpy_helper.to_array(one) for one in made if one.name == "b0_cast")
    assert (found == np.finfo(np.float16).max).all()


def test_a_matrix_product_of_activations_is_no_layer(path, tmp_path):
    proto = onnx.load(path)
    proto.graph.node.append(helper.make_node("MatMul", ["logits", "logits"], ["own"], name="own"))
    assert [node.name for node in quantize._layers(proto)] == [f"conv{i}" for i in range(4)]
    assert "own" not in quantize._half_nodes(proto)


def spoil(path, name, value):
    """Replace the first number of a constant."""
    proto = onnx.load(path)
    (first,) = (one for one in proto.graph.initializer if one.name == name)
    values = numpy_helper.to_array(first).copy()
    values.reshape(-1)[0] = value
    first.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(proto, path)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize(("name", "value"), [("w1", np.nan), ("b0", -np.inf), ("far", np.nan)])
def test_weights_that_are_not_finite_are_refused(path, tmp_path, precision, name, value):
    spoil(path, name, value)
    words = rf"model\.onnx: weights have NaN or infinite values: {name}"
    with pytest.raises(CheckpointError, match=words):
        BOTH[precision](path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_infinity_is_allowed_where_it_is_no_weight(path, tmp_path, precision):
    """Such as in a mask: `masked_fill(..., -inf)`."""
    spoil(path, "far", -np.inf)
    BOTH[precision](path, tmp_path / "out.onnx")
    found = outputs(tmp_path / "out.onnx", images=next(feeds())["images"])
    assert (found["corner"] == -np.inf).all()


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_model_without_layers_is_refused(tmp_path, precision):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["out"])],
        "none",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match=r"has none of the layers .*Conv, .*; export it in fp32"):
        BOTH[precision](tmp_path / "model.onnx", tmp_path / "out.onnx")


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_outputs_that_exist_and_files_that_are_none_are_refused(path, tmp_path, precision):
    (tmp_path / "mine.onnx").write_text("mine")
    with pytest.raises(ArgumentError, match=r"mine\.onnx: exists; delete it or choose another"):
        BOTH[precision](path, tmp_path / "mine.onnx")
    assert (tmp_path / "mine.onnx").read_text() == "mine"
    for name in ("mine.onnx", "nowhere.onnx"):
        with pytest.raises(CheckpointError, match=rf"{name}: cannot be read as an ONNX file"):
            BOTH[precision](tmp_path / name, tmp_path / "out.onnx")


def test_no_images_to_calibrate_with(path, tmp_path):
    with pytest.raises(ConfigError, match="got no images; int8 is calibrated on training images"):
        quantize_int8(path, tmp_path / "out.onnx", [])
    assert not (tmp_path / "out.onnx").exists()


def test_an_onnxruntime_without_quantization_is_named(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    monkeypatch.delattr(runtime, "quantization", raising=False)
    with pytest.raises(ConfigError, match=r"quantization.*pip install \"visionkit-torch\[onnx\]"):
        quantize_int8(path, tmp_path / "out.onnx", feeds())
    assert not (tmp_path / "out.onnx").exists()


def test_without_onnx_the_extra_is_named(path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install \"visionkit-torch\[onnx\]"):
        to_fp16(path, tmp_path / "out.onnx")


CLASSES = {"detection": Classes.numbered(["circle", "ring", "square", "star", "triangle"])}


def test_training_images_are_spread_over_the_dataset():
    config = load_config(SMALL_RUNS["fcos"])
    images = [*training_images(config, CLASSES, ["detection"], 5)]
    assert len(images) == 5 and all(image.shape == (3, 32, 32) for image in images)
    every = [*training_images(config, CLASSES, ["detection"], 100)]
    assert len(every) == 12  # all that there are
    assert all((images[i] == every[k]).all() for i, k in enumerate((0, 3, 6, 8, 11)))


def test_a_run_without_training_images_cannot_be_calibrated(tmp_path):
    spec = load_config(SMALL_RUNS["fcos"]).to_dict()
    words = "calibrated on training images: give data.train.images=..., ..., or export in fp16"
    gone = {"type": "Coco", "images": str(tmp_path / "a"), "annotations": str(tmp_path / "b.json")}
    for train, more in ((None, "has train images"), (gone, "")):
        spec["data"]["main"]["train"] = train
        with pytest.raises((ConfigError, DataError)) as caught:
            next(training_images(load_config(spec), CLASSES, ["detection"]))
        assert words in str(caught.value) and more in str(caught.value)
