"""Encode prompts. Published: the empty prompt, so one embedding serves every picture."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CACHED = 64  # embeddings; SD-2.1's weigh 0.3 MB each, and a training set's captions rarely repeat


class PromptEncoder:
    """Encode prompts to the text encoder's last hidden states, normed: [B, tokens, d].

    Each prompt is padded or cut to the tokenizer's length (77 for CLIP) and encoded once: the
    latest ones are cached. Nothing flows back into the text encoder. Move or cast the text encoder
    freely, this follows. offload: between new prompts it waits on the CPU, and leaves the device
    0.63 GiB of SD-2.1. Without a text encoder (None) the answer is None, and a prompt a ValueError.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, offload: bool = False):
        self.tokenizer, self.text_encoder, self.offload = tokenizer, text_encoder, offload
        self._cache: OrderedDict[tuple, Tensor] = OrderedDict()

    def serves(self, tokenizer: Any, text_encoder: Any) -> bool:
        """Whether these are the parts it was made with; others have other embeddings."""
        return self.tokenizer is tokenizer and self.text_encoder is text_encoder

    def __call__(self, prompts: str | Sequence[str], device: torch.device | None = None) -> Any:
        """device: where the text encoder computes; None: where its weights are."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if self.text_encoder is None:
            if any(prompts):
                raise ValueError("this base takes no text; leave the prompt empty.")
            return None
        embeds = [self._cached(prompt, device or self.text_encoder.device) for prompt in prompts]
        return embeds[0] if len(embeds) == 1 else torch.cat(embeds)

    def _cached(self, prompt: str, device: torch.device) -> Tensor:
        key = (prompt, device, self.text_encoder.dtype)
        if key not in self._cache:
            self._cache[key] = self._encode(prompt, device)
            if len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    @torch.no_grad()
    def _encode(self, prompt: str, device: torch.device) -> Tensor:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        visits = self.offload and device.type not in ("cpu", "meta")
        if visits:
            self.text_encoder.to(device)
        embeds = self.text_encoder(tokens.input_ids.to(device)).last_hidden_state
        if visits:
            self.text_encoder.to("cpu")
        return embeds
