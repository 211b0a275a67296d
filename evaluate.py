"""Scores the network of a model folder on faces it was not trained on, and draws the figures.

    python evaluate.py                                      models/emotions-5 on the test split (PrivateTest)
    python evaluate.py --split val                          on the validation split (PublicTest)
    python evaluate.py --model models/emotions-7            the seven emotions
    python evaluate.py --votes data/fer2013new.csv          also against what most people see in the faces

Scores model.tflite, the file that the demo runs. Prints a report and writes it, metrics.json and the figures.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import cli

with cli.importing(__name__, "evaluate.py"):
    import numpy as np
    import pandas as pd
    import tqdm
    from sklearn import metrics

    import plots
    import utils

SPLIT_NAMES = {split: utils.SPLITS[split] for split in ("test", "val")} | {"both": "PublicTest and PrivateTest"}
FACES_PER_STEP = 256  # Of the progress bar.
MAX_EPOCHS = 10_000  # Rows of a history.csv that are read.
FILES = (
    "metrics.json", "classification_report.txt", "confusion_matrix.png", "consensus_matrix.png", "roc.png",
    "accuracy.png", "loss.png", "calibration.png", "mistakes.png", "architecture.png",
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------------


def measure(labels, probabilities, classes):
    """Computes the metrics of predictions.

    Args:
        labels: int (N,), N at least 1.
        probabilities: float (N, C), rows sum to 1.
        classes: C names.

    Returns:
        dict in the form of `metrics.json`. The AUC of a class without faces is None.
    """
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True, dtype=float)  # To double precision's 1.
    predicted, indices = probabilities.argmax(axis=1), list(range(len(classes)))
    columns = metrics.precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)
    aucs = [area_under_curve(labels == i, probabilities[:, i]) for i in indices]
    per_class = {
        name: {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "auc": auc,
            "support": int(faces),
        }
        for name, precision, recall, f1, faces, auc in zip(classes, *columns, aucs, strict=True)
    }
    present = [values for values in per_class.values() if values["support"]]
    accuracy, known_aucs = float(np.mean(predicted == labels)), [auc for auc in aucs if auc is not None]
    return {
        "rows": len(labels),
        "accuracy": accuracy,
        "accuracy_ci95": wilson_interval(accuracy, len(labels)),
        "macro_f1": float(np.mean([values["f1"] for values in per_class.values()])),
        "balanced_accuracy": float(np.mean([values["recall"] for values in present])),
        "majority_baseline": max(values["support"] for values in present) / len(labels),
        "log_loss": float(metrics.log_loss(labels, probabilities, labels=indices)),
        "ece": utils.expected_calibration_error(probabilities, labels),
        "auc_macro": float(np.mean(known_aucs)) if known_aucs else None,
        "confusion_matrix": metrics.confusion_matrix(labels, predicted, labels=indices).tolist(),
        "per_class": per_class,
    }


def area_under_curve(is_class, scores):
    """Returns the area under the ROC curve of one class against the rest, or None if one side has no faces."""
    return float(metrics.roc_auc_score(is_class, scores)) if 0 < is_class.sum() < len(is_class) else None


def wilson_interval(accuracy, count):
    """Returns the 95 % confidence interval [low, high] of a proportion (Wilson, 1927)."""
    z = 1.96
    center = (accuracy + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(accuracy * (1 - accuracy) / count + z**2 / (4 * count**2))
    return [float(center - half), float(center + half)]


def measure_unseen(labels, probabilities, copies):
    """Computes the accuracy without the faces that are copies of Training's.

    Args:
        copies: bool (N,), or None if there is no Training split.
    """
    if copies is None:
        return {"rows_also_in_training": None, "accuracy_unseen": None}
    correct = (probabilities.argmax(axis=1) == labels)[~copies]
    return {
        "rows_also_in_training": int(copies.sum()),
        "accuracy_unseen": float(correct.mean()) if len(correct) else None,
    }


def measure_heads(labels, consensus, predictions):
    """Computes accuracy and calibration error of each head and of the demo, against each truth.

    Args:
        labels, consensus: int (N,); consensus is None without votes, and -1 for a face without one.
        predictions: dict of name to probabilities, float (N, C).
    """
    truths = {"labels": labels} | ({} if consensus is None else {"consensus": consensus})
    return {
        head: {
            truth: {
                "accuracy": float(np.mean(probabilities[values >= 0].argmax(axis=1) == values[values >= 0])),
                "ece": utils.expected_calibration_error(probabilities[values >= 0], values[values >= 0]),
            }
            for truth, values in truths.items()
        }
        for head, probabilities in predictions.items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def load_faces(data, votes, split, num_classes):
    """Loads the faces to score.

    Returns:
        faces: uint8 (N, 48, 48, 1).
        labels: int (N,).
        consensus: int (N,), -1 for a face without one; None without votes.

    Raises:
        OSError, ValueError: a file cannot be used, or no face has a consensus.
    """
    parts = ("val", "test") if split == "both" else (split,)
    loaded = zip(*(utils.load_fer2013(data, part, num_classes) for part in parts), strict=True)
    faces, labels = (np.concatenate(arrays) for arrays in loaded)
    if votes is None:
        return faces, labels, None
    consensus = np.concatenate([utils.load_votes(votes, data, part, num_classes)[2] for part in parts])
    if (consensus < 0).all():
        raise ValueError(f"{utils.printable(votes)}: no face of {SPLIT_NAMES[split]} has a consensus. Omit --votes.")
    return faces, labels, consensus


def find_copies(data, faces, num_classes):
    """Returns a bool (N,) mask of the faces that are exact copies of Training's, or None if there is no Training."""
    try:
        return utils.find_copies(faces, utils.load_fer2013(data, "train", num_classes)[0])
    except ValueError:  # A data set may hold only the faces to score.
        return None


