"""Photos to adapters: for each stage, freeze, prepare, loop, save. The only file that knows accelerate."""

import logging
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pisasr.config import ConfigError, StageConfig, TrainConfig
from pisasr.data.degradation import sample_generator
from pisasr.data.photos import (
    BadPhotos,
    KeyedBatches,
    Photos,
    choose_photos,
    collate,
    count_captions,
    degrade_batch,
    share_out,
)
from pisasr.errors import CheckpointError
from pisasr.method.adapters import active, attach, load_into, parameters_of, train_only
from pisasr.method.model import ONE_STEP, PiSASR, predict
from pisasr.method.text import PromptEncoder
from pisasr.models.bases import load_base
from pisasr.models.weights import KINDS, Adapter, base_facts, load_adapter, save_adapter
from pisasr.training.adversary import Adversary
from pisasr.training.card import write_card
from pisasr.training.checkpoints import Checkpoint, Checkpoints, by_kind, load_moments
from pisasr.training.csd import ClassifierScoreDistillation
from pisasr.training.guard import Interrupted, NonFiniteGuard, StopRequests, record_skipped, stop_with_launcher
from pisasr.training.identity import check_identity, identity_of, lock, write_identity
from pisasr.training.losses import Perceptual, build_perceptual, sharpen
from pisasr.training.method import LOW_PRECISION, Predictor, draw, freeze_in, restore, stream
from pisasr.training.stages import Restored, Score, Stage, build_score, stages_of
from pisasr.training.tracking import LossLog, Progress, Trackers, tracking_options
from pisasr.training.validation import Validator

log = logging.getLogger(__name__)

STATE_KEYS = ("ground", "guard", "bad_photos", "scaler")  # of a checkpoint
Shares = list[tuple[list[int], int]]  # as KeyedBatches takes them


def train(config: TrainConfig, allow_change: bool = False) -> None:
    """Run every stage of the configuration and leave OUTPUT/adapters/{pix,sem}.safetensors, log.jsonl, config.yaml.

    The same call continues an interrupted run, to the bit. One whose photos, processes or settings differ is refused
    with the list of what differs; allow_change goes on all the same. Raises Interrupted after SIGTERM or SIGUSR1, once
    the step is finished and saved.
    """
    stop_with_launcher()
    accelerator = Accelerator(mixed_precision=config.run.mixed_precision, **tracking_options(config))
    main, output = accelerator.is_main_process, Path(config.run.output)
    photos, shares = open_photos(config)
    identity = identity_of(config, photos, shares, accelerator.num_processes)
    for stage in stages_of(config):
        share_of_batch(stage, config, accelerator.num_processes)
        if main and stage.settings.init_from:
            check_adapter(Path(stage.settings.init_from), "pix", config)
        if main and stage.settings.start_from:
            check_adapter(Path(stage.settings.start_from), stage.learns, config)
    validator = Validator.build(config) if main else None
    held = lock(output) if main else None  # as long as this function runs
    if main and not allow_change:
        check_identity(output, identity)
    accelerator.wait_for_everyone()
    trainer = Trainer(config, accelerator, photos, shares, identity, validator)
    try:
        with StopRequests() as asked:
            for stage in stages_of(config):
                trainer.run(stage, asked)
    finally:
        trainer.trackers.finish()
        if held:
            held.close()
    log.info("adapters are in %s", output / "adapters")


def open_photos(config: TrainConfig) -> tuple[Photos, Shares]:
    """The training set that the configuration names, and what each source gives; before any model is loaded."""
    data = config.data
    chosen = choose_photos(data.photos, data.hq_fraction, data.mix)
    with_caption = count_captions(chosen)
    log.info("%d photos, %d with a caption of their own; the others have %r", len(chosen), with_caption, data.caption)
    photos = Photos(
        [photo.path for photo in chosen],
        crop_px=data.crop_px,
        recipe=config.degradation,
        seed=config.run.seed,
        caption=data.caption,
        keep_in_memory=data.keep_in_memory,
        plan_only=data.degrade_on == "device",
        captions={photo.path: photo.caption for photo in chosen if photo.caption},
        pairs={photo.path: photo.pair for photo in chosen if photo.pair},
    )
    check_pairs(config, photos)
    return photos, share_out(chosen, data.mix)


