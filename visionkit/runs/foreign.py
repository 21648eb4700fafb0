"""What a file is that is not a visionkit checkpoint: the kind of its content, and of its weights.

Nothing here runs code of the file: bytes, names and shapes are enough for a message.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionkit.errors import listed
from visionkit.runs.files import open_regular

START = 1024  # bytes that show the kind of a file
# Files by how they begin: a regex of the first bytes, and what it is.
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer instead of the file; run: git lfs pull"),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)",
        "an HTML page, as a website sends when a download needs a login or another address",
    ),
    (rb"(\xef\xbb\xbf)?\s*<(\?xml|!doctype|\w+)", "an XML file"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes; visionkit reads PyTorch's files"),
    (rb"\x1f\x8b", "a gzip archive; unpack it first"),
    (rb"BZh|\xfd7zXZ\x00|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!", "an archive; unpack it first"),
    (rb"(?s).{257}ustar", "a tar archive; unpack it first"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP", "an image"),
    (rb"%PDF", "a PDF document"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"GGUF", "a GGUF file of a language model"),
    (rb"(?s).{4}TFL3", "a TensorFlow Lite model"),
    (rb"SQLite format 3", "an SQLite database"),
    (rb"\x08[\x01-\x20](\x12|B|:)", "an exported model in ONNX; use a file with the state_dict"),
    (rb"\x7fELF|MZ", "a program"),
)
# Members of zip archives that are not torch's
MEMBERS: tuple[tuple[str, str], ...] = (
    (r"model\.weights\.h5$", "a Keras model; visionkit reads PyTorch's files"),
    (r"saved_model\.pb$", "a TensorFlow model; visionkit reads PyTorch's files"),
    (r"\.npy$", "NumPy arrays; save tensors with torch.save"),
    (r"\[Content_Types\]\.xml$", "an Office document"),
    (
        r"(^|/)models/[^/]+\.json$|serialized_exported_program\.json$",
        "an exported program of torch.export (.pt2); use a file with the state_dict",
    ),
    (r"constants\.pkl$", "an exported model in TorchScript; use a file with the state_dict"),
)
# Classes in a pickle, by their package
PROGRAMS: tuple[tuple[str, str], ...] = (
    (r"(ultralytics|models\.yolo)\b", "a checkpoint of Ultralytics YOLO"),
    (r"(pytorch_lightning|lightning)\b", "a checkpoint of PyTorch Lightning"),
    (r"(mmengine|mmcv|mmdet)\b", "a checkpoint of MMEngine"),
    (r"sklearn\b", "a model of scikit-learn"),
    (r"torchvision\.models\b|__main__\b|timm\b", "a whole model that was pickled"),
    (r"argparse\b", "a checkpoint of a training script, such as torchvision's, with its options"),
)
VISIONKIT_MODEL = "a visionkit model"
# Architectures by their names of tensors: all patterns must occur. The first that fits counts.
ARCHITECTURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (VISIONKIT_MODEL, (r"heads\.\w+\.", r"backbone\.")),
    ("transformers' RT-DETR", (r"(model\.)?encoder_input_proj\.", r"(model\.)?enc_score_head\.")),
    ("torchvision's Keypoint R-CNN", (r"rpn\.", r"roi_heads\.keypoint_")),
    ("torchvision's Mask R-CNN v2", (r"roi_heads\.mask_", r"roi_heads\.box_head\.0\.0\.")),
    ("torchvision's Mask R-CNN", (r"rpn\.", r"roi_heads\.mask_")),
    ("torchvision's Faster R-CNN v2", (r"rpn\.", r"roi_heads\.box_head\.0\.0\.")),
    ("torchvision's Faster R-CNN", (r"rpn\.", r"roi_heads\.box_")),
    ("torchvision's FCOS", (r"head\.regression_head\.bbox_ctrness",)),
    ("torchvision's RetinaNet", (r"head\.regression_head\.bbox_reg", r"backbone\.")),
    ("torchvision's SSD", (r"head\.classification_head\.module_list",)),
    ("torchvision's LR-ASPP", (r"classifier\.(cbr|low_classifier)",)),
    ("torchvision's DeepLabV3", (r"backbone\.", r"classifier\.0\.convs\.")),
    ("torchvision's FCN", (r"backbone\.", r"classifier\.4\.")),
    ("a Detectron2 model", (r"backbone\.bottom_up\.|proposal_generator\.",)),
    ("an OpenMMLab model", (r"(bbox_head|rpn_head|roi_head|decode_head)\.",)),
    ("DETR", (r".*query_(embed|position)", r"(.*\.)?(class_embed|class_labels_classifier)")),
    ("Ultralytics YOLO", (r"(model\.)*\d+\.(conv|cv1|cv2)\.",)),
    ("a model of segmentation_models_pytorch", (r"encoder\.", r"segmentation_head\.")),
    ("CLIP", (r"(visual|vision_model)\.", r"(transformer|text_model)\.")),
    ("a vision transformer", (r"encoder\.layers\.encoder_layer_0|.*blocks\.0\.attn\.qkv",)),
    ("a Swin transformer", (r".*relative_position_bias_table",)),
    ("a ResNet", (r"conv1\.weight", r"layer4\.0\.conv1")),
    ("a ShuffleNet", (r"stage2\.0\.branch",)),
    ("a RegNet", (r"trunk_output\.",)),
    ("a DenseNet", (r"features\.denseblock1\.",)),
    ("a SqueezeNet", (r"features\.3\.squeeze\.",)),
    ("a ConvNeXt", (r"features\.1\.0\.layer_scale|stages\.0\.blocks\.0\.conv_dw",)),
    ("a MobileNet or EfficientNet", (r"features\.0\.0\.weight",)),
    ("a VGG network", (r"features\.0\.weight", r"classifier\.0\.")),
)
DEPTHS = {
    (2, 2, 2, 2, False): "ResNet-18",
    (3, 4, 6, 3, False): "ResNet-34",
    (3, 4, 6, 3, True): "ResNet-50",
    (3, 4, 23, 3, True): "ResNet-101",
    (3, 8, 36, 3, True): "ResNet-152",
}
# What to do with objects, whose code visionkit does not run
WITHOUT_OBJECTS = "; load it where it comes from and save its state_dict alone"
NESTED = ("state_dict", "model_state_dict", "model", "weights", "net", "network")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, other wrappers


def file_kind(path: Path) -> str:
    """What the content of a file looks like, with what to do; empty for unknown content."""
    with open_regular(path) as file:
        start = file.read(START)
    if not start:
        return "an empty file"
    if start.startswith(b"PK") and (names := _members(path)):
        return _zip_kind(path, names)
    found = next((kind for begins, kind in BEGINNINGS if re.match(begins, start)), "")
    if not found and path.suffix.lower() == ".onnx":
        found = "an exported model in ONNX; use a file with the state_dict"
    if not found and start.startswith(b"\x80"):  # a pickle, as torch wrote before 1.6
        found = _program(start.decode("latin-1").replace("\n", "."))
    if not found and _is_text(start):
        found = f"a text file that begins with {start[:40].decode(errors='replace').strip()!r}"
    return found


def _members(path: Path) -> list[str]:
    """The names in a zip archive; none if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


