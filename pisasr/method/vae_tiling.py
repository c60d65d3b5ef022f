"""Encode and decode big pictures in bands, with the whole picture's result.

Crops would change a picture: Stable Diffusion's VAE normalizes by statistics of the whole picture,
and its middle attends over all of it. So here every layer is finished before the next begins.
Statistics are taken over the whole map; a convolution runs band by band and reads the rows it needs
beyond its band from the whole map. Up to 1024 x 1024 px nothing is approximated; beyond it a pixel
of the middle's attention attends to the 1024 px square around it, which whole would nearly double
the arithmetic at 4096 px.

Held at once, besides a few bands: two maps, at most 384 channels of the picture's full size when
Stable Diffusion's decoder begins its last block (12.9 GB in half precision at 4096 px), 256 in its
encoder. low_memory computes maps of the picture's size anew where they are read again: half of it,
for 1.48 and 1.13 times the arithmetic. Measured in float32, decoding to 1024 px in tiles of 256 px:
1.8 GiB for 3.7, 91 s of processor time for 96, a relative difference of 1.8e-6.

A VAE of another make than diffusers' AutoencoderKL is computed whole.
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from pisasr.method.layers import enlarge, layout_of, run_offload_hooks
from pisasr.method.tiling import Tile

WINDOW = 128  # latent pixels, each way, that the middle's attention sees of a larger map
BLOCK = 32  # latent pixels, each way, that share a window
ATTENTION_SCORES = 2**26  # query-key pairs at once: 256 MB in float32 where a backend stores them


@torch.no_grad()
def encode_tiled(
    vae: Any, x: Tensor, tile: int, low_memory: bool = False
) -> DiagonalGaussianDistribution:
    """Compute `vae.encode(x).latent_dist` on about `tile` x `tile` image pixels at a time.

    x [B, 3, H, W] in [-1, 1], H and W multiples of the VAE's factor, in the VAE's dtype. Equal to
    the untiled result up to the order of summation, up to WINDOW * WINDOW latent pixels.
    """
    if _computed_whole(vae, "encoder", x, tile):
        return vae.encode(x).latent_dist
    with run_offload_hooks(vae):
        full_side = max(x.shape[-2:]) if low_memory else 0
        moments = _encoder(vae.encoder, x, Bands.of(x, tile, full_side))
        return DiagonalGaussianDistribution(
            moments if vae.quant_conv is None else vae.quant_conv(moments)
        )


@torch.no_grad()
def decode_tiled(vae: Any, z: Tensor, tile: int, low_memory: bool = False) -> Tensor:
    """Compute `vae.decode(z).sample` on about `tile` x `tile` latent pixels at a time.

    z [B, c, h, w] as `vae.decode` takes it (not scaled), in the VAE's dtype -> x [B, 3, H, W], not
    clamped. Equal to the untiled result as for `encode_tiled`.
    """
    if _computed_whole(vae, "decoder", z, tile):
        return vae.decode(z).sample
    with run_offload_hooks(vae):
        x = z if vae.post_quant_conv is None else vae.post_quant_conv(z)
        scale = 2 ** (len(vae.decoder.up_blocks) - 1)
        full_side = max(z.shape[-2:]) * scale if low_memory else 0
        return _decoder(vae.decoder, x, Bands.of(z, tile, full_side))


def _computed_whole(vae: Any, part: str, x: Tensor, tile: int) -> bool:
    """Whether x fits a tile, by area, or the VAE has layers that aren't known here."""
    if x.shape[-2] * x.shape[-1] <= tile * tile or not hasattr(vae, "quant_conv"):
        return True
    if unknown := _first_unknown(getattr(vae, part)):
        line = f"VAE tiling doesn't know the layer {unknown}; the picture passes the {part} whole."
        warnings.warn(line, stacklevel=4)
    return bool(unknown)


