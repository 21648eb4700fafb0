"""Reading exported models without torch: small files built by hand, whose outputs are known."""

import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np
import onnx
import pytest
from PIL import Image

import visionkit
from support.onnx_files import (
    FOUND,
    OBJECTS,
    READ_ALL,
    check_written,
    folder_of_images,
    head_info,
    model_info,
    model_of_all_kinds,
    noise,
    outputs_of,
    write_onnx,
)
from visionkit.cli.main import main
from visionkit.engine.export.onnx_file import DIGEST, add_digest
from visionkit.engine.onnx_model import OnnxPredictor
from visionkit.engine.prediction import to_records
from visionkit.errors import ArgumentError, CheckpointError, ConfigError, DataError, DivergedError
from visionkit.types import Classes


@pytest.fixture
def detector(tmp_path):
    info = model_info({"objects": head_info("FCOS", OBJECTS, draw_threshold=0.5)})
    return write_onnx(tmp_path / "model.onnx", info, outputs_of("objects", OBJECTS))


def one_head(path, kind, outputs, name="head", **others):
    apart = {key: others.pop(key) for key in ("batch", "size", "sizes") if key in others}
    of_model = {key: others.pop(key) for key in ("thresholds", "value_range") if key in others}
    size = apart.get("size")
    of_model |= {"batch": apart.get("batch"), "size": size}
    info = model_info({name: head_info(kind, outputs, **others)}, **of_model)
    return write_onnx(path / "model.onnx", info, outputs_of(name, outputs), **apart)


# --- kinds ---


def test_objects_are_in_the_images_own_pixels(detector):
    """Of twice the network's size."""
    found = visionkit.load(detector).predict(noise(128, 64))
    assert found.boxes.tolist() == [[8, 4, 40, 24], [0, 0, 64, 32]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.4])
    assert found.labels.tolist() == [2, 0] and found.names == ["cow", "cat"]
    assert [one.name for one in found.above()] == ["cow"]
    assert isinstance(found.boxes, np.ndarray) and found.boxes.dtype == np.float32
    assert found.size == (64, 128) and found.image.shape == (3, 64, 128)
    records = found.to_dict()["predictions"]
    assert [record["category_id"] for record in records] == [7, 1]
    assert records[0]["bbox"] == [8, 4, 32, 20]
    assert "1 cow (0.90); 1 below 0.5" in repr(found)
    assert found.draw().size == (640, 320)


def test_masks_are_pasted_into_their_boxes(tmp_path):
    masks = np.zeros((3, 28, 28), np.float32)
    masks[0] = 1
    masks[1, :, :14] = 1
    path = one_head(tmp_path, "MaskRCNN", OBJECTS | {"masks": masks})
    full, left = visionkit.load(path).predict(noise(64, 32)).masks
    inside = np.zeros((32, 64), bool)
    inside[2:12, 4:20] = True
    assert full.shape == (32, 64) and (full & inside).sum() >= 0.9 * inside.sum()
    assert not (full & ~inside)[:, 22:].any()
    assert left[4:12, 2:14].all() and not left[:, 18:].any()


def test_no_objects(tmp_path):
    nothing = OBJECTS | {"count": np.array(0), "masks": np.zeros((3, 28, 28), np.float32)}
    found = visionkit.load(one_head(tmp_path, "MaskRCNN", nothing)).predict(noise())
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.masks.shape == (0, 32, 64)
    assert found.above(0.1).names == [] and "no objects" in repr(found) and found.draw()


def test_the_class_of_an_image(tmp_path):
    probs = {"probs": np.array([0.2, 0.7, 0.1], np.float32)}
    found = visionkit.load(one_head(tmp_path, "Classification", probs)).predict(noise())
    assert found.names == ["dog"] and found.scores.tolist() == pytest.approx([0.7])
    (record,) = found.to_dict()["predictions"]
    assert record["category_id"] == 2 and [*record["top"]] == ["dog", "cat", "cow"]
    assert "dog 0.70" in repr(found) and found.draw()


