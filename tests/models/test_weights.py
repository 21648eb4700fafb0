"""Weights of a whole model: class rows by name, whatever their order; nothing half loaded."""

import argparse
import inspect
import logging
import os
import re

import pytest
import torch
import torchvision

from visionkit.config import load_config
from visionkit.config.components import components
from visionkit.errors import CheckpointError, ConfigError
from visionkit.models.backbones.plain import TinyCNN
from visionkit.models.build import build_model
from visionkit.models.head import Head
from visionkit.models.model import VisionModel
from visionkit.models.necks.fpn import FPN
from visionkit.models.weights import Origin, fill, load_model_weights
from visionkit.types import Classes

HEADS = components("heads")
WITH_CLASSES = [name for name, cls in HEADS.items() if cls.class_key]
AB, BA, CAB = ("cat", "dog"), ("dog", "cat"), ("bird", "cat", "dog")


class Boxes(Head):
    """Finds boxes, for heads that describe them."""

    required_targets = ("boxes", "labels")


def model_of(name, classes, seed, *, backbone=None, **arguments):
    torch.manual_seed(seed)
    backbone = backbone or TinyCNN(channels=(8, 8, 8))
    neck = FPN(backbone.levels, channels=8)
    cls = HEADS[name]
    known = inspect.signature(cls).parameters
    if name in ("FCN", "DeepLabV3"):
        arguments["aux_weight"] = 0.5
    if "boxes_from" in known:
        arguments["boxes_from"] = "truth"
    heads = {"head": cls(neck.levels, classes, **arguments)}
    if "boxes_from" in known:
        heads["truth"] = Boxes()
    return VisionModel(backbone, neck, heads, dict.fromkeys(heads, 1.0))


def filled(name, theirs, ours, *, named=True, **options):
    """A model with classes `ours` that starts from one with `theirs`; both."""
    source, model = model_of(name, theirs, 1), model_of(name, ours, 2)
    known = {"head": theirs} if named else {}
    origin = Origin("file.pt", source.state_dict(), known, "a model")
    lists = {"head": Classes.numbered(ours), "truth": Classes((), ())}
    fill(model, origin, lists, **options)
    return source, model


def rows_of(model, count):
    """By class, all its rows in all layers of classes; and the rows before them, of no class."""
    head, state = model.head("head"), model.state_dict()
    front, rows = [], [[] for _ in range(count)]
    for layer, each in head.class_layers.items():
        for kind in ("weight", "bias"):
            key = f"heads.head.{layer}.{kind}"
            if key not in state:  # an embedding has no bias
                continue
            tensor = state[key]
            for group in tensor.chunk(head.class_groups.get(layer, 1)):
                start = len(group) - each * count
                front.append(group[:start].flatten())
                for k in range(count):
                    first = start + k * each
                    rows[k].append(group[first : first + each].flatten())
    return torch.cat(front), [torch.cat(r) for r in rows]


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_the_layers_of_classes_are_all_that_depends_on_them(name):
    """A head that has one more such layer and does not declare it fails here."""
    head = model_of(name, AB, 0).head("head")
    two, three = (model_of(name, classes, 0).state_dict() for classes in (AB, CAB))
    assert two.keys() == three.keys()
    differ = {key.rpartition(".")[0] for key in two if two[key].shape != three[key].shape}
    assert differ == {f"heads.head.{layer}" for layer in head.class_layers}
    for layer, rows in head.class_layers.items():
        key = f"heads.head.{layer}.weight"
        assert len(three[key]) - len(two[key]) == rows * head.class_groups.get(layer, 1)


