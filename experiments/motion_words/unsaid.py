"""Where an edit moves captions that say no motion at all: towards "standing still", away from the erased motion?

    python experiments/motion_words/unsaid.py falling runs/motion_words_implied/falling-*/edit.safetensors

Prints how far the edit moves "a parachute at sunset" on the way to "a parachute standing still at sunset", and to "a
parachute falling at sunset": a share of it, mean over scenes, by the states of the last 24 tokens (padding, which
carries the sentence).
"""

import sys

import torch
from torch import Tensor

from unreel.edits import Edit
from unreel.models.stable_diffusion import StableDiffusion
from unreel.zoo.store import verified
from unreel.zoo.words import candidates, word

SUBJECTS = ["a parachute", "a crab", "a drum", "a rocket", "a butterfly", "a car"]
LAST = 24  # tokens


def share(way: Tensor, moved: Tensor) -> float:
    """Mean length of the projection of `moved` on `way`, in lengths of `way`; rows are captions."""
    way, moved = way.flatten(1), moved.flatten(1)
    return float(((way * moved).sum(1) / way.square().sum(1)).mean())


@torch.no_grad()
def main(motion: str, paths: list[str]) -> None:
    model = StableDiffusion(verified("t2i"))
    scenes = [word("scene", name).phrases[0] for name in candidates("scene")]

    def states(subject: str, said: str) -> Tensor:
        texts = [" ".join(part for part in (subject, said, scene) if part) for scene in scenes]
        return model.encode_prompt(texts)["prompt_embeds"][:, -LAST:]

    for path in paths:
        edit = Edit.load(path)
        print(path)
        for subject in SUBJECTS:
            unsaid, still, asked = (states(subject, said) for said in ("", "standing still", motion))
            with edit.applied(model):
                moved = states(subject, "") - unsaid
            shares = share(still - unsaid, moved), share(asked - unsaid, moved)
            print(f"  {subject}: {shares[0]:+.2f} to still, {shares[1]:+.2f} to {motion}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit("usage: python experiments/motion_words/unsaid.py MOTION EDIT ...")
    main(sys.argv[1], sys.argv[2:])
