"""The attributes head: a loop as the reference of its loss, and what takes no part in it."""

import math

import pytest
import torch

from support.losses import losses_of
from visionkit.errors import ConfigError
from visionkit.models.heads.attributes import Attributes, jittered, sample_objects
from visionkit.ops.roi_align import flatten_boxes
from visionkit.types import Batch, Level

LEVELS = {"fine": Level(8, 8), "coarse": Level(8, 16)}
CLASSES = ["color=blue", "covered", "color=red", "holds:cup", "holds:pen"]  # color not side by side
NAN = math.nan


def make_target(boxes, attributes, *, iscrowd=None, size=(64, 64), orig_size=(128, 256)):
    target = {
        "image_id": 1,
        "size": size,
        "orig_size": orig_size,
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "attributes": torch.tensor(attributes, dtype=torch.float32).view(-1, len(CLASSES)),
    }
    if iscrowd is not None:
        target["iscrowd"] = torch.tensor(iscrowd)
    return target


def make_batch(*targets):
    return Batch(torch.zeros(len(targets), 3, 64, 64, dtype=torch.uint8), list(targets))


def random_features(count=2):
    return {
        name: torch.randn(count, level.channels, 64 // level.stride, 64 // level.stride)
        for name, level in LEVELS.items()
    }


def make_head(**arguments):
    return Attributes(
        LEVELS, CLASSES, boxes_from="objects", **{"hidden": 32, "pool_size": 3, **arguments}
    )


def two_images():
    return make_batch(
        make_target(
            [[4, 4, 30, 30], [30, 20, 60, 60], [0, 0, 64, 64]],
            [[0, 1, 1, NAN, 0], [NAN, NAN, NAN, 1, 0], [1, 1, 0, 1, 1]],
            iscrowd=[False, False, True],
        ),
        make_target(
            [[10, 10, 20, 40], [5, 5, 50, 40], [30, 3, 60, 20]],
            [[1, 0, 0, NAN, NAN], [1, NAN, 0, NAN, 1], [NAN] * 5],
        ),
    )


def naive_loss(logits, truth):
    """Answer by answer, in plain Python."""
    color, others = [], []
    for row, known in zip(logits.tolist(), truth.tolist(), strict=True):
        if 1 in (known[0], known[2]):
            total = math.exp(row[0]) + math.exp(row[2])
            color.append(-math.log(math.exp(row[0 if known[0] == 1 else 2]) / total))
        for column in (1, 3, 4):
            if not math.isnan(known[column]):
                yes = 1 / (1 + math.exp(-row[column]))
                others.append(-math.log(yes if known[column] == 1 else 1 - yes))
    return sum(color) / len(color) + sum(others) / len(others)


def loss_of(head, features, batch):
    """The sum of all terms."""
    return sum(losses_of(head, features, batch).values())


def test_the_loss_is_that_of_a_loop_over_what_is_known():
    head, features, batch = make_head(jitter=0.0), random_features(), two_images()
    loss = loss_of(head, features, batch)
    objects = [batch.targets[0]["boxes"][:2], batch.targets[1]["boxes"][:2]]  # no crowd, no unknown
    truth = torch.cat([target["attributes"][:2] for target in batch.targets])
    logits = head.logits(features, *flatten_boxes(objects))
    assert loss.item() == pytest.approx(naive_loss(logits, truth), rel=1e-5)
    assert loss.dtype == torch.float32 and loss.shape == ()


def test_a_hand_worked_loss():
    """All logits zero: ln 2 for the choice between two colors, ln 2 for each yes or no."""
    head = make_head()
    torch.nn.init.zeros_(head.linear.weight)
    torch.nn.init.zeros_(head.linear.bias)
    loss = loss_of(head, random_features(), two_images())
    assert loss.item() == pytest.approx(2 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("case", ["no boxes", "unlabeled", "nothing known", "only crowds"])
def test_without_labels_the_loss_is_zero_and_reaches_every_parameter(case):
    batch = make_batch(make_target([[4, 4, 30, 30]], [0, 1, 1, 0, 0]), make_target([], []))
    first = batch.targets[0]
    if case == "no boxes":
        batch.targets[0] = make_target([], [])
    elif case == "unlabeled":
        del first["attributes"]
    elif case == "nothing known":
        first["attributes"] *= NAN
    else:
        first["iscrowd"] = torch.tensor([True])
    head = make_head()
    loss = loss_of(head, random_features(), batch)
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_every_parameter_learns_and_an_unlabeled_image_changes_nothing():
    head, features = make_head(jitter=0.0), random_features()
    labeled = make_target([[4, 4, 30, 30]], [0, 1, 1, 0, 0])
    unlabeled = {key: labeled[key] for key in ("image_id", "size", "orig_size", "boxes")}
    loss = loss_of(head, features, make_batch(labeled, unlabeled))
    alone = loss_of(head, {k: v[:1] for k, v in features.items()}, make_batch(labeled))
    assert loss.item() == pytest.approx(alone.item(), rel=1e-6)
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in head.parameters())


def test_what_is_not_known_has_no_gradient():
    head = make_head(jitter=0.0)
    batch = make_batch(make_target([[4, 4, 30, 30]], [0, NAN, 1, 1, NAN]))
    loss_of(head, random_features(1), batch).backward()
    assert head.linear.bias.grad.ne(0).tolist() == [True, False, True, True, False]


def test_it_runs_in_bfloat16():
    head = make_head()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(head, random_features(), two_images())
        (found, _) = head.predict(random_features(), two_images())
    assert loss.dtype == found["attributes"].dtype == torch.float32
    loss.backward()
    assert loss.isfinite()


def test_objects_are_drawn_at_random_up_to_a_number():
    target = make_target([[0, 0, 9, 9]] * 9, [[0, 1, 1, 0, 0]] * 9, iscrowd=[True] + [False] * 8)
    target["attributes"][1] = NAN
    drawn = [sample_objects(target, 3).tolist() for _ in range(60)]
    assert all(len(set(rows)) == 3 for rows in drawn)
    assert {row for rows in drawn for row in rows} == set(range(2, 9))
    assert sorted(sample_objects(target, 100).tolist()) == list(range(2, 9))


def test_jitter_moves_sides_a_little_and_within_the_image():
    boxes = torch.tensor([[10.0, 10, 50, 30], [0, 0, 60, 40]]).repeat(500, 1)
    moved = jittered(boxes, 0.1, (40, 60))
    shift = (moved - boxes)[::2]
    for side, most in enumerate((4.0, 2.0, 4.0, 2.0)):
        assert shift[:, side].abs().max() <= most + 1e-4
        assert shift[:, side].min() < -0.9 * most and shift[:, side].max() > 0.9 * most
    assert moved.min() >= 0 and moved[:, 2].max() <= 60 and moved[:, 3].max() <= 40
    wild = jittered(boxes, 0.5, (40, 60))
    assert (wild[:, 2:] > wild[:, :2]).all()
    assert torch.equal(jittered(boxes, 0.0, (40, 60)), boxes)
    assert jittered(boxes[:0], 0.1, (40, 60)).shape == (0, 4)


def test_probabilities_for_each_box_of_each_image():
    head, features, batch = make_head(), random_features(3), two_images()
    batch.targets.insert(1, {"image_id": 2, "size": (64, 64), "orig_size": (64, 64)})
    found = [prediction["attributes"] for prediction in head.predict(features, batch)]
    assert [tuple(probs.shape) for probs in found] == [(3, 5), (0, 5), (3, 5)]
    probs = torch.cat(found)
    torch.testing.assert_close(probs[:, 0] + probs[:, 2], torch.ones(6))
    logits = head.logits(features, *flatten_boxes([batch.targets[0]["boxes"]]))
    torch.testing.assert_close(found[0][:, 1], logits[:, 1].sigmoid())
    torch.testing.assert_close(found[0][:, 0], (logits[:, 0] - logits[:, 2]).sigmoid())


def test_padding_takes_no_part():
    head, features = make_head(), random_features(1)
    batch = make_batch(
        make_target([[0, 0, 14, 14], [16, 16, 30, 30]], [[0, 1, 1, 0, 0]] * 2, size=(32, 32))
    )
    other = {k: v.clone() for k, v in features.items()}
    for name, cells in other.items():
        inside = 32 // LEVELS[name].stride
        cells[..., inside + 1 :, :] += 7  # the first cell outside is interpolated at the border
        cells[..., inside + 1 :] += 7
    losses = []
    for maps in (features, other):
        torch.manual_seed(1)
        losses.append(loss_of(head, maps, batch).item())
    assert losses[0] == losses[1]


def test_two_images_are_overfitted():
    torch.manual_seed(0)
    head, features, batch = make_head(), random_features(), two_images()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(head, features, batch).backward()
        optimizer.step()
    with torch.inference_mode():
        found = head.predict(features, batch)
    for prediction, target in zip(found, batch.targets, strict=True):
        prediction["boxes"] = target["boxes"] * torch.tensor([4.0, 2, 4, 2])
        prediction["scores"] = torch.ones(len(target["boxes"]))
    evaluator = head.evaluator(None)
    evaluator.update(found, batch)
    metrics = evaluator.compute()
    assert metrics[head.main_metric] == 1.0 and metrics["found"] == 1.0


@pytest.mark.parametrize(
    ("build", "part"),
    [
        (lambda: make_head(roi_levels=["c9"]), "'c9'"),
        (
            lambda: Attributes(
                {"a": Level(8, 8), "b": Level(16, 16)}, CLASSES, boxes_from="objects", hidden=8
            ),
            "unequal channels",
        ),
        (lambda: Attributes(LEVELS, ["a", "a=b"], boxes_from="objects", hidden=8), "'a=b'"),
    ],
)
def test_what_cannot_be_built(build, part):
    with pytest.raises(ConfigError, match=part):
        build()
