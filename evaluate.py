"""Scores a model on faces that it was not trained on, and draws the figures.

    python evaluate.py                                      models/emotions-5 on the test split (PrivateTest)
    python evaluate.py --split val                          on the validation split (PublicTest)
    python evaluate.py --model models/emotions-7            the model of all seven emotions
    python evaluate.py --votes data/fer2013new.csv          also against the consensus of ten people

Scores model.tflite, the file that the demo runs. Prints a report, and writes the report, metrics.json and the figures.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import cli

if __name__ == "__main__":
    cli.handle_signals(signal.SIG_DFL)  # Ctrl-C ends the imports at once. `cli.run_script` handles it later.
    packages = ("ai_edge_litert", "cv2", "matplotlib", "pandas", "scipy", "seaborn", "sklearn", "tqdm")
    cli.check_installed("evaluate.py", "requirements.txt", *packages)

import numpy as np
import pandas as pd
import scipy.stats
import tqdm
from sklearn import metrics

import fer2013
import plots
import utils

SPLIT_PARTS = {"test": ("test",), "val": ("val",), "both": ("val", "test")}
SPLIT_NAMES = {split: " and ".join(fer2013.SPLITS[part] for part in parts) for split, parts in SPLIT_PARTS.items()}
FACES_PER_STEP = 256  # Step of the progress bar.
MIN_CONFIDENCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # Values of the demo's --min-confidence that are compared.
FILES = (
    "metrics.json", "classification_report.txt", "confusion_matrix.png", "consensus_matrix.png", "roc.png",
    "accuracy.png", "loss.png", "calibration.png", "mistakes.png", "architecture.png",
)  # fmt: skip


def select_faces(data, votes_path, split, num_classes):
    """Selects the faces to score from a `fer2013.Dataset`, with their votes unless the path is None.

    Returns:
        faces: uint8 (N, 48, 48, 1).
        parts: str (N,), "val" or "test".
        truths: dict of "labels" and, with votes, "consensus" to int (N,); -1 for a face without a consensus.
    """
    parts = SPLIT_PARTS[split]
    loaded = list(zip(*(data.select(part, num_classes) for part in parts), strict=True))
    faces, labels = (np.concatenate(arrays) for arrays in loaded)
    names = np.repeat(parts, list(map(len, loaded[1])))
    if not votes_path:
        return faces, names, {"labels": labels}
    votes = data.read_votes(votes_path)
    consensus = np.concatenate([votes.select(part, num_classes)[2] for part in parts])
    if (consensus < 0).all():
        name = utils.printable(votes_path)
        raise ValueError(f"{name}: no face of {SPLIT_NAMES[split]} has a consensus. Omit --votes.")
    return faces, names, {"labels": labels, "consensus": consensus}


def read_history(path, heads):
    """Returns the columns of `history.csv`, dict of float (E,), or None if there is no such file."""
    name, columns = utils.printable(path), ["epoch", "size"]
    if not path.is_file():
        return None
    columns += [f"{part}{head}_{value}" for head in heads for part in ("", "val_") for value in ("accuracy", "loss")]
    try:
        table = pd.read_csv(path, usecols=columns, dtype=float)
        if table.empty or not np.isfinite(table).all(axis=None):
            raise ValueError("no rows, or fields without a number")
    except ValueError as error:
        reason = f"damaged ({utils.shorten(error)})"
        raise ValueError(f"{name}: {reason}. Delete it to evaluate without the training's figures.") from error
    return {column: table[column].to_numpy() for column in columns}


def run_network(model, faces):
    """Runs the network and shows a progress bar on a terminal.

    Returns:
        logits: dict of head to float32 (N, C).
        predictions: dict of head, and "demo", to probabilities, float32 (N, C).
    """
    steps = [faces[start : start + FACES_PER_STEP] for start in range(0, len(faces), FACES_PER_STEP)]
    with tqdm.tqdm(steps, unit_scale=FACES_PER_STEP, unit=" faces", disable=None) as bar:  # Ends its line on Ctrl-C.
        steps = [model.logits(step) for step in bar]
    logits = {head: np.concatenate([step[head] for step in steps]) for head in model.heads}
    predictions = {head: model.probabilities(logits, head) for head in model.heads}
    return logits, predictions | {"demo": model.probabilities(logits)}


def measure(labels, probabilities, classes):
    """Computes the metrics of predictions for `metrics.json`. The AUC of a class without faces is None.

    Args:
        labels: int (N,), N at least 1.
        probabilities: float (N, C), rows sum to 1.
    """
    summary = summarize(labels, probabilities)
    # Normalize again: scikit-learn does not accept the rounding errors of float32.
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True, dtype=float)
    predicted, indices = probabilities.argmax(axis=1), range(len(classes))
    columns = metrics.precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)
    table = pd.DataFrame(np.transpose(columns), classes, ["precision", "recall", "f1", "support"])
    table["auc"] = [area_under_curve(labels == i, probabilities[:, i]) for i in indices]
    aucs = table["auc"].dropna()
    return summary | {
        "macro_f1": table["f1"].mean(),
        "majority_baseline": table["support"].max() / len(labels),
        "log_loss": metrics.log_loss(labels, probabilities, labels=indices),
        "auc_macro": aucs.mean() if len(aucs) else None,
        "confusion_matrix": metrics.confusion_matrix(labels, predicted, labels=indices).tolist(),
        "per_class": table.astype({"support": int}).astype(object).where(table.notna(), None).to_dict("index"),
    }


def summarize(labels, probabilities):
    """Computes the accuracy with its 95% interval (Wilson, 1927), the mean recall, and the calibration error."""
    right = probabilities.argmax(axis=1) == labels
    interval = scipy.stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return {
        "rows": len(labels),
        "accuracy": float(right.mean()),
        "accuracy_ci95": [float(limit) for limit in interval],
        "balanced_accuracy": utils.mean_recall(probabilities, labels),
        "ece": utils.expected_calibration_error(probabilities, labels),
    }


def area_under_curve(is_class, scores):
    """Returns the area under the ROC curve of one class against the rest, or None if one side has no faces."""
    return metrics.roc_auc_score(is_class, scores) if 0 < is_class.sum() < len(is_class) else None


def find_training_copies(data, faces, num_classes):
    """Returns which faces, uint8 (N, 48, 48, 1), are also in Training, bool (N,); None if it has no faces."""
    try:
        trained_on, _ = data.select("train", num_classes)
    except ValueError:
        return None
    return fer2013.find_copies(faces, trained_on)


def measure_unseen(copies, truth, probabilities):
    """Computes the accuracy on the faces that are not in Training; None if it is unknown.

    Args:
        copies: from `find_training_copies`.
        truth: int (N,), -1 for a face that does not count.
        probabilities: float (N, C).
    """
    if copies is None:
        return {"rows_also_in_training": None, "accuracy_unseen": None}
    counted, right = truth >= 0, probabilities.argmax(axis=1) == truth
    unseen = right[counted & ~copies]
    accuracy = float(unseen.mean()) if len(unseen) else None
    return {"rows_also_in_training": int((counted & copies).sum()), "accuracy_unseen": accuracy}


def measure_section(split, truth, probabilities, classes, copies):
    """Computes a section of `metrics.json`, from the arguments of `measure_unseen`."""
    counted = truth >= 0
    section = {"split": split} | measure(truth[counted], probabilities[counted], classes)
    return section | measure_unseen(copies, truth, probabilities)


def measure_split(chosen, truths, predictions):
    """Computes `summarize` for each head and the demo against each truth on the chosen faces, bool (N,)."""
    result = {head: {} for head in predictions}
    for truth, values in truths.items():
        rows = chosen & (values >= 0)
        if not rows.any():  # No face of this part has a consensus.
            continue
        for head, probabilities in predictions.items():
            result[head][truth] = summarize(values[rows], probabilities[rows])
        if truth == "consensus":
            result["min_confidence"] = measure_shown(values[chosen], predictions["demo"][chosen])
    return result


def measure_shown(consensus, probabilities):
    """Computes, for each of `MIN_CONFIDENCES`, the share of uncertain faces and the accuracy of the others.

    Args:
        consensus: int (N,), -1 for a face without a consensus, which does not count for the accuracy.
    """
    right, confidence = probabilities.argmax(axis=1) == consensus, probabilities.max(axis=1)
    result = {}
    for lowest in MIN_CONFIDENCES:
        shown = right[(confidence >= lowest) & (consensus >= 0)]
        accuracy = float(shown.mean()) if len(shown) else None
        result[str(lowest)] = {"uncertain": float(np.mean(confidence < lowest)), "accuracy": accuracy}
    return result


def warn(data, result, history, history_path):
    """Prints the warnings of a `fer2013.Dataset`.

    Also warns if the accuracy is below the baseline, or if there is no `history.csv`.
    """
    lines = data.warnings()
    if result["accuracy"] < result["majority_baseline"]:
        lines.append(
            f"accuracy {result['accuracy']:.4f} is below that of always predicting the most frequent class "
            f"({result['majority_baseline']:.4f}). Check the labels and the model."
        )
    if history is None:
        lines.append(f"{utils.printable(history_path)}: no such file. accuracy.png and loss.png are left out.")
    for line in lines:
        print(f"Warning: {line}", file=sys.stderr)


def format_report(labels, predicted, result, description):
    """Returns the classification report, and lines about accuracy, copies and consensus."""
    classes, tau = description["classes"], description["training"].get("tau", 0)
    lines = [f"{SPLIT_NAMES[result['split']]}, {format_accuracy(result)}"]
    if result["rows_also_in_training"]:
        unseen = result["accuracy_unseen"]
        rest = "there are no others" if unseen is None else f"accuracy {unseen:.4f} without them"
        lines.append(f"{result['rows_also_in_training']:,} faces are exact copies of Training's: {rest}.")
    names = {"labels": range(len(classes)), "target_names": classes}
    lines += ["", metrics.classification_report(labels, predicted, **names, digits=4, zero_division=0)]
    if "consensus" in result:
        section = result["consensus"]
        named = zip(classes, np.sum(section["confusion_matrix"], axis=0), strict=True)
        agreement = [f"{name} {section['per_class'][name]['precision']:.0%}" for name, count in named if count]
        lines += [f"Consensus of ten people, {format_accuracy(section)}"]
        lines += [f"The demo's bias (tau {tau:.2f}) is in these numbers, not in those above."]
        lines += [f"How often people agree with the emotion that the demo names: {', '.join(agreement)}.", ""]
    return "\n".join(lines)


def format_accuracy(result):
    """Returns a text: the accuracy and the mean recall of a section of `metrics.json`."""
    low, high = result["accuracy_ci95"]
    interval = f"95% interval {low:.4f} to {high:.4f}"
    baseline = f"the most frequent class: {result['majority_baseline']:.4f}"
    recall = f"mean recall {result['balanced_accuracy']:.4f}"
    return f"{result['rows']:,} faces: accuracy {result['accuracy']:.4f} ({interval}; {baseline}), {recall}"


def draw_predictions(folder, truths, predictions, result, classes):
    """Draws the confusion matrices and the ROC curves of `predictions`, dict of head to probabilities, float (N, C)."""
    name, axes = SPLIT_NAMES[result["split"]], ("Label", "Prediction of the labels head")
    title = f"{name}: {result['rows']:,} faces"
    plots.confusion_matrix(result["confusion_matrix"], classes, *axes, title, folder / "confusion_matrix.png")
    curves = {}
    for i, emotion in enumerate(classes):
        area = result["per_class"][emotion]["auc"]
        if area is not None:
            rates = metrics.roc_curve(truths["labels"] == i, predictions["labels"][:, i])[:2]
            curves[emotion] = (*rates, area)
    plots.roc(curves, title, folder / "roc.png")
    if "consensus" in result:
        title = f"{name}: {result['consensus']['rows']:,} faces with a consensus"
        matrix, axes = result["consensus"]["confusion_matrix"], ("Consensus of ten people", "Emotion in the demo")
        plots.confusion_matrix(matrix, classes, *axes, title, folder / "consensus_matrix.png")


def draw_calibration(folder, truths, logits, predictions):
    """Draws confidence against accuracy for the labels and the consensus, from what `run_network` returns."""
    heads = {head: {"Before": utils.softmax(logits[head]), "After": predictions[head]} for head in logits}
    panels = [("Labels head against the labels", truths["labels"], heads["labels"])]
    if "consensus" in truths:
        title = f"{'Votes head' if 'votes' in heads else 'Demo'} against the consensus"
        panels.append((title, truths["consensus"], heads.get("votes", {}) | {"Demo": predictions["demo"]}))
    plots.calibration(panels, folder / "calibration.png")


def draw_mistakes(folder, faces, truths, probabilities, classes):
    """Draws the faces, uint8 (N, 48, 48, 1), of the demo's most confident mistakes.

    The consensus decides or, without votes, the labels.
    """
    source, truth = ("People", truths["consensus"]) if "consensus" in truths else ("Label", truths["labels"])
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero((predicted != truth) & (truth >= 0))
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][: plots.FACES_SHOWN]
    texts = [f"{source}: {classes[truth[i]]}\nDemo: {classes[predicted[i]]} {confidence[i]:.0%}" for i in wrong]
    plots.mistakes(faces[wrong], texts, "The most confident mistakes", folder / "mistakes.png")


def draw_model(folder, history, description, model_dir):
    """Draws the training history, if there is one, and the layers of a description from `model.json`."""
    for quantity in ("accuracy", "loss") if history else ():
        best_epoch = description["training"].get("best_epoch")
        plots.history(history, quantity, description["heads"], best_epoch, folder / f"{quantity}.png")
    parameters, macs = description["parameters"] / 1e6, description["macs"] / 1e6
    title = f"{parameters:.1f} million parameters, {macs:.0f} million multiply-adds a face"
    try:
        plots.architecture(description["layers"], title, folder / "architecture.png")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        path = utils.printable(model_dir / "model.json")
        raise ValueError(f"{path}: `layers` is missing or damaged. Train the model again, or restore it.") from error


@contextlib.contextmanager
def replaced_files(folder):
    """Yields a temporary folder. On success, its `FILES` replace those in `folder`; missing ones are deleted there."""
    folder.mkdir(parents=True, exist_ok=True)
    if folders := [folder / name for name in FILES if (folder / name).is_dir()]:
        raise ValueError(f"{utils.printable(folders[0])}: a folder. Rename it, or choose another --output-dir.")
    with tempfile.TemporaryDirectory(dir=folder, prefix=cli.NEW_PREFIX) as new:
        yield Path(new)
        for name in FILES:
            if (Path(new) / name).exists():
                cli.rename(Path(new) / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)  # From an earlier evaluation.


def evaluate(data, votes, model_dir, split, output_dir):
    """Scores a model, writes metrics, report and figures into `output_dir`, and prints the report.

    Raises:
        OSError, ValueError: a file cannot be read or written.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"{utils.printable(output_dir)}: not a folder. Choose another --output-dir.")
    model = utils.load_emotion_model(model_dir)
    history_path, classes = model_dir / "history.csv", model.classes
    history = read_history(history_path, model.heads)
    print(f"Reading {utils.printable(data)}.", flush=True)
    data = fer2013.read(data)
    faces, parts, truths = select_faces(data, votes, split, len(classes))
    logits, predictions = run_network(model, faces)
    labels, copies = truths["labels"], find_training_copies(data, faces, len(classes))
    result = measure_section(split, labels, predictions["labels"], classes, copies)
    if "consensus" in truths:
        result["consensus"] = measure_section(split, truths["consensus"], predictions["demo"], classes, copies)
    result["splits"] = {part: measure_split(part == parts, truths, predictions) for part in SPLIT_PARTS[split]}
    report = format_report(labels, predictions["labels"].argmax(axis=1), result, model.description)
    with replaced_files(output_dir) as folder:
        draw_predictions(folder, truths, predictions, result, classes)
        draw_calibration(folder, truths, logits, predictions)
        draw_mistakes(folder, faces, truths, predictions["demo"], classes)
        draw_model(folder, history, model.description, model_dir)
        (folder / "classification_report.txt").write_text(report, encoding="utf-8")
        (folder / "metrics.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    warn(data, result, history, history_path)  # Last, so that an error is the only line on stderr.
    print(f"{report}\nFigures and metrics are in {utils.printable(output_dir)}.")


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    path = cli.path
    parser.add_argument("--data", type=path, default=fer2013.DEFAULT_DATA, help="data set (default: data/fer2013.csv)")
    parser.add_argument("--votes", type=path, help="fer2013new.csv of FER+ (default: none)")
    parser.add_argument("--model", type=path, default=utils.DEFAULT_MODEL, help="folder (default: models/emotions-5)")
    parser.add_argument("--split", choices=SPLIT_NAMES, default="test", help="faces to score (default: test)")
    parser.add_argument("--output-dir", type=path, help="folder of the results (default: output/<model folder's name>)")
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or utils.ROOT / "output" / os.path.basename(os.path.abspath(args.model))
    return args


def main(argv=None):
    args = parse_args(argv)
    return cli.run_script(
        "evaluate.py", lambda: evaluate(args.data, args.votes, args.model, args.split, args.output_dir)
    )


if __name__ == "__main__":
    sys.exit(main())
