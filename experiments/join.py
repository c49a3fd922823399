"""Joins finished runs to the rows of a written experiment, and makes its tables and figures anew.

    python train.py experiment=leaderboard method=uce         # a part of it: its tables go to runs/leaderboard/tables
    python experiments/join.py leaderboard runs/leaderboard   # its rows beside the others, in experiments/leaderboard

A run takes the place of all rows of the same concepts, donor, recipient, method, settings and seed, if it measured all
that they did.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from unreel.records import Score
from unreel.results import write_tables
from unreel.scores import read_scores
from unreel.tables import finished_scores

ROOT = Path(__file__).resolve().parents[1]
SAME = ("t2i", "t2v", "method", "parameters", "shots", "seed", "setting")  # and what the experiment is drawn by


def answers(scores: Sequence[Score], by: str) -> dict[tuple[str, str], tuple[Any, ...]]:
    """(run, recipient) -> what it answers."""
    concepts: dict[str, set[str]] = defaultdict(set)
    for s in scores:
        concepts[s.run].add(s.concept)
    keys = (*SAME, by) if by in Score.__dataclass_fields__ else SAME
    return {(s.run, s.t2v): (frozenset(concepts[s.run]), *(getattr(s, key) for key in keys)) for s in scores}


def join(name: str, runs: Path) -> str:
    """What was done, in a line. ValueError: no such experiment, no finished run of it, runs that measured less."""
    written = ROOT / "conf" / "experiment" / f"{name}.yaml"
    if not written.is_file():
        raise ValueError(f"found no experiment {name}: expected the name of a file in {written.parent}")
    sweep = OmegaConf.to_container(OmegaConf.load(written))["hydra"]["callbacks"]["sweep"]
    new = [s for s in finished_scores(runs.glob("*")) if s.slug == name]
    if not new:
        raise ValueError(f"found no finished run of experiment={name} in {runs}: run a part of it first")
    folder, by = ROOT / sweep["folder"], sweep.get("by", "")
    old = read_scores(folder / "scores.jsonl") if (folder / "scores.jsonl").is_file() else []
    answered, before = set(answers(new, by).values()), answers(old, by)
    kept = [s for s in old if before[s.run, s.t2v] not in answered]
    replaced = {(s.split, s.metric) for s in old if before[s.run, s.t2v] in answered}
    if lost := replaced - {(s.split, s.metric) for s in new}:
        raise ValueError(
            f"found runs in {runs} that would replace rows without measuring {' '.join(min(lost))}, as those do: "
            f"expected runs with all of it; the tables of a part alone are in {runs / 'tables'}"
        )
    scores = kept + new  # those of before stay where they are
    write_tables(scores, folder, sweep.get("bars") or {}, sweep.get("images", ""), by)
    joined, stays, was, runs_now = ({s.run for s in some} for some in (new, kept, old, scores))
    return f"{len(joined)} runs joined, {len(was - stays)} replaced, {len(runs_now)} in {folder / 'table.md'}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python experiments/join.py EXPERIMENT RUNS/SLUG")
    try:
        print(join(sys.argv[1], Path(sys.argv[2])))
    except ValueError as error:
        raise SystemExit(f"join: {error}") from None
