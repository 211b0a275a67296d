"""The metrics agree with arithmetic on paper, and the script writes all that it promises.

python -m pytest tests/test_evaluate.py
"""

import contextlib
import csv
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate
import fer2013
import plots
import utils

# Metrics


def test_metrics_of_five_faces_worked_by_hand():
    """True 0 0 0 1 1, predicted 0 0 1 1 1.

    Accuracy 4/5. Class 0: precision 2/2, recall 2/3, F1 0.8. Class 1: precision 2/3, recall 2/2, F1 0.8. Macro F1 0.8.
    Balanced accuracy (2/3 + 1) / 2 = 5/6. Majority 3/5. AUC: class 0 scores 0.9 0.8 0.4 against 0.3 0.1,
    all in order: 1. Confidences 0.9 0.8 0.6 0.7 0.9 fall into bins 13 12 9 10 13 of 15; the error is
    (|0.9 - 1| * 2 + |0.8 - 1| + |0.6 - 0| + |0.7 - 1|) / 5 = 1.3 / 5 = 0.26.
    """
    first = np.array([0.9, 0.8, 0.4, 0.3, 0.1])
    result = evaluate.measure(np.array([0, 0, 0, 1, 1]), np.column_stack([first, 1 - first]), ("Happy", "Sad"))
    assert result["rows"] == 5
    assert result["accuracy"] == pytest.approx(0.8)
    assert result["macro_f1"] == pytest.approx(0.8)
    assert result["balanced_accuracy"] == pytest.approx(5 / 6)
    assert result["majority_baseline"] == pytest.approx(0.6)
    assert result["ece"] == pytest.approx(0.26)
    assert result["log_loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.7, 0.9]).mean())
    assert result["confusion_matrix"] == [[2, 1], [0, 2]]
    assert result["auc_macro"] == 1
    assert result["per_class"]["Happy"] == {
        "precision": 1,
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
        "auc": 1,
        "support": 3,
    }


def test_auc_is_the_share_of_pairs_in_order():
    """Scores 0.9, 0.4 of the class against 0.6, 0.1: 3 of the 4 pairs are in order."""
    assert evaluate.area_under_curve(np.array([1, 1, 0, 0], bool), np.array([0.9, 0.4, 0.6, 0.1])) == 0.75


def test_interval_of_eight_in_ten():
    """Newcombe (1998) gives 0.490 to 0.943 for 8 of 10 by Wilson's method."""
    labels = np.repeat([0, 1], [8, 2])
    result = evaluate.summarize(labels, np.tile([0.9, 0.1], (10, 1)))
    assert result["accuracy_ci95"] == pytest.approx([0.490, 0.943], abs=5e-4)


def test_unseen_accuracy_leaves_out_copies_of_training(sample_csv, tmp_path):
    """Two of four faces are copies. Of the other two, one prediction is right and one is wrong."""
    data = fer2013.read(sample_csv)
    training, _ = data.select("train", limit=2)
    labels, probabilities = np.zeros(4, int), np.eye(5)[[0, 0, 0, 1]]
    copies = evaluate.find_training_copies(data, np.concatenate([training, 255 - training]), 5)
    result = evaluate.measure_unseen(copies, labels, probabilities)
    assert result == {"rows_also_in_training": 2, "accuracy_unseen": 0.5}
    result = evaluate.measure_unseen(copies[:2], labels[:2], probabilities[:2])
    assert result == {"rows_also_in_training": 2, "accuracy_unseen": None}
    lines = sample_csv.read_text().splitlines(keepends=True)
    (tmp_path / "test.csv").write_text("".join(line for line in lines if "Training" not in line))
    copies = evaluate.find_training_copies(fer2013.read(tmp_path / "test.csv"), training, 5)
    result = evaluate.measure_unseen(copies, labels[:2], probabilities[:2])
    assert result == {"rows_also_in_training": None, "accuracy_unseen": None}


def test_class_without_faces_has_no_auc_and_is_left_out_of_means():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])
    result = evaluate.measure(np.array([0, 1]), probabilities, ("Angry", "Happy", "Sad"))
    assert result["per_class"]["Sad"]["auc"] is None and result["per_class"]["Sad"]["support"] == 0
    assert result["auc_macro"] == 1 and result["balanced_accuracy"] == 1


