"""Pairs of clips of one prompt, before an edit and after it: what is asked for, and how each clip is rendered."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch import Tensor

from unreel import assembly, door
from unreel.clips import to_uint8, write_mp4
from unreel.edits import Edit
from unreel.files import whole
from unreel.hashes import content_key
from unreel.models.model import Model

MOST_SEED = 2**31 - 1
MOST_CHARACTERS = 2000  # of a prompt, before its tokens are counted
IMAGE_PX = 256  # least edge of an image's file; that of clips is the same


def examples_of(path: Path, config: DictConfig, count: int) -> tuple[list[str], list[str]]:
    """Prompts of the run that made an edit: some that ask for what it erases, and some that must stay as they are.

    Args:
        path: of the edit.
        config: of an evaluation.
        count: of each, at most.

    Raises:
        ValueError: for an edit that is damaged, or that does not say what it erases.
    """
    config = config.copy()
    config.edit = str(path)
    questions = door.questions_of(assembly.rescoring(Edit.load(path), config))

    def some(split: str) -> list[str]:
        each = [
            [p.text for p in questions.prompts if (p.split, p.concept) == (split, concept.slug)]
            for concept in questions.concepts
        ]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*each))
        return list(dict.fromkeys(text for text in turns if text))[:count]

    return some("forget"), some("retain")


@dataclass(frozen=True)
class Clip:
    """The file of a clip, mp4, or of an image, png; and the seconds that its rendering took now, 0 if it was there."""

    path: Path
    seconds: float


class Pairs:
    """Renders clips before and after edits, one at a time, whoever asks. Models are loaded once, when first used.

    Args:
        entries: name -> config of a recipient, as in conf/t2v.
        device: where they render.
        folder: where the clips are kept, so that none is rendered twice.
        one_at_a_time: whether a model leaves memory before the next one is loaded.
    """

    def __init__(self, entries: Mapping[str, Any], device: str, folder: Path, one_at_a_time: bool = False) -> None:
        self.entries = {name: OmegaConf.to_container(entry, resolve=True) for name, entry in entries.items()}
        self.device, self.folder, self.one_at_a_time = device, folder, one_at_a_time
        self._models: dict[str, Model] = {}
        self._alone = threading.RLock()  # held by whoever loads, edits or renders: nobody meets an edited model
        self._closed = threading.Event()

    def model(self, name: str) -> Model:
        """A recipient, not loaded yet. ValueError for a name that is not offered."""
        if name not in self.entries:
            raise ValueError(f"found the recipient {name!r:.80}: expected some of {', '.join(self.entries)}")
        with self._alone:
            if name not in self._models:
                config = OmegaConf.create({"t2v": {name: self.entries[name]}})
                door.check_arguments(config.t2v, "t2v")
                (self._models[name],) = assembly.recipients_of(config, self.device)
            return self._models[name]

    def _loadable(self, name: str) -> Model:
        """The same, for whoever goes on to load it; of others that are in memory it takes the place, if it has to."""
        model = self.model(name)
        for other in self._models.values():
            if self.one_at_a_time and other is not model:
                other.release()
        return model

    def is_here(self, name: str) -> bool:
        """Whether a recipient can be built from folders of this machine, without the hub."""
        try:
            sources = getattr(self.model(name), "sources", {})
        except (ValueError, OmegaConfBaseException, InstantiationException):
            return False
        return all(source["local_files_only"] for source in sources.values())

    def close(self) -> None:
        """Ends the rendering that is going on, at its next step, and waits for that; nothing is rendered from then on.

        A process that ended amid a rendering would be aborted by torch's own threads.
        """
        self._closed.set()
        with self._alone:
            pass

    def _go_on(self) -> None:
        if self._closed.is_set():
            raise ValueError("the page was closed: start it again")

    def edits(self, path: Path, names: Sequence[str], prompt: str, seed: Any) -> dict[str, Edit]:
        """Recipient -> the edit that it gets, after all checks: what comes then is rendering alone.

        Args:
            path: of the edit; those that its run made on recipients themselves are in the folder `edits` beside it.
            names: of recipients.
            prompt, seed: what is to be rendered.

        Raises:
            ValueError: for a prompt, a seed, an edit or a recipient that will not do.
        """
        if not prompt.strip():
            raise ValueError("found no prompt: expected a text, such as one of the examples")
        if len(prompt) > MOST_CHARACTERS:
            raise ValueError(f"found a prompt of {len(prompt):,} characters: expected at most {MOST_CHARACTERS:,}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED:
            raise ValueError(f"found the seed {seed}: expected a whole number, 0 to {MOST_SEED}")
        if not names:
            raise ValueError("found no recipient: expected at least one to be ticked")
        with self._alone:
            self._go_on()
            models = {name: self.model(name) for name in names}
            own = {name: path.parent / "edits" / model.name / path.name for name, model in models.items()}
            files = {name: own[name] if own[name].is_file() else path for name in names}
            loaded = {file: Edit.load(file) for file in dict.fromkeys(files.values())}
            for name in names:
                model = self._loadable(name)
                try:
                    _check_length(model, prompt)
                    loaded[files[name]].check(model)
                except OSError as error:
                    raise ValueError(
                        f"{name} cannot be loaded ({error}): expected its whole folder on this machine, or in the hub's"
                        " cache; HF_HUB_OFFLINE=0 fetches it"
                    ) from None
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        return {name: loaded[file] for name, file in files.items()}

    def clip(self, name: str, edit: Edit | None, prompt: str, seed: int, told: Callable[[float], None]) -> Clip:
        """The clip of a prompt; by the recipient as it is, or with an edit, which it holds for as long as it renders.

        Args:
            name: of the recipient.
            edit: None is before, an edit is after.
            prompt, seed: as given to `edits`.
            told: called with the share of the denoising steps that is done, in [0, 1].
        """

        def step(share: float) -> None:
            self._go_on()
            told(share)

        key = content_key(recipient=name, edit=edit.hash if edit else "", prompt=prompt, seed=seed)
        with self._alone:
            step(0.0)
            model = self._loadable(name)
            path = self.folder / f"{key}.{'png' if model.num_frames == 1 else 'mp4'}"
            if path.is_file():
                return Clip(path, 0.0)
            with edit.applied(model) if edit else nullcontext(), _steps(model.pipeline, step):
                began = time.perf_counter()
                (clip,) = model.render([prompt], [seed])
                seconds = time.perf_counter() - began
            if model.num_frames == 1:
                _write_png(clip, path)
            else:
                write_mp4(clip, path, model.fps, IMAGE_PX)
        return Clip(path, seconds)


def _check_length(model: Model, prompt: str) -> None:
    """ValueError for a prompt of which the model would not read the end."""
    found, most = len(model.tokenizer(prompt).input_ids), model.reading.max_length
    if found > most:
        raise ValueError(f"found a prompt of {found} tokens: expected at most {most}, which are read")


@contextmanager
def _steps(pipeline: Any, told: Callable[[float], None]) -> Iterator[None]:
    """Inside the `with` block a diffusers pipeline tells of its denoising steps, in place of its own bar."""
    done = itertools.count(1)

    @contextmanager
    def progress_bar(iterable: Any = None, total: int | None = None) -> Iterator[Any]:
        yield SimpleNamespace(update=lambda *_: told(min(1.0, next(done) / len(pipeline.scheduler.timesteps))))

    pipeline.progress_bar = progress_bar
    try:
        yield
    finally:
        del pipeline.progress_bar


def _write_png(clip: Tensor, path: Path) -> None:
    """The first frame of a clip (F, C, H, W) in [0, 1], small ones enlarged by a whole factor; it appears whole."""
    image = Image.fromarray(to_uint8(clip)[0])
    factor = max(1, -(-IMAGE_PX // min(image.size)))
    with whole(path) as aside:
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(aside, "png")
