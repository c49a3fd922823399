"""Figures over many runs: forget against retain, and what changes with what the runs differ in."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unreel.files import whole
from unreel.records import Score
from unreel.tables import by_run, columns_of, differing_in, estimated, left, natural, pairs, varied

SHOWN = {"forget": "concept still seen", "context": "rest of its prompts kept", "retain": "other prompts kept"}


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG and forgets the figure."""
    with whole(path) as aside:
        figure.savefig(aside, dpi=150)
    plt.close(figure)


def svg_uri(figure: Figure) -> str:
    """The figure as the `src` of an <img>, on white; the figure is forgotten."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", facecolor="white")
    plt.close(figure)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def pareto(points: np.ndarray) -> np.ndarray:
    """Of (forget, retain) points (n, 2), those that no other one beats: none has less forget and as much retain."""
    kept, best = [], -np.inf
    for forget, retain in sorted(map(tuple, points), key=lambda point: (point[0], -point[1])):
        if retain > best:
            kept.append((forget, retain))
            best = retain
    return np.array(kept).reshape(-1, 2)


def forget_retain(scores: Sequence[Score]) -> np.ndarray:
    """(n, 2): forget after, and retain after over before, a row for each run and recipient that has both."""
    forget, retain = by_run(scores, "forget"), by_run(scores, "retain")
    both = [key for key in forget if key in retain and retain[key][0] > 0]
    return np.array([(forget[key][1], retain[key][1] / retain[key][0]) for key in both]).reshape(-1, 2)


def setting_means(scores: Sequence[Score]) -> np.ndarray:
    """(n, 2): the points of `forget_retain`, a row for each setting, over its concepts and seeds."""
    values, settings = varied(scores).values(), dict[tuple[str, ...], list[Score]]()
    for s in scores:
        settings.setdefault(tuple(of[s.run, s.t2v] for of in values), []).append(s)
    points = np.array([(left(own, "forget"), left(own, "retain")) for own in settings.values()]).reshape(-1, 2)
    return points[np.isfinite(points).all(1)]


def colours(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """What gets a colour of its own -> its scores: methods, or, of one method, what its settings differ in first."""
    key = "method" if len({s.method for s in scores}) > 1 else next((k for k in varied(scores) if k != "run"), "method")
    says_what_it_is = key in ("method", "t2i", "parameters", "setting", "t2v")
    differ, prefix = differing_in(scores, key), "" if says_what_it_is else f"{key} "
    values = sorted(set(differ.values()), key=natural)
    return {prefix + value: [s for s in scores if differ[s.run, s.t2v] == value] for value in values}


def scatter(scores: Sequence[Score], bars: Mapping[str, float]) -> Figure:
    """Forget against retain, coloured as in `colours`: small a run and recipient, large a setting's mean; bars dotted.

    The Pareto front is of the means: of single runs, with a few clips each, it would be the luckiest ones.
    """
    coloured, means = colours(scores), []
    many = len(coloured) > 6 or max(map(len, coloured)) > 40  # then the legend is below the points
    figure, axis = plt.subplots(figsize=(6, 4.4 + 0.2 * many * len(coloured)), layout="constrained")
    palette = color_sequences["tab20" if len(coloured) > 10 else "tab10"]
    axis.set_prop_cycle(plt.cycler(marker="osD") * plt.cycler(color=palette))
    for name, own in coloured.items():
        points = setting_means(own)
        (mean,) = axis.plot(*points.T, linestyle="", markersize=7, markeredgecolor="white", label=name, zorder=3)
        colour = mean.get_color()
        axis.plot(*forget_retain(own).T, ".", markersize=7, markeredgewidth=0, alpha=0.3, color=colour)
        means.append(points)
    front = pareto(np.concatenate(means))
    axis.plot(*front.T, color="black", linewidth=0.9, marker=".", markersize=4, label="Pareto front of means")
    for column, line in (("forget", axis.axvline), ("retain", axis.axhline)):
        if column in bars:
            line(bars[column], color="grey", linewidth=0.8, linestyle=":")
    axis.set(xlabel="concept still seen (lower is better)", ylabel="retained accuracy of before (higher is better)")
    _plain(axis)
    if many:
        figure.legend(loc="outside lower left", frameon=False, fontsize=7)
    else:
        axis.legend(frameon=False, fontsize=8)
    return figure


def lines_or_bars(scores: Sequence[Score], differ: Mapping[tuple[str, str], str], by: str) -> Figure:
    """A panel a column over the values of `by`, a line or bars a method and recipient, with 95 % over seeds.

    Numbers are on the horizontal axis; names are rows of bars, so that long ones can be read.
    """
    values = sorted(set(differ.values()), key=natural)
    numeric = all(natural(value)[0] < np.inf for value in values)
    series = sorted({(s.method if by != "method" else "", s.t2v if by != "t2v" else "") for s in scores})
    size = (4 * len(SHOWN), 3.4 if numeric else 1.2 + 0.1 * len(values) * (len(series) + 1))
    figure, axes = plt.subplots(1, len(SHOWN), figsize=size, layout="constrained", sharey=True)
    for axis, (column, name) in zip(axes, SHOWN.items(), strict=True):
        for i, (method, t2v) in enumerate(series):
            places, middle, half = [], [], []
            for place, value in enumerate(values):
                here = [s for s in scores if differ[s.run, s.t2v] == value]
                own = [s for s in here if method in ("", s.method) and t2v in ("", s.t2v)]
                if found := estimated(own, column):
                    places.append(place + (0 if numeric else (i - (len(series) - 1) / 2) * 0.8 / len(series)))
                    middle.append(found[0])
                    half.append(found[1])
            label = ", ".join(name for i, name in enumerate((method, t2v)) if len({names[i] for names in series}) > 1)
            if numeric:
                axis.errorbar(places, middle, half, marker=".", capsize=3, label=label)
            else:
                axis.barh(places, middle, 0.8 / len(series), xerr=half, capsize=2, label=label)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.25)
        _plain(axis)
        if numeric:
            axis.set_xticks(range(len(values)), values)
            axis.set_xlabel(by, fontsize=9)
        else:
            axis.set_yticks(range(len(values)), values)
            axis.set_xlim(0, 1.15)
    if not numeric:
        axes[0].invert_yaxis()
    if len(series) > 1:  # above the panels, where it hides no bar
        shown = axes[-1].get_legend_handles_labels()
        figure.legend(*shown, loc="outside upper left", ncols=4, frameon=False, fontsize=8)
    return figure


def attacks(scores: Sequence[Score], bars: Mapping[str, float]) -> Figure:
    """A panel a recipient, a row an attack: what it brings back of each method, with 95 % over seeds; | the control.

    What is asked of an attack is dotted.
    """
    columns = [column for column in columns_of(scores) if column.startswith("attack ")]
    methods, t2vs = (sorted({getattr(s, key) for s in scores}) for key in ("method", "t2v"))
    size, width = (1.6 + 2.6 * len(t2vs), 1.2 + 0.14 * len(columns) * (len(methods) + 1)), 0.8 / len(methods)
    figure, axes = plt.subplots(1, len(t2vs), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axis, t2v in zip(axes[0], t2vs, strict=True):
        for i, method in enumerate(methods):
            own = [s for s in scores if (s.method, s.t2v) == (method, t2v)]
            found = {place: estimated(own, column) for place, column in enumerate(columns)}
            told = [(place + (i - (len(methods) - 1) / 2) * width, *value) for place, value in found.items() if value]
            if not told:
                continue
            places, middle, half = zip(*told, strict=True)
            axis.barh(places, middle, width, xerr=half, capsize=2, label=method, color=f"C{i}")
            before = [pairs(own, columns[place])[:, 0].mean() for place, value in found.items() if value]
            axis.plot(before, places, "|", color="black", markersize=9, label="the unedited model")
        for place, column in enumerate(columns):
            if column in bars:
                axis.plot([bars[column]] * 2, [place - 0.45, place + 0.45], ":", color="grey", linewidth=1)
        axis.set(xlim=(0, 1.15), yticks=range(len(columns)), yticklabels=[c.removeprefix("attack ") for c in columns])
        axis.set_title(t2v, fontsize=10)
        _plain(axis)
    axes[0][0].invert_yaxis()
    figure.supxlabel("concept seen after the attack", fontsize=9)
    named = {name: handle for axis in axes[0] for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named, loc="outside upper left", ncols=4, frameon=False, fontsize=8)
    return figure
