"""Semantic maps, and the heads that predict them."""

import pytest
import torch
import torch.nn.functional as F
from test_semantic import CLASSES, HEADS, LEVELS, batch_of, features_of, truth

from support.losses import losses_of, value
from visionkit.errors import ConfigError
from visionkit.models.heads import pixel_loss
from visionkit.models.heads.pixel_loss import semantic_map
from visionkit.models.heads.semantic import ASPP, FCN, LRASPP, DeepLabV3, SemanticFPN
from visionkit.types import Level

# --- semantic maps ---


def test_semantic_map_is_the_argmax_of_interpolated_logits():
    logits = torch.randn(5, 8, 12)
    expected = F.interpolate(logits[None], (64, 96), mode="bilinear")[0].argmax(0)
    found = semantic_map(logits, (64, 96), (64, 96), (64, 96))
    assert found.dtype == torch.uint8
    assert (found == expected).float().mean() > 0.999  # ties apart
    expected = F.interpolate(logits[None], (150, 41), mode="bilinear")[0].argmax(0)
    found = semantic_map(logits, (64, 96), (64, 96), (150, 41))
    assert (found == expected).float().mean() > 0.999


def test_semantic_map_of_a_padded_image_covers_the_image_alone():
    """An image of 20x24 px in a batch of 32x32: cells of 4 px, of which 5x6 are its own."""
    labels = torch.randint(4, (5, 6))
    logits = torch.full((4, 8, 8), -1.0)
    logits[:, :5, :6] = F.one_hot(labels, 4).permute(2, 0, 1).float()
    found = semantic_map(logits, (20, 24), (32, 32), (5, 6))
    assert torch.equal(found.long(), labels)
    found = semantic_map(logits, (20, 24), (32, 32), (50, 60))
    assert torch.equal(found[5::10, 5::10].long(), labels)


def test_semantic_map_does_not_depend_on_the_chunks(monkeypatch):
    logits = torch.randn(7, 8, 8)
    whole = semantic_map(logits, (30, 29), (32, 32), (83, 61))
    monkeypatch.setattr(pixel_loss, "CHUNK", 1000)
    assert torch.equal(semantic_map(logits, (30, 29), (32, 32), (83, 61)), whole)


# --- the heads ---


@pytest.mark.parametrize("head_class", HEADS)
def test_predictions_are_maps_of_the_original_size(head_class):
    head = head_class(LEVELS, CLASSES).eval()
    batch = batch_of(
        {"size": (20, 32), "orig_size": (61, 97)}, {"size": (32, 9), "orig_size": (16, 5)}
    )
    found = head.predict(features_of(2), batch)
    assert [tuple(p["semantic"].shape) for p in found] == [(61, 97), (16, 5)]
    assert all(p["semantic"].dtype == torch.uint8 and p["semantic"].max() < 3 for p in found)


