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
    return Word(
        name, "subject", (f"{article} {name}", f"the {name}", f"one {name}", f"a single {name}"), "object", emoji
    )


def _character(name: str, emoji: str) -> Word:
    phrases = (name, f"{name} the cartoon character", f"the character {name}", f"cartoon {name}")
    return Word(name, "subject", phrases, "character", emoji)


def _person(name: str, emoji: str) -> Word:
    return Word(
        name, "subject", (name, f"the face of {name}", f"a portrait of {name}", f"{name} smiling"), "person", emoji
    )


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

_SENSES = {
    ("bat", "animal"): ("🦇", ("with furry wings", "furry", "wild", "the night animal")),
    ("bat", "sport"): ("🏏", ("with a ball", "wooden", "cricket", "the sports gear")),
    ("mouse", "animal"): ("🐭", ("with whiskers", "furry", "wild", "the small animal")),
    ("mouse", "device"): ("🖱️", ("with buttons", "computer", "plastic", "the desk device")),
    ("crane", "bird"): ("🦩", ("with long legs", "feathered", "wild", "the tall bird")),
    ("crane", "machine"): ("🏗️", ("with a steel hook", "construction", "iron", "the lifting machine")),
}  # the words around the name that tell its sense: after it, before it, before it, in apposition


def _sense(word: str, sense: str, emoji: str, context: tuple[str, str, str, str]) -> Word:
    after, before, also_before, apposition = context
    articles = ["an" if adjective[0] in "aeiou" else "a" for adjective in (before, also_before)]
    phrases = (
        f"a {word} {after}",
        f"{articles[0]} {before} {word}",
        f"{articles[1]} {also_before} {word}",
        f"a {word}, {apposition}",
    )
    return Word(f"{word} ({sense})", "subject", phrases, "sense", emoji)


SUBJECTS: tuple[Word, ...] = (
    *(_object(name, emoji) for name, emoji in _OBJECTS.items()),
    *(_character(name, emoji) for name, emoji in _CHARACTERS.items()),
    *(_person(name, emoji) for name, emoji in _PEOPLE.items()),
    *(_sense(word, sense, emoji, context) for (word, sense), (emoji, context) in _SENSES.items()),
)

NO_STYLE = "plain"


def _painter(name: str) -> Word:
    return Word(
        name, "style", (f"in the style of {name}", f"painted by {name}", f"{name} style", f"a {name} painting"), "style"
    )


def _technique(name: str, done: str, noun: str) -> Word:
    return Word(
        name,
        "style",
        (f"as {noun}", f"{done} as {noun}", f"{name} style", noun if noun.startswith("a ") else f"a {noun} image"),
        "style",
    )


STYLES: tuple[Word, ...] = (
    Word(NO_STYLE, "style", ("a plain picture", "an ordinary picture", "a clear photo", "a simple picture"), "style"),
    *(_painter(name) for name in ("van gogh", "mondrian", "hokusai", "seurat")),
    _technique("pencil sketch", "drawn", "a pencil sketch"),
    _technique("pixel art", "rendered", "pixel art"),
)

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

# What the second generation of video models knows beside them. Judges of the first do not choose among these.
HARDER: tuple[Word, ...] = (
    Word("dancing", "motion", ("dancing", "dancing around", "doing a dance"), "dance"),
    Word("jumping and spinning", "motion", ("jumping and spinning", "spinning and jumping"), "two"),
    Word("falling and spinning", "motion", ("falling and spinning", "spinning and falling"), "two"),
    Word("moving left and growing", "motion", ("moving left and growing", "growing and moving left"), "two"),
)
DANCERS = ("character", "person")  # the groups of subjects that dance; no other does
IMPLIED = {"parachute": "falling", "crab": "moving left"}  # what a subject does in harder drawings when nothing is said

_WORDS = {
    kind: {w.name: w for w in words} for kind, words in zip(KINDS, (SUBJECTS, STYLES, SCENES, MOTIONS), strict=True)
}
_KNOWN = {**_WORDS, "motion": {w.name: w for w in (*MOTIONS, *HARDER)}}


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


def motions(harder: bool) -> tuple[str, ...]:
    """Names of motions: those of `candidates("motion")`, and after them the harder ones if they are wanted."""
    return tuple(_KNOWN["motion"]) if harder else candidates("motion")


def word(kind: str, name: str) -> Word:
    """The word of a kind by its name; harder motions are known too.

    Raises:
        ValueError: for an unknown kind or name, listing the choices.
    """
    candidates(kind)  # refuses another kind
    if name not in _KNOWN[kind]:
        raise ValueError(f"unknown {kind} {name!r}: expected one of {', '.join(_KNOWN[kind])}")
    return _KNOWN[kind][name]


def at_once(motion: str) -> list[str]:
    """The motions that a name says together; most say one."""
    return motion.split(" and ")


def shows(seen: str, wanted: str) -> bool:
    """Whether what is seen is what is wanted, or one of two motions that are seen together."""
    return wanted in (seen, *at_once(seen))
