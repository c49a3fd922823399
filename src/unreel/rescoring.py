"""A saved edit, or the sum of several, scored on any recipient that it fits, without training."""

from pathlib import Path

from omegaconf import DictConfig

from unreel import assembly, door
from unreel.attacking import Attacking, captions_of
from unreel.edits import load_sum, method_named
from unreel.erased import facts_of
from unreel.exports import artifact, exporting
from unreel.libraries import prepare_libraries
from unreel.page import write_report
from unreel.sharing import Share
from unreel.terminal import announce, print_result, told_of, was_done


def rescore(config: DictConfig) -> Path:
    """Renders and scores clips with `config.edit`; what was erased, and with which prompts, the edit says. Its folder.

    Raises:
        ValueError: for an edit, or for settings, that will not do, before anything is rendered.
    """
    prepare_libraries(config.threads)
    edit = load_sum(door.edits_of(config))
    config = assembly.rescoring(edit, config)
    door.check(config)
    questions, device = door.questions_of(config), assembly.device_of(config)
    recipients = assembly.recipients_of(config, device)
    judge, facts = assembly.judge_of(config, questions, recipients, device), facts_of(edit.provenance)
    metrics = assembly.metrics_of(config, questions, recipients)
    attacks = assembly.attacks_of(config, questions, edit.method, edit.is_attached)
    captions = captions_of(questions) if attacks else []
    parts = [*recipients, judge, *metrics, *attacks, *([Attacking] if attacks else [])]
    parts += [method_named(edit.method)] if edit.is_attached else []
    run = assembly.run_of(config, questions, parts, [edit.hash], facts.get("most_steps"))
    exports = exporting.wanted_of(config, edit.components, edit.is_attached)
    if was_done(run, lambda: exporting.lacking(run.folder, exports, config)):
        return run.folder

    announce(run, questions.concepts)
    with run.timed("loading") as phase:
        for recipient in recipients:
            edit.check(recipient)
            if config.one_model_at_a_time:
                recipient.release()
        share = Share(exporting.plainest(recipients) if exports or attacks else recipients[0], recipients)
        exporting.check(exports, share.maker, edit.changed)
        assembly.check_attacks(attacks, [share], questions.concepts, config.one_model_at_a_time)
        phase.said = ", ".join(recipient.name for recipient in recipients)
    with run.working() as todo:
        if todo:
            loggers = assembly.loggers_of(config, run, questions.concepts)
            told_of(loggers)
            artifact.use(edit, loggers)
            evaluation = assembly.evaluation_of(config, questions, recipients, judge, metrics, run, loggers)
            evaluation.look("before")
            edits, steps = {recipient.name: edit for recipient in recipients}, facts.get("steps") or 0
            evaluation.look("after", edits, steps)
            broken = Attacking(evaluation, attacks, captions, config.seed).carry_out([share], edits, steps)
            edit.save(run.folder / "edit.safetensors")
            exporting.export(run, exporting.made_in(run, [share]), questions.concepts, exports)
            write_report(run, evaluation.looks, evaluation.scores, facts, broken=broken)
        else:
            rest = exporting.lacking(run.folder, exports, config)
            exporting.export(run, exporting.made_in(run, [share]), questions.concepts, rest)
    print_result(run)
    return run.folder
