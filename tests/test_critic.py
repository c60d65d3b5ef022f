"""The critic: it learns to tell, it waits, it pulls toward what it takes for true, and it goes on where it was."""

import pytest
import torch
from torch import nn

from pisasr.data.photos import BadPhotos
from pisasr.method.adapters import attach, parameters_of, train_only
from pisasr.training.critic import Critic
from pisasr.training.guard import NonFiniteGuard
from pisasr.training.state import STATE_KEYS, Checkpoints, State
from tests import tiny

CHANNELS = (8, 12)


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, stride=2)]

    def look(x):
        first = layers[0](x).relu()
        return first, layers[1](first).relu(), None  # a depth beyond those that are judged

    return look


def draw(step, sharpness):
    """Photos, and the same ones blurred to a degree: sharpness 1 is the photo."""
    x_H = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(step)) * 2 - 1
    blurred = nn.functional.avg_pool2d(x_H, 3, 1, 1)
    return blurred + sharpness * (x_H - blurred), x_H


def teach(critic, steps, first=0, sharpness=0.2):
    for step in range(first, first + steps):
        x_pred, x_H = draw(step, torch.tensor(sharpness, requires_grad=True))
        value = critic(x_pred, x_H)
    return value.item()


def test_it_tells_photos_from_softer_pictures_and_pulls_toward_photos(features):
    critic = Critic(features, CHANNELS, "cpu", wait=1)
    assert teach(critic, 2) == pytest.approx(0.69, abs=0.02)  # log 2: it can't tell yet
    assert teach(critic, 150, first=2) > 0.9
    sharpness = torch.tensor(0.2, requires_grad=True)
    critic(*draw(999, sharpness)).backward()
    assert sharpness.grad < 0


def test_the_adapter_hears_nothing_while_it_learns_alone_and_then_more_and_more(features):
    critic = Critic(features, CHANNELS, "cpu", wait=4)
    values = [teach(critic, 1, first=step) for step in range(9)]
    assert values[:4] == [0, 0, 0, 0] and values[4] == pytest.approx(0.69 / 4, abs=0.02)
    assert values[4] < values[5] < values[6] and values[8] > 3 * values[4] and critic.looks == 9


def test_its_state_is_all_of_it_and_a_checkpoint_has_it(features, tmp_path):
    unet = tiny.make_unet()
    attach(unet, "sem", 2, 2.0)
    train_only(unet, "sem")

    def state_of(critic):
        optimizer = torch.optim.AdamW(parameters_of(unet, "sem").values())
        return State("sem", unet, optimizer, None, NonFiniteGuard(1), BadPhotos(1, 0.0), {}, [], critic)

    critic, again = (Critic(features, CHANNELS, "cpu", wait=2) for _ in range(2))
    teach(critic, 5)
    checkpoints = Checkpoints(tmp_path, 2, STATE_KEYS)
    state_of(critic).save(checkpoints, 5)
    assert state_of(again).take_up(checkpoints.newest("sem")) == 5
    assert teach(again, 6, first=5) == teach(critic, 6, first=5)
    for name, tensor in critic.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


def test_what_is_not_finite_and_what_nobody_learns_from_leave_it_as_it_is(features):
    critic = Critic(features, CHANNELS, "cpu", wait=1)
    teach(critic, 3)
    before = {name: tensor.clone() for name, tensor in critic.heads.state_dict().items()}
    x_pred, x_H = draw(3, torch.tensor(0.2))
    with torch.no_grad():
        critic(x_pred, x_H)
    assert critic.looks == 3
    critic((x_pred * float("nan")).requires_grad_(), x_H)
    assert all(tensor.isfinite().all() for tensor in critic.heads.state_dict().values())
    assert critic.looks == 4 and set(before) == set(critic.heads.state_dict())
