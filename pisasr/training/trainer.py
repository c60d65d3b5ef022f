"""Photos to adapters: for each stage, freeze, prepare, loop, save. The only file that knows accelerate."""

import json
import logging
import math
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pisasr.adapters import active, attach, load_into, parameters_of, train_only
from pisasr.bases import load_base
from pisasr.config import ConfigError, StageConfig, TrainConfig, to_yaml
from pisasr.data.degradation import sample_generator
from pisasr.data.photos import KeyedBatches, Photos, list_photos
from pisasr.errors import CheckpointError
from pisasr.model import ONE_STEP, PiSASR, predict
from pisasr.residual import remove_residual
from pisasr.text import PromptEncoder
from pisasr.training.csd import ClassifierScoreDistillation
from pisasr.training.losses import build_perceptual, sharpen
from pisasr.training.stages import Restored, Score, Stage, build_score, stages_of
from pisasr.weights import Adapter, base_facts, load_adapter, save_adapter

log = logging.getLogger(__name__)

MAY_CHANGE = ("pix.steps", "sem.steps", "run.log_every", "run.checkpoint_every", "run.output", "data.workers")


def train(config: TrainConfig) -> None:
    """Run every stage of the configuration and leave OUTPUT/adapters/{pix,sem}.safetensors, log.jsonl, config.yaml.

    The same call continues an interrupted run: a stage whose adapter is there is done, a checkpoint is taken up.
    """
    accelerator = Accelerator(mixed_precision=config.run.mixed_precision)
    output = Path(config.run.output)
    photos = Photos(
        list_photos(config.data.photos),
        crop_px=config.data.crop_px,
        recipe=config.degradation,
        seed=config.run.seed,
        caption=config.data.caption,
        keep_in_memory=config.data.keep_in_memory,
    )
    if accelerator.is_main_process:
        _claim(output, config)
    accelerator.wait_for_everyone()
    trainer = Trainer(config, accelerator, photos)
    for stage in stages_of(config):
        if trainer.adapter_file(stage.name).is_file():
            log.info("%s: %s is there, nothing to do", stage.name, trainer.adapter_file(stage.name))
        else:
            trainer.run(stage)