def check_output_dir(path):
    """Refuses a path that something other than a folder has, before the work."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{utils.printable(path)}: not a folder. Choose another --output-dir.")


def read_layers(model_dir, description):
    """Returns the layers of `model.json`.

    Raises:
        ValueError: they are missing or damaged.
    """
    types = {"name": str, "kind": str, "text": str, "shape": list, "sources": list}
    layers, known = description.get("layers"), set()
    valid = isinstance(layers, list) and bool(layers)
    for layer in layers if valid else ():
        valid = valid and isinstance(layer, dict) and all(isinstance(layer.get(key), types[key]) for key in types)
        valid = valid and bool(layer["shape"]) and all(source in known for source in layer["sources"])
        known |= {layer["name"]} if valid else set()
    if not valid:
        path = utils.printable(model_dir / "model.json")
        raise ValueError(f"{path}: `layers` is missing or damaged. Train the model again, or restore the file.")
    return layers


def read_history(path, heads):
    """Reads `history.csv`.

    Returns:
        dict of column to float (E,), or None if there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        print(f"{utils.printable(path)}: no such file. accuracy.png and loss.png are left out.", file=sys.stderr)
        return None
    columns = ["epoch", "size"]
    columns += [f"{part}{head}_{name}" for head in heads for part in ("", "val_") for name in ("accuracy", "loss")]
    try:
        table = pd.read_csv(path, usecols=columns, dtype=float, nrows=MAX_EPOCHS)
        if table.empty or not np.isfinite(table).all(axis=None):
            raise ValueError("no rows, or fields without a number")
    except ValueError as error:
        name, reason = utils.printable(path), utils.shorten(error)
        raise ValueError(
            f"{name}: damaged ({reason}). Delete it to evaluate without the training's figures."
        ) from error
    return {column: table[column].to_numpy() for column in columns}


