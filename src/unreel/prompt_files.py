"""Evaluation prompts from a file of the user's, or from a published prompt set.

    .txt    one prompt a line
    .csv    a column `prompt`, and any of the columns below
    .json   a list of prompts, or of objects with a key `prompt` (or `prompt_en`, as in VBench's lists)
    .jsonl  the same, one a line

A row or object may also say `split` (forget, retain or other_sense; forget where it is left out), `concept` (the slug
of the one that it belongs to; every erased one where it is left out), `evaluation_seed`, and what the text shows, in
words that the judge knows: `subject`, `motion`, `scene`, `style`. All else (`case_number`, ...) is ignored.

Published sets: the tables of Gandikota et al., "Unified Concept Editing in Diffusion Models" (WACV 2024, arXiv
2308.14761); the lists of Huang et al., "VBench" (CVPR 2024, arXiv 2311.17982).
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

from unreel.prompts import PromptSource, asking_for
from unreel.records import PARTS, Concept, Prompt
from unreel.vocabulary import Surroundings

SPLITS = ("forget", "retain", "other_sense")
MOST_PROMPTS = 10_000
MOST_CHARACTERS = 10_000  # of a line, and of a text
_MOST_LINES = 10 * MOST_PROMPTS  # blank lines count, and those inside of quotes
_MOST_JSON = 32_000_000  # characters of a .json file, which is read as a whole
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # all but tab and line ends
_UNDECODED = re.compile(r"[\ud800-\udfff]")  # what bytes become that are not UTF-8, and half a character of JSON

T = TypeVar("T")
Entry = tuple[str, Mapping[str, Any]]  # "FILE, line 3", and what it says


@dataclass(frozen=True)
class Row:
    """One prompt of a file.

    Attributes:
        where: file and line, for error messages.
        text: the prompt, with single spaces.
        split: forget | retain | other_sense.
        concept: slug of the concept that it belongs to; "" for all.
        seed: of its clip, or None.
        shows: part -> what the text is said to show.
    """

    where: str
    text: str
    split: str
    concept: str
    seed: int | None
    shows: Mapping[str, str]


@dataclass(frozen=True)
class FilePrompts(PromptSource):
    """Prompts of a file, which is read and checked when this is built.

    Attributes:
        path: the file; "~" is the home folder.
        limit: at most so many prompts a split and concept, evenly spaced over the whole file; None takes all.
        rows: what the file says.

    Raises:
        ValueError: for a limit below 1, a file that cannot be read, or one that says what no prompt can be made of.
    """

    path: str
    limit: int | None = None
    rows: tuple[Row, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        limit = 1 if self.limit is None else self.limit
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"found prompts.limit={self.limit}: expected a whole number, 1 or more, or null")
        if not isinstance(self.path, str) or not self.path:
            raise ValueError(f"found prompts.path={self.path}: expected a file, as in prompts.path=prompts.csv")
        object.__setattr__(self, "rows", read_rows(self.path))

    def prompts(self, concepts: Sequence[Concept], surroundings: Surroundings, seed: int) -> list[Prompt]:
        """Prompts of each concept, split by split, in the order of the file; equal ones once.

        Raises:
            ValueError: for a row that contradicts a concept.
        """
        made: list[Prompt] = []
        for concept in concepts:
            own: dict[tuple[str, str, int | None], Prompt] = {}
            for row in self.rows:
                if row.concept in ("", concept.slug):
                    own.setdefault((row.split, row.text, row.seed), _prompt(row, concept, concepts))
            for split in SPLITS:
                made += spread([prompt for prompt in own.values() if prompt.split == split], self.limit)
        return made


def _prompt(row: Row, concept: Concept, concepts: Sequence[Concept]) -> Prompt:
    """A row as a prompt of a concept. ValueError when it forgets another thing, or keeps what is erased."""
    if row.split == "forget":
        named = row.shows.get(concept.part)
        if named is not None and not _is_said(named, concept):
            raise ValueError(
                f"{row.where}: found {concept.part} {_short(named)} in a prompt that asks for {concept.slug}: expected"
                f" {' | '.join(concept.phrases)}, or nothing there, or another concept"
            )
        asking = asking_for(concept, row.text, row.seed)
        return replace(asking, shows=_in_order({**row.shows, **dict(asking.shows)}))
    for erased in concepts:
        if erased.part in row.shows and _is_said(row.shows[erased.part], erased):
            raise ValueError(
                f"{row.where}: found {erased.part} {_short(row.shows[erased.part])} in a prompt of split {row.split},"
                f" though {erased.slug} is erased: expected split forget, or no such prompt"
            )
    return Prompt(row.text, row.split, _in_order(row.shows), concept.slug, "", row.seed)


def _is_said(phrase: str, concept: Concept) -> bool:
    return phrase.casefold() in {own.casefold() for own in concept.phrases}


def _in_order(shows: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((part, shows[part]) for part in PARTS if part in shows)


def spread(items: Sequence[T], count: int | None) -> Sequence[T]:
    """`count` of the items, evenly spaced: the middle ones of `count` stretches of equal length.

    >>> spread("abcdefghij", 3)
    ['b', 'f', 'i']
    """
    n = len(items)
    return items if count is None or n <= count else [items[(2 * i + 1) * n // (2 * count)] for i in range(count)]


def read_rows(path: str) -> tuple[Row, ...]:
    """All prompts of a file. ValueError in one line, with file and line, for what will not do."""
    try:
        file = Path(path).expanduser()
        if file.is_dir():
            raise ValueError(f"{file} is a folder: expected a file of prompts")
        if not file.is_file():
            raise ValueError(f"{file} is no file: expected one of prompts, as in prompts.path=prompts.csv")
        if (read := _READERS.get(file.suffix.lower())) is None:
            raise ValueError(f"{file}: found the ending {file.suffix!r}: expected {', '.join(_READERS)}")
        rows: list[Row] = []
        # bytes that are not UTF-8 become characters that _check finds, so that their line can be named
        with file.open(encoding="utf-8-sig", errors="surrogateescape") as opened:
            for where, entry in read(str(file), opened):
                if len(rows) == MOST_PROMPTS:
                    raise ValueError(f"{file}: found more than {MOST_PROMPTS:,} prompts: expected that many at most")
                rows.append(_row(where, entry))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): expected a file of prompts") from None
    except RuntimeError as error:  # no such home folder
        raise ValueError(f"{path} cannot be found ({error}): expected a file of prompts") from None
    if not rows:
        raise ValueError(f"{file} is empty: expected one prompt or more")
    return tuple(rows)


def _row(where: str, entry: Mapping[str, Any]) -> Row:
    key = "prompt_en" if entry.get("prompt") is None and entry.get("prompt_en") is not None else "prompt"
    if not (text := _text(entry, key, where)):
        raise ValueError(f"{where}: found no prompt: expected its text as {key}")
    split = _text(entry, "split", where) or "forget"
    if split not in SPLITS:
        raise ValueError(f"{where}: found split {_short(split)}: expected {' | '.join(SPLITS)}")
    shows = {part: said for part in PARTS if (said := _text(entry, part, where))}
    return Row(where, text, split, _text(entry, "concept", where), _seed(entry, where), shows)


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    """A text with single spaces; "" where there is none."""
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: found {key} {_short(value)}: expected text")
    _check(value, where)
    return " ".join(value.split())


def _seed(entry: Mapping[str, Any], where: str) -> int | None:
    value = entry.get("evaluation_seed")
    said = value.strip() if isinstance(value, str) else value
    if said is None or said == "":
        return None
    digits = str(said) if isinstance(said, str | int) else ""
    if not re.fullmatch("[0-9]{1,19}", digits) or int(digits) >= 2**63:
        raise ValueError(f"{where}: found evaluation_seed {_short(said)}: expected a whole number, 0 to 2**63 - 1")
    return int(digits)


def _short(value: Any) -> str:
    """A value of the user's as an error message quotes it: in one line, and not all of a long one."""
    said = repr(value) if isinstance(value, str | int | float) else f"of type {type(value).__name__}"
    return said if len(said) <= 60 else f"{said[:57]}..."


