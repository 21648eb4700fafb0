"""What the site has besides the pages of docs/: the pages of the repository's top and of the API.

README.md, CONTRIBUTING.md and CHANGELOG.md stay the only source of their pages. Their links, which
work on a code host, are rewritten to the site's paths. The API pages list what the package exports.
"""

import posixpath
import pydoc
import re
from pathlib import Path

import griffe
import nbformat
import notebooks
from mkdocs.structure.files import File

import visionkit
from visionkit import errors, types
from visionkit.config.components import PACKAGES, components

ROOT = Path(__file__).parents[2]
TOP_PAGES = {  # file of the repository -> page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "about/contributing.md",
    "CHANGELOG.md": "about/changes.md",
}
FENCE = re.compile(r"(?ms)^ *```.*?^ *```")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
# Of what no `type:` names, the parts that the pages mention or that are useful alone.
METRICS = (
    "coco.evaluator.evaluate_coco",
    "coco.ground_truth.read_truth",
    "accuracy.Accuracy",
    "accuracy.MultiLabelAccuracy",
    "accuracy.LocalizationAccuracy",
    "accuracy.AttributeAccuracy",
    "confusion.ConfusionMatrix",
    "retrieval.Retrieval",
    "reconstruction.Reconstruction",
    "report.Coverage",
)
OPS = (
    "boxes.box_iou",
    "boxes.box_ioa",
    "boxes.encode",
    "boxes.decode",
    "boxes.clip",
    "losses.sigmoid_focal_loss",
    "losses.quality_focal_loss",
    "losses.marginal_cross_entropy",
    "losses.giou_loss",
    "nms.nms",
    "roi_align.roi_align",
)
OTHERS = (
    "models.model.VisionModel",
    "models.build.build_model",
    "data.transforms.Compose",
    "data.loading.source.collate",
    "engine.optim.build_optimizer",
    "engine.optim.lr_factor",
    "data.coco.ground_truth.GroundTruth",
)


def public(where):
    """The names of `visionkit` of `functions`, `types` or `errors`; functions before classes."""
    first = ("VisionkitError",)  # the base of the others
    names = sorted(visionkit.__all__, key=lambda n: (not n.islower(), n not in first, n))
    for name in names:
        home = "types"
        if visionkit._HOME.get(name, "data.sample") not in ("data.sample", "models.head"):
            home = "functions"
        elif hasattr(errors, name):
            home = "errors"
        if home == where:
            yield f"visionkit.{name}"


def section(name):
    return [f"{PACKAGES[name]}.{component}" for component in components(name)]


