"""Whether an edit of a donor's text encoder fits a recipient, point by point; weights are read last.

python -m unreel.compat t2i=sd15 t2v=[animatediff,modelscope]
python -m unreel.compat --known

It ends with status 0 when the edit fits all recipients, and 1 when it does not fit one, with a line that says why and
which known donor would do. `--known` is the table of the models that have a YAML.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import hydra
from omegaconf import DictConfig

from unreel import door
from unreel.cli import as_job, command

PROBES = ("a cat on the beach", "a portrait in the style of van gogh")
Verdict = Literal["same", "differs", "warning", "not looked at"]


@dataclass(frozen=True)
class Row:
    """One point of a comparison, and what was found: only "differs" keeps an edit out."""

    point: str
    verdict: Verdict
    said: str = ""


def compared(donor: Any, recipient: Any, roles: Sequence[str], weights: bool = True) -> Iterator[Row]:
    """What is found of a pair, point by point; nothing more after a point that differs.

    Args:
        donor, recipient: Models; neither is loaded.
        roles: which weights an edit changes.
        weights: whether they are compared, and prompts encoded, where all before agrees.
    """
    from unreel.models.outline import Encoder, edited, outlined, unread

    outlines = []
    for model in (donor, recipient):
        try:
            outlines.append(outlined(model))
        except ValueError as error:
            yield Row("files", "differs", str(error))
            return
    for model, found in zip((donor, recipient), outlines, strict=True):
        if found is None:
            yield Row("files", "not looked at", f"{model.name} is not on this machine: needs its folder=FOLDER")
            return
    one, two = (found for found in outlines if found is not None)
    ours, theirs = Encoder.of(one), Encoder.of(two)
    yield Row("files", "same", "whole, safetensors")
    if said := ours.differs(theirs):
        yield Row("text encoder", "differs", said)
        return
    yield Row("text encoder", "same", f"{len(ours.shapes)} tensors by name and shape, {ours.read_by['model_type']}")
    yield Row("vocabulary", "same", f"{len(ours.vocabulary)} tokens")
    how = ours.reads_otherwise(theirs)
    yield Row("reading", "warning" if how else "same", how or f"{ours.reading.max_length} tokens")
    names = edited(two, roles)
    dead = unread(two, names) if names else []
    if names and len(dead) == len(names):
        yield Row("edited layers", "differs", f"{recipient.name} reads none of the {len(names)} tensors, as {names[0]}")
        return
    said = f"{len(names) - len(dead)} of {len(names)} tensors are read" if names else "they are the denoiser's"
    yield Row("edited layers", "warning" if dead or not names else "same", said + (f", not {dead[0]}" if dead else ""))
    own = {name.partition("/")[0] for name in names}
    others = [name for name in theirs.others if name not in own]
    carries = f"{', '.join(others)} of {recipient.name} may still say the concept"
    yield Row("other encoders", "warning" if others else "same", carries if others else "none")
    yield from _with_weights(donor, recipient, weights)


def _with_weights(donor: Any, recipient: Any, weights: bool) -> Iterator[Row]:
    from unreel.models.outline import folder_of

    places = [folder_of(model.sources[""]) if model.sources else None for model in (donor, recipient)]
    if not weights or None in places:
        yield Row("weights", "not looked at", "weights=false" if not weights else "models in memory")
        return
    folders = [
        Path(str(place)) / model.part("text_encoder") for place, model in zip(places, (donor, recipient), strict=True)
    ]
    rounded, other, total = rounding(*folders)
    if other or rounded:
        name, count = (other or rounded)[0], len(other or rounded)
        how = "differ" if other else "are rounded otherwise, within a step of bfloat16"
        said = f"{recipient.name} holds other weights than {donor.name}: {count} of {total} tensors ({name}, ...) {how}"
        yield Row("weights", "differs", f"{said}; with {folders[0]} in its place an edit fits")
        return
    yield Row("weights", "same", f"{total} tensors, rounded to float16")
    if (found := probe(donor, recipient)) is None:
        yield Row("probe", "not looked at", "their denoisers read embeddings of other widths")
        return
    low, mean = found
    yield Row("probe", "same" if low > 0.999 else "warning", f"cosine of prompt embeddings {mean:.4f}, least {low:.4f}")


def rounding(ours: Path, theirs: Path) -> tuple[list[str], list[str], int]:
    """Of the weights in two folders those that only rounding tells apart, those that differ, and how many there are.

    Weights are the same where they are the same float16, as edits ask for; one step of bfloat16 apart they are rounded.
    One tensor of each is in memory at a time.
    """
    import torch
    from safetensors import safe_open

    from unreel.models.outline import stored_in

    one, two = stored_in(ours), stored_in(theirs)
    rounded: list[str] = []
    other: list[str] = []
    for name in sorted(one.keys() & two.keys()):
        pair = []
        for stored in (one[name], two[name]):
            with safe_open(stored.path, "pt") as file:
                pair.append(file.get_tensor(stored.key))
        a, b = pair
        if a.shape != b.shape:
            other.append(name)
        elif a.is_floating_point() and not torch.equal(a.half(), b.half()):
            step = torch.finfo(torch.bfloat16).eps * torch.maximum(a.float().abs(), b.float().abs())
            (rounded if bool(((a.float() - b.float()).abs() <= step).all()) else other).append(name)
    return rounded, other, len(one)


def probe(donor: Any, recipient: Any) -> tuple[float, float] | None:
    """The least and the mean cosine of the embeddings of some prompts, as the donor and as the recipient reads them.

    An embedding is the mean over the tokens that a model keeps. The donor's encoder is read by both. None where the
    embeddings have other widths.
    """
    import torch

    shared: dict[str, Any] = {}
    found = []
    with torch.no_grad():
        for model in (donor, recipient):
            encoders = _loaded(model, shared)
            shared = {"text_encoder": encoders["text_encoder"]}
            read = _twin(model, encoders).encode_prompt(list(PROBES))
            embeds = read["prompt_embeds"].float()
            mask = read.get("prompt_attention_mask", torch.ones(embeds.shape[:2]))[..., None].float()
            found.append((embeds * mask).sum(1) / mask.sum(1))
    ours, theirs = found
    if ours.shape != theirs.shape:
        return None
    cosines = torch.nn.functional.cosine_similarity(ours, theirs)
    return float(cosines.min()), float(cosines.mean())


def _twin(model: Any, encoders: Mapping[str, Any] | None = None) -> Any:
    from unreel.models.outline import outlined

    twin = outlined(model, encoders)
    assert twin is not None, "its files were found before"
    return twin


def _loaded(model: Any, shared: Mapping[str, Any]) -> dict[str, Any]:
    """A model's text encoders with their weights, by the names that edits use; `shared` ones as they are."""
    import transformers

    from unreel.models.outline import encoders_of, folder_of

    folder, found = folder_of(model.sources[""]), dict(shared)
    assert folder is not None
    for name, module in encoders_of(_twin(model)).items():
        if name not in found:
            kind = getattr(transformers, type(module).__name__)
            found[name] = kind.from_pretrained(folder / model.part(name), local_files_only=True).eval()
    return found


