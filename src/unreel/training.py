"""A run, from shots to report: concept -> shots -> method -> edit -> clips -> scores -> report."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from unreel import assembly
from unreel.attacking import Attacking
from unreel.attacks.attack import Attack
from unreel.captions import TrainingCaptions
from unreel.door import built
from unreel.edits import Edit
from unreel.exports import artifact, exporting
from unreel.judges.judge import Judge
from unreel.known import fitting
from unreel.libraries import prepare_libraries
from unreel.making import Making, changes_of, check_looks, check_onto, load_onto, lora_of
from unreel.metadata import shareable
from unreel.methods.lora import LoRA
from unreel.methods.method import Method, Task
from unreel.metrics.metric import Metric
from unreel.models.model import Model
from unreel.page import write_report
from unreel.prompts import Questions
from unreel.runs import Run, is_first_process
from unreel.sharing import Share, Unshared, plan
from unreel.shots import Shots
from unreel.terminal import announce, print_result, told_of, was_done


@dataclass(frozen=True)
class Parts:
    """What a run is made of; nothing of it is loaded before it is used."""

    questions: Questions
    captions: list[TrainingCaptions]
    shots: Shots
    method: Method
    donor: Model
    recipients: list[Model]
    judge: Judge
    metrics: list[Metric]
    attacks: list[Attack]
    run: Run
    exports: list[str]
    onto: Edit | None
    lora: LoRA | None


def opened(config: DictConfig, questions: Questions) -> Parts:
    """The parts of a run, after every check that needs no model. ValueError for what will not do."""
    device, method = assembly.device_of(config), built(config.method)
    texts = [prompt.text for prompt in questions.prompts]
    captions = [TrainingCaptions(concept, questions.surroundings, texts) for concept in questions.concepts]
    shots = Shots(captions, config.shots, config.seed, assembly.cache_of(config))
    if "clips" in method.needs and (pictures := shots.pictures()):
        raise ValueError(
            f"{pictures[0]} is an image: method {method.name} learns from clips; expected mp4, webm or gif"
        )
    lora = lora_of(config, method)
    assembly.check_processes(config, method, len(captions), device)
    assembly.check_trainer(config)
    exports = exporting.wanted_of(config, method.edits, bool(method.attaches))
    donor, recipients = assembly.donor_of(config, device), assembly.recipients_of(config, device)
    judge = assembly.judge_of(config, questions, recipients, device)
    metrics = assembly.metrics_of(config, questions, recipients)
    attacks = assembly.attacks_of(config, questions, method.name, bool(method.attaches))
    onto = load_onto(config, method)
    check_looks(config, method)
    steps = method.most_steps(len(captions), config.shots)
    parts = [donor, *recipients, judge, method, *method.members, *metrics, *attacks, *([Attacking] if attacks else [])]
    run = assembly.run_of(config, questions, parts, [shots.content, *([onto.hash] if onto else [])], steps)
    return Parts(
        questions, captions, shots, method, donor, recipients, judge, metrics, attacks, run, exports, onto, lora
    )


def train(config: DictConfig, questions: Questions) -> Path:
    """Carries out the run of a config that has passed the door, unless it is finished already; its folder.

    Raises:
        ValueError: for what the door cannot see, before anything is rendered.
    """
    prepare_libraries(config.threads)
    parts = opened(config, questions)
    run = parts.run
    if was_done(run, lambda: exporting.lacking(run.folder, parts.exports, config)):
        return run.folder

    announce(run, questions.concepts)
    with run.timed("loading") as phase:
        shares = planned(config, parts)
        check_onto(parts.onto, shares, config.one_model_at_a_time)
        for share in shares if parts.exports or parts.lora else []:
            exporting.check(parts.exports, share.maker, changes_of(parts.lora, share.maker, config.parameters.roles))
            if config.one_model_at_a_time:
                share.maker.release()
        assembly.check_attacks(parts.attacks, shares, questions.concepts, config.one_model_at_a_time)
        phase.said = ", ".join(dict.fromkeys(model.name for model in (parts.donor, *parts.recipients)))
    with run.working() as todo:
        if todo:
            loggers = assembly.loggers_of(config, run, questions.concepts)
            told_of(loggers)
            evaluation = assembly.evaluation_of(
                config, questions, parts.recipients, parts.judge, parts.metrics, run, loggers
            )
            task = Task(parts.captions, list(config.parameters.roles), config.seed, parts.shots, lora=parts.lora)
            attacking = Attacking(evaluation, parts.attacks, parts.captions, config.seed)
            carry_out(config, run, attacking, parts, task, shares)
        elif is_first_process():  # it is finished: exports that were not asked for then
            rest = exporting.lacking(run.folder, parts.exports, config)
            exporting.export(run, exporting.made_in(run, shares), questions.concepts, rest)
    if is_first_process():
        print_result(run)
    return run.folder


def planned(config: DictConfig, parts: Parts) -> list[Share]:
    """Who is edited for whom. ValueError where an edit does not fit, with the known donors that would do."""
    try:
        return plan(
            parts.donor, parts.recipients, parts.method, config.parameters.roles, config.one_model_at_a_time,
            parts.lora is not None,
        )  # fmt: skip
    except Unshared as error:
        raise ValueError(f"{error}; {fitting(error.recipient, config.t2v)}") from None


def carry_out(
    config: DictConfig, run: Run, attacking: Attacking, parts: Parts, task: Task, shares: list[Share]
) -> None:
    """Shots, edits, clips, attacks, exports, report. The first edit is in the run folder, others are below."""
    donor, method = parts.donor, parts.method
    pl.seed_everything(config.seed, verbose=False)
    evaluation = attacking.evaluation
    if is_first_process():
        evaluation.look("before")
    shots = task.shots
    assert shots is not None
    if "shots" in method.needs:
        with run.timed("shots") as phase:
            shots.make(donor)
            kind = "images" if donor.num_frames == 1 else "clips"
            phase.said = f"{len(shots.all_pixels())} {kind}" if shots.shots else "none: noise in their place"
    edits: dict[str, Edit] = {}
    making, told = Making(config, evaluation, task, method, shares, parts.onto), list[dict[str, Any]]()
    for share in shares:
        where = exporting.folder_of(run, shares, share)
        with run.timed("training") as phase:
            edit = making.edit(share, where)
            facts = edit.provenance["facts"]
            told.append(facts)
            steps = f"{facts['steps']} of {facts['most_steps']} steps, " if facts["steps"] else ""
            done = "attached" if facts.get("attached") else "changed"
            phase.said = f"{share.maker.name}: {steps}{facts['tensors']} tensors {done}"
        if not is_first_process():  # one of several processes: the first one goes on
            return
        settings = OmegaConf.to_container(config, resolve=True)
        edit = replace(edit, provenance=shareable(run.provenance | {"config": settings}) | dict(edit.provenance))
        if parts.onto:
            edit = parts.onto + edit
        edits |= {model.name: edit for model in share.recipients}
        edit.save(where / "edit.safetensors")
        if config.one_model_at_a_time:
            share.maker.release()
    facts = told[0]
    run.message = facts["stopped"]
    evaluation.look("after", edits, facts["steps"])
    broken = attacking.carry_out(shares, edits, facts["steps"])
    made, concepts = exporting.made_in(run, shares), evaluation.questions.concepts
    exporting.export(run, made, concepts, parts.exports)
    artifact.log(run, made, concepts, evaluation.loggers)
    with run.timed("report"):
        write_report(run, evaluation.looks, evaluation.scores, facts, list(shots.all_pixels()), broken)
