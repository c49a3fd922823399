"""Prompts x seeds -> clips. Clips of an unedited model are kept by content and never rendered twice."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from rich.progress import Progress
from torch import Tensor

from unreel.cache import TensorCache, content_key
from unreel.edits import parameter_hashes, tensor_hash
from unreel.recipients.recipient import Recipient
from unreel.records import Prompt


@dataclass(frozen=True)
class Rendered:
    """Clips of one recipient at one stage.

    Attributes:
        recipient: its name.
        stage: before | step_<n> | after.
        prompts: one a clip.
        clips: (B, F, C, H, W) in [0, 1].
        seconds: what rendering them took, in s; less when the cache had them.
        fps: frames a second.
    """

    recipient: str
    stage: str
    prompts: Sequence[Prompt]
    clips: Tensor
    seconds: float
    fps: int

    @property
    def hash(self) -> str:
        """Content hash of the clips, 16 hex digits."""
        return tensor_hash(self.clips)[:16]

    def places(self, split: str | None = None, concept: str | None = None) -> list[int]:
        """Where the clips of one split, or of one concept, are."""
        return [i for i, p in enumerate(self.prompts) if split in (None, p.split) and concept in (None, p.concept)]

    def at(self, places: Sequence[int]) -> "Rendered":
        """Some of the clips alone."""
        prompts, share = [self.prompts[i] for i in places], len(places) / max(len(self.prompts), 1)
        return replace(self, prompts=prompts, clips=self.clips[list(places)], seconds=self.seconds * share)


class Renderer:
    """Renders with one recipient.

    Args:
        recipient: what renders.
        cache: where clips are kept by the content that they were rendered from.
        batch: clips at a time.

    `content` is a hash of all that decides the clips, except of what the machine at hand can compute in.
    """

    def __init__(self, recipient: Recipient, cache: TensorCache, batch: int) -> None:
        self.recipient, self.cache, self.batch = recipient, cache, batch
        modules = {name: parameter_hashes(module) for name, module in recipient.modules.items()}
        schedule = {key: str(value) for key, value in recipient.pipeline.scheduler.config.items()}

        def content(autocast: bool) -> str:
            precision = [str(recipient.pipeline.unet.dtype), autocast]
            return content_key(
                options=recipient.options, precision=precision, schedule=schedule, kind=type(recipient).__name__,
                **modules,
            )  # fmt: skip

        self.content, self._computed = content(recipient.wants_autocast), content(recipient.autocast)

    def render(self, prompts: Sequence[Prompt], seeds: Sequence[int], stage: str) -> Rendered:
        """One clip a prompt, each with its own seed; those of an unedited model, of the stage "before", are kept."""
        encoder = parameter_hashes(self.recipient.text_encoder)
        keys = [
            content_key(model=self._computed, encoder=encoder, prompt=prompt.text, seed=seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        started = time.perf_counter()
        alone = self.cache.locked(keys[0]) if stage == "before" and keys else nullcontext()
        with alone:  # other runs that want the same clips wait for them, those that want others do not
            clips = self._clips(prompts, seeds, keys, stage)
        seconds = time.perf_counter() - started
        return Rendered(self.recipient.name, stage, list(prompts), clips, seconds, self.recipient.fps)

    def _clips(self, prompts: Sequence[Prompt], seeds: Sequence[int], keys: list[str], stage: str) -> Tensor:
        """From the cache what it has, the rest rendered, (B, F, C, H, W) in [0, 1]."""
        found = [self.cache.load(key) for key in keys]
        missing = [i for i, kept in enumerate(found) if kept is None]
        with Progress(transient=True) as progress:
            task = progress.add_task(
                f"{self.recipient.name} {stage}", total=len(keys), completed=len(keys) - len(missing)
            )
            for start in range(0, len(missing), self.batch):
                part = missing[start : start + self.batch]
                clips = self.recipient.render([prompts[i].text for i in part], [seeds[i] for i in part])
                for i, clip in zip(part, clips, strict=True):
                    rendered = found[i] = {"clip": (clip * 255).round().to(torch.uint8)}
                    if stage == "before":
                        self.cache.save(keys[i], rendered)
                progress.advance(task, len(part))
        return torch.stack([kept["clip"] for kept in found if kept is not None]).float() / 255
