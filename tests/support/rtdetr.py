"""RT-DETR of the package transformers with random weights, for tests that compare with it."""

import pytest
import torch

COCO80 = 80


def transformers_model(version, num_classes, *, hidden=32, layers=2, queries=20, **more):
    """A small one on a ResNet-18-vd, in evaluation. Its scores and boxes depend on the image."""
    pytest.importorskip("transformers")
    import transformers
    from transformers.models.rt_detr.configuration_rt_detr_resnet import RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    kind = {1: "RTDetr", 2: "RTDetrV2"}[version]
    arguments = {
        "encoder_in_channels": [128, 256, 512],
        "encoder_hidden_dim": hidden,
        "hidden_expansion": 0.5,
        "encoder_ffn_dim": 2 * hidden,
        "d_model": hidden,
        "decoder_in_channels": [hidden] * 3,
        "decoder_ffn_dim": 2 * hidden,
        "decoder_layers": layers,
        "num_queries": queries,
        "num_labels": num_classes,
    } | more
    config = getattr(transformers, f"{kind}Config")(backbone_config=backbone, **arguments)
    torch.manual_seed(0)
    return lively(getattr(transformers, f"{kind}ForObjectDetection")(config).eval())


@torch.no_grad()
def lively(model):
    """Norms with statistics that matter; of the layers behind the backbone, larger weights."""
    for norm in model.modules():
        if "BatchNorm" in type(norm).__name__:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.2)
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "backbone" not in name:
            parameter.normal_(0, 0.8 / parameter[0].numel() ** 0.5)
    return model


def small_config(path, *, hidden=32, layers=2, queries=20, **head):
    """The config of `transformers_model`, on the weights in that file."""
    return {
        "task": "detection",
        "backbone": {
            "type": "Torchvision",
            "name": "resnet18",
            "vd": True,
            "norm": "frozen",
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
        },
        "neck": {
            "type": "HybridEncoder",
            "channels": hidden,
            "expansion": 0.5,
            "feed_forward": 2 * hidden,
        },
        "head": {
            "type": "RTDETR",
            "channels": hidden,
            "num_layers": layers,
            "num_queries": queries,
            "feed_forward": 2 * hidden,
            **head,
        },
        "weights": str(path),
        "data": {
            "train": {"type": "Shapes", "num_images": 8, "size": 96},
            "val": {"type": "Shapes", "num_images": 4, "size": 96},
            "image_size": "96x96",
            "batch_size": 2,
        },
        "train": {"precision": "fp32", "device": "cpu", "channels_last": False, "steps": 3},
    }