def mentioned():
    """The other classes and functions whose full names are in the pages."""
    known = {getattr(visionkit, name).__name__ for name in visionkit.__all__}
    text = "".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*/*.md")])
    for name in sorted({*re.findall(r"\bvisionkit(?:\.\w+)*\.\w+", text)}):
        value = pydoc.locate(name)
        if callable(value) and value.__name__ not in known:
            yield name


def api_pages():
    """Path, title, first words and names of each API page."""
    named = "What `type:` can name under"
    layers = section("backbones") + section("necks")
    metrics = [f"visionkit.metrics.{name}" for name in METRICS]
    operations = [f"visionkit.ops.{name}" for name in OPS]
    pages = [
        ("index", "Functions", "Attributes of `visionkit`.", [*public("functions")]),
        ("types", "Types", "The contracts between the parts.", [*public("types")]),
        ("errors", "Errors", "What visionkit raises.", [*public("errors")]),
        ("heads", "Heads", f"{named} `head` and `heads`.", section("heads")),
        ("backbones", "Backbones and necks", f"{named} `backbone` and `neck`.", layers),
        ("datasets", "Datasets", f"{named} `train` and `val` of a source.", section("datasets")),
        ("transforms", "Transforms", f"{named} `transforms`.", section("transforms")),
        ("loggers", "Loggers", f"{named} `train.loggers`.", section("loggers")),
        ("metrics", "Metrics", "Evaluators of heads, and COCO's metrics of files.", metrics),
        ("ops", "Operations", "Boxes, losses, pooling.", operations),
    ]
    shown = {name for _, _, _, names in pages for name in names}
    others = {f"visionkit.{name}" for name in OTHERS} | {*mentioned()}
    words = "For custom parts and training loops."
    return [*pages, ("others", "Other parts", words, sorted(others - shown))]


def api_page(title, words, names):
    """A page of mkdocstrings' blocks: of components the arguments, of types and errors all."""
    blocks = []
    for name in names:
        options = ""
        if name.startswith(tuple(PACKAGES.values())):
            options = "\n    options: {members: false}"
        elif title in ("Types", "Errors"):
            options = "\n    options: {show_if_no_docstring: true}"
        elif has_our_base(name):
            options = "\n    options: {inherited_members: true}"
        blocks.append(f"::: {name}{options}")
    return "\n\n".join([f"# {title}", words, *blocks]) + "\n"


def has_our_base(name):
    """Whether it is a class that inherits from another one of visionkit."""
    bases = getattr(pydoc.locate(name), "__mro__", ())[1:]
    return any(base.__module__.startswith("visionkit.") for base in bases)


def rewritten(text, source):
    """The Markdown of a file of the repository with the links that its page in the site needs."""
    here = posixpath.dirname(site_path(source) or source)

    def link(match):
        bang, words, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or ":" in path:
            return match[0]
        place = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        if place is None:  # a file of the repository that the site does not have
            return words
        anchor = anchor and f"#{anchor}"
        return f"{bang}[{words}]({posixpath.relpath(place, here or '.')}{anchor})"

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(link, text[end:])])


def site_path(path):
    """The path in the site of a file of the repository, or None."""
    if path in TOP_PAGES:
        return TOP_PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def on_files(files, config):
    for source, page in TOP_PAGES.items():
        text = rewritten((ROOT / source).read_text(), source)
        files.append(File.generated(config, page, content=text))
    for path, title, words, names in api_pages():
        page = api_page(title, words, names)
        files.append(File.generated(config, f"api/{path}.md", content=page))
    for task in notebooks.TASKS:
        text = nbformat.writes(notebooks.notebook(task))
        files.append(File.generated(config, f"notebooks/{task}.ipynb", content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    if page.file.generated_by:
        return markdown
    text = rewritten(markdown, f"docs/{page.file.src_uri}")
    task = page.file.src_uri.removeprefix("tasks/").removesuffix(".md")
    if task in notebooks.TASKS:
        title, _, rest = text.partition("\n")
        link = f"[Download as a notebook](../notebooks/{task}.ipynb){{ .md-button download }}"
        text = f"{title}\n\n{link}\n{rest}"
    return text


class Docstrings(griffe.Extension):
    """The package's docstrings and comments as Markdown."""

    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = escaped(bulleted(obj.docstring.value))

    def on_attribute(self, *, attr, **_):
        """A field of a class is explained by its comment; what `__init__` sets is internal."""
        in_class = attr.parent.is_class and not attr.source.lstrip().startswith("self.")
        if in_class and not attr.docstring and (words := comment(attr)):
            attr.docstring = griffe.Docstring(escaped(words), parent=attr)

    def on_function(self, *, func, **_):
        """What an evaluator does not say of its methods, the contract says."""
        contract = getattr(types.Evaluator, func.name, None) if func.parent.is_class else None
        if contract and contract.__doc__ and not func.docstring:
            func.docstring = griffe.Docstring(contract.__doc__, parent=func)


ARGUMENT = re.compile(r"([a-z_][\w*]*(?:, [a-z_][\w*]*)*): (?=\S)")


def bulleted(docstring):
    """The docstring with each paragraph of `name: words` lines as a list."""
    paragraphs = docstring.split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        lines = paragraph.splitlines()
        heads = [line for line in lines if line and not line.startswith(" ")]
        if heads and all(ARGUMENT.match(line) for line in heads):
            marked = [ARGUMENT.sub(lambda m: f"- `{m[1]}`: ", line, count=1) for line in lines]
            paragraphs[number] = "\n".join(marked)
    return "\n\n".join(paragraphs)


def escaped(docstring):
    """With `<head>` as it is written, not as a tag; code is left alone."""
    parts = re.split(r"(`[^`]*`|^ {4,}.*$)", docstring, flags=re.MULTILINE)
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)


def comment(attr):
    """What the comment behind a field says, or those above it."""
    behind = re.search(r"  # (?!type:)(.+)", attr.source)
    if behind:
        return behind[1]
    found, lines = [], attr.module.lines_collection[attr.filepath]
    for line in reversed(lines[: attr.lineno - 1]):
        if not line.strip().startswith("# "):
            break
        found.insert(0, line.strip().removeprefix("# "))
    return " ".join(found)
