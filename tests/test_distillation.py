"""Folds share no image, soft labels find their faces in any order, and training mixes them with the labels.

python -m pytest tests/test_distillation.py
"""

import json

import cv2
import numpy as np
import pytest

import distillation
import recipe
import train
import utils


@pytest.fixture
def faces():
    """70 different faces, ten per class in the order of `labels`, and copies of the first twenty."""
    originals = np.random.default_rng(0).integers(0, 256, (70, 48, 48, 1), dtype=np.uint8)
    return np.concatenate([originals, originals[:20]])


@pytest.fixture
def labels():
    return np.concatenate([np.repeat(np.arange(7), 10), np.repeat([0, 1], 10)])


def test_folds_keep_copies_together_and_classes_apart_evenly_in_any_order(faces, labels):
    folds = distillation.assign_folds(faces, labels)
    assert np.array_equal(folds[:20], folds[70:])
    counts = np.array([np.bincount(folds[:70][labels[:70] == label], minlength=5) for label in range(7)])
    assert (counts == 2).all()  # Ten faces of each class in five folds.
    order = np.random.default_rng(1).permutation(len(faces))
    assert np.array_equal(distillation.assign_folds(faces[order], labels[order]), folds[order])


def test_soft_labels_find_their_faces_in_any_order(faces, tmp_path):
    rng = np.random.default_rng(2)
    probabilities = rng.dirichlet(np.ones(7), 60)
    path = tmp_path / "soft.npz"
    distillation.save_soft_labels(path, distillation.hash_faces(faces[:60]), probabilities)
    order = rng.permutation(len(faces))
    read, share = distillation.load_soft_labels(path, faces[order], 7)
    known = share > 0
    source = np.where(order >= 70, order - 70, order)  # A copy has its original's.
    assert np.array_equal(known, source < 60)
    assert np.allclose(read[known], probabilities[source[known]], atol=0.02)
    assert np.allclose(read[known].sum(axis=1), 1) and (read[~known] == 0).all()


def test_five_classes_share_what_the_others_leave(faces, tmp_path):
    """Angry 0.4, Fear 0.2, Happy 0.4: without Fear 0.5 and 0.5, which mean 0.8 of what they could. Disgust: nothing."""
    path, rows = tmp_path / "soft.npz", np.array([[0.4, 0, 0.2, 0.4, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]])
    distillation.save_soft_labels(path, distillation.hash_faces(faces[:2]), rows)
    read, share = distillation.load_soft_labels(path, faces[:2], 5)
    assert np.allclose(read[0], [0.5, 0.5, 0, 0, 0], atol=0.01) and np.allclose(share, [0.8, 0], atol=0.01)


def test_targets_mix_labels_and_soft_labels_by_hand(faces, tmp_path, monkeypatch):
    """Label 0 of 5 smoothed by 0.1: 0.92, 0.02, ...; half of it and half of a soft label that is sure of class 1."""
    monkeypatch.setattr(recipe, "SOFT_WEIGHT", 0.5)
    path = tmp_path / "soft.npz"
    distillation.save_soft_labels(path, distillation.hash_faces(faces[:1]), np.eye(7)[[3]])  # Happy, 1 of the five.
    soft_labels = distillation.load_soft_labels(path, faces[:2], 5)
    targets = train.make_targets(np.array([0, 0]), 5, 0.1, soft_labels)
    assert np.allclose(targets[0], [0.46, 0.51, 0.01, 0.01, 0.01])
    assert np.allclose(targets[1], [0.92, 0.02, 0.02, 0.02, 0.02])
    assert np.allclose(train.make_targets(np.array([0]), 5, 0.1), targets[1])
    assert np.array_equal(train.make_targets(np.array([1]), 5, 0.0), [[0, 1, 0, 0, 0]])


def test_damaged_soft_labels_are_one_line_and_status_2(sample_csv, tmp_path, monkeypatch, capsys):
    (tmp_path / "soft.npz").write_bytes(b"PK damaged")
    monkeypatch.setattr(distillation, "DEFAULT_PATH", tmp_path / "soft.npz")
    arguments = ["--data", str(sample_csv), "--epochs", "1", "--output-dir", str(tmp_path / "model")]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--no-soft-labels" in error


def test_soft_labels_of_other_faces_are_not_said_to_be_used(faces, tmp_path):
    path = tmp_path / "soft.npz"
    distillation.save_soft_labels(path, distillation.hash_faces(faces[:1]), np.eye(7)[[3]])
    probabilities, share = train.read_soft_labels(path, faces[:2], 5)
    assert np.array_equal(probabilities[0], [0, 1, 0, 0, 0]) and np.array_equal(share, [1, 0])
    assert train.read_soft_labels(path, 255 - faces, 5) is None
    assert train.read_soft_labels(None, faces, 5) is None


