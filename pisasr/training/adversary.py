"""An adversary: a critic that learns to tell restored pictures from photos, while the adapter learns to pass.

Beyond the paper, which leaves invented detail to classifier score distillation: that needs a prior that knows what
photos look like, and the embedded default's, trained for minutes, does not. A critic learns that on the side, from the
same photos. It is no shortcut: an adapter that can't draw yet is only taught a lattice (scripts/demo/README.md).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm

from pisasr.training.checkpoints import by_kind, load_moments, pack_moments
from pisasr.training.stages import Restored


class PatchCritic(nn.Module):
    """Pictures and what they were made from, both [B, 3, H, W] in [-1, 1] -> one score per patch, [B, 1, H/4, W/4].

    A score depends on a square of 34 px (Isola et al. 2017, arXiv:1611.07004: patches judge texture, the l2 keeps the
    rest). It sees the input beside the picture, so that it asks for the detail that belongs there and not for any.
    Every layer but the last has a spectral norm of 1 (arXiv:1802.05957), which keeps its gradients small.
    """

    def __init__(self, channels: int = 48):
        super().__init__()
        wide = 2 * channels
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(6, channels, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(channels, wide, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(wide, wide, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(wide, wide, 3, padding=1)),
            nn.LeakyReLU(0.2),
            nn.Conv2d(wide, 1, 3, padding=1),
        )

    def forward(self, x: Tensor, x_L: Tensor) -> Tensor:
        return self.layers(torch.cat([x, x_L], dim=1))


class Adversary:
    """The critic with its own optimizer. Its loss compares each patch with the true one at the same place.

    Relativistic and paired (arXiv:1807.00734): what counts is by how much a photo's patch looks truer than the restored
    one, so neither side wins by a score that says nothing about the picture.

        critic:   mean softplus(D(x_pred) - D(x_H))
        adapter:  mean softplus(D(x_H) - D(x_pred))
    """

    def __init__(self, device: torch.device | str, lr: float, seed: int, average: Callable[[Tensor], Tensor]):
        """average: a gradient's mean over all processes."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.critic = PatchCritic().to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=lr, betas=(0.5, 0.99))
        self.average = average

    def loss(self, restored: Restored) -> Tensor:
        """What the adapter minimises; no gradient reaches the critic, and none of its buffers moves."""
        self.critic.requires_grad_(False).eval()
        with torch.no_grad():
            of_photo = self.critic(restored.x_H, restored.x_L)
        value = softplus(of_photo - self.critic(restored.x_pred, restored.x_L)).mean()
        self.critic.requires_grad_(True).train()
        return value

    def collect(self, restored: Restored, share: float = 1.0) -> Tensor:
        """Add `share` of the critic's gradient on this batch to what `step` will follow; its loss is returned."""
        both = self.critic(torch.cat([restored.x_H, restored.x_pred.detach()]), restored.x_L.repeat(2, 1, 1, 1))
        of_photo, of_restored = both.float().chunk(2)
        loss = softplus(of_restored - of_photo).mean()
        (share * loss).backward()
        return loss.detach()

    def step(self, taken: bool = True) -> None:
        """One step of the critic along what was collected; without `taken`, that is only thrown away."""
        if taken:
            for parameter in self.critic.parameters():
                parameter.grad = self.average(parameter.grad)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an exact continuation needs, by name."""
        critic = {f"critic.{name}": tensor for name, tensor in self.critic.state_dict().items()}
        return critic | {f"moments.{key}": tensor for key, tensor in pack_moments(self.optimizer).items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        kinds = by_kind(tensors)
        self.critic.load_state_dict(kinds["critic"])
        load_moments(self.optimizer, kinds["moments"])
