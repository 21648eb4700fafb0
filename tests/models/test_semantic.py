"""The loss of a class for every pixel: cross-entropy, Dice, and partial labels."""

import math

import pytest
import torch
import torch.nn.functional as F

from visionkit.config.components import components
from visionkit.distributed.collectives import loss_values
from visionkit.models.heads.pixel_loss import PixelLoss, at_pixels, semantic_maps
from visionkit.types import Batch, Level

LEVELS = {"p2": Level(8, 4), "p3": Level(8, 8), "p4": Level(8, 16), "p5": Level(8, 32)}
CLASSES = ["background", "cat", "dog"]
HEADS = [head for head in components("heads").values() if head.class_key == "semantic"]


def batch_of(*targets, padded=(32, 32)):
    for target in targets:
        target.setdefault("size", padded)
        target.setdefault("orig_size", target["size"])
    return Batch(torch.zeros(len(targets), 3, *padded, dtype=torch.uint8), list(targets))


def features_of(count, padded=(32, 32)):
    return {
        name: torch.randn(count, level.channels, *(side // level.stride for side in padded))
        for name, level in LEVELS.items()
    }


def truth(h=32, w=32, classes=3):
    return torch.randint(classes, (h, w), dtype=torch.uint8)


def pixel_loss(logits, *targets, classes=CLASSES, class_weights=None, dice=0.0):
    """Losses of logits that have one cell for each pixel."""
    loss = PixelLoss(classes, class_weights=class_weights, dice=dice)
    found = loss(logits, batch_of(*targets, padded=tuple(logits.shape[-2:])))
    return loss_values({"head": found})["head"]


# --- cross-entropy ---


def test_cross_entropy_by_hand():
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])  # of two pixels
    logits = probs.log().T.reshape(1, 3, 1, 2)
    losses = pixel_loss(logits, {"semantic": torch.tensor([[0, 2]], dtype=torch.uint8)})
    assert losses.keys() == {"semantic"}
    assert float(losses["semantic"]) == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)
    losses = pixel_loss(logits, {"semantic": torch.tensor([[0, 255]], dtype=torch.uint8)})
    assert float(losses["semantic"]) == pytest.approx(-math.log(0.5))


@pytest.mark.parametrize("weights", [None, {"cat": 3.0, "dog": 0.5}])
def test_cross_entropy_is_torchs_over_the_pixels_of_all_images(weights):
    logits = torch.randn(3, 3, 8, 10)
    targets = [{"semantic": truth(8, 10)}, {}, {"semantic": truth(8, 10)}]
    targets[0]["semantic"][2:5] = 255
    loss = pixel_loss(logits, *targets, class_weights=weights)["semantic"]
    labels = torch.stack([targets[0]["semantic"], targets[2]["semantic"]]).long()
    vector = torch.tensor([1.0, 3.0, 0.5]) if weights else None
    expected = F.cross_entropy(logits[[0, 2]], labels, vector, ignore_index=255)
    torch.testing.assert_close(loss, expected)


def test_the_mean_is_over_pixels_and_not_over_images():
    logits = torch.randn(2, 3, 8, 8)
    first, second = truth(8, 8), truth(8, 8)
    second[1:] = 255
    loss = pixel_loss(logits, {"semantic": first}, {"semantic": second})["semantic"]
    alone = [
        pixel_loss(logits[i : i + 1], {"semantic": labels})["semantic"]
        for i, labels in enumerate((first, second))
    ]
    torch.testing.assert_close(loss, (64 * alone[0] + 8 * alone[1]) / 72)


def test_images_of_ignored_pixels_alone_give_zero():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    losses = pixel_loss(logits, {"semantic": torch.full((4, 4), 255, dtype=torch.uint8)}, dice=1.0)
    sum(losses.values()).backward()
    assert all(not value for value in losses.values())
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_logits_are_read_at_full_resolution_as_by_interpolate():
    logits = torch.randn(3, 4, 6)
    expected = F.interpolate(logits[None], (32, 48), mode="bilinear", align_corners=False)[0]
    assert torch.equal(at_pixels(logits, (32, 48), (32, 48)), expected)
    # A smaller image: as if the grid ended where the image does.
    expected = F.interpolate(logits[None, :, :2, :4], (16, 32), mode="bilinear")[0][:, :13, :30]
    assert torch.equal(at_pixels(logits, (13, 30), (32, 48)), expected)


