"""One edit or several: which recipients hold the weights that an edit changes, and who is edited for the others."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unreel.edits import hashes_of, unshared
from unreel.methods.method import Method
from unreel.models.model import Model, Reading

_log = logging.getLogger(__name__)
# what decides, beside its weights, what a text encoder makes of a text: of CLIP and language models, then of T5
_READ_BY = (
    "model_type", "num_hidden_layers", "hidden_size", "hidden_act", "layer_norm_eps", "max_position_embeddings",
    "num_heads", "feed_forward_proj", "layer_norm_epsilon", "relative_attention_num_buckets",
    "relative_attention_max_distance",
)  # fmt: skip


@dataclass(frozen=True)
class Held:
    """What a model has to hold to get an edit of some of the donor's components, told without the donor.

    Attributes:
        donor: its name.
        base: "component/parameter" -> hash of the donor's weights, of these components.
        vocabulary: of its tokenizer, of an edit of the text encoder; otherwise None.
        read_by: the text encoder's kind, depth, activation, norm's epsilon and places of tokens, likewise.
        reading: how the donor reads prompts, likewise.
    """

    donor: str
    base: Mapping[str, str]
    vocabulary: Mapping[str, int] | None
    read_by: Mapping[str, Any]
    reading: Reading | None

    @classmethod
    def by(cls, donor: Model, components: Sequence[str]) -> "Held":
        """What the donor holds."""
        base, own = hashes_of(donor.components, components), "text_encoder" in components
        vocabulary, reading = (donor.pipeline.tokenizer.get_vocab(), donor.reading) if own else (None, None)
        return cls(donor.name, base, vocabulary, _read_by(donor, own), reading)

    def differs(self, recipient: Model) -> str:
        """What keeps the edit out of a recipient; "" when nothing does."""
        own = self.vocabulary is not None
        if own and recipient.pipeline.tokenizer.get_vocab() != self.vocabulary:
            return f"{recipient.name} has another tokenizer vocabulary than {self.donor}: no edit can be shared"
        for key, theirs in _read_by(recipient, own).items():
            if theirs != (ours := self.read_by[key]):
                return f"{recipient.name} has another text encoder than {self.donor}: {key} is {theirs}, not {ours}"
        try:
            said = unshared(self.base, recipient.components)
        except ValueError as error:  # it is quantised
            raise ValueError(f"{recipient.name}: {error}") from None
        if said:
            return f"{recipient.name} holds other weights than {self.donor}: {said}"
        return ""


def _read_by(model: Model, told: bool) -> dict[str, Any]:
    return {key: getattr(model.components["text_encoder"].config, key, None) for key in _READ_BY if told}


@dataclass(frozen=True)
class Share:
    """Recipients that get the same edit, and the model that it is made on: the donor, or a recipient itself."""

    maker: Model
    recipients: list[Model]


def plan(
    donor: Model, recipients: Sequence[Model], method: Method, roles: Sequence[str], one_at_a_time: bool = False
) -> list[Share]:
    """Who is edited for whom. The donor's edit goes where it fits; elsewhere the method runs on the recipient itself.

    Args:
        donor, recipients: the models.
        method: what edits.
        roles: which weights.
        one_at_a_time: whether a model is released before the next one is loaded.

    Raises:
        ValueError: when it fits nowhere, or for a recipient that has other weights and on which the method cannot run,
            saying what differs.
    """
    method.check(donor, roles)
    held = Held.by(donor, method.edits) if method.edits else None
    alike, alone, loaded = Share(donor, []), [], donor
    for recipient in recipients:
        if one_at_a_time:
            loaded.release()
        loaded = recipient
        why = held.differs(recipient) if held else ""
        if why and method.needs:
            raise ValueError(
                f"{why}; method {method.name} learns from {', '.join(sorted(method.needs))} of {donor.name} and cannot"
                f" run on {recipient.name} itself: choose a recipient that shares the donor's weights"
            )
        if why or not held:  # it is edited itself, or the method attaches itself to its pipeline
            method.check(recipient, roles)
        if why:
            alone.append(Share(recipient, [recipient]))
        else:
            alike.recipients.append(recipient)
            if held is not None and held.reading and (how := held.reading.differs(recipient.reading)):
                _log.warning(
                    f"{recipient.name} reads prompts otherwise than {donor.name}, on which the edit is made: {how}"
                )
    if one_at_a_time:
        loaded.release()
    return ([alike] if alike.recipients else []) + alone