def test_heads_are_scored_on_faces_of_the_split_with_a_consensus():
    """Labels 0 1 1; consensus 0, none, 0. A head that always predicts 0 is right in 1 of 3 and in 2 of 2."""
    truths = {"labels": np.array([0, 1, 1, 1]), "consensus": np.array([0, -1, 0, 1])}
    predictions, chosen = {"demo": np.array([[0.9, 0.1]] * 4)}, np.array([True, True, True, False])
    measured = evaluate.measure_split(chosen, truths, predictions)
    result = measured["demo"]
    assert result["labels"]["rows"] == 3 and result["labels"]["accuracy"] == pytest.approx(1 / 3)
    assert result["labels"]["ece"] == pytest.approx(0.9 - 1 / 3)
    assert result["consensus"]["rows"] == 2 and result["consensus"]["accuracy"] == 1.0
    assert result["consensus"]["ece"] == pytest.approx(0.1)
    assert measured["min_confidence"]["0.8"] == {"uncertain": 0.0, "accuracy": 1.0}


def test_uncertain_faces_count_in_the_share_only():
    """Of four faces three are surer than 0.6; of these two have a consensus, and one prediction of 0 agrees with it."""
    confidence = np.array([0.9, 0.9, 0.9, 0.55])
    result = evaluate.measure_shown(np.array([0, 1, -1, 1]), np.stack([confidence, 1 - confidence], axis=1))
    assert result["0.6"] == {"uncertain": 0.25, "accuracy": 0.5}


def test_report_says_when_every_face_is_a_copy():
    labels, description = np.array([0, 1]), {"classes": ["Happy", "Sad"], "training": {}}
    result = evaluate.measure(labels, np.eye(2)[labels], description["classes"])
    result |= {"split": "val", "rows_also_in_training": 2, "accuracy_unseen": None}
    report = evaluate.format_report(labels, labels, result, description)
    assert "2 faces are exact copies of Training's: there are no others." in report


# The script

needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no /dev")
PICTURES = [name for name in evaluate.FILES if name.endswith(".png")]
METRICS = [
    "rows", "accuracy", "accuracy_ci95", "balanced_accuracy", "ece", "macro_f1", "majority_baseline", "log_loss",
    "auc_macro", "confusion_matrix", "per_class",
]  # fmt: skip


def write_votes(path, data, votes_of):
    """Writes a votes file for a data set; `votes_of` returns a row's votes from its emotion and its number."""
    columns = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
    with open(data, newline="") as file, open(path, "w", newline="") as output:
        writer = csv.writer(output)
        writer.writerow(["Usage", "Image name", *columns])
        for number, row in enumerate(csv.DictReader(file)):
            votes = dict.fromkeys(columns, 0) | votes_of(fer2013.VOTE_COLUMNS[int(row["emotion"])], number)
            writer.writerow([row["Usage"], f"fer{number:07}.png", *votes.values()])
    return path


@pytest.fixture(scope="module")
def mislabeled(sample_csv, tmp_path_factory):
    """The drawn data set with every fifth face called Happy, so that there are mistakes to draw."""
    path = tmp_path_factory.mktemp("data") / "mislabeled.csv"
    header, *rows = sample_csv.read_text().splitlines(keepends=True)
    path.write_text(header + "".join("3" + row[1:] if i % 5 == 0 else row for i, row in enumerate(rows)))
    return path


@pytest.fixture(scope="module")
def evaluated(run_script, trained, mislabeled, tmp_path_factory):
    """The script run with votes on both evaluation splits: the finished process, the results and the data.

    Nine of ten people agree with the label, except for every tenth face, whose votes are split.
    """
    folder = tmp_path_factory.mktemp("figures") / "drawn"
    votes = write_votes(
        folder.parent / "votes.csv",
        mislabeled,
        lambda emotion, i: {emotion: 5, "unknown": 5} if i % 10 == 0 else {emotion: 9, "NF": 1},
    )
    options = ("--data", mislabeled, "--votes", votes, "--model", trained[0], "--split", "both")
    return run_script("evaluate.py", *options, "--output-dir", folder), folder, mislabeled