def refusal(rows: Mapping[str, Sequence[Row]], entries: Mapping[str, Any]) -> str:
    """The line with which it ends when an edit does not fit, or could not be looked at; "" when it fits everywhere."""
    from unreel.known import fitting

    said = []
    for name, found in rows.items():
        last = found[-1]
        if last.verdict == "differs":
            hint = fitting(name, entries)
            said.append(f"{last.said}: {hint}" if last.point != "files" else last.said)
        elif last.point == "files":
            said.append(last.said)
    return "; ".join(said)


@hydra.main(version_base="1.3", config_path="../../conf", config_name="compat")
@as_job
def main(config: DictConfig) -> Path:
    for key in ("known", "weights"):
        if not isinstance(config[key], bool):
            raise ValueError(f"found {key}={config[key]}: expected true or false")
    door.check_settings(config)
    if not config.known:
        for key in ("t2i", "t2v", "parameters"):
            door.check_arguments({name: config[key][name] for name in config[key] if name != "training"}, key)
    from rich import get_console
    from rich.table import Table

    from unreel import known
    from unreel.assembly import device_of, donor_of, recipients_of
    from unreel.libraries import prepare_libraries

    prepare_libraries(config.threads)
    if config.known:
        print("\n".join([known.markdown(), "", *known.looked_at()]))
        return Path()
    device = device_of(config)
    donor, recipients = donor_of(config, device), recipients_of(config, device)
    rows: dict[str, list[Row]] = {}
    for recipient in recipients:
        found = rows[recipient.name] = list(compared(donor, recipient, config.parameters.roles, config.weights))
        table = Table("point", "", "", title=f"{donor.name}'s edits in {recipient.name}")
        for row in found:
            table.add_row(row.point, row.verdict, row.said)
        get_console().print(table)
    if said := refusal(rows, config.t2v):
        raise ValueError(said)
    print(f"an edit of {donor.name} fits {', '.join(rows)}")
    return Path()


if __name__ == "__main__":
    sys.argv = ["known=true" if argument == "--known" else argument for argument in sys.argv]
    command(main)
