"""What onnxruntime computes from an exported model is what the model computes: for every head, any
batch and size, with and without padding. A new head is tested by being in the package."""

import logging

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from support.onnx_sessions import assert_same, eager, images, keep_few_objects, run, session
from visionkit.engine.export.graph import exported_program, to_onnx
from visionkit.errors import ConfigError
from visionkit.models import heads
from visionkit.models.backbones.efficientnet_lite import EfficientNetLite0
from visionkit.models.backbones.plain import MLP, TinyCNN
from visionkit.models.backbones.timm import Timm
from visionkit.models.head import Head
from visionkit.models.model import VisionModel
from visionkit.models.necks.fpn import FPN
from visionkit.types import Level

CLASSES = ("class 0", "class 1", "class 2")
ATTRIBUTES = ("color: red", "color: blue", "covered")
FEW = {  # fewer rows and layers, and objects from random weights
    "rpn_pre_nms_test": 60,
    "rpn_post_nms_test": 40,
    "box_hidden": 16,
    "mask_pool_size": 7,
    "mask_channels": 8,
    "mask_convs": 1,
    "hidden": 16,
    "num_convs": 1,
    "pre_nms_top_n": 50,
    "max_detections": 30,
    "channels": 8,
    "rates": (2,),
}
BATCHES = {  # (N, H, W), and by how much the second and later images are smaller
    "one": ((1, 64, 96), (0, 0)),
    "three": ((3, 64, 64), (7, 11)),
    "smallest": ((2, 32, 32), (3, 30)),
    "tall": ((1, 320, 32), (0, 0)),
}


def build(types, backbone=None, neck=True):
    """A model with a head of each type, by its name; random norms and spread-out scores."""
    torch.manual_seed(0)
    backbone = backbone or TinyCNN(channels=(8, 12), norm="batch")
    levels = backbone.levels
    neck = FPN(levels, channels=8, extra_levels="pool") if neck else None
    built = {}
    for name, cls in types.items():
        classes = {None: (), "attributes": ATTRIBUTES}.get(cls.class_key, CLASSES)
        known = cls.__init__.__kwdefaults__ or {}
        if cls is heads.MaskRCNN:
            known |= heads.FasterRCNN.__init__.__kwdefaults__
        if issubclass(cls, heads.FCOS.__base__):
            known |= heads.FCOS.__base__.__init__.__kwdefaults__
        chosen = {key: value for key, value in FEW.items() if key in known and key != "hidden"}
        if cls is heads.Attributes:
            chosen = {"boxes_from": next(iter(types)), "hidden": 16}
        built[name] = cls((neck or backbone).levels, classes, **chosen)
    model = VisionModel(backbone, neck, built, dict.fromkeys(built, 1.0)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    for parameter in model.heads.parameters():  # or all scores are nearly the same
        nn.init.normal_(parameter, std=0.1)
    return model


def types_of(name):
    """A head of that class; attributes on top of another one."""
    cls = getattr(heads, name)
    return {"objects": heads.TaskAligned, "head": cls} if name == "Attributes" else {"head": cls}


QUICK = ("Classification", "TaskAligned")  # the others take 10 to 30 s to export
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in heads.__all__ if name not in QUICK]


@pytest.fixture(scope="module", params=[*QUICK, *SLOW])
def exported(request):
    model = build(types_of(request.param))
    keep_few_objects(model, *images(*BATCHES["three"]))
    return model, session(to_onnx(exported_program(model, [*model.heads])))


@pytest.mark.parametrize("batch", BATCHES)
def test_onnxruntime_computes_the_same(exported, batch):
    model, run_session = exported
    pixels, sizes = images(*BATCHES[batch])
    found = run(run_session, images=pixels, sizes=sizes)
    assert_same(eager(model, pixels, sizes), found, "head")
    # Without sizes all of each image is valid, and a single size is that of all.
    whole = torch.tensor([pixels.shape[-2:]] * len(pixels))
    found = run(run_session, images=pixels)
    assert_same(eager(model, pixels, whole), found, "head")
    found = run(run_session, images=pixels, sizes=sizes[-1:])
    assert_same(eager(model, pixels, sizes[-1:].expand(len(pixels), 2)), found, "head")


