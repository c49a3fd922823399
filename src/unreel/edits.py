"""Edit: what a method returns. Changed tensors, settings of what is attached, hashes of the weights it belongs to."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unreel.composition import summed
from unreel.door import config_folders
from unreel.erased import parts_of
from unreel.files import whole
from unreel.hashes import plain_name, tensor_hash
from unreel.low_rank import Factors, change_of, misfit, weight_of, weights_of
from unreel.metadata import FORMATS, parse, seal
from unreel.weights import components_of, hashes_of, is_finite, listed, unshared

ATTACHED = "attached/"  # how the names of an attachment's own tensors begin


@dataclass(frozen=True)
class Edit:
    """What a method changed, and which weights it belongs to. It is data, never a program.

    Attributes:
        tensors: "component/parameter" -> new value, or the low-rank factors of a change (`unreel.low_rank`);
            "attached/..." -> a tensor of what the method attaches.
        base: "component/parameter" -> hash of the value before, of all parameters of the components it changes.
        method: stem of the YAML in conf/method that made it; its class attaches what is more than changed weights.
        settings: what is attached, beside its tensors; JSON. Empty where changed weights are all.
        provenance: how it was made; any JSON.
    """

    tensors: Mapping[str, Tensor]
    base: Mapping[str, str]
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def between(cls, reference: Any, edited: Any, names: Sequence[str], method: str = "") -> "Edit":
        """What differs, to the bit, in some components of two models (or pipelines), the first one as it was."""
        before, after = components_of(reference), components_of(edited)
        changed: dict[str, Tensor] = {}
        for key in names:
            old = dict(before[key].named_parameters())
            changed |= {
                f"{key}/{plain_name(name)}": p.detach().cpu().clone()
                for name, p in after[key].named_parameters()
                if not torch.equal(p, old[name].to(p.device))  # two pipelines may be in two places
            }
        return cls(changed, hashes_of(before, names), method)

    def __add__(self, other: "Edit") -> "Edit":
        """Both edits as one: this one, and then the other.

        Where both were made from the same weights they must change different tensors, and their order does not matter.
        An edit that was made on a model which holds this one goes on top of it.

        Raises:
            ValueError: where that is not defined: a tensor that both change, other weights, the other order, or two
                edits that attach something when the pipeline samples, of which an edit holds one.
        """
        if not isinstance(other, Edit):
            return NotImplemented
        methods = list(dict.fromkeys(name for edit in (self, other) for name in edit.method.split("+") if name))
        if self.is_attached and other.is_attached:
            raise ValueError(
                f"these edits cannot be added: {' and '.join(methods)} both act while the pipeline samples; expected"
                " at most one that does"
            )
        tensors, base = summed((self.tensors, self.base), (other.tensors, other.base))
        attached = [edit for edit in (self, other) if edit.is_attached]
        return Edit(
            tensors, base, attached[0].method if attached else "+".join(methods),
            attached[0].settings if attached else {},
            {"parts": [*parts_of(self.provenance), *parts_of(other.provenance)]},
        )  # fmt: skip

    @property
    def components(self) -> tuple[str, ...]:
        """The components whose weights it changes."""
        return tuple(dict.fromkeys(name.partition("/")[0] for name in self.base))

    @property
    def changed(self) -> list[str]:
        """The weights "component/parameter" that it changes, by new values or by low-rank factors."""
        return weights_of(name for name in self.tensors if not name.startswith(ATTACHED))

    @property
    def is_low_rank(self) -> bool:
        """Whether it holds low-rank factors in the place of some weights' new values."""
        return any(weight_of(name) != name for name in self.tensors)

    @property
    def is_attached(self) -> bool:
        """Whether the method has to attach something: changed weights are not all."""
        return bool(self.settings) or any(name.startswith(ATTACHED) for name in self.tensors)

    @property
    def hash(self) -> str:
        """Content hash: of what it changes and of what it belongs to; 16 hex digits.

        The text encoder's parameters go by their bare names, so that an edit of the first format keeps its hash.
        """
        tensors = {name: tensor_hash(tensor, tensor.dtype) for name, tensor in self.tensors.items()}
        parts = [
            f"{name} {digest}"
            for named in (tensors, self.base)
            for name, digest in sorted((n.removeprefix("text_encoder/"), d) for n, d in named.items())
        ]
        if self.is_attached:
            parts += [self.method, json.dumps(self.settings, sort_keys=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Writes `edit.safetensors`; the file appears whole."""
        metadata = {
            "format": FORMATS[-1], "hash": self.hash, "method": self.method, "base": json.dumps(dict(self.base)),
            "settings": json.dumps(dict(self.settings)), "provenance": json.dumps(dict(self.provenance)),
        }  # fmt: skip
        metadata["seal"] = seal(metadata)
        with whole(path) as aside:
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, aside, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Edit":
        """From a file that `save` wrote, of this format or the one before.

        Raises:
            ValueError: for a missing or damaged file, or one that is no edit, naming it.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise ValueError(f"{path} is missing: expected the edit.safetensors of a run")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error}): make the edit again") from None
        if metadata.get("format") not in FORMATS:
            raise ValueError(f"{path} is no edit: found format {metadata.get('format')!r}, expected {FORMATS[-1]!r}")
        try:
            said = parse(metadata)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged (its metadata: {error}): make the edit again") from None
        before = "text_encoder/" if said.format == FORMATS[0] else ""
        if wrong := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
            raise ValueError(f"{path}: {listed(wrong, len(tensors))} hold no finite numbers: make the edit again")
        edit = cls(
            {f"{before}{name}": tensor for name, tensor in tensors.items()},
            {f"{before}{name}": digest for name, digest in said.base.items()},
            said.method, said.settings, said.provenance.model_dump(exclude_none=True),
        )  # fmt: skip
        if edit.hash != metadata.get("hash"):
            raise ValueError(f"{path} is damaged (its content has hash {edit.hash}, not {metadata.get('hash')})")
        return edit

    def check(self, target: Any) -> None:
        """ValueError unless the target's weights are those that the edit was made from, naming tensors that differ."""
        components = self._components(target)
        if said := unshared(self.base, components):
            raise ValueError(
                f"the edit belongs to other weights: {said} from the weights that it was made from; load the unedited"
                " model that it was trained on"
            )
        shapes = {
            f"{key}/{plain_name(n)}": p.shape for key in self.components for n, p in components[key].named_parameters()
        }
        own = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(ATTACHED)}
        if said := misfit(own, shapes):
            raise ValueError(f"the edit is damaged: {said}; make the edit again")
        if self.is_attached:
            made_by = method_named(self.method)
            kinds, found = made_by.attaches, self.settings
            names = sorted(found.keys() | kinds.keys())
            if wrong := [n for n in names if n not in found or n not in kinds or not isinstance(found[n], kinds[n])]:
                raise ValueError(
                    f"the edit's settings are not those of the method {self.method}: found other"
                    f" {', '.join(map(repr, wrong))[:200]}; expected {', '.join(kinds) or 'none'}; make the edit again"
                )
            made_by.check_attached(target, self)

    def _components(self, target: Any) -> dict[str, nn.Module]:
        if isinstance(target, nn.Module):  # a component alone
            return dict.fromkeys(self.components, target)
        found = components_of(target)
        if "text_encoder" in self.components and not hasattr(target, "reading"):  # some pipelines count others first
            names = {name.partition("/")[2] for name in self.base if name.startswith("text_encoder/")}
            encoders = [module for key, module in found.items() if key.startswith("text_encoder")]
            same = (m for m in encoders if names == {plain_name(n) for n, _ in m.named_parameters()})
            if (own := next(same, None)) is not None:
                found["text_encoder"] = own
        return found

    def _changes(self, target: Any) -> list[tuple[nn.Parameter, Tensor | Factors]]:
        """(parameter, new value or factors of its change) pairs."""
        components, pairs = self._components(target), []
        for key in self.components:
            for name, parameter in components[key].named_parameters():
                value = change_of(self.tensors, f"{key}/{plain_name(name)}")
                if value is not None:
                    pairs.append((parameter, value))
        return pairs

    def apply(self, target: Any) -> None:
        """Puts the edit into a diffusers pipeline or a Model, or into a component of it alone, for good.

        Raises:
            ValueError: when its weights are not the ones that the edit was made from; nothing is changed then.
        """
        self.check(target)
        _write(self._changes(target))
        if self.is_attached:
            stack = ExitStack()
            stack.enter_context(self._attached(target))
            target.unreel_edits = [*getattr(target, "unreel_edits", []), stack]  # it lasts as long as the target does

    def _attached(self, target: Any) -> Any:
        return method_named(self.method).attach(getattr(target, "pipeline", target), self)

    @contextmanager
    def applied(self, target: Any) -> Iterator[None]:
        """Applies the edit inside a `with` block and restores the weights bit for bit after it."""
        self.check(target)
        changes = self._changes(target)
        before = [parameter.detach().clone() for parameter, _ in changes]
        with ExitStack() as stack:
            stack.callback(_write, [(parameter, old) for (parameter, _), old in zip(changes, before, strict=True)])
            _write(changes)
            if self.is_attached:
                stack.enter_context(self._attached(target))
            yield


