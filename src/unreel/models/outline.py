"""Outlines: what a model's folder says of its text encoders before any weight is read.

Configs, tokenizers, and the headers of safetensors files, which name all tensors with their shapes; the text encoders
themselves are made on PyTorch's "meta" device, where a module has shapes, names and gradients but no numbers.
"""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from torch import nn

from unreel.hashes import plain_name
from unreel.models.model import Model, Reading
from unreel.models.roles import select

INDEX = "model_index.json"
_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_PREFIXES = ("model.language_model.", "language_model.", "model.")  # of language models, here and there
_TIED = ("encoder.embed_tokens.weight", "shared.weight")  # T5's table of tokens, under either name
# what decides, beside its weights, what a text encoder makes of a text: of CLIP and language models, then of T5
_READ_BY = (
    "model_type", "num_hidden_layers", "hidden_size", "hidden_act", "layer_norm_eps", "max_position_embeddings",
    "num_heads", "feed_forward_proj", "layer_norm_epsilon", "relative_attention_num_buckets",
    "relative_attention_max_distance",
)  # fmt: skip
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def folder_of(source: Mapping[str, Any]) -> Path | None:
    """Where the files of one of a model's `sources` are: a local folder, a snapshot in the hub's cache, or None."""
    where = source["pretrained_model_name_or_path"]
    if source["local_files_only"]:
        return Path(where).absolute()
    try:
        return Path(snapshot_download(where, revision=source["revision"], local_files_only=True))
    except (LocalEntryNotFoundError, RepositoryNotFoundError):
        return None


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: which file, its key there, its shape; and the name that all copies of it share."""

    path: Path
    key: str
    shape: tuple[int, ...]


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file. ValueError for a file that is shorter than its header says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            found = json.loads(file.read(min(length, 100_000_000)))
        except ValueError:
            raise ValueError(f"{path}: found no safetensors header: expected a whole file; download it again") from None
    found.pop("__metadata__", None)
    whole = 8 + length + max((entry["data_offsets"][1] for entry in found.values()), default=0)
    if (size := path.stat().st_size) < whole:
        raise ValueError(f"{path}: found {size:,} bytes of {whole:,}: expected a whole file; download it again")
    return found


def _common_name(name: str) -> str:
    """What all copies of a parameter are called, whatever prefix they are kept under."""
    name = plain_name(name)
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return _TIED[1] if name == _TIED[0] else name


def stored_in(folder: Path) -> dict[str, Stored]:
    """The tensors in the folder of one part of a pipeline, by the name that all copies share; headers alone are read.

    Raises:
        ValueError: for a folder without weights, with pickled ones alone, or with a file that is missing or cut off.
    """
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        files = [name] if (folder / name).is_file() else []
        if not files and index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if lacking := [file for file in files if not (folder / file).is_file()]:
            raise ValueError(
                f"{folder}: found {len(files) - len(lacking)} of {len(files)} files of weights, {lacking[0]} is missing"
                ": expected all; download it again"
            )
        if files:
            headers = {folder / file: _header(folder / file) for file in files}
            return {
                _common_name(key): Stored(path, key, tuple(entry["shape"]))
                for path, header in headers.items()
                for key, entry in header.items()
            }
    if pickled := sorted(path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in folder.glob(pattern)):
        raise ValueError(
            f"{folder}: found {pickled[0]}, pickled weights, which can run programs: expected safetensors files"
        )
    raise ValueError(f"{folder}: found no weights: expected {_WEIGHTS[0]}; download it again")


def encoders_of(model: Model) -> dict[str, nn.Module]:
    """The text encoders of a model or an outline, by the names that edits use."""
    names = ["text_encoder", *(name for name in model.pipeline.components if name.startswith("text_encoder_"))]
    found = {name: getattr(model.pipeline, model.part(name)) for name in names}
    return {name: module for name, module in found.items() if module is not None}


@dataclass(frozen=True)
class Encoder:
    """What decides what a model's text encoder makes of a text, its weights aside.

    Attributes:
        model: name of the model.
        read_by: its kind, depth, activation, norm's epsilon and places of tokens.
        vocabulary: of its tokenizer.
        special: the tokenizer's special tokens and the side of its padding.
        shapes: parameter -> shape, by the names that all copies share.
        reading: how the model reads prompts.
        others: what the model reads beside it: names of further text encoders.
    """

    model: str
    read_by: Mapping[str, Any]
    vocabulary: Mapping[str, int]
    special: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    reading: Reading
    others: tuple[str, ...]

    @classmethod
    def of(cls, model: Model) -> "Encoder":
        """Of a model that is loaded, or of its outline."""
        encoder, tokenizer = getattr(model.pipeline, model.part("text_encoder")), model.tokenizer
        special = {name: str(getattr(tokenizer, name, None)) for name in _SPECIAL} | {"padding": tokenizer.padding_side}
        return cls(
            model.name, {key: getattr(encoder.config, key, None) for key in _READ_BY}, tokenizer.get_vocab(), special,
            {_common_name(name): tuple(p.shape) for name, p in encoder.named_parameters()}, model.reading,
            tuple(name for name in encoders_of(model) if name != "text_encoder"),
        )  # fmt: skip

    def differs(self, other: "Encoder") -> str:
        """What keeps an edit of this one out of another model, told without any weights; "" when nothing does."""
        for key, theirs in other.read_by.items():
            if theirs != (ours := self.read_by[key]):
                return f"{other.model} has another text encoder than {self.model}: {key} is {theirs}, not {ours}"
        for name in sorted(self.shapes.keys() | other.shapes.keys()):
            ours, theirs = (own.shapes.get(name, "missing") for own in (self, other))
            if ours != theirs:
                return f"{other.model} has another text encoder than {self.model}: {name} is {theirs}, not {ours}"
        if other.vocabulary != self.vocabulary:
            return f"{other.model} has another tokenizer vocabulary than {self.model}: no edit can be shared"
        return ""

    def reads_otherwise(self, other: "Encoder") -> str:
        """How another model that may get an edit reads prompts otherwise; "" when it reads them alike."""
        pairs = {key: (theirs, self.special[key]) for key, theirs in other.special.items()}
        said = [f"{key} is {theirs!r}, not {ours!r}" for key, (theirs, ours) in pairs.items() if theirs != ours]
        return ", ".join([*said, *filter(None, [self.reading.differs(other.reading)])])


def outlined(model: Model, encoders: Mapping[str, nn.Module] | None = None) -> Model | None:
    """A model that encodes prompts as another does, and has no weights of denoiser and VAE.

    Args:
        model: with folders that it is loaded from; one that is loaded already, or was given, is returned itself.
        encoders: its text encoders by the names that edits use; None for such on the meta device, which have no
            weights.

    Returns:
        None where its files are not on this machine.

    Raises:
        ValueError: for a folder that is not whole, or whose weights are pickled.
    """
    sources = getattr(model, "sources", {})
    if not sources or (getattr(model, "_pipeline", None) is not None and encoders is None):
        return model
    folder = folder_of(sources[""])
    if folder is None:
        return None
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    kept = {name: entry for name, entry in parts.items() if name.startswith(("text_encoder", "tokenizer"))}
    given = {model.part(name): module for name, module in (encoders or {}).items()}
    own: dict[str, Any] = {name: None for name in parts.keys() - kept.keys() if name != "scheduler"}
    for name in getattr(model, "consulted", ()):
        if name not in parts or not (folder / name / "config.json").is_file():
            raise ValueError(f"{folder}: found no {name}/config.json: expected a whole folder of its family")
        kind = getattr(diffusers, parts[name][1])
        with torch.device("meta"):
            own[name] = kind.from_config(kind.load_config(folder / name, local_files_only=True))
    for name, (_, kind) in kept.items():
        if kind is None:
            own[name] = None
        elif name.startswith("text_encoder"):
            stored_in(folder / name)  # or it says what is missing
            own[name] = given.get(name)
            if own[name] is None:
                own[name] = _without_weights(getattr(transformers, kind), folder / name)
    quiet = logging.getLogger("diffusers")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it warns of parts that are None
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **own)
    finally:
        quiet.setLevel(level)
    twin = copy.copy(model)
    vars(twin)["_pipeline"] = pipeline
    vars(twin)["_device"] = next(next(iter(encoders_of(twin).values())).parameters()).device
    return twin


def _without_weights(kind: Any, folder: Path) -> nn.Module:
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return kind(config).eval()


def _unmasked(_module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Leaves masks out, by name or behind the tokens: what padding is read changes nothing of which weights are."""
    return args[:1], {name: value for name, value in kwargs.items() if name != "attention_mask"}


