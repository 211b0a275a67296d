"""A model folder: what is exported is what was trained, and a damaged folder is a sentence.

python -m pytest tests/test_model.py
"""

import hashlib
import json
import shutil

import cv2
import numpy as np
import pytest

import utils

SHIPPED = sorted(folder for folder in (utils.ROOT / "models").glob("*-?") if folder.is_dir())


def real_crops(portrait):
    """The photograph's face at 24 positions and sizes around where the cascade sees it."""
    gray = cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY)
    (box,) = utils.detect_faces(gray, utils.load_face_detector())
    changes = np.random.default_rng(0).integers(-20, 21, (24, 2))
    return utils.crop_faces(gray, np.array([[box[0] + a, box[1] + b, box[2] + a, box[3] + a] for a, b in changes]))


@pytest.fixture(scope="module", params=["trained", *SHIPPED], ids=lambda folder: getattr(folder, "name", folder))
def folder(request):
    return request.getfixturevalue("trained")[0] if request.param == "trained" else request.param


def test_the_export_agrees_with_keras_on_real_crops(folder, portrait):
    import keras

    faces = real_crops(portrait)
    expected = np.asarray(keras.models.load_model(folder / "model.keras")(faces))
    assert np.abs(utils.load_emotion_model(folder).predict(faces) - expected).max() < 1e-4


def test_a_batch_equals_one_by_one_and_rows_sum_to_one(folder, portrait):
    model, faces = utils.load_emotion_model(folder), np.tile(real_crops(portrait), (3, 1, 1, 1))
    together = model.predict(faces)  # 72 faces: more than one pass.
    assert together.dtype == np.float32 and together.shape == (72, len(model.classes))
    assert np.abs(together - np.concatenate([model.predict(face[None]) for face in faces])).max() < 1e-5
    assert together.sum(axis=1) == pytest.approx(np.ones(72), abs=1e-5)


def test_loading_again_changes_nothing(folder, portrait):
    faces = real_crops(portrait)
    assert np.array_equal(*(utils.load_emotion_model(folder).predict(faces) for _ in range(2)))


def test_the_description_tells_what_the_folder_holds(folder):
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    ids = utils.CLASS_SETS[len(description["classes"])]
    assert description["fer2013_ids"] == list(ids)
    assert description["classes"] == [utils.EMOTIONS[i] for i in ids]
    assert description["image_size"] == 48 and 0 < description["parameters"] < description["macs"]
    training = description["training"]
    assert set(training["rows_per_class"]) == set(description["classes"])
    assert training["seconds"] > 0 and len(training["data_sha256"]) == 64 and 0 < training["val_accuracy"] <= 1


def forget_hash(folder):
    """Leaves it to OpenCV's own check to refuse a network, as in a folder that somebody has made by hand."""
    description = json.loads((folder / "model.json").read_text())
    del description["tflite_sha256"]
    (folder / "model.json").write_text(json.dumps(description))


@pytest.mark.parametrize("part", utils.MODEL_PARTS)
def test_a_missing_part_is_named_with_the_command_that_makes_it(trained, tmp_path, part):
    shutil.copytree(trained[0], tmp_path / "model")
    (tmp_path / "model" / part).unlink()
    with pytest.raises(FileNotFoundError, match=f"{part}.*python train.py"):
        utils.load_emotion_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("model.tflite", b""),
        ("model.tflite", b"not a network" * 100),
        ("model.json", b""),
        ("model.json", b"[]"),
        ("model.json", b'{"classes": ["Happy"]}'),
    ],
)
def test_a_damaged_part_is_named_with_the_command_that_makes_it(trained, tmp_path, part, content):
    shutil.copytree(trained[0], tmp_path / "model")
    forget_hash(tmp_path / "model")
    (tmp_path / "model" / part).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.(tflite|json).*python train.py") as caught:
        utils.load_emotion_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", ["Angry", "Joy", "Sad", "Surprise", "Neutral"]),
        ("classes", ["Happy", "Sad"]),
        ("fer2013_ids", [0, 1, 2, 3, 4]),
        ("image_size", 64),
        ("macs", "many"),
        ("temperature", None),
    ],
)
def test_a_wrong_value_in_the_description_is_named(trained, tmp_path, key, value):
    shutil.copytree(trained[0], tmp_path / "model")
    description = json.loads((trained[0] / "model.json").read_text()) | {key: value}
    (tmp_path / "model" / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=f"model.json.*{key}.*python train.py"):
        utils.load_emotion_model(tmp_path / "model")


@pytest.mark.parametrize("with_hash", [True, False])
def test_a_cut_network_is_refused(trained, tmp_path, with_hash):
    shutil.copytree(trained[0], tmp_path / "model")
    network = (trained[0] / "model.tflite").read_bytes()
    (tmp_path / "model" / "model.tflite").write_bytes(network[: len(network) // 2])
    if not with_hash:
        forget_hash(tmp_path / "model")
    with pytest.raises(ValueError, match="model.tflite.*python train.py"):
        utils.load_emotion_model(tmp_path / "model")


def test_a_network_with_damaged_weights_is_refused(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "model")
    network = bytearray((trained[0] / "model.tflite").read_bytes())
    network[len(network) // 2 : len(network) // 2 + 100] = bytes(100)
    (tmp_path / "model" / "model.tflite").write_bytes(network)
    with pytest.raises(ValueError, match="model.tflite.*python train.py"):
        utils.load_emotion_model(tmp_path / "model")


@pytest.mark.parametrize("classes", utils.CLASS_SETS)
def test_the_networks_in_the_repository_are_those_that_were_described(classes):
    folder = utils.ROOT / "models" / f"emotions-{classes}"
    description = utils.load_emotion_model(folder).description
    assert description["tflite_sha256"] == hashlib.sha256((folder / "model.tflite").read_bytes()).hexdigest()
