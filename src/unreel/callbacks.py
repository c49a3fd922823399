"""Lightning callback: renders clips before, during and after the training, scores them and logs them."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from unreel.cache import TensorCache, content_key
from unreel.clips import write_mp4
from unreel.edits import Edit, tensor_hash
from unreel.experiment import Questions
from unreel.files import whole
from unreel.metrics.judges import Judged
from unreel.records import Score
from unreel.rendering import Rendered, Renderer
from unreel.runs import Run
from unreel.scores import read_scores
from unreel.unlearning import UnlearningModule


def write_clip(clip: Tensor, path: Path, fps: int, cache: TensorCache | None) -> None:
    """Writes a clip (F, C, H, W) in [0, 1] as mp4; with a cache, the file that was encoded for another run."""
    key = content_key(mp4=tensor_hash(clip), fps=fps)
    kept = cache.load(key) if cache else None
    if kept is not None:
        with whole(path) as aside:
            aside.write_bytes(kept["mp4"].numpy().tobytes())
        return
    write_mp4(clip, path, fps)
    if cache:
        cache.save(key, {"mp4": torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)})


class RenderClips(pl.Callback):
    """Renders every prompt on every recipient and logs scores and clips.

    Args:
        renderers: one a recipient.
        questions: what is rendered and of which concepts.
        judge: looks at the clips.
        metrics: each gives values of the `Judged` clips of one split.
        run: the run folder; its edit and scores are written there.
        at_steps: steps at which all of it is rendered during the training.
        logged_clips: how many clips a stage and split go to W&B.
    """

    def __init__(
        self,
        renderers: Sequence[Renderer],
        questions: Questions,
        judge: Any,
        metrics: Sequence[Callable[..., dict]],
        run: Run,
        at_steps: Sequence[int] = (),
        logged_clips: int = 4,
    ) -> None:
        self.renderers, self.questions, self.judge, self.metrics = renderers, questions, judge, metrics
        self.run, self.at_steps, self.logged_clips = run, set(at_steps), logged_clips
        before = run.folder / "scores.jsonl"  # of a run that was killed
        self.scores: list[Score] = read_scores(before) if before.is_file() else []
        self.looks: dict[tuple[str, str], Judged] = {}  # (stage, recipient) -> clips and what the judge saw

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                logger.log_hyperparams(self.run.flat(self.questions.concepts))
        self.look("before", trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, UnlearningModule)
        if trainer.global_step in self.at_steps:
            self.look(f"step_{trainer.global_step}", trainer, pl_module.edit({}))

    def conclude(self, trainer: pl.Trainer, module: UnlearningModule) -> None:
        """Saves the edit and looks at it. No hook: Lightning ends no training that a killed run had already ended."""
        module.finish()
        self.run.message = module.stopped
        config = OmegaConf.to_container(self.run.config, resolve=True)
        edit = module.edit(self.run.provenance | {"config": config, "facts": module.facts()})
        edit.save(self.run.folder / "edit.safetensors")
        self.look("after", trainer, edit)

    def look(self, stage: str, trainer: pl.Trainer | None = None, edit: Edit | None = None) -> None:
        """Renders and scores one stage on all recipients, with an edit applied to them if one is given.

        Of several processes the first one does; the others wait.
        """
        for renderer in self.renderers if trainer is None or trainer.is_global_zero else ():
            with edit.applied(renderer.recipient) if edit else nullcontext():
                self._look_with(renderer, stage, trainer, edit.hash if edit else "")
        if trainer is not None and trainer.training:
            trainer.strategy.barrier()

    def _look_with(self, renderer: Renderer, stage: str, trainer: pl.Trainer | None, edit: str) -> None:
        with self.run.timed(f"clips {stage}"):
            rendered = renderer.render(self.questions.prompts, self.questions.seeds, stage)
        with self.run.timed("judging"):
            judged = self.looks[stage, rendered.recipient] = Judged.of(self.judge, rendered)
        where = self.run.folder / "clips" / stage / rendered.recipient
        files = [where / f"{i:03}_{p.concept}_{p.split}.mp4" for i, p in enumerate(rendered.prompts)]
        cache = renderer.cache if stage == "before" else None  # other runs show the same ones
        with ThreadPoolExecutor() as pool:  # for most of its time each waits for an ffmpeg of its own
            pairs = zip(rendered.clips, files, strict=True)
            list(pool.map(lambda pair: write_clip(pair[0], pair[1], rendered.fps, cache), pairs))
        rows = [
            Score(
                **self.run.keys(concept), t2v=rendered.recipient, stage=stage, split=split, metric=name,
                value=value, stderr=stderr, n=n, edit=edit, clips=own.rendered.hash,
                seconds=round(own.rendered.seconds, 3),
            )
            for concept in self.questions.concepts
            for own in judged.splits(concept.slug)
            for metric in self.metrics
            for (split, name), (value, stderr, n) in metric(own).items()
        ]  # fmt: skip
        self.scores = [s for s in self.scores if (s.stage, s.t2v) != (stage, rendered.recipient)] + rows
        self.run.write_scores(self.scores)
        if trainer is not None:
            self._log(trainer, rendered, files)

    def _log(self, trainer: pl.Trainer, rendered: Rendered, files: list[Path]) -> None:
        """Scores to all loggers, as split/metric their means over recipients and concepts; clips and a table to W&B."""
        step, values, means = trainer.global_step, {}, defaultdict(list)
        for s in [s for s in self.scores if s.stage == rendered.stage]:
            values[f"{s.split}/{s.t2v}/{s.concept}/{s.metric}"] = s.value
            means[f"{s.split}/{s.metric}"].append(s.value)
        if {s.t2v for s in self.scores if s.stage == rendered.stage} == {r.recipient.name for r in self.renderers}:
            values |= {name: sum(own) / len(own) for name, own in means.items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
            logger.save()
            if isinstance(logger, WandbLogger):
                for split in dict.fromkeys(prompt.split for prompt in rendered.prompts):
                    some = [i for i, p in enumerate(rendered.prompts) if p.split == split][: self.logged_clips]
                    logger.log_video(
                        f"clips/{rendered.recipient}/{split}", [str(files[i]) for i in some], step=step,
                        caption=[f"{rendered.stage}: {rendered.prompts[i].text}" for i in some],
                        format=["mp4"] * len(some),
                    )  # fmt: skip
                columns = ["stage", "t2v", "concept", "split", "metric", "value", "stderr", "n"]
                data = [[getattr(score, column) for column in columns] for score in self.scores]
                logger.log_table("scores", columns=columns, data=data, step=step)