def test_several_labels_from_the_threshold_of_the_head(tmp_path):
    probs = {"probs": np.array([0.2, 0.7, 0.25], np.float32)}
    path = one_head(tmp_path, "Classification", probs, threshold=0.25)
    assert visionkit.load(path).predict(noise()).names == ["dog", "cow"]


def test_several_labels_from_the_thresholds_of_a_validation(tmp_path):
    """They win over that of the head; `use_threshold` changes them."""
    probs = {"probs": np.array([0.36, 0.2, 0.94], np.float32)}
    given = {"threshold": 0.25, "thresholds": {"head": FOUND}}
    model = visionkit.load(one_head(tmp_path, "Classification", probs, **given))
    assert model.predict(noise()).names == ["cat"]
    model.use_threshold(0.2)
    assert model.predict(noise()).names == ["cow", "cat", "dog"]
    model.use_threshold("best")
    assert model.predict(noise()).names == ["cat"]


def test_the_box_of_localization(tmp_path):
    outputs = {"probs": np.array([0, 0.9, 0.1], np.float32)}
    outputs |= {"box": np.array([1, 2, 30, 20], np.float32)}
    found = visionkit.load(one_head(tmp_path, "Localization", outputs)).predict(noise(128, 64))
    assert found.names == ["dog"] and found.boxes.tolist() == [[2, 4, 60, 40]]
    assert found.to_dict()["predictions"][0]["bbox"] == [2, 4, 58, 36] and found.draw()


def test_attributes_of_the_boxes_of_another_head(tmp_path):
    classes = Classes.numbered(["wet", "color=red", "color=blue"])
    attributes = {"attributes": np.array([[0.9, 0.2, 0.8], [0.1, 0.6, 0.4], [0, 0, 0]], np.float32)}
    heads = {
        "objects": head_info("FCOS", OBJECTS),
        "look": head_info("Attributes", attributes, classes=classes, boxes_from="objects"),
    }
    outputs = outputs_of("objects", OBJECTS) | outputs_of("look", attributes)
    info = model_info(heads, thresholds={"objects": FOUND})
    path = write_onnx(tmp_path / "model.onnx", info, outputs)
    found = visionkit.load(path).predict(noise(128, 64))
    assert [one.attributes["color=blue"] for one in found] == pytest.approx([0.8, 0.4])
    alone = visionkit.load(path, heads=["look"]).predict(noise(128, 64))
    assert alone.boxes.tolist() == found.boxes.tolist() and [*alone.heads] == ["look"]
    assert alone.attributes.shape == (2, 3) and "2 objects" in repr(alone)
    assert alone.draw_threshold["look"] == 0.3  # of all classes of the boxes
    assert found.draw() and len(found.to_dict()["predictions"]) == 4


def test_a_semantic_map_has_the_images_size(tmp_path):
    logits = np.zeros((3, 8, 16), np.float32)
    logits[1, :, :8] = 1
    logits[2, :, 8:] = 1
    outputs = {"map": np.zeros((32, 64), np.uint8), "logits": logits}
    found = visionkit.load(one_head(tmp_path, "FCN", outputs)).predict(noise(100, 50))
    assert found.semantic.shape == (50, 100) and found.semantic.dtype == np.uint8
    assert (found.semantic[:, :50] == 1).all() and (found.semantic[:, 51:] == 2).all()
    assert found.to_dict()["predictions"][0]["pixels"].keys() == {"dog", "cow"}
    assert "dog 50%" in repr(found) and found.draw()