def _zip_kind(path: Path, names: list[str]) -> str:
    for member, kind in MEMBERS:
        if any(re.search(member, name) for name in names):
            return kind
    if not any(name.endswith("data.pkl") for name in names):
        return f"a zip archive of {', '.join(names[:3])}; unpack it first"
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # it raises anything on a file that torch did not write
        return ""
    others = f"a pickle of {', '.join(unsafe[:3])}{WITHOUT_OBJECTS}" if unsafe else ""
    return _program(" ".join(unsafe)) or others


def _program(classes: str) -> str:
    named = [kind for package, kind in PROGRAMS if re.search(rf"\b{package}", classes)]
    return f"{named[0]}, with objects of its program{WITHOUT_OBJECTS}" if named else ""


def _is_text(start: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r" for byte in start[:200])


def state_dict_of(content: Any) -> dict[str, Tensor] | None:
    """The state_dict in the content of a file, alone or under one of the usual keys, and without
    the prefixes of wrappers; None without any."""
    if not isinstance(content, Mapping):
        return None
    for key in NESTED:
        if isinstance(content.get(key), Mapping):
            return state_dict_of(content[key])
    tensors = {str(k): value for k, value in content.items() if isinstance(value, Tensor)}
    if not tensors or len(tensors) < len(content):
        return None
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in tensors)), ""):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def architecture(names: Mapping[str, Tensor]) -> str:
    """The architecture that has tensors of these names; empty for an unknown one."""
    for found, patterns in ARCHITECTURES:
        if all(any(re.match(pattern, name) for name in names) for pattern in patterns):
            resnet = resnet_name(names)
            if found == "a ResNet":
                return f"a {resnet}" if resnet else found
            return f"{found} with a {resnet}" if resnet else found
    return ""


def resnet_name(names: Iterable[str]) -> str:
    """`ResNet-50` for tensors of one, wherever it is in the model; empty for anything else."""
    blocks = [re.search(r"(?:^|\.)layer([1-4])\.(\d+)\.conv([123])\.weight$", n) for n in names]
    found = {(match[1], match[2]) for match in blocks if match}
    counts = Counter(stage for stage, _ in found)
    deep = any(match[3] == "3" for match in blocks if match)
    return DEPTHS.get((counts["1"], counts["2"], counts["3"], counts["4"], deep), "")


def content_kind(content: Any) -> str:
    """What the content of a file that torch has loaded looks like."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}, not a state_dict"
    if "pytorch-lightning_version" in content:
        return "a checkpoint of PyTorch Lightning"
    if {"format", "classes", "model"} <= content.keys():
        return "a visionkit checkpoint"
    tensors = state_dict_of(content)
    if tensors is None:
        return f"a dict with {listed(content, 5)}, not a state_dict"
    return architecture(tensors) or f"a state_dict with names such as {next(iter(tensors))!r}"
