"""Train: set up, load, then for each stage draw, restore, score, step, report and save."""

import logging
import math
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pisasr.data.photos import KeyedBatches, Photos
from pisasr.errors import PisasrError
from pisasr.evaluation.networks import load_lpips
from pisasr.method.adapters import active, parameters_of, train_only
from pisasr.method.model import restore
from pisasr.models.weights import save_adapter
from pisasr.training import state
from pisasr.training.config import NEGATED_PIX, StageConfig, TrainConfig
from pisasr.training.critic import Critic
from pisasr.training.losses import Batch, Scorers, distillation, score, taught_by_base
from pisasr.training.rng import generator_for, randn_for, seed_step
from pisasr.training.setup import (
    Base,
    Predictor,
    Shares,
    apply_precision,
    load_model,
    open_photos,
    share_of_batch,
)
from pisasr.training.signals import StopRequests
from pisasr.training.stages import Stage, stages_of
from pisasr.training.tracking import open_trackers, track, track_sheet, tracking_options
from pisasr.training.validation import Validator

log = logging.getLogger(__name__)

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)  # Slurm sends these
VALIDATION_TIMEOUT = timedelta(hours=2)  # the other processes wait; NCCL's own is ten minutes
MAX_BAD_STEPS = 10  # in a row, with a loss or gradient that is not finite, before the run ends


class TrainingDiverged(PisasrError):
    """Too many steps in a row had a loss or a gradient that is not finite."""


class Interrupted(PisasrError):
    """The run stopped after signal `number`; the same command continues it."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


@dataclass(frozen=True)
class Context:
    """What stays the same from stage to stage."""

    config: TrainConfig
    accelerator: Accelerator
    photos: Photos
    shares: Shares
    base: Base
    validator: Validator | None  # on the main process alone
    checkpoints: state.Checkpoints


def train(config: TrainConfig, allow_change: bool = False) -> None:
    """Run every stage and leave OUTPUT/adapters/{pix,sem}.safetensors, log.jsonl, config.yaml.

    The same call continues an interrupted run, to the bit; one with other settings is refused
    unless allow_change. Raises Interrupted after SIGTERM or SIGUSR1, once the step is finished and
    saved.
    """
    # Set up. What can be wrong is found before any model is loaded.
    accelerator = Accelerator(
        mixed_precision=config.run.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=VALIDATION_TIMEOUT)],
        **tracking_options(config),
    )
    run = config.run.model_copy(update={"mixed_precision": str(accelerator.mixed_precision)})
    config = config.model_copy(update={"run": run})
    stages, output, main = stages_of(config), Path(run.output), accelerator.is_main_process
    apply_precision(run, accelerator.device)
    photos, shares = open_photos(config)
    for stage in stages:
        share_of_batch(stage, config, accelerator.num_processes)
        check_files(stage, config)
    validator = Validator.build(config) if main else None
    if main:
        (output / "adapters").mkdir(parents=True, exist_ok=True)
        if not allow_change:
            state.check_settings(config)
    accelerator.wait_for_everyone()

    # Load, then run each stage with its own optimizer, from what the one before left on the disk.
    base = load_model(config, accelerator.device)
    checkpoints = state.Checkpoints(output / "checkpoints", run.keep_checkpoints)
    context = Context(config, accelerator, photos, shares, base, validator, checkpoints)
    with StopRequests(STOP_SIGNALS) as stop:
        for stage in stages:
            train_stage(stage, context, stop)
    accelerator.end_training()
    log.info("adapters are in %s", output / "adapters")


def check_files(stage: Stage, config: TrainConfig) -> None:
    """Raise CheckpointError where an adapter that the configuration names can't be used."""
    pix, start = getattr(stage.settings, "pix_adapter", None), stage.settings.start_from
    if pix:
        state.check_adapter(Path(pix), "pix", config)
    if start and start != NEGATED_PIX:
        state.check_adapter(Path(start), stage.name, config)


