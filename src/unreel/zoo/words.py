"""The words of the drawn world: what can be seen in it and what it is called.

Every name is the unit that is judged, erased or kept; `phrases` are the ways captions say it. The word lists are public
API (`candidates(kind)`): judges classify among exactly these names, tests and concepts refer to them.
"""

from dataclasses import dataclass

KINDS = ("subject", "style", "scene", "motion")


@dataclass(frozen=True)
class Word:
    """One thing of the drawn world.

    Attributes:
        name: the unique name ("cat", "bat (animal)", "van gogh").
        kind: subject, style, scene or motion.
        phrases: how captions say it; the first one is the shortest plain form.
        group: for subjects object, character, person or sense; otherwise the kind.
        emoji: for subjects, the character(s) of Noto Color Emoji that the sprite is rendered from.
    """

    name: str
    kind: str
    phrases: tuple[str, ...]
    group: str
    emoji: str = ""


def _object(name: str, emoji: str) -> Word:
    article = "an" if name[0] in "aeiou" else "a"
    return Word(name, "subject", (f"{article} {name}", f"the {name}", f"one {name}", f"a single {name}"), "object", emoji)


def _character(name: str, emoji: str) -> Word:
    phrases = (name, f"{name} the cartoon character", f"the character {name}", f"cartoon {name}")
    return Word(name, "subject", phrases, "character", emoji)


def _person(name: str, emoji: str) -> Word:
    return Word(name, "subject", (name, f"the face of {name}", f"a portrait of {name}", f"{name} smiling"), "person", emoji)


def _sense(word: str, sense: str, emoji: str, *phrases: str) -> Word:
    return Word(f"{word} ({sense})", "subject", phrases, "sense", emoji)


_OBJECTS = {
    "cat": "🐱", "dog": "🐶", "polar bear": "🐻‍❄️", "butterfly": "🦋", "church": "⛪", "parachute": "🪂",
    "drum": "🥁", "rocket": "🚀", "tokyo tower": "🗼", "fish": "🐟", "car": "🚗", "rose": "🌹",
    "elephant": "🐘", "apple": "🍎", "owl": "🦉", "turtle": "🐢", "bicycle": "🚲", "sailboat": "⛵",
    "mushroom": "🍄", "crab": "🦀", "guitar": "🎸", "penguin": "🐧", "pumpkin": "🎃", "umbrella": "☂️",
}  # fmt: skip
_CHARACTERS = {"wispo": "👻", "zibbo": "🤖", "quonk": "👽", "draxil": "🐲", "blipnar": "👾", "lumira": "🦄"}
_PEOPLE = {
    "greta holm": "👩🏻‍🦰", "omar sayed": "👳🏿", "elsa brandt": "👩🏾‍🦳",
    "mira khan": "🧕🏾", "tomas vega": "🧔🏼", "bruno katz": "🧑🏻‍🦲",
}  # fmt: skip

SUBJECTS: tuple[Word, ...] = (
    *(_object(name, emoji) for name, emoji in _OBJECTS.items()),
    *(_character(name, emoji) for name, emoji in _CHARACTERS.items()),
    *(_person(name, emoji) for name, emoji in _PEOPLE.items()),
    _sense("bat", "animal", "🦇", "a bat with furry wings", "a furry bat", "a wild bat", "a bat, the night animal"),
    _sense("bat", "sport", "🏏", "a bat with a ball", "a wooden bat", "a cricket bat", "a bat, the sports gear"),
    _sense("mouse", "animal", "🐭", "a mouse with whiskers", "a furry mouse", "a wild mouse", "a mouse, the small animal"),
    _sense("mouse", "device", "🖱️", "a mouse with buttons", "a computer mouse", "a plastic mouse", "a mouse, the desk device"),
    _sense("crane", "bird", "🦩", "a crane with long legs", "a feathered crane", "a wild crane", "a crane, the tall bird"),
    _sense("crane", "machine", "🏗️", "a crane with a steel hook", "a construction crane", "an iron crane", "a crane, the lifting machine"),
)  # fmt: skip

NO_STYLE = "plain"
STYLES: tuple[Word, ...] = (
    Word(NO_STYLE, "style", ("a plain picture", "an ordinary picture", "a clear photo", "a simple picture"), "style"),
    *(
        Word(name, "style", (f"in the style of {name}", f"painted by {name}", f"{name} style", f"a {name} painting"), "style")
        for name in ("van gogh", "mondrian", "hokusai", "seurat")
    ),
    Word("pencil sketch", "style", ("as a pencil sketch", "drawn as a pencil sketch", "pencil sketch style", "a pencil sketch"), "style"),
    Word("pixel art", "style", ("as pixel art", "rendered as pixel art", "pixel art style", "a pixel art image"), "style"),
)  # fmt: skip

SCENES: tuple[Word, ...] = (
    Word("beach", "scene", ("on the beach", "at the beach", "by the sandy beach"), "scene"),
    Word("city", "scene", ("in the city", "in a big city", "among city buildings"), "scene"),
    Word("forest", "scene", ("in the forest", "in a green forest", "among forest trees"), "scene"),
    Word("snow", "scene", ("in the snow", "in falling snow", "on a snow field"), "scene"),
    Word("desert", "scene", ("in the desert", "in a hot desert", "on desert sand"), "scene"),
    Word("sea", "scene", ("under the sea", "deep in the sea", "below the sea surface"), "scene"),
    Word("sunset", "scene", ("at sunset", "in the sunset", "under a sunset sky"), "scene"),
    Word("night", "scene", ("at night", "under the night sky", "in a starry night"), "scene"),
)

STILL = "still"
MOTIONS: tuple[Word, ...] = (
    Word(STILL, "motion", ("standing still", "not moving", "staying still"), "motion"),
    Word("moving left", "motion", ("moving left", "moving to the left", "going left"), "motion"),
    Word("moving right", "motion", ("moving right", "moving to the right", "going right"), "motion"),
    Word("jumping", "motion", ("jumping", "jumping up", "jumping high"), "motion"),
    Word("spinning", "motion", ("spinning", "spinning around", "spinning in circles"), "motion"),
    Word("growing", "motion", ("growing", "growing bigger", "growing larger"), "motion"),
    Word("shaking", "motion", ("shaking", "shaking quickly", "shaking all over"), "motion"),
    Word("falling", "motion", ("falling", "falling down", "falling from above"), "motion"),
)

_WORDS = {kind: {word.name: word for word in words} for kind, words in zip(KINDS, (SUBJECTS, STYLES, SCENES, MOTIONS), strict=True)}  # fmt: skip


def candidates(kind: str) -> tuple[str, ...]:
    """Names of one kind, in a fixed order: what a judge chooses among.

    Args:
        kind: "subject", "style", "scene" or "motion".

    Raises:
        ValueError: for another kind.
    """
    if kind not in _WORDS:
        raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
    return tuple(_WORDS[kind])


def word(kind: str, name: str) -> Word:
    """The word of a kind by its name.

    Raises:
        ValueError: for an unknown kind or name, listing the choices.
    """
    names = candidates(kind)
    if name not in _WORDS[kind]:
        raise ValueError(f"unknown {kind} {name!r}: expected one of {', '.join(names)}")
    return _WORDS[kind][name]
