"""visionkit's operators in ONNX: the same rows, for rows that are worked out by hand and random."""

import numpy as np
import onnxruntime
import pytest
import torch

from visionkit.ops.nms import nms

IOU, COUNT = 0.5, 12


class Nms(torch.nn.Module):
    def __init__(self, grouped):
        super().__init__()
        self.grouped = grouped

    def forward(self, boxes, scores, groups):
        rows = torch.ops.visionkit.nms(boxes, scores, groups if self.grouped else None, IOU, COUNT)
        return rows + 0 * groups[:, :1]


@pytest.fixture(scope="module", params=[True, False], ids=["by class", "all"])
def in_onnx(request):
    from visionkit.engine.export.onnx_ops import translations

    rows = torch.zeros(2, 30, 4), torch.zeros(2, 30), torch.zeros(2, 30).long()
    batch, boxes = torch.export.Dim("batch"), torch.export.Dim("boxes", min=2)
    shapes = ({0: batch, 1: boxes},) * 3
    model = Nms(request.param)
    program = torch.export.export(model, rows, dynamic_shapes=shapes)
    made = torch.onnx.export(
        program, dynamo=True, custom_translation_table=translations(), verbose=False
    )
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    return model, lambda *rows: session.run(
        None, {name: x.numpy() for name, x in zip(names, rows, strict=True)}
    )[0]


def random_rows(batch, number, seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(batch, number, 2, generator=generator) * 60
    extents = torch.rand(batch, number, 2, generator=generator) * 30
    scores = torch.rand(batch, number, generator=generator)
    scores[scores < 0.2] = -1  # no candidates
    groups = torch.randint(0, 5, (batch, number), generator=generator)
    return torch.cat([corners, corners + extents], -1), scores, groups


@pytest.mark.parametrize(("batch", "number"), [(1, 40), (3, 200), (2, 5), (1, 2)])
def test_the_same_rows_in_the_same_order(in_onnx, batch, number):
    model, run = in_onnx
    rows = random_rows(batch, number, seed=number)
    expected = nms(*rows[:2], rows[2] if model.grouped else None, IOU, COUNT)
    assert expected.shape == (batch, min(number, COUNT))
    np.testing.assert_array_equal(run(*rows), expected)


def test_an_image_without_candidates_has_no_rows(in_onnx):
    _, run = in_onnx
    boxes, scores, groups = random_rows(3, 20, seed=0)
    scores[1] = -1
    found = run(boxes, scores, groups)
    assert (found[1] == -1).all() and (found[0] >= 0).any() and (found[2] >= 0).any()
    assert (run(boxes, scores * 0 - 1, groups) == -1).all()


def test_equal_scores_come_in_the_order_of_their_rows(in_onnx):
    """A box is kept next to far ones and suppresses its copy; a score of zero is a candidate."""
    model, run = in_onnx
    boxes = torch.tensor([[[0, 0, 9, 9], [20, 0, 29, 9], [0, 0, 9, 9], [40, 0, 49, 9]]]).float()
    scores, groups = torch.tensor([[0.0, 0.5, 0.0, 0.5]]), torch.tensor([[0, 1, 2, 3]])
    expected = [1, 3, 0, 2] if model.grouped else [1, 3, 0, -1]
    assert run(boxes, scores, groups).tolist() == [expected]
