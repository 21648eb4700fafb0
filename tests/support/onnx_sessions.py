"""Exported models in onnxruntime, compared with the model itself."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch

from visionkit.engine.export.compare import MATCHED, TENSORS, match_rows, tensor_differences
from visionkit.engine.export.graph import ExportModel

OBJECTS = 15  # about as many remain in the images that a threshold is chosen for


def images(shape, smaller=(0, 0), seed=0):
    """Images (N, 3, H, W), the second of them nearly black, and their valid sizes."""
    count, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, h, w), generator=generator, dtype=torch.uint8)
    pixels[1:2] //= 100  # not black: many scores would be equal, and their order by chance
    sizes = torch.tensor([[h - smaller[0] * i, w - smaller[1] * i] for i in range(count)])
    return pixels, sizes


def session(proto):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of `sizes`, which has a value
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


def run(session, **feeds):
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {name: value.numpy() for name, value in feeds.items()})
    return dict(zip(names, found, strict=True))


@torch.no_grad()
def eager(model, pixels, sizes, decode="full"):
    outputs = ExportModel(model, [*model.heads], decode).eval()(pixels, sizes)
    return {name: value.numpy() for name, value in outputs.items()}


def of_head(outputs, head):
    return {k.removeprefix(f"{head}_"): v for k, v in outputs.items() if k.startswith(f"{head}_")}


def assert_same(expected, found, head):
    """The outputs of a head: tensors, then objects."""
    expected, found = of_head(expected, head), of_head(found, head)
    assert expected.keys() == found.keys() and expected
    for name, value in expected.items():
        assert (value.shape, value.dtype) == (found[name].shape, found[name].dtype), name
        if value.dtype == np.uint8:  # rounding, or two classes that are as probable
            assert (value != found[name]).mean() < 0.005, name
    differences = tensor_differences(expected, found)
    assert max(differences.values(), default=0) <= TENSORS, differences
    if "count" not in expected:
        return
    np.testing.assert_array_equal(found["count"], expected["count"])
    same = total = 0
    for image, count in enumerate(expected["count"]):
        ours, theirs = (
            {key: of[key][image, :count] for key in ("boxes", "scores", "labels")}
            for of in (expected, found)
        )
        same, total = same + (match_rows(ours, theirs) >= 0).sum(), total + count
        assert not found["boxes"][image, count:].any()
    assert same >= MATCHED * total


def keep_few_objects(model, pixels, sizes):
    """Raise the thresholds to the widest gap between scores near OBJECTS: scores that are equal but
    for rounding would make the set of objects one of chance."""
    for name, head in model.heads.items():
        second = getattr(head, "roi_heads", head)
        if hasattr(second, "score_threshold"):
            second.score_threshold = 0.0
            scores = eager(model, pixels, sizes)[f"{name}_scores"].flatten()
            ranked = torch.tensor(scores).sort(descending=True).values[: 2 * OBJECTS]
            at = OBJECTS // 2 + int((ranked[:-1] - ranked[1:])[OBJECTS // 2 :].argmax())
            second.score_threshold = float((ranked[at] + ranked[at + 1]) / 2)
