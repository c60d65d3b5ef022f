"""Learn to tell restored pictures from true ones (x_H), by what a frozen network sees in both.

A distance alone makes pictures soft: of all textures that an input could have had, the mean is
nearest. A critic asks for one that a true picture could have. It looks at features, as Projected
GAN's (arXiv:2111.01007): in pixels it would need far more pictures before it knew anything.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pisasr.evaluation.networks import Lpips

CHANNELS = {"vgg": (64, 128, 256), "alex": (64, 192, 384), "squeeze": (64, 128, 256)}
WIDTH = 32  # channels of a head
LR, BETAS = 3e-4, (0.0, 0.99)
PENALTY, PENALTY_EVERY = 1.0, 4  # of the heads' squared slopes, in looks


class Critic(nn.Module):
    """Small convolutional heads on the first three depths of LPIPS' trunk, and their optimizer.

    Relativistic (arXiv:1807.00734): what counts is by how much a true picture looks truer than
    the restored one. Slopes are penalized at both, so that the heads never win for good
    (arXiv:2501.05441).
    """

    def __init__(self, lpips: Lpips, net: str, average: Callable[[Tensor], Tensor]):
        """average: a gradient over all processes."""
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.heads = nn.ModuleList(map(_head, CHANNELS[net]))
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=LR, betas=BETAS)
        self.looks = 0
        self._look, self._average = lpips.features, average

    def forward(self, x_pred: Tensor, x_H: Tensor) -> Tensor:
        """Teach the heads by one step, then return by how much x_H looks truer: log 2 where
        nobody can tell. Both [B, 3, H, W] in [-1, 1]; differentiable in x_pred alone.
        """
        with torch.no_grad():
            true = self._features(x_H)
        restored = self._features(x_pred)
        self._learn(true, [seen.detach() for seen in restored])
        self.heads.requires_grad_(False)  # and autocast looks at the new weights
        truer = self._judge([seen.detach() for seen in true])
        loss = _above(self._judge(restored), truer)  # as the heads' own, sides changed
        self.heads.requires_grad_(True)
        return loss

    def state(self) -> dict[str, Any]:
        """Return what `load` goes on from, for torch.save."""
        heads, optimizer = self.heads.state_dict(), self.optimizer.state_dict()
        return {"looks": self.looks, "heads": heads, "optimizer": optimizer}

    def load(self, state: dict[str, Any]) -> None:
        self.looks = state["looks"]
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _features(self, x: Tensor) -> list[Tensor]:
        """[B, c, h, w] of mean square 1 over the channels: contrast is no sign of truth."""
        depths = zip(self.heads, self._look(x), strict=False)
        return [F.normalize(seen.float()) * seen.shape[1] ** 0.5 for _, seen in depths]

    def _judge(self, features: list[Tensor]) -> list[Tensor]:
        return [head(seen).float() for head, seen in zip(self.heads, features, strict=True)]

    def _learn(self, true: list[Tensor], restored: list[Tensor]) -> None:
        self.looks += 1
        penalized = self.looks % PENALTY_EVERY == 0
        both = [[f.requires_grad_(penalized) for f in seen] for seen in (true, restored)]
        truer, less = map(self._judge, both)
        loss = _above(truer, less)
        if penalized:
            scores = torch.stack([score.sum() for score in (*truer, *less)]).sum()
            slopes = torch.autograd.grad(scores, [*both[0], *both[1]], create_graph=True)
            steep = torch.stack([slope.square().sum(1).mean() for slope in slopes]).mean()
            loss = loss + PENALTY * PENALTY_EVERY * steep
        parameters = list(self.heads.parameters())
        gradients = list(map(self._average, torch.autograd.grad(loss, parameters)))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
            self.optimizer.step()


def _head(channels: int) -> nn.Sequential:
    """Score each place by 7 x 7 places around it; nothing is padded, so a border tells nothing."""
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3),
        nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, WIDTH, 3),
        nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, 1, 3),
    )


def _above(truer: list[Tensor], less: list[Tensor]) -> Tensor:
    """0 where one's scores are far above the other's, log 2 where they are equal."""
    pairs = zip(truer, less, strict=True)
    return torch.stack([F.softplus(low - high).mean() for high, low in pairs]).mean()
