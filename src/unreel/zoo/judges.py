"""The judges: models that look at clips and say what they see. They only evaluate; no training loss ever uses them.

`Judge` reads subject, style and scene zero-shot with a small open_clip model (a residual network, where the text
encoder was trained against a plain CNN; other seed, other draws); `MotionJudge` classifies the motion of a whole clip.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur
from transformers import CLIPTokenizer

from unreel.zoo.captions import caption
from unreel.zoo.contrastive import MAX_TOKENS, contrastive_loss, tokenize
from unreel.zoo.drawings import Drawings, consistent, draw_specs
from unreel.zoo.pretraining import Stage
from unreel.zoo.words import KINDS, candidates, word
from unreel.zoo.world import NUM_FRAMES, Spec, draw_still

PROMPTS_A_NAME = 24  # zero-shot prompts that are averaged for one candidate, those that are equal once


def clip_config(vocabulary: int) -> dict:
    """open_clip's `model_cfg` of the judge."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"layers": [2, 2, 2, 2], "width": 20, "image_size": 96},  # frames are enlarged to this
        "text_cfg": {"context_length": MAX_TOKENS, "vocab_size": vocabulary, "width": 128, "heads": 4, "layers": 2},
    }


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """input_ids (B, L) padded with zeros, as open_clip wants them: it pools at the largest id, the end of the text."""
    tokens = tokenize(tokenizer, texts, padding="max_length")
    return tokens["input_ids"] * tokens["attention_mask"]


def name_alone(kind: str, name: str, rng: np.random.Generator) -> str:
    """A short caption that states nothing but that `kind` is `name`."""
    spec = Spec(**({"subject": "cat", "scene": "beach"} | {kind: name}))
    while (said := caption(spec, rng, states=frozenset({kind}))).states != {kind}:
        pass
    return said.text


def embed_frames(clip: nn.Module, frames: Tensor) -> Tensor:
    """Normalised embeddings (B, D) of frames (B, C, H, W) in [-1, 1]."""
    size: int = clip.visual.image_size  # type: ignore[union-attr, assignment]
    enlarged = functional.interpolate(frames, size=(size, size), mode="bilinear")
    return clip.encode_image(enlarged, normalize=True)  # type: ignore[operator]


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

    def __init__(self, tokenizer: CLIPTokenizer, **stage: float) -> None:
        super().__init__(**stage)  # type: ignore[arg-type]
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


class MotionJudge(ModelMixin, ConfigMixin):
    """A small 3-D CNN: clips (B, F, C, H, W) in [0, 1] -> logits over `candidates("motion")`, (B, 8)."""

    @register_to_config
    def __init__(self, channels: tuple[int, ...] = (24, 48, 96, 128), num_motions: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AvgPool3d((1, 2, 2))]
        for inputs, outputs in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv3d(inputs, outputs, 3, (1, 2, 2), 1), nn.GroupNorm(8, outputs), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1] * NUM_FRAMES, num_motions)

    def forward(self, clips: Tensor) -> Tensor:
        features = self.layers((clips * 2 - 1).transpose(1, 2))
        return self.head(features.mean((3, 4)).flatten(1))


class MotionClassification(Stage):
    """Trains `motion_judge` by cross-entropy; a frozen clip counts as still, whatever its frame suggests."""

    def __init__(self, drawings: Drawings, **stage: float) -> None:
        super().__init__(**stage)  # type: ignore[arg-type]
        self.drawings, self.motion_judge = drawings, MotionJudge()
        self.names = {name: index for index, name in enumerate(candidates("motion"))}

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


class Judge:
    """Says what clips show.

    Args:
        clip: the open_clip model.
        motion_judge: the motion classifier.
        tokenizer: the zoo's tokenizer.
    """

    parts = KINDS

    def __init__(self, clip: nn.Module, motion_judge: MotionJudge, tokenizer: CLIPTokenizer) -> None:
        self.clip, self.motion_judge, self.tokenizer = clip.eval(), motion_judge.eval(), tokenizer
        self._prompts: dict[str, Tensor] = {}

    @classmethod
    @cache  # nothing changes it, and the runs of a sweep share what it has made of its names
    def from_folders(cls, judge: Path, motion_judge: Path, tokenizer: Path) -> "Judge":
        return cls(
            open_clip.create_model(f"local-dir:{judge}"),
            MotionJudge.from_pretrained(motion_judge),
            CLIPTokenizer.from_pretrained(tokenizer),
        )

    @torch.inference_mode()
    def _prompt_embeds(self, kind: str) -> Tensor:
        """One normalised embedding a candidate, the mean over PROMPTS_A_NAME captions that state it alone: (n, D)."""
        if kind not in self._prompts:
            rng = np.random.default_rng(0)
            rows = []
            for name in candidates(kind):
                texts = sorted({name_alone(kind, name, rng) for _ in range(PROMPTS_A_NAME)})
                embeds = self.clip.encode_text(token_ids(self.tokenizer, texts), normalize=True)  # type: ignore[operator]
                rows.append(functional.normalize(embeds.mean(0), dim=-1))
            self._prompts[kind] = torch.stack(rows)
        return self._prompts[kind]

    @torch.inference_mode()
    def logits(self, kind: str, clips: Tensor, frames: Tensor | None = None) -> Tensor:
        """How much clips (B, F, C, H, W) in [0, 1] look like each of `candidates(kind)`: (B, n), higher is more.

        Args:
            kind: one of KINDS.
            clips: what is looked at.
            frames: `embed_clips(clips)`, by those who have it already.

        Raises:
            ValueError: for an unknown kind, or motion of clips with another number of frames than the world's.
        """
        candidates(kind)
        if kind == "motion":
            if clips.shape[1] != NUM_FRAMES:
                raise ValueError(f"found clips of {clips.shape[1]} frames: the motion judge needs {NUM_FRAMES}")
            return torch.cat([self.motion_judge(part) for part in clips.float().split(64)])
        frames = self.embed_clips(clips) if frames is None else frames
        return frames.mean(1) @ self._prompt_embeds(kind).T

    @torch.inference_mode()
    def embed_clips(self, clips: Tensor) -> Tensor:
        """Normalised embeddings (B, F, D) of the frames of clips (B, F, C, H, W) in [0, 1]."""
        frames = clips.float().flatten(0, 1) * 2 - 1
        return torch.cat([embed_frames(self.clip, part) for part in frames.split(256)]).unflatten(0, clips.shape[:2])

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Normalised embeddings (B, D)."""
        return self.clip.encode_text(token_ids(self.tokenizer, list(texts)), normalize=True)  # type: ignore[operator]

    def name_of(self, kind: str, phrase: str) -> str:
        """What a phrase of a prompt says: the name among `candidates(kind)` that it is a phrase of.

        Raises:
            ValueError: for a phrase that the drawn world does not know, listing its names.
        """
        for name in candidates(kind):
            if phrase == name or phrase in word(kind, name).phrases:
                return name
        raise ValueError(
            f"the zoo's judge knows no {kind} {phrase!r}: expected a phrase of {', '.join(candidates(kind))}"
        )

    def names(self, kind: str, clips: Tensor, frames: Tensor | None = None) -> list[str]:
        """What each clip shows, one of `candidates(kind)` each; arguments as in `logits`."""
        choices = candidates(kind)
        return [choices[i] for i in self.logits(kind, clips, frames).argmax(1).tolist()]
