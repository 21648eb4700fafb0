import numpy as np
from pycocotools import mask as coco_mask

from visionkit.data.formats.base import Reader
from visionkit.data.formats.polygons import (
    OTHER_PARTS,
    bridged,
    largest,
    outline,
    parts_of,
    polygons_of,
    signed_area,
)


def painted(polygons, size):
    """The union of the polygons, as pycocotools paints it."""
    if not polygons:
        return np.zeros(size, np.uint8)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)))


def bitmaps():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = rng.integers(1, 12, 2)
        yield (rng.random(size) < rng.random()).astype(np.uint8)


def count_parts(mask):
    """Connected parts by flood fill over all eight neighbors."""
    left, count = {(int(y), int(x)) for y, x in np.argwhere(mask)}, 0
    while left:
        count += 1
        front = [left.pop()]
        while front:
            y, x = front.pop()
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front += near
    return count


def test_an_outline_is_painted_as_the_mask():
    for mask in bitmaps():
        polygons = outline(mask, mask.shape)
        assert (painted(polygons, mask.shape) == mask).all()
        assert len(polygons) == count_parts(mask)
        assert sum(map(signed_area, polygons)) == mask.sum()


def test_all_parts_and_holes_fit_into_one_polygon():
    for mask in bitmaps():
        polygons = outline(mask, mask.shape)
        if polygons:
            one = bridged(polygons)
            assert (painted([one], mask.shape) == mask).all()
            assert signed_area(one) == mask.sum()


def test_the_outline_of_a_pixel_and_of_a_ring():
    assert outline(np.array([[0, 0], [0, 1]]), (2, 2)) == [[1, 1, 2, 1, 2, 2, 1, 2]]
    ring = np.ones((3, 3), np.uint8)
    ring[1, 1] = 0
    (polygon,) = outline(ring, (3, 3))
    assert signed_area(polygon) == 8
    corners = {(x, y) for x in (0, 3) for y in (0, 3)} | {(x, y) for x in (1, 2) for y in (1, 2)}
    assert set(zip(polygon[::2], polygon[1::2], strict=True)) == corners
    assert outline(np.zeros((4, 4), np.uint8), (4, 4)) == []


def test_every_form_of_an_rle_has_the_same_outline():
    mask = np.zeros((6, 8), np.uint8)
    mask[1:4, 2:7] = 1
    counts = [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 8]
    code = coco_mask.encode(np.asfortranarray(mask))
    text = {"size": [6, 8], "counts": code["counts"].decode()}
    for segmentation in ({"size": [6, 8], "counts": counts}, code, text):
        found = polygons_of({"segmentation": segmentation}, (6, 8))
        assert found == [[2, 1, 7, 1, 7, 4, 2, 4]]


def test_polygons_stay_and_faulty_ones_are_left_to_the_reader():
    assert polygons_of({"segmentation": [[1, 1, 5, 1, 5, 5]]}, (9, 9)) == [[1, 1, 5, 1, 5, 5]]
    for nothing in (None, [], {}, "", [[1, 2, 3]], {"size": [1, 1], "counts": [5]}):
        assert polygons_of({"segmentation": nothing}, (9, 9)) == []
    assert polygons_of({}, (9, 9)) == []


class NamedReader(Reader):
    name = "test"


SQUARES = [[1, 1, 4, 1, 4, 4, 1, 4], [10, 2, 10, 8, 16, 8, 16, 2]]  # clockwise and the other way


def one_of(segmentation, parts, size=(12, 20)):
    reader = NamedReader("source")
    polygon = parts_of({"segmentation": segmentation}, size, parts, reader, "a.jpg: object 3")
    return polygon, reader


def test_parts_are_bridged_without_a_pixel_more():
    polygon, reader = one_of(SQUARES, "bridge")
    assert (painted([polygon], (12, 20)) == painted(SQUARES, (12, 20))).all()
    assert abs(signed_area(polygon)) == 9 + 36
    assert not reader.losses.counts and not reader.problems.count


def test_overlapping_parts_are_bridged_as_their_union():
    overlapping = [[1, 1, 8, 1, 8, 8, 1, 8], [4, 4, 11, 4, 11, 11, 4, 11], [15, 1, 18, 1, 18, 5]]
    polygon, _ = one_of(overlapping, "bridge")
    assert (painted([polygon], (12, 20)) == painted(overlapping, (12, 20))).all()


def test_the_largest_part_is_kept_and_the_others_are_counted():
    polygon, reader = one_of([*SQUARES, [0, 0, 1, 0, 1, 1]], "largest")
    assert polygon == SQUARES[1] == largest(SQUARES)
    assert reader.losses.counts == {OTHER_PARTS: 2}
    assert reader.losses.places == {OTHER_PARTS: ["a.jpg: object 3"]}


def test_parts_can_be_an_error():
    _, reader = one_of(SQUARES, "error")
    (found,) = reader.problems.findings
    assert "a.jpg: object 3: has 2 polygons" in str(found) and "--parts bridge" in found.hint
    _, reader = one_of(SQUARES[:1], "error")
    assert not reader.problems.count
