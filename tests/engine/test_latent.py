"""Images of latent spaces."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Normal

from visionkit.engine.latent import plane_points, traversal_points, write_latent_images
from visionkit.models.heads.autoencoder import VAE, Autoencoder
from visionkit.types import Level

LEVELS = {"c3": Level(8, 8)}


def vae(latent):
    torch.manual_seed(0)
    head = VAE(LEVELS, (), size=8, latent=latent, channels=8)
    with torch.no_grad():
        head.decoder.rgb.weight.normal_()
    return head.eval()


def cell(image, row, column, side=8):
    """One image of a sheet, (side, side, 3)."""
    top, left = 1 + row * (side + 1), 1 + column * (side + 1)
    return np.asarray(image)[top : top + side, left : left + side]


def as_bytes(decoded):
    return (decoded * 255).round().to(torch.uint8).permute(1, 2, 0).detach().numpy()


def test_the_plane_is_even_in_probability():
    points = plane_points(4)
    assert points.shape == (16, 2)
    expected = torch.tensor([0.125, 0.375, 0.625, 0.875])
    torch.testing.assert_close(Normal(0.0, 1.0).cdf(points[:4, 0]), expected)
    assert (points[:4, 1] == points[0, 1]).all() and points[0, 1] > points[-1, 1]


def test_traversals_move_one_dimension_at_a_time():
    points = traversal_points(12).reshape(10, 11, 12)
    for row in range(10):
        torch.testing.assert_close(points[row, :, row], torch.linspace(-2.5, 2.5, 11))
        assert points[row, 5].abs().max() < 1e-6
        assert points[row].abs().sum(0).count_nonzero() == 1
    assert traversal_points(3).shape == (33, 3)


@pytest.mark.parametrize(
    ("latent", "kind", "shape"), [(2, "grid", (20, 20)), (3, "traversals", (3, 11))]
)
def test_files_of_a_vae(tmp_path, latent, kind, shape):
    head = vae(latent)
    out = tmp_path / "new" / "folder"
    files = write_latent_images({"vae": head, "plain": Autoencoder(LEVELS, ())}, out, samples=7)
    assert files == [out / "vae_samples.png", out / f"vae_{kind}.png"]
    assert sorted(out.iterdir()) == sorted(files)
    sheet = Image.open(files[1])
    assert sheet.size == (1 + 9 * shape[1], 1 + 9 * shape[0])
    points = plane_points(20) if latent == 2 else traversal_points(latent)
    for row, column in ((0, 0), (1, 4), (shape[0] - 1, shape[1] - 1)):
        expected = as_bytes(head.decode_latent(points[row * shape[1] + column][None])[0])
        # Decoded alone or with others: a value in between two bytes may fall to either.
        difference = cell(sheet, row, column).astype(int) - expected.astype(int)
        assert abs(difference).max() <= 1
    samples = Image.open(files[0])
    assert samples.size == (1 + 9 * 3, 1 + 9 * 3)  # 7 images in rows of 3
    assert not np.array_equal(cell(samples, 0, 0), cell(samples, 0, 1))


def test_samples_depend_on_the_seed_alone(tmp_path):
    head = vae(3)
    written = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(written))
        state = torch.get_rng_state()
        files = write_latent_images({"vae": head}, tmp_path / folder, samples=4, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        written.append(files[0].read_bytes())
    assert written[0] == written[1] != written[2]


def test_no_vae_no_files(tmp_path):
    assert write_latent_images({"plain": Autoencoder(LEVELS, ())}, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
