"""Infer, beforehand: how much memory a picture will take, told from sizes alone, and how much is
free.

Bytes are those of tensors, by what the benchmark counts: for Stable Diffusion 2.1 the estimate is
the count, or up to a tenth more (256 to 1536 px). What lies outside tensors is not in it, a
convolution's workspace or an allocator's gaps: at 2048 px on a CPU the embedded model took a
quarter more for its picture.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pisasr.method.model import Plan, vae_factor
from pisasr.method.tiling import count_tiles, needs_tiling, tile_grid

GIB = 2**30
LATENTS = 6  # float32 ones at once: z_L, both predictions, z_H, and two on their way
UNET_MAPS = {
    True: 26,
    False: 10,
}  # of its first level, where that level attends and where it does not


@dataclass(frozen=True)
class Forecast:
    """What repairing a picture will take, told beforehand.

    megapixels: that the model sees; tiles: of one UNet pass; bytes: the most that the device will
    hold, with what it holds already (on a CPU this process, elsewhere the weights); lean: whether
    the VAE works in its saving way.
    """

    megapixels: float
    tiles: int
    bytes: int
    lean: bool

    def __str__(self) -> str:
        """16.8 MP in 49 tiles, about 6 GiB"""
        size = self.bytes / GIB
        tiles = f" in {self.tiles} tiles" if self.tiles > 1 else ""
        return f"{self.megapixels:.1f} MP{tiles}, about {size:.{1 if size < 10 else 0}f} GiB"


def tiles_of(shape: tuple[int, int, int, int], plan: Plan) -> int:
    """How often a UNet is asked about a z of this shape."""
    return count_tiles(*shape[2:], plan.tile, plan.overlap, plan.even)


def held_bytes(unet: Any, vae: Any, shape: tuple[int, int, int, int], plan: Plan) -> int:
    """The most bytes of tensors at once, weights aside, while pictures of a z of this shape [B, c,
    h, w] are made.
    """
    count, channels, h, w = shape
    pixels = count * h * w * vae_factor(vae) ** 2
    size = vae.dtype.itemsize
    pictures = pixels * (
        3 + 3 * 4 + (3 * size if size < 4 else 0)
    )  # as given; in float32, and in the VAE's dtype
    latents = LATENTS * 4 * count * channels * h * w
    return pictures + latents + max(_unet_bytes(unet, shape, plan), _vae_bytes(vae, pixels, plan))


def _unet_bytes(unet: Any, shape: tuple[int, int, int, int], plan: Plan) -> int:
    count, _, h, w = shape
    area = count * h * w
    if plan.tile is not None and needs_tiling(h, w, plan.tile):
        tiles = tile_grid(h, w, plan.tile, plan.overlap, plan.even)
        together = min(max(1, plan.batch_size // count), len(tiles))
        area = count * together * tiles[0].height * tiles[0].width
    maps = UNET_MAPS[unet.config.down_block_types[0].startswith("CrossAttn")]
    return area * maps * unet.config.block_out_channels[0] * unet.dtype.itemsize


def _vae_bytes(vae: Any, pixels: int, plan: Plan) -> int:
    """Stable Diffusion's: `vae_tiling` says what it holds. One with a halo: three maps of a crop
    with its margin.
    """
    size, piece = vae.dtype.itemsize, plan.vae_tile_px or 0
    in_pieces = piece > 0 and pixels > piece**2
    if hasattr(vae, "halo"):
        crop = (piece + 2 * vae.halo * vae.downscale) ** 2 if in_pieces else pixels
        return crop * size * (3 + 3 * vae.config.decoder_channels // vae.downscale**2)
    narrow, wide = (*vae.config.block_out_channels[:2], *vae.config.block_out_channels[:1])[:2]
    if not in_pieces:
        return 3 * pixels * wide * size
    maps = pixels * (wide + narrow) * size
    return (maps // 2 if plan.lean else maps) + piece**2 * wide * (4 + 4 * size)


def resident_bytes(device: torch.device, *networks: Any) -> int:
    """What a device holds before a picture comes: this process on a CPU, where Linux tells; else
    these weights.
    """
    if device.type == "cpu" and (told := _told("/proc/self/status", "VmRSS")) is not None:
        return told
    weights = {
        p for network in networks for p in network.parameters() if p.device.type == device.type
    }
    return sum(weight.nbytes for weight in weights)


def free_bytes(device: torch.device) -> int | None:
    """What tensors may still take of a device, PyTorch's own reserve included; None where nobody
    tells.
    """
    if device.type == "cuda":
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + own
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if device.type != "cpu" or (of_machine := _told("/proc/meminfo", "MemAvailable")) is None:
        return None
    return min(of_machine, *_left_in_groups())


def _left_in_groups(
    groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """What this process' control groups leave it of their limits, which containers and Slurm set;
    cache is free.
    """
    left: list[int] = []
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, limit, used, cache = (
            (
                groups / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
            if controllers
            else (groups, "memory.max", "memory.current", "inactive_file")
        )
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for place in (root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)):
            most, now = (_number(place / name) for name in (limit, used))
            if most is not None and now is not None:
                left.append(
                    max(most - now + (_told(str(place / "memory.stat"), cache, " ", 1) or 0), 0)
                )
    return left


def _number(file: Path) -> int | None:
    """A number that a file holds alone; None where it has none ("max"), or isn't there."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _told(file: str, name: str, mark: str = ":", unit: int = 1024) -> int | None:
    """A number that Linux tells by name, in kB unless it is another unit, in bytes."""
    if not (path := Path(file)).is_file():
        return None
    found = (
        line.split()[1]
        for line in path.read_text().splitlines()
        if line.startswith(f"{name}{mark}")
    )
    return next((unit * int(number) for number in found), None)
