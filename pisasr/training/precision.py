"""Before the first step: how numbers are kept and computed, decided once, applied in one place and told in the log."""

import logging
import os

import torch
from torch import nn

from pisasr.config import ConfigError, RunConfig, TrainConfig

log = logging.getLogger(__name__)

LOW_PRECISION = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def settle(config: TrainConfig) -> TrainConfig:
    """The configuration with run.mixed_precision decided: its own, else the launcher's, else "no".

    `accelerate launch --mixed_precision fp16` arrives as an environment variable; it says "no" whether or not anybody
    asked for that, so only the others count. ConfigError where both have a word and they differ.
    """
    launched, own = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(), config.run.mixed_precision
    if launched not in LOW_PRECISION:
        raise ConfigError(f"the launcher says mixed precision {launched}; wanted one of {', '.join(LOW_PRECISION)}.")
    if launched != "no" and own not in (None, launched):
        raise ConfigError(
            f"run.mixed_precision is {own}, the launcher says {launched}; leave one of them out, or make them agree."
        )
    run = config.run.model_copy(update={"mixed_precision": own or launched})
    return config.model_copy(update={"run": run})


def apply(run: RunConfig, device: torch.device) -> None:
    """Set what CUDA computes by, for the whole process, and say so; a CPU has nothing to be set.

    deterministic: algorithms that give the same bytes again on the same card with the same versions, no search for the
    fastest ones in cuDNN, and no memory-efficient attention (its gradients are sums in any order): flash attention in
    fp16 and bf16, the plain one in float32, which needs more memory. An operation that has no such algorithm is named
    by a warning of torch's, and its bytes are not promised. tf32: products of float32 numbers rounded to ten bits of
    mantissa.
    """
    chosen = f"precision {run.mixed_precision} on {device.type}"
    if device.type != "cuda":
        log.info("%s", chosen)
        return
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.use_deterministic_algorithms(run.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not run.deterministic
    torch.backends.cuda.enable_mem_efficient_sdp(not run.deterministic)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = run.tf32
    log.info("%s, TF32 %s, deterministic %s", chosen, *("on" if on else "off" for on in (run.tf32, run.deterministic)))


def freeze_in(part: nn.Module, dtype: torch.dtype, norms: torch.dtype = torch.float32) -> nn.Module:
    """A part in low precision, frozen. Adapters on it stay as they are; norms are float32, as autocast has them.

    The VAE runs without autocast (`model.own_precision`), where every weight must have the input's type: norms=dtype.
    """
    part.requires_grad_(False)
    are_norms = {id(p) for m in part.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm) for p in m.parameters()}
    for name, parameter in part.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.to(norms if id(parameter) in are_norms else dtype)
    return part
