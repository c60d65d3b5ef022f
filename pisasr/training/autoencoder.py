"""Train the small default's autoencoder: photos in, the same photos out.

The first half of the journey that the base makes before any adapter learns; `prior.py` is the second.
"""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from pisasr.autoencoder import LappedAutoencoder
from pisasr.images import to_signed


def load_tiles(folder: Path) -> Tensor:
    """Every picture of a folder of equal-sized tiles, as uint8 [N, 3, H, W]: small enough to stay in memory."""
    from PIL import Image

    paths = sorted(folder.glob("*.png"))
    if not paths:
        raise SystemExit(f"no *.png tiles in {folder}; make them with scripts/demo_photos.py")
    return torch.cat([((to_signed(Image.open(path).convert("RGB")) + 1) * 127.5).round().byte() for path in paths])


def random_crops(tiles: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """[count, 3, size, size] in [-1, 1], flipped and turned at random."""
    crops = []
    for _ in range(count):
        index, top, left, turn, flip = (
            int(torch.randint(high, (), generator=generator))
            for high in (len(tiles), tiles.shape[2] - size + 1, tiles.shape[3] - size + 1, 4, 2)
        )
        crop = torch.rot90(tiles[index, :, top : top + size, left : left + size], turn, (1, 2))
        crops.append(crop.flip(2) if flip else crop)
    return torch.stack(crops).float() / 127.5 - 1


def train_autoencoder(
    tiles: Tensor, minutes: float, batch: int = 8, crop_px: int = 128, lr: float = 4e-4, seed: int = 0, log=print
) -> LappedAutoencoder:
    """Start from principal components, then minimise the mean square error for the given wall-clock minutes.

    tiles uint8 [N, 3, H, W]. The learning rate falls to zero along a cosine of the time spent. Noise of the posterior's
    width is added to the latents, so that neighbouring latents decode to neighbouring pictures.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = LappedAutoencoder(latent_channels=16)
    model.start_from_principal_components(tiles[::8].float() / 127.5 - 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0)
    start, step, running = time.monotonic(), 0, 0.0
    while (spent := (time.monotonic() - start) / 60 / minutes) < 1:
        optimizer.param_groups[0]["lr"] = lr * (0.5 + 0.5 * torch.cos(torch.tensor(spent * torch.pi)).item())
        x = random_crops(tiles, batch, crop_px, generator)
        loss = nn.functional.mse_loss(model.decode(model.encode(x).latent_dist.sample(generator)).sample, x)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, running = step + 1, 0.99 * running + 0.01 * loss.item()
        if step % 200 == 0:
            log(f"autoencoder step {step}: {10 * torch.tensor(4 / running).log10():.2f} dB, {spent:.0%} of the time")
    whiten(model, tiles[::8].float() / 127.5 - 1)
    return model


@torch.no_grad()
def whiten(model: LappedAutoencoder, x: Tensor) -> None:
    """Rescale every latent channel to unit variance over x, without changing any reconstruction."""
    z = torch.cat([model.encode(batch).latent_dist.mode() for batch in x.split(4)])
    std = z.std((0, 2, 3))
    for layer in (model.analysis, model.encoder[-1]):
        layer.weight.div_(std[:, None, None, None])
        layer.bias.div_(std)
    for layer in (model.synthesis, model.decoder[0]):
        layer.weight.mul_(std[None, :, None, None])
