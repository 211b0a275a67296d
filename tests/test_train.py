"""Training learns, is reproducible, survives kills and Ctrl-C, and leaves a complete model folder.

python -m pytest tests/test_train.py
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow
from conftest import ROOT, TINY_PART_FACES, TINY_STAGES, TRAIN_TINY

import checkpoint
import cnn
import evaluate
import fer2013
import train
import utils

SMOKE = ("--limit", "64", "--batch-size", "32", "--epochs", "3")


def list_flags(sample_csv, sample_votes, folder):
    """Returns the flags of a training of three short epochs."""
    return ["--data", str(sample_csv), "--votes", str(sample_votes), *SMOKE, "--output-dir", str(folder)]


def read_history(folder):
    return pd.read_csv(folder / "history.csv").drop(columns="seconds")


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    """Replaces the network with a tiny one, as `TRAIN_TINY` does, for tests of the training around it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "STAGES", TINY_STAGES)
        patch.setattr(train, "PART_FACES", TINY_PART_FACES)
        yield


@pytest.fixture(scope="module")
def smoke(tiny_network, sample_csv, sample_votes, tmp_path_factory):
    """A model folder of three short epochs, from a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("smoke") / "model"
    assert train.main(list_flags(sample_csv, sample_votes, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def without_votes(tiny_network, sample_csv, tmp_path_factory):
    """A model folder of one epoch without votes, and what train.py printed to stdout and stderr.

    It was told to resume, but there was nothing to resume.
    """
    folder, streams = tmp_path_factory.mktemp("labels") / "model", (io.StringIO(), io.StringIO())
    arguments = ["--data", str(sample_csv), *SMOKE, "--epochs", "1", "--output-dir", str(folder), "--resume"]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        assert train.main(arguments) == 0
    return folder, *(stream.getvalue() for stream in streams)


def start_training(sample_csv, sample_votes, folder, *more, **options):
    """Starts a training as a user does; returns its process."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    command = [sys.executable, "-c", TRAIN_TINY, *list_flags(sample_csv, sample_votes, folder), *more]
    return subprocess.Popen(command, text=True, **options)


def wait_for_an_epoch(process, folder):
    """Waits until the first epoch of a training is on disk."""
    state, deadline = folder.with_name(f"{folder.name}.partial") / "state.npz", time.monotonic() + 90
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert state.exists()


# ---------------------------------------------------------------------------------------------------------------------
# A training from start to end
# ---------------------------------------------------------------------------------------------------------------------


def test_training_learns_the_drawn_faces(trained):
    accuracy = json.loads((trained[0] / "model.json").read_text())["training"]["val_accuracy"]
    assert accuracy["labels"] > 0.85 and accuracy["votes"] > 0.85


def test_training_prints_accuracies_folder_and_next_command(trained):
    folder, printed = trained
    accuracy = json.loads((folder / "model.json").read_text())["training"]["val_accuracy"]
    for words in (f"labels {accuracy['labels']:.4f}, votes {accuracy['votes']:.4f}", str(folder), "python evaluate.py"):
        assert words in printed
    assert re.search(r"Training on (CPU|GPU):0 in \w+\.\n", printed)
    assert "Epoch 10/10" in printed and "minutes left" in printed


def test_evaluation_measures_what_training_recorded(trained, sample_csv, tmp_path):
    arguments = ["--data", str(sample_csv), "--model", str(trained[0]), "--split", "val", "--output-dir", str(tmp_path)]
    assert evaluate.main(arguments) == 0
    measured = json.loads((tmp_path / "metrics.json").read_text())["accuracy"]
    training = json.loads((trained[0] / "model.json").read_text())["training"]
    assert measured == training["val_accuracy"]["labels"]
    # Keras validated the same epoch before quantization, so a few faces may fall on the other side.
    best = pd.read_csv(trained[0] / "history.csv").set_index("epoch").loc[training["best_epoch"]]
    assert measured == pytest.approx(best["val_labels_accuracy"], abs=0.02)


def test_model_folder_holds_its_four_files_and_nothing_beside_it(smoke):
    assert {path.name for path in smoke.iterdir()} == checkpoint.MODEL_FILES
    assert [path.name for path in smoke.parent.iterdir()] == ["model"]


