"""A ready W&B dashboard over all runs of a project; needs an account, and `pip install -e ".[dashboard]"`.

python -m unreel.dashboard entity=me project=unreel

entity, project: whose; t2v: the recipients whose clips are shown, e.g. t2v=[zoo_animatediff,zoo_unet3d].
"""

import sys
from typing import Any

import wandb
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

SCORES = ("forget/concept_accuracy", "context/context_accuracy", "retain/accuracy", "other_sense/concept_accuracy")
STEP = "trainer/global_step"  # Lightning's; W&B's own counts calls of log
TRAINING = ("train/loss", "donor/evidence", "donor/drift")
ABLATED = ("method", "parameters", "shots", "steps", "concept")  # config keys that bars are grouped by
GIVEN = {"entity": None, "project": None, "name": "unreel", "t2v": ["zoo_animatediff"]}


def workspace(entity: str, project: str, name: str, t2v: list[str]) -> Any:
    """The `wandb_workspaces.workspaces.Workspace`: scores and guard rails over the steps, bars by what runs differ in,
    forget against retain, and clips. Nothing is sent before its `save()`."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    curves = [panels.LinePlot(title=key, x=STEP, y=[key], range_y=(0, 1)) for key in SCORES]
    guards = [panels.LinePlot(title=key, x=STEP, y=[key]) for key in TRAINING]
    bars = [
        panels.BarPlot(
            title=f"{score} by {key}", metrics=[score], groupby=panels.Config(key), groupby_aggfunc="mean",
            groupby_rangefunc="stderr", orientation="v",
        )
        for key in ABLATED
        for score in (SCORES[0], SCORES[2])
    ]  # fmt: skip
    trade = panels.ScatterPlot(
        title="forget against retain", x=panels.SummaryMetric(SCORES[0]), y=panels.SummaryMetric(SCORES[2])
    )
    clips = [
        panels.MediaBrowser(title=f"{recipient}: {split}", media_keys=[f"clips/{recipient}/{split}"], num_columns=4)
        for recipient in t2v
        for split in ("forget", "retain", "other_sense")
    ]
    sections: dict[str, list[Any]] = {
        "Forget and retain": [trade, *curves],
        "Ablations": bars,
        "Clips": clips,
        "Training": guards,
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[workspaces.Section(name=title, panels=own, is_open=True) for title, own in sections.items()],
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Metric("Group")],
            pinned_columns=[f"config:{key}" for key in ABLATED] + [f"summary:{key}" for key in SCORES[:3]],
        ),
    )


def main() -> None:
    try:
        given: Any = OmegaConf.merge(OmegaConf.create(GIVEN), OmegaConf.from_cli())
        if unknown := sorted(set(given) - set(GIVEN)):
            raise ValueError(f"found {', '.join(unknown)}: expected {', '.join(GIVEN)}")
        if not given.entity or not given.project:
            raise ValueError("expected entity=NAME project=NAME, of your W&B account")
        recipients = [given.t2v] if isinstance(given.t2v, str) else list(given.t2v)
        made = workspace(given.entity, given.project, given.name, recipients)
        print(made.save().url)
    except ModuleNotFoundError as error:
        sys.exit(f'unreel: {error.name} is missing: pip install -e ".[dashboard]"')
    except (ValueError, OmegaConfBaseException, wandb.Error) as error:
        sys.exit(f"unreel: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