def test_embeddings_and_reconstructions(tmp_path):
    embedding = {"embedding": np.array([0.6, 0.8], np.float32)}
    image = {"reconstruction": noise(64, 32).transpose(2, 0, 1)}
    square = {"images": np.full((3, 8, 8), 0.5, np.float32)}
    latent = square | {"latent_mean": np.array([1, 2], np.float32), "kl": np.float32(3)}
    heads = {"vector": embedding, "auto": image, "vae": latent}
    kinds = {"vector": "Embedding", "auto": "Autoencoder", "vae": "VAE"}
    nothing = Classes((), ())
    info = {h: head_info(kinds[h], outputs, classes=nothing) for h, outputs in heads.items()}
    outputs = {k: v for head, one in heads.items() for k, v in outputs_of(head, one).items()}
    path = write_onnx(tmp_path / "model.onnx", model_info(info), outputs)
    found = visionkit.load(path).predict(noise(63, 30))  # on an input of 64x32
    assert found.embedding.tolist() == pytest.approx([0.6, 0.8])
    auto, vae = found.head("auto"), found.head("vae")
    assert np.array_equal(auto.reconstruction, image["reconstruction"][:, :30, :64])
    assert vae.reconstruction.shape == (3, 30, 64) and (vae.reconstruction == 128).all()
    record = found.to_dict()["predictions"][2]
    assert record["kl"] == 3 and record["latent_mean"] == [1, 2]
    assert "embedding (2,)" in repr(found) and vae.draw()


def test_outputs_of_a_custom_head_are_kept(tmp_path):
    density = {"counts": np.array([1, 2, 3], np.float32)}
    found = visionkit.load(one_head(tmp_path, "my.Counting", density)).predict(noise())
    assert found.heads["head"]["counts"].tolist() == [1, 2, 3] and "counts (3,)" in repr(found)
    assert found.to_dict()["predictions"] == [{"head": "head", "counts": [1, 2, 3]}]
    assert found.draw()


def test_halves_become_float32(tmp_path):
    outputs = {name: v.astype(np.float16) for name, v in OBJECTS.items() if v.dtype == np.float32}
    path = one_head(tmp_path, "FCOS", OBJECTS | outputs)
    found = visionkit.load(path).predict(noise())
    assert found.boxes.dtype == found.scores.dtype == np.float32


def test_numbers_that_are_not_finite(tmp_path):
    path = one_head(tmp_path, "Embedding", {"embedding": np.array([np.nan, 1], np.float32)})
    found = visionkit.load(path).predict(noise())
    with pytest.raises(DivergedError, match="'embedding' of image None is not finite"):
        found.to_dict()
    Image.fromarray(noise()).save(path.parent / "a.png")
    with pytest.raises(DivergedError):
        visionkit.predict_files(path, path.parent / "a.png", path.parent / "out")


# --- what the graph gets ---


def seen(path, images, **options):
    """What the graph of a detector saw: mean, valid height and width of each image."""
    model = OnnxPredictor(path, **options)
    rows = []
    run = model.session.run

    class Spy:
        def run(self, names, feeds):
            rows.append((feeds["images"].shape, *run(["seen"], feeds)))
            return run(names, feeds)

    model.session = Spy()
    model.predict_batch(images)
    return [(shape, *row) for shape, one in rows for row in one.tolist()]


def test_images_are_resized_and_padded_to_multiples(detector):
    (row,) = seen(detector, [np.full((50, 100, 3), 200, np.uint8)])
    assert row == ((1, 3, 32, 64), 200.0, 32.0, 64.0)
    (row,) = seen(detector, [np.full((100, 40, 3), 200, np.uint8)])
    assert row[0] == (1, 3, 64, 32) and row[2:] == (64, 26)
    assert row[1] == pytest.approx(200 * 26 / 32)  # the padding is black
    (row,) = seen(detector, [np.full((1, 1, 3), 10, np.uint8)])
    assert row == ((1, 3, 64, 64), 10.0, 64.0, 64.0)


def test_a_batch_is_padded_to_its_largest_image(detector):
    images = [np.full((64, 64, 3), 8, np.uint8), np.full((32, 64, 3), 8, np.uint8)]
    assert seen(detector, images) == [
        ((2, 3, 64, 64), 8.0, 64.0, 64.0),
        ((2, 3, 64, 64), 4.0, 32.0, 64.0),
    ]