def test_description_records_what_was_used(smoke, sample_csv, sample_votes):
    training = json.loads((smoke / "model.json").read_text())["training"]
    assert training["epochs"] == 3 and training["batch_size"] == 32 and training["limit"] == 64
    assert training["constants"]["STAGES"] == [[16, 1, 0], [32, 1, 0], [64, 1, 0]]  # Those of the tiny network.
    assert training["votes_sha256"] == train.hash_file(sample_votes)
    assert training["data_sha256"]["val"] == fer2013.hash_split(*fer2013.read(sample_csv).select("val", limit=64))


def test_training_without_votes_has_one_head(without_votes, sample_csv):
    folder, *_ = without_votes
    model, faces = utils.load_emotion_model(folder), fer2013.read(sample_csv).select("val")[0][:8]
    assert model.heads == ("labels",) and list(model.logits(faces)) == ["labels"]
    assert model.description["bias"] == [0] * 5 and model.description["training"]["tau"] == 0
    assert np.array_equal(model.predict(faces), model.predict(faces, "labels"))
    assert {"labels_accuracy", "val_labels_loss"} <= set(pd.read_csv(folder / "history.csv").columns)


# ---------------------------------------------------------------------------------------------------------------------
# Interruptions
# ---------------------------------------------------------------------------------------------------------------------


def test_killed_training_resumes_to_the_same_end(smoke, sample_csv, sample_votes, tmp_path, capsys):
    folder = tmp_path / "model"
    process = start_training(sample_csv, sample_votes, folder)
    wait_for_an_epoch(process, folder)
    process.kill()
    process.communicate()
    assert not folder.exists()
    assert train.main([*list_flags(sample_csv, sample_votes, folder), "--resume"]) == 0
    assert "Resuming after epoch" in capsys.readouterr().out
    assert read_history(folder).equals(read_history(smoke))
    faces = fer2013.read(sample_csv).select("val")[0]
    resumed, uninterrupted = (utils.load_emotion_model(path).predict(faces) for path in (folder, smoke))
    assert np.array_equal(resumed, uninterrupted)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
