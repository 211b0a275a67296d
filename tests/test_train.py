"""Training learns, is reproducible, survives being killed, and leaves a model folder or nothing.

python -m pytest tests/test_train.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import checkpoints
import evaluate
import networks
import recipe
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
    assert process.returncode == 130, stderr
    assert "--resume" in stderr and "Traceback" not in stderr
    assert utils.load_emotion_model(folder).classes == ("Angry", "Happy", "Sad", "Surprise", "Neutral")
    assert (tmp_path / "model.partial" / "settings.json").exists()


def test_ctrl_c_waits_for_the_next_batch_and_a_second_one_does_not(tmp_path):
    run = checkpoints.open_run(tmp_path / "model", {}, [48], resume=False)
    with run.stops_between_batches():
        run.on_train_batch_begin(0)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run.on_train_batch_begin(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_after_the_last_batch_writes_the_model_and_ends_the_script(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(train, "fit", lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(train, "write_output", lambda folder, *_: written.append(folder))
    with pytest.raises(KeyboardInterrupt):
        train.fit_and_write(tmp_path / "model", {"epochs": 1}, False, None, None, None, None)
    assert written == [tmp_path / "model"] and not (tmp_path / "model.partial").exists()


@pytest.mark.parametrize(("learned_from", "accuracy"), [("other faces", 0.2), ("these", 0.9)])
def test_ctrl_c_leaves_a_better_model_and_one_of_other_faces(tmp_path, capsys, learned_from, accuracy):
    run = checkpoints.open_run(tmp_path / "model", {"data_sha256": "these"}, [48], resume=False)
    run.rows = [{"epoch": 1, "val_accuracy": 0.5}]
    content = json.dumps({"training": {"data_sha256": learned_from, "val_accuracy": accuracy}})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(content)
    train.keep_best_so_far(tmp_path / "model", run, None, None)
    assert "stays" in capsys.readouterr().out
    assert (tmp_path / "model" / "model.json").read_text() == content


def test_resuming_with_other_settings_is_refused(tmp_path):
    run = checkpoints.open_run(tmp_path / "model", {"epochs": 5, "seed": 0}, [48] * 5, resume=False)
    with pytest.raises(ValueError, match="`epochs` as the run began: 5. Received: 6"):
        checkpoints.open_run(tmp_path / "model", {"epochs": 6, "seed": 0}, [48] * 6, resume=True)
    assert run.folder.exists()


def test_another_number_in_the_recipe_is_refused_by_its_name(tmp_path):
    checkpoints.open_run(tmp_path / "model", {"seed": 0, "recipe": {"MOMENTUM": 0.9, "A": 1}}, [48], resume=False)
    with pytest.raises(ValueError, match="`MOMENTUM` as the run began: 0.9. Received: 0.8.$"):
        checkpoints.open_run(tmp_path / "model", {"seed": 0, "recipe": {"MOMENTUM": 0.8, "A": 1}}, [48], resume=True)


def test_settings_hold_the_numbers_that_act(monkeypatch):
    monkeypatch.setattr(recipe, "LABEL_SMOOTHING", 0.1)
    monkeypatch.setattr(recipe, "TEACHER_SMOOTHING", 0.02)
    split = np.zeros((1, 48, 48, 1), np.uint8), np.array([0])
    for fold, smoothing in ((None, 0.1), (0, 0.02)):
        numbers = train.describe_settings("data.csv", split, {"network": "small", "fold": fold})["recipe"]
        assert numbers["LABEL_SMOOTHING"] == smoothing and "TEACHER_SMOOTHING" not in numbers
        assert {**numbers, **json.loads(json.dumps(recipe.NETWORKS["small"]))} == numbers and "NETWORKS" not in numbers


def test_runs_that_new_ones_displace_are_kept_unless_they_are_empty(tmp_path, capsys):
    for seed, epochs in enumerate((2, 0, 1)):
        run = checkpoints.open_run(tmp_path / "model", {"seed": seed}, [48], resume=False)
        if epochs:
            (run.folder / "history.csv").write_text("epoch\n" + "1\n" * epochs)
    checkpoints.open_run(tmp_path / "model", {"seed": 3}, [48], resume=False)
    assert capsys.readouterr().out.count("model.partial.old") == 2
    seeds = {path.parent.name: json.loads(path.read_text())["seed"] for path in tmp_path.glob("*/settings.json")}
    assert seeds == {"model.partial.old1": 0, "model.partial.old2": 2, "model.partial": 3}


def test_a_run_ends_where_another_one_has_taken_its_folder(tmp_path):
    first = checkpoints.open_run(tmp_path / "model", {"seed": 0}, [48], resume=False)
    checkpoints.open_run(tmp_path / "model", {"seed": 0}, [48], resume=True)
    with pytest.raises(ValueError, match="Another training has begun"):
        first.on_epoch_end(0, {"val_accuracy": 0.5})


def test_a_run_says_which_machine_began_it_and_goes_on_elsewhere(tmp_path):
    here = {"seed": 0, "data": "/a/fer2013.csv", "precision": "bfloat16", "versions": {"jax": "1"}}
    checkpoints.open_run(tmp_path / "model", here, [48], resume=False)
    there = {"seed": 0, "data": "/b/fer2013.csv", "precision": "float32", "versions": {"tensorflow": "2"}}
    assert checkpoints.open_run(tmp_path / "model", there, [48], resume=True).settings == here


def test_resuming_a_finished_training_changes_nothing(smoke, sample_csv, capsys):
    before = {path.name: path.read_bytes() for path in smoke.iterdir()}
    assert train.main(["--data", str(sample_csv), *SMOKE, "--output-dir", str(smoke), "--resume"]) == 0
    assert "finished" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in smoke.iterdir()} == before


def test_a_kill_between_the_last_two_renames_loses_no_model(tmp_path):
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "model.json").write_text('{"classes": []}')
    with pytest.raises(OSError, match="disk"), checkpoints.replaced_folder(tmp_path / "model"):
        raise OSError("The disk is full.")
    assert checkpoints.read_description(tmp_path / "model") == {"classes": []}
    assert not (tmp_path / ".model.old").exists()


def test_a_folder_that_is_no_model_is_not_replaced(sample_csv, tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert train.main(["--data", str(sample_csv), *SMOKE, "--output-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--output-dir" in error and "precious.txt" in error
    assert os.listdir(tmp_path) == ["precious.txt"]


def test_a_better_model_is_set_aside_and_a_worse_one_replaced(smoke, tiny_network, sample_csv, tmp_path, capsys):
    model, kept = tmp_path / "model", tmp_path / "model.old2"
    for folder in (model, tmp_path / "model.old1"):
        shutil.copytree(smoke, folder)
    description = json.loads((smoke / "model.json").read_text())
    description["training"]["val_accuracy"] = 1.1
    (model / "model.json").write_text(json.dumps(description))
    assert train.main(["--data", str(sample_csv), *SMOKE, "--epochs", "1", "--output-dir", str(model)]) == 0
    assert f"is better, so it is kept: {kept}." in capsys.readouterr().out
    assert json.loads((kept / "model.json").read_text()) == description
    assert utils.load_emotion_model(model).classes == utils.load_emotion_model(kept).classes
    better = {**description["training"], "val_accuracy": 1.2}
    assert checkpoints.why_keep(kept, better) is None
    assert "other faces" in checkpoints.why_keep(kept, {**better, "data_sha256": "of others"})


def test_files_that_came_into_the_folder_while_training_are_not_replaced(tmp_path):
    with pytest.raises(ValueError, match="notes.txt"), checkpoints.replaced_folder(tmp_path / "model"):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "notes.txt").write_text("mine")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def test_what_a_desktop_leaves_in_a_folder_hinders_no_training(tmp_path):
    (tmp_path / "model").mkdir()
    for name in (".DS_Store", "model.json"):
        (tmp_path / "model" / name).write_text("")
    checkpoints.open_run(tmp_path / "model", {"seed": 0}, [48], resume=False)


@pytest.mark.parametrize(
    "flags",
    [
        ["--epochs", "0"],
        ["--seed", "-1"],
        ["--classes", "6"],
        ["--batch-size", "x"],
        ["--momentum", "1"],
        ["--fold", "0"],
        ["--fold", "5", "--classes", "7"],
        ["--network", "vgg"],
    ],
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


@pytest.mark.parametrize("steps", [20, 1000])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(steps):
    model = networks.build_model(5)
    train.compile_model(model, steps)
    schedule = model.optimizer._learning_rate
    rates = np.array([float(schedule(step)) for step in range(steps + 1)])
    assert rates[0] == 0 and rates[-1] == pytest.approx(0, abs=1e-8)
    assert rates.max() == pytest.approx(recipe.PEAK_LEARNING_RATE)
    assert rates.argmax() == steps * recipe.WARMUP


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 60])
def test_every_run_ends_at_full_size_and_never_shrinks(epochs):
    sizes = train.epoch_sizes(epochs)
    assert len(sizes) == epochs and sizes == sorted(sizes) and sizes[-1] == utils.IMAGE_SIZE


def test_multiply_adds_are_counted_as_by_hand():
    """Conv 3x3, 1 -> 2 on 8x8: 8*8*9*1*2 = 1152; conv 3x3, 2 -> 4 on 4x4: 4*4*9*2*4 = 1152; dense 4 -> 3: 12."""
    from keras import Input, Model, layers

    inputs = Input((8, 8, 1))
    x = layers.MaxPooling2D()(layers.Conv2D(2, 3, padding="same")(inputs))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, padding="same")(x))
    model = Model(inputs, layers.Dense(3)(x))
    assert networks.count_macs(model) == 1152 + 1152 + 12
    assert networks.count_macs(Model(inputs, layers.Concatenate()([model(inputs)] * 2))) == 1152 + 1152 + 12


def test_a_mirror_symmetric_network_stays_so_in_training_and_reads_mirror_images_alike(
    tiny_network, sample_csv, tmp_path, monkeypatch
):
    monkeypatch.setitem(recipe.NETWORKS["small"], "MIRROR_SYMMETRIC", True)
    make, was_symmetric = networks.make_mirror_symmetric, []

    def watch(network):
        weights = network.trainable_weights
        was_symmetric.append(
            all(np.allclose(weight, networks.mirror_symmetric(weight), atol=1e-6) for weight in weights)
        )
        make(network)

    monkeypatch.setattr(networks, "make_mirror_symmetric", watch)
    flags = ("--limit", "64", "--batch-size", "8", "--epochs", "1", "--output-dir", str(tmp_path / "model"))
    assert train.main(["--data", str(sample_csv), *flags]) == 0
    assert not was_symmetric[0] and was_symmetric[-1]  # As it was drawn, and after eight steps.
    model, faces = utils.load_emotion_model(tmp_path / "model"), utils.load_fer2013(sample_csv, "val")[0]
    plain, mirrored, upside_down = map(model.predict, (faces, faces[:, :, ::-1], faces[:, ::-1]))
    assert np.abs(plain - mirrored).max() < 1e-4 < 1e-3 < np.abs(plain - upside_down).max()


def test_every_network_has_a_length_of_its_run():
    assert train.EPOCHS.keys() == recipe.NETWORKS.keys()


def test_the_large_network_is_mirror_symmetric_and_the_shipped_one_too():
    model, faces = utils.load_emotion_model(ROOT / "models" / "emotions-7"), random_faces(8).astype(np.uint8)
    assert np.allclose(model.predict(faces), model.predict(faces[:, :, ::-1]), atol=1e-4)
    for weight in networks.build_model(7, "large").trainable_weights:
        assert np.allclose(weight, networks.mirror_symmetric(weight)) and weight.constraint


def test_an_epoch_has_every_face_once_in_an_order_fixed_by_seed_and_epoch():
    faces, targets = np.arange(64, dtype=np.uint8).reshape(64, 1, 1, 1), np.eye(64, dtype=np.float32)
    data, again = (train.ShuffledFaces(faces, targets, batch_size=16, seed=3, epoch=0) for _ in range(2))
    other_seed = train.ShuffledFaces(faces, targets, batch_size=16, seed=4, epoch=0)
    order = [np.concatenate([d[i][0].ravel() for i in range(len(d))]).tolist() for d in (data, again, other_seed)]
    assert sorted(order[0]) == list(range(64)) and order[0] == order[1] != order[2]
    assert all(np.array_equal(batch[0].ravel(), batch[1].argmax(axis=1)) for batch in data)
    data.on_epoch_end()
    assert not np.array_equal(data[2][0], again[2][0])


def test_processes_share_each_batch_in_its_order():
    faces, targets = np.arange(64, dtype=np.uint8).reshape(64, 1, 1, 1), np.eye(64, dtype=np.float32)
    whole = train.ShuffledFaces(faces, targets, batch_size=16, seed=3, epoch=0)
    parts = [train.ShuffledFaces(faces, targets, 16, 3, 0, process, 4) for process in range(4)]
    for array in (0, 1):
        assert np.array_equal(np.concatenate([part[1][array] for part in parts]), whole[1][array])


@pytest.fixture
def unchanged(monkeypatch):
    """Switches every change of the augmentation off but the mirror image."""
    for name in ("MAX_SHIFT", "MAX_CONTRAST"):
        monkeypatch.setattr(recipe, name, 0)
    monkeypatch.setitem(recipe.NETWORKS, "small", dict.fromkeys(recipe.NETWORKS["small"], 0))


def random_faces(count):
    return np.random.default_rng(0).integers(0, 256, (count, 48, 48, 1)).astype(np.float32)


def augment(faces, size=48):
    augmentation = networks.Augmentation(recipe.NETWORKS["small"])
    augmentation.size = size
    return np.array(augmentation(faces, training=True))


def test_without_changes_augmentation_mirrors_half_of_the_faces(unchanged):
    faces = random_faces(40)
    results = augment(faces)
    plain, mirrored = (np.abs(results - images).max(axis=(1, 2, 3)) < 1e-2 for images in (faces, faces[:, :, ::-1]))
    assert (plain ^ mirrored).all() and 8 < plain.sum() < 32


def test_a_crop_is_the_middle_of_the_face_at_its_own_scale(unchanged):
    """48 - 40 = 8 pixels less: 4 on each side."""
    faces = random_faces(8)
    for result, face in zip(augment(faces, size=40), faces[:, 4:44, 4:44], strict=True):
        assert np.allclose(result, face, atol=1e-2) or np.allclose(result, face[:, ::-1], atol=1e-2)


def test_each_change_of_the_augmentation_does_what_it_says(unchanged, monkeypatch):
    """Measured where it can be seen: a bright disc's middle and area, the distance from mid-gray, the noise's share."""
    y, x = np.mgrid[:48, :48]
    disc = np.tile(((x - 23.5) ** 2 + (y - 23.5) ** 2 < 100)[..., np.newaxis] * 200.0, (200, 1, 1, 1)).astype("float32")
    monkeypatch.setattr(recipe, "MAX_SHIFT", 0.1)
    shifted = augment(disc)
    for axis in (x, y):
        middles = [(axis * f[..., 0]).sum() / f.sum() - 23.5 for f in shifted]
        assert 4 < np.max(np.abs(middles)) <= 4.8 + 0.1  # 0.1 * 48 pixels.
    monkeypatch.setattr(recipe, "MAX_SHIFT", 0)
    small = recipe.NETWORKS["small"]
    monkeypatch.setitem(small, "MAX_SCALE", 0.2)
    areas = augment(disc).sum(axis=(1, 2, 3)) / disc[0].sum()
    assert 0.6 < areas.min() < 0.75 and 1.3 < areas.max() < 1.5  # 0.8 and 1.2 squared: 0.64 and 1.44.
    monkeypatch.setitem(small, "MAX_SCALE", 0)
    monkeypatch.setitem(small, "MAX_ROTATION", 20)
    bar = np.where(np.abs(x - 23.5) < 2, 200.0, 0)[np.newaxis, ..., np.newaxis].repeat(200, 0).astype(np.float32)
    # A bar through the middle, seen 20 rows above it: 20 * tan(angle) to the side.
    angles = [np.rad2deg(np.arctan2((x[3] * f[3, :, 0]).sum() / f[3].sum() - 23.5, 20.5)) for f in augment(bar)]
    assert 17 < np.max(angles) <= 20.5 and -20.5 <= np.min(angles) < -17
    monkeypatch.setitem(small, "MAX_ROTATION", 0)
    monkeypatch.setattr(recipe, "MAX_CONTRAST", 0.5)
    gains = (augment(np.full((200, 48, 48, 1), 168, np.float32))[:, 24, 24, 0] - 128) / 40
    assert 0.5 <= gains.min() < 0.6 and 1.4 < gains.max() <= 1.5
    monkeypatch.setattr(recipe, "MAX_CONTRAST", 0)
    monkeypatch.setitem(small, "ERASING_PROBABILITY", 0.5)
    erased = (augment(np.zeros((200, 48, 48, 1), np.float32)) > 0).mean(axis=(1, 2, 3))
    low, high = recipe.ERASING_SIDE
    assert 0.35 < (erased > 0).mean() < 0.65 and low**2 / 2 < erased[erased > 0].min() and erased.max() < 1.2 * high**2


def test_faces_pass_the_augmentation_as_they_are_where_nothing_is_learned():
    faces = random_faces(3)
    assert np.array_equal(networks.Augmentation(recipe.NETWORKS["small"])(faces, training=False), faces)


def test_calibration_changes_confidences_and_no_label():
    import keras

    network = keras.Sequential(
        [
            keras.Input((48, 48, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(5, "softmax", False, name="probabilities"),
        ]
    )
    network.get_layer("probabilities").kernel.assign(np.random.default_rng(0).normal(0, 0.003, (2304, 5)))
    faces = random_faces(400)
    before = network.predict(faces, verbose=0)
    # Labels that a network four times less sure would be right about.
    less_sure = train.softmax(np.log(before) / 4)
    rng = np.random.default_rng(1)
    labels = np.array([rng.choice(5, p=row / row.sum()) for row in less_sure.astype(float)])
    temperature = train.calibrate(network, faces, labels)
    after = network.predict(faces, verbose=0)
    assert 3 < temperature < 5
    assert np.array_equal(after.argmax(axis=1), before.argmax(axis=1))
    assert np.allclose(after, train.softmax(np.log(before) / temperature), atol=1e-5)
