import pytest
import torch

from support.losses import losses_of
from visionkit.models.heads.classification import coarsest_useful
from visionkit.models.heads.localization import (
    Localization,
    Output,
    attention_losses,
    cell_centers,
    image_scale,
)
from visionkit.ops.boxes import box_iou
from visionkit.types import Batch, Level

LEVELS = {"c4": Level(16, 16), "c5": Level(24, 32)}
CLASSES = ["cat", "dog"]


def target(boxes, labels, *, size=(128, 128), orig_size=(256, 256), iscrowd=None):
    return {
        "image_id": 1,
        "size": size,
        "orig_size": orig_size,
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "iscrowd": torch.tensor(iscrowd or [False] * len(labels), dtype=torch.bool),
    }


def batch_of(*targets):
    return Batch(torch.zeros(len(targets), 3, 128, 128, dtype=torch.uint8), list(targets))


def random_features(count, **kwargs):
    return {
        name: torch.randn(count, level.channels, 128 // level.stride, 128 // level.stride, **kwargs)
        for name, level in LEVELS.items()
    }


def items(losses):
    return {name: loss.item() for name, loss in losses.items()}


@pytest.mark.parametrize("loss", ["smooth_l1", "giou"])
def test_two_images_are_overfitted_and_score_one(loss):
    torch.manual_seed(0)
    head = Localization(LEVELS, CLASSES, loss=loss, channels=32)
    features = random_features(2, requires_grad=True)
    # The second image covers a part of the padded batch, and has a smaller object too.
    batch = batch_of(
        target([[10, 20, 70, 100]], [0]),
        target([[0, 0, 20, 20], [30, 30, 60, 110]], [0, 1], size=(128, 64), orig_size=(512, 256)),
    )
    optimizer = torch.optim.Adam([*head.parameters(), *features.values()], lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        sum(losses_of(head, features, batch).values()).backward()
        optimizer.step()
    with torch.no_grad():
        predictions = head.predict(features, batch)
    truth = torch.tensor([[20.0, 40, 140, 200], [120, 120, 240, 440]])
    boxes = torch.stack([p["box"] for p in predictions])
    assert box_iou(boxes, truth).diagonal().min() > 0.85
    assert [p["label"].item() for p in predictions] == [0, 1]
    assert all(p["score"] == p["probs"].max() > 0.8 for p in predictions)
    evaluator = head.evaluator(None)
    evaluator.update(predictions, batch)
    assert evaluator.compute()[head.main_metric] == 1.0


@pytest.mark.parametrize("loss", ["smooth_l1", "giou"])
def test_losses_are_finite_and_reach_every_parameter(loss):
    torch.manual_seed(0)
    head = Localization(LEVELS, CLASSES, loss=loss, channels=32)
    features = random_features(2, requires_grad=True)
    losses = losses_of(head, features, batch_of(target([[10, 20, 70, 100]], [1]), target([], [])))
    assert set(losses) == {"classification", "box", "attention"}
    assert all(0 < value < 20 for value in losses.values())
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name
    assert features["c5"].grad.abs().sum() > 0


def test_images_without_an_object_are_left_out():
    torch.manual_seed(0)
    head, features = Localization(LEVELS, CLASSES, channels=32), random_features(4)
    one = target([[10, 20, 70, 100]], [1])
    crowd = target([[10, 20, 70, 100]], [1], iscrowd=[True])
    unlabeled = {"image_id": 1, "size": (128, 128), "orig_size": (128, 128)}
    alone = losses_of(head, {k: f[:1] for k, f in features.items()}, batch_of(one))
    mixed = losses_of(head, features, batch_of(one, target([], []), crowd, unlabeled))
    assert items(mixed) == pytest.approx(items(alone), rel=1e-5)

    nothing = losses_of(head, features, batch_of(target([], []), crowd, unlabeled, unlabeled))
    assert set(items(nothing).values()) == {0.0}
    sum(nothing.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in head.parameters())


def test_attention_stays_on_the_image():
    torch.manual_seed(0)
    head, features = Localization(LEVELS, CLASSES, channels=32), random_features(1)
    output = head.outputs(features, torch.tensor([[128, 40]]))
    attention = output.attention_logits.softmax(1).reshape(4, 4)
    assert (attention[:, :2] > 0).all() and (attention[:, 2:] == 0).all()


def test_attention_loss_by_hand():
    centers = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]])
    output = Output(None, torch.zeros(1, 4), None, centers, None)

    def loss(*box):
        return attention_losses(output, torch.tensor([box])).item()

    assert loss(0.0, 0.0, 1.0, 0.5) == pytest.approx(-torch.tensor(2 / 4).log().item())
    assert loss(0.0, 0.0, 1.0, 1.0) == pytest.approx(0, abs=1e-6)
    # Too small to hold a center: the nearest cell counts.
    assert loss(0.6, 0.1, 0.62, 0.12) == pytest.approx(-torch.tensor(1 / 4).log().item())


def test_cell_centers_are_relative_to_the_valid_image():
    cells, sizes = torch.zeros(2, 1, 2, 3), torch.tensor([(64, 96), (32, 64)])
    centers = cell_centers(cells, 32) / image_scale(sizes, cells, 32)[:, None, :2]
    assert centers[0, 0].tolist() == pytest.approx([16 / 96, 16 / 64])
    assert centers[0, 5].tolist() == pytest.approx([80 / 96, 48 / 64])
    assert centers[1, 1].tolist() == pytest.approx([48 / 64, 16 / 32])


def test_boxes_lie_in_the_original_image():
    torch.manual_seed(0)
    head = Localization(LEVELS, CLASSES, channels=32)
    torch.nn.init.constant_(head.distances.bias, 10.0)  # every side as far off as possible
    batch = batch_of(target([], [], size=(128, 64), orig_size=(1000, 500)))
    box = head.predict(random_features(1), batch)[0]["box"]
    assert box.tolist() == [0, 0, 500, 1000]


def test_runs_under_bf16_autocast():
    torch.manual_seed(0)
    head, features = Localization(LEVELS, CLASSES, channels=32), random_features(1)
    batch = batch_of(target([[10, 20, 70, 100]], [1]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(head, features, batch)
        prediction = head.predict(features, batch)[0]
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    assert prediction["box"].dtype == prediction["probs"].dtype == torch.float32


def test_the_default_level_has_cells_of_at_most_32_pixels():
    pyramid = {f"p{i}": Level(8, 2**i) for i in range(3, 8)}
    assert coarsest_useful(pyramid) == "p5"
    assert coarsest_useful({"p6": Level(8, 64), "p7": Level(8, 128)}) == "p6"


def test_the_box_weight_scales_its_term_alone():
    features, batch = random_features(1), batch_of(target([[10, 20, 70, 100]], [1]))
    once, twice = (Localization(LEVELS, CLASSES, channels=32, box_weight=w) for w in (1.0, 2.0))
    twice.load_state_dict(once.state_dict())
    before, after = (
        items(losses_of(once, features, batch)),
        items(losses_of(twice, features, batch)),
    )
    assert after == pytest.approx({**before, "box": 2 * before["box"]})
