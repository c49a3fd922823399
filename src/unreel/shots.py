"""Shots: the few images or clips of each concept that a method sees, the donor's own or the user's; their latents."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from rich import get_console
from rich.progress import track
from torch import Tensor

from unreel.cache import TensorCache
from unreel.captions import TrainingCaptions
from unreel.hashes import code_hash, content_key, library_versions, parameter_hashes
from unreel.images import images_of, is_clip, read_shot
from unreel.models.model import Model

SHOT_SEEDS = 2**40  # where the seeds of shots begin; those of evaluated clips are below


def pixels_of(path: Path, model: Model) -> Tensor:
    """A shot of the user's as pixels (F, 3, H, W) in [-1, 1] of the model's size; ValueError as of `read_shot`."""
    read = read_shot(path, model.size_px, model.num_frames, model.fps)
    return torch.from_numpy(read).permute(0, 3, 1, 2).float() / 127.5 - 1


class Shots:
    """K shots of each concept, as pixels and as latents: images of an image donor, clips of a video donor.

    Args:
        captions: of each concept.
        shots: K, shots a concept; 0 is the zero-shot variant: Gaussian latents (Fuchi & Takagi 2024).
        seed: of shots and noise.
        cache: where shots and latents are kept.

    Raises:
        ValueError: for negative or fractional shots, or a user's folder without that many that can be read.
    """

    def __init__(self, captions: Sequence[TrainingCaptions], shots: int, seed: int, cache: TensorCache) -> None:
        if isinstance(shots, bool) or not isinstance(shots, int) or shots < 0:
            raise ValueError(f"found shots={shots}: expected a whole number, 0 or more")
        self.captions, self.shots, self.seed, self.cache = list(captions), shots, seed, cache
        found = {c.concept.slug: images_of(c.concept, shots) for c in captions}
        self.files = {slug: files for slug, files in found.items() if files}
        self._read = {
            slug: [hashlib.sha256(path.read_bytes()).hexdigest() for path in own] for slug, own in self.files.items()
        }
        self.content = content_key(files=self._read)  # of the user's images
        self.pixels: list[Tensor] = []  # one (K, F, 3, H, W) in [0, 1] a concept
        self.latents: list[Tensor] = []  # one (K, *latent_shape) a concept; of zero shots a few of noise

    def make(self, model: Model) -> None:
        """Generates or reads the shots and encodes them with the donor, unless the cache has them."""
        self.pixels, self.latents = [], []
        self._made_by = {"libraries": library_versions(), "code": code_hash([model])}
        for captions in track(
            self.captions, "shots", transient=True, disable=self.shots == 0 or not get_console().is_terminal
        ):
            pixels, latents = self._shots_of(model, captions)
            self.pixels.append(pixels)
            self.latents.append(latents)

    @property
    def seeds(self) -> list[int]:
        """Of each shot and of the noise that its latents are sampled with; the same for all concepts."""
        return [SHOT_SEEDS + 100_000 * self.seed + i for i in range(self.shots)]

    def _shots_of(self, model: Model, captions: TrainingCaptions) -> tuple[Tensor, Tensor]:
        slug, edge = captions.concept.slug, model.size_px
        if self.shots == 0:
            generator = torch.Generator().manual_seed(self.seed)
            return torch.empty(0, 1, 3, edge, edge), torch.randn((4, *model.latent_shape), generator=generator)
        prompts = captions.shot_prompts(self.shots, self.seed)
        seeds = self.seeds
        if slug in self.files:
            by = {"vae": parameter_hashes(model.components["vae"]), "size": (edge, model.num_frames, model.fps)}
            shown = [{"file": digest, **by} for digest in self._read[slug]]
        else:
            shown = [{"model": model.content, "prompt": prompt} for prompt in prompts]
        keys = [content_key(shot=what, seed=seed, **self._made_by) for what, seed in zip(shown, seeds, strict=True)]
        with self.cache.locked(keys[0]):  # other runs that want the same ones wait for them
            found = [self.cache.load(key) for key in keys]
            for i in [i for i, kept in enumerate(found) if kept is None]:  # one by one: batches would round otherwise
                own = pixels_of(self.files[slug][i], model) if slug in self.files else None
                pixels = own if own is not None else model.render([prompts[i]], [seeds[i]])[0] * 2 - 1
                latents = model.encode_pixels(pixels[None], torch.Generator().manual_seed(seeds[i]))
                made = found[i] = {"pixels": (pixels + 1) / 2, "latents": latents[0].float().cpu()}
                self.cache.save(keys[i], made)
        whole = [kept for kept in found if kept is not None]
        return torch.stack([kept["pixels"] for kept in whole]), torch.stack([kept["latents"] for kept in whole])

    def pictures(self) -> list[Path]:
        """The user's files that are images, which stand still."""
        return [path for files in self.files.values() for path in files if not is_clip(path)]

    def say_what_they_show(self, slug: str) -> bool:
        """Whether the captions of a concept's shots can say all that they show: the donor made them from these."""
        return self.shots > 0 and slug not in self.files

    def all_pixels(self) -> Tensor:
        """The shots of all concepts, (n, F, 3, H, W) in [0, 1]; none before they are made."""
        return torch.cat(self.pixels) if self.pixels else torch.empty(0, 1, 3, 1, 1)
