"""Two ranks train to the weights of one, for every head."""

import json
from unittest.mock import patch

import pytest
import torch

from support.ranks import on_ranks
from support.small_runs import SMALL_RUNS, TASKS, joint
from visionkit.config import load_config
from visionkit.distributed import collectives
from visionkit.distributed.collectives import across_ranks, loss_values, pad_to_global_max
from visionkit.engine import train
from visionkit.engine.setup import build_training
from visionkit.engine.state import TrainingState
from visionkit.runs import checkpoint
from visionkit.types import Batch

WEIGHTS, LOSSES = 2e-5, 1e-5  # largest difference; relative difference
QUICK = [*TASKS, "joint", "batch_norm"]
BATCH_NORM = {"type": "TinyCNN", "channels": [8, 16], "norm": "batch"}


def cases():
    return {
        **SMALL_RUNS,
        "joint": joint(),
        "pcgrad": joint(weighting="pcgrad"),
        "uncertainty": joint(weighting="uncertainty", accumulate_grad_batches=2, ema=0.9),
        "batch_norm": {**SMALL_RUNS["fcn"], "backbone": BATCH_NORM},
    }


def no(*_, **__):
    """In the place of images, which take longer than these models."""


def train_all(folder, names):
    """Those cases, each into its own folder, and next to it the final weights of each rank."""
    states = []
    save = TrainingState.save_last
    TrainingState.save_last = lambda self, **how: (
        states.append(self.learner.model.state_dict()),
        save(self, **how),
    )
    try:
        for name, spec in ((name, cases()[name]) for name in names):
            with patch.multiple(train, save_train_samples=no, save_val_samples=no):
                train.train(spec, {"output": f"{folder}/{name}"})
            torch.save(states[-1], f"{folder}/{name}/rank{collectives.rank()}.pt")
    finally:
        TrainingState.save_last = save


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Called with a name: the directories of its run on one rank, and on two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    others = [name for name in cases() if name not in QUICK]

    def directories(name):
        if not (one / name).exists():
            names = QUICK if name in QUICK else others
            assert on_ranks(2, train_all, str(two), names, folder=two) == [None, None]
            train_all(one, names)
        return one / name, two / name

    return directories


def weights(run):
    return checkpoint.load(run / "checkpoints/last.pt")["model"]


def records(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def difference(first, second):
    return max((first[name].float() - second[name].float()).abs().max().item() for name in first)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in cases()
        if name != "batch_norm"
    ],
)
def test_two_ranks_train_to_the_weights_of_one(name, runs):
    one, two = runs(name)
    assert difference(weights(one), weights(two)) < WEIGHTS
    for kind in ("train", "val"):
        first, second = records(one, kind), records(two, kind)
        assert len(first) == len(second) == {"train": 3, "val": 1}[kind]  # written once
        for a, b in zip(first, second, strict=True):
            losses = [key for key in a if "loss" in key or key.startswith("train/")]
            assert {k: b[k] for k in losses} == pytest.approx(
                {k: a[k] for k in losses}, rel=1e-4, abs=LOSSES
            )


def test_statistics_of_batch_norms_are_those_of_all_ranks(runs):
    """Otherwise each rank would validate another model. They are not those of a single rank,
    which is a negative control of the comparison above."""
    one, two = runs("batch_norm")
    first, second = (torch.load(two / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert any("running_var" in name for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert difference(weights(one), weights(two)) > 100 * WEIGHTS


def synchronized(folder):
    spec = {**SMALL_RUNS["fcn"], "backbone": BATCH_NORM}
    train.train(spec, {"output": f"{folder}/run", "train.sync_batchnorm": True})


def test_sync_batchnorm_needs_gpus(tmp_path):
    for result in on_ranks(2, synchronized, str(tmp_path), folder=tmp_path):
        assert result["error"] == "ConfigError", result
        assert "train.sync_batchnorm: got true, but the ranks train on cpu" in result["text"]


def gradients(names, unlabeled):
    """Of one step of each of those heads; the images at the positions `unlabeled`, or those of
    rank 1, have no labels. And which positions those are."""
    found = {}
    for name in names:
        config = load_config(SMALL_RUNS[name])
        collectives.setup()
        model, (source,), _ = build_training(config, device=torch.device("cpu"))
        model.train()
        batch = next(source.train_batches(seed=0, start=0, workers=0))
        positions = [target["position"] for target in batch.targets]
        gone = unlabeled.get(name, positions if collectives.rank() == 1 else [])
        for i, target in enumerate(batch.targets):
            if target["position"] in gone:
                known = ("image_id", "size", "orig_size", "position")
                batch.targets[i] = {key: target[key] for key in known}
        with across_ranks():
            losses = loss_values(model.losses(model.features(batch), batch, source.feeds))
        sum(model.weighted(losses).values()).backward()
        parameters = list(model.parameters())
        collectives.sync_gradients(parameters)
        found[name] = [gone, [p.grad for p in parameters if p.grad is not None]]
    return found


def test_a_rank_without_a_labeled_image_takes_part(tmp_path):
    names = [name for name in SMALL_RUNS if name not in ("autoencoder", "vae")]  # which need none
    first, second = on_ranks(2, gradients, names, {}, folder=tmp_path)
    alone = gradients(names, {name: second[name][0] for name in names})
    for name in names:
        found, expected = first[name][1], alone[name][1]
        assert len(found) == len(expected) > 0, name
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4, msg=name)


def padded():
    """Images of another size on each rank."""
    collectives.setup()
    size = (32, 64) if collectives.rank() else (96, 32)
    images = torch.ones(2, 3, *size, dtype=torch.uint8)
    batch = pad_to_global_max(Batch(images, [{}, {}]))
    filled = batch.images[:, :, : size[0], : size[1]].sum()
    return [*batch.images.shape], int(filled), int(batch.images.sum())


def test_batches_are_padded_to_the_largest_image_of_all_ranks(tmp_path):
    """As on one rank, where what lies beyond an image's border counts in batch norms."""
    for rank, (shape, filled, all_) in enumerate(on_ranks(2, padded, folder=tmp_path)):
        assert shape == [2, 3, 96, 64] and filled == all_ == 6 * (32 * 64 if rank else 96 * 32)