def load_sum(paths: Sequence[str]) -> Edit:
    """The edits of some files, added in their order. ValueError for a damaged one, or where no sum is defined."""
    edit = Edit.load(paths[0])
    for path in paths[1:]:
        other = Edit.load(path)
        try:
            edit = edit + other
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return edit


@torch.no_grad()
def _write(changes: Sequence[tuple[nn.Parameter, Tensor | Factors]]) -> None:
    for parameter, value in changes:
        parameter.copy_(value.added_to(parameter) if isinstance(value, Factors) else value)


def method_named(stem: str) -> Any:
    """The class of a method, by the name of its YAML in conf/method or in the user's own --config-dir.

    Raises:
        ValueError: for a name that is no plain one, or that this version does not know.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", stem):
        raise ValueError(f"the edit names the method {stem[:80]!r}: expected the name of a file in conf/method")
    folders = config_folders("method")
    for path in (folder / f"{stem}.yaml" for folder in folders):
        if path.is_file():
            return hydra.utils.get_class(str(OmegaConf.select(OmegaConf.load(path), "_target_")))
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise ValueError(f"the edit was made by the method {stem!r}, which is not known here: {', '.join(known)}")


def check_edits(folder: Path) -> None:
    """ValueError when an edit of a finished run has been damaged or removed since."""
    for path in [folder / "edit.safetensors", *sorted(folder.glob("edits/*/edit.safetensors"))]:
        try:
            Edit.load(path)
        except ValueError as error:
            raise ValueError(f"the run was finished, but since then {error}; first remove {folder}") from None
