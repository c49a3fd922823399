"""Shots: the few images of each concept that the training sees, and the batches that are made of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from unreel.cache import TensorCache, content_key
from unreel.concepts import TrainingCaptions
from unreel.donors import Donor
from unreel.edits import tensor_hash

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SHOT_SEEDS = 2**40  # where the seeds of shots begin; those of evaluated clips are below
_MOST_PIXELS = 64_000_000


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        latents: clean latents of shots, (b, c, h, w).
        noise: (b, c, h, w).
        timesteps: (b,) integers.
        forget: captions that name the concept; the first b belong to the latents, and say what a generated shot shows.
        anchors: the same captions with the anchor in its place.
        retain: captions that must keep their meaning.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    forget: list[str]
    anchors: list[str]
    retain: list[str]

    def share(self, rank: int, processes: int) -> "Batch":
        """What one of several processes gets of it: every so many-th shot with its captions, and of the others."""
        count, own = len(self.latents), slice(rank, None, processes)
        forget, anchors = (said[:count][own] + said[count:][own] for said in (self.forget, self.anchors))
        return Batch(self.latents[own], self.noise[own], self.timesteps[own], forget, anchors, self.retain[own])


class Embeds:
    """Embeddings of a batch's captions, (captions, L, D), made when they are first asked for: each caption once.

    Attributes:
        forget, retain: by the text encoder that is trained, with gradient.
        anchors, kept: of the anchors and the retained captions, by the reference, without.
    """

    def __init__(self, donor: Donor, batch: Batch, reference: nn.Module) -> None:
        self.donor, self.batch, self.reference = donor, batch, reference

    def _with_retain(self, texts: list[str], encoder: nn.Module) -> tuple[Tensor, ...]:
        both = self.donor.encode_prompt(texts + self.batch.retain, encoder)
        return both.split([len(texts), len(self.batch.retain)])

    @cached_property
    def _trained(self) -> tuple[Tensor, ...]:
        return self._with_retain(self.batch.forget, self.donor.text_encoder)

    @cached_property
    @torch.no_grad()
    def _frozen(self) -> tuple[Tensor, ...]:
        return self._with_retain(self.batch.anchors, self.reference)

    @property
    def forget(self) -> Tensor:
        return self._trained[0]

    @property
    def retain(self) -> Tensor:
        return self._trained[1]

    @property
    def anchors(self) -> Tensor:
        return self._frozen[0]

    @property
    def kept(self) -> Tensor:
        return self._frozen[1]


def image_files(folder: Path) -> list[Path]:
    """The image files of a user's folder, in order of their names. ValueError when there are none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: expected one with images of the concept")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} has no image: expected files that end in {', '.join(SUFFIXES)}")
    return files


def read_image(path: Path, size_px: int) -> Tensor:
    """One image as pixels (3, size_px, size_px) in [-1, 1]: upright, on white where it is transparent, cut to a square.

    Raises:
        ValueError: when it cannot be decoded or is larger than 64 million pixels, naming it.
    """
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise ValueError(
                    f"{path} has {opened.width} x {opened.height} px: expected at most {_MOST_PIXELS:,} px"
                )
            upright = ImageOps.exif_transpose(opened)
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
                upright = Image.fromarray((np.asarray(upright) / 257).round().astype(np.uint8))
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            square = ImageOps.fit(upright.convert("RGB"), (size_px, size_px), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): repair or remove it") from None
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1


