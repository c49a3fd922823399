"""Writes the table of all questions, from the folders that the commands of README.md left.

    python experiments/motion_words/table.py runs/motion_words*     # -> questions.md, questions.jsonl

A row is a question and a method: means over its runs, before -> after. "Seen", what is kept of the motion's own prompts
and of others are the judge's; what takes its place and "the other motion" (of two) are read without training.
"""

import sys
from pathlib import Path

import pandas as pd

from unreel.files import write_text
from unreel.records import Score
from unreel.scores import write_scores
from unreel.tables import finished_scores

COLUMNS = {
    "seen": ("forget", "concept_accuracy"),
    "stands still": ("forget", "still_share"),
    "another motion": ("forget", "another_motion_share"),
    "broken": ("forget", "broken_share"),
    "the other motion": ("other_sense", "read_motion_accuracy"),
    "the rest of its prompts": ("context", "context_accuracy"),
    "other prompts": ("retain", "accuracy"),
}


def table(scores: list[Score]) -> pd.DataFrame:
    """A row for each slug, donor and method, a column for each of COLUMNS, as text."""
    rows = pd.DataFrame([vars(s) | {"key": (s.split, s.metric)} for s in scores])
    keys = ["slug", "t2i", "method", "key", "stage"]
    means = rows[rows.key.isin(COLUMNS.values())].groupby(keys)["value"].mean().unstack("stage")
    said = means.apply(
        lambda row: " -> ".join(f"{100 * row[stage]:.0f}" for stage in ("before", "after")) + " %", axis=1
    )
    found = said.unstack("key").rename(columns={key: name for name, key in COLUMNS.items()})
    found["runs"] = rows.groupby(keys[:3])["run"].nunique().astype(str)
    return found.reindex(columns=[*COLUMNS, "runs"]).fillna("–")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: python experiments/motion_words/table.py RUNS/SLUG ...")
    here = Path(__file__).parent
    read = finished_scores(run for name in sys.argv[1:] for run in Path(name).glob("*"))
    if not read:
        raise SystemExit(f"found no finished run in {', '.join(sys.argv[1:])}: expected folders of runs")
    found = table(read).reset_index()
    lines = [found.columns, ["---"] * len(found.columns), *found.values]
    write_scores(here / "questions.jsonl", read)
    write_text(here / "questions.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))
    print(found.to_string(index=False))
