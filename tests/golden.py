"""Makes golden.safetensors: the method on the tiny base, computed the long way, without any code of
pisasr.

    python tests/golden.py

Adapters are merged by the published formula, the steps are diffusers' own modules called by hand.
The tests hold the package against the numbers stored here, so a change of theirs is a change of
results.
"""

from pathlib import Path

import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = Path(__file__).with_name("golden.safetensors")
LAMBDAS = (0.5, 1.5)


def merge(unet: nn.Module, adapter) -> None:
    """W + (8 / r) B A; a convolution's A is flattened over in * kh * kw, its B over its 1 x 1."""
    weights = dict(unet.named_parameters())
    for key, A in adapter.tensors.items():
        if ".lora_A." in key:
            B = adapter.tensors[key.replace(".lora_A.", ".lora_B.")]
            W = weights[key.replace(".lora_A.", ".")]
            W += 8 / adapter.rank * (B.reshape(len(B), -1) @ A.reshape(len(A), -1)).reshape(W.shape)


@torch.no_grad()
def compute() -> dict[str, Tensor]:
    unet, vae, text_encoder = tiny.make_unet(), tiny.make_vae(), tiny.make_text_encoder()
    pix, sem = tiny.make_adapter(unet, "pix", 4), tiny.make_adapter(unet, "sem", 2)

    ids = torch.tensor(
        [[512, 513] + [0] * 75]
    )  # the empty prompt: start, end, and "!" (id 0) as padding
    embeds = text_encoder(ids).last_hidden_state
    x_L = tiny.wave((1, 3, 24, 32), 7.0, 0.9)
    posterior = vae.encode(x_L).latent_dist
    noise = tiny.wave((1, 4, 6, 8), 8.0, 1.4)
    z_L = 0.18215 * posterior.mean
    t = torch.tensor([1])
    merge(unet, pix)
    eps_pix = unet(z_L, t, encoder_hidden_states=embeds).sample
    merge(unet, sem)
    eps_full = unet(z_L, t, encoder_hidden_states=embeds).sample
    z_H = z_L - (LAMBDAS[0] * eps_pix + LAMBDAS[1] * (eps_full - eps_pix))
    return {
        "embeds": embeds[:, :4].contiguous(),
        "x_L": x_L,
        "noise": noise,
        "z_L": z_L,
        "z_L_sampled": 0.18215 * (posterior.mean + posterior.std * noise),
        "eps_pix": eps_pix,
        "eps_full": eps_full,
        "z_H": z_H,
        "x_H": vae.decode(z_H / 0.18215).sample,
    }


if __name__ == "__main__":
    save_file(compute(), FILE)
    print(f"{FILE}: {FILE.stat().st_size} bytes")
