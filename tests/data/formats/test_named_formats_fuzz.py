"""Files of Pascal VOC, LabelMe and CVAT with random damage: a result or a data error."""

import random
import re
import shutil

import pytest

from support.format_files import cvat, image, labelme, objects, png, shape, voc
from support.fuzzing import TOKENS, damaged, reshaped
from support.paths import ROOT
from visionkit.data.formats.convert import read_index_of
from visionkit.data.formats.detect import open_reader
from visionkit.errors import DataError

RUNS = 2000


def replaced(data, rng):
    """An XML file with one tag, text or value of an attribute replaced."""
    text = data.decode()
    found = rng.choice([*re.finditer(r'(?<=")[^"<>]*(?=")|(?<=>)[^<>\n]+(?=<)|(?<=<)/?\w+', text)])
    token = rng.choice([found[0], "0", "7", "-3", "x", "2.5", "1,2", *TOKENS])
    return (text[: found.start()] + token + text[found.end() :]).encode("utf-8", "surrogatepass")


def seeds(root, format):
    """Good files, of which one is damaged each time."""
    image(root / "a.png")
    if format == "voc":
        flags = "<pose>Left</pose><truncated>1</truncated><part><name>x</name></part>"
        more = "<attributes><attribute><name>a</name><value>1</value></attribute></attributes>"
        voc(root / "a.xml", objects("dog", (1, 1, 9, 9), flags) + objects("ox", (2, 2, 3, 3), more))
        return [root / "a.xml"]
    if format == "labelme":
        square = [[2, 2], [8, 2], [8, 8], [2, 8]]
        shapes = [
            shape("dog", square, group_id=1, flags={"wet": True}),
            shape("dog", square[:2], "circle", group_id=1),
            shape("ox", [[1, 2], [3, 2]], "mask", mask=png([[1, 0, 1]])),
            shape("cat", square[::2], "rectangle", attributes={"a": 1}, description="x"),
        ]
        labelme(root / "a.json", shapes)
        return [root / "a.json"]
    shapes = '<box label="dog" occluded="1" xtl="1" ytl="2" xbr="9" ybr="8" rotation="10"></box>'
    shapes += '<mask label="ox" rle="1, 2, 1" left="3" top="2" width="2" height="2"></mask>'
    shapes += '<polygon label="ox" points="1,2;3,4;5,2" group_id="1"></polygon><tag label="x"/>'
    cvat(root / "small.xml", f'<image id="0" name="a.png" width="40" height="30">{shapes}</image>')
    shutil.copy(ROOT / "tests" / "fixtures" / "cvat" / "annotations.xml", root)
    return [root / "annotations.xml", root / "small.xml"]


def fuzz(root, format, runs):
    """How many damaged files gave records, and how many a data error."""
    rng, files = random.Random(0), seeds(root, format)
    originals, results, errors = [path.read_bytes() for path in files], 0, 0
    for run in range(runs):
        place = rng.randrange(len(files))
        gentle = reshaped if format == "labelme" else replaced
        change = gentle if rng.random() < 0.7 else damaged
        data = change(originals[place], rng)
        files[place].write_bytes(data)
        source = files[place] if format == "cvat" else root
        try:
            skip_bad = bool(rng.randrange(2))
            index = read_index_of(open_reader(format, source, skip_bad=skip_bad))
            results += 1
            assert len(index.images.ids)
        except DataError as error:
            assert all(line.isprintable() for line in str(error).split("\n"))
            errors += 1
        except Exception as error:
            error.add_note(f"run {run}: {data[:2000]!r}")
            raise
        files[place].write_bytes(originals[place])
    return results, errors


@pytest.mark.slow
@pytest.mark.parametrize("format", ["voc", "labelme", "cvat"])
def test_damaged_files(tmp_path, format):
    results, errors = fuzz(tmp_path, format, RUNS)
    assert min(results, errors) > RUNS / 10, (results, errors)


@pytest.mark.parametrize("format", ["voc", "labelme", "cvat"])
def test_some_damaged_files(tmp_path, format):
    assert sum(fuzz(tmp_path, format, 40)) == 40
