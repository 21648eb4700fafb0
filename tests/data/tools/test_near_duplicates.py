"""Near duplicates are found, and different images are not taken for them."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from visionkit.data.tools.near_duplicates import CLOSE, distances, look, look_all, near_groups


def noise(rng, size=(96, 128)):
    """An image of smooth random spots."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return coarse.resize(size[::-1], Image.Resampling.BICUBIC)


CHANGES = {
    "compressed": (lambda image: image, 40),
    "half as large": (lambda image: image.resize((image.width // 2, image.height // 2)), 90),
    "enlarged": (lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2)), 90),
    "brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.1), 90),
    "less contrast": (lambda image: ImageEnhance.Contrast(image).enhance(0.8), 90),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(tmp_path, change):
    function, quality = CHANGES[change]
    rng = np.random.default_rng(3)
    paths = []
    for i in range(6):
        image = noise(rng)
        for name, one, q in ((f"{i}.png", image, 0), (f"{i}.jpg", function(image), quality)):
            one.save(tmp_path / name, quality=q)
            paths.append(tmp_path / name)
    hashes = np.array([one.hash for one in look_all(paths)], np.uint64)
    assert near_groups(hashes) == [[2 * i, 2 * i + 1] for i in range(6)]


def test_the_hash_is_that_of_a_plain_computation(tmp_path):
    """Each bit of a 9x8 gray image, whose pixels are those of the file."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    bits = "".join(
        "1" if pixels[row, column] < pixels[row, column + 1] else "0"
        for row in range(8)
        for column in range(8)
    )
    assert look(tmp_path / "a.png") == (int(bits, 2), 8, 9, "")


def test_an_image_that_is_stored_turned_is_turned_upright(tmp_path):
    image = noise(np.random.default_rng(1))
    image.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert look(tmp_path / "turned.png") == look(tmp_path / "upright.png")
    assert look(tmp_path / "turned.png", exif="ignore")[1:] == (128, 96, "")


def test_an_unreadable_image_has_a_fault(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (tmp_path / "b.jpg").write_bytes(b"")
    faults = [one.fault for one in look_all([tmp_path / name for name in ("a.jpg", "b.jpg", "c")])]
    assert "damaged" in faults[0]
    assert "is empty" in faults[1]
    assert "does not exist" in faults[2]


def naive_groups(hashes):
    """Connected components, pair by pair."""
    groups = [{i} for i in range(len(hashes))]
    for i, one in enumerate(hashes):
        for j in range(i):
            if bin(int(one) ^ int(hashes[j])).count("1") <= CLOSE:
                ours = next(g for g in groups if i in g)
                theirs = next(g for g in groups if j in g)
                if ours is not theirs:
                    ours |= theirs
                    groups.remove(theirs)
    return sorted(sorted(group) for group in groups if len(group) > 1)


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_all_pairs(seed):
    """Hashes from 0 to 8 bits from others, so that pairs lie on both sides of the limit."""
    rng = np.random.default_rng(seed)
    hashes = list(map(int, rng.integers(0, 2**64, 20, np.uint64)))
    for _ in range(60):
        bits = rng.choice(64, rng.integers(0, 9), replace=False)
        hashes.append(hashes[rng.integers(len(hashes))] ^ sum(1 << int(bit) for bit in bits))
    found = near_groups(np.array(hashes, np.uint64))
    assert found == naive_groups(hashes)
    assert len(found) > 3


def test_distances_count_bits():
    one = np.array([0, 0b1011, 2**64 - 1], np.uint64)
    assert distances(one, np.array([0, 0, 0], np.uint64)).tolist() == [0, 3, 64]


def test_no_image_and_one_have_no_groups():
    assert near_groups(np.zeros(0, np.uint64)) == []
    assert near_groups(np.zeros(1, np.uint64)) == []
    assert near_groups(np.zeros(3, np.uint64)) == [[0, 1, 2]]


@pytest.mark.parametrize("name", ["bccd/images", "coco_mini", "nuts/images"])
def test_different_real_images_are_not_near(real_data, name):
    """No pair of 66,066, 52,326 and 153 is: the images of these datasets are all different."""
    paths = sorted(path for path in (real_data / name).rglob("*.jpg"))
    hashes = np.array([one.hash for one in look_all(paths)], np.uint64)
    assert len(paths) >= 18
    assert near_groups(hashes) == []
