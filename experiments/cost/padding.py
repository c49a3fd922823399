"""Forward and backward of a training's 40 captions through the zoo's T5, with padding to 120 tokens and without.

python experiments/cost/padding.py   # one thread, both in turns: a machine that slows down favours neither
"""

from contextlib import nullcontext
from statistics import median

import torch
from benchmark import timed

from unreel.models.padding import unpadded
from unreel.models.pixart import PixArt
from unreel.zoo.store import verified

CAPTIONS = ["a cat on the beach at night, in the style of van gogh, jumping"] * 40


def main() -> None:
    torch.set_num_threads(1)
    model = PixArt(verified("pixart"))
    encoder = model.components["text_encoder"].requires_grad_(True)
    ids, mask = model.tokenized(CAPTIONS)

    def step() -> None:
        encoder(ids, attention_mask=mask).last_hidden_state.square().mean().backward()

    ways = {"padded": nullcontext, "unpadded": lambda: unpadded(encoder, model.reading)}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(8):
        for way, context in ways.items():
            with context():
                spent[way].append(timed(step, 1))
    padded, cut = (median(seconds[1:]) for seconds in spent.values())  # the first of each chooses its kernels
    print(f"{mask.sum(1).max()} of {mask.shape[1]} tokens are read")
    print(f"{padded * 1e3:.0f} ms with padding, {cut * 1e3:.0f} ms without: {padded / cut:.1f} times as fast")


if __name__ == "__main__":
    main()
