"""Known pairs: which of the models in conf/t2i and conf/t2v are said, or were found, to hold the same text encoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unreel.door import built, config_folders
from unreel.models.model import Model
from unreel.models.outline import Encoder, outlined

_NOT_SAID = "not said"


@dataclass(frozen=True)
class Known:
    """A model that has a YAML.

    Attributes:
        group: t2i or t2v.
        name: stem of the YAML.
        encoder: the text encoder that it is said to have.
        entry: its config.
    """

    group: str
    name: str
    encoder: str
    entry: DictConfig

    def outline(self) -> Model | None:
        """Its outline; None where its files are not on this machine, or are not whole."""
        if OmegaConf.missing_keys(self.entry):
            return None
        try:
            return outlined(built({key: self.entry[key] for key in self.entry if key != "training"}, device="cpu"))
        except (ValueError, OSError):
            return None


def known(group: str) -> list[Known]:
    """All models of a config group, t2i or t2v: those of conf and of the user's own --config-dir."""
    folders = config_folders(group)
    paths = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))}
    found = []
    for name, path in paths.items():
        config: Any = OmegaConf.create({"rendering": {"steps": 1.0, "timestep_spacing": None}})
        given: Any = OmegaConf.load(path)
        config[group] = {key: given[key] for key in given if key != "defaults"} if group == "t2v" else given
        entry = config[group].get(name) if group == "t2v" else config[group]
        if entry is not None:
            found.append(Known(group, name, str(entry.get("encoder") or _NOT_SAID), entry))
    return found


def fitting(recipient: str, entries: Mapping[str, Any]) -> str:
    """Which known donors would fit a recipient, as the end of a line that refuses another one.

    Args:
        recipient: its name.
        entries: `t2v` of the config.
    """
    said = next((str(e.get("encoder") or "") for e in entries.values() if e.get("name") == recipient), "")
    if not said:
        return f"no donor is known for {recipient}, whose config says no encoder"
    fit = [f"t2i={each.name}" for each in known("t2i") if each.encoder == said]
    if not fit:
        return f"no donor is known for {recipient}, which is said to have {said}"
    return f"{recipient} is said to have {said}, as {', '.join(fit)}"


def groups() -> dict[str, tuple[list[Known], list[Known]]]:
    """The text encoder that they are said to have -> donors and recipients."""
    found: dict[str, tuple[list[Known], list[Known]]] = {}
    for side, group in enumerate(("t2i", "t2v")):
        for each in known(group):
            found.setdefault(each.encoder, ([], []))[side].append(each)
    return found


def markdown() -> str:
    """The table of known pairs."""
    lines = [["text encoder, as their YAMLs say", "`t2i=`", "`t2v=`"], ["---"] * 3]
    for encoder, sides in groups().items():
        lines.append([encoder, *(", ".join(each.name for each in side) or "-" for side in sides)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def looked_at() -> list[str]:
    """What was found of known pairs on this machine, a line a model, without reading weights.

    A recipient is compared with the first donor of its encoder that is here.
    """
    said = []
    for encoder, (donors, recipients) in groups().items():
        outlines = {each.name: each.outline() for each in donors}
        first = next((outline for outline in outlines.values() if outline is not None), None)
        for each in donors:
            if outlines[each.name] is None:
                said.append(f"{encoder}: t2i={each.name} was not looked at: needs t2i.folder=FOLDER")
        for each in recipients:
            found = each.outline()
            if found is None:
                said.append(f"{encoder}: t2v={each.name} was not looked at: needs t2v.{each.name}.folder=FOLDER")
            elif first is not None:
                alike = f"t2v={each.name} agrees with t2i={first.name} in names, shapes and vocabulary"
                said.append(f"{encoder}: {Encoder.of(first).differs(Encoder.of(found)) or alike}")
    return said
