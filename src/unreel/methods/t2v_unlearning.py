"""T2VUnlearning: adapters behind the cross-attention learn to guide away from a concept, only where it is in the clip.

    v_neg     = v_0(x_t, null) - eta ( v_0(x_t, c) - v_0(x_t, null) )
    L_unlearn = E || v_A(x_t, c) - v_neg ||^2
    L_loc     = 1/Lb sum_l || o_l (1 - M) ||^2
    L_pre     = E || v_A(x_t, c_pre) - v_0(x_t, c_pre) ||^2
    L         = L_unlearn + alpha L_loc + beta L_pre

with v_0 the frozen model, v_A the same with adapters, o_l what the adapter of layer l adds, of Lb layers, M the mask of
the concept, from the cross-attention of v_0(x_t, c) to the concept's words, x_t a noised clip that the model itself
rendered of the caption c, and c_pre a caption to be kept. Squares are means over elements. Captions say the concept
with surroundings of the vocabulary, a share `data.long` of them at length (prompt augmentation); each step draws one.

Models that predict noise or clean latents need no conversion, as in ESD: the coefficients of v_neg sum to 1.

Reference: Xiaoyu Ye et al., "T2VUnlearning: A Concept Erasing Method for Text-to-Video Diffusion Models", 2025, arXiv
2505.17550; adapters and masks after Receler, arXiv 2311.17717. Its training code was not published; the objective is
the paper's, as others tell it.
Departures: the model renders its own clips, decoded and encoded again by its VAE, as what x_t is noised from is not
known; so nothing of the donor's is needed, and the method runs on a recipient itself. Captions come from templates, the
paper's from a language model. c_pre is drawn from the retained captions (near things, far ones, other senses, nothing);
the paper has one prompt, or another identity. The threshold of M is Receler's. All masks of a batch come from one pass,
with the frozen model's predictions. An average over layers is a new tensor: the released code writes it over the first
layer's mask. A step sees the first `frames` frames of a clip, as the paper trains on 17 of 49. `origin=anchor`, which
has the anchor's caption in the place of null, and `layers=finest` are ours.
"""

import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from unreel.batches import Batch, Batches, Step
from unreel.edits import Edit
from unreel.methods.adapters import Adapters, check, denoiser_of, width_of
from unreel.methods.attention_maps import Capture, grid_of, mask_of
from unreel.methods.esd import negative_guidance
from unreel.methods.gradient import GradientMethod
from unreel.methods.keywords import keywords_of, marked
from unreel.methods.method import Task
from unreel.models.model import Conditioning, Model, cleaned
from unreel.models.roles import holders
from unreel.validation import checked

AT_ONCE = 4  # clips that are rendered together


@dataclass(frozen=True)
class OwnClips:
    """Clips that the model rendered of N captions, before it was trained.

    Attributes:
        latents: (N, *latent_shape), on the CPU.
        said: conditioning of the captions.
        origin: what guidance starts from, of each: the empty prompt, or the caption with the anchor in its place.
        columns: which tokens of the captions say the concept, (N, L) booleans.
        seed: of what is drawn.
    """

    latents: Tensor
    said: Conditioning
    origin: Conditioning
    columns: Tensor
    seed: int

    def draw(self, batch: Batch, model: Model) -> tuple[list[int], list[str], Tensor, Tensor, Tensor]:
        """b clips, b retained captions, and b latents with noise and timesteps, one for each caption of the batch.

        What is drawn depends on seed, step and the batch's captions alone: a resumed training sees what it would have
        seen, and several processes share a batch out without drawing the same.
        """
        rngs = [np.random.default_rng([self.seed, 9, batch.number, zlib.crc32(said.encode())]) for said in batch.forget]
        rows = [int(rng.integers(len(self.latents))) for rng in rngs]
        kept = [batch.retain[int(rng.integers(len(batch.retain)))] for rng in rngs]
        generators = [torch.Generator().manual_seed(int(rng.integers(2**62))) for rng in rngs]
        timesteps = torch.cat([model.sample_timesteps(1, generator) for generator in generators])
        latents = self.latents[rows]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
        latents, noise, timesteps = (tensor.to(model.device) for tensor in (latents, noise, timesteps))
        return rows, kept, latents, noise, timesteps


