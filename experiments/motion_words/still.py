"""Does the zoo's UNet3D stand still when a prompt says no motion?

    python experiments/motion_words/still.py

Renders 24 prompts of a subject and a scene in 8 steps and counts what the judge of motion sees; a minute on two cores.
"""

from collections import Counter

import numpy as np

from unreel.zoo.readings import Settings, Zoo
from unreel.zoo.store import MODELS
from unreel.zoo.words import IMPLIED, SUBJECTS, candidates, word

COUNT = 24


def main() -> None:
    rng, zoo = np.random.default_rng(3), Zoo(MODELS, Settings(steps=8))
    subjects = [w.name for w in SUBJECTS if w.name not in IMPLIED]
    drawn = [(str(rng.choice(subjects)), str(rng.choice(candidates("scene")))) for _ in range(COUNT)]
    prompts = [f"{word('subject', subject).phrases[0]} {word('scene', scene).phrases[0]}" for subject, scene in drawn]
    seen = zoo.judge.names("motion", zoo.models["zoo_unet3d"].render(prompts, range(COUNT)))
    print(", ".join(f"{name}: {count} of {COUNT}" for name, count in Counter(seen).most_common()))


if __name__ == "__main__":
    main()