def test_script_writes_and_prints_everything(evaluated):
    finished, folder, _ = evaluated
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.startswith("Warning: ") and "rows may be missing" in finished.stderr
    assert {path.name for path in folder.iterdir()} == set(evaluate.FILES)
    report = (folder / "classification_report.txt").read_text()
    assert report in finished.stdout and "Consensus of ten people" in report
    assert "How often people agree with the emotion that the demo names: Angry" in report
    result = json.loads((folder / "metrics.json").read_text())
    section = ["split", *METRICS, "rows_also_in_training", "accuracy_unseen"]
    assert list(result) == [*section, "consensus", "splits"] and list(result["consensus"]) == section
    assert result["split"] == "both" and result["rows"] == np.sum(result["confusion_matrix"])
    assert result["accuracy"] == pytest.approx(np.trace(result["confusion_matrix"]) / result["rows"])
    assert result["accuracy_ci95"][0] < result["accuracy"] < result["accuracy_ci95"][1]
    assert list(result["per_class"]) == ["Angry", "Happy", "Sad", "Surprise", "Neutral"]
    assert list(result["splits"]) == ["val", "test"]
    assert list(result["splits"]["val"]) == ["labels", "votes", "demo", "min_confidence"]


def test_script_scores_the_exported_network(evaluated, trained):
    _, folder, data = evaluated
    model = utils.load_emotion_model(trained[0])
    parts = [fer2013.read(data).select(split) for split in ("val", "test")]
    faces, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    result = json.loads((folder / "metrics.json").read_text())
    for head, probabilities in {"labels": model.predict(faces, "labels"), "demo": model.predict(faces)}.items():
        expected, count = evaluate.measure(labels, probabilities, model.classes), len(parts[0][0])
        splits = [result["splits"][split][head]["labels"] for split in ("val", "test")]
        assert [split["rows"] for split in splits] == [count, len(labels) - count]
        assert splits[0]["accuracy"] == np.mean(probabilities[:count].argmax(axis=1) == labels[:count])
        right = sum(split["rows"] * split["accuracy"] for split in splits)
        assert right / len(labels) == pytest.approx(expected["accuracy"])
        assert (result["log_loss"] == pytest.approx(expected["log_loss"])) == (head == "labels")


@pytest.fixture
def unsaved(monkeypatch):
    """Draws figures without writing them, which takes most of the time of an evaluation."""
    monkeypatch.setattr(plots, "save", lambda figure, path: plots.plt.close(figure))


def test_consensus_equals_labels_where_all_people_agree_with_them(evaluated, trained, unsaved, tmp_path):
    """Then the consensus section holds the metrics of the demo's probabilities against the labels."""
    data = evaluated[2]
    votes = write_votes(tmp_path / "votes.csv", data, lambda emotion, _: {emotion: 10})
    evaluate.evaluate(data, votes, trained[0], "val", tmp_path / "results")
    result = json.loads((tmp_path / "results" / "metrics.json").read_text())
    model = utils.load_emotion_model(trained[0])
    faces, labels = fer2013.read(data).select("val")
    expected = evaluate.measure(labels, model.predict(faces), model.classes)
    assert result["consensus"]["confusion_matrix"] == expected["confusion_matrix"]
    assert result["consensus"]["log_loss"] == pytest.approx(expected["log_loss"])
    for head in ("labels", "votes", "demo"):
        assert result["splits"]["val"][head]["labels"] == result["splits"]["val"][head]["consensus"]


