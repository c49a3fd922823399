"""unreel: the same story entered at a saved edit. Scores it on any recipient that it fits, without training.

python evaluate.py edit=runs/train/.../edit.safetensors t2v=zoo_text2video_zero
"""

import hydra
from omegaconf import DictConfig

from unreel import assembly, door
from unreel.cli import as_job, command, print_result, quiet_libraries
from unreel.edits import Edit, method_named
from unreel.page import write_report
from unreel.runs import Run


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@as_job
def main(config: DictConfig) -> Run:
    quiet_libraries()
    if not config.edit:
        raise ValueError("no edit: expected edit=runs/.../edit.safetensors")
    edit = Edit.load(config.edit)
    config = assembly.rescoring(edit, config)
    door.check(config)
    questions, device = assembly.questions_of(config), assembly.device_of(config)
    door.check_space(config)
    recipients = assembly.recipients_of(config, device)
    judge, facts = assembly.judge_of(config, questions, recipients, device), edit.provenance["facts"]
    metrics = assembly.metrics_of(config, questions, recipients)
    parts = [*recipients, judge, *metrics]
    parts += [method_named(edit.method)] if edit.is_attached else []
    run = assembly.run_of(config, questions, parts, [edit.hash], facts.get("most_steps"))
    if run.is_done():
        print_result(run)
        return run

    for recipient in recipients:
        edit.check(recipient)
    with run.working() as todo:
        if todo:
            loggers = assembly.loggers_of(config, run, questions.concepts)
            evaluation = assembly.evaluation_of(config, questions, recipients, judge, metrics, run, loggers)
            evaluation.look("before")
            evaluation.look("after", {recipient.name: edit for recipient in recipients}, facts.get("steps") or 0)
            edit.save(run.folder / "edit.safetensors")
            write_report(run, evaluation.looks, evaluation.scores, facts)
    print_result(run)
    return run


if __name__ == "__main__":
    command(main)
