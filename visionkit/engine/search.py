"""Image retrieval: the images of a gallery with the nearest embeddings for each query image."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from copy import copy
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from visionkit.engine.inputs import find_images
from visionkit.engine.predict import Overrides, loaded, predict_each
from visionkit.engine.prediction import Prediction
from visionkit.engine.predictor import BasePredictor
from visionkit.engine.results import results_folder
from visionkit.errors import ConfigError, DataError, DivergedError, check_counts, printable
from visionkit.runs.files import to_json, write_text
from visionkit.types import as_numpy
from visionkit.visualization.draw import Pixels, as_image, contact_sheet, save_image

log = logging.getLogger("visionkit")

ROWS = 20  # queries on the contact sheet
CELL, FRAME, LINE = 144, 4, 20  # its sizes in pixels
TINY = 1e-12  # least length of a vector
QUERY_COLOR, TEXT_COLOR = (214, 39, 40), (40, 40, 40)


class Match(NamedTuple):
    """An image of the gallery that is near to a query.

    path: the file.
    name: its name: relative to the folder that was given.
    similarity: the cosine of the two embeddings, -1 to 1.
    """

    path: Path
    name: str
    similarity: float


class SearchResult(NamedTuple):
    """The nearest images of a query.

    path: the file of the query.
    name: its name: relative to the folder that was given.
    nearest: the nearest images of the gallery, the most similar first.
    """

    path: Path
    name: str
    nearest: list[Match]


Inputs: TypeAlias = str | Path | Sequence[str | Path]


def search(
    model: str | Path | BasePredictor,
    queries: Inputs,
    gallery: Inputs,
    overrides: Overrides = (),
    *,
    top: int = 5,
    head: str | None = None,
    allow_plugins: bool = False,
) -> list[SearchResult]:
    """The `top` images of the gallery that are nearest to each query, by their embeddings.

    `model` is a run directory, a checkpoint, an ONNX file or what `load` returned; `queries` and
    `gallery` are images, folders of images, or lists of these. An image does not match itself. An
    unreadable image is logged and skipped. `head` is the embedding head, where the model has
    several; `overrides` and `allow_plugins` as for `load`.

    Raises ConfigError if there is no embedding head or `head` is unknown; DataError if no query or
    no image of the gallery can be read.
    """
    check_counts(top=top)
    predictor = loaded(model, overrides, allow_plugins=allow_plugins)
    predictor = _of_head(predictor, _embedding_head(predictor, head))
    return _search(predictor, _images(queries), _images(gallery), top)[0]


def search_files(
    model: str | Path | BasePredictor,
    queries: Inputs,
    gallery: Inputs,
    out: str | Path,
    overrides: Overrides = (),
    *,
    top: int = 5,
    head: str | None = None,
    allow_plugins: bool = False,
) -> int:
    """`search`, with the results in the folder `out`; returns how many images could not be read.

    Writes OUT/matches.json, a record for each query with its `nearest` images and their
    `similarity`, the cosine of the embeddings (-1 to 1), in descending order; and OUT/matches.jpg,
    a row for each of the first queries. Raises ConfigError too if `out` has other content.
    """
    check_counts(top=top)
    predictor = loaded(model, overrides, allow_plugins=allow_plugins)
    predictor = _of_head(predictor, _embedding_head(predictor, head))
    out = Path(out)
    asked, offered = _images(queries, out), _images(gallery, out)
    with results_folder(out, [*_listed(queries), *_listed(gallery)], "matches.json"):
        found, unreadable = _search(predictor, asked, offered, top)
        records = [
            {
                "query": result.name,
                "nearest": [
                    {"file_name": match.name, "similarity": match.similarity}
                    for match in result.nearest
                ],
            }
            for result in found
        ]
        write_text(out / "matches.json", to_json(records) + "\n")
        save_image(_sheet(predictor, found[:ROWS]), out / "matches.jpg", quality=90)
        return unreadable


def _of_head(predictor: BasePredictor, head: str) -> BasePredictor:
    """The same with that head alone: the others would only cost time."""
    predictor = copy(predictor)
    predictor.heads = [head]
    return predictor


def _search(
    predictor: BasePredictor, asked: dict[Path, str], offered: dict[Path, str], top: int
) -> tuple[list[SearchResult], int]:
    """The result of each readable query, and how many images could not be read."""
    files = dict.fromkeys([*asked, *offered])
    vectors = _embeddings(predictor, predictor.heads[0], files)
    asked = {file: name for file, name in asked.items() if file in vectors}
    offered = {file: name for file, name in offered.items() if file in vectors}
    if not asked or not offered:
        which = "queries" if not asked else "images of the gallery"
        raise DataError(f"search: none of the {which} could be read")
    return _nearest(vectors, asked, offered, top), len(files) - len(vectors)


def _embedding_head(predictor: BasePredictor, wanted: str | None) -> str:
    embedding = [name for name in predictor.heads if predictor.has_embedding(name)]
    if wanted in embedding:
        return wanted
    if wanted is None and len(embedding) == 1:
        return embedding[0]
    if not embedding:
        raise ConfigError(
            f"search: the model has no embedding head, only {', '.join(predictor.heads)}; "
            "train one with task: embedding"
        )
    what = "several embedding heads" if wanted is None else f"no embedding head {wanted!r}"
    raise ConfigError(f"search: the model has {what}; choose one: {', '.join(embedding)}")


def _listed(inputs: Inputs) -> list[str | Path]:
    return [inputs] if isinstance(inputs, (str, Path)) else [*inputs]


def _images(inputs: Inputs, out: Path | None = None) -> dict[Path, str]:
    """Each image once, by file, with its name; without the sheet of an earlier search in `out`."""
    files = {file.resolve(): name for file, name in find_images(_listed(inputs))}
    own = None if out is None else out.resolve()
    return {file: name for file, name in files.items() if own not in file.parents}


def _embeddings(
    predictor: BasePredictor, head: str, files: Iterable[Path]
) -> dict[Path, np.ndarray]:
    """The embedding (D,) of each image that can be read."""

    def vector(file: Path, prediction: Prediction) -> np.ndarray:
        found = as_numpy(prediction.heads[head]["embedding"])
        if not np.isfinite(found).all():
            raise DivergedError(f"image {file}: the predicted 'embedding' is not finite")
        return found / max(np.linalg.norm(found), TINY)

    vectors: dict[Path, np.ndarray] = {}
    with closing(predict_each(predictor, [*files], vector)) as found:
        for file, result in found:
            if isinstance(result, DataError):
                log.error("skipped: %s", result)
            else:
                vectors[file] = result
    return vectors


def _nearest(
    vectors: dict[Path, np.ndarray], asked: dict[Path, str], offered: dict[Path, str], top: int
) -> list[SearchResult]:
    """Of equal cosines, the image that was given first comes first."""
    files = list(offered)
    gallery = np.stack([vectors[file] for file in files])
    found = []
    for query, name in asked.items():
        cosines = (gallery @ vectors[query]).clip(-1, 1)  # rounding
        ranked = np.argsort(-cosines, kind="stable")[: top + 1].tolist()
        matches = [Match(files[i], offered[files[i]], float(cosines[i])) for i in ranked]
        others = [match for match in matches if match.path != query]
        found.append(SearchResult(query, name, others[:top]))
    return found


def _sheet(predictor: BasePredictor, found: list[SearchResult]) -> Image.Image:
    """A row for each query: the query, framed, then its nearest images with their cosine."""
    columns = 1 + max(len(result.nearest) for result in found)
    cells = []
    for result in found:
        row = [_cell(predictor.read(result.path), result.name, framed=True)]
        row += [_cell(predictor.read(m.path), f"{m.similarity:.3f}") for m in result.nearest]
        blank = Image.new("RGB", row[0].size, "white")
        cells += row + [blank] * (columns - len(row))
    return contact_sheet(cells, columns)


def _cell(pixels: Pixels, caption: str, *, framed: bool = False) -> Image.Image:
    """An image of the sheet with its caption below."""
    cell = Image.new("RGB", (CELL, CELL + LINE), "white")
    image = as_image(pixels)
    side = CELL - 2 * FRAME
    image = ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)
    cell.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(size=LINE * 0.65)
    if framed:
        pen.rectangle([0, 0, CELL - 1, CELL - 1], outline=QUERY_COLOR, width=FRAME)
    caption = printable(caption)
    while font.getlength(caption) > CELL:  # the end of a long path says more
        caption = "…" + caption[2:]
    pen.text((0, CELL + 2), caption, fill=TEXT_COLOR, font=font)
    return cell