class Trainer:
    """What stays the same from stage to stage: the base with both adapters attached, the photos, the machine."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, photos: Photos):
        self.config, self.accelerator, self.photos = config, accelerator, photos
        self.output = Path(config.run.output)
        base = load_base(config.model.pretrained_model)
        self.unet, self.scheduler = base["unet"].to(memory_format=torch.channels_last), base["scheduler"]
        torch.manual_seed(config.run.seed)  # fresh adapters are the only draw that no sample owns
        for name, rank in (("pix", config.model.rank_pix), ("sem", config.model.rank_sem)):
            attach(self.unet, name, rank, config.model.alpha)
        if config.model.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        for part in (self.unet, base["vae"], base["text_encoder"]):
            part.to(accelerator.device)
        self.words = PromptEncoder(base["tokenizer"], base["text_encoder"])
        self.model = PiSASR(self.unet, base["vae"], self.words)

    def run(self, stage: Stage) -> None:
        """Train one stage from its last checkpoint, or from the start, and write its adapter."""
        settings = stage.settings
        for name in stage.stands_on:
            self._fill(name, settings.init_from or self.adapter_file(name))
        if stage.active == (stage.learns,) and settings.init_from:
            self._fill(stage.learns, settings.init_from)
        train_only(self.unet, stage.learns)
        parameters = parameters_of(self.unet, stage.learns)
        optimizer = torch.optim.AdamW(parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay)
        first = self._resume(stage, parameters, optimizer)
        # Prepared after freezing: a DDP wrapper averages only what learned when it was made.
        network, optimizer = self.accelerator.prepare(Predictor(self.unet), optimizer)
        score = build_score(settings, self._perceptual, self._distillation)
        batches = self._batches(settings, first)
        started = time.monotonic()
        with active(self.unet, stage.active):
            for step in range(first + 1, settings.steps + 1):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(settings, step)
                values = self._learn(network, optimizer, batches, score, list(parameters.values()), settings)
                self._report(stage, step, values, (time.monotonic() - started) / (step - first))
                if step % self.config.run.checkpoint_every == 0 or step == settings.steps:
                    self._checkpoint(stage, step, parameters, optimizer)
        if self.accelerator.is_main_process:
            save_adapter(self.adapter_file(stage.name), self._adapter(stage.learns))
            self._checkpoint_file(stage).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()

    def _learn(self, network, optimizer, batches: Iterator, score: Score, parameters: list, settings) -> dict:
        """Zero, accumulate, clip, step. Returns each loss, averaged over processes and accumulated batches."""
        optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        count = self.config.run.accumulation
        for i in range(count):
            batch = next(batches)
            with self.accelerator.autocast(), self._gradients_travel(network, last=i == count - 1):
                restored = self.restore(network, batch, settings)
                total, values = score(restored)
                self.accelerator.backward(total / count)
            for name, value in {**values, "total": total.item()}.items():
                totals[name] = totals.get(name, 0.0) + value / count
        totals["grad_norm"] = float(self.accelerator.clip_grad_norm_(parameters, settings.max_grad_norm))
        optimizer.step()
        names = list(totals)
        shared = torch.tensor([totals[name] for name in names], device=self.accelerator.device)
        return dict(zip(names, self.accelerator.reduce(shared, "mean").tolist(), strict=True))

    def restore(self, network: nn.Module, batch: dict[str, Any], settings: StageConfig) -> Restored:
        """The method on one batch of `Photos`, with every draw tied to its sample."""
        device, seeds = self.accelerator.device, [int(seed) for seed in batch["seed"]]
        x_L, x_H = batch["x_L"].to(device), batch["x_H"].to(device)
        shape = (self.model.vae.config.latent_channels, *(side // self.model.factor for side in x_L.shape[2:]))
        heard = [
            "" if torch.rand(1, generator=_generator(seed, "null text")) < self.config.data.null_text_ratio else caption
            for seed, caption in zip(seeds, batch["caption"], strict=True)
        ]
        x_pred, z_H = restore(self.model, network, x_L, self.words(heard), draw(seeds, shape, "posterior").to(device))
        if settings.sharpen:
            x_H = sharpen(x_H, settings.sharpen)
        corners = [
            tuple(torch.randint(settings.shift + 1, (2,), generator=_generator(seed, "window")).tolist())
            for seed in seeds
        ]
        return Restored(x_pred, x_H, z_H, batch["caption"], seeds, self.model.factor, settings.shift, corners)

    def adapter_file(self, name: str) -> Path:
        return self.output / "adapters" / f"{name}.safetensors"

    def _perceptual(self):
        return build_perceptual(self.config.perceptual.net, self.config.perceptual.weights, self.accelerator.device)

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
            t = torch.cat([distill.draw_t(_generator(seed, "csd time")) for seed in restored.seeds])
            noise = draw(restored.seeds, z.shape[1:], "csd noise")
            return distill(z, teacher, self.words(wanted), self.words(unwanted), t.to(z.device), noise.to(z.device))

        return loss

    def _batches(self, settings, step: int) -> Iterator[dict[str, Any]]:
        world, workers = self.accelerator.num_processes, self.config.data.workers
        share, rest = divmod(settings.batch_size, world * self.config.run.accumulation)
        if rest:
            raise ConfigError(
                f"batch_size={settings.batch_size} does not divide among {world} processes with "
                f"run.accumulation={self.config.run.accumulation}; choose a multiple of their product."
            )
        sampler = KeyedBatches(
            length=len(self.photos),
            batch_size=share,
            seed=self.config.run.seed,
            rank=self.accelerator.process_index,
            world=world,
            start=step * self.config.run.accumulation,
        )
        return iter(DataLoader(self.photos, batch_sampler=sampler, num_workers=workers))

    def _gradients_travel(self, network: nn.Module, last: bool):
        """Processes exchange gradients once a step, with the last accumulated batch."""
        return nullcontext() if last else self.accelerator.no_sync(network)

    def _fill(self, name: str, path: str | Path) -> None:
        if not Path(path).is_file():
            raise CheckpointError(f"no {name} adapter at {path}; train that stage first, or name one in sem.init_from.")
        adapter = load_adapter(path)
        wanted = {"pix": self.config.model.rank_pix, "sem": self.config.model.rank_sem}[name]
        if adapter.rank != wanted:
            raise CheckpointError(f"{path} has rank {adapter.rank}, the configuration says model.rank_{name}={wanted}.")
        load_into(self.unet, name, adapter.tensors)

    def _adapter(self, name: str) -> Adapter:
        rank = {"pix": self.config.model.rank_pix, "sem": self.config.model.rank_sem}[name]
        tensors = {key: p.detach().float().cpu().clone() for key, p in parameters_of(self.unet, name).items()}
        return Adapter(name, rank, self.config.model.alpha, tensors, base_facts(self.unet.config), ONE_STEP)

    def _checkpoint_file(self, stage: Stage) -> Path:
        return self.output / f"{stage.name}.checkpoint"

    def _checkpoint(self, stage: Stage, step: int, parameters: dict, optimizer) -> None:
        """Everything that a later start needs; chance is keyed to samples, so no generator has a state to keep."""
        if not self.accelerator.is_main_process:
            return
        tensors = {key: p.detach().cpu() for key, p in parameters.items()}
        state = {"step": step, "tensors": tensors, "optimizer": optimizer.state_dict()}
        file = self._checkpoint_file(stage)
        unfinished = file.with_suffix(".tmp")
        torch.save(state, unfinished)
        os.replace(unfinished, file)

    def _resume(self, stage: Stage, parameters: dict, optimizer) -> int:
        file = self._checkpoint_file(stage)
        if not file.is_file():
            return 0
        state = torch.load(file, weights_only=True, map_location="cpu")
        load_into(self.unet, stage.learns, state["tensors"])
        optimizer.load_state_dict(state["optimizer"])
        log.info("%s: continued at step %d", stage.name, state["step"])
        return state["step"]

    def _report(self, stage: Stage, step: int, values: dict[str, float], seconds: float) -> None:
        if not self.accelerator.is_main_process:
            return
        row = {"stage": stage.name, "step": step, **{name: round(value, 6) for name, value in values.items()}}
        with (self.output / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if step % self.config.run.log_every == 0:
            left = (stage.settings.steps - step) * seconds / 60
            terms = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            place = f"{stage.name} {step}/{stage.settings.steps}"
            log.info("%s  %s  %.2f s/step, %.0f min left", place, terms, seconds, left)


def restore(
    model: PiSASR, network: nn.Module, x_L: Tensor, prompt_embeds: Tensor, posterior_noise: Tensor
) -> tuple[Tensor, Tensor]:
    """The method with gradients through eps alone: x_L -> z_L -> eps -> z_H -> x_H'.

    x_L [B, 3, H, W] in [-1, 1], posterior_noise like z_L. Returns (x_pred clamped to [-1, 1], z_H), both float32.
    """
    with torch.no_grad():
        z_L = model.encode(x_L, "sample", noise=posterior_noise).float()
    z_H = remove_residual(z_L, network(z_L, prompt_embeds).float())
    return model.decode(z_H).float().clamp(-1, 1), z_H


class Predictor(nn.Module):
    """The UNet as the method calls it, in a module of its own so that DDP can wrap it."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, z_L: Tensor, prompt_embeds: Tensor) -> Tensor:
        return predict(self.unet, z_L, prompt_embeds)


