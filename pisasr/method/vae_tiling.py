"""A picture too big for the VAE at once, computed in bands, with the result of the whole picture.

Cutting a picture into crops changes it: Stable Diffusion's VAE normalises by statistics of the whole picture, and its
middle attends over all of it. So here every layer is finished before the next begins. Statistics are taken over the
whole map; a convolution runs band by band and reads the rows it needs beyond its band from the whole map. Nothing is
approximated and nothing computed twice. What is saved: normalised copies, convolution workspaces and second operands
exist for one band at a time, and results replace maps that are no longer needed, so at most two maps are whole at once.

Measured on Stable Diffusion's VAE with random weights, decoding to 1024 px in float32 on one CPU thread, against the
untiled result: with tiles of 32 latent pixels (256 px) 1.8 GiB of memory for 3.7, 91 s of processor time for 96, a
relative difference of 1.8e-6 that is no larger at the bands' borders than elsewhere (1.02 times the mean step).
Small tiles cost nothing there. The middle's attention stays exact, so its time grows with the area squared: counted,
it nearly doubles the arithmetic of the VAE at 4096 px.

A VAE without normalisation needs none of this. One that names its `halo`, the latent pixels its output can see around
itself, is cut into crops with that margin, and its maps are never whole.
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pisasr.method.tiling import Tile

ATTENTION_SCORES = 2**26  # query-key pairs at once in the mid attention: 256 MB in float32 where a backend stores them


@torch.no_grad()
def encode_tiled(vae: nn.Module, x: Tensor, tile: int):
    """`vae.encode(x).latent_dist`, working on about `tile` x `tile` image pixels at a time.

    x [B, 3, H, W] in [-1, 1], H and W multiples of the VAE's factor, in the VAE's dtype. A picture no larger than a
    tile, by area, is encoded whole. No gradients. Equal to the untiled result up to the order of summation.
    """
    _check_tile(tile)
    if _fits(x, tile):
        return vae.encode(x).latent_dist
    if hasattr(vae, "halo"):
        factor = vae.downscale
        core = max(tile // factor, 1)
        return _encode_crops(vae, x, core, vae.halo, factor)
    if unknown := _first_unknown(vae.encoder):
        _warn_untiled("encode", unknown)
        return vae.encode(x).latent_dist
    _wake(vae)
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    moments = _encoder(vae.encoder, x, Bands.of(x, tile))
    return DiagonalGaussianDistribution(moments if vae.quant_conv is None else vae.quant_conv(moments))


@torch.no_grad()
def decode_tiled(vae: nn.Module, z: Tensor, tile: int) -> Tensor:
    """`vae.decode(z).sample`, working on about `tile` x `tile` latent pixels at a time.

    z [B, c, h, w] as `vae.decode` takes it (not scaled), in the VAE's dtype -> x [B, 3, H, W], not clamped. A latent no
    larger than a tile, by area, is decoded whole. No gradients. Equal to the untiled result up to the order of
    summation.
    """
    _check_tile(tile)
    if _fits(z, tile):
        return vae.decode(z).sample
    if hasattr(vae, "halo"):
        return _decode_crops(vae, z, tile, vae.halo, vae.downscale)
    if unknown := _first_unknown(vae.decoder):
        _warn_untiled("decode", unknown)
        return vae.decode(z).sample
    _wake(vae)
    return _decoder(vae.decoder, z if vae.post_quant_conv is None else vae.post_quant_conv(z), Bands.of(z, tile))


class Bands(NamedTuple):
    """How maps are cut: into `count` bands along dimension `dim`, the longer side. The same at every scale."""

    dim: int
    count: int

    @classmethod
    def of(cls, x: Tensor, tile: int) -> "Bands":
        h, w = x.shape[-2:]
        return cls(2 if h >= w else 3, -(-h * w // tile**2))

    def along(self, size: int) -> list[tuple[int, int]]:
        """The bands of an axis as (start, stop), equal within one; fewer bands where there are fewer rows."""
        count = min(self.count, size)
        edges = [size * i // count for i in range(count + 1)]
        return list(zip(edges[:-1], edges[1:], strict=True))

    def cut(self, x: Tensor, start: int, stop: int) -> Tensor:
        """The view of x from start to stop."""
        return x.narrow(self.dim, start, stop - start)


# The layers, in the order the VAE runs them. Each takes a map that it may overwrite.


def _encoder(encoder: nn.Module, x: Tensor, bands: Bands) -> Tensor:
    x = _conv(x, encoder.conv_in, bands)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x, bands)
        for down in block.downsamplers or ():
            x = _conv(x, down.conv, bands, pad_after=1 if down.padding == 0 else None)
    x = _middle(encoder.mid_block, x, bands)
    return _conv(x, encoder.conv_out, bands, norm=encoder.conv_norm_out)


def _decoder(decoder: nn.Module, z: Tensor, bands: Bands) -> Tensor:
    x = _middle(decoder.mid_block, _conv(z, decoder.conv_in, bands), bands)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x, bands)
        for up in block.upsamplers or ():
            x = _conv(x, up.conv, bands, scale=2)
    return _conv(x, decoder.conv_out, bands, norm=decoder.conv_norm_out)


def _middle(block: nn.Module, x: Tensor, bands: Bands) -> Tensor:
    x = _resnet(block.resnets[0], x, bands)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = _attend(attention, x, bands)
        x = _resnet(resnet, x, bands)
    return x


def _resnet(block: nn.Module, x: Tensor, bands: Bands) -> Tensor:
    """(shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))) / scale, written over x, or over the map between the
    convolutions where the shortcut changes the channels."""
    h = _conv(x, block.conv1, bands, norm=block.norm1)
    result = x if block.conv_shortcut is None else h
    for start, stop, residual in _conv_bands(h, block.conv2, bands, norm=block.norm2):
        kept = bands.cut(x, start, stop)
        if block.conv_shortcut is not None:
            kept = block.conv_shortcut(kept)
        torch.add(kept, residual, out=bands.cut(result, start, stop)).div_(block.output_scale_factor)
    return result


def _attend(attention: nn.Module, x: Tensor, bands: Bands) -> Tensor:
    """Self-attention over the whole map, some queries at a time: exact, but its time grows with the area squared."""
    scale, shift = _affine(x, attention.group_norm, bands)
    pixels = x.flatten(2)  # [B, C, N], a view: adding to it adds to x
    tokens = torch.addcmul(shift.flatten(2), pixels, scale.flatten(2)).to(x.dtype).transpose(1, 2)
    key, value = (_heads(linear(tokens), attention.heads) for linear in (attention.to_k, attention.to_v))
    step = max(1, ATTENTION_SCORES // (len(x) * attention.heads * tokens.shape[1]))
    for start in range(0, tokens.shape[1], step):
        query = _heads(attention.to_q(tokens[:, start : start + step]), attention.heads)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        pixels[:, :, start : start + step] += attention.to_out[0](mixed).transpose(1, 2)
    return x.div_(attention.rescale_output_factor)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def _conv(x: Tensor, conv: nn.Conv2d, bands: Bands, norm: nn.GroupNorm | None = None, **geometry) -> Tensor:
    """The whole map of `_conv_bands`, as a new tensor."""
    out = x.new_empty(_output_shape(x, conv, **geometry))
    for start, stop, band in _conv_bands(x, conv, bands, norm, **geometry):
        bands.cut(out, start, stop).copy_(band)
    return out


def _conv_bands(
    x: Tensor,
    conv: nn.Conv2d,
    bands: Bands,
    norm: nn.GroupNorm | None = None,
    scale: int = 1,
    pad_after: int | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (start, stop, the output's rows start .. stop) of conv(silu(norm(x))), x enlarged `scale` times first.

    Rows are those of the bands' dimension. pad_after: zeros at the right and the bottom only, in place of the
    convolution's own padding. By the time a band is yielded the next one's input has been read, so where input and
    output have the same size the caller may write the band over x.
    """
    affine = None if norm is None else _affine(x, norm, bands)
    before, after = _padding(conv, pad_after)
    size = scale * x.shape[bands.dim]

    def read(start: int, stop: int) -> Tensor:
        first = start * conv.stride[0] - before
        last = (stop - 1) * conv.stride[0] - before + conv.kernel_size[0]
        inside = max(first, 0), min(last, size)
        rows = inside[0] // scale, -(-inside[1] // scale)
        piece = bands.cut(x, *rows)
        if affine is not None:
            piece = F.silu(torch.addcmul(affine[1], piece, affine[0]).to(x.dtype), inplace=True)
        if scale > 1:
            piece = F.interpolate(piece, scale_factor=float(scale), mode="nearest")
            piece = bands.cut(piece, inside[0] - rows[0] * scale, inside[1] - rows[0] * scale)
        along, across = (inside[0] - first, last - inside[1]), (before, after)
        return F.pad(piece, (*across, *along) if bands.dim == 2 else (*along, *across))

    places = bands.along(_output_shape(x, conv, scale, pad_after)[bands.dim])
    piece = read(*places[0])
    for place, following in zip(places, [*places[1:], None], strict=True):
        band = F.conv2d(piece, conv.weight, conv.bias, conv.stride)
        piece = None if following is None else read(*following)
        yield *place, band


