"""One edit or several: which recipients hold the weights that an edit changes, and who is edited for the others."""

from collections.abc import Sequence
from dataclasses import dataclass

from unreel.edits import hashes_of, unshared
from unreel.methods.method import Method
from unreel.models.model import Model

_READ_BY = ("num_hidden_layers", "hidden_size", "hidden_act", "layer_norm_eps", "max_position_embeddings")


def differs(donor: Model, recipient: Model, components: Sequence[str]) -> str:
    """What keeps an edit of some of the donor's components out of a recipient; "" when nothing does.

    Compares, for an edit of the text encoder, the tokenizer's vocabulary and the encoder's output layer (depth,
    activation, final norm's epsilon), and for every component its weights, tensor by tensor.
    """
    if "text_encoder" in components:
        vocabularies = [model.pipeline.tokenizer.get_vocab() for model in (donor, recipient)]
        if vocabularies[0] != vocabularies[1]:
            return f"{recipient.name} has another tokenizer vocabulary than {donor.name}: no edit can be shared"
        for key in _READ_BY:
            ours, theirs = (getattr(m.components["text_encoder"].config, key, None) for m in (donor, recipient))
            if ours != theirs:
                return f"{recipient.name} has another text encoder than {donor.name}: {key} is {theirs}, not {ours}"
    if said := unshared(hashes_of(donor.components, components), recipient.components):
        return f"{recipient.name} holds other weights than {donor.name}: {said}"
    return ""


@dataclass(frozen=True)
class Share:
    """Recipients that get the same edit, and the model that it is made on: the donor, or a recipient itself."""

    maker: Model
    recipients: list[Model]


def plan(donor: Model, recipients: Sequence[Model], method: Method, roles: Sequence[str]) -> list[Share]:
    """Who is edited for whom. The donor's edit goes where it fits; elsewhere the method runs on the recipient itself.

    Raises:
        ValueError: when it fits nowhere, or for a recipient that has other weights and on which the method cannot run,
            saying what differs.
    """
    method.check(donor, roles)
    alike, alone = Share(donor, []), []
    for recipient in recipients:
        if not method.edits:  # it attaches itself to the recipient's own pipeline
            method.check(recipient, roles)
        why = differs(donor, recipient, method.edits) if method.edits else ""
        if not why:
            alike.recipients.append(recipient)
            continue
        if method.needs:
            raise ValueError(
                f"{why}; method {method.name} learns from {', '.join(sorted(method.needs))} of {donor.name} and cannot"
                f" run on {recipient.name} itself: choose a recipient that shares the donor's weights"
            )
        method.check(recipient, roles)
        alone.append(Share(recipient, [recipient]))
    return ([alike] if alike.recipients else []) + alone
