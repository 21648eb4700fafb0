"""The autoencoders: input, losses and predictions."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from support.losses import losses_of
from visionkit.errors import ConfigError
from visionkit.models.heads.autoencoder import (
    VAE,
    Autoencoder,
    Decoder,
    for_each_size,
    kl_from_standard_normal,
    mirrored_widths,
    pixel_errors,
)
from visionkit.types import Batch, Level

LEVELS = {"c2": Level(8, 4), "c3": Level(12, 8)}


def batch_of(*sizes, side=32, seed=0):
    """Random images of those sizes, with bright padding that nothing may look at."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(sizes), 3, side, side), generator=generator)
    return Batch(
        images.to(torch.uint8),
        [{"image_id": i, "size": size, "orig_size": size} for i, size in enumerate(sizes)],
    )


def features_of(batch, levels=LEVELS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    side = batch.images.shape[-1]
    return {
        name: torch.randn(len(batch), c, -(-side // s), -(-side // s), generator=generator)
        for name, (c, s) in levels.items()
    }


def with_other_padding(batch):
    images = batch.images.clone()
    for image, (h, w) in zip(images, batch.sizes, strict=True):
        image[:, h:] = 255 - image[:, h:]
        image[:, :h, w:] = 255 - image[:, :h, w:]
    return Batch(images, batch.targets)


def test_widths_mirror_the_levels_and_halve_beyond_them():
    levels = {"c2": Level(64, 4), "c3": Level(96, 8), "c4": Level(300, 16)}
    assert mirrored_widths(levels, 16, 1000) == [300, 96, 64, 32, 16]
    assert mirrored_widths(levels, 16, 80) == [80, 80, 64, 32, 16]
    assert mirrored_widths({"c": Level(20, 4)}, 4, 128) == [20, 16, 16]
    assert mirrored_widths({"c": Level(20, 1)}, 1, 128) == [20]
    assert mirrored_widths({"flat": Level(512, 28)}, 4, 128) == [128, 64, 32]


@pytest.mark.parametrize("widths", [[8], [8, 4], [8, 8, 4, 4]])
def test_a_decoder_doubles_once_for_each_width_after_the_first(widths):
    side = 2 ** (len(widths) - 1)
    logits = Decoder(5, widths)(torch.randn(2, 5, 3, 2))
    assert logits.shape == (2, 3, 3 * side, 2 * side)


def test_it_begins_near_medium_gray():
    torch.manual_seed(0)
    pixels = Decoder(16, [32, 16, 16])(torch.randn(4, 16, 8, 8)).sigmoid()
    assert (pixels - 0.5).abs().max() < 0.2 and pixels.std() > 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [("mse", 0.25**2), ("l1", 0.25), ("bce", -0.5 * math.log(0.75) - 0.5 * math.log(0.25))],
)
def test_errors_of_one_value(error, expected):
    logits = torch.tensor([math.log(3.0)])  # sigmoid: 0.75
    assert pixel_errors(logits, torch.tensor([0.5]), error).item() == pytest.approx(expected)


def test_divergence_is_torchs():
    mean, log_var = torch.randn(5, 3), torch.randn(5, 3)
    expected = kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_from_standard_normal(mean, log_var), expected)
    assert kl_from_standard_normal(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0
    # One dimension at mean 2 with variance 1: 2² / 2 nats.
    assert kl_from_standard_normal(torch.tensor([[2.0]]), torch.zeros(1, 1)).item() == 2


def test_images_of_one_size_go_together_and_come_back_in_order():
    sizes, calls = [(2, 3), (4, 4), (2, 3), (1, 1)], []

    def rows_of(rows, size):
        calls.append((rows, size))
        return torch.tensor(rows)

    assert for_each_size(sizes, rows_of).tolist() == [0, 1, 2, 3]
    assert calls == [([0, 2], (2, 3)), ([1], (4, 4)), ([3], (1, 1))]


@pytest.mark.parametrize("loss", ["mse", "l1", "bce"])
def test_the_loss_is_the_mean_over_valid_values(loss):
    head = Autoencoder(LEVELS, (), loss=loss)
    batch = batch_of((32, 32), (20, 7))
    features = features_of(batch)
    found = losses_of(head, features, batch)["reconstruction"]
    logits, total, count = head(features)["logits"], 0.0, 0
    for i, (h, w) in enumerate(batch.sizes):
        for channel in range(3):
            truth = batch.images[i, channel, :h, :w] / 255
            total += pixel_errors(logits[i, channel, :h, :w], truth, loss).sum().item()
            count += h * w
    assert found.item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("cls", [Autoencoder, VAE])
def test_pixels_of_the_padding_take_no_part(cls):
    batch = batch_of((32, 32), (20, 7), (20, 9))
    head, features = cls(LEVELS, ()), features_of(batch)
    losses = []
    for images in (batch, with_other_padding(batch)):
        torch.manual_seed(0)
        losses.append(sum(losses_of(head, features, images).values()))
    assert losses[0] == losses[1]
    evaluators = [head.evaluator(None), head.evaluator(None)]
    for evaluator, images in zip(evaluators, (batch, with_other_padding(batch)), strict=True):
        evaluator.update(head.predict(features, images), images)
    assert evaluators[0].compute() == evaluators[1].compute()


def test_any_image_size_is_decoded_at_its_size():
    head = Autoencoder(LEVELS, (), level="c2", code=5)
    batch = batch_of((64, 64), (33, 50), (1, 2), side=64)
    found = head.predict(features_of(batch), batch)
    assert [p["reconstruction"].shape for p in found] == [(3, 64, 64), (3, 33, 50), (3, 1, 2)]
    assert all(p["reconstruction"].dtype == torch.uint8 for p in found)


def test_only_the_code_reaches_the_decoder():
    """With one channel of code that is held fixed, nothing else of the features shows."""
    head, batch = Autoencoder(LEVELS, (), code=1), batch_of((32, 32), (32, 32))
    with torch.no_grad():
        head.bottleneck.weight.zero_()
    first, second = head(features_of(batch))["logits"]
    assert torch.equal(first, second)
    assert head.bottleneck.weight.shape == (1, 12, 1, 1)


def test_the_default_level_is_the_coarsest_useful():
    levels = {**LEVELS, "c5": Level(10, 32), "p6": Level(10, 64)}
    assert Autoencoder(levels, ()).level == VAE(levels, ()).level == "c5"
    assert Autoencoder(levels, (), level="c2").level == "c2"
    with pytest.raises(ConfigError, match=r"feature map 'c9' not found"):
        Autoencoder(levels, (), level="c9")


def test_a_stride_that_no_doubling_reaches():
    with pytest.raises(ConfigError, match=r"'flat' has stride 28.*flat \(28\)"):
        Autoencoder({"flat": Level(16, 28)}, ())
    batch = batch_of((28, 28))
    found = VAE({"flat": Level(16, 28)}, (), size=28)
    assert found.predict({"flat": torch.randn(1, 16, 1, 1)}, batch)[0]["kl"].shape == ()


def test_a_level_at_full_size_and_maps_that_are_smaller_than_their_stride_says():
    levels, batch = {"c0": Level(6, 1)}, batch_of((30, 32))
    (found,) = Autoencoder(levels, (), code=2).predict(features_of(batch, levels), batch)
    assert found["reconstruction"].shape == (3, 30, 32)
    small = {"c3": torch.randn(1, 12, 3, 4)}  # 24 rows, where the batch has 32
    (found,) = Autoencoder({"c3": Level(12, 8)}, ()).predict(small, batch)
    assert found["reconstruction"].shape == (3, 30, 32)


def test_the_terms_sum_to_the_evidence_bound_per_value():
    head, batch = VAE(LEVELS, (), size=32, latent=3), batch_of((32, 32), (32, 32))
    features = features_of(batch)
    torch.manual_seed(5)
    terms = losses_of(head, features, batch)
    torch.manual_seed(5)
    mean, log_var = head.encode(features, batch.size_tensor)
    z = mean + torch.exp(0.5 * log_var) * torch.randn(2, 3)
    # A normal likelihood of variance 1/2 is exp(-(x - y)²) up to a constant.
    likelihood = Normal(head.decode_latent(z), math.sqrt(0.5))
    at_best = Normal(0.0, math.sqrt(0.5)).log_prob(torch.tensor(0.0))
    log_p = (likelihood.log_prob(batch.images / 255) - at_best).sum((1, 2, 3))
    kl = kl_divergence(Normal(mean, (log_var / 2).exp()), Normal(0.0, 1.0)).sum(1)
    bound = (log_p - kl).mean()
    found = sum(terms.values())
    assert found.item() * 3 * 32 * 32 == pytest.approx(-bound.item(), rel=1e-4)
    assert terms["kl"].item() * 3 * 32 * 32 == pytest.approx(kl.mean().item(), rel=1e-4)


def test_beta_weighs_the_divergence_alone():
    batch = batch_of((32, 32))
    found = []
    for beta in (0.0, 1.0, 4.0):
        torch.manual_seed(0)
        found.append(losses_of(VAE(LEVELS, (), beta=beta), features_of(batch), batch))
    assert len({terms["reconstruction"].item() for terms in found}) == 1
    assert found[0]["kl"].item() == 0
    assert found[2]["kl"].item() == pytest.approx(4 * found[1]["kl"].item())


def test_predictions_use_the_mean_and_losses_a_draw():
    head, batch = VAE(LEVELS, (), size=32, latent=2), batch_of((32, 32))
    features = features_of(batch)
    first, second = head.predict(features, batch)[0], head.predict(features, batch)[0]
    assert torch.equal(first["reconstruction"], second["reconstruction"])
    mean, log_var = head.encode(features, batch.size_tensor)
    torch.testing.assert_close(first["latent_mean"], mean[0])
    torch.testing.assert_close(first["kl"], kl_from_standard_normal(mean, log_var)[0])
    expected = (head.decode_latent(mean)[0] * 255).round().to(torch.uint8)
    assert torch.equal(first["reconstruction"], expected)
    with torch.no_grad():
        head.decoder.rgb.weight.normal_()
    draws = {losses_of(head, features, batch)["reconstruction"].item() for _ in range(3)}
    assert len(draws) == 3


def test_the_log_variance_is_kept_within_what_exp_can_take():
    head, batch = VAE(LEVELS, (), size=32), batch_of((32, 32))
    features = features_of(batch)
    for extreme in (-1000.0, 1000.0):
        with torch.no_grad():
            head.to_latent.bias[head.latent :] = extreme
        assert all(term.isfinite() for term in losses_of(head, features, batch).values())


@pytest.mark.parametrize(
    ("size", "grid"), [(28, 7), (32, 4), (30, 8), (5, 5), (1, 1), (64, 4), (300, 10)]
)
def test_the_decoder_begins_with_a_small_map_and_ends_at_the_size(size, grid):
    head = VAE(LEVELS, (), size=size, latent=2, channels=16)
    assert head.grid == grid
    images = head.decode_latent(torch.randn(2, 2))
    assert images.shape == (2, 3, size, size)
    assert images.min() >= 0 and images.max() <= 1


def test_the_truth_is_the_valid_part_at_the_decoded_size():
    head = VAE(LEVELS, (), size=16)
    batch = batch_of((16, 16), (32, 32), (8, 20))
    batch.images[1] = 51
    batch.images[2, :, :8, :20] = 102  # and noise beyond
    truth = head._truth(batch)
    assert torch.equal(truth[0], batch.images[0, :, :16, :16] / 255)
    torch.testing.assert_close(truth[1], torch.full((3, 16, 16), 0.2))
    torch.testing.assert_close(truth[2], torch.full((3, 16, 16), 0.4))
    shapes = [p["reconstruction"].shape for p in head.predict(features_of(batch), batch)]
    assert shapes == [(3, 16, 16), (3, 32, 32), (3, 8, 20)]


def test_cells_of_the_padding_are_not_encoded():
    head, batch = VAE(LEVELS, (), size=32), batch_of((32, 32), (12, 20))
    features = features_of(batch)
    before = head.encode(features, batch.size_tensor)
    features["c3"][1, :, 2:] = 1e6  # 12 rows are 2 cells of stride 8, 20 columns are 3
    features["c3"][1, :, :, 3:] = 1e6
    for a, b in zip(before, head.encode(features, batch.size_tensor), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "head", [Autoencoder(LEVELS, (), code=2), VAE(LEVELS, (), latent=2, loss="bce")]
)
def test_gradients_reach_the_features_in_bfloat16_too(head):
    batch = batch_of((32, 32), (9, 32))
    features = {name: value.requires_grad_() for name, value in features_of(batch).items()}
    with torch.autocast("cpu", torch.bfloat16):
        terms = losses_of(head, features, batch)
        head.predict(features, batch)
    assert all(term.dtype == torch.float32 and term.shape == () for term in terms.values())
    sum(terms.values()).backward()
    assert features["c3"].grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_a_vae_tells_two_images_apart():
    """A few steps from features that differ: reconstructions near each image, KL above 0."""
    torch.manual_seed(0)
    head, batch = VAE(LEVELS, (), size=32, latent=2, channels=16), batch_of((32, 32), (32, 32))
    batch.images[0], batch.images[1] = 30, 220
    features = features_of(batch)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        sum(losses_of(head, features, batch).values()).backward()
        optimizer.step()
    dark, bright = (p["reconstruction"].float().mean() for p in head.predict(features, batch))
    assert dark < 60 and bright > 190
    assert all(p["kl"].item() > 0.5 for p in head.predict(features, batch))
