"""How often the unedited model shows a concept that it is not asked for: the floor of erasing towards an anchor.

    python experiments/guard_strength/floor.py [CONCEPT ...]

Renders the forget prompts of each concept as images, with the anchor in the concept's place, and asks both judges.
"""

import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from unreel import assembly, door
from unreel.captions import TrainingCaptions
from unreel.vocabulary import say
from unreel.zoo.cnn_judge import CnnJudge
from unreel.zoo.store import verified

ROOT, PROMPTS, AT_A_TIME = Path(__file__).resolve().parents[2], 24, 8


def shares(name: str) -> list[float]:
    """The share of images in which the run's judge sees the concept, and that of the second judge."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"concept={name}", "t2v=[zoo_images]", f"evaluation.prompts={PROMPTS}"])
    questions, (model,) = door.questions_of(config), assembly.recipients_of(config, "cpu")
    (concept,) = questions.concepts
    anchor = TrainingCaptions(concept, questions.surroundings).anchor
    asked = [(p, seed) for p, seed in zip(questions.prompts, questions.seeds, strict=True) if p.split == "forget"]
    texts = [say(dict(p.shows) | {concept.part: anchor}) for p, _ in asked]
    seeds = [seed for _, seed in asked]
    starts = range(0, len(texts), AT_A_TIME)
    clips = torch.cat([model.render(texts[i : i + AT_A_TIME], seeds[i : i + AT_A_TIME]) for i in starts])
    judges = [assembly.judge_of(config, questions, [model], "cpu"), CnnJudge.from_folder(verified("cnn_judge"))]
    found = [[name == judge.name_of(concept.part, concept.phrases[0]) for name in judge.names(concept.part, clips)]
             for judge in judges]  # fmt: skip
    return [sum(seen) / len(seen) for seen in found]


if __name__ == "__main__":
    names = sys.argv[1:] or ["wispo", "greta_holm", "draxil", "drum", "cat", "omar_sayed"]
    both = [(name, *shares(name)) for name in names]
    for name, first, second in both:
        print(f"{name}: {first:.1%}, by the second judge {second:.1%}")
    means = [sum(row[i] for row in both) / len(both) for i in (1, 2)]
    print(f"mean: {means[0]:.1%}, by the second judge {means[1]:.1%}")
