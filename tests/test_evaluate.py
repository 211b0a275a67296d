"""The measures agree with arithmetic on paper, and the script writes all that it promises.

python -m pytest tests/test_evaluate.py
"""

import json
import shutil

import cv2
import numpy as np
import pytest

import evaluate
import utils

PICTURES = ("confusion_matrix", "roc", "accuracy", "loss", "calibration", "mistakes", "architecture")


def test_measures_of_five_faces_worked_by_hand():
    """True 0 0 0 1 1, labelled 0 0 1 1 1.

    Accuracy 4/5. Class 0: precision 2/2, recall 2/3, F1 0.8. Class 1: precision 2/3, recall 2/2, F1 0.8. Macro F1 0.8.
    Balanced accuracy (2/3 + 1) / 2 = 5/6. Majority 3/5. AUC: class 0 scores 0.9 0.8 0.4 against 0.3 0.1,
    all in order: 1. Confidences 0.9 0.8 0.6 0.7 0.9 fall into bins 13 12 9 10 13 of 15; the error is
    (|0.9 - 1| * 2 + |0.8 - 1| + |0.6 - 0| + |0.7 - 1|) / 5 = 1.3 / 5 = 0.26.
    """
    first = np.array([0.9, 0.8, 0.4, 0.3, 0.1])
    result = evaluate.measure(np.array([0, 0, 0, 1, 1]), np.column_stack([first, 1 - first]), ("Happy", "Sad"))
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


def test_the_wilson_interval_of_eight_in_ten():
    """Newcombe (1998) gives 0.490 to 0.943 for 8 of 10."""
    assert evaluate.wilson_interval(0.8, 10) == pytest.approx([0.490, 0.943], abs=5e-4)


def test_copies_of_training_faces_are_left_out_of_the_unseen_accuracy(sample_csv):
    """Of four faces two are copies: the other two are one right and one wrong."""
    faces, _ = utils.load_fer2013(sample_csv, "train", limit=2)
    copies = evaluate.find_copies(sample_csv, np.concatenate([faces, 255 - faces]), 5)
    assert copies.tolist() == [True, True, False, False]
    result = evaluate.measure_unseen(np.array([0, 0, 0, 0]), np.eye(5)[[0, 0, 0, 1]], copies)
    assert result == {"rows_also_in_training": 2, "accuracy_unseen": 0.5}


def test_a_class_without_faces_has_no_auc_and_spoils_no_mean():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])
    result = evaluate.measure(np.array([0, 1]), probabilities, ("Angry", "Happy", "Sad"))
    assert result["per_class"]["Sad"]["auc"] is None and result["per_class"]["Sad"]["support"] == 0
    assert result["auc_macro"] == 1 and result["balanced_accuracy"] == 1


def test_the_mirror_image_of_a_mirror_image_is_the_face():
    class Model:
        def predict(self, faces):
            left = faces[:, :, :24].mean(axis=(1, 2, 3)) / 255
            return np.column_stack([left, 1 - left])

    faces = np.random.default_rng(0).integers(0, 256, (4, 48, 48, 1), dtype=np.uint8)
    views = evaluate.predict_with_mirror(Model(), faces)
    assert np.array_equal(views[0], Model().predict(faces)) and not np.allclose(views[0], views[1])
    assert np.array_equal(views[::-1], evaluate.predict_with_mirror(Model(), faces[:, :, ::-1]))


def test_the_temperature_is_undone_by_hand():
    """Logits 2 ln 3 and 0 divided by 2: probabilities 3/4 and 1/4. To the power of 2, 9/16 and 1/16: 0.9 and 0.1."""
    assert np.allclose(evaluate.undo_temperature(np.array([[0.75, 0.25]], np.float32), 2.0), [[0.9, 0.1]])


@pytest.fixture(scope="module")
def evaluated(run_script, trained, sample_csv, tmp_path_factory):
    """The script run with --tta on both halves of the evaluation faces, a fifth of them called Happy.

    The finished process, the folder of the results and the data.
    """
    folder, mislabelled = tmp_path_factory.mktemp("figures"), tmp_path_factory.mktemp("data") / "mislabelled.csv"
    header, *rows = sample_csv.read_text().splitlines(keepends=True)
    mislabelled.write_text(header + "".join("3" + row[1:] if i % 5 == 0 else row for i, row in enumerate(rows)))
    arguments = ("--data", mislabelled, "--model", trained[0], "--split", "both", "--tta", "--output-dir", folder)
    return run_script("evaluate.py", *arguments), folder, mislabelled


def test_the_script_writes_and_prints_everything(evaluated):
    finished, folder, _ = evaluated
    assert finished.returncode == 0, finished.stderr
    written = {f"{name}.png" for name in PICTURES} | {"metrics.json", "classification_report.txt"}
    assert {path.name for path in folder.iterdir()} == written
    report = (folder / "classification_report.txt").read_text()
    assert report in finished.stdout and "Surprise" in report
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["split"] == "both" and metrics["tta"] is True
    assert metrics["rows"] == np.sum(metrics["confusion_matrix"])
    assert metrics["accuracy"] == pytest.approx(np.trace(metrics["confusion_matrix"]) / metrics["rows"])
    low, high = metrics["accuracy_ci95"]
    assert low < metrics["accuracy"] < high
    assert list(metrics["per_class"]) == ["Angry", "Happy", "Sad", "Surprise", "Neutral"]


def test_mirror_averaging_scores_the_mean_of_a_face_and_its_mirror_image(evaluated, trained):
    _, folder, data = evaluated
    model = utils.load_emotion_model(trained[0])
    parts = [utils.load_fer2013(data, split) for split in ("val", "test")]
    faces, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    views = evaluate.predict_with_mirror(model, faces)
    expected = evaluate.measure(labels, views.mean(axis=0), model.classes)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["log_loss"] == pytest.approx(expected["log_loss"])
    assert metrics["log_loss"] != pytest.approx(evaluate.measure(labels, views[0], model.classes)["log_loss"])
    assert metrics["accuracy_tta"] == metrics["accuracy"] == expected["accuracy"]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_no_blank_sheet(evaluated, name):
    picture = cv2.imread(str(evaluated[1] / f"{name}.png"))
    assert min(picture.shape[:2]) > 400
    assert 0.005 < (picture < 250).any(axis=-1).mean() < 0.98


def test_a_data_set_without_the_split_is_one_line_and_status_2(trained, sample_csv, tmp_path, capsys):
    lines = sample_csv.read_text().splitlines(keepends=True)
    (tmp_path / "public.csv").write_text("".join(line for line in lines if "PrivateTest" not in line))
    arguments = [
        "--data",
        str(tmp_path / "public.csv"),
        "--model",
        str(trained[0]),
        "--output-dir",
        str(tmp_path / "out"),
    ]
    assert evaluate.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "PrivateTest" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "history", ["", "epoch,accuracy\n1,0.5\n", "epoch,size,accuracy,loss,val_accuracy,val_loss\n1,48,x,1,0.5,1\n"]
)
def test_a_damaged_history_is_one_line_and_status_2(trained, sample_csv, tmp_path, capsys, history):
    shutil.copytree(trained[0], tmp_path / "model")
    (tmp_path / "model" / "history.csv").write_text(history)
    arguments = ["--data", str(sample_csv), "--model", str(tmp_path / "model"), "--output-dir", str(tmp_path / "out")]
    assert evaluate.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "history.csv" in error