def test_a_batch_of_fixed_size_is_filled_up(tmp_path):
    path = one_head(tmp_path, "FCOS", OBJECTS, batch=2)
    images = [np.full((32, 64, 3), value, np.uint8) for value in (1, 2, 3)]
    assert [row[1] for row in seen(path, images)] == [1, 2, 3, 0]
    assert len(visionkit.load(path).predict_batch(images)) == 3


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        ((32, 64), (32, 64)),
        ((64, 64), (32, 32)),  # the rule gives 64x64: too high
        ((640, 64), (32, 3)),
        ((10, 100), (6, 64)),
        ((1, 1), (32, 32)),
    ],
)
def test_an_image_is_resized_into_a_fixed_input(tmp_path, given, valid):
    path = one_head(tmp_path, "FCOS", OBJECTS, size=(32, 64))
    (row,) = seen(path, [np.full((*given, 3), 9, np.uint8)])
    assert row[0] == (1, 3, 32, 64) and row[2:] == valid


def test_a_fixed_size_of_the_config_fills_a_fixed_input(tmp_path):
    path = one_head(tmp_path, "FCOS", OBJECTS, size=(28, 28), image_size="28x28")
    (row,) = seen(path, [noise(30, 10)])
    assert row[0] == (1, 3, 28, 28) and row[2:] == (28, 28)
    found = visionkit.load(path).predict(noise(56, 28))
    assert found.boxes[0].tolist() == [8, 2, 40, 12]


def test_a_graph_that_takes_no_sizes(tmp_path):
    path = one_head(tmp_path, "FCOS", OBJECTS, sizes=False)
    assert visionkit.load(path).predict(noise(128, 64)).boxes[0].tolist() == [8, 4, 40, 24]


def test_heads_of_several_image_sizes(tmp_path):
    probs = {"probs": np.array([0.2, 0.7, 0.1], np.float32)}
    heads = {
        "objects": head_info("FCOS", OBJECTS),
        "scene": head_info("Classification", probs, image_size=128),
    }
    outputs = outputs_of("objects", OBJECTS) | outputs_of("scene", probs)
    path = write_onnx(tmp_path / "model.onnx", model_info(heads), outputs)
    rows = seen(path, [noise(64, 32)])
    assert [row[0] for row in rows] == [(1, 3, 32, 64), (1, 3, 64, 128)]
    assert [row[0] for row in seen(path, [noise()], heads=["scene"])] == [(1, 3, 64, 128)]
    found = visionkit.load(path).predict(noise())
    assert found.boxes[0].tolist() == [4, 2, 20, 12] and [*found.heads] == ["objects", "scene"]


def test_overrides_that_have_a_meaning(detector):
    model = visionkit.load(detector, {"data.image_size": 128, "train.device": "cpu"})
    assert "image size 128" in repr(model)
    assert visionkit.load(detector, ["data.image_size=[32,96]"]).predict(noise())
    for wrong, says in {
        "data.image_size=5": "data.image_size: got 5",
        "data.image_size=[1": "overrides: ",
        "train.device=[1]": r"train.device: got \[1\]; expected",
        "train.device=tpu": "train.device: got 'tpu'; expected one of auto, cpu, cuda",
        "train.precision=bf16": "train.precision: does not apply to .*has its config in itself",
        "data.main.image_size=64": "data.main.image_size: does not apply",
        "nothing": "overrides: got 'nothing'; expected key=value",
    }.items():
        with pytest.raises(ConfigError, match=says):
            visionkit.load(detector, [wrong])
    with pytest.raises(ArgumentError, match="overrides: got 5"):
        visionkit.load(detector, 5)
    with pytest.raises(ConfigError, match=r"this onnxruntime has no Other; it has .*CPU"):
        OnnxPredictor(detector, providers=["Other"])


# --- the same methods as of a Predictor ---


def test_thresholds(tmp_path):
    model = visionkit.load(one_head(tmp_path, "FCOS", OBJECTS, thresholds={"head": FOUND}))
    assert model.draw_threshold == {"head": (0.35, 0.3, 0.95)}
    assert model.describe_thresholds() == ["head: cat 0.350, dog 0.300, cow 0.950"]
    image = noise()
    assert model.predict(image).above().names == ["cat"]
    model.use_threshold("p=0.9")
    assert model.draw_threshold == {"head": (0.5, 0.5, 0.5)}
    assert model.predict(image).above().names == ["cow"]
    model.use_threshold("p=0.99")
    assert model.predict(image).above().names == []
    model.use_threshold(0.2)
    assert model.predict(image).above().names == ["cow", "cat"]
    for wrong in ("p=2", "worst", 3):
        with pytest.raises(ArgumentError, match="threshold: got"):
            model.use_threshold(wrong)


