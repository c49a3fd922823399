"""Evaluation: what is rendered and judged, stage by stage, on every recipient; it gives rows of scores.

It depends on no training: an edit of any method is looked at in the same way, during a run or long after it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from pytorch_lightning.loggers import Logger, WandbLogger
from torch import Tensor

from unreel.cache import TensorCache
from unreel.clips import write_mp4
from unreel.edits import Edit
from unreel.files import whole
from unreel.hashes import content_key, tensor_hash
from unreel.judges.judge import Judge, Judged
from unreel.metrics.metric import Metric
from unreel.models.model import Conditioning
from unreel.prompts import Questions
from unreel.records import Concept, Prompt, Score, Value
from unreel.rendering import Rendered, Renderer
from unreel.runs import Run
from unreel.scores import read_scores


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


class Evaluation:
    """Renders every prompt on every recipient, judges the clips, writes rows and clips, and tells the loggers.

    Args:
        renderers: one a recipient.
        questions: what is rendered and of which concepts.
        judge: looks at the clips.
        metrics: each gives values of the judged clips of one split.
        run: the run folder; its clips and scores are written there.
        loggers: Lightning's.
        logged_clips: how many clips a stage and split go to W&B.
        one_at_a_time: whether a recipient is released before the next one is loaded, and the judge after each look.
    """

    def __init__(
        self,
        renderers: Sequence[Renderer],
        questions: Questions,
        judge: Judge,
        metrics: Sequence[Metric],
        run: Run,
        loggers: Sequence[Logger] = (),
        logged_clips: int = 4,
        one_at_a_time: bool = False,
    ) -> None:
        self.renderers, self.questions, self.judge, self.metrics = renderers, questions, judge, metrics
        self.run, self.loggers, self.logged_clips = run, loggers, logged_clips
        self.one_at_a_time = one_at_a_time
        before = run.folder / "scores.jsonl"  # of a run that was killed
        self.scores: list[Score] = read_scores(before) if before.is_file() else []
        self.looks: dict[tuple[str, str], Judged] = {}  # (stage, recipient) -> clips and what the judge saw

    def look(self, stage: str, edits: Mapping[str, Edit] | None = None, step: int = 0) -> None:
        """Renders and scores one stage.

        Args:
            stage: before | step_<n> | after.
            edits: recipient's name -> the edit that it gets; without any, all recipients as they are.
            step: of the training, for the loggers.
        """
        for renderer in self.renderers:
            edit = edits.get(renderer.model.name) if edits is not None else None
            if edits is None or edit is not None:
                with renderer.edited(edit):
                    self._look_with(renderer, stage, edit, step)
                if self.one_at_a_time:
                    renderer.release()

    def _look_with(self, renderer: Renderer, stage: str, edit: Edit | None, step: int) -> None:
        judged = self.looks[stage, renderer.model.name] = self.judged(
            renderer, stage, self.questions.prompts, self.questions.seeds, edit
        )
        files = self.write_clips(renderer, judged, edit)
        rows = [row for concept in self.questions.concepts for row in self._rows(judged, concept, edit)]
        self.put(rows, lambda s: (s.stage, s.t2v) == (stage, renderer.model.name))
        self.log(judged.rendered, files, step)

    def judged(
        self, renderer: Renderer, stage: str, prompts: Sequence[Prompt], seeds: Sequence[int], edit: Edit | None,
        given: Conditioning | None = None,
    ) -> Judged:  # fmt: skip
        """Clips of one recipient as it is now, and what the judge sees in them; arguments as of `Renderer.render`."""
        with self.run.timed(f"clips {stage}") as phase:
            rendered = renderer.render(prompts, seeds, stage, edit, given)
            split = f" of {prompts[0].split}" if len({prompt.split for prompt in prompts}) == 1 else ""
            phase.said = f"{rendered.recipient}, {len(rendered.clips)} clips{split}"
        with self.run.timed("judging"):
            judged = Judged.of(self.judge, rendered)
        if self.one_at_a_time:
            self.judge.release()
        return judged

    def write_clips(self, renderer: Renderer, judged: Judged, edit: Edit | None) -> list[Path]:
        """The clips' files, one a prompt."""
        rendered = judged.rendered
        where = self.run.folder / "clips" / rendered.stage / rendered.recipient
        files = [where / f"{i:03}_{p.concept}_{p.split}.mp4" for i, p in enumerate(rendered.prompts)]
        cache = None if edit else renderer.cache  # other runs show the same unedited ones
        with self.run.timed("clip files"), ThreadPoolExecutor() as pool:  # mostly each waits for an ffmpeg of its own
            pairs = zip(range(len(files)), files, strict=True)
            list(pool.map(lambda pair: write_clip(rendered.clips[pair[0]], pair[1], rendered.fps, cache), pairs))
        return files

    def put(self, rows: Sequence[Score], instead: Callable[[Score], bool]) -> None:
        """Adds rows to the run's scores, in place of those that are the same of an attempt before this one."""
        self.scores = [score for score in self.scores if not instead(score)] + list(rows)
        self.run.write_scores(self.scores)

    def _rows(self, judged: Judged, concept: Concept, edit: Edit | None) -> list[Score]:
        first = self.looks.get(("before", judged.rendered.recipient)) if edit else None
        before = {own.split: own for own in first.splits(concept.slug)} if first else {}
        rows = []
        for own in judged.splits(concept.slug):
            values = [value for metric in self.metrics for value in metric(own, before.get(own.split))]
            rows += self.rows_of(own, concept, values, edit)
        return rows

    def rows_of(self, judged: Judged, concept: Concept, values: Sequence[Value], edit: Edit | None) -> list[Score]:
        """Values of some clips of one concept, as rows with all their keys."""
        rendered = judged.rendered
        clips, seconds = rendered.hash, round(sum(rendered.seconds), 3)
        return [
            Score(
                **self.run.keys(concept), t2v=rendered.recipient, stage=rendered.stage, split=value.split,
                metric=value.name, value=value.value, stderr=value.stderr, n=value.n,
                edit=edit.hash if edit else "", clips=clips, seconds=seconds, unit=value.unit, goal=value.goal,
            )
            for value in values
        ]  # fmt: skip

    def log(self, rendered: Rendered, files: list[Path], step: int) -> None:
        """Scores to all loggers, as split/metric their means over recipients and concepts; clips and a table to W&B."""
        values, means = dict[str, float](), defaultdict(list)
        of_stage = [s for s in self.scores if s.stage == rendered.stage]
        for s in of_stage:
            values[f"{s.split}/{s.t2v}/{s.concept}/{s.metric}"] = s.value
            means[f"{s.split}/{s.metric}"].append(s.value)
        if {s.t2v for s in of_stage} == {renderer.model.name for renderer in self.renderers}:
            values |= {name: sum(own) / len(own) for name, own in means.items()}
        for logger in self.loggers:
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
