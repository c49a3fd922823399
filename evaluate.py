"""unreel: the same story entered at a saved edit. Scores it on any recipient that shares the encoder, without training.

python evaluate.py edit=runs/train/.../edit.safetensors t2v=zoo_text2video_zero
"""

import hydra
from omegaconf import DictConfig

from unreel.callbacks import RenderClips
from unreel.cli import as_job, print_result, quiet_libraries
from unreel.edits import Edit
from unreel.experiment import Questions, check_space, device_of, judge_of, metrics_of, renderers_of, rescoring
from unreel.report import write_report
from unreel.runs import Run


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@as_job
def main(config: DictConfig) -> Run:
    quiet_libraries()
    if not config.edit:
        raise ValueError("no edit: expected edit=runs/.../edit.safetensors")
    edit = Edit.load(config.edit)
    config = rescoring(edit, config)
    questions, device = Questions.of(config), device_of(config)
    check_space(config)
    renderers = renderers_of(config, device)
    for renderer in renderers:
        edit.check(renderer.recipient.text_encoder)
    content = [edit.hash, *(r.content for r in renderers)]
    run = Run(config, questions.concepts, content, edit.provenance["facts"].get("most_steps"))
    if run.is_done():
        print_result(run)
        return run

    judge = judge_of(config, questions, device)
    with run.working() as todo:
        if todo:
            clips = RenderClips(renderers, questions, judge, metrics_of(config), run)
            clips.look("before")
            clips.look("after", edit=edit)
            edit.save(run.folder / "edit.safetensors")
            write_report(run, clips.looks, clips.scores, edit.provenance["facts"])
    print_result(run)
    return run


if __name__ == "__main__":
    main()