def unread(outline: Model, names: Sequence[str]) -> list[str]:
    """Which of some parameters "text_encoder/NAME" make no difference to what a model's denoiser reads.

    Found by whether a gradient reaches them, which needs no weights.
    """
    own = encoders_of(outline)
    encoders = {key: own[key] for key in dict.fromkeys(name.partition("/")[0] for name in names)}
    parameters = {f"{key}/{name}": p for key, module in encoders.items() for name, p in module.named_parameters()}
    before = {name: p.requires_grad for name, p in parameters.items()}
    hooks = [encoder.register_forward_pre_hook(_unmasked, with_kwargs=True) for encoder in encoders.values()]
    try:
        for p in parameters.values():
            p.requires_grad_(True)
        with torch.enable_grad():
            read = [t for t in outline.encode_prompt(["a cat"]).values() if t.requires_grad]
            chosen = [parameters[name] for name in names]
            grads = torch.autograd.grad([t.sum() for t in read], chosen, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
        for name, p in parameters.items():
            p.requires_grad_(before[name])
    return [name for name, grad in zip(names, grads, strict=True) if grad is None]


def edited(outline: Model, roles: Sequence[str]) -> list[str]:
    """The weights "text_encoder/NAME" that have one of the roles; none where they are all of the denoiser."""
    own = [role for role in roles if not role.startswith("denoiser")]
    return select(encoders_of(outline), own) if own else []


def deaf(outline: Model, roles: Sequence[str]) -> str:
    """Whether a model reads none of the weights with these roles, as a line; "" when it reads some."""
    names = edited(outline, roles)
    if names and len(unread(outline, names)) == len(names):
        return f"{outline.name} does not read the layers that parameters.roles={list(roles)} changes, as {names[0]}"
    return ""
