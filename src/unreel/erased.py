"""What an edit says of itself: what it erases, and with which settings it was made; of a sum what all its edits say."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from unreel.concepts import slug_of
from unreel.metadata import ConceptSaid, Counted, Facts, MadeWith
from unreel.validation import validated

Said = TypeVar("Said", bound=MadeWith)


def parts_of(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How each of the edits that an edit is the sum of was made; of one that is no sum its own provenance alone."""
    return list(provenance.get("parts") or [provenance])


def made_with(provenance: Mapping[str, Any], read: type[Said]) -> Said:
    """The settings of the run that made an edit; of a sum one set of settings that asks for all concepts of its edits.

    Seeds and the number of clips at a time are those of the first edit; of other numbers the largest counts.

    Args:
        provenance: of the edit.
        read: what is read of the settings.

    Raises:
        ValueError: when an edit does not say what it erases, or two say it of one concept in different ways.
    """
    said = [validated(read, part.get("config") or {}) for part in parts_of(provenance)]
    if len(said) == 1:
        return said[0]
    dumped = [each.model_dump() for each in said]
    concepts: dict[str, Any] = {}
    for each in dumped:
        own = dict(each["concept"])
        if each["phrase"] is not None:  # given on the command line of its run
            own[slug_of(each["phrase"])] = ConceptSaid(kind=each["kind"], name=each["phrase"]).model_dump()
        for slug, concept in own.items():
            if concepts.setdefault(slug, concept) != concept:
                raise ValueError(
                    f"the added edits say {slug} in different ways (its phrases, anchor, neighbours or prompts):"
                    " expected one concept to be said alike, or edits of different concepts"
                )
    evaluation = {
        **dumped[0]["evaluation"],
        "prompts": max(each["evaluation"]["prompts"] for each in dumped),
        "motions": any(each["evaluation"]["motions"] for each in dumped),
    }
    joined = {
        **dumped[0], "concept": concepts, "phrase": None, "kind": None, "evaluation": evaluation,
        "vocabulary": {part: _once(phrase for each in dumped for phrase in each["vocabulary"].get(part, []))
                       for part in _once(part for each in dumped for part in each["vocabulary"])},
        "shots": max(each["shots"] for each in dumped),
    }  # fmt: skip
    for key in ("method", "parameters", "t2i"):
        joined[key] = {"name": "+".join(_once(each[key]["name"] for each in dumped))}
    return validated(read, joined)


def facts_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """How the training ended; of a sum that of all its edits together.

    Raises:
        ValueError: when an edit does not say so.
    """
    each = [part.get("facts") or {} for part in parts_of(provenance)]
    if len(each) == 1:
        validated(Facts, each[0])
        return dict(each[0])
    return together(each)


def together(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Facts of several edits as those of one: what was changed in all, and in how many steps. ValueError for others."""
    each = [validated(Counted, dict(one)) for one in facts]
    sizes = {tuple(one.components): one.of for one in each}
    lengths = [one.most_steps for one in each if one.most_steps is not None]
    return {
        "tensors": sum(one.tensors for one in each), "parameters": sum(one.parameters for one in each),
        "of": sum(sizes.values()), "components": _once(name for one in each for name in one.components),
        "attached": all(one.attached for one in each), "steps": sum(one.steps or 0 for one in each),
        "most_steps": sum(lengths) if lengths else None, "best_step": None,
        "stopped": "; ".join(one.stopped for one in each if one.stopped),
    }  # fmt: skip


def _once(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))
