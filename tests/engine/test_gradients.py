"""How the losses of several heads become one gradient."""

import math

import pytest
import torch
from torch import nn

from visionkit.engine.optim import PCGrad, SumGradients, gradient_combiner, total_norm
from visionkit.models.head import Head
from visionkit.models.model import VisionModel


class Nothing(Head):
    """A head with one parameter, whose losses a test makes up."""

    required_targets = ()

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.ones(1))


@pytest.fixture
def model():
    trunk = nn.Module()
    trunk.shared = nn.Parameter(torch.zeros(2))
    return VisionModel(trunk, None, {"a": Nothing(), "b": Nothing()}, {"a": 1.0, "b": 0.5})


def parts(model, **directions):
    """Losses whose gradients on the shared parameter are the given directions."""
    return {
        head: (model.backbone.shared * torch.tensor(direction)).sum() + model.heads[head].own.sum()
        for head, direction in directions.items()
    }


def test_the_sum_is_the_sum(model):
    both = gradient_combiner("fixed", model)
    assert isinstance(both, SumGradients)
    both.backward(parts(model, a=[1.0, 0.0], b=[-1.0, 1.0]))
    assert both.finish(0) == {}
    assert model.backbone.shared.grad.tolist() == [0, 1]


def test_conflicting_gradients_lose_what_opposes_the_other(model):
    """By hand: a = (1, 0), b = (-1, 1), a.b = -1. a loses -1/2 b: (1/2, 1/2); b loses -1 a:
    (0, 1). Their sum is (1/2, 3/2)."""
    surgery = gradient_combiner("pcgrad", model)
    assert isinstance(surgery, PCGrad)
    surgery.backward(parts(model, a=[1.0, 0.0], b=[-1.0, 1.0]))
    assert surgery.finish(0) == {"conflicts": 1.0}
    assert model.backbone.shared.grad.tolist() == pytest.approx([0.5, 1.5])
    assert model.heads["a"].own.grad.item() == 1 and model.heads["b"].own.grad.item() == 1


def test_gradients_that_agree_are_added_as_they_are(model):
    surgery = PCGrad(model)
    surgery.backward(parts(model, a=[1.0, 0.0], b=[1.0, 1.0]))
    assert surgery.finish(0) == {"conflicts": 0.0}
    assert model.backbone.shared.grad.tolist() == [2, 1]


def test_a_heads_gradient_is_that_of_all_its_batches(model):
    """Over two batches a is (1, 0) + (1, 0) and b is (-1, 1): a loses -1 b: (1, 1), b loses
    -1/2 a: (0, 1)."""
    surgery = PCGrad(model)
    surgery.backward(parts(model, a=[1.0, 0.0]))
    surgery.backward(parts(model, a=[1.0, 0.0], b=[-1.0, 1.0]))
    surgery.finish(3)
    assert model.backbone.shared.grad.tolist() == pytest.approx([1, 2])
    model.zero_grad()  # the next step starts again
    surgery.backward(parts(model, a=[0.0, 3.0]))
    surgery.finish(4)
    assert model.backbone.shared.grad.tolist() == [0, 3]


def test_learned_weights_by_hand():
    heads = {"a": Nothing(), "b": Nothing()}
    model = VisionModel(nn.Module(), None, heads, {"a": 2.0, "b": 1.0}, learned_weights=True)
    model.log_variances["a"].data.fill_(math.log(4))
    found = model.weighted({"a": {"x": torch.tensor(3.0)}, "b": {"x": torch.tensor(5.0)}})
    assert found["a"].item() == pytest.approx(2 * 3 / 4 + math.log(4) / 2)
    assert found["b"].item() == pytest.approx(5)
    assert model.effective_weights() == pytest.approx({"a": 0.5, "b": 1.0})
    # The best variance of a loss that stays at L is 2 L: there the gradient is zero.
    model.log_variances["b"].data.fill_(math.log(10))
    model.weighted({"b": {"x": torch.tensor(5.0)}})["b"].backward()
    assert model.log_variances["b"].grad.item() == pytest.approx(0, abs=1e-6)


def test_the_norm_of_all_gradients_is_that_of_torch():
    layers = [torch.nn.Conv2d(3, 5, 3), torch.nn.Conv2d(5, 4, 3), torch.nn.Linear(4, 2)]
    layers[1].to(memory_format=torch.channels_last)
    parameters = [p for layer in layers for p in layer.parameters()]
    for number, parameter in enumerate(parameters[:-1]):  # the last one has no gradient
        parameter.grad = torch.randn_like(parameter) * 10.0 ** (number - 2)
    assert not parameters[2].grad.is_contiguous()
    expected = torch.nn.utils.get_total_norm([p.grad for p in parameters[:-1]])
    torch.testing.assert_close(total_norm(parameters), expected)
    for broken in (torch.nan, torch.inf):
        parameters[2].grad[1, 2, 0, 1] = broken
        assert not total_norm(parameters).isfinite()
    assert total_norm([]) == 0
