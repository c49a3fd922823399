"""One edit or several: which recipients hold the weights that an edit changes, and who is edited for the others."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unreel.methods.method import Method
from unreel.models.model import Model, Reading
from unreel.models.outline import Encoder, deaf, outlined
from unreel.weights import hashes_of, unshared

_log = logging.getLogger(__name__)


class Unshared(ValueError):
    """An edit does not fit a recipient, and cannot be made on it either.

    Attributes:
        recipient: its name.
    """

    def __init__(self, said: str, recipient: str) -> None:
        super().__init__(said)
        self.recipient = recipient


@dataclass(frozen=True)
class Held:
    """What a model has to hold to get an edit of some of the donor's components, told without the donor.

    Attributes:
        donor: its name.
        base: "component/parameter" -> hash of the donor's weights, of these components.
        encoder: all else that decides what its text encoder makes of a text, of an edit of that; otherwise None.
    """

    donor: str
    base: Mapping[str, str]
    encoder: Encoder | None

    @classmethod
    def by(cls, donor: Model, components: Sequence[str]) -> "Held":
        """What the donor holds."""
        base, own = hashes_of(donor.components, components), "text_encoder" in components
        return cls(donor.name, base, Encoder.of(donor) if own else None)

    def differs(self, recipient: Model) -> str:
        """What keeps the edit out of a recipient; "" when nothing does."""
        if self.encoder is not None and (said := self.encoder.differs(Encoder.of(recipient))):
            return said
        try:
            said = unshared(self.base, recipient.components)
        except ValueError as error:  # it is quantised
            raise ValueError(f"{recipient.name}: {error}") from None
        if said:
            return f"{recipient.name} holds other weights than {self.donor}: {said}"
        return ""


@dataclass(frozen=True)
class Share:
    """Recipients that get the same edit, and the models that it is made on.

    Attributes:
        maker: holds all weights that the edit changes: the donor, or a recipient that is edited itself.
        recipients: those that get it.
        makers: for each member of the method the model that its part is made on; one that is shared is made once.
        readings: how recipients read prompts, where otherwise than the maker of the text encoder's edit.
    """

    maker: Model
    recipients: list[Model]
    makers: Sequence[Model] = ()
    readings: Sequence[Reading] = ()


def _unshared(why: str, donor: Model, recipient: Model, method: Method) -> Unshared:
    return Unshared(
        f"{why}; method {method.name} learns from {', '.join(sorted(method.needs))} of {donor.name} and cannot"
        f" run on {recipient.name} itself: choose a recipient that shares the donor's weights",
        recipient.name,
    )


def check_outlines(donor: Model, recipients: Sequence[Model], method: Method, roles: Sequence[str]) -> None:
    """Unshared for a recipient that an edit of the text encoder cannot fit, told before any weights are read.

    Configs, tokenizers and names of tensors tell most wrong pairs in a second. Models that are not on this machine yet
    are not looked at.
    """
    ours = outlined(donor)
    for recipient in recipients if ours is not None else []:
        theirs = outlined(recipient)
        if theirs is None:
            continue
        assert ours is not None
        if why := Encoder.of(ours).differs(Encoder.of(theirs)):
            raise _unshared(why, donor, recipient, method)
        if why := deaf(theirs, roles):
            raise _unshared(why, donor, recipient, method)


def _held(donor: Model, member: Method, roles: Sequence[str]) -> Held:
    """What a recipient has to hold to get a member's edit: the components that it edits, and those of its roles."""
    touched = [name.partition("/")[0] for name in donor.select(roles)]
    return Held.by(donor, list(dict.fromkeys([*member.edits, *touched])))


def plan(
    donor: Model, recipients: Sequence[Model], method: Method, roles: Sequence[str], one_at_a_time: bool = False,
    low_rank: bool = False,
) -> list[Share]:  # fmt: skip
    """Who is edited for whom. The donor's edit goes where it fits; elsewhere the method runs on the recipient itself.

    Of a method with several members this holds for each: a recipient that shares the donor's text encoder alone gets
    the donor's edit of that, and is edited itself where its other weights differ.

    Args:
        donor, recipients: the models.
        method: what edits.
        roles: which weights.
        one_at_a_time: whether a model is released before the next one is loaded.
        low_rank: whether factors are trained beside the weights.

    Raises:
        ValueError: when it fits nowhere, or for a recipient that has other weights and on which the method cannot run,
            saying what differs.
    """
    if "text_encoder" in method.edits and method.needs:
        check_outlines(donor, recipients, method, roles)
    method.check(donor, roles)
    method.check_dtypes(donor, low_rank)
    members = [(member, method.roles_of(member, donor, roles)) for member in method.members]
    held = [_held(donor, member, own) if member.edits else None for member, own in members]
    readings, alone, loaded = list[Reading](), [], donor
    alike = Share(donor, [], [donor] * len(members), readings)
    for recipient in recipients:
        if one_at_a_time:
            loaded.release()
        loaded = recipient
        makers, own_reading = [], list[Reading]()
        for (member, own), theirs in zip(members, held, strict=True):
            why = theirs.differs(recipient) if theirs else ""
            if why and member.needs:
                raise _unshared(why, donor, recipient, member)
            if why or not theirs:  # it is edited itself, or the method attaches itself to its pipeline
                member.check(recipient, own)
                member.check_dtypes(recipient, low_rank)
            elif theirs.encoder and (how := theirs.encoder.reads_otherwise(Encoder.of(recipient))):
                _log.warning(
                    f"{recipient.name} reads prompts otherwise than {donor.name}, on which the edit is made: {how}"
                )
                own_reading += [recipient.reading] if donor.reading.differs(recipient.reading) else []
            makers.append(recipient if why else donor)
        if recipient in makers:
            alone.append(Share(recipient, [recipient], makers, own_reading))
        else:
            alike.recipients.append(recipient)
            readings += [reading for reading in own_reading if reading not in readings]
    if one_at_a_time:
        loaded.release()
    return ([alike] if alike.recipients else []) + alone
