"""The embedding head, and its losses against plain loops over triplets and pairs."""

import math

import pytest
import torch

from support.losses import losses_of, value
from visionkit.errors import ConfigError
from visionkit.models.heads.embedding import Embedding, contrastive_loss, triplet_loss
from visionkit.types import Batch, Level

LEVELS = {"c4": Level(6, 16), "c5": Level(8, 32)}
MARGIN = 0.2


def unit(count, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, size, generator=generator), dim=1)


def looped(vectors, identities, mining):
    """The triplet loss as in its papers, one triplet at a time."""
    rows, ids = vectors.double().tolist(), identities.tolist()
    everyone = range(len(ids))

    def distance(i, j):
        return sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True))

    losses = []
    for anchor in everyone:
        positives = [p for p in everyone if p != anchor and ids[p] == ids[anchor]]
        far = [distance(anchor, n) for n in everyone if ids[n] != ids[anchor]]
        if not positives or not far:
            continue
        near = [distance(anchor, p) for p in positives]
        if mining == "hard":
            losses.append(max(0, max(near) - min(far) + MARGIN))
        for positive in near if mining == "semihard" else ():
            farther = [n for n in far if n > positive]
            losses.append(max(0, positive - (min(farther) if farther else max(far)) + MARGIN))
        for positive in near if mining == "all" else ():
            losses += [x for n in far if (x := positive - n + MARGIN) > 0]
    return sum(losses) / len(losses) if losses else 0.0


IDENTITIES = [
    [0, 0, 1, 1, 2, 2],
    [3, 1, 3, 3, 2, 1, 1, 0],  # two of them are alone
    [5, 5, 5, 5, 5, 9],
]


@pytest.mark.parametrize("mining", ["all", "hard", "semihard"])
@pytest.mark.parametrize("identities", IDENTITIES)
@pytest.mark.parametrize("seed", range(3))
def test_triplet_losses_equal_a_loop_over_triplets(mining, identities, seed):
    vectors, identities = unit(len(identities), seed=seed), torch.tensor(identities)
    expected = looped(vectors, identities, mining)
    assert expected > 0
    found = value(triplet_loss(vectors, identities, MARGIN, mining))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_triplet_losses_by_hand():
    """On a circle at 0, 90 and 180 degrees: squared distances 2 (neighbors) and 4."""
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    identities = torch.tensor([0, 0, 1])
    # Anchor 0: 2 - 4 + margin; anchor 1: 2 - 2 + margin.
    assert float(value(triplet_loss(vectors, identities, 0.5, "all"))) == pytest.approx(0.5)
    assert float(value(triplet_loss(vectors, identities, 0.5, "hard"))) == pytest.approx(0.25)
    assert float(value(triplet_loss(vectors, identities, 3.0, "all"))) == pytest.approx((1 + 3) / 2)
    assert float(value(triplet_loss(vectors, identities, 3.0, "semihard"))) == pytest.approx(2.0)


@pytest.mark.parametrize("identities", IDENTITIES)
def test_contrastive_loss_equals_a_loop_over_pairs(identities):
    vectors, identities = unit(len(identities)), torch.tensor(identities)
    rows, ids = vectors.double(), identities.tolist()
    anchors = []
    for i in range(len(ids)):
        others = [j for j in range(len(ids)) if j != i]
        positives = [j for j in others if ids[j] == ids[i]]
        if not positives or len(positives) == len(others):
            continue
        total = sum(math.exp(float(rows[i] @ rows[j]) / 0.1) for j in others)
        terms = [math.log(total) - float(rows[i] @ rows[j]) / 0.1 for j in positives]
        anchors.append(sum(terms) / len(terms))
    expected = sum(anchors) / len(anchors)
    assert float(value(contrastive_loss(vectors, identities, 0.1))) == pytest.approx(
        expected, rel=1e-5
    )


def every_loss(vectors, identities):
    for mining in ("all", "hard", "semihard"):
        yield value(triplet_loss(vectors, identities, MARGIN, mining))
    yield value(contrastive_loss(vectors, identities, 0.1))


@pytest.mark.parametrize("identities", [[4], [4, 4, 4], [1, 2, 3]])
def test_without_a_pair_or_a_stranger_the_loss_is_zero_and_on_the_graph(identities):
    vectors = unit(len(identities)).requires_grad_()
    for loss in every_loss(vectors, torch.tensor(identities)):
        assert float(loss.detach()) == 0
        (gradient,) = torch.autograd.grad(loss, vectors)
        assert gradient.abs().sum() == 0


def test_equal_vectors_have_finite_gradients():
    vectors = unit(1).repeat(6, 1).requires_grad_()
    for loss in every_loss(vectors, torch.tensor([0, 0, 1, 1, 2, 2])):
        assert loss > 0
        (gradient,) = torch.autograd.grad(loss, vectors)
        assert gradient.isfinite().all()


