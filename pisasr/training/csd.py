"""Distill the frozen base's score: what it expects z_H to have, as a gradient."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# (z_t, t [B], prompt_embeds) -> eps; the frozen base
Teacher = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ClassifierScoreDistillation:
    """Move z_H toward what the base expects of its caption (arXiv:2310.19415, as in PiSA-SR).

    Noise z_H to a random t and let the frozen UNet guess the clean latent twice: x0(e_cfg), guided
    by the caption at strength `cfg`, and x0(e_neg), from the negative prompt alone. The direction
    between the guesses is the gradient:

        z_t  = sqrt(a_t) z_H + sqrt(1 - a_t) n
        e_cfg = e_neg + cfg * (e_pos - e_neg)
        x0(e) = (z_t - sqrt(1 - a_t) e) / sqrt(a_t)
        g    = (x0(e_neg) - x0(e_cfg)) / mean|z_H - x0(e_cfg)|    mean over a sample's [c, h, w]
        loss = mean(g^2),   d loss / d z_H = 2 g / numel

    The sign may surprise: in terms of clean latents, descending g moves z_H from the negative guess
    to the guided one. Nothing flows back through the teacher, and the loss's value means nothing.
    """

    alphas_cumprod: Tensor
    cfg: float = 7.5
    t_min: int = 20
    t_max: int = 500

    def draw_t(self, generator: torch.Generator) -> Tensor:
        """Draw one timestep [1], uniform in [t_min, t_max)."""
        return torch.randint(self.t_min, self.t_max, (1,), generator=generator)

    def __call__(
        self,
        z_H: Tensor,
        teacher: Teacher,
        pos_embeds: Tensor,
        neg_embeds: Tensor,
        t: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Return the loss, differentiable in z_H [B, c, h, w].

        Embeddings [B, tokens, d], t [B] integers, noise like z_H.
        """
        z = z_H.detach().float()
        alpha = self.alphas_cumprod.to(z)[t].view(-1, 1, 1, 1)
        with torch.no_grad():
            z_t = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
            both = teacher(z_t.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([neg_embeds, pos_embeds]))
            e_neg, e_pos = both.float().chunk(2)
            e_cfg = e_neg + self.cfg * (e_pos - e_neg)
            x0_neg, x0_cfg = ((z_t - (1 - alpha).sqrt() * e) / alpha.sqrt() for e in (e_neg, e_cfg))
            distance = (z - x0_cfg).abs().mean((1, 2, 3), keepdim=True)
            g = (x0_neg - x0_cfg) / distance.clamp_min(1e-8)
            target = z - g
        return torch.nn.functional.mse_loss(z_H.float(), target)
