"""Writes the table of all questions, from the folders that the commands of README.md left.

    python experiments/motion_words/table.py runs/motion_words*     # -> questions.md, questions.jsonl

A row is a question, a donor (zoo: stills, zoo_unet3d: clips) and a method. "forget" is what the judge sees of it;
"motion seen", what takes its place and "other motion" (of two) are read without training.
"""

import sys
from pathlib import Path

from unreel.files import write_text
from unreel.scores import write_scores
from unreel.tables import finished_scores, markdown

if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: python experiments/motion_words/table.py RUNS/SLUG ...")
    here = Path(__file__).parent
    scores = finished_scores(run for name in sys.argv[1:] for run in Path(name).glob("*"))
    if not scores:
        raise SystemExit(f"found no finished run in {', '.join(sys.argv[1:])}: expected folders of runs")
    text = markdown(scores, lambda s: (s.slug.removesuffix("_clips"), s.t2i, s.method), ("question", "donor", "method"))
    write_scores(here / "questions.jsonl", scores)
    write_text(here / "questions.md", text)
    print(text)
