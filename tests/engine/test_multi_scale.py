"""Sizes that change with the batch: models that take any size train, and others are refused."""

import pytest

import visionkit
from support.rtdetr import small_config
from support.runs import spec
from visionkit.config import load_config
from visionkit.errors import ConfigError
from visionkit.models.build import check_parts


def with_scales(config, image_size, span):
    for name, source in config["data"].items():
        if name != "workers":
            source |= {"image_size": image_size, "multi_scale": span}
    return config


def check_refused(config, message):
    with pytest.raises(ConfigError, match=rf"data.main.multi_scale: {message}"):
        load_config(config)


def test_progressive_sizes_need_a_range(tmp_path):
    config = with_scales(spec("fcos", tmp_path), 64, None)
    config["data"]["main"]["progressive"] = True
    with pytest.raises(ConfigError, match=r"data.main.progressive: needs 'multi_scale', such as"):
        load_config(config)
    assert load_config(with_scales(config, 64, [0.5, 1.0])).data["main"].progressive


def of_timm(name, neck, folder, **backbone):
    config = spec("fcos", folder, steps=2)
    config["backbone"] = {"type": "Timm", "name": name, **backbone}
    config["neck"] = {"type": neck, "channels": 8, "extra_levels": "none"}
    return config


def test_a_model_of_one_size_is_refused(tmp_path):
    config = spec("classification", tmp_path)
    config |= {"backbone": {"type": "MLP", "size": 64}, "neck": None}
    check_refused(
        with_scales(config, 64, [0.5, 1.0]),
        r"got \[0.5, 1.0\], which makes images of 32 to 64 pixels .*, but MLP takes 64 to 64",
    )
    check_refused(with_scales(config, "64x64", [1.0, 1.5]), r"got .* 64 to 96 pixels .*, but MLP")
    assert load_config(with_scales(config, 64, [0.9, 1.1]))  # 32 times 2 at either end
    with pytest.raises(ConfigError, match=r"data.image_size: MLP: .*32x32.*=64"):
        check_parts(load_config(with_scales(config, 32, None)))


def test_necks_for_small_images_are_refused(tmp_path):
    config = spec("fcos", tmp_path)
    config["neck"] = {"type": "SSDExtra", "channels": [8, 8, 8], "unpadded": 2}
    message = r"got .*, which makes images of 160 to 480 pixels .*, but SSDExtra takes at most 448"
    check_refused(with_scales(config, 320, [0.5, 1.5]), message)
    assert load_config(with_scales(config, 320, [0.5, 1.4]))
    config["neck"]["unpadded"] = 0
    assert load_config(with_scales(config, 320, [0.5, 1.5]))


@pytest.mark.slow
def test_timms_models_of_one_size_are_refused_above_it(tmp_path):
    pytest.importorskip("timm")
    config = of_timm("test_coatnet", "FPN", tmp_path, image_size=96)
    check_refused(
        with_scales(config, 96, [0.7, 1.5]),
        r"got .*, which makes images of 64 to 128 pixels .*, but test_coatnet takes at most 96;",
    )
    assert visionkit.train(with_scales(config, 96, [0.5, 1.0]))


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, "64x32", (32, 64)], ids=str)
def test_transformers_of_any_size_train(size, tmp_path):
    pytest.importorskip("timm")
    config = of_timm("test_vit", "SimpleFPN", tmp_path)
    assert visionkit.train(with_scales(config, size, [0.5, 2.0]))


@pytest.mark.slow
def test_rtdetr_trains(tmp_path):
    config = small_config(None) | {"output": str(tmp_path / "run"), "weights": None}
    config["data"] |= {"image_size": "64x64", "multi_scale": [0.5, 1.5], "workers": 0}
    config["train"] |= {"steps": 2, "validate": False, "plots": False, "report": False}
    assert visionkit.train(config)


def test_an_autoencoder_of_one_size_trains(tmp_path):
    assert visionkit.train(with_scales(spec("vae", tmp_path, steps=2), 32, [1.0, 3.0]))