class Shots(pl.LightningDataModule):
    """K images of each concept as latents, and training batches from them.

    Args:
        captions: of each concept.
        shots: K, images a concept; 0 is the zero-shot variant: Gaussian latents (card 2; the released code is uniform).
        steps, epochs: batches in all, or rounds through the shots; one of the two.
        batch: shots a step, each with a caption.
        pairs: captions a step beside those, for losses on embeddings alone.
        retain: retained captions a step.
        seed: of images, noise and captions.
        cache: where generated images and latents are kept.

    Raises:
        ValueError: for negative or fractional shots, other numbers that will not do, or a user's folder without that
            many images.
    """

    def __init__(
        self,
        captions: Sequence[TrainingCaptions],
        shots: int,
        steps: int | None,
        epochs: int | None,
        batch: int,
        pairs: int,
        retain: int,
        seed: int,
        cache: TensorCache,
    ) -> None:
        super().__init__()
        if isinstance(shots, bool) or not isinstance(shots, int) or shots < 0:
            raise ValueError(f"found shots={shots}: expected a whole number, 0 or more")
        if (steps is None) == (epochs is None) or (steps or epochs or 0) < 1 or batch < 1 or min(pairs, retain) < 0:
            raise ValueError(f"found steps={steps}, epochs={epochs}, batch={batch}, pairs={pairs}, retain={retain}:"
                             " expected steps or epochs, a batch of 1 or more, and no negative number")  # fmt: skip
        self.captions, self.shots, self.seed, self.cache = list(captions), shots, seed, cache
        self.batch_size, self.pairs, self.retain = batch, pairs, retain
        a_round = -(-len(captions) * (shots or batch) // batch)
        self.steps = steps if steps is not None else (epochs or 0) * a_round
        self.files: dict[str, list[Path]] = {}
        for concept in (c.concept for c in captions):
            if concept.images is not None:
                files = image_files(concept.images)
                if len(files) < shots:
                    raise ValueError(
                        f"{concept.images} has {len(files)} images: expected shots={shots}; lower shots or add some"
                    )
                self.files[concept.slug] = files[:shots]
                for path in files[:shots]:  # a bad one is named now; they are read again at the donor's size
                    read_image(path, 8)
        read = {
            slug: [hashlib.sha256(path.read_bytes()).hexdigest() for path in own] for slug, own in self.files.items()
        }
        self.content = content_key(files=read)  # of the user's images
        self.donor: Donor
        self.pixels: list[Tensor] = []  # one (K, 3, H, W) in [0, 1] a concept
        self.latents: list[Tensor] = []  # one (K, c, h, w) a concept

    def make(self, donor: Donor) -> None:
        """Generates or reads the shots and encodes them with the donor, unless the cache has them."""
        self.donor = donor
        for captions in track(self.captions, "shots", transient=True, disable=self.shots == 0):
            pixels, latents = self._shots_of(captions)
            self.pixels.append(pixels)
            self.latents.append(latents)

    def _shots_of(self, captions: TrainingCaptions) -> tuple[Tensor, Tensor]:
        donor, slug = self.donor, captions.concept.slug
        size, generator = donor.unet.config.sample_size, torch.Generator().manual_seed(self.seed)
        if self.shots == 0:
            shape = (max(self.batch_size, 4), donor.unet.config.in_channels, size, size)
            return torch.empty(0, 3, donor.size_px, donor.size_px), torch.randn(shape, generator=generator)
        prompts = captions.shot_prompts(self.shots, self.seed)
        seeds = [SHOT_SEEDS + 100_000 * self.seed + i for i in range(self.shots)]
        if slug in self.files:
            images = [read_image(path, donor.size_px) for path in self.files[slug]]
            keys = [
                content_key(image=tensor_hash(image), vae=donor.vae_hash, seed=seed)
                for image, seed in zip(images, seeds, strict=True)
            ]
        else:
            images = []
            keys = [
                content_key(donor=donor.content, prompt=prompt, seed=seed)
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
        with self.cache.locked(keys[0]):  # other runs that want the same ones wait for them
            found = [self.cache.load(key) for key in keys]
            for i in [i for i, kept in enumerate(found) if kept is None]:  # one by one: batches would round otherwise
                pixels = images[i] if images else donor.generate([prompts[i]], [seeds[i]])[0] * 2 - 1
                latents = donor.encode_pixels(pixels[None], torch.Generator().manual_seed(seeds[i]))
                made = found[i] = {"pixels": (pixels + 1) / 2, "latents": latents[0].float().cpu()}
                self.cache.save(keys[i], made)
        whole = [kept for kept in found if kept is not None]
        return torch.stack([kept["pixels"] for kept in whole]), torch.stack([kept["latents"] for kept in whole])

    @property
    def numbers(self) -> dict[str, int]:
        """How many shots, pairs and retained captions a batch has."""
        each = -(-self.retain // len(self.captions))  # of each concept
        return {"batch": self.batch_size, "pairs": self.pairs, "retain": each * len(self.captions)}

    def all_pixels(self) -> Tensor:
        """The shots of all concepts, (n, 3, H, W) in [0, 1]."""
        return torch.cat(self.pixels)

    def batch(self, step: int) -> Batch:
        """The batch of one step: it depends on seed and step only, so a resumed run sees what it would have seen."""
        rng = np.random.default_rng([self.seed, 3, step])
        return self._draw(rng, self.batch_size, self.pairs, step * self.batch_size)

    def probe(self, count: int) -> Batch:
        """Always the same batch of `count` shots, none of whose noise is trained on: for looks at the donor."""
        return self._draw(np.random.default_rng([self.seed, 5]), count, 0, 0)

    def _draw(self, rng: np.random.Generator, count: int, pairs: int, first: int) -> Batch:
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        latents, said, retain = [], [], []
        for i in range(first, first + count):  # concepts take turns, and so do the shots of each
            turn, which = divmod(i, len(self.captions))
            shot = turn % len(self.latents[which])
            latents.append(self.latents[which][shot])
            generated = self.shots > 0 and self.captions[which].concept.slug not in self.files
            said.append(self.captions[which].pair(rng, shot if generated else None))
        said += [self.captions[i % len(self.captions)].pair(rng) for i in range(first, first + pairs)]
        for captions in self.captions:
            retain += captions.retain(rng, -(-self.retain // len(self.captions)))
        stacked = torch.stack(latents)
        noise = torch.randn(stacked.shape, generator=generator)
        timesteps = torch.randint(self.donor.num_train_timesteps, (len(stacked),), generator=generator)
        device = self.donor.device
        forget, anchors = ([pair[k] for pair in said] for k in (0, 1))
        return Batch(stacked.to(device), noise.to(device), timesteps.to(device), forget, anchors, retain)

    def train_dataloader(self) -> DataLoader:
        """A clock of `steps` ticks; the module asks `batch(step)` itself."""
        return DataLoader(TensorDataset(torch.arange(self.steps)), batch_size=None)