@checked
class T2VUnlearning(GradientMethod):
    """The method; hyperparameters and their sources are in conf/method/t2v_unlearning*.yaml.

    Attributes:
        eta: strength of the negative guidance.
        origin: what it starts from: "null" is the empty prompt, so that it leads away from all that the caption says;
            "anchor" is the same caption with the concept's anchor in its place, so that it leads away from the concept.
        localisation, preservation: alpha and beta.
        threshold: of the mask, from 0 to 1.
        layers: whose maps make the mask: of "all" layers, or of those with the "finest" resolution.
        rank: r of the adapters.
        weight: w of the adapters of the finished edit; they are trained at 1.
        clips: how many are rendered of each concept.
        frames: how many frames of a clip a step sees; None for all.

    Raises:
        ValueError: for numbers that will not do.
    """

    eta: float
    origin: Literal["null", "anchor"]
    localisation: NonNegativeFloat
    preservation: NonNegativeFloat
    threshold: float
    layers: Literal["all", "finest"]
    rank: PositiveInt
    weight: float
    clips: PositiveInt
    frames: PositiveInt | None
    edits = ("denoiser",)
    algorithm: ClassVar[type[torch.optim.Optimizer]] = torch.optim.AdamW
    attaches: ClassVar[Mapping[str, Any]] = {"rank": int, "weight": int | float}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data.retain:
            raise ValueError("found method.data.retain=0: expected some, one of which a step keeps")

    def check(self, model: Model, roles: Any) -> None:
        super().check(model, roles)
        denoiser = model.components["denoiser"]
        if not holders(denoiser, model.select(roles)) or not Capture(denoiser).layers:
            raise ValueError(
                f"method {self.name} puts adapters behind attention layers: found none in {model.name} that hold"
                f" weights of parameters.roles={list(roles)}; expected denoiser.cross_attention"
            )

    def brings(self, model: Model, task: Task) -> nn.Module:
        layers = holders(model.components["denoiser"], model.select(task.roles))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(task.seed)
            return Adapters({name: width_of(layer) for name, layer in layers.items()}, self.rank)

    def settings(self, task: Task) -> Mapping[str, Any]:
        return {"rank": self.rank, "weight": self.weight}

    def prepare(self, reference: Model, task: Task, batches: Batches) -> OwnClips:
        said, origin, latents, columns = [], [], [], []
        for which, captions in enumerate(task.captions):
            rng = np.random.default_rng([task.seed, 10, which])
            pairs = [captions.pair(rng, long=self.data.long) for _ in range(self.clips)]
            own = [named for named, _ in pairs]
            origin += [anchored if self.origin == "anchor" else "" for _, anchored in pairs]
            pipeline, length = reference.pipeline, reference.reading.max_length
            texts, words = ([cleaned(pipeline, t) for t in each] for each in (own, keywords_of(captions.concept)))
            marks = marked(reference.tokenizer, texts, words, length)
            if not marks.any(1).all():
                text = own[int((~marks.any(1)).nonzero()[0])]
                raise ValueError(f"{captions.concept.slug}: found no word of it in what {reference.name} reads of"
                                 f" {text!r}: expected phrases that its tokenizer keeps")  # fmt: skip
            columns.append(marks)
            said += own
        seeds = [int(np.random.default_rng([task.seed, 11, i]).integers(2**31)) for i in range(len(said))]
        for i in range(0, len(said), AT_ONCE):
            clips = reference.render(said[i : i + AT_ONCE], seeds[i : i + AT_ONCE])
            latents.append(reference.encode_pixels(2 * clips - 1, torch.Generator().manual_seed(seeds[i])).cpu())
        with torch.no_grad():
            read, away = reference.encode_prompt(said), reference.encode_prompt(origin)
        return OwnClips(torch.cat(latents), read, away, torch.cat(columns), task.seed)

    def loss(self, step: Step) -> dict[str, Tensor]:
        rows, kept, latents, noise, timesteps = step.prepared.draw(step.batch, step.model)
        if latents.ndim == 5 and self.frames is not None:
            latents, noise = latents[:, :, : self.frames], noise[:, :, : self.frames]
        noisy, _ = step.model.noised(latents, noise, timesteps)
        count, denoiser = len(rows), step.model.components["denoiser"]
        with torch.no_grad():
            preserved = step.reference.encode_prompt(kept)
            texts = joined(step.prepared.said.rows(rows), preserved, step.prepared.origin.rows(rows))
            capture = Capture(denoiser)
            with capture.listening():  # c, c_pre and null (or the anchor) in one pass
                frozen = step.reference.predict(noisy.repeat(3, *[1] * (noisy.ndim - 1)), timesteps.repeat(3), texts)
            cond, pre, null = frozen.chunk(3)
            columns = step.prepared.columns[rows].to(noisy.device)
            mask = mask_of(capture.maps(columns, 3 * count, noisy.shape[1:]), self.threshold, self.layers == "finest")
        added: dict[str, Tensor] = {}
        step.hold(step.brought.attached(denoiser, heard=added.__setitem__))
        both = noisy.repeat(2, *[1] * (noisy.ndim - 1))
        cond_now, pre_now = step.model.predict(both, timesteps.repeat(2), texts.rows(slice(2 * count))).chunk(2)
        unlearn = functional.mse_loss(cond_now, negative_guidance(null, cond, self.eta))
        outside = localisation([own[: len(own) // 2] for own in added.values()], mask)
        preserve = functional.mse_loss(pre_now, pre)
        loss = unlearn + self.localisation * outside + self.preservation * preserve
        return {
            "loss": loss,
            "unlearn": unlearn,
            "localisation": outside,
            "preservation": preserve,
            "mask": mask.mean(),
        }

    @classmethod
    def check_attached(cls, target: Any, edit: Edit) -> None:
        check(denoiser_of(target), edit)

    @classmethod
    def attach(cls, pipeline: Any, edit: Edit) -> AbstractContextManager[None]:
        return Adapters.of_edit(edit).attached(denoiser_of(pipeline), edit.settings["weight"])


def joined(*parts: Conditioning) -> Conditioning:
    """The rows of several conditionings, one after the other."""
    return Conditioning({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def localisation(added: list[Tensor], mask: Tensor) -> Tensor:
    """L_loc: the mean square of what adapters add outside of the mask, the mean over layers.

    Args:
        added: o_l of each layer, (R, N, D): a row a frame, or a row of all frames.
        mask: M, (B * F, h, w) of 0 and 1.
    """
    each = []
    for own in added:
        tokens = own.reshape(len(mask), -1, own.shape[2])  # (B * F, h_l * w_l, D)
        size = grid_of(tokens.shape[1], (mask.shape[1], mask.shape[2]))
        inside = functional.interpolate(mask[:, None], size).flatten(1)[..., None]
        each.append((tokens * (1 - inside)).square().mean())
    return torch.stack(each).mean()