def _check(text: str, where: str) -> None:
    """ValueError for a text that is too long, or holds what is no text."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{where}: found more than {MOST_CHARACTERS:,} characters: expected that many at most")
    if _UNDECODED.search(text):
        raise ValueError(f"{where}: found what is not UTF-8: expected a file saved as UTF-8")
    if found := _CONTROL.search(text):
        raise ValueError(f"{where}: found the control character {found[0]!r}: expected text without any")


def _lines(name: str, file: TextIO) -> Iterator[str]:
    """The checked lines of a file; nothing is read beyond one that will not do."""
    for number in range(1, _MOST_LINES + 1):
        if not (line := file.readline(MOST_CHARACTERS + 2)):
            return
        _check(line.removesuffix("\n"), f"{name}, line {number}")
        yield line
    if file.readline(1):
        raise ValueError(f"{name}: found more than {_MOST_LINES:,} lines: expected {MOST_PROMPTS:,} prompts at most")


def _read_txt(name: str, file: TextIO) -> Iterator[Entry]:
    for number, line in enumerate(_lines(name, file), 1):
        if line.strip():
            yield f"{name}, line {number}", {"prompt": line}


def _read_csv(name: str, file: TextIO) -> Iterator[Entry]:
    table = csv.reader(_lines(name, file), strict=True, skipinitialspace=True)
    columns: list[str] = []
    while True:
        where = f"{name}, line {table.line_num + 1}"  # where a row begins: one in quotes may go on for several lines
        try:
            if (cells := next(table, None)) is None:
                return
        except csv.Error as error:
            raise ValueError(f"{where}: found a row that is no CSV ({error}): expected quotes in pairs") from None
        if not any(cell.strip() for cell in cells):
            continue
        if not columns:
            columns = [cell.strip() for cell in cells]
            if "prompt" not in columns:
                raise ValueError(f"{where}: found the columns {_short(', '.join(columns))}: expected one named prompt")
            if twice := [c for c in ("prompt", "split", "concept", "evaluation_seed", *PARTS) if columns.count(c) > 1]:
                raise ValueError(f"{where}: found the column {twice[0]} twice: expected it once")
        elif any(cell.strip() for cell in cells[len(columns) :]):
            raise ValueError(
                f"{where}: found {len(cells)} cells for {len(columns)} columns: expected quotes around text with commas"
            )
        else:
            yield where, dict(zip(columns, cells, strict=False))


def _read_json(name: str, file: TextIO) -> Iterator[Entry]:
    text = file.read(_MOST_JSON + 1)
    if len(text) > _MOST_JSON:
        raise ValueError(
            f"{name}: found more than {_MOST_JSON:,} characters: expected {MOST_PROMPTS:,} prompts at most"
        )
    if found := _UNDECODED.search(text):
        _check(found[0], f"{name}, line {text.count(chr(10), 0, found.start()) + 1}")
    entries = _parsed(text, name, 1) if text.strip() else []
    if not isinstance(entries, list):
        raise ValueError(f"{name}: found {_short(entries)}: expected a list of prompts, or of objects that have one")
    for number, entry in enumerate(entries, 1):
        yield f"{name}, entry {number}", _object(entry, f"{name}, entry {number}")


def _read_jsonl(name: str, file: TextIO) -> Iterator[Entry]:
    for number, line in enumerate(_lines(name, file), 1):
        if line.strip():
            where = f"{name}, line {number}"
            yield where, _object(_parsed(line.strip(), name, number), where)


def _parsed(text: str, name: str, line: int) -> Any:
    """A text as JSON, which begins at this line of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{name}, line {line + error.lineno - 1}"
        raise ValueError(f"{where}: found what is no JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{name}, line {line}: found JSON with too long a number, or nested too deeply") from None


def _object(entry: Any, where: str) -> Mapping[str, Any]:
    if isinstance(entry, str):
        return {"prompt": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: found {_short(entry)}: expected a prompt, or an object that has one")
    return entry


_READERS = {".txt": _read_txt, ".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl}
