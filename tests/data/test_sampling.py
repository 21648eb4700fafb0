"""How often images come: repeat factors and balanced classes, against naive loops."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from visionkit.config import load_config
from visionkit.data.build import build_sources
from visionkit.data.loading.samplers import InfiniteBatchSampler, Stream, balanced, repeat_factors
from visionkit.errors import ConfigError

# Objects of 20 images: class 0 in most, class 1 in two, class 3 in one; some have none.
IMAGES = np.array([*range(12), 3, 3, 12, 13, 14])
CLASSES = np.array([0] * 12 + [1, 1, 1, 3, 3])
CLASSES[-1] = 0


def naive_factors(threshold):
    """Gupta et al. 2019, section 5: r_c = max(1, sqrt(t / f_c)), r_i = max of r_c over i."""
    shown = defaultdict(set)
    for image, label in zip(IMAGES, CLASSES, strict=True):
        shown[label].add(image)
    r = {c: max(1.0, math.sqrt(threshold / (len(some) / 20))) for c, some in shown.items()}
    return [max([r[c] for c in shown if i in shown[c]], default=1.0) for i in range(20)]


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.5, 1.0])
def test_repeat_factors_are_those_of_the_paper(threshold):
    assert repeat_factors(IMAGES, CLASSES, 20, threshold).tolist() == pytest.approx(
        naive_factors(threshold)
    )


def test_images_come_as_often_as_their_factors_say():
    factors = repeat_factors(IMAGES, CLASSES, 20, 1.0)
    stream = Stream(20, 3, factors)
    assert len(stream) == math.ceil(sum(naive_factors(1.0)))
    passes = 400
    seen = Counter(stream[p] for p in range(passes * len(stream)))
    for image, factor in enumerate(factors * len(stream) / factors.sum()):
        assert seen[image] / passes == pytest.approx(factor, abs=0.08)
    for number in (0, 7):
        counts = Counter(stream[number * len(stream) + k] for k in range(len(stream)))
        assert all(counts[i] in (int(f), int(f) + 1) for i, f in enumerate(factors * 1.001))
    assert [stream[k] for k in range(40)] != [Stream(20, 4, factors)[k] for k in range(40)]


def test_balanced_classes_come_equally_often():
    found = balanced(IMAGES, CLASSES, 20)
    assert found.sum() == pytest.approx(20) and (found[15:] == 1).all()  # without objects
    naive = defaultdict(float)
    shown = {c: sorted({*IMAGES[c == CLASSES]}) for c in (0, 1, 3)}
    for some in shown.values():
        for image in some:
            naive[image] += 15 / 3 / len(some)
    assert found[:15].tolist() == pytest.approx([naive[i] for i in range(15)])


def test_a_class_of_each_image_is_balanced_in_every_pass():
    classes = np.array([0] * 30 + [1] * 8 + [2] * 2)
    stream = Stream(40, 0, balanced(np.arange(40), classes, 40))
    found = []
    for number in range(50):
        counts = Counter(classes[stream[40 * number + k]].item() for k in range(40))
        assert all(9 <= counts[c] <= 18 for c in range(3)) and counts.total() == 40
        found.append([counts[c] for c in range(3)])
    assert np.mean(found, 0).tolist() == pytest.approx([40 / 3] * 3, abs=0.3)


@pytest.mark.parametrize("ratios", [None, np.random.default_rng(0).random(20)])
def test_batches_resume_and_are_shared_with_repeats(ratios, monkeypatch):
    repeats = repeat_factors(IMAGES, CLASSES, 20, 1.0)

    def batches(count, start=0, rank=0, world=1):
        monkeypatch.setattr("visionkit.distributed.collectives.rank", lambda: rank)
        monkeypatch.setattr("visionkit.distributed.collectives.world_size", lambda: world)
        stream = iter(InfiniteBatchSampler(20, 6, 0, start, ratios, repeats))
        return [next(stream) for _ in range(count)]

    whole = batches(40)
    assert batches(20, start=20) == whole[20:]
    shares = [batches(40, rank=rank, world=2) for rank in range(2)]
    for number, batch in enumerate(whole):
        assert sorted(shares[0][number] + shares[1][number]) == sorted(batch)
    stream = Stream(20, 0, repeats)
    assert all(stream[position] == index for batch in whole for index, position in batch)


def config(sampling, task="detection", **data):
    train = {"type": "Shapes", "num_images": 12, "size": 64}
    return load_config(
        {"task": task, "data": {"train": train, "val": None, "sampling": sampling, **data}}
    )


@pytest.mark.parametrize("task", ["detection", "classification"])
@pytest.mark.parametrize("sampling", [{"repeat_factor": 1.0}, {"balanced": "class"}])
def test_a_source_samples_by_the_classes_that_its_head_learns(task, sampling):
    source = build_sources(config(sampling, task), ("train",))[0]
    images, classes = source.train.occurrences()["labels" if task == "detection" else "class_id"]
    made = repeat_factors(images, classes, 12, 1.0)
    if "balanced" in sampling:
        made = balanced(images, classes, 12)
    assert source.repeats.tolist() == made.tolist()
    assert source.steps_per_epoch == -(-math.ceil(made.sum() - 1e-6) // 8)


def test_classes_that_are_not_labeled_here_are_not_sampled_by():
    whole = build_sources(config({"repeat_factor": 1.0}), ("train",))[0]
    some = build_sources(config({"repeat_factor": 1.0}, labeled_classes=["ring"]), ("train",))[0]
    images, classes = whole.train.occurrences()["labels"]
    names = whole.train.classes["labels"].names
    rings = images[classes == names.index("ring")]
    share = len({*rings.tolist()}) / 12
    expected = [math.sqrt(1 / share) if i in rings else 1.0 for i in range(12)]
    assert some.repeats.tolist() == pytest.approx(expected)


def test_sampling_without_known_classes_is_refused():
    with pytest.raises(ConfigError, match=r"data.sampling: .* remove this key"):
        build_sources(config({"balanced": "class"}, "semantic_segmentation"), ("train",))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"repeat_factor": 0},
        {"repeat_factor": True},
        {"balanced": "image"},
        {"other": 1},
        {"repeat_factor": 0.1, "balanced": "class"},
    ],
    ids=str,
)
def test_unknown_sampling_is_refused(value):
    with pytest.raises(ConfigError, match=r"data.sampling: got .* expected {repeat_factor: 0.01}"):
        config(value)


def test_sampling_conflicts_with_batches_of_identities():
    with pytest.raises(ConfigError, match=r"data.sampling: conflicts with 'images_per_identity'"):
        config({"balanced": "class"}, "embedding")