def test_separated_identities_cost_nothing():
    vectors = torch.eye(3).repeat_interleave(2, 0)
    identities = torch.arange(3).repeat_interleave(2)
    assert [float(x) for x in every_loss(vectors, identities)][:3] == [0, 0, 0]
    assert float(value(contrastive_loss(vectors, identities, 0.1))) < 1e-3


def test_losses_are_exact_under_autocast():
    vectors, identities = unit(8), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    plain = list(every_loss(vectors, identities))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = list(every_loss(vectors, identities))
    assert [x.dtype for x in mixed] == [torch.float32] * 4
    assert mixed == plain


def features_and_batch(identities, size=(64, 64), canvas=(64, 64), seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(identities), 8, canvas[0] // 32, canvas[1] // 32)
    features = {"c5": torch.randn(shape, generator=generator)}
    targets = [{"image_id": i, "size": size, "orig_size": size} for i in range(len(identities))]
    for target, identity in zip(targets, identities, strict=True):
        if identity is not None:
            target["identity"] = torch.tensor(identity)
    images = torch.zeros(len(identities), 3, *canvas, dtype=torch.uint8)
    return features, Batch(images, targets)


def head(**arguments):
    torch.manual_seed(0)
    return Embedding(LEVELS, (), **{"size": 5, **arguments})


def test_vectors_have_unit_length_and_the_asked_size():
    features, batch = features_and_batch([0, 0, 1])
    for hidden in (None, 16):
        found = head(size=7, hidden=hidden).predict(features, batch)
        vectors = [prediction["embedding"] for prediction in found]
        assert [vector.shape for vector in vectors] == [(7,)] * 3
        assert [float(v.detach().norm()) for v in vectors] == pytest.approx([1.0] * 3)


def vectors_of(embedding, features, batch):
    return embedding(features, batch.size_tensor)["embedding"]


def test_padding_takes_no_part():
    features, batch = features_and_batch([0, 1], size=(40, 64), canvas=(96, 128))
    embedding = head()
    before = vectors_of(embedding, features, batch)
    features["c5"][:, :, 2:] = 50.0
    features["c5"][:, :, :, 2:] = -50.0
    assert torch.equal(vectors_of(embedding, features, batch), before)


@pytest.mark.parametrize("mining", ["all", "hard", "semihard"])
def test_the_loss_is_that_of_the_vectors_of_labeled_images(mining):
    identities = [0, None, 0, 1, None, 1]
    features, batch = features_and_batch(identities)
    embedding = head(mining=mining, margin=MARGIN)
    kept = [0, 2, 3, 5]
    vectors = vectors_of(embedding, features, batch).detach()[kept]
    expected = looped(vectors, torch.tensor([0, 0, 1, 1]), mining)
    found = losses_of(embedding, features, batch)
    assert set(found) == {"triplet"}
    assert float(found["triplet"].detach()) == pytest.approx(expected, rel=1e-4)


def test_arguments_reach_the_contrastive_loss():
    features, batch = features_and_batch([0, 0, 1, 1])
    embedding = head(loss="contrastive", temperature=0.5)
    vectors = vectors_of(embedding, features, batch)
    expected = value(contrastive_loss(vectors, torch.tensor([0, 0, 1, 1]), 0.5))
    assert losses_of(embedding, features, batch) == {"contrastive": expected}


@pytest.mark.parametrize("loss", ["triplet", "contrastive"])
@pytest.mark.parametrize("identities", [[None, None], [1, 2], [3, 3]])
def test_batches_that_teach_nothing_give_every_parameter_a_gradient(loss, identities):
    embedding = head(loss=loss, hidden=4)
    (term,) = losses_of(embedding, *features_and_batch(identities)).values()
    assert float(term.detach()) == 0
    term.backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in embedding.parameters())


@pytest.mark.parametrize(
    "arguments",
    [{"mining": "all"}, {"mining": "hard"}, {"mining": "semihard"}, {"loss": "contrastive"}],
)
def test_it_learns_to_tell_identities_apart(arguments):
    identities = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    features, batch = features_and_batch(identities)
    embedding = head(hidden=32, **arguments)
    optimizer = torch.optim.Adam(embedding.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (loss,) = losses_of(embedding, features, batch).values()
        loss.backward()
        optimizer.step()
    evaluator = embedding.evaluator(None)
    with torch.inference_mode():
        evaluator.update(embedding.predict(features, batch), batch)
    assert evaluator.compute() == {"recall@1": 1.0, "recall@5": 1.0, "mAP@R": 1.0}


def test_another_level_can_be_pooled():
    assert Embedding(LEVELS, (), level="c4").project.in_features == 6
    with pytest.raises(ConfigError, match="feature map 'c9' not found"):
        Embedding(LEVELS, (), level="c9")