@pytest.mark.slow
@pytest.mark.parametrize(
    "types",
    [
        {"objects": heads.FCOS},
        pytest.param(
            {"objects": heads.MaskRCNN, "more": heads.Attributes},
            marks=pytest.mark.slow,  # a minute: both stages, three times
        ),
    ],
)
def test_images_without_objects(types):
    """One next to an image with objects, and all of a batch. Of regions that are none, no rows are
    computed."""
    model = build(types)
    head = model.head("objects")
    second = head.roi_heads if "more" in types else head
    second.score_threshold = 0.0
    pixels, sizes = images((2, 64, 64))
    best = eager(model, pixels, sizes)["objects_scores"][:, 0]
    for threshold in (float(best.mean()), 1.0):
        second.score_threshold = threshold
        program = exported_program(model, [*types], size=(64, 64), batch=2)
        found = run(session(to_onnx(program)), images=pixels, sizes=sizes)
        assert (found["objects_count"] > 0).tolist() == (best > threshold).tolist()
        for name in types:
            assert_same(eager(model, pixels, sizes), found, name)


@pytest.mark.parametrize("batch", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_a_fixed_size(batch):
    model = build({"objects": heads.TaskAligned, "scene": heads.Classification})
    pixels, sizes = images((2, 64, 96), (9, 5))
    keep_few_objects(model, pixels, sizes)
    proto = to_onnx(exported_program(model, ["objects", "scene"], size=(64, 96), batch=batch))
    (of_images,) = [value for value in proto.graph.input if value.name == "images"]
    shape = [d.dim_value or d.dim_param for d in of_images.type.tensor_type.shape.dim]
    assert shape == [batch or "batch", 3, 64, 96]
    run_session = session(proto)
    for count in (2,) if batch else (1, 2):
        found = run(run_session, images=pixels[:count], sizes=sizes[:count])
        for head in model.heads:
            assert_same(eager(model, pixels[:count], sizes[:count]), found, head)


@pytest.mark.slow
def test_the_features_are_computed_once_for_all_heads():
    model = build({"scene": heads.Classification, "place": heads.Embedding, "map": heads.FCN})
    convs = {}
    for chosen in (["scene"], ["scene", "place"], ["place", "scene", "map"]):
        graph = to_onnx(exported_program(model, chosen, size=(32, 32), batch=1)).graph
        convs[len(chosen)] = sum(node.op_type == "Conv" for node in graph.node)
        outputs = [output.name for output in graph.output]
        assert [name.partition("_")[0] for name in outputs] == sorted(
            (name.partition("_")[0] for name in outputs), key=chosen.index
        )
    assert convs[1] == convs[2] == convs[3] - 2


@pytest.mark.slow
def test_raw_outputs_are_those_of_forward():
    model = build({"objects": heads.TaskAligned, "scene": heads.Classification})
    program = exported_program(model, ["objects", "scene"], size=(64, 64), batch=2, decode="raw")
    found = run(session(to_onnx(program)), images=(pixels := images((2, 64, 64))[0]))
    whole = torch.tensor([[64, 64]] * 2)
    with torch.no_grad():
        features = model.neck(model.backbone(pixels, whole))
        forward = {name: model.head(name)(features, whole) for name in model.heads}
    names = [f"{head}_{key}" for head, outputs in forward.items() for key in outputs]
    assert [*found] == names and "scene_logits" in names
    for name in ("scene_logits", "objects_scores", "objects_boxes"):
        head, _, key = name.partition("_")
        np.testing.assert_allclose(found[name], forward[head][key], atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_the_file_is_clean(capfd):
    """Nothing is printed, no path of this machine is inside, and the model stays as it is."""
    model = build({"scene": heads.Classification})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    proto = to_onnx(exported_program(model, ["scene"]))
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET
    text = proto.SerializeToString()
    assert b"/visionkit" not in text and b".py" not in text
    sizes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert sizes == {
        "images": ["batch", 3, "32*h", "32*w"],
        "sizes": ["1 or batch", 2],
        "scene_probs": ["batch", 3],
    }
    onnx.checker.check_model(proto, full_check=True)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_perceptron_takes_images_of_its_size_with_their_padding():
    model = build({"digit": heads.Classification}, backbone=MLP(size=28), neck=False)
    run_session = session(to_onnx(exported_program(model, ["digit"])))
    pixels, _ = images((2, 32, 32))
    sizes = torch.tensor([[28, 28]] * 2)
    assert_same(eager(model, pixels, sizes), run(run_session, images=pixels, sizes=sizes), "digit")


class Looping(TinyCNN):
    def forward(self, images, sizes=None):
        for image, (h, w) in zip(images, sizes, strict=True):
            image[:, h:] = w
        return super().forward(images, sizes)


class Custom(Head):
    """Has no `postprocess`."""

    required_targets = ("boxes",)
    levels: dict[str, Level]

    def __init__(self, levels, classes):
        super().__init__()
        self.level = next(iter(levels))

    def forward(self, features, sizes=None):
        return {"mean": features[self.level].mean((2, 3))}


class Branching(Custom):
    def forward(self, features, sizes=None):
        found = features[self.level].mean((2, 3))
        return {"mean": found if found.sum() > 0 else -found}

    def postprocess(self, outputs, size):
        return outputs


def test_what_torch_cannot_export_is_named():
    model = build({"scene": heads.Classification}, backbone=Looping(channels=(8, 12)))
    with pytest.raises(ConfigError, match=r"^backbone: torch cannot export it: .* --batch N$"):
        exported_program(model, ["scene"])
    model = build({"scene": heads.Classification, "own": Branching})
    with pytest.raises(ConfigError, match=r"^heads\.own: torch cannot export it: ") as caught:
        exported_program(model, ["scene", "own"])
    assert "\n" not in str(caught.value)


def test_a_custom_head_exports_its_forward():
    model = build({"scene": heads.Classification, "own": Custom})
    with pytest.raises(ConfigError, match=r"^heads\.own: it has no `postprocess\(\)`; .*raw"):
        exported_program(model, ["scene", "own"])
    program = exported_program(model, ["own"], decode="raw")
    pixels, sizes = images((3, 64, 64))
    found = run(session(to_onnx(program)), images=pixels, sizes=sizes)
    assert_same(eager(model, pixels, sizes, "raw"), found, "own")


def test_without_the_extra_the_command_to_install_it(monkeypatch):
    program = exported_program(build({"scene": heads.Classification}), ["scene"], size=(32, 32))
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"pip install .*\[onnx\]"):
        to_onnx(program)


def test_padding_before_a_stride_is_a_plain_number_in_the_graph():
    """A symbol in it would be in the sizes of all later maps: an export of minutes, not seconds."""
    model = build({"classes": heads.Classification}, EfficientNetLite0(), neck=False)
    nodes = exported_program(model, ["classes"]).graph.nodes
    padding = [node.args[1] for node in nodes if node.target is torch.ops.aten.pad.default]
    assert padding == [[0, 1, 0, 1], [0, 1, 0, 1], [1, 2, 1, 2], [0, 1, 0, 1], [1, 2, 1, 2]]


@pytest.mark.slow  # half a minute: the sizes of all maps are fractions
def test_images_that_the_backbone_pads_itself():
    """As a transformer does whose patches have 14 pixels. ONNX rounds the quotient of a negative
    number towards 0, Python down."""
    pytest.importorskip("timm")
    backbone = Timm(name="test_resnet", out_indices=[1])
    backbone._sizes = backbone._sizes._replace(multiple=56)
    model = build({"classes": heads.Classification}, backbone, neck=False)
    run_session = session(to_onnx(exported_program(model, ["classes"])))
    for pixels, sizes in (images((2, 64, 96), (3, 30)), images((1, 160, 32))):
        found = run(run_session, images=pixels, sizes=sizes)
        assert_same(eager(model, pixels, sizes), found, "classes")
