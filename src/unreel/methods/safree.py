"""SAFREE: tokens of a prompt that hold the concept are projected out of it while sampling begins, without training.

With the concept's phrases pooled as the columns of C, the prompt pooled with its token i masked out as p_i, all p_i as
the columns of I, and P_E = E (E^T E)^+ E^T the projector on a span:

    d_i = || (1 - P_C) p_i ||;   token i holds the concept if d_i > (1 + alpha) mean_{j != i} d_j          (detection)
    e_i <- (1 - P_C) P_I e_i     for these tokens, on the steps 0..N of the schedule                      (projection)
    N = round(N_max sigmoid(2 k (10 b - m))),   b = 1 - mean_i cos(e_i, (1 - P_C) P_I e_i)           (self-validation)
    F(h) <- s F(h) where |F(h)| > |F(h')|, at low frequencies of skip features h (h' with the prompt as it was)
            of the first two up blocks, on the same steps                                          (latent re-attention)

and the phrases are the negative prompt.

Reference: Jaehong Yoon et al., "SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image and Video Generation",
ICLR 2025, arXiv 2410.12761.
Departures: the negative prompt belongs to prompts in which a token was found, as the projection and the re-attention do
(the paper's code passes it with every prompt), so that all others stay bit-identical. Token i is masked out by the
attention mask (the code writes token 0 in its place, which is a word like others). A prompt of one token has no others
to compare with (nothing is found in it, in the paper): its distance is compared with the unmasked prompt's. N is scaled
from the paper's 50 steps to the schedule's. Re-attention is for video as for images, at the price of one more pass of
the UNet on these steps. Rows of the batch are found by their embeddings, not by the order of null and prompt.
Tokens cannot be known where embeddings are given in place of a prompt (`prompt_embeds`, or a Conditioning for
`Model.render`): these are left as they are.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.fft import fftn, ifftn
from transformers import CLIPTextModel

from unreel.edits import Edit
from unreel.methods.guidance import GuidanceMethod
from unreel.methods.method import Task
from unreel.methods.negative_prompt import appended, prompts_in, reading, said
from unreel.models.model import Model
from unreel.validation import checked

STEPS = 50  # of the schedule that the paper's N_max is of


def projector(columns: Tensor) -> Tensor:
    """P_E (D, D), float64, on the span of columns E (D, K); directions below float32's precision are none."""
    left, values, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    basis = left[:, values > 1e-5 * values.max()]
    return basis @ basis.T


def holding(distances: Tensor, whole: Tensor, alpha: float) -> Tensor:
    """Which tokens hold the concept, (N,) booleans, of their distances d_i (N,) and that of the unmasked prompt."""
    count = len(distances)
    others = (distances.sum() - distances) / (count - 1) if count > 1 else whole.expand(count)
    return distances > (1 + alpha) * others


def last_step(b: float, most: float, sharpness: float, midpoint: float) -> int:
    """N: the last step on which the projection holds."""
    return round(most / (1 + math.exp(-2 * sharpness * (10 * b - midpoint))))


def reattended(features: Tensor, before: Tensor, scale: float) -> Tensor:
    """Skip features (B, C, H, W) with what grew at their low frequencies scaled down; FreeU's window of two by two."""
    ours, theirs = (fftn(x.float(), dim=(-2, -1)) for x in (features, before))
    low = torch.zeros(ours.shape[-2:], dtype=torch.bool, device=ours.device)
    low[:: max(ours.shape[-2] - 1, 1), :: max(ours.shape[-1] - 1, 1)] = True  # frequencies 0 and -1
    factor = torch.where(low & (ours.abs() > theirs.abs()), scale, 1.0)
    return ifftn(ours * factor, dim=(-2, -1)).real.to(features)


def check_parts(pipeline: Any) -> None:
    """ValueError for a pipeline without a CLIP text encoder, which pools prompts, or without a UNet's up blocks."""
    parts, kind = pipeline.components, type(pipeline).__name__
    if not isinstance(parts.get("text_encoder"), CLIPTextModel) or parts.get("text_encoder_2") is not None:
        raise ValueError(f"{kind} reads prompts otherwise: SAFREE expects one CLIP text encoder, which pools them")
    if not hasattr(parts.get("unet"), "up_blocks"):
        raise ValueError(f"{kind} has no UNet with up blocks: SAFREE expects one")


