"""Training learns, is reproducible, survives being killed, and leaves a model folder or nothing.

python -m pytest tests/test_train.py
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import evaluate
import train
import utils

SMOKE = ("--limit", "64", "--batch-size", "32", "--epochs", "3")


def history_of(folder):
    return pd.read_csv(folder / "history.csv").drop(columns="seconds")


@pytest.fixture(scope="module")
def smoke(sample_csv, tmp_path_factory):
    """A model folder of three short epochs, from a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("smoke") / "model"
    assert train.main(["--data", str(sample_csv), *SMOKE, "--output-dir", str(folder)]) == 0
    return folder


def test_the_recipe_learns_the_drawn_faces(trained):
    description = json.loads((trained[0] / "model.json").read_text())
    assert description["training"]["val_accuracy"] > 0.9


def test_training_ends_with_its_accuracy_the_folder_and_the_next_command(trained):
    folder, printed = trained
    accuracy = json.loads((folder / "model.json").read_text())["training"]["val_accuracy"]
    for words in (f"{accuracy:.4f}", str(folder), "python evaluate.py", "min left"):
        assert words in printed


def test_evaluation_measures_what_training_said(trained, sample_csv, tmp_path):
    evaluate.evaluate(sample_csv, trained[0], "val", False, tmp_path)
    measured = json.loads((tmp_path / "metrics.json").read_text())["accuracy"]
    training = json.loads((trained[0] / "model.json").read_text())["training"]
    assert measured == training["val_accuracy"]
    # Keras validated the same epoch in training's precision: a face or two on the edge may fall on the other side.
    best = pd.read_csv(trained[0] / "history.csv").set_index("epoch").loc[training["best_epoch"]]
    assert measured == pytest.approx(best["val_accuracy"], abs=0.02)


def test_a_training_leaves_its_four_parts_and_nothing_beside_them(smoke):
    assert sorted(path.name for path in smoke.iterdir()) == sorted(utils.MODEL_PARTS)
    assert [path.name for path in smoke.parent.iterdir()] == ["model"]


def test_the_same_seed_gives_the_same_history(smoke, sample_csv, tmp_path):
    assert train.main(["--data", str(sample_csv), *SMOKE, "--output-dir", str(tmp_path / "again")]) == 0
    assert history_of(tmp_path / "again").equals(history_of(smoke))


def start_and_wait_for_an_epoch(sample_csv, folder, *more):
    """Starts a training as a user does; returns its process once the first epoch is on disk."""
    command = [sys.executable, str(ROOT / "train.py"), "--data", str(sample_csv), *SMOKE, "--output-dir", str(folder)]
    command += more
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    state = folder.with_name(f"{folder.name}.partial") / "state.weights.h5"
    deadline = time.monotonic() + 90
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert state.exists()
    return process


def test_a_killed_training_resumes_to_the_very_same_end(smoke, sample_csv, tmp_path):
    folder = tmp_path / "model"
    process = start_and_wait_for_an_epoch(sample_csv, folder)
    process.kill()
    process.communicate()
    assert not folder.exists()
    assert train.main(["--data", str(sample_csv), *SMOKE, "--output-dir", str(folder), "--resume"]) == 0
    assert history_of(folder).equals(history_of(smoke))
    faces = utils.load_fer2013(sample_csv, "val")[0]
    models = (utils.load_emotion_model(path) for path in (folder, smoke))
    assert np.array_equal(*(model.predict(faces) for model in models))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to another process")
def test_ctrl_c_keeps_the_best_epoch_so_far_and_the_state(sample_csv, tmp_path):
    folder = tmp_path / "model"
    process = start_and_wait_for_an_epoch(sample_csv, folder, "--epochs", "500")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode == 130 and "--resume" in stderr and "Traceback" not in stderr
    assert utils.load_emotion_model(folder).classes == ("Angry", "Happy", "Sad", "Surprise", "Neutral")
    assert (tmp_path / "model.partial" / "settings.json").exists()


def test_resuming_with_other_settings_is_refused(tmp_path):
    run = train.open_run(tmp_path / "model", {"epochs": 5, "seed": 0}, resume=False)
    with pytest.raises(ValueError, match="`epochs` as the run began: 5. Received: 6"):
        train.open_run(tmp_path / "model", {"epochs": 6, "seed": 0}, resume=True)
    assert run.folder.exists()


