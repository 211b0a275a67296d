"""Networks are joined into one that reads as they do on average, and all that is measured and drawn is of it.

python -m pytest tests/test_join.py
"""

import importlib
import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

import checkpoints
import evaluate
import networks
import utils


@pytest.fixture(scope="module")
def joined(trained, sample_csv, run_script, tmp_path_factory):
    """A model folder of the same network twice, and what the script printed."""
    folder = tmp_path_factory.mktemp("models") / "joined"
    finished = run_script("models/join.py", trained[0], trained[0], "--data", sample_csv, "--output-dir", folder)
    assert finished.returncode == 0 and finished.stderr == ""
    return folder, finished.stdout


def test_joined_networks_read_as_the_mean_of_their_logits():
    faces = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 1)).astype(np.float32)
    each = [networks.build_model(5, name) for name in ("large", "small", "small")]
    logits = [np.log(network.predict(faces, verbose=0)) for network in (networks.join(each), *each)]
    joined, *others = (values - values.mean(axis=1, keepdims=True) for values in logits)
    assert np.allclose(joined, np.mean(others, axis=0), atol=1e-4)
    assert not any(np.allclose(joined, other, atol=1e-2) for other in others)


def test_what_is_said_of_joined_networks_is_that_of_the_file(joined, sample_csv):
    faces, labels = utils.load_fer2013(sample_csv, "val")
    accuracy = np.mean(utils.load_emotion_model(joined[0]).predict(faces).argmax(axis=1) == labels)
    assert describe(joined[0])["training"]["val_accuracy"] == accuracy and f"{accuracy:.4f}" in joined[1]


def describe(folder):
    return json.loads((folder / "model.json").read_text())


def test_the_description_of_joined_networks_adds_them_up_and_has_the_training_of_each(joined, trained):
    both, one = describe(joined[0]), describe(trained[0])
    assert both["macs"] == 2 * one["macs"] and both["parameters"] == 2 * one["parameters"]
    assert both["training"]["joined"] == [one["training"]] * 2
    assert both["training"]["seconds"] == 2 * one["training"]["seconds"]
    history, own = (pd.read_csv(folder / "history.csv") for folder in (joined[0], trained[0]))
    for number in (1, 2):
        rows = history[history["network"] == number].drop(columns="network").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, own)


def test_joined_networks_are_scored_and_drawn_one_above_the_other(joined, trained, sample_csv, tmp_path):
    evaluate.evaluate(sample_csv, joined[0], "val", False, tmp_path)
    accuracy = json.loads((tmp_path / "metrics.json").read_text())["accuracy"]
    assert accuracy == describe(trained[0])["training"]["val_accuracy"]  # The same network twice.
    assert cv2.imread(str(tmp_path / "accuracy.png")).std() > 10 and cv2.imread(str(tmp_path / "loss.png")).std() > 10
    evaluate.plot_architecture(
        evaluate.read_layers(trained[0] / "model.keras"), describe(trained[0]), tmp_path / "one.png"
    )
    both, one = (cv2.imread(str(tmp_path / name)).shape[0] for name in ("architecture.png", "one.png"))
    assert both > 1.9 * one


@pytest.fixture
def join(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(utils.ROOT / "models")
    return importlib.import_module("join")


def test_one_network_alone_is_one_line_and_status_2(join, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        join.main([str(tmp_path), "--output-dir", str(tmp_path / "model")])
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1 and "Two networks" in stderr


def test_what_cannot_be_joined_is_one_line_and_status_2_and_what_is_there_stays(
    join, joined, trained, sample_csv, tmp_path, capsys
):
    small, damaged, output = trained[0], tmp_path / "damaged", tmp_path / "output"
    shutil.copytree(small, damaged)
    (damaged / "model.keras").write_bytes((small / "model.keras").read_bytes()[:1000])
    shutil.copytree(small, output)
    seven = utils.ROOT / "models" / "emotions-7"
    undescribed = tmp_path / "undescribed"
    shutil.copytree(small, undescribed)
    (undescribed / "model.json").write_text(json.dumps(describe(small) | {"training": {"seconds": 1}}))
    for folders, words in (
        ([small, output], "--output-dir"),
        ([small, undescribed], "no complete `training`"),
        ([small, tmp_path / "none"], "Missing"),
        ([small, seven], "same classes"),
        ([small, joined[0]], "holds joined ones"),
        ([small, damaged], "model.keras"),
    ):
        assert join.main([*map(str, folders), "--data", str(sample_csv), "--output-dir", str(output)]) == 2
        stderr = capsys.readouterr().err
        assert stderr.count("\n") == 1 and words in stderr
    assert (output / "model.tflite").read_bytes() == (small / "model.tflite").read_bytes()


def test_networks_are_calibrated_on_no_other_data_than_their_own(join, trained, sample_csv, tmp_path, capsys):
    other = tmp_path / "other.csv"
    table = pd.read_csv(sample_csv)
    table[table["emotion"] != 3].to_csv(other, index=False)
    flags = ["--data", str(other), "--output-dir", str(tmp_path / "new" / "model")]
    assert join.main([*map(str, [trained[0]] * 2), *flags]) == 2
    assert "--data must be" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_joined_model_is_not_taken_for_a_finished_training(joined):
    description = describe(joined[0])
    settings = {name: value for name, value in description["training"].items() if name != "joined"}
    assert not checkpoints.is_finished(description, settings)
    assert checkpoints.is_finished({"training": settings}, settings)