def test_faces_without_a_consensus_are_left_out(evaluated):
    result = json.loads((evaluated[1] / "metrics.json").read_text())
    data = fer2013.read(evaluated[2])
    _, _, truths = evaluate.select_faces(data, evaluated[1].parent / "votes.csv", "both", 5)
    labels, consensus = truths["labels"], truths["consensus"]
    assert result["consensus"]["rows"] == np.sum(consensus >= 0) < len(labels)
    assert np.array_equal(consensus[consensus >= 0], labels[consensus >= 0])


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_not_blank(evaluated, name):
    picture = cv2.imread(str(evaluated[1] / name))
    assert min(picture.shape[:2]) > 400
    assert 0.005 < (picture < 250).any(axis=-1).mean() < 0.98


def test_shipped_model_needs_two_files_and_no_votes(mislabeled, tmp_path, capsys):
    """Files of an earlier evaluation with votes and history disappear; other files stay."""
    model, results = tmp_path / "model", tmp_path / "results"
    model.mkdir(), results.mkdir()
    for name in ("model.tflite", "model.json"):
        shutil.copy(utils.DEFAULT_MODEL / name, model)
    (results / "consensus_matrix.png").write_text("old")
    (results / "notes.txt").write_text("mine")
    options = ["--data", mislabeled, "--model", model, "--split", "val", "--output-dir", results]
    assert evaluate.main(list(map(str, options))) == 0
    missing = {"consensus_matrix.png", "accuracy.png", "loss.png"}
    assert {path.name for path in results.iterdir()} == {*evaluate.FILES, "notes.txt"} - missing
    assert "history.csv: no such file. accuracy.png and loss.png are left out." in capsys.readouterr().err
    assert "consensus" not in json.loads((results / "metrics.json").read_text())


def test_tables_of_the_models_are_those_of_their_metrics():
    fill = runpy.run_path(str(utils.ROOT / "figures" / "make_tables.py"))["fill"]
    text = (utils.ROOT / "models" / "README.md").read_text(encoding="utf-8")
    assert fill(text) == text and text.count("| `emotions-5` |") == 3


# Warnings


def test_shuffled_labels_are_warned_of(trained, sample_csv, capsys):
    """Each label is that of the next class: nearly every prediction is wrong."""
    data, model = fer2013.read(sample_csv), utils.load_emotion_model(trained[0])
    faces, labels = data.select("val")
    result = evaluate.measure((labels + 1) % 5, model.predict(faces), model.classes)
    evaluate.warn(data, result, {}, trained[0] / "history.csv")
    error = capsys.readouterr().err
    assert "is below that of always predicting the most frequent class (0.2000)" in error
    assert all(line.startswith("Warning: ") for line in error.splitlines())


# Mistakes of the user


def check_refused(capsys, options, *expected):
    """Runs the script, which must end with status 2 and one line."""
    try:
        status = evaluate.main(list(map(str, options)))
    except SystemExit as error:
        status = error.code
    lines = capsys.readouterr().err.splitlines()
    assert status == 2 and len(lines) == 1 and all(text in lines[0] for text in expected), lines


@pytest.fixture
def options(trained, sample_csv, tmp_path):
    """Options of a valid command, as a dict, with a copy of the model folder."""
    shutil.copytree(trained[0], tmp_path / "model")
    return {"--data": sample_csv, "--model": tmp_path / "model", "--output-dir": tmp_path / "out", "--split": "val"}


def flatten(options):
    return [text for item in options.items() for text in item]


@pytest.mark.parametrize("option", ["--data", "--votes", "--model", "--output-dir"])
def test_empty_path_is_refused(capsys, options, option):
    check_refused(capsys, flatten(options | {option: ""}), option, "must be a path, but it is empty")


@pytest.mark.parametrize(
    ("option", "path", "text"),
    [
        ("--data", "/", "no train/<emotion>"),
        pytest.param("--data", "/dev/zero", "no such file", marks=needs_posix),
        ("--data", "/nowhere.csv", "no such file"),
        ("--votes", "/nowhere.csv", "no such file"),
        ("--votes", __file__, "test_evaluate.py"),
        ("--model", "/nowhere", "no such file"),
        ("--output-dir", __file__, "not a folder"),
    ],
)
def test_unusable_path_is_refused(capsys, options, option, path, text):
    check_refused(capsys, flatten(options | {option: path}), text)
    assert not options["--output-dir"].exists()


