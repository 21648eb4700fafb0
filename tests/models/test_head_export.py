"""Every head of the package exports with a dynamic batch, and the exported model computes the same:
a new head is tested by being exported from `visionkit.models.heads`."""

import pytest
import torch
from test_contracts_edges import small_model
from torch import nn

from visionkit.models import heads

SIZE = (64, 96)


class Network(nn.Module):
    """Backbone, neck and one head, from images to the tensors that `decode` takes."""

    def __init__(self, model):
        super().__init__()
        self.backbone, self.neck, self.head = model.backbone, model.neck, model.heads["head"]

    def forward(self, images, sizes, boxes=None):
        of_boxes = () if boxes is None else (boxes,)
        return self.head(self.neck(self.backbone(images)), sizes, *of_boxes)


def inputs(head, count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, *SIZE), generator=generator, dtype=torch.uint8)
    sizes = torch.tensor([[SIZE[0] - 7 * i % 40, SIZE[1] - 11 * i % 60] for i in range(count)])
    if head.boxes_from is None:
        return images, sizes
    corners = torch.rand(count, 5, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 4 + 20 * torch.rand(count, 5, 2)], -1)
    boxes[0, 3:] = 0  # padding: an image with fewer boxes
    return images, sizes, boxes


# These also export in tests/engine/export or test_rcnn_export.py, or take long.
SLOW = ("TaskAligned", "AlignedMask", "RTDETR", "FasterRCNN", "MaskRCNN", "RetinaNet", "FCOS")
PARAMS = [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in heads.__all__]


@pytest.fixture(scope="module", params=PARAMS)
def network(request):
    model = small_model(getattr(heads, request.param), 3).eval()
    for parameter in model.heads["head"].parameters():  # or all scores are nearly the same
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.05)
    return Network(model).eval()


def test_an_exported_model_takes_any_batch_and_computes_the_same(network):
    arguments = inputs(network.head, 2, seed=0)
    batch = torch.export.Dim("batch")
    dynamic = tuple({0: batch} for _ in arguments)
    with torch.no_grad():
        exported = torch.export.export(network, arguments, dynamic_shapes=dynamic).module()
        for count in (2, 5):
            arguments = inputs(network.head, count, seed=count)
            expected, found = network(*arguments), exported(*arguments)
            assert expected.keys() == found.keys() and expected
            for name, value in expected.items():
                assert len(value) == count
                torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4, msg=name)


def test_shapes_do_not_depend_on_values(network):
    """Nor on whether the images are padded."""
    images, sizes, *boxes = inputs(network.head, 2, seed=0)
    with torch.no_grad():
        shapes = [
            {name: value.shape for name, value in network(one, two, *boxes).items()}
            for one, two in ((images, sizes), (images * 0, sizes), (images, None))
        ]
    assert shapes[0] == shapes[1] == shapes[2]
