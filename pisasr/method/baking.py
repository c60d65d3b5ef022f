"""Infer, before a model is passed on: one UNet for two strengths, so that a picture costs one pass
and no choice.
"""

import copy

import torch
from torch import nn

from pisasr.method.layers import forget


def is_exact(lambda_pix: float, lambda_sem: float) -> bool:
    """Whether one UNet can say what these strengths make of two: where one prediction has no part
    in the mix.
    """
    return lambda_sem == 0 or lambda_pix == lambda_sem


@torch.no_grad()
def bake(unet_pix: nn.Module, unet: nn.Module, lambda_pix: float, lambda_sem: float) -> nn.Module:
    """A new UNet whose prediction is that of two at (lambda_pix, lambda_sem); the given ones are
    untouched.

        r = lambda_sem / lambda_pix,  W = W_pix + r (W_pisa - W_pix),  eps = lambda_pix * eps_W

    r = 0 and r = 1 are eps_pix and eps_pisa themselves, times a number that the last convolution
    takes into its weight and bias: exact but for rounding. Other r agree with the mix of
    predictions to first order in what the semantic adapter changes. ValueError where lambda_pix
    alone is 0: no weights give a difference of predictions.
    """
    if lambda_pix == 0 and lambda_sem != 0:
        raise ValueError(
            f"lambda_pix 0 with lambda_sem {lambda_sem} can't be baked; give a lambda_pix that isn't 0."
        )
    share = lambda_sem / lambda_pix if lambda_pix else 0.0
    baked = copy.deepcopy(unet if share == 1 else unet_pix)
    forget(baked)
    if share not in (0, 1):
        for mine, pisa in zip(baked.parameters(), unet.parameters(), strict=True):
            mine.copy_(mine.float().lerp(pisa.float(), share))
    for parameter in baked.get_submodule("conv_out").parameters():
        parameter.mul_(lambda_pix)
    return baked