def test_a_fold_run_writes_what_it_reads_in_its_fold_only(tiny_network, sample_csv, tmp_path):
    folder = tmp_path / "small-7-1"
    arguments = ["--data", str(sample_csv), "--classes", "7", "--epochs", "1", "--limit", "70", "--batch-size", "16"]
    assert train.main([*arguments, "--fold", "1", "--output-dir", str(folder)]) == 0
    faces, labels = utils.load_fer2013(sample_csv, "train", 7, limit=70)
    fold = distillation.assign_folds(faces, labels) == 1
    held_out = faces[fold]
    with np.load(folder / "out_of_fold.npz") as written:
        assert np.array_equal(written["hashes"], distillation.hash_faces(held_out))
        assert written["probabilities"].shape == (len(held_out), 7)
        assert np.allclose(written["probabilities"].sum(axis=1), 1, atol=1e-4)
        accuracy = np.mean(written["probabilities"].argmax(axis=1) == labels[fold])
    training = json.loads((folder / "model.json").read_text())["training"]
    assert training["fold"] == 1 and training["fold_accuracy"] == accuracy
    assert sum(training["rows_per_class"].values()) == 70 - len(held_out)
    assert not (folder / "model.tflite").exists()


def write_folds(folder, sample_csv, name, certainty):
    """Writes folds as `train.py --fold` does, of a network that is right everywhere and this sure of it."""
    faces, labels = utils.load_fer2013(sample_csv, "train", 7)
    val_labels = utils.load_fer2013(sample_csv, "val", 7)[1]
    folds = distillation.assign_folds(faces, labels)
    for fold in range(distillation.FOLDS):
        rows = folds == fold
        arrays = {"hashes": distillation.hash_faces(faces[rows]), "val_labels": val_labels, "run": "a run"}
        for key, of in (("probabilities", labels[rows]), ("val_probabilities", val_labels)):
            arrays[key] = np.full((len(of), 7), (1 - certainty) / 6)
            arrays[key][np.arange(len(of)), of] = certainty
        (folder / f"{name}-7-{fold}").mkdir(parents=True)
        np.savez(folder / f"{name}-7-{fold}" / "out_of_fold.npz", **arrays)


def test_soft_labels_are_the_average_over_networks_and_reported(sample_csv, run_script, tmp_path):
    write_folds(tmp_path / "folds", sample_csv, "large", 0.9)
    write_folds(tmp_path / "folds", sample_csv, "small", 0.7)
    output, figures = tmp_path / "soft.npz", tmp_path / "figures"
    command = ("data/make_soft_labels.py", "--data", sample_csv, "--folds", tmp_path / "folds", "--output", output)
    finished = run_script(*command, "--figures", figures)
    assert finished.returncode == 0, finished.stderr
    faces, labels = utils.load_fer2013(sample_csv, "train", 7)
    probabilities, share = distillation.load_soft_labels(output, faces, 7)
    assert (share == 1).all() and np.allclose(probabilities[np.arange(len(labels)), labels], 0.8, atol=0.02)
    report = json.loads((figures / "soft_labels.json").read_text())
    assert report["confidence"] == pytest.approx(0.8, abs=0.01)
    assert report["agreement"] == 1 and report["publictest_accuracy"] == {
        "small-7": [1.0] * 5, "large-7": [1.0] * 5, "average": 1.0,
    }  # fmt: skip
    assert cv2.imread(str(figures / "soft_labels.png")).std() > 20


def test_folds_of_different_runs_are_not_averaged(sample_csv, run_script, tmp_path):
    write_folds(tmp_path, sample_csv, "large", 0.9)
    path = tmp_path / "large-7-2" / "out_of_fold.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **arrays | {"run": "a shorter run"})
    finished = run_script("data/make_soft_labels.py", "--data", sample_csv, "--folds", tmp_path)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1 and "large-7" in finished.stderr


def test_folds_of_other_faces_leave_the_soft_labels_as_they_are(sample_csv, run_script, tmp_path):
    write_folds(tmp_path, sample_csv, "large", 0.9)
    other, output = tmp_path / "other.csv", tmp_path / "soft.npz"
    pixels = " ".join(["7"] * 2304)
    other.write_text(f"emotion,pixels,Usage\n0,{pixels},Training\n")
    output.write_bytes(b"as it was")
    finished = run_script("data/make_soft_labels.py", "--data", other, "--folds", tmp_path, "--output", output)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1 and "none of them" in finished.stderr
    assert output.read_bytes() == b"as it was" and not list(tmp_path.glob(".new-*"))


def test_a_missing_fold_is_one_line_with_its_command(sample_csv, run_script, tmp_path):
    write_folds(tmp_path, sample_csv, "large", 0.9)
    (tmp_path / "large-7-3" / "out_of_fold.npz").unlink()
    finished = run_script("data/make_soft_labels.py", "--data", sample_csv, "--folds", tmp_path)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1
    assert "train.py --classes 7 --network large --fold 3" in finished.stderr