def test_resuming_a_finished_training_changes_nothing(smoke, sample_csv, capsys):
    before = {path.name: path.read_bytes() for path in smoke.iterdir()}
    assert train.main(["--data", str(sample_csv), *SMOKE, "--output-dir", str(smoke), "--resume"]) == 0
    assert "finished" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in smoke.iterdir()} == before


def test_a_kill_between_the_last_two_renames_loses_no_model(tmp_path):
    (tmp_path / "model.old").mkdir()
    (tmp_path / "model.old" / "model.json").write_text("{}")
    train.open_run(tmp_path / "model", {"epochs": 5, "seed": 0}, resume=False)
    assert (tmp_path / "model" / "model.json").read_text() == "{}"


def test_a_folder_that_is_no_model_is_not_replaced(sample_csv, tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert train.main(["--data", str(sample_csv), *SMOKE, "--output-dir", str(tmp_path)]) == 2
    assert "--output-dir" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["precious.txt"]


@pytest.mark.parametrize(
    "flags", [["--epochs", "0"], ["--seed", "-1"], ["--classes", "6"], ["--batch-size", "x"], ["--momentum", "1"]]
)
def test_a_bad_flag_is_one_line_and_status_2(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(flags)
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_data_is_one_line_and_status_2(run_script, tmp_path):
    finished = run_script("train.py", "--data", tmp_path / "none.csv", "--output-dir", tmp_path / "model")
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr.count("\n") == 1 and "Kaggle" in finished.stderr and "none.csv" in finished.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [10, 1000])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(steps):
    model = train.build_model(5)
    train.compile_model(model, steps)
    schedule = model.optimizer._learning_rate
    rates = np.array([float(schedule(step)) for step in range(steps + 1)])
    assert rates[0] == 0 and rates[-1] == pytest.approx(0, abs=1e-8)
    assert rates.max() == pytest.approx(train.PEAK_LEARNING_RATE)
    assert rates.argmax() == steps * train.WARMUP


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 60])
def test_every_run_ends_at_full_size_and_never_shrinks(epochs):
    sizes = [train.epoch_size(epoch, epochs) for epoch in range(epochs)]
    assert sizes == sorted(sizes) and sizes[-1] == utils.IMAGE_SIZE


def test_multiply_adds_are_counted_as_by_hand():
    """Conv 3x3, 1 -> 2 on 8x8: 8*8*9*1*2 = 1152; conv 3x3, 2 -> 4 on 4x4: 4*4*9*2*4 = 1152; dense 4 -> 3: 12."""
    from keras import Input, Model, layers

    inputs = Input((8, 8, 1))
    x = layers.MaxPooling2D()(layers.Conv2D(2, 3, padding="same")(inputs))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, padding="same")(x))
    assert train.count_macs(Model(inputs, layers.Dense(3)(x))) == 1152 + 1152 + 12


def test_augmentation_is_fixed_by_seed_and_epoch_and_covers_every_face_once():
    faces = np.arange(64, dtype=np.uint8).reshape(64, 1, 1, 1).repeat(48, 1).repeat(48, 2)
    labels = np.eye(64, dtype=np.float32)
    data = train.AugmentedFaces(faces, labels, 40, batch_size=16, seed=3, epoch=0)
    batches = [data[i] for i in range(len(data))]
    assert all(images.shape == (16, 40, 40, 1) and images.dtype == np.uint8 for images, _ in batches)
    assert sorted(np.concatenate([labels.argmax(1) for _, labels in batches])) == list(range(64))
    assert all(np.array_equal(a, b) for a, b in zip(batches[2], data[2], strict=True))
    other_seed = train.AugmentedFaces(faces, labels, 40, batch_size=16, seed=4, epoch=0)
    data.on_epoch_end()
    assert not np.array_equal(data[2][0], batches[2][0])
    assert not np.array_equal(other_seed[2][0], batches[2][0])


def test_augmentation_keeps_the_face_in_the_middle(monkeypatch):
    """With every change switched off, the face is only resized or mirrored."""
    for name in ("MAX_ROTATION", "MAX_SCALE", "MAX_SHIFT", "MAX_CONTRAST", "ERASING_PROBABILITY"):
        monkeypatch.setattr(train, name, 0)
    face = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    results = [train.augment_face(face, 48, np.random.default_rng(seed)) for seed in range(20)]
    plain, mirrored = ([np.array_equal(result, image) for result in results] for image in (face, face[:, ::-1]))
    assert all(a != b for a, b in zip(plain, mirrored, strict=True)) and any(plain) and any(mirrored)
