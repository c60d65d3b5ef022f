"""A restoration network as a base: eps by the formula, a latent without loss, files of others."""

import re
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from pisasr.errors import CheckpointError
from pisasr.method.adapters import target_modules
from pisasr.method.tiling import blend_tiles
from pisasr.models import rrdbnet
from pisasr.models.bases import EMBEDDED, load_unet
from pisasr.models.rrdbnet import PixelAutoencoder, RRDBNet, shrink
from pisasr.models.rrdbnet_files import read_ncnn, read_network, save_base
from pisasr.pipeline import PiSASRPipeline


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return RRDBNet(blocks=2, features=8, growth=4).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def picture():
    return torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_what_is_left_of_z_is_the_networks_own_picture(network, picture):
    small = picture[..., :6, :8] / 2 + 0.5
    z = F.pixel_unshuffle(F.interpolate(small * 2 - 1, scale_factor=4), 4)
    restored = F.pixel_shuffle(z - network(z, 1, encoder_hidden_states=None).sample, 4)
    torch.testing.assert_close(restored, network.upscale(small) * 2 - 1, atol=1e-5, rtol=0)


def test_the_network_is_esrgans(network):
    """Against the formula written out: five convolutions, each seeing all before it, and fifths."""

    def conv(name, x):
        layer = network.get_submodule(name)
        return F.conv2d(x, layer.weight, layer.bias, padding=1)

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x)

    x_L = torch.rand(1, 3, 7, 5, generator=torch.Generator().manual_seed(2))
    first = x = conv("conv_first", x_L)
    for block in range(2):
        y = x
        for dense in ("rdb1", "rdb2", "rdb3"):
            seen = [y]
            for k in range(1, 5):
                name = f"body.{block}.{dense}.conv{k}"
                seen.append(leaky(conv(name, torch.cat(seen, 1))))
            y = y + 0.2 * conv(f"body.{block}.{dense}.conv5", torch.cat(seen, 1))
        x = x + 0.2 * y
    x = first + conv("conv_body", x)
    for name in ("conv_up1", "conv_up2"):
        x = leaky(conv(name, x.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    wanted = conv("conv_last", leaky(conv("conv_hr", x)))
    torch.testing.assert_close(network.upscale(x_L), wanted, atol=1e-5, rtol=0)


def test_what_saves_memory_changes_no_bit(network, monkeypatch):
    """Without gradients blocks share memory, and a few rows at once become pixels."""
    monkeypatch.setattr(rrdbnet, "BAND", 1)
    x_L = torch.rand(2, 3, 21, 5, generator=torch.Generator().manual_seed(2))
    wanted = network.upscale(x_L)
    with torch.no_grad():
        torch.testing.assert_close(network.upscale(x_L), wanted, atol=1e-6, rtol=0)


def test_tiles_are_the_whole_within_two_levels(monkeypatch):
    """The embedded network, its own overlap, a strip of a photo: .1 levels on average in 8 bits."""
    monkeypatch.setattr("pisasr.method.tiling.needs_tiling", lambda *_: True)
    network = load_unet(EMBEDDED, "unet")
    photo = np.asarray(Image.open(EMBEDDED / "examples" / "coffee.png").convert("RGB"))[48:52]
    x_L = torch.tensor(np.concatenate([photo, photo[:, ::-1]], 1)).permute(2, 0, 1)[None] / 127.5
    z = F.pixel_unshuffle(F.interpolate(x_L - 1, scale_factor=4, mode="bicubic"), 4)
    tiles = dict(tile=180, overlap=network.tile_overlap, even=1)
    with torch.no_grad():
        whole, tiled = network(z).sample, blend_tiles(lambda x: network(x).sample, z, **tiles)
    error = ((z - tiled).clamp(-1, 1) - (z - whole).clamp(-1, 1)).abs() * 127.5
    assert 0 < error.max() <= 2 and error.mean() <= 0.1


def test_without_adapters_a_picture_is_the_networks_own():
    """Of a picture of 16 bits or floats. Of 8 bits the enlarged one is rounded and clipped, so that
    (0, 0) is Pillow's to the bit and held in a quarter of the memory: .2 to .5 levels, 14 at most.
    """
    network = load_unet(EMBEDDED, "unet")
    pipe = PiSASRPipeline(PixelAutoencoder(), network, color_fix="none", native_upscale=4)
    photo = np.asarray(Image.open(EMBEDDED / "examples" / "coffee.png").convert("RGB"))[
        40:64, 40:64
    ]
    own = network.upscale(torch.tensor(photo).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0)
    made = pipe(photo.astype(np.uint16) * 257, process_size=1, output_type="np").images[0]
    error = np.abs(made - own.detach().numpy().clip(0, 1)) * 255
    assert error.mean() < 0.1 and error.max() < 1.5


def test_pixels_come_back_to_the_bit(picture):
    vae = PixelAutoencoder()
    posterior = vae.encode(picture).latent_dist
    assert posterior.mean.shape == (2, 48, 6, 8)
    assert torch.equal(vae.decode(posterior.mean).sample, picture)
    assert vae.to(torch.bfloat16).dtype == torch.float32  # moving pixels must not round them


def test_shrinking_undoes_bicubic():
    """Noise, enlarged in eight bits by Pillow as the pipeline does, comes back."""
    levels = np.random.default_rng(0).integers(60, 196, (24, 32, 3), dtype=np.uint8)
    large = Image.fromarray(levels).resize((128, 96), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(large)).permute(2, 0, 1)[None] / 127.5 - 1
    back = (shrink(PixelAutoencoder().encode(x).latent_dist.mean)[0] + 1) * 127.5
    error = back.permute(1, 2, 0).numpy() - levels
    assert np.abs(error[2:-2, 2:-2]).max() < 1.5


def test_every_convolution_carries_an_adapter(network):
    convolutions = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert target_modules(network) == convolutions
    assert len(convolutions) == 2 * 15 + 6


def old_name(key):
    key = re.sub(r"^body\.(\d+)\.rdb(\d)\.conv(\d)", r"model.1.sub.\1.RDB\2.conv\3.0", key)
    places = {"first": 0, "body": "1.sub.2", "up1": 3, "up2": 6, "hr": 8, "last": 10}
    return re.sub(r"^conv_(\w+?)\.", lambda m: f"model.{places[m[1]]}.", key)


def release_name(key):
    key = re.sub(r"^body\.(\d+)\.rdb(\d)", r"RRDB_trunk.\1.RDB\2", key)
    names = {"conv_body": "trunk_conv", "conv_up": "upconv", "conv_hr": "HRconv"}
    return re.sub(r"^conv_(body|up|hr)", lambda m: names[m[0]], key)


@pytest.mark.parametrize("rename", [str, old_name, release_name])
def test_weights_of_others_load_by_name(network, tmp_path, rename):
    tensors = {rename(key): tensor for key, tensor in network.state_dict().items()}
    torch.save({"params_ema": tensors}, tmp_path / "net.pth")
    save_file(tensors, tmp_path / "net.safetensors")
    for name in ("net.pth", "net.safetensors"):
        loaded = read_network(tmp_path / name).state_dict()
        assert all(torch.equal(loaded[k], t) for k, t in network.state_dict().items())


def test_other_files_are_refused_in_one_line(network, tmp_path):
    state = network.state_dict()
    torch.save({**state, "conv_first.weight": torch.zeros(8, 12, 3, 3)}, tmp_path / "x2.pth")
    torch.save({k: v for k, v in state.items() if "hr" not in k}, tmp_path / "part.pth")
    torch.save({"conv_first.weight": 1}, tmp_path / "number.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"a": pytest.fixture}, tmp_path / "code.pth")
    for path in tmp_path.iterdir():
        with pytest.raises(CheckpointError) as caught:
            read_network(path)
        assert "\n" not in str(caught.value) and path.name in str(caught.value)


def test_ncnn_files_are_read_to_the_last_byte(tmp_path):
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = [m.weight.shape for m in RRDBNet().modules() if isinstance(m, nn.Conv2d)]
    rng, data, lines = np.random.default_rng(0), [], []
    kernels = [rng.standard_normal(shape, np.float32).astype(np.float16) for shape in shapes]
    for kernel in kernels:
        lines.append(f"Convolution c 1 1 a b 0={len(kernel)} 6={kernel.size}")
        bias = np.arange(len(kernel), dtype=np.float32)
        data += [struct.pack("<I", 0x01306B47), kernel.tobytes(), bytes(-kernel.nbytes % 4)]
        data.append(bias.tobytes())
    param, binary = tmp_path / "net.param", tmp_path / "net.bin"
    param.write_text("7767517\n" + "\n".join(lines))
    binary.write_bytes(b"".join(data))
    convs = [m for m in read_ncnn(param, binary).modules() if isinstance(m, nn.Conv2d)]
    for conv, kernel in zip(convs, kernels, strict=True):
        assert np.array_equal(conv.weight.numpy(), kernel.astype(np.float32))
        assert np.array_equal(conv.bias.numpy(), np.arange(len(kernel)))
    binary.write_bytes(b"".join([*data, b"more"]))
    with pytest.raises(CheckpointError, match="accounts for"):
        read_network(binary)


def test_a_base_is_written_as_it_is_read(network, tmp_path):
    torch.manual_seed(0)
    save_base(RRDBNet(blocks=2, features=8, growth=4), tmp_path, torch.float32)
    loaded = RRDBNet.from_pretrained(tmp_path / "unet")
    assert all(torch.equal(t, network.state_dict()[k]) for k, t in loaded.state_dict().items())
    assert PixelAutoencoder.from_pretrained(tmp_path / "vae").config.latent_channels == 48
