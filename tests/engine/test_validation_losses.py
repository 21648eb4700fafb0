"""A validation loss is the sum over the dataset divided by what is counted in it."""

import pytest
import torch

from support.small_runs import SMALL_RUNS
from visionkit.config import load_config
from visionkit.engine.evaluate import evaluate_model
from visionkit.engine.setup import build_training


def validation_losses(model, source):
    metrics, _ = evaluate_model(model, [source], dtype=torch.float32, workers=0)
    return {name: value for name, value in metrics.items() if "/loss/" in name}


@pytest.mark.parametrize(
    "name", ["classification", "localization", "fcos", "retinanet", "semantic", "vae"]
)
def test_it_does_not_depend_on_how_images_are_put_into_batches(name):
    """Images hold different numbers of objects: a mean of the batches' means would depend on it."""
    model, (source,), _ = build_training(load_config(SMALL_RUNS[name]), device=torch.device("cpu"))
    found = {}
    for size in (1, 2, 5):
        source.eval_batch_size = size
        found[size] = validation_losses(model, source)
    assert len(found[1]) >= 2 and all(value > 0 for value in found[1].values())
    assert found[1] == pytest.approx(found[2], rel=1e-5)
    assert found[1] == pytest.approx(found[5], rel=1e-5)


def test_it_is_the_loss_of_the_dataset_as_one_batch():
    """By hand: the cross-entropy of all pixels of five images."""
    model, (source,), _ = build_training(
        load_config(SMALL_RUNS["semantic"]), device=torch.device("cpu")
    )
    source.eval_batch_size = 5
    (batch,) = source.val_batches(workers=0)
    with torch.inference_mode():
        (head,) = model.eval().heads.values()
        term = head.loss(model.features(batch), batch)["semantic"]
    source.eval_batch_size = 1
    found = validation_losses(model, source)
    assert float(term.count) == sum(h * w for h, w in batch.sizes)
    assert found["semantic_segmentation/loss/semantic"] == pytest.approx(
        float(term.sum / term.count), rel=1e-5
    )
    assert found["semantic_segmentation/loss/total"] == found["semantic_segmentation/loss/semantic"]