def test_training_in_a_terminal_refuses_another_and_stops_with_its_state(sample_csv, sample_votes, tmp_path, capsys):
    """Messages do not share a line with the progress bar."""
    import pty

    controller, terminal = pty.openpty()
    folder, streams = tmp_path / "model", {"stdout": terminal, "stderr": terminal}
    process = start_training(sample_csv, sample_votes, folder, "--epochs", "500", **streams)
    os.close(terminal)
    printed = b""
    while (chunk := read_terminal(controller)) and b"Best epoch: 1" not in printed:
        printed += chunk
    assert train.main(["--data", str(sample_csv), *SMOKE, "--output-dir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "model.partial: another training run is using it." in error and error.count("\n") == 1
    process.send_signal(signal.SIGTERM)
    while chunk := read_terminal(controller):
        printed += chunk
    assert process.wait(timeout=90) == 130
    lines = printed.decode().replace("\r\n", "\n").split("\n")
    starts = ("Reading ", "Best epoch: 1. ", "Stopping after this batch.")
    assert all(any(line.startswith(start) for line in lines) for start in starts), lines
    assert lines[-2:] == ["train.py: stopped. To continue, repeat the command with --resume.", ""]
    assert checkpoint.load_state(tmp_path / "model.partial" / "state.npz")[1]


def read_terminal(controller):
    """Returns what a process has printed, or nothing after its end."""
    try:
        return os.read(controller, 1000)
    except OSError:  # Linux raises where a pipe would return nothing.
        return b""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")
def test_ctrl_c_during_imports_ends_at_once():
    command = [sys.executable, str(ROOT / "train.py"), "--data", "none.csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "Loading TensorFlow.\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (-signal.SIGINT, "")


def test_interrupt_waits_for_the_next_batch(tmp_path):
    state = checkpoint.Checkpoint(tmp_path / "model", {}, [48])
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with state.interrupt_between_batches():
            state.on_train_batch_begin(0)
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                state.on_train_batch_begin(1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_during_the_export_says_that_the_training_is_finished(sample_csv, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "fit", lambda *_: None)
    monkeypatch.setattr(train, "write_model", lambda state, *_: setattr(state, "interrupted", True))
    with pytest.raises(KeyboardInterrupt, match="had already finished: see .*model"):
        train.train(tmp_path / "model", sample_csv)


def test_run_killed_between_the_renames_keeps_the_former_model(sample_csv, tmp_path, monkeypatch):
    folder, former = tmp_path / "model", tmp_path / "model.previous" / "model.json"
    folder.mkdir()
    (folder / "model.json").write_text("former")
    command = ["--data", str(sample_csv), *SMOKE, "--epochs", "1", "--output-dir", str(folder)]

    def rename_and_stop(output_dir):
        output_dir.rename(former.parent)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "replace_model", rename_and_stop)
        assert train.main(command) == 130
    assert train.main([*command, "--resume"]) == 0
    assert former.read_text() == "former" and utils.load_emotion_model(folder).heads == ("labels",)


def test_resume_without_a_state_starts_a_new_run_and_says_so(without_votes):
    folder, printed, _ = without_votes
    assert "model.partial holds no state. Starting a new run." in printed
    assert utils.load_emotion_model(folder).classes[0] == "Angry"


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        ["--epochs", "0"],
        ["--epochs", "99999999999"],
        ["--seed", "-1"],
        ["--classes", "6"],
        ["--batch-size", "x"],
        ["--momentum", "1"],
        ["--output-dir", ""],
    ],
)
def test_bad_flag_is_one_line_and_status_2(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(flags)
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_data_is_one_line_and_status_2(tmp_path, capsys):
    arguments = ["--data", str(tmp_path / "none.csv"), "--output-dir", str(tmp_path / "model")]
    assert train.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "Kaggle" in captured.err and "none.csv" in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nothere.csv", "."])
def test_bad_votes_are_one_line_that_says_where_to_get_them(sample_csv, tmp_path, capsys, name):
    arguments = ["--data", str(sample_csv), "--votes", str(tmp_path / name), "--output-dir", str(tmp_path / "model")]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no such file, or larger than 1 GB" in error and "microsoft/FERPlus" in error
    assert not list(tmp_path.iterdir())


def test_folder_with_foreign_files_is_refused_before_training(sample_csv, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert train.main(["--data", str(sample_csv), *SMOKE, "--output-dir", str(tmp_path)]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_default_output_is_no_shipped_model():
    assert train.parse_args([]).output_dir.name == "my-emotions-5"
    assert train.parse_args(["--classes", "7"]).output_dir.name == "my-emotions-7"


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


def test_label_targets_are_smoothed_in_training_only(sample_csv):
    """0.9 + 0.1 / 5 = 0.92 for the label, 0.1 / 5 = 0.02 for the others."""
    data = fer2013.read(sample_csv)
    for split, (high, low) in {"train": (0.92, 0.02), "val": (1, 0)}.items():
        _, targets, sample_weights = train.load_splits(data, None, 5)[split]
        expected = np.where(np.eye(5)[data.select(split)[1]], high, low)
        assert targets["labels"] == pytest.approx(expected) and targets["labels"].dtype == np.float32
        assert (sample_weights["labels"] == 1).all() and list(targets) == ["labels"]


def test_votes_are_sharpened_in_training_and_weigh_by_consensus_in_validation(sample_csv, sample_votes):
    data = fer2013.read(sample_csv)
    for split, (faces, targets, sample_weights) in train.load_splits(data, sample_votes, 5).items():
        shares, weights, consensus = data.read_votes(sample_votes).select(split)
        squares = shares**2 / np.maximum(np.sum(shares**2, axis=1, keepdims=True), 1e-6)
        assert np.array_equal(faces, data.select(split)[0])
        assert targets["votes"] == pytest.approx(squares if split == "train" else shares, abs=1e-6)
        counted = np.float32(consensus >= 0)
        assert np.array_equal(sample_weights["votes"], weights if split == "train" else counted / counted.mean())


def test_face_output_tells_faces_from_their_parts(portrait):
    gray, random = cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY), np.random.default_rng(0)
    faces = utils.crop_faces(gray, (116, 78, 172, 172) + random.integers(-8, 9, (40, 4)))
    parts = train.find_parts(faces)
    assert len(parts) > 5 and parts.shape[1:] == (48, 48, 1) and parts.dtype == np.uint8
    network = train.fit_face_output(cnn.build_model(5), faces)
    is_face, is_part = (np.array(network(windows.astype(np.float32))["face"]) > 0 for windows in (faces, parts))
    assert is_face.mean() > 0.9 and is_part.mean() < 0.1


def test_faces_without_parts_give_no_face_output():
    network = cnn.build_model(5)
    assert train.fit_face_output(network, np.zeros((4, 48, 48, 1), np.uint8)) is network


@pytest.mark.parametrize("steps", [20, 1000])
def test_learning_rate_rises_to_its_peak_and_falls_to_zero(steps):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="labels")])
    train.compile_model(model, ["labels"], steps)
    schedule = model.optimizer._learning_rate
    rates = np.array([float(schedule(step)) for step in range(steps + 1)])
    assert rates[0] == 0 and rates[-1] == pytest.approx(0, abs=1e-8)
    assert rates.max() == pytest.approx(train.PEAK_LEARNING_RATE)
    assert rates.argmax() == steps * train.WARMUP


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 60])
def test_crops_end_at_full_size_and_never_shrink(epochs):
    sizes = train.list_crop_sizes(epochs)
    assert len(sizes) == epochs and sizes == sorted(sizes) and sizes[-1] == utils.IMAGE_SIZE


