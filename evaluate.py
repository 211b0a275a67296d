"""Measures a trained model on faces it was not trained on, and draws the figures.

    python evaluate.py                               models/emotions-5 on the test split (PrivateTest)
    python evaluate.py --split val                   on the validation split (PublicTest)
    python evaluate.py --model models/emotions-7     the seven emotions
    python evaluate.py --tta                         averages each face with its mirror image

Scores model.tflite, the file that the demo runs, and writes metrics.json, classification_report.txt and the pictures.
"""

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # Draws into files, with or without a display.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from sklearn import metrics

import distillation
import utils

SPLIT_NAMES = {split: utils.SPLITS[split] for split in ("test", "val")} | {"both": "PublicTest and PrivateTest"}
CALIBRATION_BINS = 15  # Equal in width, as in Guo et al., 2017.
FACES_SHOWN = 40  # Of a figure of faces.
INK, ORANGE = "#333333", "#d55e00"
LAYER_COLORS = {
    "Conv2D": "#56b4e9",
    "MaxPooling2D": "#e69f00",
    "Add": "#cc79a7",
    "Dense": "#009e73",
}  # Others are gray.

# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def predict_with_mirror(model, faces):
    """Returns the probabilities of the faces and of their mirror images, float32 (2, N, C)."""
    return np.stack([model.predict(faces), model.predict(faces[:, :, ::-1])])


def undo_temperature(probabilities, temperature):
    """Returns the probabilities, float (..., C), as they would be if the temperature had not divided the logits."""
    powers = probabilities.astype(float) ** temperature
    return powers / powers.sum(axis=-1, keepdims=True)


def measure(labels, probabilities, classes):
    """Computes every figure of `metrics.json` that follows from labels and probabilities.

    Args:
        labels: int (N,).
        probabilities: float (N, C), rows sum to 1.
        classes: C names.

    Returns:
        dict; a figure that is not defined, such as the AUC of a class without faces, is None.
    """
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True, dtype=float)  # To double precision's 1.
    predicted, indices = probabilities.argmax(axis=1), list(range(len(classes)))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=indices, zero_division=0
    )
    aucs = [area_under_curve(labels == i, probabilities[:, i]) for i in indices]
    known_aucs = [auc for auc in aucs if auc is not None]
    accuracy = float(np.mean(predicted == labels))
    return {
        "accuracy": accuracy,
        "accuracy_ci95": wilson_interval(accuracy, len(labels)),
        "macro_f1": float(f1.mean()),
        "balanced_accuracy": float(recall[support > 0].mean()),
        "majority_baseline": float(support.max() / len(labels)),
        "log_loss": float(metrics.log_loss(labels, probabilities, labels=indices)),
        "ece": expected_calibration_error(labels, probabilities),
        "auc_macro": float(np.mean(known_aucs)) if known_aucs else None,
        "confusion_matrix": metrics.confusion_matrix(labels, predicted, labels=indices).tolist(),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "auc": aucs[i],
                "support": int(support[i]),
            }
            for i, name in enumerate(classes)
        },
    }


def find_copies(data, faces, num_classes):
    """Tells which faces, bool (N,), are exact copies of one that was trained on: FER2013 has such in every split."""
    try:
        trained_on, _ = utils.load_fer2013(data, "train", num_classes)
    except ValueError:  # A data set may hold nothing but what is to be scored.
        return np.zeros(len(faces), bool)
    return np.isin(distillation.hash_faces(faces), distillation.hash_faces(trained_on))


def measure_unseen(labels, probabilities, copies):
    """Returns the figures of `metrics.json` that leave copies of Training's faces out."""
    correct = (probabilities.argmax(axis=1) == labels)[~copies]
    return {
        "rows_also_in_training": int(copies.sum()),
        "accuracy_unseen": float(correct.mean()) if len(correct) else None,
    }


def area_under_curve(is_class, scores):
    """Returns the area under the ROC curve of one class against the rest, None where one side has no faces."""
    return float(metrics.roc_auc_score(is_class, scores)) if 0 < is_class.sum() < len(is_class) else None


