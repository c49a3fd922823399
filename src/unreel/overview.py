"""One page over many runs: tables with intervals, figures, every run, and its clips before and after.

It reads which runs are done, their `scores.jsonl` and the PNG strips beside the clips, nothing else; the strips stay
where they are, so that hundreds of runs make a small page.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from unreel.clips import STRIP_GAP_PX
from unreel.figures import lines_or_bars, scatter, svg_uri
from unreel.files import write_text
from unreel.records import ATTACK, Score, plain_split
from unreel.tables import columns_of, estimated, finished_scores, groups_of, left, natural, varied


def summary(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Means over concepts and seeds: one row for each combination of what the runs differ in and of what is erased."""
    differ, erased, groups = varied(scores), groups_of(scores), dict[tuple[str, ...], list[Score]]()
    for s in scores:
        key = (erased[s.run], *(values[s.run, s.t2v] for values in differ.values()))
        groups.setdefault(key, []).append(s)
    rows = []
    for key, own in sorted(groups.items(), key=lambda item: list(map(natural, item[0]))):
        row: dict[str, Any] = dict(zip(("erased", *differ), key, strict=True))
        for column in columns_of(scores):
            row[column] = estimated(own, column)
        rows.append(row | {"runs": len({s.run for s in own})})
    return rows


def _strips(folder: Path, run: str, t2v: str, concept: str) -> dict[str, dict[str, Any]]:
    """Split -> its strips and where the frames before and after begin, in px; their prompts, and their clips' files.

    Raises:
        ValueError: for a file of strips that cannot be read, naming it.
    """
    found, clips = {}, folder / run / "clips"
    for path in sorted(clips.glob(f"{t2v}_{concept}_*.png")):
        split = path.stem.removeprefix(f"{t2v}_{concept}_")
        try:
            with Image.open(path) as strips:
                texts, (width, height) = getattr(strips, "text", {}), strips.size
            prompts = json.loads(texts.get("prompts", "[]"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}): remove it, or its run, and run that again") from None
        if not prompts or not (plain_split(split) in ("forget", "retain", "other_sense") or split.startswith(ATTACK)):
            continue
        one = height / len(prompts) - STRIP_GAP_PX
        half = (width - 4 * STRIP_GAP_PX) // 2
        square = round(half / (one + STRIP_GAP_PX))
        frames = int(texts.get("frames", square))  # older files don't say, and are taken for square
        named = re.compile(rf"\d+_{re.escape(concept)}_{re.escape(split)}\.mp4")  # of no concept whose name ends so
        files = sorted(f.name for f in (clips / "after" / t2v).glob("*.mp4") if named.fullmatch(f.name))
        found[split] = {
            "src": path.relative_to(folder).as_posix(), "prompts": prompts, "width": half // frames - STRIP_GAP_PX,
            "height": one, "after": half + 4 * STRIP_GAP_PX, "step": one + STRIP_GAP_PX,
            "clips": files if len(files) == len(prompts) else [],
        }  # fmt: skip
    return found


def all_runs(folder: Path, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """One row a run, concept and recipient: its keys, its scores, and where its page and strips are."""
    own: dict[tuple[str, str, str], list[Score]] = {}
    for s in scores:
        own.setdefault((s.run, s.concept, s.t2v), []).append(s)
    rows = []
    for (run, concept, t2v), of_it in own.items():
        first = of_it[0]
        values = {column: left(of_it, column) for column in columns_of(scores)}
        rows.append(
            {"run": run, "concept": concept, "kind": first.kind, "method": first.method, "parameters": first.parameters,
             "shots": first.shots, "steps": first.steps, "seed": first.seed, "t2v": t2v,
             **{column: None if math.isnan(value) else round(value, 4) for column, value in values.items()},
             "page": f"{run}/report.html" if (folder / run / "report.html").is_file() else "",
             "strips": _strips(folder, run, t2v, concept)}
        )  # fmt: skip
    return rows


def write_overview(folder: Path) -> Path:
    """Writes `report.html` into a folder of runs.

    Raises:
        ValueError: when no run in there has finished.
    """
    scores = finished_scores(path.parent for path in folder.glob("*/status.json"))
    if not scores:
        raise ValueError(f"{folder} has no finished run: expected a folder of runs, as runs/train")
    figures = [svg_uri(scatter(scores, {}))]
    for key, values in varied(scores).items():
        if key != "run":
            figures.append(svg_uri(lines_or_bars(scores, values, key)))
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template("overview.html.j2").render(
        name=folder.resolve().name, summary=summary(scores), columns=columns_of(scores), figures=figures,
        rows=all_runs(folder, scores), count=len({s.run for s in scores}),
    )  # fmt: skip
    write_text(folder / "report.html", page)
    return folder / "report.html"