@pytest.mark.parametrize("name", WITH_CLASSES)
@pytest.mark.parametrize(
    "theirs, ours",
    [(AB, BA), (AB, CAB), (CAB, AB), (CAB, ("dog", "fox", "cat")), (("a",), ("b", "a"))],
    ids=["reordered", "more", "fewer", "others", "one"],
)
def test_rows_of_classes_go_by_name(name, theirs, ours, caplog):
    with caplog.at_level(logging.INFO, "visionkit"):
        source, model = filled(name, theirs, ours)
    fresh = model_of(name, ours, 2)
    background, rows = rows_of(model, len(ours))
    their_background, their_rows = rows_of(source, len(theirs))
    _, random_rows = rows_of(fresh, len(ours))
    assert torch.equal(background, their_background)
    for k, name_k in enumerate(ours):
        known = name_k in theirs
        wanted = their_rows[theirs.index(name_k)] if known else random_rows[k]
        assert torch.equal(rows[k], wanted), name_k
    shared = [n for n in ours if n in theirs]
    assert f"{len(shared)} class{'es' if len(shared) > 1 else ''} kept ({', '.join(shared)})" in (
        caplog.text
    )
    for what, found in (("new", set(ours) - {*theirs}), ("dropped", set(theirs) - {*ours})):
        for one in found:
            assert re.search(rf"{what} \([^)]*\b{one}\b", caplog.text)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_everything_else_is_loaded_too(name):
    source, model = filled(name, AB, BA)
    layers = tuple(f"heads.head.{layer}." for layer in model.head("head").class_layers)
    theirs = source.state_dict()
    for key, tensor in model.state_dict().items():
        assert key.startswith(layers) or torch.equal(tensor, theirs[key]), key


def test_renamed_classes_keep_their_rows(caplog):
    with caplog.at_level(logging.INFO, "visionkit"):
        source, model = filled("FCOS", AB, ("hound", "cat"), rename={"dog": "hound"})
    _, theirs = rows_of(source, 2)
    _, ours = rows_of(model, 2)
    assert torch.equal(ours[0], theirs[1]) and torch.equal(ours[1], theirs[0])
    assert "2 classes kept (hound, cat)" in caplog.text
    source, model = filled("FCOS", AB, AB, rename={"cat": "dog", "dog": "cat"})
    assert torch.equal(rows_of(model, 2)[1][0], rows_of(source, 2)[1][1])


