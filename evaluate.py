"""unreel: the same story entered at a saved edit. Scores it on any recipient that shares the encoder, without training.

python evaluate.py edit=runs/train/.../edit.safetensors t2v=zoo_text2video_zero
"""

import hydra
from omegaconf import DictConfig, OmegaConf

from unreel.cache import require_space
from unreel.callbacks import RenderClips
from unreel.cli import one_line_errors, print_result, quiet_libraries
from unreel.edits import Edit
from unreel.experiment import Questions, cache_of, device_of, judge_of, metrics_of, recipients_of
from unreel.rendering import Renderer
from unreel.report import write_report
from unreel.runs import Run


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@one_line_errors
def main(config: DictConfig) -> None:
    quiet_libraries()
    edit = Edit.load(config.edit)
    made_with = OmegaConf.create(edit.provenance["config"])  # the run that made it says what was erased, and how
    config = DictConfig(OmegaConf.merge(made_with, {"t2v": None, "metric": None}, config, {"edit": edit.hash}))
    questions, device = Questions.of(config), device_of(config)
    run = Run(config, questions.concepts)
    if run.is_done():
        return print_result(run.folder, run.timings)

    recipients = recipients_of(config, device)
    for recipient in recipients:
        edit.check(recipient.text_encoder)
    judge = judge_of(config, questions.prompts, device)
    require_space(run.folder, config.least_free_mb)
    with run.working():
        renderers = [Renderer(recipient, cache_of(config), config.evaluation.batch) for recipient in recipients]
        clips = RenderClips(renderers, questions, judge, metrics_of(config), run)
        clips.look("before")
        clips.look("after", edit=edit)
        edit.save(run.folder / "edit.safetensors")
        write_report(run, clips.looks, clips.scores, edit.provenance["facts"])
    print_result(run.folder, run.timings)


if __name__ == "__main__":
    main()
