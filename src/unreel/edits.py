"""Edit: what a method returns. Changed tensors of a text encoder, with hashes of the weights they belong to."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unreel.files import whole

FORMAT = "unreel-edit-1"


def tensor_hash(tensor: Tensor, dtype: torch.dtype = torch.float16) -> str:
    """sha256 of a tensor's shape and values, rounded to `dtype`: with half precision, fp16 and fp32 copies agree."""
    values = tensor.detach().to("cpu", dtype).contiguous()
    return hashlib.sha256(str(tuple(values.shape)).encode() + values.view(torch.uint8).numpy().tobytes()).hexdigest()


def parameter_hashes(text_encoder: nn.Module) -> dict[str, str]:
    """Parameter name -> `tensor_hash`, of a whole text encoder; names start below any `text_model.` prefix."""
    return {_plain(name): tensor_hash(p) for name, p in text_encoder.named_parameters()}


def _plain(name: str) -> str:
    """A parameter's name without the prefix that older transformers put before it."""
    return name.removeprefix("text_model.")


def differing(base: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names of tensors that only one of the two has, or whose hashes differ."""
    return sorted(name for name in base.keys() | found.keys() if base.get(name) != found.get(name))


def _named(names: list[str], total: int) -> str:
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} of {total} tensors ({listed})"


@dataclass(frozen=True)
class Edit:
    """Changed tensors, the component they belong to, and hashes of the weights they were made from.

    Attributes:
        tensors: parameter name -> new value.
        base: `parameter_hashes` of the whole text encoder before the edit.
        provenance: how it was made; any JSON.
        component: which module of a pipeline it belongs to.
    """

    tensors: dict[str, Tensor]
    base: dict[str, str]
    provenance: dict[str, Any] = field(default_factory=dict)
    component: str = "text_encoder"

    @classmethod
    def between(cls, reference: nn.Module, text_encoder: nn.Module, provenance: dict[str, Any]) -> "Edit":
        """What differs, to the bit, in a text encoder from the reference that it was."""
        before = dict(reference.named_parameters())
        changed = {
            _plain(name): p.detach().cpu().clone()
            for name, p in text_encoder.named_parameters()
            if not torch.equal(p, before[name])
        }
        return cls(changed, parameter_hashes(reference), provenance)

    @property
    def hash(self) -> str:
        """Content hash: of what it changes and of what it belongs to; 16 hex digits."""
        parts = [f"{name} {tensor_hash(tensor, tensor.dtype)}" for name, tensor in sorted(self.tensors.items())]
        parts += [f"{name} {digest}" for name, digest in sorted(self.base.items())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes `edit.safetensors`; the file appears whole."""
        metadata = {
            "format": FORMAT, "component": self.component, "hash": self.hash,
            "base": json.dumps(self.base), "provenance": json.dumps(self.provenance),
        }  # fmt: skip
        with whole(path) as aside:
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, aside, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Edit":
        """From a file that `save` wrote.

        Raises:
            ValueError: for a missing or damaged file, or one that is no edit, naming it.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path} is missing: expected the edit.safetensors of a run")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error}): make the edit again") from None
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is no edit: found format {metadata.get('format')!r}, expected {FORMAT!r}")
        edit = cls(tensors, json.loads(metadata["base"]), json.loads(metadata["provenance"]), metadata["component"])
        if edit.hash != metadata["hash"]:
            raise ValueError(f"{path} is damaged (its content has hash {edit.hash}, not {metadata['hash']})")
        return edit

    def check(self, text_encoder: nn.Module) -> None:
        """ValueError unless the edit was made from exactly this text encoder's weights, naming tensors that differ."""
        found = parameter_hashes(text_encoder)
        if names := differing(self.base, found):
            raise ValueError(
                f"the edit belongs to another text encoder: {_named(names, len(found))} differ from the weights that it"
                " was made from; load the unedited model that it was trained on"
            )

    def _encoder(self, target: Any) -> nn.Module:
        return target if isinstance(target, nn.Module) else getattr(target, self.component)

    @torch.no_grad()
    def apply(self, target: Any) -> None:
        """Writes the edit into a diffusers pipeline, or into a text encoder, for good.

        Raises:
            ValueError: when its weights are not the ones that the edit was made from; nothing is changed then.
        """
        encoder = self._encoder(target)
        self.check(encoder)
        for name, parameter in encoder.named_parameters():
            if _plain(name) in self.tensors:
                parameter.copy_(self.tensors[_plain(name)])

    @contextmanager
    def applied(self, target: Any) -> Iterator[None]:
        """Applies the edit inside a `with` block and restores the weights bit for bit after it."""
        encoder = self._encoder(target)
        before = {name: p.detach().clone() for name, p in encoder.named_parameters() if _plain(name) in self.tensors}
        self.apply(encoder)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in encoder.named_parameters():
                    if name in before:
                        parameter.copy_(before[name])


def export_text_encoder(pipeline: Any, folder: Path) -> None:
    """Writes a pipeline's text encoder as a transformers folder for `from_pretrained`; it appears whole."""
    aside, old = folder.with_name(f".unfinished_{folder.name}"), folder.with_name(f".old_{folder.name}")
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.text_encoder.save_pretrained(aside, safe_serialization=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def check_shared(donor: Any, recipient: Any) -> None:
    """The check before every transfer: two pipelines read prompts alike.

    Compares the tokenizer's vocabulary, the text encoder's output layer (depth, activation, final norm's epsilon) and
    its weights, tensor by tensor.

    Raises:
        ValueError: saying what differs.
    """
    if donor.tokenizer.get_vocab() != recipient.tokenizer.get_vocab():
        raise ValueError(f"{recipient.name} has another tokenizer vocabulary than {donor.name}: no edit can be shared")
    for key in ("num_hidden_layers", "hidden_size", "hidden_act", "layer_norm_eps", "max_position_embeddings"):
        ours, theirs = (getattr(model.text_encoder.config, key, None) for model in (donor, recipient))
        if ours != theirs:
            raise ValueError(
                f"{recipient.name} has another text encoder than {donor.name}: {key} is {theirs}, not {ours}"
            )
    base, found = parameter_hashes(donor.text_encoder), parameter_hashes(recipient.text_encoder)
    if names := differing(base, found):
        raise ValueError(
            f"{recipient.name} has another text encoder than {donor.name}: {_named(names, len(base))} differ; choose a"
            " recipient that shares the donor's encoder"
        )