@pytest.mark.parametrize(
    "rename, message",
    [
        ({"kat": "dog"}, "rename: 'kat' is not a class in file.pt; did you mean 'cat'?"),
        ({"cat": "doge"}, "rename: 'doge' is not a class of this model; did you mean 'dog'?"),
        ({"cat": "dog"}, "rename: gives two classes of heads.head the name 'dog'"),
    ],
)
def test_a_wrong_rename_is_an_error(rename, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        filled("FCOS", AB, AB, rename=rename)


def test_disjoint_classes_are_a_warning(caplog):
    filled("SemanticFPN", AB, ("x", "y", "z"))
    assert "3 classes new (x, y, z), 2 classes dropped (cat, dog)" in caplog.text
    assert "nothing of the classes is kept" in caplog.text and "rename:" in caplog.text


def test_rows_without_names_keep_their_place_with_a_warning(caplog):
    source, model = filled("FasterRCNN", AB, ("x", "y"), named=False)
    for mine, theirs in zip(rows_of(model, 2)[1], rows_of(source, 2)[1], strict=True):
        assert torch.equal(mine, theirs)
    assert "by position" in caplog.text
    caplog.clear()
    source, model = filled("FasterRCNN", CAB, ("x", "y"), named=False)
    assert torch.equal(rows_of(model, 2)[0], rows_of(source, 3)[0])  # the background
    assert "nothing of the classes is kept" in caplog.text


def test_rows_of_other_anchors_are_not_taken():
    """Nine anchors of two classes have as many rows as six of three."""
    source = model_of("RetinaNet", CAB, 1, anchor_sizes=[[8, 16], [16, 32], [32, 64], [64, 128]])
    model = model_of("RetinaNet", AB, 2)
    key = "heads.head.head.classification_head.cls_logits.weight"
    assert source.state_dict()[key].shape == model.state_dict()[key].shape
    before = model.state_dict()[key].clone()
    origin = Origin("file.pt", source.state_dict(), {"head": CAB}, "a model")
    lists = {"head": Classes.numbered(AB)}
    with pytest.raises(CheckpointError, match="tensors fit the model"):
        fill(model, origin, lists)
    fill(model, origin, lists, partial=True)
    assert torch.equal(model.state_dict()[key], before)


class Custom(Head):
    """A head that does not declare its layers of classes."""

    required_targets = ("class_id",)
    class_key = "class_id"

    def __init__(self, levels, classes):
        super().__init__()
        self.linear = torch.nn.Linear(8, len(classes))


def test_a_custom_head_without_declared_layers_is_a_warning(caplog):
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        backbone = TinyCNN(channels=(8,))
        models.append(VisionModel(backbone, None, {"head": Custom({}, AB)}, {"head": 1.0}))
    origin = Origin("file.pt", models[0].state_dict(), {"head": AB}, "a model")
    fill(models[1], origin, {"head": Classes.numbered(BA)})
    assert "by position" in caplog.text


# --- other architectures -------------------------------------------------------------------------


def saved(model, path, **more):
    torch.save({**model.state_dict(), **more}, path)
    return str(path)


def load(model, path, classes=AB, **options):
    load_model_weights(model, path, {"head": Classes.numbered(classes)}, **options)


def test_a_deeper_network_is_another_architecture(tmp_path):
    deep = model_of("FCOS", AB, 1, num_convs=3)
    shallow = model_of("FCOS", AB, 2, num_convs=2)
    before = {key: t.clone() for key, t in shallow.state_dict().items()}
    for model, source in ((shallow, deep), (deep, shallow)):
        with pytest.raises(CheckpointError, match=r"\d+ of \d+ tensors fit the model") as error:
            load(model, saved(source, tmp_path / "x.pt"))
        assert "classification_head.conv." in str(error.value)
        assert "partial_weights: true" in str(error.value)
    assert all(torch.equal(t, before[key]) for key, t in shallow.state_dict().items())


def test_partial_weights_load_what_fits_and_name_what_is_random(tmp_path, caplog):
    shallow, deep = model_of("FCOS", AB, 1, num_convs=1), model_of("FCOS", AB, 2, num_convs=2)
    load(deep, saved(shallow, tmp_path / "x.pt"), partial=True)
    name = "heads.head.head.classification_head.conv.0.weight"
    assert torch.equal(deep.state_dict()[name], shallow.state_dict()[name])
    assert "partly loaded, 8 tensors at random" in caplog.text  # conv and norm, in both branches
    assert "8 missing: heads.head.head.classification_head.conv.3.weight" in caplog.text


def test_parts_that_the_model_does_not_have_are_told_and_dropped(tmp_path, caplog):
    model, mask = model_of("FasterRCNN", AB, 1), model_of("MaskRCNN", AB, 2)
    load(model, saved(mask, tmp_path / "mask.pt"))
    assert torch.equal(model.state_dict()["neck.inner_blocks.0.0.bias"],
                       mask.state_dict()["neck.inner_blocks.0.0.bias"])  # fmt: skip
    assert "not in the model: heads.head.roi_heads.mask_head" in caplog.text
    with pytest.raises(CheckpointError, match=r"12 missing: heads\.head\.roi_heads\.mask_head"):
        load(mask, saved(model, tmp_path / "boxes.pt"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_wrapped_state_dicts_are_understood(prefix, key, tmp_path):
    source, model = model_of("FCOS", AB, 1, num_convs=0), model_of("FCOS", AB, 2, num_convs=0)
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "x.pt")
    load(model, str(tmp_path / "x.pt"))
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


# --- values --------------------------------------------------------------------------------------

NAME = "neck.inner_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda x: x.new_full(x.shape, torch.nan), "has NaN or infinite values"),
        (lambda x: x.new_full(x.shape, -torch.inf), "has NaN or infinite values"),
        (lambda x: x.to(torch.int32), "is int32, not floating-point"),
        (lambda x: x.to(torch.complex64), "is complex64, not floating-point"),
        (lambda x: x.to("meta"), "has no plain values"),
        (lambda x: x.to_sparse(), "has no plain values"),
    ],
)
def test_tensors_without_finite_numbers_are_refused(broken, says, tmp_path, caplog):
    source, model = model_of("FCOS", AB, 1, num_convs=0), model_of("FCOS", AB, 2, num_convs=0)
    before, state = model.state_dict()[NAME].clone(), source.state_dict()
    layer = "heads.head.head.classification_head.cls_logits.weight"
    torch.save(state | {NAME: broken(state[NAME])}, tmp_path / "x.pt")
    torch.save(state | {layer: broken(state[layer])}, tmp_path / "layer.pt")
    for file, name in (("x.pt", NAME), ("layer.pt", layer)):
        with pytest.raises(CheckpointError, match=re.escape(f"1 unusable: {name} ({says})")):
            load(model, str(tmp_path / file))
    load(model, str(tmp_path / "x.pt"), partial=True)
    assert torch.equal(model.state_dict()[NAME], before)
    assert "partly loaded, 1 tensor at random" in caplog.text


