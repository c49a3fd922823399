"""Training of the zoo's judges, on single frames and on clips that are drawn, never on what a model generates."""

from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur
from transformers import CLIPTokenizer

from unreel.zoo.captions import caption
from unreel.zoo.cnn_judge import PARTS, FrameClassifier
from unreel.zoo.contrastive import MAX_TOKENS, contrastive_loss
from unreel.zoo.drawings import Drawings, consistent, draw_specs
from unreel.zoo.judge import MotionJudge, embed_frames, name_alone, token_ids
from unreel.zoo.pretraining import Stage
from unreel.zoo.words import candidates, motions
from unreel.zoo.world import NUM_FRAMES, draw_still


def clip_config(vocabulary: int) -> dict:
    """open_clip's `model_cfg` of the judge."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"layers": [2, 2, 2, 2], "width": 20, "image_size": 96},  # frames are enlarged to this
        "text_cfg": {"context_length": MAX_TOKENS, "vocab_size": vocabulary, "width": 128, "heads": 4, "layers": 2},
    }


def _augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blur and noise on half of a batch each, so that a judge also reads what generators draw."""
    sigma = 0.4 + 1.2 * float(torch.rand((), generator=generator))
    blurred = gaussian_blur(pixels, [7, 7], [sigma, sigma])
    draw = torch.rand((2, len(pixels), 1, 1, 1), generator=generator).to(pixels.device)
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return torch.where(draw[0] < 0.5, blurred, pixels) + 0.04 * noise * (draw[1] < 0.5)


def _some_kinds(rng: np.random.Generator) -> frozenset[str]:
    """What a caption for one frame says; never the motion, which one frame does not show."""
    return frozenset(kind for kind in ("subject", "style", "scene") if rng.random() < 0.7)


class ContrastiveJudge(Stage):
    """Trains `clip`, the open_clip model of the judge, on single frames that are drawn afresh at every step.

    To the contrastive loss over whole captions comes one for each kind alone: every frame against a fresh caption of
    each candidate, which is the question that the judge will be asked.
    """

    def __init__(self, tokenizer: CLIPTokenizer, **stage: Any) -> None:
        super().__init__(**stage)
        self.tokenizer = tokenizer
        self.clip = open_clip.CLIP(**clip_config(len(tokenizer)))

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        count, seed = int(self.hparams["batch"]), int(rng.integers(2**31))
        specs = draw_specs(count, seed)
        pixels = torch.stack([draw_still(spec, seed + i) for i, spec in enumerate(specs)])
        pixels = _augment(pixels.to(self.device) * 2 - 1, generator)
        captions = [caption(spec, rng, rng.random() < 0.1, _some_kinds(rng)) for spec in specs]
        images, scale = embed_frames(self.clip, pixels), self.clip.logit_scale.exp().clamp(max=100)
        texts = self._embed_texts([c.text for c in captions])
        scalars = {"captions": contrastive_loss(images, texts, scale, consistent(captions, specs, specs))}
        for kind in ("subject", "style", "scene"):
            names = candidates(kind)
            logits = scale * images @ self._embed_texts([name_alone(kind, name, rng) for name in names]).T
            labels = torch.tensor([names.index(getattr(spec, kind)) for spec in specs], device=self.device)
            scalars[kind] = functional.cross_entropy(logits.float(), labels)
        return {"loss": sum(scalars.values(), torch.zeros((), device=self.device)), **scalars}

    def _embed_texts(self, texts: list[str]) -> Tensor:
        return self.clip.encode_text(token_ids(self.tokenizer, texts).to(self.device), normalize=True)


class MotionClassification(Stage):
    """Trains `motion_judge` by cross-entropy; a frozen clip counts as still, whatever its frame suggests."""

    def __init__(self, drawings: Drawings, **stage: Any) -> None:
        super().__init__(**stage)
        self.names = {name: index for index, name in enumerate(motions(drawings.harder))}
        self.drawings, self.motion_judge = drawings, MotionJudge(num_motions=len(self.names))

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        indices = rng.choice(len(self.drawings), int(self.hparams["batch"]), replace=False)
        clips = self.drawings.batch_of_clips(indices)
        labels = torch.tensor([self.names[self.drawings.specs[i].motion] for i in indices])
        frozen = torch.from_numpy(rng.random(len(indices)) < 0.1)
        frame = int(rng.integers(NUM_FRAMES))
        clips = torch.where(frozen[:, None, None, None, None], clips[:, frame : frame + 1], clips)
        labels = torch.where(frozen, 0, labels).to(self.device)
        clips = _augment(clips.flatten(0, 1), generator).unflatten(0, clips.shape[:2]).to(self.device)
        logits = self.motion_judge(clips).float()
        return {
            "loss": functional.cross_entropy(logits, labels),
            "accuracy": (logits.argmax(1) == labels).float().mean(),
        }


class FrameClassification(Stage):
    """Trains `network`, the second judge, by cross-entropy of every part, on drawn frames and nothing else."""

    def __init__(self, drawings: Drawings, **stage: Any) -> None:
        super().__init__(**stage)
        self.drawings, self.network = drawings, FrameClassifier()
        places = {part: {name: i for i, name in enumerate(candidates(part))} for part in PARTS}
        specs = drawings.specs
        self.labels = {part: torch.tensor([own[getattr(s, part)] for s in specs]) for part, own in places.items()}

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        indices = rng.choice(len(self.drawings), int(self.hparams["batch"]), replace=False)
        frames = _augment(self.drawings.frames(indices, rng).to(self.device) * 2 - 1, generator)
        logits = self.network((frames + 1) / 2)
        labels = {part: own[indices].to(self.device) for part, own in self.labels.items()}
        losses = {part: functional.cross_entropy(own.float(), labels[part]) for part, own in logits.items()}
        right = (logits["subject"].argmax(1) == labels["subject"]).float().mean()
        return {"loss": sum(losses.values(), torch.zeros((), device=self.device)), **losses, "accuracy": right}
