"""Photo to adapter: a critic, which learns to tell restored pictures from photos by what a frozen network sees in them.

A distance to the photo alone makes a small model soft: of all the textures that an input could have had, it draws the
mean. A critic asks for one that a photo could have. It looks at features and not at pixels, where it would win before
the adapter can draw, and through the moving window that perception looks through, or a lattice would please it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from pisasr.config import StageConfig
from pisasr.training.losses import Lpips, Perceptual

Features = Callable[[Tensor], Sequence[Tensor]]  # x [B, 3, H, W] in [-1, 1] -> [B, c, h, w] of several depths
BLOCKS, WIDTH = 3, 32  # of the backbone that are judged; channels of a head
LR, BETAS = 3e-4, (0.0, 0.99)
PENALTY, PENALTY_EVERY = 1.0, 4  # of the heads' squared slopes, on photos and on restored pictures


class Critic:
    """Small convolutional heads, one on each depth of a frozen network, with an optimizer of their own.

    Relativistic and paired (arXiv:1807.00734): what counts is by how much a photo's place looks truer than the restored
    one's. Slopes are penalised at both (arXiv:2501.05441), so that the heads never win for good.

        heads:    mean softplus(D(x_pred) - D(x_H)) + PENALTY / 2 * (|grad D(x_H)|^2 + |grad D(x_pred)|^2)
        adapter:  mean softplus(D(x_H) - D(x_pred))

    Every look is a step of the heads, too. For `wait` looks they learn and the adapter hears nothing, and after as many
    more it hears all of it: a critic that knows nothing yet pulls anywhere.
    """

    def __init__(
        self,
        features: Features,
        channels: Sequence[int],
        device: torch.device | str,
        wait: int,
        average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    ):
        """channels: of each depth that is judged, the first ones of `features`. average: over all processes."""
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.heads = nn.ModuleList(map(_head, channels)).to(device)
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=LR, betas=BETAS)
        self.features, self.wait, self.average, self.looks = features, wait, average, 0

    def __call__(self, x_pred: Tensor, x_H: Tensor) -> Tensor:
        """How much truer the photos look; both [B, 3, H, W] in [-1, 1], differentiable in x_pred alone."""
        with torch.no_grad():
            of_photos = self._look(x_H)
        of_restored = self._look(x_pred)
        with torch.autocast(x_pred.device.type, enabled=False):
            if torch.is_grad_enabled() and x_pred.requires_grad:
                self._learn(of_photos, [one.detach() for one in of_restored])
            self.heads.requires_grad_(False)
            value = _above(self._judge(of_restored), self._judge(of_photos))
            self.heads.requires_grad_(True)
        return value * min(1.0, max(0.0, self.looks / max(1, self.wait) - 1))

    def tensors(self) -> dict[str, Tensor]:
        """All that a later start goes on from, by name."""
        moments = self.optimizer.state_dict()["state"]
        found = {f"heads.{name}": tensor for name, tensor in self.heads.state_dict().items()}
        found |= {f"{name}.{number}": tensor for number, named in moments.items() for name, tensor in named.items()}
        return {"looks": torch.tensor(self.looks), **found}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `tensors` said."""
        self.looks = int(tensors["looks"])
        self.heads.load_state_dict({name.removeprefix("heads."): t for name, t in tensors.items() if "heads." in name})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, number = name.rpartition(".")
            if number.isdigit():
                moments.setdefault(int(number), {})[kind] = tensor
        rates = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": rates})

    def _look(self, x: Tensor) -> list[Tensor]:
        """Features [B, c, h, w], of mean square 1 over the channels of each place: contrast is no sign of truth."""
        depths = zip(self.heads, self.features(x), strict=False)
        return [normalize(seen.float()) * seen.shape[1] ** 0.5 for _, seen in depths]

    def _judge(self, seen: list[Tensor]) -> list[Tensor]:
        return [head(one) for head, one in zip(self.heads, seen, strict=True)]

    def _learn(self, of_photos: list[Tensor], of_restored: list[Tensor]) -> None:
        """One step of the heads; none where the gradient is not finite."""
        penalised = self.looks % PENALTY_EVERY == 0
        leaves = [[one.detach().requires_grad_(penalised) for one in seen] for seen in (of_photos, of_restored)]
        truer, less = (self._judge(seen) for seen in leaves)
        loss = _above(truer, less)
        if penalised:
            for scores, seen in zip((truer, less), leaves, strict=True):
                slopes = torch.autograd.grad([score.sum() for score in scores], seen, create_graph=True)
                steep = torch.stack([slope.square().sum(1).mean() for slope in slopes]).mean()
                loss = loss + PENALTY / 2 * PENALTY_EVERY * steep
        gradients = torch.autograd.grad(loss, list(self.heads.parameters()))
        finite = torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
        for parameter, gradient in zip(self.heads.parameters(), gradients, strict=True):
            parameter.grad = self.average(torch.where(finite, gradient, 0))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.looks += 1


def build_critic(
    settings: StageConfig,
    perceptual: Perceptual | None,
    device: torch.device | str,
    average: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Critic | None:
    """The critic that a stage asks for, if it does: on the first blocks of LPIPS' backbone."""
    if not settings.beyond.weight_critic:
        return None
    assert isinstance(perceptual, Lpips)  # noqa: S101  # the configuration is refused otherwise
    return Critic(perceptual.features, perceptual.channels[:BLOCKS], device, settings.beyond.critic_wait, average)


def _head(channels: int) -> nn.Sequential:
    """Features to a score for each place, of 7 x 7 places around it; nothing is padded, so a border tells nothing."""
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3),
        nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, WIDTH, 3),
        nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, 1, 3),
    )


def _above(higher: list[Tensor], lower: list[Tensor]) -> Tensor:
    """0 where each of the one's scores is far above the other's, log 2 where they are equal."""
    return torch.stack([softplus(b - a).mean() for a, b in zip(higher, lower, strict=True)]).mean()
