"""One edit or several: which recipients hold the weights that an edit changes, and who is edited for the others."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unreel.methods.method import Method
from unreel.models.model import Model, Reading
from unreel.weights import hashes_of, unshared

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
        vocabulary, reading = (donor.tokenizer.get_vocab(), donor.reading) if own else (None, None)
        return cls(donor.name, base, vocabulary, _read_by(donor, own), reading)

    def differs(self, recipient: Model) -> str:
        """What keeps the edit out of a recipient; "" when nothing does."""
        own = self.vocabulary is not None
        if own and recipient.tokenizer.get_vocab() != self.vocabulary:
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
    """Recipients that get the same edit, and the models that it is made on.

    Attributes:
        maker: holds all weights that the edit changes: the donor, or a recipient that is edited itself.
        recipients: those that get it.
        makers: for each member of the method the model that its part is made on; one that is shared is made once.
    """

    maker: Model
    recipients: list[Model]
    makers: Sequence[Model] = ()


def plan(
    donor: Model, recipients: Sequence[Model], method: Method, roles: Sequence[str], one_at_a_time: bool = False
) -> list[Share]:
    """Who is edited for whom. The donor's edit goes where it fits; elsewhere the method runs on the recipient itself.

    Of a method with several members this holds for each: a recipient that shares the donor's text encoder alone gets
    the donor's edit of that, and is edited itself where its other weights differ.

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
    members = [(member, method.roles_of(member, donor, roles)) for member in method.members]
    held = [Held.by(donor, member.edits) if member.edits else None for member, _ in members]
    alike, alone, loaded = Share(donor, [], [donor] * len(members)), [], donor
    for recipient in recipients:
        if one_at_a_time:
            loaded.release()
        loaded = recipient
        makers = []
        for (member, own), theirs in zip(members, held, strict=True):
            why = theirs.differs(recipient) if theirs else ""
            if why and member.needs:
                raise ValueError(
                    f"{why}; method {member.name} learns from {', '.join(sorted(member.needs))} of {donor.name} and"
                    f" cannot run on {recipient.name} itself: choose a recipient that shares the donor's weights"
                )
            if why or not theirs:  # it is edited itself, or the method attaches itself to its pipeline
                member.check(recipient, own)
            elif theirs.reading and (how := theirs.reading.differs(recipient.reading)):
                _log.warning(
                    f"{recipient.name} reads prompts otherwise than {donor.name}, on which the edit is made: {how}"
                )
            makers.append(recipient if why else donor)
        if recipient in makers:
            alone.append(Share(recipient, [recipient], makers))
        else:
            alike.recipients.append(recipient)
    if one_at_a_time:
        loaded.release()
    return ([alike] if alike.recipients else []) + alone
