"""What a training step and a clip cost at real sizes: models of real shapes, and bytes and operations counted on them.

On tensors that have shapes and no values a step of Stable Diffusion takes seconds and no memory to speak of.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
import torch
from diffusers import DiffusionPipeline
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import CLIPTokenizer

from unreel.batches import Batch, Step
from unreel.concepts import to_concept
from unreel.methods.adversary import Search
from unreel.methods.few_shot import FewShot, Prepared
from unreel.methods.lora import LoRA, LowRank
from unreel.models.model import Conditioning, Model
from unreel.zoo.store import zoo_tokenizer

MODELS = Path(__file__).parent / "models"


@contextmanager
def weights_in(dtype: str) -> Iterator[None]:
    """What is built inside the `with` block has weights of this dtype from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def config_of(name: str) -> Any:
    """A YAML of `models`, with what it builds on."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(MODELS), version_base=None):
        return hydra.compose(name)


def clip_tokenizer() -> CLIPTokenizer:
    """The zoo's, to the length of Stable Diffusion's."""
    return CLIPTokenizer.from_pretrained(zoo_tokenizer(), model_max_length=77)


def built_model(name: str, dtype: str = "float32", denoiser_dtype: str | None = None, **common: Any) -> Model:
    """A model of the real shapes of `models/NAME.yaml` with random weights.

    Args:
        name: stem of the YAML.
        dtype, denoiser_dtype, common: as in unreel.models.running.Common.
    """
    config, parts = config_of(name), {}
    for key, part in config.parts.items():
        values = torch.device("cpu") if key == "scheduler" else nullcontext()
        with (
            values,
            weights_in(denoiser_dtype if key in ("unet", "transformer") and denoiser_dtype is not None else dtype),
        ):
            parts[key] = hydra.utils.instantiate(part, _convert_="all")
    tokenizer = hydra.utils.get_method(config.tokenizer)() if "tokenizer" in config else clip_tokenizer()
    pipeline: DiffusionPipeline = hydra.utils.get_class(config.pipeline)(**parts, tokenizer=tokenizer, **config.others)
    family = hydra.utils.get_class(config.family)
    return family.of(pipeline, name=name, denoiser_dtype=denoiser_dtype, **config.options, **common)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Attention that keeps no scores, as the kernels of real devices; the meta device has none of its own."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attention(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


@contextmanager
def shapes_only() -> Iterator[None]:
    """Tensors and models that are made inside the `with` block have shapes and no values: torch's meta device."""
    with torch.device("meta"), patch.object(functional, "scaled_dot_product_attention", _fused):
        yield


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and keeps their peak.

    Args:
        tensors: those that are alive already.
    """

    def __init__(self, tensors: Any) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}  # storage -> its bytes
        self.now = self.peak = 0
        self._add(tensors)

    def _add(self, tree: Any) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._alive:
                    self._alive[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata)
        self.peak = max(self.peak, self.now)

    def _gone(self, storage: int) -> None:
        self.now -= self._alive.pop(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self._add(found)
        return found


def peak(work: Callable[[], Any], tensors: Any) -> int:
    """Most bytes that are alive while some work is done, with `tensors` and all that the work makes."""
    with Live(tensors) as live:
        work()
    return live.peak


class _Operations(TorchDispatchMode):
    """torch's counts of operations. Its own mode knows modules too, for which it takes no gradients of leaves."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=found)
        return found


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of some work; a multiplication with its addition is two."""
    with _Operations() as counted:
        work()
    return counted.total


def weights(*models: Model) -> list[Tensor]:
    """All parameters and buffers of models; shared ones count once."""
    modules = [module for model in models for module in model.components.values()]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


class Training:
    """The training of few_shot on a model, step by step, without Lightning: what a step costs.

    Args:
        method: with its batch sizes; its table of errors is taken for made.
        model: the donor.
        roles: which weights are trained.
        lora: that factors beside them are.
    """

    def __init__(self, method: FewShot, model: Model, roles: list[str], lora: LoRA | None = None) -> None:
        self.method, self.model = method, model
        self.reference = model.reference(list(method.edits), shared=lora is not None)
        chosen = set(model.select(roles))
        self.trained = [
            parameter
            for key in method.edits
            for name, parameter in model.components[key].named_parameters()
            if f"{key}/{name}" in chosen
        ]
        if lora is not None:
            self.trained = list(LowRank(lora, model, roles, 0).parameters.values())
        for parameter in self.trained:
            parameter.requires_grad_(True)
        copies = [[p.detach().clone() for p in self.trained] for _ in range(2)]  # as they were, and the best state
        self.tensors = [*weights(self.model, self.reference), *copies]
        self.optimizer = torch.optim.Adam(self.trained, **method.optimizer)
        sizes = method.data
        shape = (sizes.batch, *model.latent_shape)
        search = None
        if method.adversary is not None:
            concept = to_concept("van_gogh", {"kind": "style", "name": "van gogh"})
            search = Search(method.adversary, self.reference, [concept], [], 0)
        self.prepared = Prepared(torch.ones(sizes.table) if sizes.table else None, search)
        said = [f"a cat in the style of van gogh {i}" for i in range(sizes.batch + sizes.pairs + sizes.retain)]
        forget, retain = said[: sizes.batch + sizes.pairs], said[sizes.batch + sizes.pairs :]
        self.batch = Batch(
            0, torch.randn(shape), torch.randn(shape), torch.full((sizes.batch,), 500), forget, forget, retain,
            list(range(sizes.batch)) if sizes.table else (),
        )  # fmt: skip

    def step(self) -> None:
        """One step."""
        self.method.guarded_loss(Step(self.model, self.reference, self.batch, self.prepared))["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Rendering:
    """What rendering clips is made of: one call of the denoiser with guidance, and the VAE's decoding.

    Args:
        model: what renders.
        clips: at a time.
    """

    def __init__(self, model: Model, clips: int = 1) -> None:
        self.model, width = model, model.components["text_encoder"].config.hidden_size
        self.tensors = weights(model)
        dtype = model.components["denoiser"].dtype
        self.latents = torch.randn(2 * clips, *model.latent_shape, dtype=dtype)
        self.embeds = torch.randn(2 * clips, model.reading.max_length, width, dtype=dtype)

    def denoise(self) -> None:
        """One step of the schedule."""
        with torch.no_grad():
            timesteps = torch.full((len(self.latents),), 500)
            self.model.predict(self.latents, timesteps, Conditioning({"prompt_embeds": self.embeds}))

    def decode(self) -> None:
        """All frames of the clips."""
        vae, latents = self.model.components["vae"], self.latents[: len(self.latents) // 2]
        frames = latents if latents.ndim == 4 else latents.movedim(2, 1).flatten(0, 1)
        with torch.no_grad():
            vae.decode(frames.to(vae.dtype))