def check_pairs(config: TrainConfig, photos: Photos) -> None:
    """ConfigError where the configuration asks of given pairs what they can't do."""
    if photos.pairs and photos.plan_only:
        raise ConfigError("data.photos names pairs, which nobody degrades any more; set data.degrade_on=workers.")
    for stage in stages_of(config):
        if stage.settings.asks_teacher and not photos.taught:
            raise ConfigError(
                f"{stage.name}.weight_teacher, or lpips_to=teacher, wants a teacher's pictures; make them with "
                "scripts/demo/prepare_teacher.py and name only such folders in data.photos."
            )


class Trainer:
    """What stays the same from stage to stage: the base with both adapters attached, the photos, the machine."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        photos: Photos,
        shares: Shares,
        identity: dict[str, Any],
        validator: Validator | None = None,
    ):
        self.config, self.accelerator, self.photos, self.shares = config, accelerator, photos, shares
        self.identity, self.validator = identity, validator
        self._built_perceptual: Perceptual | None = None
        self.adversary: Adversary | None = None
        self.ground: dict[str, str | None] = {}  # what the running stage stands on, as it was loaded
        self.bad_photos = BadPhotos(len(photos), config.data.max_bad_fraction)
        self.output = Path(config.run.output)
        self.checkpoints = Checkpoints(self.output / "checkpoints", config.run.keep_checkpoints, STATE_KEYS)
        self.loss_log, self.trackers = LossLog(self.output / "log.jsonl"), Trackers(accelerator, config)
        base = load_base(config.model.pretrained_model)
        self.unet, self.scheduler = base["unet"].to(memory_format=torch.channels_last), base["scheduler"]
        torch.manual_seed(config.run.seed)  # fresh adapters are the only draw that no step and no sample owns
        for name, rank in (("pix", config.model.rank_pix), ("sem", config.model.rank_sem)):
            attach(self.unet, name, rank, config.model.alpha)
        low = LOW_PRECISION[config.run.mixed_precision]
        for part, norms in ((self.unet, torch.float32), (base["vae"], low), (base["text_encoder"], torch.float32)):
            freeze_in(part, low, norms).to(accelerator.device)
        if config.model.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if config.model.gradient_checkpointing_vae:
            if not base["vae"]._supports_gradient_checkpointing:
                vae = type(base["vae"]).__name__
                raise ConfigError(f"model.gradient_checkpointing_vae: {vae} has no blocks for it; leave it off.")
            base["vae"].enable_gradient_checkpointing()
        if any(stage.settings.weight_lpips for stage in stages_of(config)):
            self._perceptual()  # a backbone that can't be had is told now, and not when PIX is done
        self.words = PromptEncoder(base["tokenizer"], base["text_encoder"])
        self.model = PiSASR(self.unet, base["vae"], self.words)

    def run(self, stage: Stage, asked: StopRequests) -> None:
        """Train one stage from its last checkpoint, or from the start, and write its adapter."""
        settings = stage.settings
        found = self._from_main(lambda: self.checkpoints.newest(stage.name))
        done = self._from_main(self.adapter_file(stage.name).is_file) and (not found or found.step >= settings.steps)
        if found:
            self._check_ground(stage, found)
        if done:
            log.info("%s: %s is there, nothing to do", stage.name, self.adapter_file(stage.name))
            return
        self._fill_what_is_there(stage)
        train_only(self.unet, stage.learns)
        parameters = parameters_of(self.unet, stage.learns)
        optimizer = torch.optim.AdamW(parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay)
        guard = NonFiniteGuard(self.config.run.max_bad_steps)
        self.adversary = self._adversary(settings) if settings.weight_gan else None
        first = self._take_up(found, stage, parameters, optimizer, guard)
        if self.accelerator.is_main_process:
            write_identity(self.output, self.config, self.identity)
        # Prepared after freezing: a DDP wrapper averages only what learned when it was made.
        network, optimizer = self.accelerator.prepare(Predictor(self.unet), optimizer)
        score = build_score(settings, self._perceptual, self._distillation, self.adversary)
        batches = self._batches(stage, first)
        main = self.accelerator.is_main_process
        self._rewind_logs(stage, first)
        self.trackers.start(stage.name, first)
        progress = Progress(stage.name, first, settings.steps, settings.batch_size, self.config.run.log_every, not main)
        with active(self.unet, stage.active), progress:
            for step in range(first + 1, settings.steps + 1):
                self._seed(stage, step)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(settings, step)
                values, seen = self._gradients(network, optimizer, batches, score, list(parameters.values()), settings)
                values, failed, stop = self._agree(values, seen.failed, asked)
                self.bad_photos.note(failed)
                taken = guard.passes(values)
                self._step(optimizer, taken)
                self._report(stage, step, values, taken, progress)
                if not taken:
                    self._record_skipped(stage, step, values, seen)
                    guard.check(lambda: self._advice(stage))
                due = step % self.config.run.checkpoint_every == 0 or stop
                if step == settings.steps or (due and not guard.in_a_row):  # the last good one outlives a bad streak
                    self._checkpoint(stage, step, parameters, optimizer, guard)
                if self._is_watched(stage, step):
                    self._validate(stage, step)
                if stop and step < settings.steps:
                    raise Interrupted(f"stopped after {stage.name} step {step}; the same command continues", stop)
        if self.accelerator.is_main_process:
            save_adapter(self.adapter_file(stage.name), self._adapter(stage.learns))
            write_card(self.output, self.config)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()

    def _seed(self, stage: Stage, step: int) -> None:
        """Chance that no sample owns (a dropout, say) belongs to the step, so that no generator has a state to save."""
        number = zlib.crc32(f"{stage.name} {self.accelerator.process_index}".encode())
        torch.manual_seed(sample_generator(self.config.run.seed, number, step).initial_seed())

    def _gradients(
        self, network, optimizer, batches: Iterator, score: Score, parameters: list, settings: StageConfig
    ) -> tuple[dict[str, float], "Seen"]:
        """Zero, accumulate, clip. Returns this process's losses, averaged over its batches, and what it saw."""
        optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        seen = Seen()
        count = self.config.run.accumulation
        for i in range(count):
            batch = next(batches)
            seen.photos += batch["photo"]
            seen.failed += filter(None, batch["failed"])
            with self.accelerator.autocast(), self._gradients_travel(network, last=i == count - 1):
                restored = self.restore(network, batch, settings)
                total, values = score(restored)
                self.accelerator.backward(total / count)
                if self.adversary:
                    values["critic"] = self.adversary.collect(restored, 1 / count).item()
            for name, value in {**values, "total": total.item()}.items():
                totals[name] = totals.get(name, 0.0) + value / count
        totals["grad_norm"] = float(self.accelerator.clip_grad_norm_(parameters, settings.max_grad_norm))
        return totals, seen

    def _agree(
        self, values: dict[str, float], failed: list[str], asked: StopRequests
    ) -> tuple[dict[str, float], list[str], int]:
        """Every process's losses averaged, photos that failed in any, the signal that any got (0: none).

        One exchange a step, and a second one in the rare step with a bad photo.
        """
        names = list(values)
        mine = [*(values[name] for name in names), float(len(failed)), float(asked.number)]
        everyones = self.accelerator.gather(torch.tensor([mine], device=self.accelerator.device))
        failed = gather_object(failed) if everyones[:, -2].any() else []
        means = everyones[:, :-2].mean(0).tolist()
        return dict(zip(names, means, strict=True)), failed, int(everyones[:, -1].max())

    def _step(self, optimizer, taken: bool) -> None:
        if self.adversary:
            self.adversary.step(taken)
        if taken:
            optimizer.step()
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # fp16: the next loss is scaled less

    def restore(self, network: nn.Module, batch: dict[str, Any], settings: StageConfig) -> Restored:
        """The method on one batch of `Photos`, with every draw tied to its sample."""
        device, seeds = self.accelerator.device, [int(seed) for seed in batch["seed"]]
        x_H = batch["x_H"].to(device, non_blocking=True)
        if "plan" in batch:
            x_L, x_H = degrade_batch(x_H, batch["plan"])
        else:
            x_L = batch["x_L"].to(device, non_blocking=True)
        shape = (self.model.vae.config.latent_channels, *(side // self.model.factor for side in x_L.shape[2:]))
        heard = [
            "" if torch.rand(1, generator=stream(seed, "null text")) < self.config.data.null_text_ratio else caption
            for seed, caption in zip(seeds, batch["caption"], strict=True)
        ]
        x_pred, z_H = restore(self.model, network, x_L, self.words(heard), draw(seeds, shape, "posterior").to(device))
        x_T = batch["x_T"].to(device, non_blocking=True) if settings.asks_teacher else None
        if settings.sharpen:
            x_H, x_T = (x if x is None else sharpen(x, settings.sharpen, settings.sharpen_sigma) for x in (x_H, x_T))
        corners = [
            tuple(torch.randint(settings.shift + 1, (2,), generator=stream(seed, "window")).tolist()) for seed in seeds
        ]
        return Restored(x_pred, x_H, x_L, z_H, batch["caption"], seeds, self.model.factor, settings.shift, corners, x_T)

    def adapter_file(self, name: str) -> Path:
        return self.output / "adapters" / f"{name}.safetensors"

    def _perceptual(self) -> Perceptual:
        """Built when a stage asks for it, and once: its network is a large one."""
        if self._built_perceptual is None:
            settings = self.config.perceptual
            self._built_perceptual = build_perceptual(settings.net, settings.weights, self.accelerator.device)
        return self._built_perceptual

    def _adversary(self, settings: StageConfig) -> Adversary:
        def average(gradient: Tensor) -> Tensor:
            return self.accelerator.reduce(gradient, "mean")

        return Adversary(self.accelerator.device, settings.lr_critic, self.config.run.seed, average)

    def _distillation(self):
        """The base is its own teacher: the adapters are off while it looks."""
        settings = self.config.csd
        alphas = DDPMScheduler.from_config(self.scheduler.config).alphas_cumprod
        distill = ClassifierScoreDistillation(alphas, settings.cfg, settings.t_min, settings.t_max)

        def teacher(z_t: Tensor, t: Tensor, embeds: Tensor) -> Tensor:
            with active(self.unet, ()):
                return predict(self.unet, z_t, embeds, t)

        def loss(restored: Restored) -> Tensor:
            wanted = [", ".join(filter(None, (caption, settings.prompt))) for caption in restored.captions]
            unwanted = [settings.negative_prompt] * len(wanted)
            # A moved window has latents of its own; the gradient reaches z_H through the picture.
            z = self.model.encode(restored.window(restored.x_pred)) if restored.shift else restored.z_H
            t = torch.cat([distill.draw_t(stream(seed, "csd time")) for seed in restored.seeds])
            noise = draw(restored.seeds, z.shape[1:], "csd noise")
            return distill(z, teacher, self.words(wanted), self.words(unwanted), t.to(z.device), noise.to(z.device))

        return loss

    def _batches(self, stage: Stage, step: int) -> Iterator[dict[str, Any]]:
        world, workers = self.accelerator.num_processes, self.config.data.workers
        sampler = KeyedBatches(
            length=len(self.photos),
            batch_size=share_of_batch(stage, self.config, world),
            seed=self.config.run.seed,
            rank=self.accelerator.process_index,
            world=world,
            shares=self.shares,
            start=step * self.config.run.accumulation,
        )
        pin = self.accelerator.device.type == "cuda"
        return iter(
            DataLoader(self.photos, batch_sampler=sampler, num_workers=workers, pin_memory=pin, collate_fn=collate)
        )

    def _gradients_travel(self, network: nn.Module, last: bool):
        """Processes exchange gradients once a step, with the last accumulated batch."""
        return nullcontext() if last else self.accelerator.no_sync(network)

    def _ground(self, stage: Stage) -> dict[str, Path]:
        """The files of the adapters that a stage builds upon."""
        return {name: Path(stage.settings.init_from or self.adapter_file(name)) for name in stage.stands_on}

    def _fill_what_is_there(self, stage: Stage) -> None:
        """Load what the stage stands on or starts from; an adapter from elsewhere is kept beside the new one."""
        sources = self._ground(stage)
        self.ground = {name: digest_of(path) for name, path in sources.items()}
        if start := stage.settings.start_from or (not stage.stands_on and stage.settings.init_from):
            sources[stage.learns] = Path(start)
        for name, path in sources.items():
            adapter = self._from_main(lambda name=name, path=path: check_adapter(path, name, self.config))
            check_base_of(adapter, path, base_facts(self.unet.config))
            load_into(self.unet, name, adapter.tensors)
            if self.accelerator.is_main_process and name in stage.stands_on and not self.adapter_file(name).is_file():
                save_adapter(self.adapter_file(name), adapter)

    def _check_ground(self, stage: Stage, found: Checkpoint) -> None:
        """What a stage was trained upon must still be there: it stays as it is, to the byte, or the stage is void."""
        for name, path in self._ground(stage).items():
            now = self._from_main(lambda path=path: digest_of(path))
            if found.state["ground"].get(name) != now:
                raise CheckpointError(
                    f"{stage.name} was trained upon another {name} adapter than {path}; put that one back, or delete "
                    f"{self.checkpoints.folder}/{stage.name}-* and {self.adapter_file(stage.name)} to train it again."
                )

    def _adapter(self, name: str) -> Adapter:
        rank = {"pix": self.config.model.rank_pix, "sem": self.config.model.rank_sem}[name]
        tensors = {key: p.detach().float().cpu().clone() for key, p in parameters_of(self.unet, name).items()}
        return Adapter(name, rank, self.config.model.alpha, tensors, base_facts(self.unet.config), ONE_STEP)

    def _from_main(self, look: Callable[[], Any]) -> Any:
        """What the main process finds on its disk, for all of them: only its disk counts."""
        found = [look() if self.accelerator.is_main_process else None]
        return broadcast_object_list(found)[0]

    def _checkpoint(self, stage: Stage, step: int, parameters: dict, optimizer, guard: NonFiniteGuard) -> None:
        """Save what a later start needs. A full disk is told, and training goes on from what memory has."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "ground": self.ground,
            "guard": guard.state(),
            "bad_photos": sorted(self.bad_photos.paths),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        tensors = {f"adapter.{key}": p.detach().cpu() for key, p in parameters.items()}
        moments = optimizer.state_dict()["state"]
        for number, key in enumerate(parameters):
            tensors |= {f"optimizer.{name}.{key}": t.detach().cpu() for name, t in moments.get(number, {}).items()}
        if self.adversary:
            tensors |= {f"adversary.{name}": t.detach().cpu() for name, t in self.adversary.tensors().items()}
        try:
            self.loss_log.sync()
            if self.validator:
                self.validator.rows.sync()
            self.checkpoints.save(Checkpoint(stage.name, step, tensors, state))
        except OSError as error:
            log.error("%s step %d could not be saved (%s); older checkpoints are whole", stage.name, step, error)

    def _take_up(
        self, found: Checkpoint | None, stage: Stage, parameters: dict, optimizer, guard: NonFiniteGuard
    ) -> int:
        """Go back to a checkpoint: adapter, Adam's moments, counters. Returns its step; without one, 0."""
        if found is None:
            return 0
        kinds = by_kind(found.tensors)
        load_into(self.unet, stage.learns, kinds["adapter"])
        numbers = {key: number for number, key in enumerate(parameters)}
        named = (key.split(".", 1) for key in kinds["optimizer"])
        packed = {f"{numbers[key]}.{moment}": kinds["optimizer"][f"{moment}.{key}"] for moment, key in named}
        load_moments(optimizer, packed)
        if self.adversary:
            self.adversary.load(kinds["adversary"])
        guard.load(found.state["guard"])
        self.bad_photos.paths |= set(found.state["bad_photos"])
        if found.state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        log.info("%s: continued at step %d", stage.name, found.step)
        return found.step

    def _rewind_logs(self, stage: Stage, step: int) -> None:
        """Rows of steps that are about to be taken again go; a look that a kill prevented is made up for."""
        if not self.accelerator.is_main_process:
            return
        self.loss_log.rewind(KINDS, stage.name, step)
        if self.validator and not self.validator.rows.rewind(KINDS, stage.name, step) and self._is_watched(stage, step):
            with active(self.unet, stage.active):
                self._validate(stage, step)

    def _is_watched(self, stage: Stage, step: int) -> bool:
        due = self.validator and step and (step % self.validator.every == 0 or step == stage.settings.steps)
        return bool(due)

    def _validate(self, stage: Stage, step: int) -> None:
        """Look at the fixed pictures; the main process alone, and training can't tell."""
        with self.accelerator.autocast():
            found = self.validator.run(
                self.model, stage, step, self._perceptual() if stage.settings.weight_lpips else None
            )
        self.trackers.log(stage.name, step, found.scores)
        if found.sheet is not None:
            self.trackers.log_image(stage.name, step, "validation", found.sheet)

    def _record_skipped(self, stage: Stage, step: int, values: dict[str, float], seen: "Seen") -> None:
        """Leave what a person needs to look at the batch: its photos, in skipped.jsonl."""
        everyones = gather_object(seen.photos)
        if self.accelerator.is_main_process:
            row = {"stage": stage.name, "step": step, **values, "photos": everyones}
            record_skipped(self.output / "skipped.jsonl", row)
            log.warning(
                "%s step %d was not taken, not finite: %s",
                stage.name,
                step,
                ", ".join(name for name, value in values.items() if not math.isfinite(value)),
            )

    def _advice(self, stage: Stage) -> str:
        newest = self._from_main(lambda: self.checkpoints.newest(stage.name))
        where = f"checkpoint {newest.name} is whole" if newest else "there is no checkpoint of this stage yet"
        return f"{where}; look at {self.output / 'skipped.jsonl'}, lower {stage.name}.lr, or use bf16 instead of fp16."

    def _report(self, stage: Stage, step: int, values: dict[str, float], taken: bool, progress: Progress) -> None:
        if self.accelerator.is_main_process:
            row = {"stage": stage.name, "step": step, **values}
            self.loss_log.append(row if taken else {**row, "skipped": True})
        speed = progress.step(step, values)
        self.trackers.log(stage.name, step, {**values, **speed})


def share_of_batch(stage: Stage, config: TrainConfig, processes: int) -> int:
    """Pictures that one process sees at a time. ConfigError where the batch can't be shared evenly."""
    share, rest = divmod(stage.settings.batch_size, processes * config.run.accumulation)
    if rest:
        raise ConfigError(
            f"{stage.name}.batch_size={stage.settings.batch_size} does not divide among {processes} processes with "
            f"run.accumulation={config.run.accumulation}; choose a multiple of their product."
        )
    return share


def check_adapter(path: Path, name: str, config: TrainConfig) -> Adapter:
    """Read an adapter that training is to build upon. CheckpointError unless it is the one that config describes."""
    if not path.is_file():
        where = "pix.init_from, sem.init_from" if name == "pix" else "sem.start_from"
        raise CheckpointError(
            f"no {name} adapter at {path}; train that stage first, or name one that is there ({where})."
        )
    adapter = load_adapter(path)
    rank = {"pix": config.model.rank_pix, "sem": config.model.rank_sem}[name]
    wanted = {"kind": name, "rank": rank, "alpha": config.model.alpha, "timestep": ONE_STEP}
    there = {"kind": adapter.name, "rank": adapter.rank, "alpha": adapter.alpha, "timestep": adapter.timestep}
    if wrong := [key for key in wanted if wanted[key] != there[key]]:
        told = ", ".join(f"{key} {there[key]}, wanted {wanted[key]}" for key in wrong)
        raise CheckpointError(f"{path} is another adapter than the configuration describes: {told}.")
    return adapter


def check_base_of(adapter: Adapter, path: Path, base: dict[str, Any]) -> None:
    if adapter.base and adapter.base != base:
        raise CheckpointError(f"{path} was trained on another base ({adapter.base}) than this one ({base}).")


def digest_of(path: Path) -> str | None:
    """SHA-256 of a file; None if there is none."""
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else None


@dataclass
class Seen:
    """What one process was shown in a step: its photos, and those that failed, as `BadPhotos` takes them."""

    photos: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def learning_rate(settings, step: int) -> float:
    """Three cases: warming up, constant, falling along a cosine to zero at the last step."""
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.lr_schedule == "constant":
        return settings.lr
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.lr * (0.5 + 0.5 * math.cos(math.pi * done))
