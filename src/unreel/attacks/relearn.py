"""Relearn: harmless fine-tuning of the edited model, which knows nothing of the concept, brings it back in part.

    min over the weights  E_{(x0, y), e, t} || f_U(x_t, tau_phi(y), t) - g ||^2     with (x0, y) of a benign set

for some steps, after which the plain prompts are rendered again; R says how much came back (`unreel.attacking`).

Reference: Vinith Suriyakumar et al., "Unstable Unlearning: The Hidden Risk of Concept Resurgence in Diffusion Models",
2024, arXiv 2410.08074.
Departures: the benign set is made by the unedited model from captions of this bench's vocabulary (the paper: COCO).
"near" are the concept's neighbours, "far" other things, "unrelated" says nothing of the concept's part; a file has the
user's own captions. The control is looked at after the last step alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from unreel.attacks.attack import Attack, Found, Target, steps_of
from unreel.hashes import content_key
from unreel.methods.keywords import name_of
from unreel.models.model import Model
from unreel.prompt_files import Row, read_rows
from unreel.records import Concept, Prompt
from unreel.validation import Budget, checked
from unreel.vocabulary import NEUTRAL, say

_ADAPTED = r".*\.(q_proj|k_proj|v_proj|out_proj|to_q|to_k|to_v|to_out\.0)"  # attention, where LoRA is usual


@checked
class Relearn(Attack):
    """The attack; values and their sources are in conf/attack/relearn_*.yaml.

    Attributes:
        steps: of AdamW.
        looks_at: the steps at which clips are rendered; those beyond `steps` are left out, and the last one is `steps`.
        rank: of LoRA on the attention's matrices; None trains all weights of the component.
        lr: the rate.
        batch: pictures a step.
        pictures: how many there are in the benign set.
        captions: near, far or unrelated.
        path: a file of captions in their place, as `prompts=file` takes it; "~" is the home folder.
        rows: what the file says.

    Raises:
        ValueError: for a file that cannot be read, or values that will not do.
    """

    steps: Budget
    looks_at: Sequence[NonNegativeInt]
    rank: PositiveInt | None
    lr: PositiveFloat
    batch: PositiveInt
    pictures: PositiveInt
    captions: Literal["near", "far", "unrelated"]
    path: str | None = None
    rows: tuple[Row, ...] = field(init=False, default=())
    trains: ClassVar[tuple[str, ...]]
    keeps: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", read_rows(self.path) if self.path is not None else ())
        if self.rank is not None and find_spec("peft") is None:
            raise ValueError(f'found attack.{self.name}.rank={self.rank} without peft: pip install -e ".[lora]", or'
                             f" attack.{self.name}.rank=null")  # fmt: skip

    @property
    def content(self) -> str:
        """Hash of what the file says."""
        return content_key(rows=[repr(row) for row in self.rows])

    def check(self, concepts: Sequence[Concept], prompts: Sequence[Prompt]) -> None:
        """ValueError for a file of captions that say what was erased: no benign set."""
        for row in self.rows:
            for concept in concepts:
                refuse(concept, row.text, row.where)

    def check_model(self, model: Model) -> None:
        for key in self.trains:
            found = next(model.components[key].parameters()).dtype
            if found != torch.float32:
                raise ValueError(f"attack {self.name} trains the {key} of {model.name}, found in {found}: expected"
                                 " float32, as with dtype=float32 and denoiser_dtype=null")  # fmt: skip

    def search(self, target: Target) -> Found:
        twin, texts = target.model.reference(self.trains), self.benign(target)
        latents = target.pictures(texts, whole=True)
        looks = [look for look in self.steps_looked_at() if target.edited or look == self.steps]
        trained, state = self._opened(twin)
        before = {name: tensor.to("cpu", copy=True) for name, tensor in state().items()}
        optimizer = torch.optim.AdamW(trained, lr=self.lr)
        tensors, losses = dict[str, Tensor](), list[float]()
        for step in steps_of(range(self.steps + 1), self.name):
            if step in looks:
                now = {name: tensor.to("cpu", copy=True) for name, tensor in state().items()}
                tensors |= {f"{step}/{n}": t for n, t in now.items() if not torch.equal(t, before[n])}
            if step == self.steps:
                break
            loss = self._loss(twin, target, latents, texts, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        few = max(1, self.steps // 10)
        facts = {"looks": looks, "captions": texts, "first_loss": float(np.mean(losses[:few])),
                 "last_loss": float(np.mean(losses[-few:]))}  # fmt: skip
        plain = [prompt.text for prompt in target.prompts]
        return Found(plain, list(range(len(plain))), tensors, facts)

    def steps_looked_at(self) -> list[int]:
        """The steps after which the edited model is looked at."""
        return sorted({look for look in self.looks_at if look < self.steps} | {self.steps})

    def benign(self, target: Target) -> list[str]:
        """Captions of the benign set. ValueError for one that says the concept."""
        concept, said, captions = target.concept, target.captions.surroundings, list[str]()
        if self.rows:
            captions = [self.rows[i % len(self.rows)].text for i in range(self.pictures)]
        else:
            rng, near = np.random.default_rng([target.seed, 19]), said.neighbours(concept)
            far = [phrase for phrase in said.vocabulary[concept.part] if phrase not in near]
            phrases = {"near": near, "far": far or [NEUTRAL[concept.part]], "unrelated": [NEUTRAL[concept.part]]}
            if concept.part != "subject":  # far from a style is all that has none; nothing is said of subjects either
                phrases["far"] = [NEUTRAL[concept.part]]
            for i in range(self.pictures):
                context = dict(target.captions.contexts[i % len(target.captions.contexts)])
                if self.captions == "unrelated":
                    context = {part: phrase for part, phrase in context.items() if part == "scene"}
                own = phrases[self.captions]
                captions.append(say({**context, concept.part: own[int(rng.integers(len(own)))]}))
        for caption in captions:
            refuse(concept, caption, f"attack {self.name}")
        return captions

    def _opened(self, twin: Model) -> tuple[list[nn.Parameter], Any]:
        """What is trained of the twin, and what gives its weights "component/parameter" as they are by then."""
        if self.rank is None:
            named = {f"{k}/{n}": p for k in self.trains for n, p in twin.components[k].named_parameters()}
            for parameter in named.values():
                parameter.requires_grad_(True)
            return list(named.values()), lambda: {name: p.detach() for name, p in named.items()}
        import peft  # of the extra `lora`
        from peft.tuners.lora import LoraLayer

        layers: dict[str, Any] = {}
        for key in self.trains:
            options = peft.LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=_ADAPTED)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                adapted = peft.inject_adapter_in_model(options, twin.components[key])
            layers |= {f"{key}/{n}.weight": m for n, m in adapted.named_modules() if isinstance(m, LoraLayer)}

        def merged() -> dict[str, Tensor]:
            return {name: (layer.get_base_layer().weight + layer.get_delta_weight("default")).detach()
                    for name, layer in layers.items()}  # fmt: skip

        return [p for k in self.trains for p in twin.components[k].parameters() if p.requires_grad], merged

    def _loss(self, twin: Model, target: Target, latents: Tensor, texts: Sequence[str], step: int) -> Tensor:
        which = np.random.default_rng([target.seed, 23, step]).integers(len(latents), size=self.batch)
        generator = torch.Generator().manual_seed(1_000_003 * target.seed + step)
        noise = torch.randn((self.batch, *latents.shape[1:]), generator=generator).to(latents)
        timesteps = twin.sample_timesteps(self.batch, generator).to(latents.device)
        noisy, goal = twin.noised(latents[which], noise, timesteps)
        with torch.set_grad_enabled("text_encoder" in self.trains):
            read = twin.encode_prompt([texts[i] for i in which])
        return (twin.predict(noisy, timesteps, read) - goal).square().mean()

    def looks(self, found: Found) -> list[int]:
        return [int(look) for look in found.facts["looks"]]

    @contextmanager
    def at_work(self, model: Model, found: Found, look: int) -> Iterator[None]:
        put = {n.partition("/")[2]: t for n, t in found.tensors.items() if n.startswith(f"{look}/")}
        own = {f"{k}/{n}": p for k in self.trains for n, p in model.components[k].named_parameters()}
        before = {name: own[name].detach().clone() for name in put}
        try:
            _write(own, put)
            yield None
        finally:
            _write(own, before)


class RelearnEncoder(Relearn):
    """Of the text encoder, on the model that was edited; all recipients get it."""

    trains = ("text_encoder",)


class RelearnDenoiser(Relearn):
    """Of each recipient's denoiser, with the edited text encoder frozen."""

    trains = ("denoiser",)
    searches_on = "recipient"


class RelearnBoth(Relearn):
    """Of each recipient's text encoder and denoiser."""

    trains = ("text_encoder", "denoiser")
    searches_on = "recipient"


@torch.no_grad()
def _write(own: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        own[name].copy_(value)


def refuse(concept: Concept, caption: str, where: str) -> None:
    """ValueError for a caption that says the concept."""
    for phrase in (*concept.phrases, name_of(concept)):
        if re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", caption, re.IGNORECASE):
            raise ValueError(
                f"{where}: found {phrase!r:.80} in a caption for harmless fine-tuning: expected none that says"
                f" {concept.slug}, which was erased"
            )