def wilson_interval(accuracy, count):
    """Returns the 95 % confidence interval [low, high] of a proportion (Wilson, 1927)."""
    z = 1.96
    center = (accuracy + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(accuracy * (1 - accuracy) / count + z**2 / (4 * count**2))
    return [float(center - half), float(center + half)]


def calibration_bins(labels, probabilities):
    """Sorts faces into bins of equal width by the confidence of their label.

    Returns:
        confidence, accuracy, count: (bins,) each, means per bin; NaN where a bin is empty.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        sums = [
            np.bincount(bins, weights=values, minlength=CALIBRATION_BINS) / count for values in (confidence, correct)
        ]
    return *sums, count


def expected_calibration_error(labels, probabilities):
    """Returns the mean distance between confidence and accuracy, weighted by the faces in each bin."""
    confidence, accuracy, count = calibration_bins(labels, probabilities)
    return float(np.nansum(np.abs(confidence - accuracy) * count) / len(labels))


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def save(fig, path):
    fig.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(fig)


def plot_confusion_matrix(matrix, classes, title, path):
    """Draws the share of each true class that was given each label, and below it the number of faces."""
    counts = np.array(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [f"{share:.0%}\n{count}" for share, count in zip(shares.flat, counts.flat, strict=True)]
    fig, ax = plt.subplots(figsize=(1.1 * len(classes) + 1.5, 1.0 * len(classes) + 0.8))
    sns.heatmap(
        shares, annot=np.reshape(texts, counts.shape), fmt="", cmap="Blues", vmin=0, vmax=1, square=True, cbar=False,
        xticklabels=classes, yticklabels=classes, ax=ax,
    )  # fmt: skip
    ax.set(xlabel="Predicted", ylabel="True", title=title)
    save(fig, path)


def plot_roc(labels, probabilities, result, classes, title, path):
    """Draws one ROC curve per class against the rest, and their mean at equal false positive rates."""
    fig, ax = plt.subplots(figsize=(6, 5.5))
    grid, curves = np.linspace(0, 1, 500), []
    for i, name in enumerate(classes):
        auc = result["per_class"][name]["auc"]
        if auc is not None:
            false_positive_rate, true_positive_rate, _ = metrics.roc_curve(labels == i, probabilities[:, i])
            curves.append(np.interp(grid, false_positive_rate, true_positive_rate))
            ax.plot(false_positive_rate, true_positive_rate, color=utils.rgb(name), label=f"{name} (AUC {auc:.3f})")
    if curves:
        average = f"Macro average (AUC {result['auc_macro']:.3f})"
        ax.plot(grid, np.mean(curves, axis=0), color="black", linestyle="--", label=average)
    ax.plot([0, 1], [0, 1], color="lightgray", linewidth=1, label="Guessing (AUC 0.500)")
    ax.set(xlabel="False positive rate", ylabel="True positive rate", title=title)
    ax.legend(loc="lower right")
    save(fig, path)


def plot_history(history, quantity, path):
    """Draws a quantity of training and validation over the epochs, and where the crops grew."""
    corner = {"accuracy": "lower right", "loss": "upper right"}[quantity]  # Where neither curve is.
    val = f"val_{quantity}"
    fig, ax = plt.subplots(figsize=(7, 4))
    joined = "network" in history.columns  # One after another in the file.
    for number, epochs in history.groupby("network" if joined else np.zeros(len(history))):
        which, line = (f", network {number:.0f}", "-" if number == 1 else "--") if joined else ("", "-")
        for key, color, name in (
            (quantity, INK, "Training (augmented faces)"),
            (val, ORANGE, "Validation (PublicTest)"),
        ):
            ax.plot(epochs["epoch"], epochs[key], line, color=color, label=f"{name}{which}")
        best = epochs.loc[epochs["val_accuracy"].idxmax()]
        ax.plot(best["epoch"], best[val], "o", color=ORANGE, label=f"Kept: epoch {best['epoch']:.0f}{which}")
        for _, epoch in epochs[epochs["size"].diff().fillna(0) != 0].iterrows():
            ax.axvline(epoch["epoch"], linestyle=line, color="lightgray", zorder=0)
            place = {"xy": (epoch["epoch"], 0.5), "xycoords": ("data", "axes fraction")}
            ax.annotate(f" {epoch['size']:.0f} px", **place, color="gray")
    ax.set(xlabel="Epoch", ylabel=quantity.capitalize(), title=f"{quantity.capitalize()} per epoch")
    ax.grid(alpha=0.3)
    ax.legend(loc=corner, fontsize="small" if joined else "medium")
    save(fig, path)


def plot_calibration(labels, probabilities, uncalibrated, title, path):
    """Draws how often the label is right at each confidence, with the temperature and without.

    The diagonal is a confidence that means what it says.
    """
    fig, (ax, histogram) = plt.subplots(2, figsize=(5, 6), sharex=True, height_ratios=(3, 1))
    ax.plot([0, 1], [0, 1], color="lightgray", label="A confidence that is right")
    for name, color, values in (("Before", "#e69f00", uncalibrated), ("After", "#0072b2", probabilities)):
        confidence, accuracy, count = calibration_bins(labels, values)
        error = expected_calibration_error(labels, values)
        ax.plot(confidence, accuracy, "o-", color=color, label=f"{name} the temperature: error {error:.3f}")
    ax.set(ylabel="Accuracy", title=f"{title}\nExpected calibration error")
    ax.legend(loc="lower right", fontsize="small")
    edges = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
    histogram.bar(edges, count, width=1 / CALIBRATION_BINS, align="edge", color="#56b4e9", edgecolor="white")
    histogram.set(xlabel="Confidence", ylabel="Faces", xlim=(0, 1))
    save(fig, path)


def plot_mistakes(faces, labels, probabilities, classes, title, path):
    """Draws the faces whose wrong label the model was surest of."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:FACES_SHOWN]
    fig = plt.figure(figsize=(12, 9.5), layout="constrained")
    draw_faces(fig, faces[wrong], labels[wrong], probabilities[wrong], classes)
    fig.suptitle(title)
    save(fig, path)


def draw_faces(figure, faces, labels, probabilities, classes):
    """Draws at most `FACES_SHOWN` faces in rows of eight, each with its label and what it is read as."""
    axes = figure.subplots(FACES_SHOWN // 8, 8)
    for ax in axes.flat:
        ax.axis("off")
    for ax, face, label, row in zip(axes.flat, faces, labels, probabilities, strict=False):
        ax.imshow(face[..., 0], cmap="gray", vmin=0, vmax=255)
        ax.set_title(f"{classes[label]}, read as\n{classes[row.argmax()]} {row.max():.0%}", fontsize=9)


def read_layers(model_file):
    """Reads the network of a `.keras` file, which is a zip archive, in its order and without importing Keras.

    Returns:
        list of dict with `name`, `kind`, `text`, `shape` (of the output, without the batch), `sources` (names) and
        `network` (of joined networks the number of the one that the layer is of, else 0).

    Raises:
        ValueError: it is damaged.
    """
    try:
        with zipfile.ZipFile(model_file) as archive:
            return describe_layers(json.loads(archive.read("config.json"))["config"]["layers"])
    except (*utils.UNREADABLE, AttributeError) as error:
        raise ValueError(f"{model_file} must be a model that train.py saved. Received: {error!r}.") from error


def describe_layers(config):
    """Returns what `read_layers` does, of the list in Keras's own form."""
    found, shapes, joined = [], {}, []
    for layer in config:
        options, kind = layer["config"], layer["class_name"]
        tensors = [tensor["config"] for node in layer["inbound_nodes"] for tensor in flatten(node["args"])]
        shapes |= {tensor["keras_history"][0]: tensor["shape"][1:] for tensor in tensors}
        if kind == "Functional":
            joined.append(options)
            continue
        text = f"{kind} {options['kernel_size'][0]}×{options['kernel_size'][1]}" if "kernel_size" in options else kind
        text += f" {options['rate']:.0%}" if "rate" in options else ""
        sources = [tensor["keras_history"][0] for tensor in tensors]
        found.append(
            {"name": options["name"], "kind": kind, "text": text, "sources": sources, "units": options.get("units")}
        )
    found = [layer | {"shape": shapes.get(layer["name"], [layer["units"]]), "network": 0} for layer in found]
    inner = []
    for number, network in enumerate(joined, start=1):
        inner += [layer | {"network": number} for layer in describe_layers(network["layers"])]
        inner[-1]["shape"] = shapes[network["name"]]  # It is used outside only.
    # Every network has an input of its own.
    return inner + [layer for layer in found if not joined or layer["kind"] != "InputLayer"]


def flatten(nested):
    """Yields the items of lists in lists."""
    for item in nested:
        yield from flatten(item) if isinstance(item, list) else [item]


def place_layers(layers):
    """Returns column and row of each layer: a column per picture size.

    Joined networks are one above the other, what joins them is at the right.
    """
    places = []
    for network, of_network in itertools.groupby(layers, key=lambda layer: layer["network"]):
        column, top = -1, 0
        if places:
            right, bottom = np.max(places, axis=0)
            column, top = (-1, bottom + 2) if network else (right, 0)
        for _, of_size in itertools.groupby(of_network, key=lambda layer: layer["shape"][:-1]):
            column += 1
            places += [(column, top + row) for row, _ in enumerate(of_size)]
    return places


def plot_architecture(layers, description, path):
    """Draws the layers with their output shapes, residual connections at their side."""
    fig, ax = plt.subplots()
    places, row_of = place_layers(layers), {}
    for layer, (column, row) in zip(layers, places, strict=True):
        row_of[layer["name"]] = row
        color, edge = LAYER_COLORS.get(layer["kind"], "#e8e8e8"), column - 0.42
        ax.add_patch(plt.Rectangle((edge, row - 0.4), 0.84, 0.8, facecolor=color, edgecolor="white"))
        ax.text(column, row - 0.13, layer["text"], ha="center", va="center", fontsize=9)
        ax.text(column, row + 0.2, "×".join(map(str, layer["shape"])), ha="center", va="center", fontsize=7.5)
        if layer["kind"] == "InputLayer" and layer["network"]:
            ax.text(edge, row - 0.6, f"Network {layer['network']}", fontsize=9)
        if layer["kind"] == "Add":
            top, bottom = row_of[layer["sources"][0]] + 0.15, row - 0.15
            ax.plot([edge, edge - 0.05, edge - 0.05, edge], [top, top, bottom, bottom], color="#cc79a7")
    right, bottom = np.max(places, axis=0)
    fig.set_size_inches(2.6 * (right + 1), 0.55 * (bottom + 1))
    ax.set(xlim=(-0.6, right + 0.6), ylim=(bottom + 0.6, -0.6))
    counts = f"{description['parameters']:,} parameters, {description['macs'] / 1e6:.1f} million multiply-adds a face"
    ax.set_title(f"{counts}; each column goes on in the next")
    ax.axis("off")
    save(fig, path)


# ---------------------------------------------------------------------------------------------------------------------
# The evaluation
# ---------------------------------------------------------------------------------------------------------------------


def read_history(path):
    """Reads `history.csv`.

    Raises:
        ValueError: it is damaged.
    """
    needed = ["epoch", "size", "accuracy", "loss", "val_accuracy", "val_loss"]
    try:
        history = pd.read_csv(path, dtype=float)
        missing = [column for column in needed if column not in history.columns]
    except ValueError as error:
        raise ValueError(f"{path} must be a CSV of numbers. Received: {' '.join(str(error).split())[:120]}") from error
    if missing or history.empty:
        raise ValueError(
            f"{path} must have the columns {', '.join(needed)} and a row per epoch. Received: {list(history.columns)}."
        )
    return history


def evaluate(data, model_dir, split, tta, output_dir):
    """Scores a model folder and writes metrics, report and figures.

    Args:
        data: path of the data set.
        model_dir: model folder.
        split: "test", "val" or "both".
        tta: average each face with its mirror image.
        output_dir: folder for the results, made where it is missing.

    Returns:
        report: str, the results in words and the classification report.

    Raises:
        FileNotFoundError, ValueError: the data or the model cannot be used.
    """
    model = utils.load_emotion_model(model_dir)
    classes = model.classes
    history, layers = read_history(model_dir / "history.csv"), read_layers(model_dir / "model.keras")
    parts = [
        utils.load_fer2013(data, part, len(classes)) for part in (("val", "test") if split == "both" else (split,))
    ]
    faces, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    views = predict_with_mirror(model, faces)
    scored = views if tta else views[:1]
    probabilities = scored.mean(axis=0)
    uncalibrated = undo_temperature(scored, model.description["temperature"]).mean(axis=0)
    result = {"split": split, "rows": len(labels), "tta": tta} | measure(labels, probabilities, classes)
    result |= measure_unseen(labels, probabilities, find_copies(data, faces, len(classes)))
    result["accuracy_tta"] = float(np.mean(views.mean(axis=0).argmax(axis=1) == labels))
    report = format_report(labels, probabilities, result, classes)

    title = f"{SPLIT_NAMES[split]}, {len(labels):,} faces" + (", averaged with the mirror image" if tta else "")
    with replaced_files(output_dir) as folder:
        plot_results(folder, faces, labels, probabilities, uncalibrated, classes, result, title)
        plot_training(folder, history, layers, model.description)
        (folder / "classification_report.txt").write_text(report, encoding="utf-8")
        (folder / "metrics.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    return report


@contextlib.contextmanager
def replaced_files(folder):
    """Gives a folder to write into, whose files replace those of `folder` when all are written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        yield Path(new)
        for file in Path(new).iterdir():
            file.replace(folder / file.name)


def plot_results(folder, faces, labels, probabilities, uncalibrated, classes, result, title):
    """Draws what a model makes of faces, with `result`, the content of `metrics.json`, and without its temperature."""
    plot_confusion_matrix(result["confusion_matrix"], classes, title, folder / "confusion_matrix.png")
    plot_roc(labels, probabilities, result, classes, title, folder / "roc.png")
    plot_calibration(labels, probabilities, uncalibrated, title, folder / "calibration.png")
    plot_mistakes(faces, labels, probabilities, classes, title, folder / "mistakes.png")


def plot_training(folder, history, layers, description):
    """Draws how a model was trained, and its layers."""
    plot_history(history, "accuracy", folder / "accuracy.png")
    plot_history(history, "loss", folder / "loss.png")
    plot_architecture(layers, description, folder / "architecture.png")


def format_report(labels, probabilities, result, classes):
    """Returns the classification report under a line that says what was measured."""
    table = metrics.classification_report(
        labels,
        probabilities.argmax(axis=1),
        labels=range(len(classes)),
        target_names=classes,
        digits=4,
        zero_division=0,
    )
    low, high = result["accuracy_ci95"]
    copies, accuracy = result["rows_also_in_training"], result["accuracy_unseen"]
    unseen = f"Without the {copies:,} that are copies of Training's: {accuracy:.4f}\n" if copies and accuracy else ""
    return (
        f"{SPLIT_NAMES[result['split']]}, {result['rows']:,} faces: accuracy {result['accuracy']:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f}; the most frequent class: {result['majority_baseline']:.4f})\n"
        f"{unseen}"
        f"Averaged with the mirror image: {result['accuracy_tta']:.4f}\n\n"
        f"{table}"
    )


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=utils.DEFAULT_DATA, help="data set (default: data/fer2013.csv)")
    parser.add_argument(
        "--model", type=Path, default=utils.DEFAULT_MODEL, help="model folder (default: models/emotions-5)"
    )
    parser.add_argument("--split", choices=SPLIT_NAMES, default="test", help="faces to score (default: test)")
    parser.add_argument("--tta", action="store_true", help="average each face with its mirror image")
    parser.add_argument("--output-dir", type=Path, help="results (default: figures/<model folder's name>)")
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or utils.ROOT / "figures" / args.model.resolve().name
    return args


def main(argv=None):
    args = parse_args(argv)
    utils.make_any_name_printable()
    try:
        report = evaluate(args.data, args.model, args.split, args.tta, args.output_dir)
    except (OSError, ValueError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{report}\nFigures and metrics are in {args.output_dir}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