@pytest.mark.parametrize("head_class", HEADS)
def test_a_batch_of_one_can_be_trained(head_class):
    head = head_class(LEVELS, CLASSES, dice=1.0)
    losses = losses_of(head, features_of(1), batch_of({"semantic": truth()}))
    sum(losses.values()).backward()
    assert losses.keys() == {"semantic", "dice"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("head_class", [FCN, DeepLabV3])
def test_the_auxiliary_classifier_reads_the_level_before(head_class):
    head = head_class(LEVELS, CLASSES, level="p4", aux_weight=0.5).eval()
    features, batch = features_of(2), batch_of({"semantic": truth()}, {"semantic": truth()})
    losses = losses_of(head, features, batch)
    aux = head.aux_classifier(features["p3"])
    aux_loss = value(head.pixel_loss(aux, batch)["semantic"])
    torch.testing.assert_close(losses["aux"], 0.5 * aux_loss)
    assert not hasattr(head_class(LEVELS, CLASSES), "aux_classifier")
    features["p3"] += 1  # predictions do not ask it
    assert torch.equal(
        head.predict(features, batch)[0]["semantic"],
        head.predict({"p4": features["p4"]}, batch)[0]["semantic"],
    )


@pytest.mark.parametrize("head_class", HEADS)
def test_unlabeled_batches_reach_every_parameter_with_zero(head_class):
    head = head_class(LEVELS, CLASSES, dice=1.0)
    losses = losses_of(head, features_of(2), batch_of({}, {}))
    sum(losses.values()).backward()
    assert all(not loss and loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_default_level_is_the_last_that_is_fine_enough():
    assert FCN(LEVELS, CLASSES).level == "p4"
    dilated = {"c3": Level(8, 8), "c4": Level(8, 8), "c5": Level(8, 8)}
    assert DeepLabV3(dilated, CLASSES).level == "c5"
    assert FCN({"c5": Level(8, 32)}, CLASSES).level == "c5"


def test_semantic_fpn_sums_all_levels_at_the_finest():
    head = SemanticFPN({**LEVELS, "p6": Level(8, 64)}, CLASSES)
    assert head.inputs == ["p2", "p3", "p4", "p5"]
    assert [len(head.branches[name]) for name in head.inputs] == [1, 1, 2, 3]
    features = features_of(1)
    logits = head(features)["logits"]
    assert logits.shape == (1, 3, 8, 8)
    for name in head.inputs:
        changed = {**features, name: features[name] * 2 + 1}
        assert not torch.equal(head(changed)["logits"], logits)


def test_aspp_pools_over_the_image_alone():
    aspp = ASPP(8, 4, rates=(1,), dropout=0.0, norm="batch").eval()
    x = torch.randn(1, 8, 4, 4)
    valid = torch.zeros(1, 4, 4, dtype=torch.bool)
    valid[:, :2, :2] = True
    mean = aspp.convs[-1](x[:, :, :2, :2].mean((2, 3), keepdim=True)).expand(-1, -1, 4, 4)
    local = [conv(x) for conv in aspp.convs[:-1]]
    expected = aspp.project(torch.cat([*local, mean], 1))
    torch.testing.assert_close(aspp(x, valid), expected)


def test_lraspp_weights_the_coarse_map_by_the_mean_of_the_image_alone():
    """An image of 20x32 px in a batch of 32x32: one and a quarter rows of cells of 16 px."""
    head = LRASPP(LEVELS, CLASSES, channels=4).eval()
    assert (head.level, head.low_level) == ("p4", "p3")
    features, parts = features_of(1), head.classifier
    high, low = features["p4"], features["p3"]
    for size, rows in (((16, 32), 1), ((20, 32), 2)):
        mean = high[:, :, :rows].mean((2, 3), keepdim=True)
        scaled = parts["cbr"](high) * torch.sigmoid(parts["scale"][1](mean))
        x = F.interpolate(scaled, (4, 4), mode="bilinear")
        expected = parts["low_classifier"](low) + parts["high_classifier"](x)
        found = head(features, torch.tensor([size]))["logits"]
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(head(features)["logits"], expected)
    assert LRASPP({"c5": Level(8, 32)}, CLASSES).low_level == "c5"
    assert LRASPP(LEVELS, CLASSES, low_level="p2").low_level == "p2"


def test_impossible_arguments_are_an_error():
    with pytest.raises(ConfigError, match="unknown class 'cta'; did you mean 'cat'"):
        FCN(LEVELS, CLASSES, class_weights={"cta": 2.0})
    with pytest.raises(ConfigError, match="feature map 'c9' not found"):
        DeepLabV3(LEVELS, CLASSES, level="c9")
    with pytest.raises(ConfigError, match="feature map 'c9' not found"):
        LRASPP(LEVELS, CLASSES, low_level="c9")
    with pytest.raises(ConfigError, match="inputs: got"):
        SemanticFPN(LEVELS, CLASSES, inputs=["p9"])
    for head_class in HEADS:
        with pytest.raises(ConfigError, match="got 256; semantic maps have 8 bits"):
            head_class(LEVELS, [str(k) for k in range(256)])
