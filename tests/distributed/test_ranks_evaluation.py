"""Validation gives the same figures, bit for bit, on any number of processes."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from support.ranks import on_ranks
from support.small_runs import SHAPES, SMALL_RUNS, TASKS
from visionkit.config import load_config
from visionkit.data.build import build_sources
from visionkit.data.loading import source
from visionkit.data.loading.items import TransformedDataset
from visionkit.data.loading.source import Source
from visionkit.distributed import collectives
from visionkit.engine.evaluate import _loss_value, evaluate_model
from visionkit.engine.setup import build_training
from visionkit.metrics.accuracy import Accuracy

ALL = [(count, size) for count in (1, 2, 3, 5, 7, 16) for size in (1, 2, 4)]
SOME = [(1, 1), (5, 2)]  # fewer images than processes, and numbers that do not divide


def figures(names, splits):
    """The metrics of untrained models on so many images, in batches of so many."""
    collectives.setup()
    found = {}
    for name in names:
        arguments = {"data.batch_size": 12}  # can be shared by three, pairs of images too
        arguments |= {"head.score_threshold": 0.0} if name == "fcos" else {}
        config = load_config(SMALL_RUNS[name], arguments)
        model, _, classes = build_training(config, device=torch.device("cpu"))
        for count, size in splits:
            val = {**SHAPES, "seed": 2, "num_images": count}
            changed = {**SMALL_RUNS[name], "data": {**SMALL_RUNS[name]["data"], "val": val}}
            changed["train"] = {**changed["train"], "eval_batch_size": size}
            source = build_sources(load_config(changed), ("val",), classes)
            metrics, _ = evaluate_model(model, source, dtype=torch.float32, workers=0)
            found[f"{name} {count} {size}"] = {key: repr(value) for key, value in metrics.items()}
    return found


def compare(names, splits, folder):
    alone = figures(names, splits)
    for world in (2, 3):
        for rank, found in enumerate(on_ranks(world, figures, names, splits, folder=folder)):
            assert found == alone, f"rank {rank} of {world}"
    return alone


def test_figures_are_those_of_one_process(tmp_path):
    alone = compare(TASKS, SOME, tmp_path)
    assert len(alone) == len(TASKS) * len(SOME)
    assert all(any("loss/total" in key for key in metrics) for metrics in alone.values())


@pytest.mark.slow
def test_figures_are_those_of_one_process_for_any_number_of_images(tmp_path):
    compare(TASKS, ALL, tmp_path)


def test_sums_are_exact_in_any_order():
    for values in ([1e16, 1.0, -1e16], [1.0, 1e16, -1e16], [1e16, -1e16, 1.0]):
        assert _loss_value([(value, 1.0, 1.0) for value in values]) == 1 / 3
    assert math.isnan(_loss_value([(x, 1.0, 1.0) for x in (math.inf, 1.0, -math.inf)]))


def padded(self, *, workers):
    """Batches as of torch's DistributedSampler, which repeats images until all have as many."""
    size = self.eval_batch_size or self.batch_size
    view = TransformedDataset(self.val, (), self.image_size, seed=0)
    mine = [(i, i) for i in DistributedSampler(range(len(self.val)), shuffle=False)]
    batches = [mine[k : k + size] for k in range(0, len(mine), size)]
    yield from DataLoader(view, batch_sampler=batches, collate_fn=source.collate)


def padded_figures():
    collectives.setup()
    Source.val_batches = padded
    return figures(["classification"], [(3, 2)])


def test_padding_of_the_last_batches_is_noticed(tmp_path):
    """Negative control: the usual way of dealing images out counts some of them twice."""
    for result in on_ranks(2, padded_figures, folder=tmp_path):
        assert result["error"] == "VisionkitError"
        assert "3 images, but the ranks scored 4" in result["text"]
        assert "{0: 2}" in result["text"]


def unmerged_figures():
    collectives.setup()
    Accuracy.merge = lambda self, states: None
    return figures(["classification"], [(1, 1)])  # rank 1 sees none


def test_an_evaluator_that_does_not_merge_is_noticed(tmp_path):
    for result in on_ranks(2, unmerged_figures, folder=tmp_path):
        assert result["error"] == "ConfigError"
        assert "heads.classification: its evaluator computes {" in result["text"]
        assert "does its merge() join the states of all ranks?" in result["text"]