def test_epoch_has_every_face_once_in_an_order_fixed_by_seed_and_epoch():
    faces, targets = np.arange(64, dtype=np.uint8).reshape(64, 1, 1, 1), {"labels": np.eye(64, dtype=np.float32)}
    weights = {"labels": np.ones(64, np.float32)}
    data, again = (train.ShuffledFaces(faces, targets, weights, batch_size=16, seed=3, epoch=0) for _ in range(2))
    other_seed = train.ShuffledFaces(faces, targets, weights, batch_size=16, seed=4, epoch=0)
    order = [np.concatenate([d[i][0].ravel() for i in range(len(d))]).tolist() for d in (data, again, other_seed)]
    assert sorted(order[0]) == list(range(64)) and order[0] == order[1] != order[2]
    assert all(np.array_equal(batch[0].ravel(), batch[1]["labels"].argmax(axis=1)) for batch in data)
    data.on_epoch_end()
    assert not np.array_equal(data[2][0], again[2][0])


def test_temperature_finds_how_much_logits_were_scaled():
    """Labels drawn from softmax(logits), shown logits three times as large: the temperature is about 3."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, (4000, 5))
    labels = np.array([random.choice(5, p=row) for row in utils.softmax(logits)])
    assert train.fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)


def test_bias_finds_the_rare_class_again():
    """Nine of ten training votes are for class 0, and the logits hold that prior. Without it the classes are even."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 4000)
    evidence = np.stack([random.normal(labels == i, 1.0) for i in range(2)], axis=1)
    tau, bias = train.fit_bias(evidence + np.log([0.9, 0.1]), labels, np.array([900.0, 100.0]))
    assert 0.7 <= tau <= 1 and bias == pytest.approx(-tau * np.log([0.9, 0.1]))


def test_bias_is_0_where_all_classes_are_as_frequent():
    labels = np.arange(100) % 5
    tau, bias = train.fit_bias(np.eye(5)[labels] * 3, labels, np.full(5, 20.0))
    assert tau == 0 and (bias == 0).all()


def test_class_without_training_votes_gets_a_finite_bias():
    labels = np.arange(100) % 5
    logits = np.random.default_rng(0).normal(size=(100, 5))
    for counts in (np.array([0.0, 1, 1, 1, 1]), np.zeros(5)):
        assert np.isfinite(train.fit_bias(logits, labels, counts)[1]).all()


def test_calibrating_a_model_again_changes_nothing(trained, sample_csv, sample_votes, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "model")
    description = json.loads((folder / "model.json").read_text())
    assert 0 <= description["training"]["tau"] <= 1 and len(description["bias"]) == 5
    (folder / "model.json").write_text(json.dumps(description | {"bias": [9] * 5, "temperatures": {}}))
    train.calibrate(folder, sample_csv, sample_votes)
    assert json.loads((folder / "model.json").read_text()) == description


def test_temperature_is_1_where_it_does_not_lower_the_calibration_error(monkeypatch):
    monkeypatch.setattr(utils, "expected_calibration_error", lambda probabilities, labels: 0.02)
    assert train.fit_temperature(np.eye(5) * 9, np.arange(5)) == 1.0


def test_exported_network_has_about_a_byte_per_weight(trained):
    parameters = json.loads((trained[0] / "model.json").read_text())["parameters"]
    assert (trained[0] / "model.tflite").stat().st_size < 2 * parameters


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "mixed_bfloat16"), ((8, 0), "mixed_bfloat16"), ((7, 5), "float32"), (None, "float32")],
)
def test_gpu_trains_in_bfloat16_from_compute_capability_8_on(monkeypatch, capability, precision):
    details = {"compute_capability": capability} if capability else {}  # Apple's GPUs have none.
    monkeypatch.setattr(tensorflow.config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(tensorflow.config.experimental, "get_device_details", lambda device: details)
    assert train.choose_precision() == precision


def test_training_warns_of_data_that_is_not_fer2013(without_votes):
    assert without_votes[2].count("Warning: ") == 1
