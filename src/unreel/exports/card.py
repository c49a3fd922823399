"""README.md of a run folder: a model card in the hub's form, of what was erased, how, how well, and how to load it."""

import html
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import UNet3DConditionModel
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unreel.edits import Edit, method_named
from unreel.exports import lora
from unreel.exports.components import FOLDERS, file_name, name_in
from unreel.exports.pipeline import absent_parts
from unreel.files import write_text
from unreel.hashes import content_key
from unreel.models.model import Model
from unreel.page import SPLITS, doubts, score_rows
from unreel.records import Concept, Score
from unreel.runs import Run
from unreel.scores import read_scores
from unreel.sharing import Share

CARD = "README.md"
_UNSAID = "other"  # the hub's word for a licence that has no name there
_PACKAGE = Path(__file__).parents[1]
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~:@$]|(?<=www)\.)", re.IGNORECASE)  # < > & are entities by then


class Made(NamedTuple):
    """A saved edit: the folder of its file, the edit, and the models that it was made on and for."""

    where: Path
    edit: Edit
    share: Share


def plain(text: object) -> str:
    """A text as words in markdown: on one line, and nothing in it is HTML, a link, a table's cell or any other mark."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def paper_of(method: str) -> str:
    """The reference in the docs of a method's module, on one line; "" of a method that is not here or has none."""
    try:
        module = sys.modules[method_named(method).__module__]
    except ValueError:
        return ""
    found = re.search(r"^Reference: (.*?)(?=^\w[\w ]*:|\Z)", module.__doc__ or "", re.S | re.M)
    return " ".join(found[1].split()) if found else ""


def is_there(run: Path, licence: str | None) -> bool:
    """Whether a run folder has a card, and with this licence."""
    path = run / CARD
    return path.is_file() and ModelCard.load(path).data.license == (licence or _UNSAID)


def base_of(model: Model) -> list[str]:
    """What a model was loaded from, as far as others can get it: hub ids with revisions; no path of this machine."""
    said = []
    for source in getattr(model, "sources", {}).values():
        where, revision = source["pretrained_model_name_or_path"], source["revision"]
        if not source["local_files_only"]:
            said.append(f"{where}{f'@{revision}' if revision else ''}")
        else:
            said.append("unreel's zoo" if Path(where).absolute().is_relative_to(_PACKAGE) else "a local folder")
    return list(dict.fromkeys(said)) or ["a pipeline in memory"]


def base_hashes(edit: Edit) -> dict[str, str]:
    """Component -> one hash over the hashes of all its parameters as they were before the edit; 24 hex digits."""
    return {
        key: content_key(**{n: digest for n, digest in edit.base.items() if n.startswith(f"{key}/")})
        for key in edit.components
    }


def headline(scores: Sequence[Score]) -> dict[str, float]:
    """ "stage/split/recipient/concept/metric" -> value, of what was rendered before and after the edit."""
    return {
        f"{s.stage}/{s.split}/{s.t2v}/{s.concept}/{s.metric}": s.value for s in scores if s.stage in ("before", "after")
    }


def _evaluated(scores: Sequence[Score], task: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task, dataset_type="prompts", dataset_name=f"{s.split} prompts of {s.concept}, clips of {s.t2v}",
            dataset_config=f"{s.t2v}/{s.concept}", dataset_split=s.split,
            metric_type=s.metric, metric_name=s.metric.replace("_", " "), metric_value=round(s.value, 4),
        )
        for s in scores
        if s.stage == "after"
    ]  # fmt: skip


def _edit_said(made: Made, run: Path) -> dict[str, Any]:
    """What the template reads of one edit."""
    where, edit, share = made
    pipeline, below = share.maker.pipeline, where.relative_to(run).as_posix()
    parts = [name_in(share.maker, key) for key in edit.components]
    folders = [(name, type(getattr(pipeline, name))) for name in parts if (where / name).is_dir() and name in FOLDERS]
    models = {file_name(model.name): model for model in (share.maker, *share.recipients)}
    return {
        "edit": edit, "below": "" if below == "." else f"{below}/", "base": base_of(share.maker),
        "hashes": base_hashes(edit), "parts": parts, "for": [model.name for model in share.recipients],
        "folders": [(name, kind.__module__.partition(".")[0], kind.__name__) for name, kind in folders],
        "lora": lora.said_in(where / "lora"),
        "modelscope": (where / "lora").is_dir()
        and any(isinstance(m.components["denoiser"], UNet3DConditionModel) for m in models.values()),
        "files": {kind: sorted(path.relative_to(where).as_posix() for path in (where / kind).rglob("*.safetensors"))
                  for kind in ("lora", "comfyui")},
        "pipelines": {name: (models[name], absent_parts(models[name].pipeline)) for name in models
                      if (where / "pipeline" / name).is_dir()},
    }  # fmt: skip


def write(run: Run, edits: Sequence[Made], concepts: Sequence[Concept], licence: str | None) -> None:
    """Writes the card of a run whose scores and exports are there.

    Args:
        run: its folder.
        edits: what it made.
        concepts: what they erase.
        licence: as the hub calls it; None says that the base model's holds.
    """
    scores = read_scores(run.folder / "scores.jsonl")
    recipients = [model for made in edits for model in made.share.recipients]
    task = "text-to-video" if any(model.num_frames > 1 for model in recipients) else "text-to-image"
    method, donor = edits[0][1].method or run.config.method.name, run.config.t2i.name
    named = ", ".join(concept.slug for concept in concepts)
    hubs = [base for made in edits for base in base_of(made.share.maker) if "/" in base]
    data = ModelCardData(
        license=licence or _UNSAID, library_name="diffusers", pipeline_tag=task,
        base_model=list(dict.fromkeys(hub.partition("@")[0] for hub in hubs)) or None,
        tags=["unreel", "concept-erasure"] + ["lora"] * any((made.where / "lora").is_dir() for made in edits),
        model_name=f"{donor} without {named}", eval_results=_evaluated(scores, task) or None,
    )  # fmt: skip
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True
    )  # of markdown: `plain` escapes
    environment.filters |= {"plain": plain, "parsed": json.loads}
    text = environment.get_template("card.md.j2").render(
        donor=donor, named=named, concepts=concepts, method=method, paper=paper_of(method), licence=licence,
        config=run.config, rows=score_rows(scores), splits=SPLITS, doubts=doubts(scores),
        edits=[_edit_said(made, run.folder) for made in edits],
    )  # fmt: skip
    write_text(run.folder / CARD, f"---\n{data.to_yaml()}\n---\n{text}")