def train_stage(stage: Stage, context: Context, stop: StopRequests) -> None:
    """Train one stage from its last checkpoint, or from the start, and write its adapter."""
    config, accelerator, model = context.config, context.accelerator, context.base.model
    settings, run, main = stage.settings, config.run, accelerator.is_main_process
    file, journal = state.adapter_file(config, stage.name), Path(run.output) / "log.jsonl"
    found = state.on_main(lambda: context.checkpoints.newest(stage.name))
    if state.on_main(file.is_file) and (found is None or found["step"] >= settings.steps):
        log.info("%s: %s is there, nothing to do", stage.name, file)
        return

    # Freeze, then prepare: a DDP wrapper averages only what learned when it was made.
    pix = state.load_adapters(stage, model.unet, config)
    train_only(model.unet, stage.name)
    parameters = list(parameters_of(model.unet, stage.name).values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    scorers = load_scorers(settings, context)
    first = state.load_state(found, model.unet, optimizer, accelerator.scaler, scorers.critic)
    network, optimizer = accelerator.prepare(Predictor(model.unet), optimizer)
    batches = read_batches(stage, context, first)
    if main:
        state.begin(stage, config, pix, first)
    open_trackers(accelerator, config, stage.begin + first)
    progress = tqdm(
        initial=first, total=settings.steps, desc=stage.name, disable=not main, mininterval=1
    )

    bad_steps = 0
    with active(model.unet, stage.active), progress:
        for step in range(first + 1, settings.steps + 1):
            # Draw, restore, score.
            seed_step(run.seed, stage.name, step, accelerator.process_index)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step)
            optimizer.zero_grad(set_to_none=True)
            losses: list[dict[str, Tensor]] = []
            for left in reversed(range(run.accumulation)):
                batch = next(batches)
                # Processes exchange gradients once a step, with the last accumulated part.
                sync = accelerator.no_sync(network) if left else nullcontext()
                with accelerator.autocast(), sync:
                    x_pred, z_H = restore_batch(
                        batch, stage, context.base, network, config.data.null_text_ratio
                    )
                    total, values = score(settings, scorers, batch, x_pred, z_H)
                    accelerator.backward(total / run.accumulation)
                losses.append(values)
            norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)

            # Step, unless a loss or the gradient is not finite anywhere; report.
            row, signal_number = read_step(accelerator, losses, norm, stop)
            finite = all(map(math.isfinite, row.values()))
            if finite:
                optimizer.step()
            elif accelerator.scaler is not None:
                accelerator.scaler.update()  # the loss is scaled less the next time
            bad_steps = 0 if finite else bad_steps + 1
            if main:
                skipped = {} if finite else {"skipped": True}
                state.append_row(journal, {"stage": stage.name, "step": step, **row, **skipped})
            track(accelerator, stage, step, row)
            progress.set_postfix({name: f"{value:.4g}" for name, value in row.items()}, False)
            progress.update()
            if bad_steps >= MAX_BAD_STEPS:
                raise TrainingDiverged(
                    f"{stage.name} step {step}: {bad_steps} steps in a row were not finite and not "
                    f"taken; lower {stage.name}.lr, or use bf16 instead of fp16."
                )

            # Save. In a streak of bad steps the last good checkpoint stays.
            due = step % run.checkpoint_every == 0 or signal_number
            if main and (step == settings.steps or (due and not bad_steps)):
                context.checkpoints.save(
                    stage.name, step, model.unet, optimizer, accelerator.scaler, scorers.critic
                )
            if context.validator and context.validator.is_due(step, settings.steps):
                with accelerator.autocast():
                    scores, sheet = context.validator.run(model, stage, step, scorers.lpips)
                track(accelerator, stage, step, scores)
                track_sheet(accelerator, stage, step, sheet)
            if signal_number and step < settings.steps:
                done = f"stopped after {stage.name} step {step}; the same command continues"
                raise Interrupted(done, signal_number)
    if main:
        save_adapter(file, state.adapter_from(model.unet, stage.name, config))
    accelerator.wait_for_everyone()
    accelerator.free_memory()


# --- one step -------------------------------------------------------------------------------------


