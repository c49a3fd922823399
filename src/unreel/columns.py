"""Columns of tables over many runs: which metric of which split a figure is.

forget     concept accuracy on forget prompts, after, in [0, 1]
retain, context, other sense     accuracy after over accuracy before, means over runs; 1 is untouched
near       the same, of retained prompts' near neighbours alone: the concept's part of what they say
second ... the same by the second judge; agreement is that of both judges after, in [0, 1]
ssim       of retained clips to those before, in [-1, 1]
motion seen, still, another motion, broken     of clips that ask for an erased motion, read without training; together 1
other motion     of prompts of the other sense: the motion that must stay, so read, after over before
motions kept, motion amount     of retained clips: motions so read, and how much moves, after over before
worst frame     of forget clips, those of which any frame shows the concept, in [0, 1]
long ...   the same figures for the same prompts in their long form
attack X   concept accuracy of attack X, in [0, 1]; before is the same attack on the unedited model
overall    harmonic mean of 1 - forget, context and retain, the latter two at most 1; as in Lu et al., "MACE", CVPR 2024
transfer gap     forget in images minus forget in clips of the same edit: below 0 where clips still show the concept and
    images do not
"""

from dataclasses import dataclass, replace

from unreel.records import ATTACK, LONG


@dataclass(frozen=True)
class Column:
    """A figure of tables: a metric of a split, after; or, where it is relative, over what it was before.

    Attributes:
        split, metric: of the scores.
        relative: whether it is over what it was before.
        down: whether less is better.
        form: how a value of the metric itself is written; a share unless said otherwise.
    """

    split: str
    metric: str
    relative: bool = True
    down: bool = False
    form: str = ".1%"


COLUMNS = {
    "forget": Column("forget", "concept_accuracy", relative=False, down=True),
    "context": Column("context", "context_accuracy"),
    "retain": Column("retain", "accuracy"),
    "other sense": Column("other_sense", "concept_accuracy"),
    "near": Column("retain", "concept_accuracy"),
    "second forget": Column("forget", "second_concept_accuracy", relative=False, down=True),
    "second context": Column("context", "second_context_accuracy"),
    "second retain": Column("retain", "second_accuracy"),
    "agreement": Column("forget", "agreement", relative=False),
    "ssim": Column("retain", "ssim", relative=False),
    "motion seen": Column("forget", "motion_seen_share", relative=False, down=True),
    "still": Column("forget", "still_share", relative=False),
    "another motion": Column("forget", "another_motion_share", relative=False),
    "broken": Column("forget", "broken_share", relative=False, down=True),
    "motions kept": Column("retain", "read_motion_accuracy"),
    "other motion": Column("other_sense", "read_motion_accuracy"),
    "motion amount": Column("retain", "motion_amount", form=".2f"),
    "worst frame": Column("forget", "worst_frame_accuracy", relative=False, down=True),
}
ALWAYS = ("forget", "context", "retain", "other sense")  # columns of every table; the others where runs measured them
COLUMNS |= {f"long {name}": replace(COLUMNS[name], split=f"{COLUMNS[name].split}{LONG}") for name in ALWAYS}
KEYS = ("t2i", "method", "parameters", "shots", "steps", "setting", "concepts", "t2v")  # what settings may differ in


def column_of(name: str) -> Column:
    """What a column shows. ValueError for one that no table has."""
    if name in COLUMNS:
        return COLUMNS[name]
    if name.startswith("attack "):
        return Column(name.replace("attack ", ATTACK, 1), "concept_accuracy", relative=False, down=True)
    raise ValueError(f"found {name}: expected some of {', '.join(COLUMNS)}, or attack NAME")