@contextlib.contextmanager
def replaced_files(folder):
    """Yields a temporary folder. On success `FILES` of `folder` are replaced by those that it holds, or deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:
        yield Path(new)
        for name in FILES:
            if (Path(new) / name).exists():
                (Path(new) / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)  # Of an earlier evaluation.


# ---------------------------------------------------------------------------------------------------------------------
# Warnings
# ---------------------------------------------------------------------------------------------------------------------


def compare_hashes(data, split, description):
    """Returns a line for each split that is not what the model was trained with.

    Args:
        description: content of `model.json`, with the hashes of Training and PublicTest.
    """
    training = description["training"]
    recorded, classes = training.get("data_sha256"), len(description["classes"])
    if not isinstance(recorded, dict):
        return []
    hashes, lines = {}, []
    for part in utils.SPLITS:
        if part == "train" or split in (part, "both"):
            with contextlib.suppress(ValueError):  # There are no rows of this split.
                hashes[part] = utils.hash_split(*utils.load_fer2013(data, part, classes, training.get("limit")))
    for part, name in utils.SPLITS.items():
        same = [utils.SPLITS[other] for other in recorded if other != part and recorded[other] == hashes.get(part)]
        if same:
            lines.append(f"{name} holds the faces that were {same[0]} when the model was trained.")
        elif part in recorded and hashes.get(part, recorded[part]) != recorded[part]:
            lines.append(f"{name} is not the one that the model was trained with; copies of its faces may be missed.")
    return [f"{utils.printable(data)}: {line}" for line in lines]


def warn(data, split, description, result):
    """Prints a line for each sign that data and model do not fit."""
    lines = utils.data_warnings(data) + compare_hashes(data, split, description)
    if result["accuracy"] < result["majority_baseline"]:
        lines.append(
            f"accuracy {result['accuracy']:.4f} is under that of always predicting the most frequent class "
            f"({result['majority_baseline']:.4f}). Labels or model are wrong."
        )
    for line in lines:
        print(f"Warning: {line}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def draw_matrices(folder, result, classes):
    """Draws the confusion matrices against the labels and the consensus."""
    name = SPLIT_NAMES[result["split"]]
    title = f"{name}: {result['rows']:,} faces"
    axes = ("Label", "Prediction of the labels head")
    plots.confusion_matrix(result["confusion_matrix"], classes, *axes, title, folder / "confusion_matrix.png")
    if "consensus" in result:
        title = f"{name}: {result['consensus']['rows']:,} faces with a consensus"
        matrix, axes = result["consensus"]["confusion_matrix"], ("Consensus of ten people", "Emotion in the demo")
        plots.confusion_matrix(matrix, classes, *axes, title, folder / "consensus_matrix.png")


def draw_roc(folder, labels, probabilities, result, classes):
    """Draws the ROC curves against the labels."""
    curves = {}
    for i, name in enumerate(classes):
        area = result["per_class"][name]["auc"]
        if area is not None:
            curves[name] = (*metrics.roc_curve(labels == i, probabilities[:, i])[:2], area)
    plots.roc(curves, f"{SPLIT_NAMES[result['split']]}: {result['rows']:,} faces", folder / "roc.png")


def draw_calibration(folder, labels, consensus, logits, predictions):
    """Draws confidence against accuracy before and after the temperature: labels head, and votes head or demo."""

    def curve(probabilities, truth):
        rows = truth >= 0
        bins = utils.calibration_bins(probabilities[rows], truth[rows])
        return *bins, utils.expected_calibration_error(probabilities[rows], truth[rows])

    def before_and_after(head, truth):
        return {"Before": curve(utils.softmax(logits[head]), truth), "After": curve(predictions[head], truth)}

    panels = [("Labels head against the labels", before_and_after("labels", labels))]
    if consensus is not None:
        heads = before_and_after("votes", consensus) if "votes" in logits else {}
        title = "Votes head and demo against the consensus" if heads else "Demo against the consensus"
        panels.append((title, heads | {"Demo": curve(predictions["demo"], consensus)}))
    plots.calibration(panels, folder / "calibration.png")


def draw_mistakes(folder, faces, labels, consensus, probabilities, classes):
    """Draws the faces whose wrong emotion the demo was surest of: by the consensus if there is one, else the labels."""
    source, truth = ("Label", labels) if consensus is None else ("People", consensus)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero((predicted != truth) & (truth >= 0))
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][: plots.FACES_SHOWN]
    texts = [f"{source}: {classes[truth[i]]}\nDemo: {classes[predicted[i]]} {confidence[i]:.0%}" for i in wrong]
    plots.mistakes(faces[wrong], texts, "The surest mistakes", folder / "mistakes.png")


def draw_training(folder, history, layers, model):
    """Draws the training's history, where there is one, and the layers."""
    best_epoch = model.description["training"].get("best_epoch")
    for quantity in ("accuracy", "loss") if history else ():
        plots.history(history, quantity, model.heads, best_epoch, folder / f"{quantity}.png")
    parameters, macs = model.description["parameters"] / 1e6, model.description["macs"] / 1e6
    title = f"{parameters:.1f} million parameters, {macs:.0f} million multiply-adds a face"
    plots.architecture(layers, title, folder / "architecture.png")


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------------------


def score(model, faces):
    """Runs the network, with a progress bar on a terminal.

    Returns:
        logits: dict of head to float32 (N, C).
        predictions: dict of head, and "demo", to probabilities, float32 (N, C).
    """
    logits, demo = [], []
    with tqdm.tqdm(total=len(faces), unit=" faces", disable=None) as bar:
        for start in range(0, len(faces), FACES_PER_STEP):
            batch = faces[start : start + FACES_PER_STEP]
            logits.append(model.logits(batch))
            demo.append(model.predict(batch))
            bar.update(len(batch))
    logits = {head: np.concatenate([part[head] for part in logits]) for head in model.heads}
    temperatures = model.description["temperatures"]
    predictions = {head: utils.softmax(logits[head] / temperatures[head]) for head in model.heads}
    return logits, predictions | {"demo": np.concatenate(demo)}