@pytest.mark.parametrize("head_class", HEADS)
def test_padding_takes_no_part(head_class):
    head = head_class(LEVELS, CLASSES, dice=1.0).eval()
    level = getattr(head, "level", "p2")
    # The convolutions do see the padding; what comes out of them there must not count.
    logits = head.pixel_loss
    stride = LEVELS[level].stride
    cells = torch.randn(1, 3, 64 // stride, 64 // stride)
    other = cells.clone()
    other[:, :, 32 // stride :] = 9.0
    target = {"semantic": truth(32, 64), "size": (32, 64)}
    losses = [logits(x, batch_of(dict(target), padded=(64, 64))) for x in (cells, other)]
    assert losses[0] == losses[1]
    found = [semantic_maps(x, batch_of(dict(target), padded=(64, 64))) for x in (cells, other)]
    assert torch.equal(found[0][0]["semantic"], found[1][0]["semantic"])


# --- partial labels ---


def test_marginal_loss_by_hand():
    """Only cat is labeled: background in the truth means anything but cat."""
    probs = torch.tensor([[0.5, 0.2, 0.3], [0.5, 0.2, 0.3], [0.1, 0.7, 0.2]])
    logits = probs.log().T.reshape(1, 3, 1, 3)
    target = {
        "semantic": torch.tensor([[0, 2, 1]], dtype=torch.uint8),
        "semantic_labeled": torch.tensor([False, True, False]),
    }
    loss = pixel_loss(logits, target)["semantic"]
    assert float(loss) == pytest.approx(-(2 * math.log(0.8) + math.log(0.7)) / 3)


def test_unlabeled_classes_are_not_pushed_against_each_other():
    logits = torch.randn(1, 3, 6, 6, requires_grad=True)
    target = {"semantic": truth(6, 6), "semantic_labeled": torch.tensor([False, True, False])}
    (grad,) = torch.autograd.grad(pixel_loss(logits, target)["semantic"], logits)
    background, cat, dog = grad[0]
    is_cat = target["semantic"] == 1
    assert (cat[is_cat] < 0).all() and (cat[~is_cat] > 0).all()
    # Off the cat both others rise, in proportion to what they have: their ratio stays.
    odds = (logits[0, 0] - logits[0, 2]).exp().detach()
    assert (background[~is_cat] < 0).all() and (dog[~is_cat] < 0).all()
    torch.testing.assert_close(background, odds * dog)


def test_each_image_has_its_own_labeled_classes():
    logits = torch.randn(2, 3, 5, 5)
    full = {"semantic": truth(5, 5)}
    partial = {"semantic": truth(5, 5), "semantic_labeled": torch.tensor([True, False, False])}
    both = pixel_loss(logits, full, partial)["semantic"]
    parts = [pixel_loss(logits[i : i + 1], t)["semantic"] for i, t in enumerate((full, partial))]
    torch.testing.assert_close(both, sum(parts) / 2)


@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_all_classes_labeled_is_as_without_the_key_and_none_as_unlabeled(dice):
    logits, labels = torch.randn(2, 3, 5, 5), truth(5, 5)
    plain = pixel_loss(logits, {"semantic": labels}, {}, dice=dice)
    same = {"semantic": labels, "semantic_labeled": torch.tensor([True] * 3)}
    nothing = {"semantic": truth(5, 5), "semantic_labeled": torch.tensor([False] * 3)}
    assert pixel_loss(logits, same, nothing, dice=dice) == plain


def test_unlabeled_classes_share_the_mean_of_their_weights():
    logits = torch.randn(1, 3, 5, 5)
    target = {"semantic": truth(5, 5), "semantic_labeled": torch.tensor([False, True, False])}
    loss = pixel_loss(logits, target, class_weights={"background": 2.0, "cat": 5.0, "dog": 4.0})
    others = torch.logsumexp(logits[:, [0, 2]], 1, keepdim=True)
    merged = (target["semantic"] != 1).long()[None]
    vector = torch.tensor([5.0, 3.0])
    expected = F.cross_entropy(torch.cat([logits[:, 1:2], others], 1), merged, vector)
    torch.testing.assert_close(loss["semantic"], expected)


# --- Dice ---


def naive_dice(logits, targets):
    """Loops over classes and pixels; classes that are not labeled in an image are excluded."""
    probs, scores = logits.softmax(1), []
    for k in range(logits.shape[1]):
        overlap = extent = pixels = 0.0
        for image, target in zip(probs, targets, strict=True):
            known = target.get("semantic_labeled")
            if known is not None and not known[k]:
                continue
            for y in range(image.shape[1]):
                for x in range(image.shape[2]):
                    label, p = int(target["semantic"][y, x]), float(image[k, y, x])
                    if label == 255:
                        continue
                    overlap += p * (label == k)
                    extent += p + (label == k)
                    pixels += label == k
        if pixels:
            scores.append(1 - 2 * overlap / extent)
    return sum(scores) / len(scores)


def test_dice_is_that_of_loops():
    logits = torch.randn(2, 4, 5, 6)
    targets = [{"semantic": truth(5, 6)}, {"semantic": truth(5, 6)}]  # class 3 does not occur
    targets[0]["semantic"][0] = 255
    targets[1]["semantic_labeled"] = torch.tensor([False, True, False, True])
    losses = pixel_loss(logits, *targets, classes=[*CLASSES, "emu"], dice=0.5)
    assert float(losses["dice"]) == pytest.approx(0.5 * naive_dice(logits, targets), abs=1e-6)


def test_dice_of_a_perfect_map_is_zero():
    labels = truth(6, 6)
    logits = 50.0 * F.one_hot(labels.long(), 3).permute(2, 0, 1)[None].float()
    assert float(pixel_loss(logits, {"semantic": labels}, dice=1.0)["dice"]) < 1e-6
