import math

import pytest
import torch
import torch.nn.functional as F

from support.losses import losses_of
from visionkit.errors import ConfigError
from visionkit.models.heads.classification import Classification
from visionkit.ops.layers import masked_mean, valid_cells
from visionkit.types import Batch, Level

LEVELS = {"c4": Level(6, 16), "c5": Level(8, 32)}
CLASSES = ["cat", "dog", "fox"]


def class_batch(*class_ids, sizes=None):
    targets = [
        {"image_id": i, "size": (64, 64), "orig_size": (64, 64)} for i in range(len(class_ids))
    ]
    for target, class_id, size in zip(targets, class_ids, sizes or [(64, 64)] * 9, strict=False):
        target["size"] = size
        if class_id is not None:
            target["class_id"] = torch.tensor(class_id)
    return Batch(torch.zeros(len(targets), 3, 64, 64, dtype=torch.uint8), targets)


def random_features(count, **kwargs):
    return {
        name: torch.randn(count, level.channels, 64 // level.stride, 64 // level.stride, **kwargs)
        for name, level in LEVELS.items()
    }


def test_valid_cells_cover_the_image_and_nothing_else():
    valid = valid_cells(
        torch.tensor([(64, 64), (33, 20), (1, 64)]), torch.zeros(3, 1, 2, 2), stride=32
    )
    assert valid.tolist() == [
        [[True, True], [True, True]],
        [[True, False], [True, False]],
        [[True, True], [False, False]],
    ]


def test_masked_mean_by_hand():
    features = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert masked_mean(features, torch.tensor([[[True, False], [True, False]]])).item() == 2
    assert masked_mean(features, torch.ones(1, 2, 2, dtype=torch.bool)).item() == 3


def test_padding_does_not_change_the_prediction():
    torch.manual_seed(0)
    head, features = Classification(LEVELS, CLASSES), random_features(1)
    batch = class_batch(0, sizes=[(64, 32)])
    before = head.predict(features, batch)[0]["probs"]
    features["c5"][..., 1] = 1e3
    assert torch.equal(head.predict(features, batch)[0]["probs"], before)
    features["c5"][..., 0] = 1e3
    assert not torch.equal(head.predict(features, batch)[0]["probs"], before)


def test_the_level_is_the_coarsest_or_the_one_named():
    assert Classification(LEVELS, CLASSES).linear.in_features == 8
    assert Classification(LEVELS, CLASSES, level="c4").linear.in_features == 6
    with pytest.raises(ConfigError, match=r"'c6'.*'c4', 'c5'"):
        Classification(LEVELS, CLASSES, level="c6")


def test_the_loss_is_cross_entropy_with_smoothing_and_class_weights():
    torch.manual_seed(0)
    head = Classification(LEVELS, CLASSES, label_smoothing=0.1, class_weights={"dog": 3.0})
    features, batch = random_features(3), class_batch(0, 1, 1)
    logits = head.linear(features["c5"].mean((2, 3)))
    # The smoothed truth weighs each class by its own weight; the sum of the weights divides.
    weights = torch.tensor([1.0, 3.0, 1.0])
    log_probs = logits.log_softmax(1)
    total = sum(
        -0.9 * weights[c] * log_probs[i, c] - 0.1 / 3 * (weights * log_probs[i]).sum()
        for i, c in enumerate([0, 1, 1])
    )
    expected = total / weights[[0, 1, 1]].sum()
    torch.testing.assert_close(losses_of(head, features, batch)["classification"], expected)


def test_unlabeled_images_are_left_out():
    head, features = Classification(LEVELS, CLASSES), random_features(2)
    alone = losses_of(head, {k: f[1:] for k, f in features.items()}, class_batch(2))
    torch.testing.assert_close(losses_of(head, features, class_batch(None, 2)), alone)
    nothing = losses_of(head, features, class_batch(None, None))["classification"]
    nothing.backward()
    assert nothing == 0
    assert head.linear.weight.grad.abs().sum() == 0


def test_class_weights_name_the_classes():
    with pytest.raises(ConfigError, match=r"'dgo'.*'dog'"):
        Classification(LEVELS, CLASSES, class_weights={"dgo": 2.0})


@pytest.mark.parametrize("multilabel", [False, True])
def test_loss_is_finite_and_reaches_every_parameter(multilabel):
    head = Classification(LEVELS, CLASSES, multilabel=multilabel)
    truth = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]] if multilabel else [0, 2]
    features = random_features(2, requires_grad=True)
    loss = losses_of(head, features, class_batch(*truth))["classification"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())
    assert features["c5"].grad.abs().sum() > 0