def learning_rate(settings, step: int) -> float:
    """Three cases: warming up, constant, falling along a cosine to zero at the last step."""
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    if settings.lr_schedule == "constant":
        return settings.lr
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.lr * (0.5 + 0.5 * math.cos(math.pi * done))


def draw(seeds: list[int], shape: tuple[int, ...], purpose: str) -> Tensor:
    """N(0, 1) [len(seeds), *shape], each sample from a generator of its own: process and batch size change nothing."""
    return torch.stack([torch.randn(tuple(shape), generator=_generator(seed, purpose)) for seed in seeds])


def _generator(seed: int, purpose: str) -> torch.Generator:
    """A stream of chance per sample and purpose."""
    return sample_generator(seed, zlib.crc32(purpose.encode()), 0)


def _claim(output: Path, config: TrainConfig) -> None:
    """Take the output folder: a new run writes its configuration there, a continued one must have the same."""
    (output / "adapters").mkdir(parents=True, exist_ok=True)
    file = output / "config.yaml"
    if file.is_file():
        before, now = (_flat(c) for c in (OmegaConf.load(file), OmegaConf.structured(config)))
        changed = [key for key in now if key not in MAY_CHANGE and before.get(key) != now[key]]
        if changed:
            listed = "; ".join(f"{key}={before.get(key)} -> {now[key]}" for key in changed)
            raise ConfigError(f"{output} holds a run with other settings ({listed}); choose another run.output.")
    file.write_text(to_yaml(config))


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in OmegaConf.to_container(node).items() if not isinstance(node, dict) else node.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
