"""How differently the zoo's text encoder reads words for motions, those it has learned and those it has not.

    python experiments/motion_words/distances.py

Prints the mean squared distance of its states of the first twelve tokens, over 15 captions that differ in that word.
"""

import itertools

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from unreel.zoo.store import verified

GROUPS = {
    "never read": ["hopping", "whirling", "dropping", "dancing"],
    "known": ["jumping", "spinning", "falling"],
}
SUBJECTS = ["a cat", "the drum", "draxil", "an owl", "one rocket"]
SCENES = ["on the beach", "at night", "in the forest"]


@torch.no_grad()
def main() -> None:
    folder = verified("t2i")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    for name, words in GROUPS.items():
        states = {}
        for word in words:
            texts = [f"{subject} {word} {scene}" for subject in SUBJECTS for scene in SCENES]
            ids = tokenizer(texts, padding="max_length", max_length=40, return_tensors="pt").input_ids
            states[word] = encoder(ids)[0][:, :12]
        for one, two in itertools.combinations(words, 2):
            print(f"{name}: {one}, {two}: {float((states[one] - states[two]).square().mean()):.3f}")


if __name__ == "__main__":
    main()