class Bands(NamedTuple):
    """How maps are cut at every scale: into `pieces` bands along `dim`, the longer side.

    Maps whose longer side is full_side, the picture's, are computed anew where they are read again;
    0: none.
    """

    dim: int
    pieces: int
    full_side: int = 0

    @classmethod
    def of(cls, x: Tensor, tile: int, full_side: int = 0) -> "Bands":
        h, w = x.shape[-2:]
        return cls(2 if h >= w else 3, -(-h * w // tile**2), full_side)

    def along(self, size: int) -> list[tuple[int, int]]:
        """The bands of an axis as (start, stop), equal within one; fewer for fewer rows."""
        count = max(min(self.pieces, size // 2), 1)  # of two rows at least: see `Deferred.in_bands`
        edges = [size * i // count for i in range(count + 1)]
        return list(zip(edges[:-1], edges[1:], strict=True))

    def cut(self, x: "Tensor | Deferred", start: int, stop: int) -> Tensor:
        """x from start to stop: the view of a tensor, or what has to be computed first."""
        return (
            x.narrow(self.dim, start, stop - start)
            if isinstance(x, Tensor)
            else x.rows(start, stop)
        )


class Deferred:
    """The map conv(silu(norm(x))), that is computed whenever some of it is read."""

    def __init__(
        self,
        x: "Tensor | Deferred",
        conv: nn.Conv2d,
        bands: Bands,
        norm: nn.GroupNorm | None = None,
        pad_after: int | None = None,
    ):
        """pad_after: zeros at the right and the bottom only, instead of the own padding."""
        self.x, self.conv, self.bands = x, conv, bands
        self.dtype: torch.dtype = x.dtype
        self.affine = None if norm is None else _affine(x, norm, bands)
        own = int(conv.padding[0])
        self.before, self.after = (own, own) if pad_after is None else (0, pad_after)
        reach = self.before + self.after - conv.kernel_size[0]
        sides = [(side + reach) // conv.stride[0] + 1 for side in x.shape[-2:]]
        self.shape: torch.Size = torch.Size([x.shape[0], conv.out_channels, *sides])

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start .. stop, along the bands' dimension."""
        return self.convolve(self.read(start, stop))

    def read(self, start: int, stop: int) -> Tensor:
        """What the convolution reads for these rows, normalized and padded: a new tensor."""
        bands = self.bands
        first = start * self.conv.stride[0] - self.before
        last = (stop - 1) * self.conv.stride[0] - self.before + self.conv.kernel_size[0]
        inside = max(first, 0), min(last, self.x.shape[bands.dim])
        piece = bands.cut(self.x, *inside)
        if self.affine is not None:
            piece = F.silu(
                torch.addcmul(self.affine[1], piece, self.affine[0]).to(self.dtype), inplace=True
            )
        along, across = (inside[0] - first, last - inside[1]), (self.before, self.after)
        return F.pad(piece, (*across, *along) if bands.dim == 2 else (*along, *across))

    def convolve(self, piece: Tensor) -> Tensor:
        """The convolution without its padding, called as a module, for offloading's hooks."""
        own, self.conv.padding = self.conv.padding, (0, 0)
        try:
            return self.conv(piece)
        finally:
            self.conv.padding = own

    def in_bands(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield (start, stop, rows start .. stop), band by band.

        By the time a band is yielded the next one's input has been read, so where input and output
        have the same size the caller may write the band over x. That holds for a map deferred
        behind this one, too: bands have two rows at least, and two 3x3 convolutions see no further.
        """
        places = self.bands.along(self.shape[self.bands.dim])
        piece = self.read(*places[0])
        for place, following in zip(places, [*places[1:], None], strict=True):
            band = self.convolve(piece)
            if following is not None:
                piece = self.read(*following)
            yield *place, band

    def whole(self) -> Tensor:
        """All of it, as a new tensor."""
        out = None
        for start, stop, band in self.in_bands():
            if out is None:
                out = _empty(self.shape, band)
            self.bands.cut(out, start, stop).copy_(band)
        assert out is not None
        return out


class Enlarged(Deferred):
    """The map conv(x enlarged by two); see `layers.enlarge`."""

    def __init__(self, x: "Tensor | Deferred", conv: nn.Conv2d, bands: Bands):
        super().__init__(x, conv, bands)
        self.shape = torch.Size([*self.shape[:2], *(2 * side for side in x.shape[-2:])])

    def rows(self, start: int, stop: int) -> Tensor:
        first, last = max((start - 1) // 2, 0), min(stop // 2 + 1, self.x.shape[self.bands.dim])
        enlarged = enlarge(self.bands.cut(self.x, first, last), self.conv)
        return self.bands.cut(enlarged, start - 2 * first, stop - 2 * first)

    def in_bands(self) -> Iterator[tuple[int, int, Tensor]]:
        for start, stop in self.bands.along(self.shape[self.bands.dim]):
            yield start, stop, self.rows(start, stop)


# The layers, in the order the VAE runs them. Each takes a map that it may overwrite.


def _encoder(encoder: Any, x: Tensor, bands: Bands) -> Tensor:
    with run_offload_hooks(encoder):
        h: Tensor | Deferred = _kept(Deferred(x, encoder.conv_in, bands))
        for block in encoder.down_blocks:
            with run_offload_hooks(block):
                for resnet in block.resnets:
                    h = _resnet(resnet, h, bands)
                for down in block.downsamplers or ():
                    with run_offload_hooks(down):
                        h = Deferred(
                            h, down.conv, bands, pad_after=1 if down.padding == 0 else None
                        ).whole()
        h = _middle(encoder.mid_block, h, bands)
        return Deferred(h, encoder.conv_out, bands, norm=encoder.conv_norm_out).whole()


def _decoder(decoder: Any, z: Tensor, bands: Bands) -> Tensor:
    with run_offload_hooks(decoder), ExitStack() as block_hooks:
        x: Tensor | Deferred = _middle(
            decoder.mid_block, Deferred(z, decoder.conv_in, bands).whole(), bands
        )
        for block in decoder.up_blocks:
            former = block_hooks.pop_all()  # its upsampler may still be asked
            block_hooks.enter_context(run_offload_hooks(block))
            for resnet in block.resnets:
                x = _resnet(resnet, x, bands)
                former.close()
            for up in block.upsamplers or ():
                block_hooks.enter_context(run_offload_hooks(up))
                x = _kept(Enlarged(x, up.conv, bands))
        return Deferred(x, decoder.conv_out, bands, norm=decoder.conv_norm_out).whole()


def _kept(x: Deferred) -> "Tensor | Deferred":
    """A map as it is kept until a block has read it: whole, or deferred to save memory."""
    return x if x.shape[x.bands.dim] == x.bands.full_side else x.whole()


def _middle(block: Any, x: "Tensor | Deferred", bands: Bands) -> Tensor:
    with run_offload_hooks(block):
        h = _resnet(block.resnets[0], x, bands)
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            if attention is not None:
                h = _attend(attention, h, bands)
            h = _resnet(resnet, h, bands)
        return h


def _resnet(block: Any, x: "Tensor | Deferred", bands: Bands) -> Tensor:
    """(shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))) / scale, written over x, or over
    the map between the convolutions where the shortcut changes the channels. Lean, that map is
    never whole, and a new one may be."""
    with run_offload_hooks(block):
        h = _kept(Deferred(x, block.conv1, bands, norm=block.norm1))
        last = Deferred(h, block.conv2, bands, norm=block.norm2)
        result = x if block.conv_shortcut is None else h
        for start, stop, residual in last.in_bands():
            if not isinstance(result, Tensor):
                result = _empty(last.shape, residual)
            kept = bands.cut(x, start, stop)
            if block.conv_shortcut is not None:
                kept = block.conv_shortcut(kept)
            torch.add(kept, residual, out=bands.cut(result, start, stop)).div_(
                block.output_scale_factor
            )
        assert isinstance(result, Tensor)
        return result


def _attend(attention: Any, x: Tensor, bands: Bands) -> Tensor:
    """Attend from every pixel to the WINDOW * WINDOW pixels around it, some queries at a time.

    A map of no more pixels attends to all of itself, exactly. Blocks of neighboring queries share a
    window, of one area everywhere and inside the map, so that time grows with the area.
    """
    with run_offload_hooks(attention):
        height, width = x.shape[-2:]
        scale, shift = _affine(x, attention.group_norm, bands)
        tokens = torch.addcmul(shift, x, scale).to(x.dtype)
        key, value = (_linear(layer, tokens) for layer in (attention.to_k, attention.to_v))
        for block, window in _windows(height, width):
            keys, values = (_heads(window.crop(each), attention.heads) for each in (key, value))
            step = max(
                1,
                ATTENTION_SCORES
                // (len(x) * attention.heads * window.height * window.width * block.width),
            )
            for top in range(block.top, block.top + block.height, step):
                rows = block._replace(top=top, height=min(step, block.top + block.height - top))
                query = _heads(_linear(attention.to_q, rows.crop(tokens)), attention.heads)
                mixed = (
                    F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
                )
                rows.crop(x).add_(
                    attention.to_out[0](mixed)
                    .transpose(1, 2)
                    .unflatten(2, (rows.height, rows.width))
                )
        return x.div_(attention.rescale_output_factor)


def _windows(height: int, width: int) -> Iterator[tuple[Tile, Tile]]:
    """Yield (block of queries, window of keys) over a map; one pair if a window holds it."""
    if height * width <= WINDOW**2:
        whole = Tile(0, 0, height, width)
        yield whole, whole
        return
    tall, wide = (
        min(height, max(WINDOW, WINDOW**2 // width)),
        min(width, max(WINDOW, WINDOW**2 // height)),
    )
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            block = Tile(top, left, min(BLOCK, height - top), min(BLOCK, width - left))
            y, x = top + block.height // 2 - tall // 2, left + block.width // 2 - wide // 2
            yield (
                block,
                Tile(min(max(y, 0), height - tall), min(max(x, 0), width - wide), tall, wide),
            )


def _empty(shape: torch.Size, band: Tensor) -> Tensor:
    """An empty map with a band's dtype, device and layout."""
    return torch.empty(shape, dtype=band.dtype, device=band.device, memory_format=layout_of(band))


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer of every pixel of x [B, C, h, w]."""
    return layer(x.movedim(1, -1)).movedim(-1, 1)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, C, h, w] as [B, heads, h w, C / heads]."""
    return x.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)


def _affine(x: "Tensor | Deferred", norm: nn.GroupNorm, bands: Bands) -> tuple[Tensor, Tensor]:
    """GroupNorm of the whole map as scale, shift [B, C, 1, 1]: norm(x) = scale * x + shift.

    float32 at least. Bands are joined exactly: the spread of their means is part of the variance.
    """
    parts, parted, shares = [], [], []
    for start, stop in bands.along(x.shape[bands.dim]):
        band = bands.cut(x, start, stop)
        groups = band.to(torch.promote_types(x.dtype, torch.float32)).unflatten(
            1, (norm.num_groups, -1)
        )
        mean = groups.mean((2, 3, 4), keepdim=True)
        parts.append(mean)
        parted.append((groups - mean).square_().mean((2, 3, 4), keepdim=True))
        shares.append((stop - start) / x.shape[bands.dim])
    means, variances = torch.stack(parts), torch.stack(parted)
    share = means.new_tensor(shares).view(-1, 1, 1, 1, 1, 1)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)

    with run_offload_hooks(norm):
        weight, bias = (
            p.to(mean).view(1, norm.num_groups, -1, 1, 1) for p in (norm.weight, norm.bias)
        )
        scale = weight * torch.rsqrt(variance + norm.eps)
        return scale.flatten(1, 2), (bias - mean * scale).flatten(1, 2)


# What may be computed here, and what may not.

KNOWN = {"Encoder", "Decoder", "DownEncoderBlock2D", "UpDecoderBlock2D", "UNetMidBlock2D"}
KNOWN |= {"ResnetBlock2D", "Attention", "Downsample2D", "Upsample2D", "FoldedUpsample2D"}
KNOWN |= {"ModuleList", "GroupNorm", "Conv2d", "Linear", "SiLU", "Dropout"}
PLAIN: dict[str, dict[str, object]] = {  # settings that the functions above take for granted
    "ResnetBlock2D": dict(time_emb_proj=None, upsample=None, downsample=None),
    "Attention": dict(norm_q=None, norm_k=None, spatial_norm=None, residual_connection=True),
    "Downsample2D": dict(use_conv=True, norm=None),
    "Upsample2D": dict(use_conv=True, use_conv_transpose=False, norm=None, interpolate=True),
    "Conv2d": dict(groups=1, dilation=(1, 1), padding_mode="zeros"),
}


def _first_unknown(part: nn.Module) -> str | None:
    """The first layer of an encoder or decoder that isn't computed as this file assumes."""
    for name, module in part.named_modules():
        kind = type(module).__name__
        if kind not in KNOWN:
            return f"{name} ({kind})"
        for setting, wanted in PLAIN.get(kind.removeprefix("Folded"), {}).items():
            if getattr(module, setting, wanted) != wanted:
                return f"{name} ({kind} with {setting})"
    return None
