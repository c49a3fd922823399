"""The page of `python -m unreel.demo`: what is on it, what its buttons do, and the server that shows it."""

import threading
from collections.abc import Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from unreel import assembly
from unreel.cli import one_line
from unreel.libraries import prepare_libraries
from unreel.offers import Offer, offer_of, offers_in
from unreel.pairs import Pairs, examples_of
from unreel.signals import Stopped

EXAMPLES = 3  # prompts of each kind, at most
SEED = 0  # that the page begins with
STAGES = ("before", "after")
BAR = gr.Progress()  # as a default: that is how gradio gives each request a bar of its own
INTRODUCTION = """<h1>unreel</h1>
<p>Pick an edit, type any prompt: each model renders it twice from the same noise, as it is and with the edit.</p>"""
CSS = """
.gradio-container {width: 100%; max-width: 1280px !important; margin: 0 auto !important}
.clip video, .clip img, .clip .image-frame {width: 100%; height: auto; object-fit: contain; image-rendering: pixelated}
.clip .empty {aspect-ratio: 1}
#message {min-height: 5em}
#message p {margin: 0; padding: .7em 1em; border-radius: 6px; background: var(--background-fill-secondary)}
#message .refused {border-left: 4px solid #d1242f; background: #d1242f1a; overflow-wrap: anywhere}
"""
TOGETHER = """() => document.querySelectorAll("video").forEach(video => {video.currentTime = 0; video.play()})"""


def _line(text: str, refused: bool = False) -> str:
    """A line of ours as HTML; whatever it quotes is text."""
    return f'<p class="{"refused" if refused else "said"}" role="status">{escape(text)}</p>'


def _refusal(error: Exception) -> str:
    """The line that says what will not do. Errors of ours are raised again."""
    if not (said := one_line(error)):
        raise error
    return _line(said, refused=True)


