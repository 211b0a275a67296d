"""Draws all figures of the scripts. Only this module imports Matplotlib and seaborn.

Each function draws one figure into a file and closes it. Classes have the order and the colors of `utils`. Sizes are
chosen for the README, which shows one figure about 830 pixels wide, or two next to each other.
"""

import itertools
import logging
import warnings

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # Hides a warning about a read-only home folder.

import matplotlib

matplotlib.use("Agg")  # Draws into files, even without a display.

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

import utils

HALF_WIDTH = 5.5  # Inches of a figure that the README shows next to another one.
FACES_SHOWN = 8  # Few, because FER2013's faces may not be redistributed.
COLORS = {emotion: tuple(np.divide(color, 255)) for emotion, color in utils.EMOTION_COLORS.items()}  # RGB, 0..1.
SERIES_COLORS = ("#d55e00", "#0072b2", "#009e73")
HEAD_COLORS = dict(zip(utils.HEADS, SERIES_COLORS, strict=False))
CALIBRATION_COLORS = {"Before": "#e69f00", "After": "#0072b2", "Demo": "#333333"}  # Before and after the temperature.
LAYER_COLORS = {"Conv2D": "#9ad0f0", "MaxPooling2D": "#f0c266", "Add": "#e0b3cc", "Dense": "#80ccb5"}
LONGEST_SECONDS = 300  # The axis of a longer timeline is in minutes.
OTHER_LAYER_COLOR = "#e8e8e8"
MERGED_LAYERS = {"BatchNormalization": "batch norm", "ReLU": "ReLU"}  # Drawn as part of the layer before.


