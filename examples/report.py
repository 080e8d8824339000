"""The table and the chart at the end of both training examples."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

#: Accuracies in percent, one for each seed, by the name of the model.
Results = dict[str, list[float]]
#: The loss and the test accuracy, in percent, of each epoch, by the name of the model.
Curves = dict[str, list[tuple[float, float]]]


def table(results: Results) -> str:
    """Return a table: mean and standard deviation of the accuracies, and their distance from float in points."""
    lines = ["| | test accuracy, mean ± spread | beside float |", "|---|---|---|"]
    base = np.mean(results["float"])
    for name, values in results.items():
        difference = "" if name == "float" else f"{np.mean(values) - base:+.2f}"
        spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
        lines.append(f"| {name} | {np.mean(values):.2f} ± {spread:.2f} | {difference} |")
    return "\n".join(lines)


def plot(curves: Curves, title: str, path: str) -> None:
    """Draw the loss and the accuracy of each epoch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    colors = ["#4d4d4d", "#0072b2", "#009e73", "#d55e00"]
    markers = ["o", "s", "^", "D"]
    for (name, curve), color, marker in zip(curves.items(), colors, markers, strict=False):
        epochs = np.arange(1, len(curve) + 1)
        for axes, values in zip((loss, accuracy), np.transpose(curve), strict=True):
            axes.plot(epochs, values, color=color, marker=marker, markersize=3, linewidth=1.2, label=name)
    figure.suptitle(title, fontsize="medium")
    loss.set(xlabel="epoch", ylabel="training loss", yscale="log")
    accuracy.set(xlabel="epoch", ylabel="test accuracy, %")
    accuracy.legend(loc="lower right")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