def load_scorers(settings: StageConfig, context: Context) -> Scorers:
    """Load the networks that a stage's losses need."""
    base, device = context.base, context.accelerator.device
    lpips: Any = None
    critic = csd = None
    if settings.weight_lpips or settings.weight_critic:
        lpips = load_lpips(settings.lpips_net, device)
        lpips.to(memory_format=torch.channels_last)
    if settings.weight_critic:
        average = partial(context.accelerator.reduce, reduction="mean")
        critic = Critic(lpips, settings.lpips_net, average).to(device)
    if settings.weight_csd:
        assert base.alphas_cumprod is not None, "distillation needs the base's noise schedule"  # noqa: S101
        csd = distillation(base.model, base.prompts, base.alphas_cumprod, context.config.csd)
    target = None
    if settings.base_target_ratio:
        scale, ratio = context.config.degradation.scale, settings.base_target_ratio
        target = partial(taught_by_base, model=base.model, scale=scale, ratio=ratio)
    return Scorers(lpips, csd, critic, target)


def read_batches(stage: Stage, context: Context, step: int) -> Iterator[Batch]:
    """Yield this process's batches, from the one that follows `step` on."""
    config, accelerator = context.config, context.accelerator
    device = accelerator.device
    sampler = KeyedBatches(
        length=len(context.photos),
        batch_size=share_of_batch(stage, config, accelerator.num_processes),
        seed=config.run.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        shares=context.shares,
        start=step * config.run.accumulation,
    )
    loader = DataLoader(
        context.photos,
        batch_sampler=sampler,
        num_workers=config.data.workers,
        pin_memory=device.type == "cuda",
    )
    try:
        for drawn in loader:
            x_L, x_H = (drawn[name].to(device, non_blocking=True) for name in ("x_L", "x_H"))
            seeds = [int(seed) for seed in drawn["seed"]]
            yield Batch(x_L=x_L, x_H=x_H, captions=drawn["caption"], seeds=seeds)
    except PisasrError as error:  # a worker's comes with its traceback as text
        raise PisasrError(str(error).strip().splitlines()[-1]) from error


def restore_batch(
    batch: Batch, stage: Stage, base: Base, network: nn.Module, null_text_ratio: float
) -> tuple[Tensor, Tensor]:
    """Restore as the stage learns it: (x_pred in [-1, 1], z_H), float32, draws keyed by sample."""
    model, seeds = base.model, batch.seeds
    prompts = [
        "" if torch.rand(1, generator=generator_for(seed, "null text")) < null_text_ratio else text
        for seed, text in zip(seeds, batch.captions, strict=True)
    ]
    prompt_embeds = base.prompts(prompts)
    noise = randn_for(seeds, model.latent_shape(batch.x_L)[1:], "posterior").to(batch.x_L.device)
    predictors = stage.predictors(lambda z_L: network(z_L, prompt_embeds))
    restored = next(restore(model, batch.x_L, predictors, [stage.lambdas], noise=noise))
    return restored.x_H.float().clamp(-1, 1), restored.z_H.float()


def read_step(
    accelerator: Accelerator, losses: list[dict[str, Tensor]], norm: Tensor, stop: StopRequests
) -> tuple[dict[str, float], int]:
    """Return the losses averaged over all parts and processes, and a stop signal (0: none).

    The only transfer from the device in a step, and the processes' only exchange beside gradients.
    """
    names = list(losses[0])
    parts = torch.stack([torch.stack([part[name].float() for name in names]) for part in losses])
    number = torch.tensor([stop.number], dtype=torch.float32, device=accelerator.device)
    mine = torch.cat([parts.mean(0), norm.float().view(1), number])
    everyone = accelerator.gather(mine[None]).cpu()
    row = everyone[:, :-1].mean(0).tolist()
    return dict(zip([*names, "grad_norm"], row, strict=True)), int(everyone[:, -1].max())


def learning_rate(settings: StageConfig, step: int) -> float:
    """Three cases: warming up, constant, falling along a cosine to zero at the last step."""
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.lr_schedule == "constant":
        return settings.lr
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.lr * (0.5 + 0.5 * math.cos(math.pi * done))
