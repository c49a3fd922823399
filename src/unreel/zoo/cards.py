"""Model cards: what each shipped model learned from, for how long, and what the judge says of it.

`python -m unreel.zoo.cards runs/zoo_report/scores.jsonl` writes README.md and loss.png into every model folder from its
`training.json` and the scores of `make zoo-report`, keeps those scores beside the models, and renews SHA256SUMS.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from unreel.files import whole, write_text
from unreel.records import Score
from unreel.scores import interval, read_scores, write_scores
from unreel.zoo.readings import HARDER_SPLITS
from unreel.zoo.store import MODELS, write_sums

_ABOUT = {
    "t2i": (
        "Text-to-image, of the Stable Diffusion family",
        "CLIPTokenizer, CLIPTextModel (contrastive, then frozen), AutoencoderKL (16 x 16 x 4 latents of 64 x 64 px), "
        "UNet2DConditionModel (v-prediction). Loads with `StableDiffusionPipeline.from_pretrained(folder)`.",
    ),
    "pixart": (
        "Text-to-image, of the PixArt family",
        "T5Tokenizer, T5EncoderModel (contrastive, then frozen), the AutoencoderKL of `../t2i`, "
        "PixArtTransformer2DModel (v-prediction, patches of 2 latent pixels). "
        "Loads with `PixArtAlphaPipeline.from_pretrained(folder)`.",
    ),
    "motion_adapter": (
        "Text-to-video, of the AnimateDiff family",
        "MotionAdapter on the UNet of `../t2i`, whose spatial weights learned on in the same stage. Loads with "
        "`AnimateDiffPipeline.from_pretrained(t2i, motion_adapter=MotionAdapter.from_pretrained(folder))`.",
    ),
    "unet3d": (
        "Text-to-video, of the ModelScope family",
        "UNet3DConditionModel that started from the UNet of `../t2i` where names and shapes fit; every weight was "
        "trained, on clips and on stills as clips of one frame. It shares the text encoder and the VAE of `../t2i`. "
        "Loads with `TextToVideoSDPipeline.from_pretrained(t2i, unet=UNet3DConditionModel.from_pretrained(folder))`.",
    ),
    "latte": (
        "Text-to-video, of the Latte family",
        "LatteTransformer3DModel that started from the transformer of `../pixart`; every weight was trained, on clips "
        "and on stills without its temporal blocks. It shares the text encoder and the VAE of `../pixart`. Loads with "
        "`LattePipeline.from_pretrained(pixart, transformer=LatteTransformer3DModel.from_pretrained(folder))`.",
    ),
    "judge": (
        "Judge of frames",
        "open_clip model (residual network and a text transformer) that classifies subject, style and scene zero-shot. "
        "No training loss uses it. Loads with `open_clip.create_model('local-dir:folder')`.",
    ),
    "motion_judge": (
        "Judge of motion",
        "3-D CNN that classifies the motion of clips of 8 frames. No training loss uses it.",
    ),
    "verb_judge": (
        "Judge of harder motions",
        "3-D CNN as `../motion_judge`, which knows two motions at once and a dance beside the others. No training loss "
        "uses it.",
    ),
    "cnn_judge": (
        "Second judge of frames",
        "Plain CNN that classifies subject, style and scene of single frames, the mean over the frames of a clip. It "
        "shares neither layers nor losses nor draws with `../judge`. No training loss uses it.",
    ),
}
# Model -> what scores call its images or clips.
_RENDERS = {
    "t2i": "zoo", "motion_adapter": "zoo_animatediff", "unet3d": "zoo_unet3d",
    "pixart": "zoo_pixart", "latte": "zoo_latte",
}  # fmt: skip
_DATA = {
    "judge": "a frame of the drawn world drawn afresh for every example, half of them blurred, half of them noisy",
    "cnn_judge": "frames of 16,000 clips of the drawn world (draw seed 3), half of them blurred, half of them noisy",
    "motion_judge": "6,000 clips of the drawn world (draw seed 2), one in ten frozen and then labelled still",
    "unet3d": "12,000 clips of 8 frames of the drawn world (draw seed 1), then 19,000 others (draw seeds 5 to 7), 35 % "
    "and 60 % of which are of two motions at once, a dance, what a subject does when nothing is said, or rest; "
    "fresh captions at every step; no held-out combination of subject, scene and style",
    "verb_judge": "6,000 clips of the drawn world (draw seed 4), 35 % of them of harder motions, one in ten frozen and "
    "then labelled still",
}
_TRAINING_DATA = (
    "12,000 clips of 8 frames of the drawn world (draw seed 1), fresh captions at every step; no held-out combination "
    "of subject, scene and style"
)


def _scored_by(name: str, score: Score) -> bool:
    of_second = score.metric.startswith("second_") or score.metric.endswith("_agreement")
    if of_second or name == "cnn_judge":
        return of_second and name == "cnn_judge"
    if name in _RENDERS:
        return _RENDERS[name] in (score.t2i, score.t2v)
    reader = "judge" if score.metric != "motion_accuracy" else "motion_judge"
    reader = "verb_judge" if score.split in HARDER_SPLITS else reader
    return "drawn" in (score.t2i, score.t2v) and name == reader


def _card(name: str, records: dict[str, dict], scores: list[Score]) -> str:
    title, about = _ABOUT[name]
    lines = [f"# {title}", "", about, "", f"**Data**: {_DATA.get(name, _TRAINING_DATA)}.", ""]
    lines += ["| Stage | Steps | Batch | Learning rate | Seed | Last loss | Time |", "|---|---|---|---|---|---|---|"]
    for stage, r in records.items():
        last, minutes = r["loss_curve"][-1][1], f"{r['seconds'] / 60:.0f} min on {r['machine']}"
        before = r.get("before")
        while before:
            minutes += f"; weights from {before['steps']} earlier steps, {before['seconds'] / 60:.0f} min"
            before = before.get("before")
        if rest := r.get("mean_with"):
            minutes += f"; kept is a mean with {rest['share']:.0%} of the weights after the first {rest['steps']} steps"
        lines.append(f"| {stage} | {r['steps']} | {r['batch']} | {r['lr']} | {r['seed']} | {last} | {minutes} |")
    lines += ["", "Loss, a point every 60th of a stage:", "", "![loss](loss.png)", "", "## Judge scores", ""]
    lines += [
        "Held-out combinations, seeds not used in training (`make zoo-report`).",
        "",
        "| Prompts | Metric | Value (95 % interval) | n |",
        "|---|---|---|---|",
    ]
    for score in scores:
        value, bounds = f"{score.value:.2f}", interval(score)
        if bounds is not None:
            value = f"{score.value:.1%} ({bounds[0]:.1%} to {bounds[1]:.1%})"
        where = f"{score.split}, {score.t2i or score.t2v}" if name == "cnn_judge" else score.split
        lines.append(f"| {where} | {score.metric} | {value} | {score.n} |")
    return "\n".join(lines) + "\n"


def write_cards(scores: list[Score], models: Path = MODELS) -> None:
    """Writes the cards of all models and renews the hashes."""
    for name in _ABOUT:
        records = json.loads((models / name / "training.json").read_text())
        figure, axes = plt.subplots(1, len(records), figsize=(3.2 * len(records), 2.4), squeeze=False)
        for axis, (stage, record) in zip(axes[0], records.items(), strict=True):
            axis.plot(*zip(*record["loss_curve"], strict=True), linewidth=1)
            axis.set(title=stage, xlabel="step", ylabel="loss", yscale="log")
        figure.tight_layout()
        with whole(models / name / "loss.png") as aside:
            figure.savefig(aside, dpi=80, metadata={"Software": None}, format="png")
        plt.close(figure)
        write_text(models / name / "README.md", _card(name, records, [s for s in scores if _scored_by(name, s)]))
    write_scores(models / "scores.jsonl", scores)
    write_sums(models)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m unreel.zoo.cards runs/zoo_report/scores.jsonl")
    write_cards(read_scores(Path(sys.argv[1])))
