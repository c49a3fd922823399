"""The page of `python -m unreel.demo`: what is on it, what its buttons do, and the server that shows it."""

import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from unreel import assembly
from unreel.cli import one_line
from unreel.offers import Offer, offer_of, offers_in
from unreel.pairs import Pairs, examples_of
from unreel.signals import Stopped
from unreel.terminal import prepare_libraries

EXAMPLES = 3  # prompts of each kind, at most
SEED = 0  # that the page begins with
STAGES = ("before", "after")
INTRODUCTION = """<h1>unreel</h1>
<p>Pick an edit, type any prompt: each model renders it twice from the same noise, as it is and with the edit.</p>"""
CSS = """
.gradio-container {max-width: 1280px !important; margin: 0 auto !important}
video, .clip img {image-rendering: pixelated; background: none !important}
#message {min-height: 4.6em}
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
        return [self.first, *(offer for offer in offers_in(self.runs)[0] if offer.path != self.first.path)]

    def recipients(self, offer: Offer) -> tuple[list[str], list[str]]:
        """Those that are offered for an edit, and those that are ticked: the edit's, as far as there are such."""
        pairs, named = self.pairs, [name for name in offer.recipients if name in self.pairs.entries]
        offered = [name for name in pairs.entries if self.given or name in named or pairs.is_here(name)]
        return offered, named

    def warm(self, offer: Offer) -> None:
        """Loads the recipients of an edit, so that the first pair does not wait for that."""
        try:
            self.pairs.edits(offer.path, self.recipients(offer)[1], offer.label, SEED)
        except Exception as error:
            _refusal(error)  # whoever asks for a pair is told

    def build(self) -> gr.Blocks:
        """The page, with all that happens on it."""
        offers = self.offers()
        with gr.Blocks(title="unreel", analytics_enabled=False) as page:
            gr.HTML(INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=2, min_width=340):
                    self._build_questions(offers)
                with gr.Column(scale=3, min_width=520):
                    self.message = gr.HTML(_line("No clips yet."), elem_id="message")
                    self.places = {name: self._build_place(name) for name in self.pairs.entries}
            self._connect(page)
        page.queue(default_concurrency_limit=1, api_open=False)
        return page

    def _build_questions(self, offers: list[Offer]) -> None:
        self.edit = gr.Dropdown(_choices(offers), value=str(offers[0].path), label="Finished run, newest first")
        with gr.Row(equal_height=True):
            self.path = gr.Textbox(
                label="or an edit of your own", placeholder="path of an edit.safetensors, then Enter", max_lines=1
            )
        self.prompt = gr.Textbox(label="Prompt", lines=2, max_lines=4, elem_id="prompt", submit_btn=False)
        self.forget = gr.Dataset(components=[self.prompt], samples=[], label="Prompts that ask for it")
        self.retain = gr.Dataset(components=[self.prompt], samples=[], label="Prompts that must stay as they are")
        self.names = gr.CheckboxGroup([], label="Rendered by", elem_id="names")
        self.seed = gr.Number(SEED, label="Seed, of both clips", precision=0, elem_id="seed")
        self.button = gr.Button("Render before and after", variant="primary", elem_id="render")

    def _build_place(self, name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Where the clips of one recipient are shown: a column, and by stage its videos and its images."""
        with gr.Column(visible=False, elem_id=f"place-{name}") as column:
            gr.HTML(f"<h3>{escape(name)}</h3>")
            with gr.Row():
                plain = {"interactive": False, "visible": False, "elem_classes": "clip", "buttons": ["download"]}
                videos = {s: gr.Video(label=s, autoplay=True, loop=True, **plain) for s in STAGES}
                images = {s: gr.Image(label=s, type="filepath", **plain) for s in STAGES}
        return column, videos, images

    def _connect(self, page: gr.Blocks) -> None:
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        asked = [self.prompt, self.forget, self.retain, self.names, self.message]
        shown = [part for column, *clips in self.places.values() for part in (column, *_parts(clips))]
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

    def _renew(self, path: str) -> Any:
        """The runs that are finished by now; what was picked stays picked while it is there."""
        offers = self.offers()
        return gr.Dropdown(_choices(offers), value=next((path for o in offers if str(o.path) == path), None))

    def _open(self, path: str) -> dict[Any, Any]:
        """An edit by its path, as one more of those that can be picked."""
        try:
            offer = offer_of(path.strip())
        except Exception as error:
            return {self.message: _refusal(error)}
        offers = [offer, *(other for other in self.offers() if other.path != offer.path)]
        return {self.edit: gr.Dropdown(_choices(offers), value=str(offer.path)), **self._choose(str(offer.path))}

    def _choose(self, path: str | None) -> dict[Any, Any]:
        """Prompts and recipients of what was picked."""
        try:
            offer = offer_of(path or "")
            forget, retain = examples_of(offer.path, self.evaluation, EXAMPLES)
        except Exception as error:
            return {self.message: _refusal(error)}
        offered, named = self.recipients(offer)
        return {
            self.prompt: forget[0],
            self.forget: gr.Dataset(samples=[[text] for text in forget]),
            self.retain: gr.Dataset(samples=[[text] for text in retain], visible=bool(retain)),
            self.names: gr.CheckboxGroup(offered, value=named),
            self.message: _line(f"{offer.path}"),
        }

    def _render(
        self, path: str | None, prompt: str, seed: Any, names: list[str], progress: Any = gr.Progress()
    ) -> Iterator[dict[Any, Any]]:
        """Both clips of each recipient, each shown when it is there. Nothing is held while it waits to be asked on."""
        yield self._cleared(names)
        try:
            edits = self.pairs.edits(Path(path or ""), names, prompt, seed)
            spent = []
            for i, name in enumerate(names):
                for j, (stage, edit) in enumerate(zip(STAGES, (None, edits[name]), strict=True)):
                    said, begun, whole = f"{name}, {stage}", i * len(STAGES) + j, len(names) * len(STAGES)

                    def told(share: float, said: str = said, begun: int = begun, whole: int = whole) -> None:
                        progress((begun + share) / whole, desc=said)

                    told(0.0)
                    clip = self.pairs.clip(name, edit, prompt, seed, told)
                    spent.append(f"{said} {clip.seconds:.1f} s" if clip.seconds else f"{said}: rendered earlier")
                    videos, images = self.places[name][1:]
                    place = (images if clip.is_image else videos)[stage]
                    yield {place: gr.update(value=str(clip.path), visible=True), self.message: _line("; ".join(spent))}
        except Exception as error:
            yield {self.message: _refusal(error)}

    def _cleared(self, names: list[str]) -> dict[Any, Any]:
        """The places of some recipients, empty; the others hidden: no clip stays beside a prompt that is not its own."""
        cleared: dict[Any, Any] = {self.message: _line("Checking the edit and the recipients")}
        for name, (column, *clips) in self.places.items():
            cleared[column] = gr.update(visible=name in names)
            cleared |= {part: gr.update(value=None, visible=False) for part in _parts(clips)}
        return cleared


def _choices(offers: list[Offer]) -> list[tuple[str, str]]:
    return [(offer.label, str(offer.path)) for offer in offers]


def _parts(clips: list[dict[str, Any]]) -> list[Any]:
    return [part for of_kind in clips for part in of_kind.values()]


def recipients_of(config: DictConfig) -> DictConfig:
    """Name -> config of the recipients of `t2v`, or of all that there are in conf/t2v and in a --config-dir."""
    entries = config.get("t2v")
    if not entries:
        names = GlobalHydra.instance().config_loader().get_group_options("t2v")
        entries = compose("demo", [f"t2v=[{','.join(names)}]"]).t2v
    OmegaConf.resolve(entries)
    return entries


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
    pairs = Pairs(recipients_of(config), assembly.device_of(config), folder)
    for name in config.get("t2v") or {}:
        pairs.model(name)
    shown = Page(config, pairs, compose("evaluate"), first)
    page, where = shown.build(), f"http://{host}:{config.port}"
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
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
        stopped.where = where
        raise
    finally:
        page.close(verbose=False)
