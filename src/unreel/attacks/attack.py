"""Attack: the contract of what brings an erased concept back, what it is let loose on, and what it finds.

An attack searches on a model that has forgotten, and on the same model unedited, which is its control. What it finds is
data: texts, learned tensors. It is put to work on every recipient and scored there as plain prompts are.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from rich import get_console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unreel.cache import TensorCache
from unreel.captions import TrainingCaptions
from unreel.files import whole
from unreel.hashes import code_hash, content_key, library_versions, tensor_hash
from unreel.models.model import Conditioning, Model
from unreel.records import Concept, Prompt
from unreel.validation import Name, Parsed, validated

PICTURE_SEEDS = 2**41  # where the seeds of an attacker's own pictures begin; those of shots and clips are below


@dataclass(frozen=True)
class Target:
    """What an attack is let loose on, and what it may know.

    Attributes:
        model: with the edit applied; as it is, where the attack is its own control.
        original: the same model without the edit. What it shares with `model` is the same object.
        captions: of the concept, and what else can be said around it.
        prompts: that ask for the concept, and that are to bring it back.
        seeds: of their clips.
        seed: of everything random.
        edited: whether there is an edit.
        cache: where pictures by the original are kept, for all runs.
    """

    model: Model
    original: Model
    captions: TrainingCaptions
    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    seed: int
    edited: bool
    cache: TensorCache

    @property
    def concept(self) -> Concept:
        """What was erased."""
        return self.captions.concept

    def pictures(self, texts: Sequence[str], seeds: Sequence[int] | None = None, whole: bool = False) -> Tensor:
        """Latents (n, *latent) of what the original model makes of n texts.

        Args:
            texts: what is shown.
            seeds: one each; an attacker's own where none are given.
            whole: whether all frames of a video model's clips are wanted, and not the first one alone; of a motion
                they always are.
        """
        whole = whole or self.concept.part == "motion"
        first = PICTURE_SEEDS + 100_000 * self.seed
        each = list(seeds) if seeds is not None else [first + i for i in range(len(texts))]
        made_by = {"model": self.original.content, "libraries": library_versions(), "code": code_hash([self.original])}
        found = []
        for text, seed in steps_of(list(zip(texts, each, strict=True)), "the attacker's pictures"):
            key = content_key(picture=text, seed=seed, whole=whole, **made_by)
            kept = self.cache.load(key)
            if kept is None:
                clips = self.original.render([text], [seed])
                pixels = (clips if whole else clips[:, :1]) * 2 - 1
                latents = self.original.encode_pixels(pixels, torch.Generator().manual_seed(seed))
                kept = {"latents": latents[0].float().cpu().clone()}
                self.cache.save(key, kept)
            found.append(kept["latents"])
        return torch.stack(found).to(self.model.device)


class Said(Parsed):
    """What a file of `Found` says beside its tensors."""

    key: str
    texts: list[str]
    of: list[int]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        texts: attacked prompts, as people read them.
        of: for each text, which of the target's prompts it attacks.
        tensors: what was learned.
        facts: how the search went; JSON.
    """

    texts: Sequence[str]
    of: Sequence[int]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path, key: str) -> None:
        """Writes it under the key of what it was made from; the file appears whole."""
        said = {"key": key, "texts": list(self.texts), "of": list(self.of), "facts": dict(self.facts)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        hashes = {name: tensor_hash(tensor, tensor.dtype) for name, tensor in tensors.items()}
        with whole(path) as aside:
            save_file(tensors or {"none": torch.zeros(1)}, aside, {"said": json.dumps(said), "sum": _sum(said, hashes)})

    @classmethod
    def load(cls, path: Path, key: str) -> "Found | None":
        """What was saved there; None when there is nothing, or it is damaged or was made from something else."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                said = validated(Said, json.loads(metadata.get("said", "null")))
                tensors = {name: file.get_tensor(name) for name in file.keys() if name != "none"}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError, ValueError):
            return None
        hashes = {name: tensor_hash(tensor, tensor.dtype) for name, tensor in tensors.items()}
        if said.key != key or metadata.get("sum") != _sum(said.model_dump(), hashes):
            return None
        return cls(said.texts, said.of, tensors, said.facts)


def _sum(said: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    return content_key(said=dict(said), tensors=dict(hashes))


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A way to bring an erased concept back. One file and one YAML each.

    Attributes:
        name: stem of its YAML; its rows have the split attack_<name>.
        searches_on: "maker" is the model that the edit was made on, whose find goes to all recipients of the edit;
            "recipient" is each of them.
        knows_edit: whether its search sees the edited model; if not, it is its own control's, and searched once.
        passes_guidance: whether it can meet erasers that change no weights and act when a pipeline samples.
        keeps: whether what it found on the edited model stays in the run folder when the run is done; whole weights do
            not. What it finds on an unedited one is kept in the cache, for all runs.
        learns_looks: whether its search needs pictures of the concept, made by the model that it searches on.
    """

    name: Name
    searches_on: ClassVar[Literal["maker", "recipient"]] = "maker"
    knows_edit: ClassVar[bool] = True
    passes_guidance: ClassVar[bool] = False
    keeps: ClassVar[bool] = True
    learns_looks: ClassVar[bool] = False

    @abstractmethod
    def search(self, target: Target) -> Found:
        """What brings the concept back on the target; the target's models are left as they were."""

    def check(self, concepts: Sequence[Concept], prompts: Sequence[Prompt]) -> None:
        """ValueError for what it cannot attack, before anything is loaded."""
        return

    def check_eraser(self, eraser: str, attached: bool) -> None:
        """ValueError for an eraser that it cannot meet.

        Args:
            eraser: the method's name.
            attached: whether it acts when the pipeline samples, which no gradient through the model's parts sees.
        """
        if attached and not self.passes_guidance:
            raise ValueError(
                f"attack {self.name} searches in the weights of a model, but {eraser} changes none and acts while the"
                " pipeline samples: expected attack=paraphrase, or a method that edits weights"
            )

    def check_model(self, model: Model) -> None:
        """ValueError for a model that lacks what it needs."""
        return

    def check_looks(self, model: Model, concepts: Sequence[Concept]) -> None:
        """ValueError for a concept that the model's pictures do not show, if the search needs them."""
        for concept in concepts:
            if self.learns_looks and concept.part == "motion" and model.num_frames == 1:
                raise ValueError(
                    f"attack {self.name} learns from pictures by {model.name}, found {concept.slug}, a motion, which"
                    " no picture shows: expected one that searches on each recipient (attack=video_inversion), or"
                    " t2i=NAME of a video model"
                )

    def check_gradients(self, model: Model) -> None:
        """ValueError for a model through which no gradient comes, if the search needs one: it knows the edit then."""
        for key in ("group_offload", "denoiser_storage"):
            if self.knows_edit and getattr(model, key, None):
                raise ValueError(
                    f"attack {self.name} searches by gradients, found {key} of {model.name}: expected"
                    " group_offload=false and denoiser_storage=null"
                )

    def looks(self, found: Found) -> list[int]:
        """The steps of the search at which its find is rendered, the last one last; most are rendered at the end."""
        return [0]

    @contextmanager
    def at_work(self, model: Model, found: Found, look: int) -> Iterator[Conditioning | None]:
        """Inside the `with` block the model is as the attack wants it; it is restored bit for bit.

        Args:
            model: a recipient, edited or as it is.
            found: by the search.
            look: one of `looks`.

        Yields:
            What the denoiser reads for each of the found texts; None for what the model itself makes of them.
        """
        yield None


def steps_of(items: Any, what: str) -> Any:
    """The items, with a progress bar on a terminal that is gone when they are through."""
    return track(items, what, transient=True, disable=not get_console().is_terminal)