def evaluate(data, votes, model_dir, split, output_dir):
    """Scores a model folder and writes metrics, report and figures.

    Args:
        data: path of the data set.
        votes: path of `fer2013new.csv`, or None.
        model_dir: model folder.
        split: "test", "val" or "both".
        output_dir: folder for the results, created if it is missing.

    Returns:
        report: str, the results in words and the classification report.

    Raises:
        OSError, ValueError: a file cannot be read or written.
    """
    check_output_dir(output_dir)
    model = utils.load_emotion_model(model_dir)
    classes, layers = model.classes, read_layers(model_dir, model.description)
    history = read_history(model_dir / "history.csv", model.heads)
    faces, labels, consensus = load_faces(data, votes, split, len(classes))
    logits, predictions = score(model, faces)
    result = {"split": split} | measure(labels, predictions["labels"], classes)
    result |= measure_unseen(labels, predictions["labels"], find_copies(data, faces, len(classes)))
    if consensus is not None:
        rated = consensus >= 0
        result["consensus"] = measure(consensus[rated], predictions["demo"][rated], classes)
    result["heads"] = measure_heads(labels, consensus, predictions)
    warn(data, split, model.description, result)
    report = format_report(labels, predictions["labels"].argmax(axis=1), result, classes)
    with replaced_files(output_dir) as folder:
        draw_matrices(folder, result, classes)
        draw_roc(folder, labels, predictions["labels"], result, classes)
        draw_calibration(folder, labels, consensus, logits, predictions)
        draw_mistakes(folder, faces, labels, consensus, predictions["demo"], classes)
        draw_training(folder, history, layers, model)
        (folder / "classification_report.txt").write_text(report, encoding="utf-8")
        (folder / "metrics.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return report


def format_report(labels, predicted, result, classes):
    """Returns the classification report under and above lines that say what was measured."""
    table = metrics.classification_report(
        labels, predicted, labels=range(len(classes)), target_names=classes, digits=4, zero_division=0
    )
    lines = [f"{SPLIT_NAMES[result['split']]}, {format_accuracy(result)}"]
    copies = result["rows_also_in_training"]
    if copies:
        unseen = result["accuracy_unseen"]
        rest = "all of them are" if unseen is None else f"accuracy {unseen:.4f} without them"
        lines.append(f"{copies:,} faces are exact copies of Training's: {rest}.")
    lines += ["", table]
    if "consensus" in result:
        lines += format_consensus(result["consensus"], classes)
    return "\n".join(lines)


def format_accuracy(result):
    """Returns the accuracy of a section of `metrics.json` in words."""
    low, high = result["accuracy_ci95"]
    return (
        f"{result['rows']:,} faces: accuracy {result['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}; "
        f"the most frequent class: {result['majority_baseline']:.4f})"
    )


def format_consensus(result, classes):
    """Returns the lines of the report on the consensus, among them the precision of each emotion."""
    named = np.sum(result["confusion_matrix"], axis=0)
    agreement = [
        f"{name} {result['per_class'][name]['precision']:.0%}" for name, n in zip(classes, named, strict=True) if n
    ]
    return [
        f"Consensus of ten people, {format_accuracy(result)}",
        f"People agree when the demo names an emotion: {', '.join(agreement)}.",
        "",
    ]


def path_argument(text):
    """Returns the path that an option names."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, but is empty")
    return Path(text)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    path = {"type": path_argument, "metavar": "PATH"}
    parser.add_argument("--data", **path, default=utils.DEFAULT_DATA, help="data set (default: data/fer2013.csv)")
    parser.add_argument("--votes", **path, help="fer2013new.csv of FER+ (default: none)")
    parser.add_argument(
        "--model", **path, default=utils.DEFAULT_MODEL, help="model folder (default: models/emotions-5)"
    )
    parser.add_argument("--split", choices=SPLIT_NAMES, default="test", help="faces to score (default: test)")
    parser.add_argument("--output-dir", **path, help="results (default: figures/<model folder's name>)")
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or utils.ROOT / "figures" / args.model.resolve().name
    return args


def run(args):
    """Evaluates, and prints the report."""
    report = evaluate(args.data, args.votes, args.model, args.split, args.output_dir)
    print(f"{report}\nFigures and metrics are in {utils.printable(args.output_dir)}.")


def main(argv=None):
    args = parse_args(argv)
    return cli.run_script("evaluate.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
