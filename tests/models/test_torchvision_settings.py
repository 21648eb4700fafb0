"""The shipped configs of torchvision's detectors set what torchvision's builders set for published
weights: names and frozen parameters, norms, sizes of images, anchors, thresholds and counts."""

import pytest
import torch
from torchvision.models import detection as tv
from torchvision.models import get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from support.paths import CONFIGS
from visionkit.config import load_config
from visionkit.models.backbones.norm import FrozenBatchNorm
from visionkit.models.build import build_model
from visionkit.models.heads.rcnn.roi_heads import OFFSET_WEIGHTS
from visionkit.types import Classes

MODELS = sorted(
    path.stem for path in (CONFIGS / "torchvision").glob("*.yaml") if "_fpn" in path.stem
)
FILLS = ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "trunc_normal_")


@pytest.fixture
def published(request, monkeypatch):
    """The model as torchvision builds it for its published weights, without them, and ours."""
    name = request.param
    weights = get_model_weights(name).DEFAULT
    for fill in FILLS:  # the values do not matter, and take long
        monkeypatch.setattr(torch.nn.init, fill, lambda tensor, *args, **kwargs: tensor)
    with monkeypatch.context() as patch:
        patch.setattr(type(weights), "get_state_dict", lambda *args, **kwargs: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *args, **kwargs: None)
        theirs = getattr(tv, name)(weights=weights)
    config = load_config(CONFIGS / "torchvision" / f"{name}.yaml")
    (head,) = config.heads
    slots = len(weights.meta["categories"]) - hasattr(theirs, "roi_heads")
    names = tuple(f"class {i}" for i in range(slots))
    return theirs, config, build_model(config, {head: Classes.numbered(names)})


def our_names(values, head):
    return {
        name.replace("backbone.fpn.", "neck.")
        if name.startswith("backbone.")
        else f"heads.{head}.{name}": value
        for name, value in values.items()
    }


def trainable(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def norms(model):
    kinds = torch.nn.BatchNorm2d, FrozenBatchNorm2d, FrozenBatchNorm, torch.nn.GroupNorm
    return {
        name: (getattr(norm, "num_groups", None), "Frozen" in type(norm).__name__, norm.eps)
        for name, norm in model.named_modules()
        if isinstance(norm, kinds)
    }


@pytest.mark.parametrize("published", MODELS, indirect=True)
def test_parameters_norms_and_sizes(published):
    theirs, config, ours = published
    (head,) = config.heads
    assert trainable(ours) == our_names(trainable(theirs), head)
    assert norms(ours) == our_names(norms(theirs), head)
    transform = theirs.transform
    assert config.data["main"].image_size == (*transform.min_size, transform.max_size)
    scale = 1 / (255 * torch.tensor(transform.image_std))
    assert torch.allclose(ours.backbone.normalize.scale.flatten(), scale)
    shift = -torch.tensor(transform.image_mean) / torch.tensor(transform.image_std)
    assert torch.allclose(ours.backbone.normalize.shift.flatten(), shift)


def their_sampling(part):
    sampler, matcher = part.fg_bg_sampler, part.proposal_matcher
    return [
        *(sampler.batch_size_per_image, sampler.positive_fraction),
        *(matcher.high_threshold, matcher.low_threshold, matcher.allow_low_quality_matches),
    ]


def our_sampling(part):
    sampler, matcher = part.sampler, part.matcher
    return [
        *(sampler.batch_size, sampler.positive_fraction),
        *(matcher.fg_iou, matcher.bg_iou, matcher.best_for_each),
    ]


@pytest.mark.parametrize("published", [m for m in MODELS if "rcnn" in m], indirect=True)
def test_values_of_the_two_stage_models(published):
    theirs, config, ours = published
    rpn, roi_heads = theirs.rpn, theirs.roi_heads
    head = ours.head(*config.heads)
    assert torch.equal(head.rpn.anchors.shapes, torch.stack(rpn.anchor_generator.cell_anchors))
    assert our_sampling(head.rpn) == their_sampling(rpn)
    assert our_sampling(head.roi_heads) == their_sampling(roi_heads)
    for mode, top in (("training", head.rpn.train_top), ("testing", head.rpn.test_top)):
        assert top == (rpn._pre_nms_top_n[mode], rpn._post_nms_top_n[mode])
    assert (head.rpn.nms_iou, head.rpn.score_threshold) == (rpn.nms_thresh, rpn.score_thresh)
    found = head.roi_heads
    assert (found.score_threshold, found.nms_iou, found.max_detections, found.nms) == (
        *(roi_heads.score_thresh, roi_heads.nms_thresh, roi_heads.detections_per_img),
        "class",
    )
    assert roi_heads.box_coder.weights == OFFSET_WEIGHTS
    pools = {"box_roi_pool": found.pool}
    if roi_heads.has_mask():
        pools["mask_roi_pool"] = head.mask_pool
    for name, pool in pools.items():
        their_pool = getattr(roi_heads, name)
        assert their_pool.output_size == (pool.size, pool.size)
        assert their_pool.sampling_ratio == pool.sampling_ratio
        levels = theirs.backbone.body.return_layers.values()  # torchvision skips names it lacks
        assert len(pool.names) == len({*their_pool.featmap_names} & {*levels})


@pytest.mark.parametrize("published", [m for m in MODELS if "rcnn" not in m], indirect=True)
def test_values_of_the_one_stage_models(published):
    theirs, config, ours = published
    head = ours.head(*config.heads)
    assert (head.score_threshold, head.nms_iou, head.pre_nms_top_n, head.max_detections) == (
        *(theirs.score_thresh, theirs.nms_thresh),
        *(theirs.topk_candidates, theirs.detections_per_img),
    )
    assert head.nms == "class"
    if hasattr(theirs, "center_sampling_radius"):
        assert head.center_radius == theirs.center_sampling_radius
        return
    assert torch.equal(head.anchors.shapes, torch.stack(theirs.anchor_generator.cell_anchors))
    matcher = theirs.proposal_matcher
    assert (head.matcher.fg_iou, head.matcher.bg_iou) == (
        *(matcher.high_threshold, matcher.low_threshold),
    )
    assert head.matcher.best_for_each == matcher.allow_low_quality_matches
    assert head.box_loss == theirs.head.regression_head._loss_type