def save(figure, path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # For file names with letters that the font lacks.
        figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def confusion_matrix(counts, classes, truth, prediction, title, path):
    """Draws the share of each row that got each prediction, with the number of faces.

    Args:
        counts: int (C, C), rows are true classes, columns predictions.
        truth, prediction: labels of the vertical and the horizontal axis.
    """
    counts = np.array(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [f"{share:.0%}\n{count}" for share, count in zip(shares.flat, counts.flat, strict=True)]
    figure, ax = plt.subplots(figsize=(HALF_WIDTH, HALF_WIDTH + 0.3))
    sns.heatmap(
        shares, annot=np.reshape(texts, counts.shape), fmt="", annot_kws={"fontsize": 11 if len(classes) < 6 else 9},
        cmap="Blues", vmin=0, vmax=1, square=True, cbar=False, xticklabels=classes, yticklabels=classes, ax=ax,
    )  # fmt: skip
    ax.tick_params(axis="y", rotation=0)
    ax.tick_params(axis="x", rotation=30 if len(classes) > 5 else 0)
    ax.set(xlabel=f"{prediction} (% of the row, faces)", ylabel=truth, title=title)
    save(figure, path)


def roc(curves, title, path):
    """Draws one ROC curve per class against the rest, and the mean curve at equal false positive rates.

    Args:
        curves: dict of class to (false positive rate, true positive rate, area); a class without a curve is left out.
    """
    figure, ax = plt.subplots(figsize=(HALF_WIDTH, HALF_WIDTH))
    for emotion, (false_positive_rate, true_positive_rate, area) in curves.items():
        label = f"{emotion} (AUC {area:.3f})"
        ax.plot(false_positive_rate, true_positive_rate, color=COLORS[emotion], linewidth=2, label=label)
    if curves:
        grid = np.linspace(0, 1, 500)
        mean = np.mean([np.interp(grid, curve[0], curve[1]) for curve in curves.values()], axis=0)
        area = np.mean([curve[2] for curve in curves.values()])
        ax.plot(grid, mean, color="black", linestyle="--", label=f"Mean (AUC {area:.3f})")
    ax.plot([0, 1], [0, 1], color="lightgray", zorder=0, label="Guessing (AUC 0.500)")
    ax.set(xlabel="False positive rate", ylabel="True positive rate", title=title, aspect="equal")
    ax.legend(loc="lower right")
    save(figure, path)


def calibration(panels, path):
    """Draws how often predictions are right at each confidence, and how many faces have it.

    Args:
        panels: list of (title, truth, curves). `truth` is int (N,), -1 if unknown. `curves` is a dict of name to
            probabilities, float (N, C); the histogram is that of the last curve.
    """
    figure, axes = plt.subplots(
        2, len(panels), figsize=(HALF_WIDTH * (0.4 + 0.6 * len(panels)), 5.2), sharex=True, sharey="row",
        squeeze=False, height_ratios=(3, 1), layout="constrained",
    )  # fmt: skip
    for (title, truth, curves), (ax, histogram) in zip(panels, axes.T, strict=True):
        ax.plot([0, 1], [0, 1], color="lightgray", zorder=0)
        for name, probabilities in curves.items():
            known, color = (probabilities[truth >= 0], truth[truth >= 0]), CALIBRATION_COLORS[name]
            confidence, accuracy, faces = utils.calibration_bins(*known)
            label = f"{name}: ECE {utils.expected_calibration_error(*known):.3f}"
            ax.plot(confidence, accuracy, "o-", markersize=4, color=color, label=label)
        edges = np.arange(len(faces)) / len(faces)
        histogram.bar(edges, faces, width=1 / len(faces), align="edge", color=color, edgecolor="white")
        ax.set(title=title, xlim=(0, 1), ylim=(0, 1))
        ax.legend(loc="upper left", fontsize="small")
        histogram.set(xlabel="Confidence")
    axes[0, 0].set(ylabel="Accuracy")
    axes[1, 0].set(ylabel="Faces per bin")
    save(figure, path)


def mistakes(faces, texts, title, path):
    """Draws at most `FACES_SHOWN` faces, uint8 (N, 48, 48, 1), each under a text."""
    figure, axes = plt.subplots(2, FACES_SHOWN // 2, figsize=(HALF_WIDTH, 3.9), layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for ax, face, text in zip(axes.flat, faces, texts, strict=False):
        ax.imshow(face[..., 0], cmap="gray", vmin=0, vmax=255)
        ax.set_title(text, fontsize=8.5)
    figure.suptitle(title, fontsize="medium")
    save(figure, path)


def history(epochs, quantity, heads, best_epoch, path):
    """Draws "accuracy" or "loss" of each head over the epochs, and marks where the crop size changes.

    Args:
        epochs: dict of the columns of `history.csv`, float (E,) each.
        best_epoch: the epoch that was kept, or None.
    """
    figure, ax = plt.subplots(figsize=(HALF_WIDTH, 4))
    numbers, sizes = epochs["epoch"], epochs["size"]
    for head in heads:
        training, validation = epochs[f"{head}_{quantity}"], epochs[f"val_{head}_{quantity}"]
        label, color = f"{head.capitalize()} head, " if len(heads) > 1 else "", HEAD_COLORS[head]
        ax.plot(numbers, training, "--", color=color, label=f"{label}Training (augmented)")
        ax.plot(numbers, validation, "-", color=color, label=f"{label}PublicTest")
        ax.plot(numbers[numbers == best_epoch], validation[numbers == best_epoch], "o", color=color)
    for row in np.flatnonzero(np.diff(sizes)) + 1:
        ax.axvline(numbers[row], linestyle=":", color="gray", zorder=0)
        place = {"xy": (numbers[row], 0.02), "xycoords": ("data", "axes fraction")}
        ax.annotate(f"{sizes[row]:.0f} px ", **place, ha="right", color="gray")
    unit = {"accuracy": "Accuracy (share of the faces)", "loss": "Loss (cross-entropy, nats)"}[quantity]
    ax.set(xlabel="Epoch", ylabel=unit, title=f"{quantity.capitalize()} per epoch (dot: the epoch that was kept)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small", bbox_to_anchor=(0, 0.1, 1, 0.9))  # Above the sizes of the crops.
    save(figure, path)


def architecture(layers, title, path):
    """Draws the layers, dicts as in `model.json`, in one column per image size, with residual connections."""
    groups = merge_layers(layers)
    columns = [list(column) for _, column in itertools.groupby(groups, key=lambda group: group["shape"][:-1])]
    rows, places = max(map(len, columns)), {}
    for x, column in enumerate(columns):
        for y, group in enumerate(column):
            places |= dict.fromkeys(group["names"], (x, y))
    outputs = set(places) - {source for layer in layers for source in layer["sources"]}
    figure, ax = plt.subplots(figsize=(2 * len(columns), 0.55 * rows + 0.6), layout="constrained")
    for group in groups:
        draw_layer(ax, group, places, is_output=group["names"][-1] in outputs)
    ax.set(xlim=(-0.55, len(columns) - 0.45), ylim=(rows - 0.4, -0.6), title=f"{title}; columns follow each other")
    ax.axis("off")
    save(figure, path)


def merge_layers(layers):
    """Merges `MERGED_LAYERS` into the layer before. Returns the layers to draw, with `names` and `merged` added."""
    groups = []
    for layer in layers:
        if layer["kind"] in MERGED_LAYERS and groups and layer["sources"] == groups[-1]["names"][-1:]:
            groups[-1]["names"].append(layer["name"])
            groups[-1]["merged"] += f"{MERGED_LAYERS[layer['kind']]}, "
        else:
            groups.append({**layer, "names": [layer["name"]], "merged": ""})
    return groups


def draw_layer(ax, group, places, is_output):
    """Draws a layer and, at the left edge of the column, the residual connection that ends in the layer.

    Args:
        group: from `merge_layers`.
        places: dict of a layer's name to its column and row.
    """
    (x, y), color = places[group["names"][0]], LAYER_COLORS.get(group["kind"], OTHER_LAYER_COLOR)
    ax.add_patch(plt.Rectangle((x - 0.44, y - 0.41), 0.88, 0.82, facecolor=color, edgecolor="white"))
    text = f"{group['text']}: {group['names'][0]}" if is_output else group["text"]
    ax.text(x, y - 0.14, text, ha="center", va="center", fontsize=9)
    shape = group["merged"] + "×".join(map(str, group["shape"]))
    ax.text(x, y + 0.2, shape, ha="center", va="center", fontsize=7.5)
    if group["kind"] == "Add":
        left, top, bottom = x - 0.44, places[group["sources"][0]][1] + 0.15, y - 0.15
        ax.plot([left, left - 0.05, left - 0.05, left], [top, top, bottom, bottom], color="#a0456f", linewidth=1.5)


def timeline(curves, classes, others, path):
    """Draws the stacked probabilities of each track over time. The background shows where the face was not seen.

    Args:
        curves: list of (name, seconds (K,), probabilities (K, C)), at most six.
        classes: the C emotions.
        others: number of tracks that are left out.
    """
    figure, axes = plt.subplots(
        len(curves), figsize=(8, 1.3 + 1.1 * len(curves)), sharex=True, squeeze=False, layout="constrained"
    )
    start = min(0, *(seconds[0] for _, seconds, _ in curves))
    end = max(seconds[-1] for _, seconds, _ in curves)
    unit, name = (60, "minutes") if end > LONGEST_SECONDS else (1, "seconds")
    for ax, (title, seconds, probabilities) in zip(axes[:, 0], curves, strict=True):
        colors = [COLORS[emotion] for emotion in classes]
        ax.stackplot(seconds / unit, probabilities.T, labels=classes, colors=colors, linewidth=0)
        ax.set(ylim=(0, 1), yticks=(0, 0.5, 1), xlim=(start / unit, end / unit), facecolor="#f2f2f2")
        ax.set_title(title.replace("$", r"\$"), loc="left", fontsize="medium")  # Dollar signs would mean math.
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    legend = axes[0, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper center", ncols=len(classes), frameon=False, handlelength=1)
    axes[-1, 0].set_xlabel(f"Time ({name})")
    figure.supylabel("Probability", fontsize="medium")
    if others:
        text = f"{others} more face{'s were' if others > 1 else ' was'} seen for less time."
        figure.supxlabel(text, x=0.99, ha="right", fontsize="small", color="gray")
    save(figure, path)
