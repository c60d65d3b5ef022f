"""Photo to adapter: set up, load, then for each stage draw, restore, score, step, report, and
save.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pisasr.config import StageConfig, TrainConfig
from pisasr.data.photos import BadPhotos, KeyedBatches, Photos
from pisasr.errors import CheckpointError
from pisasr.files import Journal, finite
from pisasr.method.adapters import active, parameters_of, train_only
from pisasr.method.model import PiSASR, restore
from pisasr.models.weights import save_adapter
from pisasr.signals import StopRequests
from pisasr.training.chance import draw, seed_step, stream
from pisasr.training.ground import adapter_file, adapter_of, digests_of, fill_adapters, on_main
from pisasr.training.guard import ASKED, Interrupted, NonFiniteGuard, stop_with_launcher
from pisasr.training.identity import check_identity, identity_of, lock, write_card, write_identity
from pisasr.training.losses import Perceptual, build_perceptual, sharpen
from pisasr.training.setup import (
    Predictor,
    Shares,
    apply_precision,
    check_stages,
    load_model,
    open_photos,
    settle,
    share_of_batch,
)
from pisasr.training.stages import (
    Batch,
    Loss,
    Stage,
    Words,
    build_objective,
    distillation,
    stages_of,
)
from pisasr.training.state import STATE_KEYS, Checkpoints, State
from pisasr.training.tracking import Progress, Trackers, tracking_options
from pisasr.training.validation import Validator

log = logging.getLogger(__name__)

PATIENCE = timedelta(
    hours=2
)  # for which processes wait for one that validates; NCCL's own is ten minutes


@dataclass(frozen=True)
class Bench:
    """What stays the same from stage to stage."""

    config: TrainConfig
    accelerator: Accelerator
    photos: Photos
    shares: Shares
    identity: dict[str, Any]
    model: PiSASR  # carries both adapters
    words: Words
    perceptual: Perceptual | None
    csd: Callable[[], Loss]
    validator: Validator | None  # on the main process alone
    checkpoints: Checkpoints
    bad_photos: BadPhotos
    journal: Journal
    trackers: Trackers


def train(config: TrainConfig, allow_change: bool = False) -> None:
    """Run every stage of the configuration and leave OUTPUT/adapters/{pix,sem}.safetensors,
    log.jsonl, config.yaml.

    The same call continues an interrupted run, to the bit. One whose photos, processes or settings
    differ is refused with the list of what differs; allow_change goes on all the same. Raises
    Interrupted after SIGTERM or SIGUSR1, once the step is finished and saved.
    """
    # Set up. What can be wrong is told before any model is loaded.
    config = settle(config)
    stages, output = stages_of(config), Path(config.run.output)
    stop_with_launcher()
    accelerator = Accelerator(
        mixed_precision=config.run.mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        **tracking_options(config),
    )
    main = accelerator.is_main_process
    apply_precision(config.run, accelerator.device)
    photos, shares = open_photos(config)
    check_stages(config, photos, accelerator.num_processes, look=main)
    identity = identity_of(config, photos, shares, accelerator.num_processes)
    validator = Validator.build(config) if main else None
    held = lock(output) if main else None  # as long as this function runs
    if main and not allow_change:
        check_identity(output, identity)
    accelerator.wait_for_everyone()

    # Load. A perceptual backbone that can't be had is told now, and not when PIX is done.
    model, words, alphas_cumprod = load_model(config, accelerator.device)
    perceives = any(stage.settings.weight_lpips for stage in stages)
    trackers = Trackers(accelerator, config)
    bench = Bench(
        config,
        accelerator,
        photos,
        shares,
        identity,
        model,
        words,
        perceptual=build_perceptual(config.perceptual.net, accelerator.device)
        if perceives
        else None,
        csd=lambda: distillation(model, words, alphas_cumprod, config.csd),
        validator=validator,
        checkpoints=Checkpoints(output / "checkpoints", config.run.keep_checkpoints, STATE_KEYS),
        bad_photos=BadPhotos(len(photos), config.data.max_bad_fraction),
        journal=Journal(output / "log.jsonl"),
        trackers=trackers,
    )

    # Each stage has its own optimizer and starts from what the one before left on the disk.
    try:
        with StopRequests(ASKED) as asked:
            for stage in stages:
                train_stage(stage, bench, asked)
    finally:
        trackers.finish()
        if held:
            held.close()
    log.info("adapters are in %s", output / "adapters")


def train_stage(stage: Stage, bench: Bench, asked: StopRequests) -> None:
    """Train one stage from its last checkpoint, or from the start, and write its adapter."""
    config, accelerator, model = bench.config, bench.accelerator, bench.model
    settings, run, main = stage.settings, config.run, accelerator.is_main_process
    output, file = Path(run.output), adapter_file(config, stage.name)
    found = on_main(lambda: bench.checkpoints.newest(stage.name))
    ground = digests_of(stage, config)
    if found and found.state["ground"] != ground:
        raise CheckpointError(
            f"{stage.name} was trained upon another {' and '.join(ground)} adapter than there is now; put that one "
            f"back, or delete {bench.checkpoints.folder}/{stage.name}-* and {file} to train it again."
        )
    if on_main(file.is_file) and (not found or found.step >= settings.steps):
        log.info("%s: %s is there, nothing to do", stage.name, file)
        return

    # Freeze, then prepare: a DDP wrapper averages only what learned when it was made.
    for name, adapter in fill_adapters(stage, model.unet, config).items():
        if main and not adapter_file(config, name).is_file():
            save_adapter(
                adapter_file(config, name), adapter
            )  # one from elsewhere is kept beside the new one
    train_only(model.unet, stage.learns)
    parameters = list(parameters_of(model.unet, stage.learns).values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    guard = NonFiniteGuard(run.max_bad_steps)
    journals = [bench.journal, bench.validator.rows] if bench.validator else [bench.journal]
    state = State(
        stage.name,
        model.unet,
        optimizer,
        accelerator.scaler,
        guard,
        bench.bad_photos,
        ground,
        journals,
    )
    first = state.take_up(found)
    network, optimizer = accelerator.prepare(Predictor(model.unet), optimizer)
    objective = build_objective(settings, bench.perceptual, bench.csd)
    batches = read_batches(stage, bench, first)
    if main:
        write_identity(output, config, bench.identity)
        rewind_journals(stage, bench, state, first)
    bench.trackers.start(stage.name, first)
    progress = Progress(stage.name, settings.steps, settings.batch_size, run.log_every)

    with active(model.unet, stage.active):
        for step in range(first + 1, settings.steps + 1):
            # Draw, restore, score; the batch's targets are made in float32, outside autocast.
            seed_step(run.seed, stage.name, step, accelerator.process_index)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step)
            optimizer.zero_grad(set_to_none=True)
            losses: list[dict[str, Tensor]] = []
            shown: list[str] = []
            failed: list[str] = []
            for left in reversed(range(run.accumulation)):
                drawn = next(batches)
                shown += drawn["photo"]
                failed += filter(None, drawn["failed"])
                batch = make_batch(drawn, settings, model.factor, accelerator.device)
                with accelerator.autocast(), gradients_travel(accelerator, network, last=not left):
                    x_pred, z_H = restore_batch(
                        batch, stage, model, network, bench.words, config.data.null_text_ratio
                    )
                    total, values = objective(batch, x_pred, z_H)
                    accelerator.backward(total / run.accumulation)
                losses.append(values)
            norm = accelerator.clip_grad_norm_(parameters, settings.max_grad_norm)

            # Step, unless a loss or the gradient is not finite anywhere; report.
            row, failed, stop = read_step(accelerator, losses, norm, failed, asked)
            bench.bad_photos.note(failed)
            taken = guard.passes(row)
            take_step(optimizer, accelerator.scaler, taken)
            report(stage, step, bench, row, taken, progress)
            if not taken:
                record_skipped(stage, step, bench, row, shown)
                guard.check(lambda: advice(stage, bench))

            # Save. In a bad streak the last good checkpoint stays.
            due = step % run.checkpoint_every == 0 or stop
            if main and (step == settings.steps or (due and not guard.in_a_row)):
                state.save(bench.checkpoints, step)
            if is_watched(stage, step, bench.validator):
                validate(stage, step, bench)
            if stop and step < settings.steps:
                raise Interrupted(
                    f"stopped after {stage.name} step {step}; the same command continues", stop
                )
    if main:
        save_adapter(file, adapter_of(model.unet, stage.learns, config))
        write_card(output, config)
    accelerator.wait_for_everyone()
    accelerator.free_memory()


# --- one step -------------------------------------------------------------------------------------


def read_batches(stage: Stage, bench: Bench, step: int) -> Iterator[dict[str, Any]]:
    """What `Photos` has for this process, from the batch that follows `step` on."""
    config, accelerator = bench.config, bench.accelerator
    sampler = KeyedBatches(
        length=len(bench.photos),
        batch_size=share_of_batch(stage, config, accelerator.num_processes),
        seed=config.run.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        shares=bench.shares,
        start=step * config.run.accumulation,
    )
    pin, workers = accelerator.device.type == "cuda", config.data.workers
    return iter(
        DataLoader(bench.photos, batch_sampler=sampler, num_workers=workers, pin_memory=pin)
    )


def make_batch(
    drawn: dict[str, Any], settings: StageConfig, cell_px: int, device: torch.device
) -> Batch:
    """A batch of `Photos` on the device, its targets sharpened where the stage wants that. Not for
    autocast.
    """
    beyond, seeds = settings.beyond, [int(seed) for seed in drawn["seed"]]
    x_L, x_H = (drawn[name].to(device, non_blocking=True) for name in ("x_L", "x_H"))
    x_T = drawn["x_T"].to(device, non_blocking=True) if settings.asks_teacher else None
    if beyond.sharpen:
        x_H, x_T = (
            x if x is None else sharpen(x, beyond.sharpen, beyond.sharpen_sigma) for x in (x_H, x_T)
        )
    return Batch(
        x_L=x_L,
        x_H=x_H,
        x_T=x_T,
        captions=drawn["caption"],
        seeds=seeds,
        cell_px=cell_px,
        shift=beyond.shift,
        corners=[
            tuple(torch.randint(beyond.shift + 1, (2,), generator=stream(s, "window")).tolist())
            for s in seeds
        ],
    )


def restore_batch(
    batch: Batch,
    stage: Stage,
    model: PiSASR,
    network: nn.Module,
    words: Words,
    null_text_ratio: float,
) -> tuple[Tensor, Tensor]:
    """The method as the stage learns it, with every draw tied to its sample: (x_pred in [-1, 1],
    z_H), float32.
    """
    device, seeds = batch.x_L.device, batch.seeds
    heard = [
        "" if torch.rand(1, generator=stream(seed, "null text")) < null_text_ratio else caption
        for seed, caption in zip(seeds, batch.captions, strict=True)
    ]
    embeds = words(heard)
    noise = draw(seeds, model.latent_shape(batch.x_L)[1:], "posterior").to(device)
    predictors = stage.predictors(lambda z_L: network(z_L, embeds))
    restored = next(restore(model, batch.x_L, predictors, [stage.lambdas], noise=noise))
    assert restored.x_H is not None  # noqa: S101  # it is only where `restore` was told not to decode
    return restored.x_H.float().clamp(-1, 1), restored.z_H.float()


def gradients_travel(
    accelerator: Accelerator, network: nn.Module, last: bool
) -> AbstractContextManager[Any]:
    """Processes exchange gradients once a step, with the last accumulated batch."""
    return nullcontext() if last else accelerator.no_sync(network)


def read_step(
    accelerator: Accelerator,
    losses: list[dict[str, Tensor]],
    norm: Tensor,
    failed: list[str],
    asked: StopRequests,
) -> tuple[dict[str, float], list[str], int]:
    """Every process's losses averaged, photos that failed in any, the signal that any got (0:
    none).

    The only look at the device in a step, and the processes' only exchange beside their gradients;
    a second one in the rare step with a bad photo. It can't be spared: log.jsonl has a row a step,
    and no step is taken before it is known to be finite.
    """
    names, count = list(losses[0]), len(losses)
    told = torch.tensor([len(failed), asked.number], dtype=torch.float32, device=accelerator.device)
    mine = [torch.stack([values[name].float() for name in names]) for values in losses]
    everyones = accelerator.gather(torch.cat([*mine, norm.float().view(1), told])[None]).cpu()
    means = (
        (everyones[:, : count * len(names)].double() / count)
        .view(-1, count, len(names))
        .sum(1)
        .float()
    )
    row = torch.cat([means, everyones[:, -3:-2]], dim=1).mean(0).tolist()
    failed = gather_object(failed) if everyones[:, -2].any() else []
    return dict(zip([*names, "grad_norm"], row, strict=True)), failed, int(everyones[:, -1].max())


def take_step(optimizer: torch.optim.Optimizer, scaler: Any, taken: bool) -> None:
    """Move the adapter, or leave it; with fp16, a loss that was not finite is scaled less the next
    time.
    """
    if taken:
        optimizer.step()
    elif scaler is not None:
        scaler.update()


def learning_rate(settings: StageConfig, step: int) -> float:
    """Three cases: warming up, constant, falling along a cosine to zero at the last step."""
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.lr_schedule == "constant":
        return settings.lr
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.lr * (0.5 + 0.5 * math.cos(math.pi * done))


# --- tell, watch ----------------------------------------------------------------------------------


def report(
    stage: Stage, step: int, bench: Bench, row: dict[str, float], taken: bool, progress: Progress
) -> None:
    """A row in log.jsonl, which is part of the result; progress and trackers, which are not."""
    if bench.accelerator.is_main_process:
        whole = {"stage": stage.name, "step": step, **row}
        bench.journal.append(finite(whole if taken else {**whole, "skipped": True}))
        bench.trackers.log(stage.name, step, {**row, **progress.step(step, row)})


def record_skipped(
    stage: Stage, step: int, bench: Bench, row: dict[str, float], shown: list[str]
) -> None:
    """Leave what a person needs to look at the batch: its photos, in skipped.jsonl."""
    photos = gather_object(shown)
    if bench.accelerator.is_main_process:
        whole = {"stage": stage.name, "step": step, **row, "photos": photos}
        Journal(Path(bench.config.run.output) / "skipped.jsonl").append(finite(whole))
        bad = ", ".join(
            f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)
        )
        log.warning("%s step %d was not taken, not finite: %s", stage.name, step, bad)


def advice(stage: Stage, bench: Bench) -> str:
    newest = on_main(lambda: bench.checkpoints.newest(stage.name))
    where = (
        f"checkpoint {newest.name} is whole"
        if newest
        else "there is no checkpoint of this stage yet"
    )
    skipped = Path(bench.config.run.output) / "skipped.jsonl"
    return f"{where}; look at {skipped}, lower {stage.name}.lr, or use bf16 instead of fp16."


def is_watched(stage: Stage, step: int, validator: Validator | None) -> bool:
    return (
        validator is not None
        and step > 0
        and (step % validator.every == 0 or step == stage.settings.steps)
    )


def validate(stage: Stage, step: int, bench: Bench) -> None:
    """Look at the fixed pictures; the main process alone, and training can't tell."""
    if bench.validator is None:
        return
    perceptual = bench.perceptual if stage.settings.weight_lpips else None
    with bench.accelerator.autocast():
        found = bench.validator.run(bench.model, stage, step, perceptual)
    bench.trackers.log(stage.name, step, found.scores)
    if found.sheet is not None:
        bench.trackers.log_image(stage.name, step, "validation", found.sheet)


def rewind_journals(stage: Stage, bench: Bench, state: State, step: int) -> None:
    """Rows of steps that are about to be taken again go; a look that a kill prevented is made up
    for.
    """
    _, *seen = state.rewind(step)
    if seen == [False] and is_watched(stage, step, bench.validator):
        with active(bench.model.unet, stage.active):
            validate(stage, step, bench)
