"""Infer and train, beside z_L: words to embeddings. Published: the empty prompt, so one serves
every picture.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

REMEMBERED = 64  # embeddings kept; SD-2.1's weigh 0.3 MB each, and captions of a training set rarely come back


class PromptEncoder:
    """Turn prompts into the text encoder's last hidden states (after its final norm), [B, tokens,
    d].

    Each prompt is padded or cut to the tokenizer's length (77 for CLIP) and encoded once: the
    latest ones are kept, and one alone comes as the same tensor each time. Nothing flows back into
    the text encoder. Move or cast the text encoder freely, this follows. rests: between words that
    are new it waits on the CPU, and leaves the device 0.63 GiB of SD-2.1.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, rests: bool = False):
        self.tokenizer, self.text_encoder, self.rests = tokenizer, text_encoder, rests
        self._known: OrderedDict[tuple, Tensor] = OrderedDict()

    def serves(self, tokenizer: Any, text_encoder: Any) -> bool:
        """Whether these are the parts it was made with; others have other embeddings."""
        return self.tokenizer is tokenizer and self.text_encoder is text_encoder

    def __call__(self, prompts: str | Sequence[str], device: torch.device | None = None) -> Tensor:
        """device: where the text encoder computes; None is where its weights are, which offloading
        takes away.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        embeds = [self._embed(prompt, device or self.text_encoder.device) for prompt in prompts]
        return embeds[0] if len(embeds) == 1 else torch.cat(embeds)

    def _embed(self, prompt: str, device: torch.device) -> Tensor:
        key = (prompt, device, self.text_encoder.dtype)
        if key not in self._known:
            self._known[key] = self._encode(prompt, device)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    @torch.no_grad()
    def _encode(self, prompt: str, device: torch.device) -> Tensor:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        visits = self.rests and device.type not in ("cpu", "meta")
        if visits:
            self.text_encoder.to(device)
        embeds = self.text_encoder(tokens.input_ids.to(device)).last_hidden_state
        if visits:
            self.text_encoder.to("cpu")
        return embeds