def test_runs_under_bf16_autocast():
    head, features = Classification(LEVELS, CLASSES), random_features(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses_of(head, features, class_batch(0, 1))["classification"]
        prediction = head.predict(features, class_batch(0, 1))[0]
    assert loss.dtype == prediction["probs"].dtype == torch.float32


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    head, features = Classification(LEVELS, CLASSES, dropout=0.5), random_features(1)
    losses = {mode: set() for mode in (True, False)}
    for mode in losses:
        head.train(mode)
        for _ in range(5):
            losses[mode].add(losses_of(head, features, class_batch(0))["classification"].item())
    assert len(losses[False]) == 1 < len(losses[True])


def overfit(head, features, batch, steps=100):
    optimizer = torch.optim.Adam([*head.parameters(), *features.values()], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(losses_of(head, features, batch).values()).backward()
        optimizer.step()
    with torch.no_grad():
        return head.predict(features, batch)


def test_images_are_overfitted_and_score_one():
    torch.manual_seed(0)
    head, batch = Classification(LEVELS, CLASSES), class_batch(0, 2)
    predictions = overfit(head, random_features(2, requires_grad=True), batch)
    assert [p["label"].item() for p in predictions] == [0, 2]
    assert all(p["score"] > 0.9 and p["score"] == p["probs"][p["label"]] for p in predictions)
    evaluator = head.evaluator(None)
    evaluator.update(predictions, batch)
    assert evaluator.compute()[head.main_metric] == 1.0


def test_multi_label_images_are_overfitted_and_score_one():
    torch.manual_seed(0)
    head = Classification(LEVELS, CLASSES, multilabel=True)
    batch = class_batch([1.0, 0.0, 1.0], [0.0, 0.0, 0.0])
    predictions = overfit(head, random_features(2, requires_grad=True), batch)
    assert sorted(predictions[0]["labels"].tolist()) == [0, 2]
    assert predictions[1]["labels"].tolist() == []
    evaluator = head.evaluator(None)
    evaluator.update(predictions, batch)
    metrics = evaluator.compute()
    assert metrics[head.main_metric] == metrics["mAP"] == metrics["f1"] == 1.0
    assert math.isnan(metrics["AP/dog"])


def test_multi_label_loss_is_smoothed_binary_cross_entropy():
    torch.manual_seed(0)
    head = Classification(LEVELS, CLASSES, multilabel=True, label_smoothing=0.2)
    features = random_features(1)
    logits = head.linear(features["c5"].mean((2, 3)))
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([[0.9, 0.1, 0.1]]))
    loss = losses_of(head, features, class_batch([1.0, 0.0, 0.0]))["classification"]
    torch.testing.assert_close(loss, expected)


SHARES = [[0.7, 0.3, 0.0], [0.0, 0.25, 0.75]]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_shares_of_classes_are_learned_as_probabilities(smoothing):
    torch.manual_seed(0)
    weights = {"cat": 2.0, "fox": 0.5}
    head = Classification(LEVELS, CLASSES, label_smoothing=smoothing, class_weights=weights)
    features = random_features(2)
    logits, truth = head(features)["logits"], torch.tensor(SHARES)
    found = head.loss(features, class_batch(*SHARES))["classification"]
    factors = torch.tensor([2.0, 1.0, 0.5])
    expected = F.cross_entropy(logits, truth, factors, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(found.sum, expected)
    naive = sum(w * q for row in SHARES for w, q in zip((2.0, 1.0, 0.5), row, strict=True))
    assert found.count.item() == pytest.approx(naive)
    whole = head.loss(features, class_batch([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]))["classification"]
    hard = head.loss(features, class_batch(0, 2))["classification"]
    torch.testing.assert_close(whole.value, hard.value)


def test_shares_of_several_classes_are_learned_as_probabilities():
    torch.manual_seed(0)
    head, features = Classification(LEVELS, CLASSES, multilabel=True), random_features(2)
    truth = torch.tensor([[0.7, 0.3, math.nan], [0.0, 1.0, 0.4]])
    found = head.loss(features, class_batch(*truth.tolist()))["classification"]
    p = head(features)["logits"].sigmoid()
    naive = [
        -(q * p[i, k].log() + (1 - q) * (1 - p[i, k]).log())
        for i, row in enumerate(truth.tolist())
        for k, q in enumerate(row)
        if q == q
    ]
    torch.testing.assert_close(found.sum, sum(naive))
    assert found.count.item() == 5
