"""unreel: concept -> shots -> method -> edit -> clips -> scores -> report.

python train.py concept=van_gogh shots=4
python train.py -m concept=glob(*) shots=1,2,4,8 parameters=mlp,attention
"""

import hydra
import pytorch_lightning as pl
from omegaconf import DictConfig

from unreel.cache import require_space
from unreel.callbacks import RenderClips
from unreel.cli import one_line_errors, print_result, quiet_libraries
from unreel.concepts import TrainingCaptions
from unreel.donors import select_parameters
from unreel.edits import check_shared, export_text_encoder
from unreel.experiment import Questions, cache_of, device_of, judge_of, metrics_of, recipients_of, trainer_of
from unreel.rendering import Renderer
from unreel.report import write_report
from unreel.runs import Run
from unreel.shots import Shots
from unreel.unlearning import UnlearningModule


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@one_line_errors
def main(config: DictConfig) -> None:
    quiet_libraries()
    questions, device = Questions.of(config), device_of(config)
    run = Run(config, questions.concepts)
    if run.is_done():
        return print_result(run.folder, run.timings)

    # every check before anything expensive
    captions = [TrainingCaptions(concept, questions.surroundings) for concept in questions.concepts]
    shots = Shots(captions, cache=cache_of(config), shots=config.shots, seed=config.seed, **config.method.data)
    with run.timed("loading"):
        donor = hydra.utils.instantiate(config.t2i, device=device)
        recipients = recipients_of(config, device)
        for recipient in recipients:
            check_shared(donor, recipient)
        select_parameters(donor.text_encoder, config.parameters.roles)
        judge = judge_of(config, questions.prompts, device)
    require_space(run.folder, config.least_free_mb)
    with run.working():
        pl.seed_everything(config.seed, verbose=False)
        with run.timed("shots"):
            shots.make(donor)
        method, guard = hydra.utils.instantiate(config.method.loss), hydra.utils.instantiate(config.method.guard)
        roles, optimizer = list(config.parameters.roles), dict(config.method.optimizer)
        module = UnlearningModule(donor, shots, method, roles, optimizer, guard)
        renderers = [Renderer(recipient, cache_of(config), config.evaluation.batch) for recipient in recipients]
        clips = RenderClips(renderers, questions, judge, metrics_of(config), run, config.evaluation.at_steps)
        trainer_of(config, run, shots.steps, device, [clips]).fit(
            module, shots, ckpt_path=run.checkpoint, weights_only=True
        )

        export_text_encoder(donor.pipeline, run.folder / "text_encoder")
        with run.timed("report"):
            write_report(run, clips.looks, clips.scores, module.facts(), list(shots.all_pixels()))
    print_result(run.folder, run.timings)


if __name__ == "__main__":
    main()
