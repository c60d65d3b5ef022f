"""The two stages as values: which adapters are on, which one learns, what it is scored by."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pisasr.config import StageConfig, TrainConfig
from pisasr.training.losses import lattice, pixel_l2

if TYPE_CHECKING:
    from pisasr.training.adversary import Adversary


@dataclass(frozen=True)
class Stage:
    """One stage. `active` adapters are on while it runs, `learns` is the one that moves; the rest stays as it is."""

    name: str
    active: tuple[str, ...]
    learns: str
    settings: StageConfig

    @property
    def stands_on(self) -> tuple[str, ...]:
        """Adapters that must be trained before this stage starts."""
        return tuple(name for name in self.active if name != self.learns)


def stages_of(config: TrainConfig) -> list[Stage]:
    """PIX removes what the camera did; SEM, on top of it, adds what the photo lost. A stage of 0 steps is left out."""
    both = [
        Stage("pix", active=("pix",), learns="pix", settings=config.pix),
        Stage("sem", active=("pix", "sem"), learns="sem", settings=config.sem),
    ]
    return [stage for stage in both if stage.settings.steps]


@dataclass
class Score:
    """The weighted sum that a stage minimises. Terms of weight 0 are left out by whoever builds this, not multiplied.

    terms: name -> (weight, function of the restored batch).
    """

    terms: dict[str, tuple[float, Callable[["Restored"], Tensor]]] = field(default_factory=dict)

    def __call__(self, restored: "Restored") -> tuple[Tensor, dict[str, float]]:
        """(total to minimise, each term's unweighted value)."""
        values = {name: loss(restored) for name, (_, loss) in self.terms.items()}
        total = sum(self.terms[name][0] * value for name, value in values.items())
        return total, {name: value.item() for name, value in values.items()}


@dataclass
class Restored:
    """What one training step made of its batch. Images [B, 3, H, W] in [-1, 1]; z_H [B, c, h, w] scaled,
    each of its cells cell_px wide in the picture.

    Latents lie on a grid, and so does what a perceptual network pools and what a prior has not learnt well. Where both
    always meet in the same place, a pattern of one cell's size can lower the loss at no cost, and flat areas show it
    as a lattice. Seen through a window that moves, it averages out: `shift` is how far the window may move, in pixels.
    """

    x_pred: Tensor
    x_H: Tensor
    x_L: Tensor
    z_H: Tensor
    captions: list[str]
    seeds: list[int]
    cell_px: int = 8
    shift: int = 0
    corners: list[tuple[int, int]] = field(default_factory=list)
    x_T: Tensor | None = None  # what a teacher made of x_L, like x_H

    def window(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] through each sample's window [H - shift, W - shift]; x itself without a shift."""
        if not self.shift:
            return x
        height, width = (side - self.shift for side in x.shape[2:])
        return torch.stack(
            [one[:, top : top + height, left : left + width] for one, (top, left) in zip(x, self.corners, strict=True)]
        )


def build_score(
    settings: StageConfig,
    perceptual: Callable[[], Callable],
    csd: Callable[[], Callable],
    adversary: "Adversary | None" = None,
) -> Score:
    """Only what has a weight. `perceptual` and `csd` build their loss when it is asked for, and only then."""
    score = Score()
    if settings.weight_l2:
        score.terms["l2"] = (settings.weight_l2, lambda r: pixel_l2(r.x_pred, r.x_H))
    if settings.weight_teacher:
        score.terms["teacher"] = (settings.weight_teacher, lambda r: nn.functional.l1_loss(r.x_pred, r.x_T))
    if settings.weight_lpips:
        distance = perceptual()

        def perceived(restored: Restored) -> Tensor:
            target = restored.x_T if settings.lpips_to == "teacher" else restored.x_H
            return distance(restored.window(restored.x_pred), restored.window(target))

        score.terms["lpips"] = (settings.weight_lpips, perceived)
    if settings.weight_csd:
        score.terms["csd"] = (settings.weight_csd, csd())
    if settings.weight_lattice:

        def repeated(r: Restored) -> Tensor:  # a teacher's calm areas are calm, a photo's have noise that hides it
            return lattice(r.x_pred, r.x_H if r.x_T is None else r.x_T, r.cell_px)

        score.terms["lattice"] = (settings.weight_lattice, repeated)
    if adversary:
        score.terms["gan"] = (settings.weight_gan, adversary.loss)
    return score
