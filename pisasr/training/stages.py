"""Photo to adapter: the two stages as values. Which adapters are on, which one learns, what it is
scored by.

stage   adapters on   learns   strengths   losses by default
pix     pix           pix      (1, 0)      l2
sem     pix, sem      sem      (1, 1)      l2, LPIPS, distillation
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Literal

import torch
from torch import Tensor, nn

from pisasr.config import CsdConfig, StageConfig, TrainConfig
from pisasr.method.adapters import active
from pisasr.method.model import PiSASR, Predictors, predict_eps
from pisasr.training.chance import draw, stream
from pisasr.training.csd import ClassifierScoreDistillation
from pisasr.training.losses import Perceptual, lattice, pixel_l2

Kind = Literal["pix", "sem"]
Words = Callable[[list[str]], Tensor]  # prompts -> embeddings [B, tokens, d]


@dataclass(frozen=True)
class Stage:
    """One stage. `active` adapters are on while it runs, `learns` is the one that moves; the rest
    stays as it is.
    """

    name: str
    active: tuple[Kind, ...]
    learns: Kind
    lambdas: tuple[float, float]
    settings: StageConfig

    @property
    def stands_on(self) -> tuple[Kind, ...]:
        """Adapters that must be trained before this stage starts."""
        return tuple(name for name in self.active if name != self.learns)

    def predictors(self, network: Callable[[Tensor], Tensor]) -> Predictors:
        """The network, with this stage's adapters on, as the prediction that its strengths ask
        for.
        """
        return {("pix",): Predictors(network, None), ("pix", "sem"): Predictors(None, network)}[
            self.active
        ]


def stages_of(config: TrainConfig) -> list[Stage]:
    """PIX removes what the camera did; SEM, on top of it, adds what the photo lost. A stage of 0
    steps is left out.
    """
    both = [
        Stage("pix", active=("pix",), learns="pix", lambdas=(1.0, 0.0), settings=config.pix),
        Stage("sem", active=("pix", "sem"), learns="sem", lambdas=(1.0, 1.0), settings=config.sem),
    ]
    return [stage for stage in both if stage.settings.steps]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one process learns from at a time. Pictures [B, 3, H, W] in [-1, 1], float32, on the
    device.

    Latents lie on a grid, cell_px of the picture wide, and so does what a perceptual network pools
    and what a prior has not learnt well. Where both always meet in the same place, a pattern of one
    cell's size can lower the loss at no cost, and flat areas show it as a lattice. Seen through a
    window that moves, it averages out: `shift` is how far the window may move, in pixels, and
    `corners` where each sample's is.
    """

    x_L: Tensor
    x_H: Tensor
    x_T: Tensor | None = None  # what a teacher made of x_L
    captions: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    cell_px: int = 8
    shift: int = 0
    corners: list[tuple[int, int]] = field(default_factory=list)

    @property
    def taught(self) -> Tensor:
        """The teacher's pictures where there are some, else the photos."""
        return self.x_H if self.x_T is None else self.x_T

    def window(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W] through each sample's window [H - shift, W - shift]; x itself without a
        shift.
        """
        if not self.shift:
            return x
        height, width = (side - self.shift for side in x.shape[2:])
        return torch.stack(
            [
                one[:, top : top + height, left : left + width]
                for one, (top, left) in zip(x, self.corners, strict=True)
            ]
        )


Loss = Callable[
    [Batch, Tensor, Tensor], Tensor
]  # (batch, x_pred like x_H, z_H [B, c, h, w] scaled) -> a number


@dataclass(frozen=True)
class Objective:
    """The weighted sum that a stage minimises. terms: name -> (weight, loss), those with a weight
    alone.
    """

    terms: dict[str, tuple[float, Loss]]

    def __call__(
        self, batch: Batch, x_pred: Tensor, z_H: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(total to minimise, each term's unweighted value and the "total", detached, where they
        were computed).
        """
        values = {name: loss(batch, x_pred, z_H) for name, (_, loss) in self.terms.items()}
        total = reduce(torch.add, (self.terms[name][0] * value for name, value in values.items()))
        return total, {name: value.detach() for name, value in {**values, "total": total}.items()}


def build_objective(
    settings: StageConfig, perceptual: Perceptual | None, csd: Callable[[], Loss]
) -> Objective:
    """The losses that have a weight; distillation is made only where it has one, `perceptual` may
    be None without.
    """
    makers: dict[str, Callable[[], Loss]] = {
        "l2": lambda: lambda batch, x_pred, z_H: pixel_l2(x_pred, batch.x_H),
        "teacher": lambda: lambda batch, x_pred, z_H: nn.functional.l1_loss(x_pred, batch.taught),
        "csd": csd,
        # A teacher's calm areas are calm, a photo's have noise that hides the lattice.
        "lattice": lambda: lambda batch, x_pred, z_H: lattice(x_pred, batch.taught, batch.cell_px),
    }
    if perceptual is not None:
        makers["lpips"] = partial(_perceived, settings, perceptual)
    return Objective({name: (weight, makers[name]()) for name, weight in settings.losses.items()})


def _perceived(settings: StageConfig, distance: Perceptual) -> Loss:
    def loss(batch: Batch, x_pred: Tensor, z_H: Tensor) -> Tensor:
        target = batch.taught if settings.beyond.lpips_to == "teacher" else batch.x_H
        return distance(batch.window(x_pred), batch.window(target))

    return loss


def distillation(model: PiSASR, words: Words, alphas_cumprod: Tensor, settings: CsdConfig) -> Loss:
    """Classifier score distillation by the base, which is its own teacher: the adapters are off
    while it looks.

    alphas_cumprod [1000]: of the schedule that the base was trained with.
    """
    distill = ClassifierScoreDistillation(
        alphas_cumprod, settings.cfg, settings.t_min, settings.t_max
    )

    def teacher(z_t: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
        with active(model.unet, ()):
            return predict_eps(model.unet, z_t, embeds, t)

    def loss(batch: Batch, x_pred: Tensor, z_H: Tensor) -> Tensor:
        wanted = [", ".join(filter(None, (caption, settings.prompt))) for caption in batch.captions]
        # A moved window has latents of its own; the gradient reaches z_H through the picture.
        z = model.encode(batch.window(x_pred)) if batch.shift else z_H
        t = torch.cat([distill.draw_t(stream(seed, "csd time")) for seed in batch.seeds])
        noise = draw(batch.seeds, z.shape[1:], "csd noise")
        unwanted = words([settings.negative_prompt] * len(wanted))
        return distill(z, teacher, words(wanted), unwanted, t.to(z.device), noise.to(z.device))

    return loss
