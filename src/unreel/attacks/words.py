"""Words: what attacks on text encoders have in common. The slots for learned ones are in `unreel.methods.slots`."""

from collections.abc import Sequence

from unreel.methods.keywords import said_with
from unreel.methods.slots import check_table
from unreel.models.model import Model
from unreel.records import Concept, Prompt
from unreel.vocabulary import NEUTRAL


def without(text: str, concept: Concept) -> str:
    """A text that says something in the concept's place, or nothing."""
    return said_with(text, concept, NEUTRAL[concept.part]) or NEUTRAL["subject"]


def check_clip_like(model: Model, attack: str) -> None:
    """ValueError for a model whose text encoder has no embeddings of tokens that can be learned."""
    check_table(model, f"attack {attack}")


def attacked(prompts: Sequence[Prompt], of: Sequence[int], texts: Sequence[str], split: str) -> list[Prompt]:
    """Attacked prompts: the judge is asked about the concept alone."""
    made = []
    for i, text in zip(of, texts, strict=True):
        own = prompts[i]
        shows = tuple(pair for pair in own.shows if pair[0] == own.part)
        made.append(Prompt(text, split, shows, own.concept, own.part, own.seed))
    return made
