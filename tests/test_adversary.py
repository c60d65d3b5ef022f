"""The critic: what it learns, whom its loss moves, what a continuation finds again."""

import torch

from pisasr.training.adversary import Adversary, PatchCritic
from pisasr.training.stages import Restored


def restored(x_pred, x_H):
    blurred = torch.nn.functional.avg_pool2d(x_H, 5, stride=1, padding=2)
    return Restored(x_pred, x_H, blurred, x_H, [""] * len(x_H), list(range(len(x_H))), 4)


def pictures(seed, count=4):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def soft(x_H):
    return torch.nn.functional.avg_pool2d(x_H, 3, stride=1, padding=1)


def learn(adversary, first, steps):
    losses = []
    for seed in range(first, first + steps):
        x_H = pictures(seed)
        losses.append(adversary.collect(restored(soft(x_H), x_H)).item())
        adversary.step()
    return losses


def build(lr=2e-3):
    return Adversary("cpu", lr=lr, seed=0, average=lambda gradient: gradient)


def test_it_learns_to_tell_soft_pictures_and_then_asks_for_sharper_ones():
    adversary = build()
    losses = learn(adversary, 0, 60)
    assert losses[-1] < losses[0] / 2
    x_H = pictures(1000)
    x_pred = soft(x_H).requires_grad_()
    before = adversary.loss(restored(x_pred, x_H))
    before.backward()
    better = (x_pred - 20 * x_pred.grad / x_pred.grad.abs().max()).detach()
    assert adversary.loss(restored(better, x_H)) < before
    assert adversary.loss(restored(x_H, x_H)).item() == torch.log(torch.tensor(2.0)).item()  # nothing to tell apart


def test_the_adapters_loss_leaves_the_critic_alone_and_the_critics_the_adapter():
    adversary, x_H = build(), pictures(0)
    x_pred = soft(x_H).requires_grad_()
    adversary.loss(restored(x_pred, x_H)).backward()
    assert x_pred.grad.abs().sum() > 0 and all(p.grad is None for p in adversary.critic.parameters())
    x_pred.grad = None
    adversary.collect(restored(x_pred, x_H))
    assert x_pred.grad is None and all(p.grad is not None for p in adversary.critic.parameters())
    before = [p.detach().clone() for p in adversary.critic.parameters()]
    adversary.step(taken=False)
    assert all(torch.equal(a, b) for a, b in zip(before, adversary.critic.parameters(), strict=True))
    assert all(p.grad is None for p in adversary.critic.parameters())


def test_a_score_depends_on_34_pixels():
    critic = PatchCritic(channels=4).eval()
    x = torch.zeros(1, 3, 96, 96, requires_grad=True)
    critic(x, torch.zeros_like(x))[0, 0, 12, 12].backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [34, 34]


def test_it_continues_where_it_was():
    straight = build()
    losses = learn(straight, 0, 6)
    cut = build()
    learn(cut, 0, 3)
    kept = {name: tensor.clone() for name, tensor in cut.tensors().items()}
    again = build(lr=2e-3)
    learn(again, 50, 1)  # something else in between, to be overwritten
    again.load(kept)
    assert learn(again, 3, 3) == losses[3:]
    ends = again.tensors()
    assert ends.keys() == straight.tensors().keys()
    for name, tensor in straight.tensors().items():
        assert torch.equal(tensor, ends[name]), name
