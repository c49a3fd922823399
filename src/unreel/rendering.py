"""Prompts, or what the denoiser reads in their place, x seeds -> clips on disk.

Clips are kept by all that decides them, and never rendered twice."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich import get_console
from rich.progress import Progress
from torch import Tensor

from unreel.cache import TensorCache
from unreel.edits import Edit
from unreel.hashes import code_hash, content_key, library_versions, parameter_hashes, tensor_hash
from unreel.models.model import Conditioning, Model
from unreel.models.running import computes_bfloat16
from unreel.records import Prompt


class StoredClips(Sequence[Tensor]):
    """Clips (F, C, H, W) in [0, 1] that stay on disk as uint8: each is read when it is asked for."""

    def __init__(self, cache: TensorCache, keys: Sequence[str]) -> None:
        self.cache, self.keys = cache, list(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return StoredClips(self.cache, self.keys[i])
        kept = self.cache.load(self.keys[i])
        if kept is None:
            raise ValueError(f"{self.cache.folder} has lost a clip that was rendered into it: give the command again")
        return kept["clip"].float() / 255

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True)
class Rendered:
    """Clips of one recipient at one stage.

    Attributes:
        recipient: its name.
        stage: before | step_<n> | after.
        prompts: one a clip.
        clips: (F, C, H, W) in [0, 1] each; StoredClips, or tensors.
        seconds: what rendering each took, in s, whenever that was.
        fps: frames a second.
    """

    recipient: str
    stage: str
    prompts: Sequence[Prompt]
    clips: Sequence[Tensor]
    seconds: Sequence[float]
    fps: int

    @property
    def hash(self) -> str:
        """Content hash of the clips, 16 hex digits."""
        return content_key(clips=[tensor_hash(clip) for clip in self.clips])[:16]

    def places(self, split: str | None = None, concept: str | None = None) -> list[int]:
        """Where the clips of one split, or of one concept, are."""
        return [i for i, p in enumerate(self.prompts) if split in (None, p.split) and concept in (None, p.concept)]

    def at(self, places: Sequence[int]) -> "Rendered":
        """Some of the clips alone."""
        prompts, seconds = [self.prompts[i] for i in places], [self.seconds[i] for i in places]
        if isinstance(self.clips, StoredClips):
            return replace(
                self, prompts=prompts, seconds=seconds,
                clips=StoredClips(self.clips.cache, [self.clips.keys[i] for i in places]),
            )  # fmt: skip
        return replace(self, prompts=prompts, seconds=seconds, clips=[self.clips[i] for i in places])


@dataclass(frozen=True)
class Batch:
    """Clips that are rendered at a time: what they are kept by, their prompts or what is read of them, their seeds."""

    keys: list[str]
    said: list[str] | Conditioning
    seeds: list[int]

    def at(self, places: Sequence[int]) -> "Batch":
        """Some of the clips alone."""
        said = self.said.rows(list(places)) if isinstance(self.said, Conditioning) else [self.said[i] for i in places]
        return Batch([self.keys[i] for i in places], said, [self.seeds[i] for i in places])


def _hash(given: Conditioning, i: int) -> dict[str, str]:
    """Hashes of what the denoiser reads of one prompt, to the last bit."""
    return {name: tensor_hash(tensor[i], tensor.dtype) for name, tensor in given.items()}


class Renderer:
    """Renders with one recipient, in this process.

    Args:
        model: what renders.
        cache: where clips of the unedited model are kept, for all runs.
        own: where clips of edits are kept, for this run.
        batch: clips at a time.
    """

    def __init__(self, model: Model, cache: TensorCache, own: TensorCache, batch: int) -> None:
        self.model, self.cache, self.own, self.batch = model, cache, own, batch

    def edited(self, edit: Edit | None) -> AbstractContextManager[None]:
        """The `with` block that `render` of an edit is called inside of: it is applied there."""
        return edit.applied(self.model) if edit else nullcontext()

    def release(self) -> None:
        """Frees the memory of whatever renders."""
        self.model.release()

    def here(self) -> "Renderer":
        """One that renders in this process: with what is done to its model here, which no other process knows."""
        return self

    def key(self, edit: Edit | None) -> str:
        """Hash of all that decides a clip but its prompt and its seed: weights as they are now, edit, code, machine.

        The weights are read each time, so that nothing edited is served from the entries of anything else, however it
        was edited; what an edit attaches, no weights show, so that its hash counts too.
        """
        model = self.model
        schedule = {key: str(value) for key, value in model.pipeline.scheduler.config.items()}
        return content_key(
            weights={key: parameter_hashes(module) for key, module in model.components.items()}, schedule=schedule,
            content=model.content, edit=edit.hash if edit else "", libraries=library_versions(),
            code=code_hash([model]), bfloat16=computes_bfloat16(model.device),
            gpu=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "",
            dtypes={key: str(next(module.parameters()).dtype) for key, module in model.components.items()},
        )  # fmt: skip

    def render(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], stage: str, edit: Edit | None = None,
        given: Conditioning | None = None,
    ) -> Rendered:  # fmt: skip
        """One clip a prompt, each with its own seed.

        Args:
            prompts, seeds: what is rendered.
            stage: what it is called.
            edit: what is applied to the model now, if anything is.
            given: what the denoiser reads in place of the prompts' texts, a row for each.
        """
        cache, state = self.own if edit else self.cache, self.key(edit)
        asked = [{"prompt": prompt.text} if given is None else {"given": _hash(given, i)}
                 for i, prompt in enumerate(prompts)]  # fmt: skip
        keys = [content_key(state=state, **what, seed=s) for what, s in zip(asked, seeds, strict=True)]
        alone = cache.locked(keys[0]) if edit is None and keys else nullcontext()
        with alone:  # other runs that want the same clips wait for them, those that want others do not
            said = given if given is not None else [p.text for p in prompts]
            seconds = self._render(cache, Batch(keys, said, list(seeds)), stage)
        return Rendered(self.model.name, stage, list(prompts), StoredClips(cache, keys), seconds, self.model.fps)

    def _render(self, cache: TensorCache, wanted: Batch, stage: str) -> list[float]:
        """Renders what the cache has not; the seconds that each clip took when it was rendered."""
        keys = wanted.keys
        kept = {key: cache.load(key) for key in dict.fromkeys(keys)}
        spent = {key: float(found["seconds"]) for key, found in kept.items() if found is not None}
        missing = [i for i, key in enumerate(keys) if key not in spent and key not in keys[:i]]
        parts = [missing[start : start + self.batch] for start in range(0, len(missing), self.batch)]
        batches = [wanted.at(part) for part in parts]
        with Progress(transient=True, disable=not get_console().is_terminal) as progress:
            task = progress.add_task(f"{self.model.name} {stage}", total=len(keys), completed=len(keys) - len(missing))
            seconds = self._rendered(cache, batches, lambda clips: progress.advance(task, clips))
        for batch, each in zip(batches, seconds, strict=True):
            spent |= dict.fromkeys(batch.keys, each)
        return [spent[key] for key in keys]

    def _rendered(self, cache: TensorCache, batches: Sequence[Batch], told: Callable[[int], None]) -> list[float]:
        """Renders batches into the cache; the seconds a clip of each. `told` hears how many clips more are there."""
        seconds = []
        for batch in batches:
            seconds.append(self.rendered(cache, batch))
            told(len(batch.keys))
        return seconds

    def rendered(self, cache: TensorCache, batch: Batch) -> float:
        """Renders one batch into the cache, with the model as it is now; the seconds a clip."""
        began = time.perf_counter()
        clips = self.model.render(batch.said, batch.seeds)
        each = (time.perf_counter() - began) / len(batch.keys)
        for key, clip in zip(batch.keys, clips, strict=True):
            cache.save(key, {"clip": (clip * 255).round().to(torch.uint8), "seconds": torch.tensor(each)})
        return each
