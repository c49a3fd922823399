"""How often the unedited model shows a concept when it is given the target of an erasure in place of its name.

    python experiments/beyond_anchor/floor.py [CONCEPT ...] [--eta 0 0.25 ...] [--seed N] [--rendering fast]

Renders the forget prompts of each concept as images, read as the same prompts with the anchor in the concept's place,
moved away from the concept by eta; asks both judges for the concept, and for what else the prompts say (context).
"""

import argparse
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from unreel import assembly, door
from unreel.captions import TrainingCaptions
from unreel.judges.judge import Judge
from unreel.records import Concept, Prompt
from unreel.vocabulary import say
from unreel.zoo.cnn_judge import CnnJudge
from unreel.zoo.store import verified

ROOT, PROMPTS, AT_A_TIME = Path(__file__).resolve().parents[2], 24, 8
OTHERS = ROOT / "experiments" / "guard_strength" / "conf"  # concepts that no table of results has


def seen_by(judge: Judge, concept: Concept, asked: list[Prompt], clips: torch.Tensor) -> tuple[float, float]:
    """The share of clips that show the concept, and of the prompts' other parts the share that is shown."""
    wanted = judge.name_of(concept.part, concept.phrases[0])
    found = [name == wanted for name in judge.names(concept.part, clips)]
    rest = []
    for part in judge.parts:
        rows = [i for i, prompt in enumerate(asked) if part != concept.part and dict(prompt.shows).get(part)]
        names = judge.names(part, clips[rows]) if rows else []
        rest += [n == judge.name_of(part, dict(asked[i].shows)[part]) for n, i in zip(names, rows, strict=True)]
    return sum(found) / len(found), sum(rest) / len(rest)


def floors(name: str, etas: list[float], more: list[str]) -> list[list[tuple[float, float]]]:
    """For each eta what the run's judge sees, and what the second judge does; `more` are overrides of the config."""
    overrides = [f"hydra.searchpath=[file://{OTHERS}]", f"concept={name}", "t2v=[zoo_images]",
                 f"evaluation.prompts={PROMPTS}", *more]  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides)
    questions, (model,) = door.questions_of(config), assembly.recipients_of(config, "cpu")
    (concept,) = questions.concepts
    anchor = TrainingCaptions(concept, questions.surroundings).anchor
    pairs = [(p, seed) for p, seed in zip(questions.prompts, questions.seeds, strict=True) if p.split == "forget"]
    asked, seeds = [p for p, _ in pairs], [seed for _, seed in pairs]
    judges = [assembly.judge_of(config, questions, [model], "cpu"), CnnJudge.from_folder(verified("cnn_judge"))]
    found = []
    for eta in etas:
        clips = []
        for i in range(0, len(asked), AT_A_TIME):
            few = asked[i : i + AT_A_TIME]
            with torch.no_grad():
                anchors = model.encode_prompt([say(dict(p.shows) | {concept.part: anchor}) for p in few])
                target = anchors.away_from(model.encode_prompt([p.text for p in few]), eta)
            clips.append(model.render(target, seeds[i : i + AT_A_TIME]))
        found.append([seen_by(judge, concept, asked, torch.cat(clips)) for judge in judges])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eta", type=float, nargs="+", default=[0.0, 0.25])
    parser.add_argument("--seed", type=int, default=0, help="of prompts and noise")
    parser.add_argument("--rendering", default="fast", help="as train.py's")
    parser.add_argument("concepts", nargs="*")
    told = parser.parse_args()
    names = told.concepts or sorted(path.stem for path in OTHERS.glob("concept/*.yaml"))
    more = [f"evaluation.seed={told.seed}", f"rendering={told.rendering}"]
    every = {name: floors(name, told.eta, more) for name in names}
    for i, eta in enumerate(told.eta):
        for name in names:
            (first, context), (second, other) = every[name][i]
            print(f"eta {eta}, {name}: {first:.1%} and {second:.1%} left, {context:.1%} and {other:.1%} of context")
        means = [sum(every[name][i][j][k] for name in names) / len(names) for k in (0, 1) for j in (0, 1)]
        print(f"eta {eta}, mean: {means[0]:.1%} and {means[1]:.1%} left, {means[2]:.1%} and {means[3]:.1%} of context")