@dataclass(frozen=True)
class Found:
    """What was found in one prompt: its embeddings (L, D) as they were, and projected, and b."""

    own: Tensor
    safe: Tensor
    b: float


class Filter:
    """What SAFREE does to one pipeline. It remembers what was found in the prompts that were encoded last.

    Args:
        pipeline: with a CLIP text encoder, its tokenizer and a UNet.
        settings: of the edit.

    Raises:
        ValueError: for a pipeline that has other ones.
    """

    def __init__(self, pipeline: Any, settings: Mapping[str, Any]) -> None:
        check_parts(pipeline)
        self.pipeline, self.settings, self.found = pipeline, settings, list[Found]()
        self.rows: Tensor | None = None  # those of the batch that are projected in this pass of the UNet
        self.skips = dict[int, Sequence[Tensor]]()  # up block -> skip features of the prompts as they were
        inside = projector(self.pooled(*self.tokens(settings["phrases"])).T)
        self.outside = torch.eye(len(inside), dtype=inside.dtype, device=inside.device) - inside  # 1 - P_C

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask of B texts, (B, L)."""
        tokenizer, device = self.pipeline.tokenizer, self.pipeline.text_encoder.device
        read = tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )  # fmt: skip
        return read.input_ids.to(device), read.attention_mask.to(device)

    @torch.no_grad()
    def pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Pooled embeddings (B, D), float64: those of the end-of-text token."""
        return self.pipeline.text_encoder(ids, attention_mask=mask).pooler_output.double()

    def places(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Where the words of one prompt are, (N,), of (1, L): beginning and end of text and padding are no words."""
        marks = torch.tensor([self.pipeline.tokenizer.bos_token_id, self.pipeline.tokenizer.eos_token_id])
        return (mask[0].bool() & ~torch.isin(ids[0], marks.to(ids.device))).nonzero().flatten()

    def look(self, prompt: str, embeds: Tensor) -> Found | None:
        """What is found in a prompt with the embeddings (L, D); None where no token holds the concept."""
        ids, mask = self.tokens([prompt])
        places, outside = self.places(ids, mask), self.outside.to(ids.device)
        if not len(places):
            return None
        masks = mask.repeat(len(places), 1)
        masks[torch.arange(len(places)), places] = 0
        without = self.pooled(ids.expand(len(places), -1), masks)  # p_i, (N, D)
        distances, whole = ((p @ outside).norm(dim=1) for p in (without, self.pooled(ids, mask)))
        toxic = places[holding(distances, whole, self.settings["alpha"])]
        if not len(toxic):
            return None
        read, safe = mask[0].bool(), embeds.clone()
        projected = embeds.double() @ projector(without.T) @ outside
        safe[toxic] = projected[toxic].to(embeds)
        b = 1 - torch.cosine_similarity(embeds[read].double(), projected[read], dim=1).mean().item()
        return Found(embeds.clone(), safe, b)

    def read(self, own: Callable[..., Any], asked: dict[str, Any]) -> Any:
        """`encode_prompt`, which gives the prompts in which something is found a negative prompt."""
        self.found, self.rows, self.skips = [], None, {}
        plain, prompts = own(**asked), prompts_in(asked)
        if prompts is None:
            return plain
        embeds = plain[0][:: len(plain[0]) // len(prompts)]  # it repeats those of which several clips are asked for
        looks = [self.look(prompt, row) for prompt, row in zip(prompts, embeds, strict=True)]
        self.found = [found for found in looks if found]
        negative = self.settings["negative_prompt"] if self.found else ""
        return own(**appended(asked, [negative if found else "" for found in looks])) if negative else plain

    def filtered(self, timestep: Any, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """What the UNet reads on a step in place of embeddings (R, L, D), and which rows are projected, (R,)."""
        schedule, rows = self.pipeline.scheduler.timesteps, embeds.new_zeros(len(embeds), dtype=torch.bool)
        now = (schedule == torch.as_tensor(timestep, device=schedule.device).flatten()[0]).nonzero().flatten()
        most = self.settings["steps"] * len(schedule) / STEPS
        for found in self.found if len(now) else []:
            if int(now[0]) <= last_step(found.b, most, self.settings["sharpness"], self.settings["midpoint"]):
                own = (embeds == found.own).flatten(1).all(1)
                embeds, rows = torch.where(own[:, None, None], found.safe, embeds), rows | own
        return embeds, rows

    def before_unet(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Puts the projected embeddings into the UNet's arguments."""
        self.rows, self.skips = None, {}
        if not self.found:
            return None
        embeds, rows = self.filtered(args[1], kwargs["encoder_hidden_states"])
        if not rows.any():
            return None
        if self.settings["re_attention"]:
            unet.forward(*args, **kwargs)  # the prompts as they were: their skip features are kept
            self.rows = rows
        return args, kwargs | {"encoder_hidden_states": embeds}

    def before_up_block(self, place: int, kwargs: dict[str, Any]) -> Any:
        """Keeps the skip features of the first pass; weighs those of the second again."""
        skips = kwargs["res_hidden_states_tuple"]
        if self.rows is None:
            if self.found:
                self.skips[place] = skips
            return None
        scale, weighed = self.settings["re_attention"][place], []
        for features, before in zip(skips, self.skips[place], strict=True):
            rows = self.rows.repeat_interleave(len(features) // len(self.rows))  # a clip has a row for each frame
            weighed.append(features.clone())
            weighed[-1][rows] = reattended(features[rows], before[rows], scale)
        return (), kwargs | {"res_hidden_states_tuple": tuple(weighed)}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside the `with` block the pipeline is filtered."""
        unet = self.pipeline.unet
        with ExitStack() as stack:
            stack.enter_context(reading(self.pipeline, self.read))
            stack.callback(unet.register_forward_pre_hook(self.before_unet, with_kwargs=True).remove)
            for place, block in enumerate(unet.up_blocks[: len(self.settings["re_attention"] or [])]):
                hook = lambda _, __, kwargs, place=place: self.before_up_block(place, kwargs)  # noqa: E731
                stack.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield


@checked
class SAFREE(GuidanceMethod):
    """The method; values and their sources are in conf/method/safree.yaml.

    Attributes:
        alpha: how much farther than the others a token's masking has to take a prompt from the concept.
        steps: N_max, of a schedule of 50 steps; 0 is the first step alone.
        sharpness, midpoint: k and m of the formula.
        re_attention: s of the first up block and of the second one, or None for no re-attention.
        negative: whether the phrases are the negative prompt.

    Raises:
        ValueError: for a value that will not do.
    """

    alpha: NonNegativeFloat
    steps: NonNegativeFloat
    sharpness: NonNegativeFloat
    midpoint: float
    re_attention: Annotated[Sequence[float], Field(min_length=2, max_length=2)] | None
    negative: bool
    attaches: ClassVar[Mapping[str, Any]] = {
        "phrases": list, "alpha": int | float, "steps": int | float, "sharpness": int | float,
        "midpoint": int | float, "re_attention": list | None, "negative_prompt": str,
    }  # fmt: skip

    def check(self, model: Model, roles: Sequence[str]) -> None:
        check_parts(model.pipeline)

    def settings(self, task: Task) -> Mapping[str, Any]:
        return {
            "phrases": [phrase for concept in task.concepts for phrase in concept.phrases], "alpha": self.alpha,
            "steps": self.steps, "sharpness": self.sharpness, "midpoint": self.midpoint,
            "re_attention": list(self.re_attention) if self.re_attention else None,
            "negative_prompt": said(task.concepts) if self.negative else "",
        }  # fmt: skip

    @classmethod
    def attach(cls, pipeline: Any, edit: Edit) -> AbstractContextManager[None]:
        return Filter(pipeline, edit.settings).attached()
