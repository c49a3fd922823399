"""Model: the contract of every diffusion pipeline, image or video. A donor is edited, a recipient receives the edit.

One adapter class a family serves as both; which it is, is a matter of configuration. What a prompt becomes, and how it
was read, are the two records here.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """How a model turns a prompt into what its denoiser reads. Models that share an encoder may read it differently.

    Attributes:
        max_length: tokens L that a prompt is padded or cut to.
        masked: whether the encoder is told which tokens are padding.
        hidden_state: which of the encoder's states is read, -1 the last.
        normed: whether the encoder's final norm is applied to it.
        template: what is put around a prompt; "{}" is the prompt itself.
        cleaning: what is done to a prompt's text before: "" is nothing, "lower" makes it lower case, "ftfy" mends its
            characters and spaces.
        keeps: which tokens the denoiser is given: "all"; or the "ends": the first and the last max_length - 1, which
            leaves out a template before the prompt; or those "after" what the template has before the prompt.
        pads: what the denoiser is given at the places of padding: "read" as all others, "masked", or "zero".
    """

    max_length: int
    masked: bool = False
    hidden_state: int = -1
    normed: bool = True
    template: str = "{}"
    cleaning: str = ""
    keeps: Literal["all", "ends", "after"] = "all"
    pads: Literal["read", "masked", "zero"] = "read"

    def differs(self, other: "Reading") -> str:
        """What another model does otherwise: "max_length is 226, not 120"; "" when nothing is."""
        ours, theirs = asdict(self), asdict(other)
        other_ones = [(key, theirs[key], ours[key]) for key in ours if ours[key] != theirs[key]]
        return ", ".join(f"{key} is {_shown(one, two)}, not {_shown(two, one)}" for key, one, two in other_ones)


def _shown(value: Any, other: Any) -> str:
    """A value as text; of a long text the place where it begins to differ from another."""
    if not isinstance(value, str) or len(value) <= 60:
        return repr(value)
    start = next((i for i, (a, b) in enumerate(zip(value, str(other), strict=False)) if a != b), 0)
    return repr(f"...{value[max(start - 10, 0) : start + 30]}...")


@dataclass(frozen=True)
class Conditioning(Mapping[str, Tensor]):
    """What the denoiser reads of B prompts: named tensors, each (B, ...).

    Families with one encoder have `prompt_embeds` (B, L, D) alone; others add pooled embeddings or masks.
    """

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def count(self) -> int:
        """B, of how many prompts it is."""
        return len(next(iter(self.tensors.values())))

    def rows(self, index: Any) -> "Conditioning":
        """That of some of the prompts: a slice, or a list of places."""
        return Conditioning({name: tensor[index] for name, tensor in self.tensors.items()})

    def away_from(self, other: "Conditioning", eta: float) -> "Conditioning":
        """self + eta (self - other) of embeddings, pooled ones too; masks stay as they are.

        Args:
            other: of as many prompts, with tensors of the same names and shapes.
            eta: >= 0.
        """
        moved = {n: t + eta * (t - other[n]) for n, t in self.tensors.items() if t.is_floating_point()}
        return Conditioning({**self.tensors, **moved})


def cleaned(pipeline: Any, text: str) -> str:
    """A prompt as a diffusers pipeline gives it to its tokenizer: some make it lower case first, some mend it."""
    if own := getattr(pipeline, "_text_preprocessing", None):
        return own(text)[0]
    beside = getattr(sys.modules[type(pipeline).__module__], "prompt_clean", None)
    return beside(text) if beside else text


class Model(ABC):
    """A diffusion model with its text encoder, in a diffusers pipeline that is loaded when it is first used.

    Attributes:
        name: what scores call it.
        fps: frames a second of its clips.
        num_frames: F of its clips; an image is a clip of one frame.
        num_train_timesteps: timesteps are integers in [0, num_train_timesteps).
    """

    name: str
    fps: int
    num_frames: int
    num_train_timesteps: int

    @property
    @abstractmethod
    def pipeline(self) -> Any:
        """The diffusers pipeline; everything in it is frozen and in eval mode."""

    @property
    @abstractmethod
    def components(self) -> Mapping[str, Any]:
        """text_encoder (text_encoder_2, ...), denoiser and vae, each an nn.Module: the names that edits use."""

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """That of its text_encoder; None where it has none."""

    @abstractmethod
    def part(self, component: str) -> str:
        """What the pipeline calls one of `components`."""

    @property
    @abstractmethod
    def reading(self) -> Reading:
        """How it reads prompts."""

    @property
    @abstractmethod
    def content(self) -> str:
        """Hash of weights, schedule and sampling settings; computed without loading the model where its files tell."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, without the batch: (c, h, w) of an image, (c, F, h, w) of a clip."""

    @property
    @abstractmethod
    def size_px(self) -> int:
        """Edge of its frames in px."""

    @abstractmethod
    def encode_prompt(self, texts: Sequence[str]) -> Conditioning:
        """What the denoiser reads of B texts, by this model's reading; with gradient where its encoder is trained."""

    @abstractmethod
    def attended(self, conditioning: Conditioning) -> Tensor:
        """What the keys and values of its cross-attention are made from, (B, L, D'): the prompts' embeddings, behind
        what the denoiser projects them with.
        """

    @abstractmethod
    def tokenized(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids of the tokens that B texts are read as, and which of them are no padding, both (B, L), on the CPU."""

    @abstractmethod
    def encode_pixels(self, clips: Tensor, generator: torch.Generator) -> Tensor:
        """Latents (B, *latent_shape) of clips (B, F, C, H, W) in [-1, 1]: a sample of the VAE's posterior, scaled."""

    @abstractmethod
    def sample_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` random timesteps, as the training of this model draws them, (count,) integers."""

    @abstractmethod
    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """x_t of latents (B, ...) at timesteps (B,), and what the denoiser is to predict there, float32."""

    @abstractmethod
    def set_timesteps(self, scheduler: Any, num_inference_steps: int) -> None:
        """Has a copy of the pipeline's scheduler make its steps, as the pipeline would."""

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output, float32, of the shape of `noisy`."""

    @abstractmethod
    def render(self, prompts: Sequence[str] | Conditioning, seeds: Sequence[int]) -> Tensor:
        """Clips (B, F, C, H, W) in [0, 1], float32, on the CPU; each has a generator of its own."""

    @abstractmethod
    def select(self, roles: Sequence[str]) -> list[str]:
        """Names "component/parameter" of the weights that have one of the roles.

        Raises:
            ValueError: for a role that matches nothing, naming what was tried and what there is.
        """

    @abstractmethod
    def reference(self, components: Sequence[str], shared: bool = False) -> "Model":
        """A model that shares everything with this one but frozen copies of some components.

        Args:
            components: are copied.
            shared: whether the copies share the weights all the same, which then must not change: modules that are put
                into this model's components afterwards are not in theirs.
        """

    @abstractmethod
    def release(self) -> None:
        """Frees the pipeline's memory; it is loaded again when it is used again."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> "Model":
        """The family's real classes, random weights, small enough to render in a second on a CPU."""
