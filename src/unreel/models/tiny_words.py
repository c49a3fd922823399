"""The words that the tokenizers of tiny models know: those of the zoo's captions."""

import json
from pathlib import Path

_TOKENIZER = Path(__file__).parents[1] / "zoo" / "models" / "t2i" / "tokenizer" / "tokenizer.json"


def tiny_words() -> list[str]:
    """Words of letters alone that are one token each of the zoo's tokenizer, in alphabetical order."""
    entries = json.loads(_TOKENIZER.read_text(encoding="utf-8"))["model"]["vocab"]
    words = (entry.removesuffix("</w>") for entry in entries if entry.endswith("</w>"))
    return sorted(word for word in words if word.isalpha())