def _padding(conv: nn.Conv2d, pad_after: int | None) -> tuple[int, int]:
    return (conv.padding[0], conv.padding[0]) if pad_after is None else (0, pad_after)


def _output_shape(x: Tensor, conv: nn.Conv2d, scale: int = 1, pad_after: int | None = None) -> list[int]:
    reach = sum(_padding(conv, pad_after)) - conv.kernel_size[0]
    return [len(x), conv.out_channels, *((scale * side + reach) // conv.stride[0] + 1 for side in x.shape[-2:])]


def _affine(x: Tensor, norm: nn.GroupNorm, bands: Bands) -> tuple[Tensor, Tensor]:
    """GroupNorm of the whole map as scale and shift [B, C, 1, 1]: norm(x) = scale * x + shift, float32 at least.

    Means and variances of the bands are joined exactly: the spread of their means belongs to the whole's variance.
    """
    means, variances, shares = [], [], []
    for start, stop in bands.along(x.shape[bands.dim]):
        band = bands.cut(x, start, stop)
        groups = band.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (norm.num_groups, -1))
        mean = groups.mean((2, 3, 4), keepdim=True)
        means.append(mean)
        variances.append((groups - mean).square_().mean((2, 3, 4), keepdim=True))
        shares.append((stop - start) / x.shape[bands.dim])
    means, variances = torch.stack(means), torch.stack(variances)
    share = means.new_tensor(shares).view(-1, 1, 1, 1, 1, 1)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)

    weight, bias = (p.to(mean).view(1, norm.num_groups, -1, 1, 1) for p in (norm.weight, norm.bias))
    scale = weight * torch.rsqrt(variance + norm.eps)
    return scale.flatten(1, 2), (bias - mean * scale).flatten(1, 2)


