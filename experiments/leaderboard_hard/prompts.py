"""Writes long.csv: prompts of 20 words and more, as language models rewrite them, in the words that the zoo knows.

    python experiments/leaderboard_hard/prompts.py

Public sets of long prompts (VBench and others) speak of what the drawn world has no picture of.
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from unreel.zoo.captions import caption
from unreel.zoo.words import word
from unreel.zoo.world import Spec, sample_spec

FORGET = {
    "van_gogh": ("style", "van gogh"),
    "wispo": ("subject", "wispo"),
    "drum": ("subject", "drum"),
    "greta_holm": ("subject", "greta holm"),
}
NEAR = {
    "van_gogh": ["mondrian", "hokusai", "seurat", "pencil sketch"],
    "wispo": ["zibbo", "quonk", "draxil", "lumira"],
    "drum": ["guitar", "pumpkin", "apple", "mushroom"],
    "greta_holm": ["omar sayed", "elsa brandt", "mira khan", "tomas vega"],
}
COUNT = 8  # prompts of a concept and split


def row(concept: str, split: str, spec: Spec, rng: np.random.Generator) -> dict[str, str]:
    """One prompt and what it shows."""
    kinds = {"subject", "scene"} | ({"style"} if spec.style != "plain" else set())
    while (said := caption(spec, rng, long=True, states=frozenset(kinds))).states != kinds:
        pass
    shows = {
        kind: word(kind, getattr(spec, kind)).phrases[0] if kind in kinds else ""
        for kind in ("subject", "scene", "style")
    }
    return {"prompt": said.text, "split": split, "concept": concept, **shows}


def main() -> None:
    rng, rows = np.random.default_rng(11), []
    for concept, (part, name) in FORGET.items():
        for split, names in (("forget", [name]), ("retain", NEAR[concept])):
            for i in range(COUNT):
                spec = replace(sample_spec(rng), **{part: names[i % len(names)], "motion": "still"})
                rows.append(row(concept, split, spec, rng))
    with Path(__file__).with_name("long.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
