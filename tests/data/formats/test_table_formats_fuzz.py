"""CSV files, maps and panoptic files with random damage: a result or a data error."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from support.format_files import image
from support.fuzzing import TOKENS, damaged, reshaped
from visionkit.data.formats.color_tables import read_classes
from visionkit.data.formats.convert import read_index_of
from visionkit.data.formats.detect import open_reader
from visionkit.errors import DataError

RUNS = 2000
CSV = (
    "file,label\na.png,dog\nsub/b.png,ox\na.png,dog\n",
    "file;cat;dog;ox\na.png;1;0;-1\nsub/b.png;;1;0\n",
    "image,width,height,class,xmin,ymin,xmax,ymax,iscrowd,id\n"
    'a.png,40,30,"dog",1,2.5,9,8,0,7\nsub/b.png,40,30,ox,0,0,3,3,1,8\na.png,40,30,,,,,,0,9\n',
    "path\tx\ty\twidth\theight\tlabel\na.png\t1\t2\t3\t4\tox\n",
)
CLASSES = (
    ("classes.yaml", "background: 0\ncat: 1\ndog: [1, 2, 3]\nignore: 255\n"),
    ("classes.csv", "name,r,g,b\nbackground,0,0,0\ncat,1,1,1\ndog,2,2,2\n"),
    ("classes.json", '{"names": {"0": "background", "1": "cat", "2": "dog"}}'),
    ("labelmap.txt", "background:0,0,0::\ncat:1,1,1::\ndog:2,2,2::\n"),
)


def other_cell(data, rng):
    """A CSV file with one cell replaced."""
    lines = data.decode().split("\n")
    place = rng.randrange(len(lines) - 1)
    separator = max(",;\t", key=lines[0].count)
    cells = lines[place].split(separator)
    tokens = [*TOKENS, "a.png", "1", "0.5", "dog", '"', "xmin", "label", "file", "-1", "1;2"]
    cells[rng.randrange(len(cells))] = rng.choice(tokens)
    lines[place] = separator.join(cells)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def read(format, source, skip_bad, **options):
    """Whether all records could be read."""
    try:
        index = read_index_of(open_reader(format, source, skip_bad=skip_bad, **options))
    except DataError as error:
        assert all(line.isprintable() for line in str(error).split("\n"))
        return False
    assert len(index.images.ids)
    return True


def fuzz_csv(root, rng):
    for name in ("a.png", "sub/b.png"):
        image(root / name)
    while True:
        text = rng.choice(CSV).encode()
        data = (other_cell if rng.random() < 0.6 else damaged)(text, rng)
        if rng.random() < 0.1:
            data = data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-8-sig")))
        (root / "a.csv").write_bytes(data)
        yield read("csv", root / "a.csv", rng.random() < 0.5), data


def fuzz_masks(root, rng):
    values = np.random.default_rng(0).integers(0, 3, (30, 40)).astype(np.uint8)
    for name in ("a", "b"):
        image(root / "images" / f"{name}.png")
        for folder in ("labels", "instances"):
            (root / folder).mkdir(exist_ok=True)
            deep = values if folder == "labels" else (values > 0).astype(np.uint16)
            Image.fromarray(deep).save(root / folder / f"{name}.png")
    while True:
        file, text = rng.choice(CLASSES)
        paths = [root / "labels" / "a.png", root / "instances" / "b.png", root / file]
        paths[2].write_text(text)
        path = rng.choice(paths)
        original = path.read_bytes()
        path.write_bytes(data := damaged(original, rng))
        try:
            yield read("masks", root, rng.random() < 0.5), (path.name, data)
            read_classes(root / file)
        except DataError:
            pass
        path.write_bytes(original)
        paths[2].unlink()


def fuzz_panoptic(root, rng):
    rgb = np.zeros((30, 40, 3), np.uint8)
    rgb[:9, :9], rgb[20:, 20:] = [7, 0, 0], [0, 1, 0]
    (root / "instances").mkdir()
    Image.fromarray(rgb).save(root / "instances" / "a.png")
    segments = [{"id": 7, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 9, 9], "area": 81}]
    segments += [{"id": 256, "category_id": 2, "iscrowd": 1, "annotation_id": 70}]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky"}],
    }
    text = json.dumps(content).encode()
    while True:
        data = (reshaped if rng.random() < 0.8 else damaged)(text, rng)
        (root / "instances.json").write_bytes(data)
        yield read("masks", root, rng.random() < 0.5), data


def run(fuzz, root, runs):
    """How many damaged inputs gave records, and how many a data error."""
    found, last = [], None
    attempts = fuzz(root, random.Random(0))
    try:
        for _ in range(runs):
            result, last = next(attempts)
            found.append(result)
    except Exception as error:
        error.add_note(f"run {len(found)}, after {last!r:.2000}")
        raise
    return sum(found), len(found) - sum(found)


@pytest.mark.slow
@pytest.mark.parametrize("fuzz", [fuzz_csv, fuzz_masks, fuzz_panoptic])
def test_damaged_tables_and_maps(tmp_path, fuzz):
    results, errors = run(fuzz, tmp_path, RUNS)
    assert min(results, errors) > RUNS / 20, (results, errors)


@pytest.mark.parametrize("fuzz", [fuzz_csv, fuzz_masks, fuzz_panoptic])
def test_some_damaged_tables_and_maps(tmp_path, fuzz):
    assert sum(run(fuzz, tmp_path, 40)) == 40