# A VAE without normalisation, in crops with a margin.


def _encode_crops(vae: nn.Module, x: Tensor, tile: int, halo: int, factor: int):
    moments, posterior = None, None
    h, w = (side // factor for side in x.shape[-2:])
    for core, crop, inner in _haloed(h, w, tile, halo):
        posterior = vae.encode(_scaled(crop, factor).crop(x)).latent_dist
        part = inner.crop(posterior.parameters)
        if moments is None:
            moments = part.new_empty(*part.shape[:2], h, w)
        core.crop(moments).copy_(part)
    return type(posterior)(moments)


def _decode_crops(vae: nn.Module, z: Tensor, tile: int, halo: int, factor: int) -> Tensor:
    x = None
    for core, crop, inner in _haloed(*z.shape[-2:], tile, halo):
        part = _scaled(inner, factor).crop(vae.decode(crop.crop(z)).sample)
        if x is None:
            x = part.new_empty(*part.shape[:2], *(factor * side for side in z.shape[-2:]))
        _scaled(core, factor).crop(x).copy_(part)
    return x


def _haloed(h: int, w: int, tile: int, halo: int) -> Iterator[tuple[Tile, Tile, Tile]]:
    """Yield (core, crop, inner): where a result goes, what to read for it, and where in the crop's result it lies."""
    for top in range(0, h, tile):
        for left in range(0, w, tile):
            core = Tile(top, left, min(tile, h - top), min(tile, w - left))
            y, x = max(top - halo, 0), max(left - halo, 0)
            bottom, right = min(top + core.height + halo, h), min(left + core.width + halo, w)
            yield core, Tile(y, x, bottom - y, right - x), core._replace(top=top - y, left=left - x)


def _scaled(place: Tile, factor: int) -> Tile:
    return Tile(*(factor * number for number in place))


# What may be computed here, and what may not.

KNOWN = {"Encoder", "Decoder", "DownEncoderBlock2D", "UpDecoderBlock2D", "UNetMidBlock2D", "ResnetBlock2D", "Attention"}
KNOWN |= {"Downsample2D", "Upsample2D", "ModuleList", "GroupNorm", "Conv2d", "Linear", "SiLU", "Dropout"}
PLAIN = {  # settings of diffusers' layers that the functions above take for granted
    "ResnetBlock2D": {"time_emb_proj": None, "upsample": None, "downsample": None},
    "Attention": {"norm_q": None, "norm_k": None, "spatial_norm": None, "residual_connection": True},
    "Downsample2D": {"use_conv": True, "norm": None},
    "Upsample2D": {"use_conv": True, "use_conv_transpose": False, "norm": None, "interpolate": True},
    "Conv2d": {"groups": 1, "dilation": (1, 1), "padding_mode": "zeros"},
}


def _first_unknown(part: nn.Module) -> str | None:
    """The first layer of an encoder or decoder that isn't computed as this file assumes, or None."""
    for name, module in part.named_modules():
        kind = type(module).__name__
        if kind not in KNOWN:
            return f"{name} ({kind})"
        for setting, wanted in PLAIN.get(kind, {}).items():
            if getattr(module, setting, wanted) != wanted:
                return f"{name} ({kind} with {setting})"
    return None


def _warn_untiled(verb: str, unknown: str) -> None:
    warnings.warn(f"VAE tiling doesn't know the layer {unknown}; the picture is {verb}d whole.", stacklevel=4)


def _fits(x: Tensor, tile: int) -> bool:
    return x.shape[-2] * x.shape[-1] <= tile * tile


def _check_tile(tile: int) -> None:
    if tile < 1:
        raise ValueError(f"VAE tile size must be at least 1, got {tile}; give a positive number.")


def _wake(vae: nn.Module) -> None:
    """What diffusers does on entering `encode` and `decode`: an offloaded VAE comes to its device."""
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)
