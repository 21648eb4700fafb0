"""What every head must do, tested on every head found in the package: a new file is tested by
being there."""

import inspect
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

import support.heads
from visionkit.config.components import components
from visionkit.data.datasets.shapes import Shapes
from visionkit.data.loading.source import Source, collate
from visionkit.distributed.collectives import loss_values
from visionkit.models.backbones.plain import LightResNet
from visionkit.models.head import Head
from visionkit.models.model import VisionModel
from visionkit.models.necks.fpn import FPN
from visionkit.ops.boxes import rescale_boxes

HEADS = components("heads")
SIZE = 96
# Heads that share all or nearly all of their code with another one, which is trained.
RELATED = {"FasterRCNN", "RetinaNet", "DeepLabV3", "LRASPP", "VAE"}


@pytest.fixture(scope="module")
def dataset():
    return Shapes(num_images=12, size=SIZE, seed=3)


def small_model(cls: type[Head], dataset) -> VisionModel:
    torch.manual_seed(0)
    backbone = LightResNet(widths=(16, 32, 64, 128), depths=(1, 1, 1, 1))
    neck = FPN(backbone.levels, channels=32)
    classes = dataset.classes[cls.class_key].names if cls.class_key else ()
    if "boxes_from" not in inspect.signature(cls).parameters:
        heads = {"head": cls(neck.levels, classes, **support.heads.HEADS[cls.__name__].contract)}
    else:
        heads = {"head": cls(neck.levels, classes, boxes_from="truth"), "truth": Truth()}
    return VisionModel(backbone, neck, heads, {"head": 1.0})


class Truth(Head):
    """Finds every object, for heads that describe what another one finds."""

    required_targets = ("boxes", "labels")

    def forward(self, features, sizes=None):
        return {}

    def decode(self, outputs, batch):
        found = []
        for target in batch.targets:
            boxes = target.get("boxes", torch.zeros(0, 4))
            boxes = rescale_boxes(boxes, target["size"], target["orig_size"])
            labels = target.get("labels", torch.zeros(0, dtype=torch.int64))
            scores = torch.ones(len(boxes))
            found.append({"boxes": boxes, "scores": scores, "labels": labels})
        return found


def batch_of(dataset, indices):
    samples = [dataset[i] for i in indices]
    return collate([(sample.image, sample.target()) for sample in samples])


def total(model, batch):
    losses = loss_values(model.losses(model.features(batch), batch, ["head"]))
    return model.weighted(losses)["head"], losses["head"]


def without_objects(batch):
    for target in batch.targets:
        for key in ("boxes", "labels", "masks", "iscrowd", "area", "attributes"):
            target[key] = target[key][:0]
    return batch


@pytest.fixture(params=sorted(HEADS))
def head_class(request):
    return HEADS[request.param]


def test_it_declares_what_it_needs(head_class, dataset):
    assert set(head_class.required_targets) <= set(dataset.keys)
    assert head_class.class_key is None or head_class.class_key in dataset.classes
    metrics = head_class.evaluator(small_model(head_class, dataset).heads["head"], dataset)
    assert head_class.main_metric in metrics.compute()


def test_losses_are_finite_scalars_and_train_every_parameter(head_class, dataset):
    model = small_model(head_class, dataset)
    loss, terms = total(model, batch_of(dataset, range(4)))
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    loss.backward()
    head = model.heads["head"]
    assert not [name for name, p in head.named_parameters() if p.grad is None]
    assert next(model.backbone.parameters()).grad.abs().sum() > 0
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert sum(float(p.grad.abs().sum()) for p in head.parameters()) > 0


def test_validation_loss_needs_no_gradients(head_class, dataset):
    model = small_model(head_class, dataset).eval()
    with torch.inference_mode():
        loss, _ = total(model, batch_of(dataset, range(2)))
    assert loss.isfinite()


def test_images_without_objects(head_class, dataset):
    model = small_model(head_class, dataset)
    batch = without_objects(batch_of(dataset, range(2)))
    loss, terms = total(model, batch)
    assert all(term.isfinite() for term in terms.values())
    loss.backward()
    with torch.inference_mode():
        found = model.eval().predictions(model.features(batch), batch, ["head"])["head"]
    assert len(found) == 2


def test_unlabeled_images_give_a_zero_loss_on_the_graph(head_class, dataset):
    model = small_model(head_class, dataset)
    batch = batch_of(dataset, range(2))
    for target in batch.targets:
        for key in set(target) - {"image_id", "size", "orig_size"}:
            del target[key]
    loss, _ = total(model, batch)
    assert loss.item() == 0 or not head_class.required_targets
    loss.backward()
    assert not [name for name, p in model.heads["head"].named_parameters() if p.grad is None]


def test_bfloat16_runs(head_class, dataset):
    model = small_model(head_class, dataset)
    batch = batch_of(dataset, range(2))
    with torch.autocast("cpu", torch.bfloat16):
        loss, terms = total(model, batch)
        assert all(term.dtype == torch.float32 for term in terms.values())
    loss.backward()
    assert loss.isfinite()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model.eval().predictions(model.features(batch), batch, ["head"])


