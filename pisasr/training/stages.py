"""Define the two stages as values: which adapters are on, which one learns, what it is scored by.

stage   adapters on   learns   strengths   losses by default
pix     pix           pix      (1, 0)      l2
sem     pix, sem      sem      (1, 1)      l2, LPIPS, distillation
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pisasr.method.model import Predictors
from pisasr.models.weights import Kind
from pisasr.training.config import StageConfig, TrainConfig


@dataclass(frozen=True)
class Stage:
    """One stage. `active` adapters are on while it runs; the one of its name learns."""

    name: Kind
    active: tuple[Kind, ...]
    lambdas: tuple[float, float]
    settings: StageConfig
    begin: int = 0  # steps of the stages before it

    def predictors(self, network: Callable[[Tensor], Tensor]) -> Predictors:
        """Return the network, with this stage's adapters on, as what its strengths need."""
        return Predictors(None, network) if "sem" in self.active else Predictors(network, None)


def stages_of(config: TrainConfig) -> list[Stage]:
    """Return the stages that have steps, in the order in which they are trained."""
    both = [
        Stage("pix", ("pix",), (1.0, 0.0), config.pix),
        Stage("sem", ("pix", "sem"), (1.0, 1.0), config.sem, begin=config.pix.steps),
    ]
    return [stage for stage in both if stage.settings.steps]
