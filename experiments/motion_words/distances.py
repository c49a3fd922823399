"""How differently the zoo's text encoder reads words for motions, those it has learned and those it has not.

    python experiments/motion_words/distances.py

Prints the mean squared distance of its states of the first twelve tokens, over 15 captions that differ in that word.
"""

import itertools

import torch

from unreel.models.stable_diffusion import StableDiffusion
from unreel.zoo.store import verified

GROUPS = {
    "never read": ["hopping", "whirling", "dropping", "dancing"],
    "known": ["jumping", "spinning", "falling"],
}
SUBJECTS = ["a cat", "the drum", "draxil", "an owl", "one rocket"]
SCENES = ["on the beach", "at night", "in the forest"]
FIRST = 12  # tokens


@torch.no_grad()
def main() -> None:
    model = StableDiffusion(verified("t2i"))
    for name, words in GROUPS.items():
        texts = {w: [f"{subject} {w} {scene}" for subject in SUBJECTS for scene in SCENES] for w in words}
        states = {w: model.encode_prompt(said)["prompt_embeds"][:, :FIRST] for w, said in texts.items()}
        for one, two in itertools.combinations(words, 2):
            print(f"{name}: {one}, {two}: {float((states[one] - states[two]).square().mean()):.3f}")


if __name__ == "__main__":
    main()