def test_checkpoints_of_torchvisions_training_scripts_load(tmp_path):
    """They have the options, an argparse.Namespace, and the state of optimizer and schedule."""
    source, model = model_of("FCOS", AB, 1, num_convs=0), model_of("FCOS", AB, 2, num_convs=0)
    optimizer = torch.optim.SGD(source.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[8, 11])
    options = argparse.Namespace(lr=0.02, lr_steps=[8, 11], device=torch.device("cpu"), ema=None)
    state = {"model": source.state_dict(), "optimizer": optimizer.state_dict(),
             "lr_scheduler": schedule.state_dict(), "args": options, "epoch": 3}  # fmt: skip
    for zipped in (True, False):
        torch.save(state, tmp_path / "model_3.pth", _use_new_zipfile_serialization=zipped)
        model = model_of("FCOS", AB, 2, num_convs=0)
        load(model, str(tmp_path / "model_3.pth"))
        assert torch.equal(model.state_dict()[NAME], source.state_dict()[NAME])
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


class Touch:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_options_with_objects_are_refused_and_nothing_runs(tmp_path):
    source = model_of("FCOS", AB, 1, num_convs=0)
    options = argparse.Namespace(lr=Touch(tmp_path / "ran"))
    torch.save({"model": source.state_dict(), "args": options}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"cannot be read as weights.*state_dict alone"):
        load(source, str(tmp_path / "x.pth"))
    assert not (tmp_path / "ran").exists()


def test_as_many_outputs_as_torchvisions_files_do_not_make_their_classes(tmp_path, caplog):
    """A file for 20 classes of one's own, of which two have names that Pascal VOC has too."""
    ours = ("dog", "person", *(f"thing {number}" for number in range(18)))
    net = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=21
    )
    path = saved(net, tmp_path / "x.pth")
    model = build_model(
        load_config("ssdlite320_mobilenet_v3_large", {"weights": path}),
        {"detection": Classes.numbered(ours)},
    )
    assert "20 classes kept" in caplog.text and "by position" in caplog.text
    own = model.head("detection").head["classification_head"].module_list[0][1]
    assert torch.equal(own.bias, net.head.classification_head.module_list[0][1].bias)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"freeze_at": 2}, "freeze_at=2 keeps .* or backbone.freeze_at=0$"),
        ({"norm": "frozen", "freeze_at": 1}, "or backbone.freeze_at=0 backbone.norm=batch$"),
        ({"norm": "batch"}, None),
    ],
)
def test_random_layers_that_never_change_are_a_warning(settings, says, caplog):
    config = load_config("detection", {"backbone": {"type": "Torchvision", **settings}})
    build_model(config, {"detection": Classes.numbered(AB)})
    found = [record.getMessage() for record in caplog.records if "random" in record.getMessage()]
    assert len(found) == bool(says) and all(re.search(says, message) for message in found)
    caplog.clear()
    build_model(config, {"detection": Classes.numbered(AB)}, pretrained=False)
    assert not caplog.records
