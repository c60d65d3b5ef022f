"""The small autoencoder: principal components at the start, local for ever, the calls of
AutoencoderKL.
"""

import torch
from autoencoder import whiten

from pisasr.models.autoencoder import LappedAutoencoder


def smooth_pictures(count=4, size=64):
    noise = torch.randn(count, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, size=size, mode="bicubic").clamp(-1, 1)


def test_all_components_give_the_picture_back():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = LappedAutoencoder(latent_channels=48)
    model.start_from_principal_components(x)
    torch.testing.assert_close(model(x), x, atol=1e-3, rtol=0)


def test_a_sixth_of_the_numbers_gives_smooth_pictures_back():
    x = smooth_pictures()
    model = LappedAutoencoder(latent_channels=8)
    model.start_from_principal_components(x)
    z = model.encode(x).latent_dist.mode()
    assert z.shape == (4, 8, 16, 16)
    assert (model(x) - x).square().mean() < 0.03 * x.var()


def test_a_pixel_depends_on_its_neighbourhood_alone():
    torch.manual_seed(0)
    model = LappedAutoencoder(latent_channels=8, decoder_blocks=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    z = torch.randn(1, 8, 40, 5)
    changed = z.clone()
    changed[..., 0, :] += 1
    reach = model.halo * model.downscale
    with torch.no_grad():
        difference = (model.decode(z).sample - model.decode(changed).sample).abs().amax((0, 1, 3))
    assert (
        difference[: model.downscale].min() > 0 and difference[reach + model.downscale :].max() == 0
    )


def test_whitening_changes_latents_only():
    x = smooth_pictures()
    torch.manual_seed(0)
    model = LappedAutoencoder(latent_channels=6)
    before = model(x).detach()
    whiten(model, x)
    z = model.encode(x).latent_dist.mode()
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-3)


def test_saved_is_what_is_loaded(tmp_path):
    model = LappedAutoencoder(latent_channels=6)
    model.save_pretrained(tmp_path)
    x = smooth_pictures(1)
    assert torch.equal(LappedAutoencoder.from_pretrained(tmp_path)(x), model(x))