def test_state_dict_round_trip_gives_the_same_predictions(head_class, dataset):
    first, second = small_model(head_class, dataset), small_model(head_class, dataset)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    second.load_state_dict(first.state_dict())
    batch = batch_of(dataset, range(2))
    with torch.inference_mode():
        a, b = (m.eval().predictions(m.features(batch), batch, ["head"]) for m in (first, second))
    for one, two in zip(a["head"], b["head"], strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            same = torch.equal(value, two[key]) if torch.is_tensor(value) else value == two[key]
            assert same, key


def perfect(sample, num_labels, num_classes):
    """The truth of a sample, as every kind of prediction at once."""
    target = sample.target()
    masks = target["masks"].numpy().astype(np.uint8)
    largest = int(((target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1)).argmax())
    label = target["labels"][largest]
    return {
        "boxes": target["boxes"],
        "scores": torch.ones(len(target["labels"])),
        "labels": target["labels"],
        "masks": [coco_mask.encode(np.asfortranarray(mask)) for mask in masks],
        "box": target["boxes"][largest],
        "attributes": target["attributes"].nan_to_num(),
        "semantic": sample.semantic,
        "embedding": torch.eye(64)[sample.identity],
        "reconstruction": sample.image,
    }, {
        "labels": torch.eye(num_labels)[label],
        "class_id": torch.eye(num_classes)[target["class_id"]],
    }


def test_perfect_predictions_score_one(head_class, dataset):
    evaluator = small_model(head_class, dataset).heads["head"].evaluator(dataset)
    sizes = {key: len(v.names) for key, v in dataset.classes.items()}
    for i in range(len(dataset)):
        prediction, probs = perfect(dataset[i], sizes["labels"], sizes["class_id"])
        if head_class.class_key in probs:
            prediction["probs"] = probs[head_class.class_key]
            prediction["label"] = prediction["probs"].argmax()
            prediction["score"] = prediction["probs"].max()
        evaluator.update([prediction], batch_of(dataset, [i]))
    metrics = evaluator.compute()
    best = 100.0 if head_class.main_metric == "psnr" else 1.0
    assert metrics[head_class.main_metric] == pytest.approx(best, abs=1e-3)
    other = small_model(head_class, dataset).heads["head"].evaluator(dataset)
    other.merge([evaluator.state(), other.state()])
    assert other.compute() == pytest.approx(metrics, nan_ok=True)


@pytest.mark.parametrize(
    "head_class",
    [
        pytest.param(HEADS[n], marks=[pytest.mark.slow] * (n in RELATED), id=n)
        for n in sorted(HEADS)
    ],
)
def test_few_images_are_overfitted(head_class, dataset):
    """The whole chain learns: the main metric on the two training images becomes high; an
    embedding needs two of each identity."""
    indices = [*range(8)] if "identity" in head_class.required_targets else [0, 1]
    model = small_model(head_class, dataset)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = batch_of(dataset, indices)
    start = None
    for _ in range(70):
        optimizer.zero_grad()
        loss, _ = total(model, batch)
        start = start or float(loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    assert math.isfinite(float(loss)) and float(loss) < 0.5 * start
    with torch.inference_mode():
        model.eval()
        found = model.predictions(model.features(batch), batch, ["head"])["head"]
    evaluator = model.heads["head"].evaluator(Subset(dataset, indices))
    evaluator.update(found, batch)
    assert evaluator.compute()[head_class.main_metric] >= 0.5


class Subset:
    """Some images of a dataset, as a dataset."""

    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, indices
        self.keys, self.classes = dataset.keys, dataset.classes

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.dataset[self.indices[index]]

    def semantic_truth(self, image_id):
        return self.dataset.semantic_truth(image_id)

    def ground_truth(self):
        ids = {self[i].image_id for i in range(len(self))}
        return self.dataset.ground_truth().of(images=ids)


def test_sources_feed_heads(head_class, dataset):
    source = Source("main", ["head"], dataset, dataset, batch_size=4, image_size=64)
    batch = next(source.train_batches(seed=0, start=0, workers=0))
    loss, _ = total(small_model(head_class, dataset), batch)
    assert loss.isfinite()


@pytest.mark.parametrize("name", [n for n, h in HEADS.items() if "masks" in h.required_targets])
def test_an_object_without_a_mask_trains_its_box_and_not_its_mask(dataset, name):
    model = small_model(HEADS[name], dataset)
    batch = batch_of(dataset, [0, 1])
    for target in batch.targets:
        target["masks"] = torch.zeros_like(target["masks"])
    _, terms = total(model, batch)
    assert float(terms["mask"]) == 0 and float(terms["box_reg"]) > 0
    batch.targets[0]["masks"][0, :8, :8] = True
    assert float(total(model, batch)[1]["mask"]) > 0