def test_a_file_without_thresholds(detector):
    model = visionkit.load(detector)
    assert model.draw_threshold == {"objects": 0.5}
    with pytest.raises(ArgumentError, match="has no thresholds"):
        model.use_threshold("best")


def test_repr_and_heads(detector):
    model = visionkit.load(str(detector))
    assert repr(model) == (
        "OnnxPredictor of 'by hand' (CPUExecutionProvider, fp32)\n"
        "  objects: FCOS, image size 64, 3 classes: cat, dog, cow"
    )
    with pytest.raises(ConfigError, match="the model has no head 'object'; did you mean 'objects'"):
        visionkit.load(detector, heads=["object"])


def test_images_of_all_kinds(detector, tmp_path):
    model = visionkit.load(detector)
    Image.fromarray(noise(64, 32)).save(tmp_path / "a.png")
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(noise(32, 64)).save(tmp_path / "turned.png", exif=tags)
    Image.fromarray(noise(64, 32)[..., 0]).save(tmp_path / "gray.png")
    Image.new("RGB", (4000, 2000)).save(tmp_path / "large.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    sizes = {"a": (32, 64), "turned": (32, 64), "gray": (32, 64), "large": (2000, 4000)}
    for name, size in (sizes | {"dot": (1, 1)}).items():
        found = model.predict(tmp_path / f"{name}.png")
        assert found.size == size and found.path.stem == name and len(found) == 2
        assert found.boxes.max() <= max(size) and found.draw()
    for image in (noise(), noise()[..., 0], Image.fromarray(noise())):
        assert np.array_equal(model.predict(image).boxes, OBJECTS["boxes"][:2])
    with pytest.raises(ArgumentError, match="got NoneType"):
        model.predict(None)
    with pytest.raises(ArgumentError, match="predict_batch: got no images"):
        model.predict_batch([])
    with pytest.raises(DataError, match="missing"):
        model.predict(tmp_path / "missing.png")


def test_values_of_more_than_8_bits(tmp_path):
    path = one_head(tmp_path, "FCOS", OBJECTS, value_range=(0.0, 4095.0))
    found = visionkit.load(path).predict(np.full((32, 64), 4095, np.uint16))
    assert (found.image == 255).all()


def test_tensors_are_read_too(detector):
    import torch

    pixels = torch.from_numpy(noise()).permute(2, 0, 1)
    found = visionkit.load(detector).predict(pixels)
    assert isinstance(found.image, np.ndarray) and np.array_equal(found.image, pixels.numpy())


def test_predict_and_files(detector, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate([(64, 32), (64, 32), (30, 60)]):
        Image.fromarray(noise(*size, seed=i)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = visionkit.predict(detector, folder, batch_size=2, skip_unreadable=True)
    assert [one and one.size for one in found] == [(32, 64), (32, 64), (60, 30), None]
    out = tmp_path / "out"
    assert visionkit.predict_files(detector, folder, out, threshold=0.3) == 1
    assert {p.name for p in out.iterdir()} == {"0.jpg", "1.jpg", "2.jpg", "predictions.json"}
    records = json.loads((out / "predictions.json").read_text())
    assert [record["image_id"] for record in records] == [1, 1, 2, 2, 3, 3]
    with pytest.raises(ArgumentError, match="overrides: do not apply to a loaded model"):
        visionkit.predict(visionkit.load(detector), folder, ["data.image_size=64"])


def test_the_command(detector, tmp_path, capsys):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    image, out = str(tmp_path / "a.png"), str(tmp_path / "out")
    words = ["predict", str(detector), image, "--out", out]
    assert main([*words, "--threshold", "0.3", "--heads", "objects"]) == 0
    assert f"wrote predictions.json and overlays to {out}: 1 image, " in capsys.readouterr().out
    assert main([*words, "data.image_size=96"]) == 0
    assert main([*words, "--heads", "none"]) == 2
    assert main([*words, "train.lr=1"]) == 2
    assert "an exported file has its config in itself" in capsys.readouterr().err


def test_search_in_embeddings(tmp_path):
    path = one_head(tmp_path, "Embedding", {"embedding": np.array([0.6, 0.8], np.float32)})
    for i in range(3):
        Image.fromarray(noise(seed=i)).save(tmp_path / f"{i}.png")
    (found,) = visionkit.search(path, tmp_path / "0.png", tmp_path, top=5)
    assert [match.name for match in found.nearest] == ["1.png", "2.png"]
    assert found.nearest[0].similarity == pytest.approx(1)


# --- files that cannot be used ---


def test_files_that_are_no_model(detector, tmp_path):
    data = detector.read_bytes()
    cases = {
        "text": (b"hello, this is no model", "is not an ONNX file, or is damaged"),
        "empty": (b"", r"is not an ONNX file, or is damaged \(it is empty"),
        "cut": (data[: len(data) // 2], "is not an ONNX file, or is damaged"),
        "zeros": (bytes(1000), "is not an ONNX file, or is damaged"),
        "torch": (b"PK\x03\x04" + bytes(50), "is not an ONNX file"),
    }
    for name, (content, says) in cases.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"^{path}: {says}") as caught:
            visionkit.load(path)
        assert len(caught.value.lines) == 1
    with pytest.raises(CheckpointError, match=r"missing\.onnx: not found"):
        visionkit.load(tmp_path / "missing.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        visionkit.load(tmp_path / "folder.onnx")
    assert main(["predict", str(tmp_path / "text.onnx"), str(tmp_path), "--out", "x"]) == 4


def test_each_damaged_byte_of_the_structure_is_a_checkpoint_error(detector, tmp_path):
    """Flipped or cut anywhere: an error of one line, or a model that loads."""
    data, path = detector.read_bytes(), tmp_path / "damaged.onnx"
    rng = np.random.default_rng(0)
    for place in rng.integers(len(data), size=40).tolist():
        broken = bytearray(data)
        broken[place] ^= 255
        for content in (bytes(broken), data[:place]):
            path.write_bytes(content)
            try:
                visionkit.load(path).predict(noise())
            except CheckpointError as error:
                assert len(error.lines) == 1 and str(error).startswith(str(path))
            except (DataError, DivergedError):
                pass


def test_a_file_with_a_digest_has_all_its_bytes(detector, tmp_path):
    path = tmp_path / "whole.onnx"
    path.write_bytes(detector.read_bytes())
    add_digest(path)
    data = path.read_bytes()
    entry = onnx.load(path).metadata_props[-1]
    assert entry.key == DIGEST and entry.value == sha256(detector.read_bytes()).hexdigest()
    found, expected = (visionkit.load(one).predict(noise()) for one in (path, detector))
    assert found.boxes.tolist() == expected.boxes.tolist()
    for place in range(0, detector.stat().st_size, 7):
        broken = bytearray(data)
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(CheckpointError):
            visionkit.load(path)
    other = onnx.load(detector)
    other.metadata_props.append(entry)
    other.producer_name = "another program"
    onnx.save(other, path)
    with pytest.raises(CheckpointError, match="another program changed it"):
        visionkit.load(path)


def test_an_onnx_file_of_another_tool(detector, tmp_path):
    path = tmp_path / "other.onnx"
    proto = onnx.load(detector)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match=r"other\.onnx: was not exported by visionkit"):
        visionkit.load(path)


def test_a_newer_format_is_named_also_where_onnxruntime_cannot_load_it(detector, tmp_path):
    proto = onnx.load(detector)
    proto.opset_import[0].version, proto.ir_version = 99, 99
    path = tmp_path / "newer.onnx"
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match="is damaged, or needs a newer onnxruntime than"):
        visionkit.load(path)
    proto.metadata_props[1].value = '{"format": 2}'
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match="has format 2, this visionkit reads up to 1"):
        visionkit.load(path)


def test_outputs_that_are_no_predictions(tmp_path):
    raw = model_info({"objects": head_info("FCOS", OBJECTS)}, decode="raw")
    path = write_onnx(tmp_path / "raw.onnx", raw, outputs_of("objects", OBJECTS))
    with pytest.raises(CheckpointError, match=r"exported with `--decode raw`.*`--decode full`"):
        visionkit.load(path)


def test_a_graph_that_is_unlike_its_metadata(tmp_path):
    info = model_info({"objects": head_info("MaskRCNN", [*OBJECTS, "masks"])})
    path = write_onnx(tmp_path / "a.onnx", info, outputs_of("objects", OBJECTS))
    with pytest.raises(CheckpointError, match="has no output 'objects_masks'"):
        visionkit.load(path)
    fixed = model_info({"objects": head_info("FCOS", OBJECTS)})
    path = write_onnx(tmp_path / "b.onnx", fixed, outputs_of("objects", OBJECTS), size=(32, 32))
    with pytest.raises(CheckpointError, match=r"takes images of shape \('batch', 3, 32, 32\)"):
        visionkit.load(path)
    path = write_onnx(tmp_path / "c.onnx", fixed, outputs_of("objects", OBJECTS), batch=2)
    with pytest.raises(CheckpointError, match=r"takes images of shape \(2, 3, 'h', 'w'\)"):
        visionkit.load(path)


def test_classes_that_the_metadata_lack(tmp_path):
    """As after an edit by hand."""
    tags = model_info({"tags": head_info("Classification", ["probs"])})
    probs = {"tags_probs": np.full(4, 0.25, np.float32)}
    with pytest.raises(CheckpointError, match="'tags_probs' has 4 classes, unlike its metadata"):
        visionkit.load(write_onnx(tmp_path / "a.onnx", tags, probs))
    info = model_info({"objects": head_info("FCOS", OBJECTS, classes=Classes(("cat",), (1,)))})
    path = write_onnx(tmp_path / "b.onnx", info, outputs_of("objects", OBJECTS))
    with pytest.raises(CheckpointError, match="objects: finds classes beyond the 1 of its"):
        visionkit.load(path).predict(noise())


def test_onnxruntime_prints_nothing_about_a_damaged_file(detector, tmp_path, capfd):
    """The standard output is for what a command finds."""
    proto, path = onnx.load(detector), tmp_path / "a.onnx"
    proto.graph.node[0].op_type = "Nothing"
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match="is damaged, or needs a newer onnxruntime"):
        visionkit.load(path)
    assert capfd.readouterr().out == ""


def test_without_onnxruntime(detector, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"; run: pip install .*\[onnx\]") as caught:
        visionkit.load(detector)
    assert len(caught.value.lines) == 1


def test_a_file_with_another_suffix(detector):
    renamed = detector.rename(detector.with_name("weights.bin"))
    assert visionkit.load(renamed).heads == ["objects"]


def test_records_are_those_of_equal_tensors(detector):
    import torch

    found = visionkit.load(detector).predict(noise(77, 41))
    heads = {
        head: {k: torch.from_numpy(v) for k, v in one.items()} for head, one in found.heads.items()
    }
    same = replace(found, heads=heads, image=torch.from_numpy(found.image.copy()))
    assert to_records(same) == to_records(found) and repr(same) == repr(found)
    assert np.array_equal(np.asarray(same.draw()), np.asarray(found.draw()))


# --- without torch ---


def test_nothing_of_it_imports_torch(tmp_path):
    path, images = model_of_all_kinds(tmp_path / "model.onnx"), folder_of_images(tmp_path / "in")
    blocked = 'import sys\nsys.modules["torch"] = sys.modules["torchvision"] = None\n'
    words = [sys.executable, "-c", blocked + READ_ALL, path, images, tmp_path / "out"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    check_written(tmp_path / "out", done.stdout)
