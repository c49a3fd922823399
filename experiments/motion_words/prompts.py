"""Writes the prompts of four harder questions about motion, in the words of the zoo's second generation.

    python experiments/motion_words/prompts.py

two.csv         two motions at once, of which one is erased; the split other_sense asks whether the other one stays
implied.csv     a subject that moves so when nothing is said; kept is the same subject with other motions
known.csv       another phrase for the erased motion that the text encoder has read; kept are the other motions
dance.csv       a dance that characters and people do and nothing else does; kept is what they do besides
"""

import csv
from pathlib import Path

import numpy as np

from unreel.zoo.words import DANCERS, HARDER, IMPLIED, SUBJECTS, at_once, candidates, word

ONE_OF_TWO = ("jumping", "spinning", "falling")  # what conf/experiment/motion_words.yaml erases of two at once
COUNT = 8  # prompts of a concept and split
SLUGS = {"moving left": "moving_left", "moving right": "moving_right"}  # concepts not called as their motions are


def row(concept: str, split: str, subject: str, motion: str, said: str, scene: str) -> dict[str, str]:
    """A prompt that says `said`, and what it shows; forget prompts show the concept, which a run knows."""
    subject, scene = word("subject", subject).phrases[0], word("scene", scene).phrases[0]
    text = " ".join(part for part in (subject, said, scene) if part)
    motion = "" if split == "forget" else motion
    return {"prompt": text, "split": split, "concept": concept, "subject": subject, "motion": motion, "scene": scene}


class Writer:
    """Rows with subjects and scenes that take turns, always the same."""

    def __init__(self, seed: int) -> None:
        self.rng, self.rows = np.random.default_rng(seed), list[dict[str, str]]()

    def add(self, concept: str, split: str, motions: list[str], said: list[str], subjects: list[str]) -> None:
        """COUNT prompts of a split: motion i % n, said as said[i % n] of a random subject in a random scene."""
        scenes = self.rng.permutation(candidates("scene"))
        for i in range(COUNT):
            subject, scene = str(self.rng.choice(subjects)), str(scenes[i % len(scenes)])
            self.rows.append(row(concept, split, subject, motions[i % len(motions)], said[i % len(said)], scene))

    def write(self, name: str) -> None:
        """The rows as a file beside this one."""
        with Path(__file__).with_name(name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


def main() -> None:
    things = [w.name for w in SUBJECTS if w.group == "object" and w.name not in IMPLIED]
    dancers = [w.name for w in SUBJECTS if w.group in DANCERS]
    plain = [name for name in candidates("motion") if name != "still"]

    two, implied, dance, known = (Writer(seed) for seed in range(1, 5))
    for motion in ONE_OF_TWO:
        pair = next(w for w in HARDER if w.group == "two" and motion in at_once(w.name))
        other = next(part for part in at_once(pair.name) if part != motion)
        two.add(motion, "forget", [motion], list(pair.phrases), things)
        two.rows += [{**r, "split": "other_sense", "motion": other} for r in two.rows[-COUNT:]]
        two.add(motion, "retain", (kept := [name for name in plain if name != motion]), kept, things)
    for motion in SLUGS:
        kept = [name for name in plain if name != motion]
        known.add(SLUGS[motion], "forget", [motion], [word("motion", motion).phrases[-1]], things)
        known.add(SLUGS[motion], "retain", kept, kept, things)
    for subject, motion in IMPLIED.items():
        concept, kept = SLUGS.get(motion, motion), [name for name in plain if name != motion]
        implied.add(concept, "forget", [motion], [""], [subject])
        implied.add(concept, "retain", kept, kept, [subject])
    dance.add("dancing", "forget", ["dancing"], [word("motion", "dancing").phrases[0]], dancers)
    dance.add("dancing", "retain", plain, plain, dancers)
    for name, writer in {"two": two, "implied": implied, "dance": dance, "known": known}.items():
        writer.write(f"{name}.csv")


if __name__ == "__main__":
    main()
