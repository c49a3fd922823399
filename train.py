"""unreel: concept -> shots -> method -> edit -> clips -> scores -> report.

python train.py concept=van_gogh shots=4
python train.py -m concept=glob(*) shots=1,2,4,8 parameters=mlp,attention
"""

import time
from typing import Any

import hydra
import pytorch_lightning as pl
from omegaconf import DictConfig

from unreel.callbacks import RenderClips
from unreel.cli import as_job, print_result, quiet_libraries
from unreel.concepts import TrainingCaptions
from unreel.donors import Donor, select_parameters
from unreel.edits import check_shared, export_text_encoder
from unreel.experiment import (
    Questions,
    cache_of,
    check_processes,
    check_space,
    device_of,
    judge_of,
    metrics_of,
    renderers_of,
    trainer_of,
)
from unreel.rendering import Renderer
from unreel.report import write_report
from unreel.runs import Run, is_first_process
from unreel.shots import Shots
from unreel.unlearning import UnlearningModule


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@as_job
def main(config: DictConfig) -> Run:
    quiet_libraries()
    # every check before anything expensive
    questions, device = Questions.of(config), device_of(config)
    captions = [TrainingCaptions(concept, questions.surroundings) for concept in questions.concepts]
    shots = Shots(captions, cache=cache_of(config), shots=config.shots, seed=config.seed, **config.method.data)
    check_space(config)
    check_processes(config, shots, device)
    started = time.perf_counter()
    donor = hydra.utils.instantiate(config.t2i, device=device)
    renderers = renderers_of(config, device)
    for renderer in renderers:
        check_shared(donor, renderer.recipient)
    select_parameters(donor.text_encoder, config.parameters.roles)
    run = Run(config, questions.concepts, [donor.content, shots.content, *(r.content for r in renderers)], shots.steps)
    if run.is_done():
        print_result(run)
        return run

    judge = judge_of(config, questions, device)
    run.spend("loading", time.perf_counter() - started)
    with run.working() as todo:
        if todo:
            carry_out(config, run, questions, donor, shots, renderers, judge, device)
    if is_first_process():
        print_result(run)
    return run


def carry_out(
    config: DictConfig,
    run: Run,
    questions: Questions,
    donor: Donor,
    shots: Shots,
    renderers: list[Renderer],
    judge: Any,
    device: str,
) -> None:
    """Shots, training, clips and report of one run."""
    pl.seed_everything(config.seed, verbose=False)
    with run.timed("shots"):
        shots.make(donor)
    method, guard = hydra.utils.instantiate(config.method.loss), hydra.utils.instantiate(config.method.guard)
    roles, optimizer = list(config.parameters.roles), dict(config.method.optimizer)
    module = UnlearningModule(donor, shots, method, roles, optimizer, guard)
    clips = RenderClips(renderers, questions, judge, metrics_of(config), run, config.evaluation.at_steps)
    trainer = trainer_of(config, run, shots.steps, device, [clips])
    with run.timed("training"):
        trainer.fit(module, shots, ckpt_path=run.checkpoint, weights_only=True)
    if not trainer.is_global_zero:  # one of several processes: the first one goes on
        return
    clips.conclude(trainer, module)
    export_text_encoder(donor.pipeline, run.folder / "text_encoder")
    with run.timed("report"):
        write_report(run, clips.looks, clips.scores, module.facts(), list(shots.all_pixels()))


if __name__ == "__main__":
    main()