def test_folder_named_like_a_result_is_refused_before_anything_is_written(options, capsys):
    (options["--output-dir"] / "roc.png").mkdir(parents=True)
    check_refused(capsys, flatten(options), "roc.png: a folder. Rename it")
    assert os.listdir(options["--output-dir"]) == ["roc.png"]


def test_model_without_history_adds_no_line_to_an_error(options, capsys):
    (options["--model"] / "history.csv").unlink()
    check_refused(capsys, flatten(options | {"--data": "/nowhere.csv"}), "/nowhere.csv: no such file")


def test_missing_split_is_refused(options, sample_csv, tmp_path, capsys):
    lines = sample_csv.read_text().splitlines(keepends=True)
    (tmp_path / "public.csv").write_text("".join(line for line in lines if "PrivateTest" not in line))
    check_refused(capsys, flatten(options | {"--data": tmp_path / "public.csv", "--split": "test"}), "PrivateTest")


def test_votes_without_any_consensus_are_refused(options, sample_csv, tmp_path, capsys):
    votes = write_votes(tmp_path / "votes.csv", sample_csv, lambda emotion, _: {emotion: 4, "unknown": 6})
    check_refused(capsys, flatten(options | {"--votes": votes}), "votes.csv: no face of PublicTest has a consensus")


HISTORY = (
    "epoch,size,labels_accuracy,labels_loss,val_labels_accuracy,val_labels_loss,"
    "votes_accuracy,votes_loss,val_votes_accuracy,val_votes_loss\n"
)


@pytest.mark.parametrize(
    "history",
    [
        "",
        "epoch,size\n1,48\n",
        HISTORY,
        f"{HISTORY}1,48,x,1,0.5,1,0.5,1,0.5,1\n",
        f"{HISTORY}1,48,inf,1,0.5,1,0.5,1,0.5,1\n",
    ],
)
def test_damaged_history_is_refused(options, capsys, history):
    (options["--model"] / "history.csv").write_text(history)
    check_refused(capsys, flatten(options), "history.csv: damaged", "Delete it")


def test_model_without_layers_is_refused(options, unsaved, capsys):
    path = options["--model"] / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers": None}))
    check_refused(capsys, flatten(options), "model.json: `layers` is missing or damaged")


@pytest.mark.parametrize(
    "layers", [[], {}, [1], [{"name": "a"}], [dict(name="a", kind="Add", text="", shape=[5], sources=["b"])]]
)
def test_damaged_layers_are_refused(tmp_path, layers):
    description = {"layers": layers, "parameters": 1, "macs": 1, "training": {}}
    with pytest.raises(ValueError, match="model.json: `layers` is missing or damaged"):
        evaluate.draw_model(tmp_path, None, description, Path("model"))


JSON = st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3))


@settings(max_examples=50, deadline=None)
@given(
    JSON | st.lists(st.dictionaries(st.sampled_from(["name", "kind", "text", "shape", "sources"]), JSON), max_size=2)
)
def test_any_layers_are_drawn_or_refused(layers):
    description = {"layers": layers, "parameters": 1, "macs": 1, "training": {}}
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ValueError):
        evaluate.draw_model(Path(folder), None, description, Path("model"))
        assert (Path(folder) / "architecture.png").exists()


# Interruptions


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@needs_proc
def test_ctrl_c_during_imports_ends_at_once():
    command = [sys.executable, str(utils.ROOT / "evaluate.py"), "--help"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    maps = Path(f"/proc/{process.pid}/maps")
    while "numpy" not in maps.read_text():  # The first import that takes long.
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (-signal.SIGINT, "")


@needs_proc
def test_interrupt_while_files_are_written_leaves_the_old_ones(options):
    results = options["--output-dir"]
    results.mkdir()
    (results / "metrics.json").write_text("old")
    command = [sys.executable, str(utils.ROOT / "evaluate.py"), *map(str, flatten(options))]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(results.glob(".new-*/*.png")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [path.name for path in results.iterdir()] == ["metrics.json"]
    assert (results / "metrics.json").read_text() == "old"