class Page:
    """The page over a folder of runs.

    Args:
        config: of the command.
        pairs: renders, for everybody who is at the page.
        evaluation: the config of an evaluation, which says how prompts are made.
        first: the edit that is offered before all others.
    """

    def __init__(self, config: DictConfig, pairs: Pairs, evaluation: DictConfig, first: Offer) -> None:
        self.runs, self.pairs, self.evaluation, self.first = Path(config.runs), pairs, evaluation, first
        self.given = bool(config.get("t2v"))

    def offers(self) -> list[Offer]:
        """What can be tried now."""
        first = [self.first] if self.first.path.is_file() else []
        return first + [offer for offer in offers_in(self.runs)[0] if offer.path != self.first.path]

    def recipients(self, offer: Offer) -> tuple[list[str], list[str]]:
        """Those that are offered for an edit, and those that are ticked: the edit's, as far as there are such."""
        pairs, named = self.pairs, [name for name in offer.recipients if name in self.pairs.entries]
        offered = [name for name in pairs.entries if self.given or name in named or pairs.is_here(name)]
        return offered, named

    def warm(self, offer: Offer) -> None:
        """Loads the recipients of an edit, so that the first pair does not wait for that."""
        try:
            self.pairs.edits(offer.path, self.recipients(offer)[1], "any", SEED)
        except Exception as error:
            _refusal(error)  # whoever asks for a pair is told

    def build(self) -> gr.Blocks:
        """The page, with all that happens on it."""
        with gr.Blocks(title="unreel", analytics_enabled=False) as page:
            gr.HTML(INTRODUCTION)
            with gr.Row():
                picked, hint = _choices(self.offers(), self.first.path), "path of an edit.safetensors, then Enter"
                self.edit = gr.Dropdown(**picked, label="Finished run, newest first", scale=3, elem_id="edit")
                self.path = gr.Textbox(
                    label="or any other edit", placeholder=hint, max_lines=1, scale=2, elem_id="path"
                )
            with gr.Row():
                with gr.Column(scale=2, min_width=340):
                    self.prompt = gr.Textbox(label="Prompt", elem_id="prompt")
                    self.names = gr.CheckboxGroup([], label="Rendered by", elem_id="names")
                    self.seed = gr.Number(SEED, label="Seed of both clips", precision=0, elem_id="seed")
                    self.button = gr.Button("Render before and after", variant="primary", elem_id="render")
                    self.forget = gr.Dataset(components=[self.prompt], samples=[], label="Prompts that ask for it")
                    self.retain = gr.Dataset(components=[self.prompt], samples=[], label="Prompts that must stay")
                with gr.Column(scale=3, min_width=520):
                    self.message = gr.HTML(elem_id="message")
                    self.places = {name: self._build_place(name) for name in self.pairs.entries}
            self._connect(page)
        page.queue(default_concurrency_limit=1, api_open=False)
        return page

    def _build_place(self, name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Where the clips of one recipient are shown: a column, and by stage its videos and its images."""
        with gr.Column(visible=False, elem_id=f"place-{name}") as column:
            gr.HTML(f"<h3>{escape(name)}</h3>")
            with gr.Row():
                plain: dict[str, Any] = {"interactive": False, "elem_classes": "clip", "buttons": ["download"]}
                videos = {s: gr.Video(label=s, autoplay=True, loop=True, **plain) for s in STAGES}
                images = {s: gr.Image(label=s, type="filepath", **plain) for s in STAGES}
        return column, videos, images

    def _connect(self, page: gr.Blocks) -> None:
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asked = [self.prompt, self.forget, self.retain, self.names, self.message]
        shown = [part for column, *clips in self.places.values() for part in (column, *_all(clips))]
        page.load(self._renew, [self.edit], [self.edit], **hidden).then(self._choose, [self.edit], asked, **hidden)
        self.edit.input(self._choose, [self.edit], asked, **hidden)
        self.path.submit(self._open, [self.path], [self.edit, *asked], **hidden)
        for examples in (self.forget, self.retain):
            examples.click(lambda row: row[0], [examples], [self.prompt], **hidden)
        gr.on(
            [self.button.click, self.prompt.submit], self._render,
            [self.edit, self.prompt, self.seed, self.names], [self.message, *shown],
            show_progress_on=self.message, api_visibility="private",
        ).then(None, js=TOGETHER, **hidden)  # fmt: skip

    def _renew(self, path: str | None) -> Any:
        """The runs that are finished by now; what was picked stays picked while it is there, or else the first is."""
        offers = self.offers()
        there = [offer.path for offer in offers if str(offer.path) == path] + [offer.path for offer in offers]
        return gr.update(**_choices(offers, there[0] if there else None))

    def _open(self, path: str) -> dict[Any, Any]:
        """An edit by its path, as one more of those that can be picked."""
        try:
            offer = offer_of(path.strip())
        except Exception as error:
            return {self.message: _refusal(error)}
        offers = [offer, *(other for other in self.offers() if other.path != offer.path)]
        return {self.edit: gr.update(**_choices(offers, offer.path)), **self._choose(str(offer.path))}

    def _choose(self, path: str | None) -> dict[Any, Any]:
        """Prompts and recipients of what was picked."""
        try:
            offer = offer_of(_path(path))
            forget, retain = examples_of(offer.path, self.evaluation, EXAMPLES)
        except Exception as error:
            return {self.message: _refusal(error)}
        offered, named = self.recipients(offer)
        return {
            self.prompt: forget[0],
            self.forget: gr.Dataset(samples=[[text] for text in forget]),
            self.retain: gr.Dataset(samples=[[text] for text in retain], visible=bool(retain)),
            self.names: gr.CheckboxGroup(choices=offered, value=named),
            self.message: _line(str(offer.path)),
        }

    def _render(
        self, path: str | None, prompt: str, seed: Any, names: list[str], progress: Any = BAR
    ) -> Iterator[dict[Any, Any]]:
        """Both clips of each recipient, each shown when it is there. Nothing is held between two of them."""
        yield self._cleared([])  # no clip stays beside a prompt that is not its own
        try:
            progress(0, desc="loading")
            edits, said = self.pairs.edits(_path(path), names, prompt, seed), []
            yield self._cleared(names)
            for i, name in enumerate(names):
                spent = []
                for j, (stage, edit) in enumerate(zip(STAGES, (None, edits[name]), strict=True)):
                    told = partial(_tell, progress, f"{name}, {stage}", i * len(STAGES) + j, len(names) * len(STAGES))
                    clip = self.pairs.clip(name, edit, prompt, seed, told)
                    spent.append(f"{stage} {clip.seconds:.1f} s" if clip.seconds else f"{stage} rendered earlier")
                    yield {self._parts(name)[stage]: str(clip.path)}
                said.append(f"{name}: {', '.join(spent)}")
            yield {self.message: _line("; ".join(said))}
        except Exception as error:
            yield {**self._cleared([]), self.message: _refusal(error)}

    def _parts(self, name: str) -> dict[str, Any]:
        """Where the clips of a recipient are shown, by stage."""
        _, videos, images = self.places[name]
        return images if self.pairs.model(name).num_frames == 1 else videos

    def _cleared(self, names: list[str]) -> dict[Any, Any]:
        """No message, the places of some recipients empty, and those of all others hidden."""
        cleared: dict[Any, Any] = {self.message: ""}
        for name, (column, *clips) in self.places.items():
            cleared[column] = gr.update(visible=name in names)
            shown = self._parts(name).values() if name in names else ()
            cleared |= {part: gr.update(value=None, visible=part in shown) for part in _all(clips)}
        return cleared


def _tell(progress: Any, said: str, begun: int, whole: int, share: float) -> None:
    """The bar of a request: of `whole` clips `begun` are there, and of the next one this share."""
    progress((begun + share) / whole, desc=said)


def _all(clips: list[dict[str, Any]]) -> list[Any]:
    """All the parts of a place that show clips."""
    return [part for of_kind in clips for part in of_kind.values()]


def _choices(offers: list[Offer], picked: Path | None) -> dict[str, Any]:
    """Arguments of a dropdown: choices, those of the same label told apart by their folders, and its value."""
    labels = [offer.label for offer in offers]
    said = [f"{o.label} · {o.path.parent}" if labels.count(o.label) > 1 else o.label for o in offers]
    choices = [(label, str(offer.path)) for label, offer in zip(said, offers, strict=True)]
    return {"choices": choices, "value": str(picked) if picked else None}


def _path(picked: str | None) -> Path:
    """What was picked. ValueError when that is nothing."""
    if not picked:
        raise ValueError("found no edit: expected one of the finished runs, or the path of another edit")
    return Path(picked)


def recipients_of(config: DictConfig) -> dict[str, Any]:
    """Name -> config of the recipients of `t2v`, or of all that there are in conf/t2v and in a --config-dir."""
    entries = config.get("t2v")
    if not entries:
        names = GlobalHydra.instance().config_loader().get_group_options("t2v")
        entries = compose("demo", [f"t2v=[{','.join(names)}]"]).t2v
    return {str(name): entry for name, entry in entries.items()}


def serve(config: DictConfig, host: str, folder: Path, first: Offer) -> None:
    """Shows the page until a signal comes.

    Args:
        config: of the command.
        host: the address that it is shown at.
        folder: of the clips; its owner removes it.
        first: what is picked when the page opens.

    Raises:
        ValueError: before the page is there, for a recipient of the command's that will not do.
    """
    prepare_libraries(config.threads)
    pairs = Pairs(recipients_of(config), assembly.device_of(config), folder, config.one_model_at_a_time)
    for name in config.get("t2v") or {}:
        pairs.model(name)
    shown = Page(config, pairs, compose("evaluate"), first)
    page, where = shown.build(), f"http://{host}:{config.port}"
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    try:
        page.launch(
            server_name=host, server_port=config.port, share=False, inbrowser=False, prevent_thread_lock=True,
            quiet=True, ssr_mode=False, pwa=False, run_history=False, enable_monitoring=False, footer_links=[],
            theme=theme, css=CSS,
        )  # fmt: skip
        print(f"unreel: {where} (Ctrl-C ends it)", flush=True)
        threading.Thread(target=shown.warm, args=[first], daemon=True).start()
        threading.Event().wait()
    except Stopped as stopped:
        stopped.where = f"the page at {where}"
        raise
    finally:
        pairs.close()  # the server's thread ends with the process: it would wait for browsers to hang up
