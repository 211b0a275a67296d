"""The path from a pixel to a labelled pixel: data sets and votes, faces, models, drawing.

python -m pytest tests/test_utils.py
"""

import concurrent.futures
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import benchmark_tracking as drawn
import cv2
import fuzz
import numpy as np
import PIL.Image
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st

import tracking
import utils

needs_posix = pytest.mark.skipif(os.name == "nt", reason="needs named pipes, sparse files and /dev")


def peak_memory_mb():
    """Returns the largest memory of this process so far; 0 on Windows, where the standard library cannot tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Bytes on macOS, kB elsewhere.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


# ---------------------------------------------------------------------------------------------------------------------
# 2. Frame -> faces
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def face_detector():
    return utils.load_face_detector()


@pytest.fixture(scope="module")
def gray_portrait(portrait):
    return cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY)


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=2304, max_size=2304), st.integers(0, 200), st.integers(0, 100))
def test_a_face_pasted_into_a_frame_is_cropped_back_bit_for_bit(pixels, x, y):
    face = np.frombuffer(pixels, np.uint8).reshape(48, 48)
    gray = np.full((148, 248), 99, np.uint8)
    gray[y : y + 48, x : x + 48] = face
    for angles in (None, [0.0]):
        faces = utils.crop_faces(gray, np.array([[x, y, 48, 48]]), angles)
        assert faces.shape == (1, 48, 48, 1) and np.array_equal(faces[0, ..., 0], face)


@pytest.mark.parametrize("angle", [0.0, 25.0])
@pytest.mark.parametrize(
    "box", [(-30, -30, 80, 80), (90, 40, 80, 80), (-500, 10, 60, 60), (10, 900, 60, 60), (5, 5, 0, 0)]
)
def test_a_box_beyond_the_frame_still_gives_a_face(box, angle):
    gray = np.random.default_rng(0).integers(0, 256, (100, 120), dtype=np.uint8)
    assert utils.crop_faces(gray, np.array([box]), [angle]).shape == (1, 48, 48, 1)


def test_cropping_repeats_the_edge_of_the_frame():
    """A box of 96 pixels begins 48 left of the frame: columns 0 to 23 of the face repeat the frame's first column."""
    gray = np.full((96, 200), 200, np.uint8)
    gray[:, :2], gray[:, 2:48] = 50, 150
    face = utils.crop_faces(gray, np.array([[-48, 0, 96, 96]]))[0, ..., 0]
    assert (face[:, :25] == 50).all() and (face[:, 25:] == 150).all()


def test_large_face_is_reduced_by_averages():
    """Single pixels of 0 and 200 in turn: two by two they are 100."""
    gray = np.uint8(np.indices((96, 96)).sum(axis=0) % 2 * 200)
    assert (utils.crop_faces(gray, np.array([[0, 0, 96, 96]])) == 100).all()


@pytest.mark.parametrize("width", [49, 72, 95, 172])
def test_upright_face_is_averaged_over_exact_areas(gray_portrait, width):
    expected = cv2.resize(gray_portrait[78 : 78 + width, 116 : 116 + width], (48, 48), interpolation=cv2.INTER_AREA)
    assert np.array_equal(utils.crop_faces(gray_portrait, np.array([[116, 78, width, width]]))[0, ..., 0], expected)


@pytest.mark.parametrize("width", [40, 100, 300])
@pytest.mark.parametrize("angle", [-30.0, 25.0])
def test_cropping_turns_a_tilted_face_upright(gray_portrait, angle, width):
    """The face is 172 pixels wide, around (202, 164); the picture is turned clockwise by the angle and scaled."""
    matrix = cv2.getRotationMatrix2D((202, 164), -angle, width / 172)
    matrix[:, 2] += 300 - 202, 300 - 164
    tilted = cv2.warpAffine(gray_portrait, matrix, (600, 600), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    box = np.array([[300 - width // 2, 300 - width // 2, width, width]])
    upright = utils.crop_faces(gray_portrait, np.array([[202 - 86, 164 - 86, 172, 172]]))[0, ..., 0]
    turned, as_is = (utils.crop_faces(tilted, box, angles)[0, ..., 0] for angles in ([angle], None))
    error, error_as_is = (np.abs(face.astype(int) - upright).mean() for face in (turned, as_is))
    assert error < 0.4 * error_as_is


def test_the_one_face_of_the_portrait_is_detected(gray_portrait, face_detector):
    ((x, y, width, height),) = utils.detect_faces(gray_portrait, face_detector)
    eyes_and_mouth = [(145, 140), (215, 140), (182, 205)]  # Read off the picture, in pixels.
    assert all(x < a < x + width and y < b < y + height for a, b in eyes_and_mouth)
    assert width == height and 120 < width < 240


@pytest.fixture(scope="module")
def blind():
    """A cascade that finds number plates only."""
    return cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_russian_plate_number.xml")


def test_detected_faces_are_confirmed_by_a_second_cascade(heads, face_detector, blind, monkeypatch):
    """Without the second cascade, a face counts only if very many detections of the first agree."""
    gray, unconfirmed = draw(heads["collins"]), face_detector._replace(confirming=blind)
    assert len(utils.detect_faces(gray, unconfirmed)) == 1
    monkeypatch.setattr(utils, "SURE_NEIGHBORS", 1000)
    assert len(utils.detect_faces(gray, unconfirmed)) == 0
    assert len(utils.detect_faces(gray, face_detector)) == 1


def test_a_detected_face_holds_no_other(gray_portrait, face_detector, monkeypatch):
    """Each of two boxes around the same face would be confirmed. Only the one with more evidence stays."""
    large, small = np.array([116.0, 78, 172, 172]), np.array([134.0, 100, 136, 136])
    monkeypatch.setattr(utils, "_scan", lambda *arguments, **options: [small, large])
    evidence = [utils.confirm_face(gray_portrait, box, face_detector, 0, utils.STILL_WIDTH) for box in (large, small)]
    assert evidence[0] > evidence[1] >= utils.STILL_EVIDENCE
    assert utils.detect_faces(gray_portrait, face_detector).tolist() == [[116, 78, 172, 172]]


@pytest.mark.parametrize("name", ["brick", "coffee", "grass", "page", "text"])
def test_textures_are_not_confirmed_as_faces(face_detector, name):
    picture = getattr(skimage.data, name)()
    picture = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    assert len(utils.find_faces(picture, face_detector)[0]) == 0


@pytest.fixture(scope="module")
def heads():
    """The heads of benchmark_tracking.py by name, which can be tilted and turned."""
    return drawn.load_heads()


def draw(head, tilt=0, turn=0, gain=1, size=(480, 640), width=140):
    """Returns a frame, uint8, with a head in its middle."""
    frame = np.full(size, 150, np.float32)
    drawn.draw_head(frame, head, drawn.Pose(size[1] / 2, size[0] / 2, width, tilt, turn))
    return np.uint8(np.rint(gain * frame))


@pytest.mark.parametrize("name", ["collins", "hopper", "collins, dark-skinned", "hopper, dark-skinned", 26, 64, 83, 88])
@pytest.mark.parametrize("gain", [1, 0.2])
def test_light_and_dark_faces_are_found_in_a_still(face_detector, heads, name, gain):
    """The numbers are dark-skinned people of skimage.data.lfw_subset(); a gain of 0.2 is a dim room."""
    boxes, angles = utils.find_faces(draw(heads[name], gain=gain), face_detector)
    assert angles == [0] and drawn.overlap(boxes[0], (250, 170, 140, 140)) > 0.6


@pytest.mark.parametrize("tilt", [-52, -25, 0, 25, 48])
def test_a_tilted_face_is_found_in_a_still_at_its_angle(face_detector, heads, tilt):
    boxes, angles = utils.find_faces(draw(heads["collins"], tilt), face_detector)
    assert len(boxes) == 1 and abs(angles[0] - tilt) < 5 and drawn.overlap(boxes[0], (250, 170, 140, 140)) > 0.6


@pytest.mark.parametrize("is_flipped", [False, True])
def test_a_profile_is_found_in_a_still(face_detector, heads, is_flipped):
    gray = draw(heads["collins"], turn=55)
    boxes, _ = utils.find_faces(cv2.flip(gray, 1) if is_flipped else gray, face_detector)
    assert len(boxes) == 1


def test_a_face_that_the_edge_of_the_image_cuts_off_is_found(gray_portrait, face_detector):
    """A fifth of the face is outside, on each side in turn; the face is 172 pixels wide, around (202, 164)."""
    for part in (gray_portrait[112:], gray_portrait[:216], gray_portrait[:, 150:], gray_portrait[:, :254]):
        assert len(utils.find_faces(np.ascontiguousarray(part), face_detector)[0]) == 1


def test_a_large_image_is_reduced_for_the_scan(gray_portrait, face_detector):
    large = cv2.resize(gray_portrait, None, fx=8, fy=8)  # 3072x3600 pixels.
    boxes, _ = utils.find_faces(large, face_detector)
    assert drawn.overlap(boxes[0] / 8, (116, 78, 172, 172)) > 0.7


@pytest.mark.parametrize(("angle", "flipped"), [(0, False), (20, False), (-20, False), (0, True), (20, True)])
def test_searching_returns_the_place_of_the_face_in_the_frame(gray_portrait, face_detector, angle, flipped):
    """The frame is turned around the face's middle, (202, 164), so that the face stays where it is."""
    matrix = cv2.getRotationMatrix2D((202, 164), -angle, 1)
    gray = cv2.warpAffine(gray_portrait, matrix, gray_portrait.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    place = (202 - 86 + 20, 164 - 86 - 15, 172, 172)
    box, agreeing = utils.search_face(gray, place, face_detector.frontal, 3, angle, flipped)
    assert np.abs(box[:2] + box[2:] / 2 - (202, 164)).max() < 8 and abs(box[2] - 172) < 20 and agreeing >= 3


def test_share_of_two_boxes_by_hand():
    """10x10 and 10x10 moved by 5: 50 of 100. A box of 4x4 within another one: all of it."""
    assert utils.overlap((0, 0, 10, 10), (5, 0, 10, 10)) == 0.5
    assert utils.overlap((0, 0, 10, 10), (3, 3, 4, 4)) == 1
    assert utils.overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0


def test_an_opencv_without_cascades_names_the_pin(monkeypatch):
    monkeypatch.delattr(cv2, "CascadeClassifier")
    with pytest.raises(ValueError, match=f"has no Haar cascades. Install 4.x: pip install {re.escape(utils.OPENCV)}"):
        utils.load_face_detector()
    assert utils.OPENCV.strip('"') in (utils.ROOT / "requirements-demo.txt").read_text().splitlines()


@pytest.mark.parametrize("name", utils.CASCADES.values())
@pytest.mark.parametrize("part", [0, 0.5])
def test_a_damaged_cascade_is_named(monkeypatch, tmp_path, name, part):
    for cascade in utils.CASCADES.values():
        content = (Path(cv2.data.haarcascades) / cascade).read_text()
        (tmp_path / cascade).write_text(content[: int(part * len(content))] if cascade == name else content)
    monkeypatch.setattr(cv2.data, "__path__", [str(tmp_path)])
    with pytest.raises(ValueError, match=f"{name}: damaged"):
        utils.load_face_detector()


# ---------------------------------------------------------------------------------------------------------------------
# 3. Faces -> probabilities
# ---------------------------------------------------------------------------------------------------------------------

SHIPPED = sorted((utils.ROOT / "models").glob("emotions-?"))


@pytest.fixture(scope="module")
def crops(portrait):
    """Two photographs' faces in 240 positions, sizes and lights each around where a scan finds them, uint8."""
    random, faces = np.random.default_rng(0), []
    places = (115, 79, 169, 169), (177, 66, 95, 95)
    for photograph, box in zip((portrait, skimage.data.astronaut()[..., ::-1]), places, strict=True):
        gray = cv2.cvtColor(photograph, cv2.COLOR_BGR2GRAY)
        moves = random.integers(-20, 21, (240, 2))
        boxes = np.array([[box[0] + a, box[1] + b, box[2] + a, box[3] + a] for a, b in moves])
        faces.append(utils.crop_faces(gray, boxes) * random.uniform(0.4, 1.3, (240, 1, 1, 1)))
    return np.uint8(np.clip(np.concatenate(faces), 0, 255))


@pytest.fixture(scope="module", params=["trained", *SHIPPED], ids=lambda folder: getattr(folder, "name", folder))
def folder(request):
    """A model folder: each shipped one, and one with two heads trained on drawn faces."""
    return request.getfixturevalue("trained")[0] if request.param == "trained" else request.param


def test_exported_network_agrees_with_keras_on_real_crops(folder, crops):
    """The network of drawn faces is unsure of many crops, so that tiny differences change its predictions."""
    import keras

    keras_logits = keras.models.load_model(folder / "model.keras", compile=False)(crops.astype(np.float32))
    for head, logits in utils.load_emotion_model(folder).logits(crops).items():
        expected = np.asarray(keras_logits[head])
        assert np.abs(logits - expected).max() < 0.2
        if folder in SHIPPED:
            assert np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)) >= 0.99


def test_batch_equals_one_by_one(folder, crops):
    model = utils.load_emotion_model(folder)
    together = model.predict(crops[:70])  # More than one pass.
    assert together.dtype == np.float32 and together.shape == (70, len(model.classes))
    assert np.abs(together - np.concatenate([model.predict(face[None]) for face in crops[:70]])).max() < 1e-5
    assert together.sum(axis=1) == pytest.approx(np.ones(70), abs=1e-5)
    assert model.predict(crops[:0]).shape == (0, len(model.classes))


def test_loading_again_changes_nothing_and_needs_two_files_only(folder, crops, tmp_path):
    for name in ("model.tflite", "model.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    expected = utils.load_emotion_model(folder).predict(crops)
    assert np.array_equal(utils.load_emotion_model(tmp_path).predict(crops), expected)


def make_model(outputs, temperatures):
    """Returns a model whose heads put out the same logits for every face."""
    description = {"classes": ["Angry", "Happy"], "heads": list(outputs), "temperatures": temperatures}
    return utils.EmotionModel(
        lambda faces: {head: np.tile(row, (len(faces), 1)) for head, row in outputs.items()}, description
    )


def test_prediction_is_the_weighted_mean_of_the_calibrated_heads():
    """Logits 0 and 2 ln 3 at temperature 2 give 1/4, 3/4; 0 and 0 give 1/2, 1/2. 0.3 / 4 + 0.7 / 2 = 0.425."""
    outputs = {"labels": [0, 2 * np.log(3)], "votes": [0, 0]}
    model, face = make_model(outputs, {"labels": 2.0, "votes": 1.0}), np.zeros((1, 48, 48, 1), np.uint8)
    assert model.predict(face, "labels")[0] == pytest.approx([0.25, 0.75])
    assert model.predict(face, "votes")[0] == pytest.approx([0.5, 0.5])
    assert model.predict(face)[0] == pytest.approx([0.425, 0.575])


def test_softmax_of_large_logits_is_finite():
    assert utils.softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]])).tolist() == [[1, 0], [0.5, 0.5]]


def test_calibration_error_by_hand():
    """Two faces at 0.9, one right: |0.9 - 0.5| = 0.4. Two at 0.6, both right: |0.6 - 1| = 0.4. Their mean is 0.4."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert utils.expected_calibration_error(probabilities, np.array([0, 1, 0, 0])) == pytest.approx(0.4)


@pytest.fixture
def copied(tmp_path):
    """A copy of the default model's two files, to be damaged."""
    for name in ("model.tflite", "model.json"):
        (tmp_path / name).write_bytes((utils.DEFAULT_MODEL / name).read_bytes())
    return tmp_path


def test_mistyped_model_lists_the_folders_there_are():
    with pytest.raises(FileNotFoundError, match="no such file. Model folders: .*emotions-5.*emotions-7"):
        utils.load_emotion_model(utils.ROOT / "models" / "emotion5")


def test_incomplete_model_is_not_recommended(copied):
    shutil.copytree(copied, copied / "models" / "good")
    shutil.copytree(copied, copied / "models" / "bad", ignore=lambda *_: ["model.json", "models"])
    with pytest.raises(FileNotFoundError, match="Model folders: [^,]*good.$"):
        utils.load_emotion_model(copied / "models" / "bad")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", ["Happy", "Angry", "Sad", "Surprise", "Neutral"]),
        ("image_size", 64),
        ("heads", ["labels", "labels"]),
        ("parameters", 0),
        ("macs", float("nan")),
        ("macs", 10**400),
        ("macs", -1),
        ("tflite_sha256", "0"),
    ],
)
def test_wrong_value_in_the_description_is_refused_by_name(copied, key, value):
    description = json.loads((copied / "model.json").read_text())
    (copied / "model.json").write_text(json.dumps(description | {key: value}))
    with pytest.raises(ValueError, match=f"`{key}` in .*model.json"):
        utils.load_emotion_model(copied)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), "1", None, True])
def test_wrong_temperature_is_refused_by_name(copied, temperature):
    description = json.loads((copied / "model.json").read_text())
    description["temperatures"] = dict.fromkeys(description["heads"], temperature)
    (copied / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="`temperatures.labels` in .*model.json"):
        utils.load_emotion_model(copied)


def test_description_without_the_hash_is_refused(copied):
    description = json.loads((copied / "model.json").read_text())
    del description["tflite_sha256"]
    (copied / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="not a model description .*tflite_sha256.* Train the model again"):
        utils.load_emotion_model(copied)


def test_heads_that_are_not_the_outputs_are_refused(copied):
    description = json.loads((copied / "model.json").read_text())
    heads = utils.HEADS if len(description["heads"]) == 1 else utils.HEADS[:1]
    description |= {"heads": heads, "temperatures": dict.fromkeys(heads, 1.0)}
    (copied / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="`heads` of .*model.json must be the outputs of model.tflite, but they are"):
        utils.load_emotion_model(copied)


def test_flipped_bit_of_the_network_is_refused(copied):
    content = bytearray((copied / "model.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "model.tflite").write_bytes(content)
    with pytest.raises(ValueError, match="model.tflite: not the file that model.json describes"):
        utils.load_emotion_model(copied)


def test_read_emotions_in_five_lines(portrait_path):
    """The lines of the README, without a package that is slow to import."""
    code = f"""
import sys, cv2, utils
frame = cv2.imread({str(portrait_path)!r})
for face in utils.read_emotions(frame):
    print(face.probabilities[face.label] == face.confidence == max(face.probabilities.values()), len(face.box))
    print(list(face.probabilities))
print({{"keras", "tensorflow", "pandas", "matplotlib", "seaborn", "sklearn"}} & set(sys.modules))
"""
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=utils.ROOT, text=True).splitlines()
    assert printed == ["True 4", "['Angry', 'Happy', 'Sad', 'Surprise', 'Neutral']", "set()"]


@pytest.mark.parametrize(
    "frame", [None, np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8)]
)
def test_read_emotions_refuses_other_arrays(frame):
    with pytest.raises(ValueError, match="`frame` must be a uint8 array"):
        utils.read_emotions(frame)


def test_read_emotions_says_what_to_do_with_a_path_or_a_pillow_image(portrait_path):
    for path in (portrait_path, str(portrait_path)):
        with pytest.raises(ValueError, match=re.escape("Read the file first: frame = cv2.imread(path).")):
            utils.read_emotions(path)
    image = PIL.Image.open(portrait_path)
    with pytest.raises(ValueError, match="but it is JpegImageFile. Convert it: ") as refused:
        utils.read_emotions(image)
    frame = eval(str(refused.value).partition("frame = ")[2].rstrip("."), {"numpy": np, "image": image})
    assert np.abs(frame.astype(int) - cv2.imread(str(portrait_path))).mean() < 2  # The decoders round differently.
    assert len(utils.read_emotions(frame)) == 1


def test_read_emotions_takes_a_model_folder(portrait, monkeypatch):
    folder = utils.ROOT / "models" / "emotions-7"
    expected = utils.read_emotions(portrait, utils.load_emotion_model(folder))
    assert len(expected[0].probabilities) == 7
    assert utils.read_emotions(portrait, model=folder) == utils.read_emotions(portrait, model=str(folder)) == expected
    monkeypatch.setattr(utils, "load_emotion_model", None)  # The folder is not loaded again.
    assert utils.read_emotions(portrait, model=folder) == expected


@pytest.mark.parametrize("model", [0, False, object()])
def test_read_emotions_refuses_what_is_not_a_model(portrait, model):
    with pytest.raises(ValueError, match="`model` must be a folder or from load_emotion_model, but it is "):
        utils.read_emotions(portrait, model=model)


def test_read_emotions_of_a_missing_folder_names_it(portrait):
    with pytest.raises(FileNotFoundError, match="no-such-model"):
        utils.read_emotions(portrait, model="no-such-model")


def test_read_emotions_finds_what_the_demo_finds_in_an_image(face_detector, heads):
    """Tilted faces too, each with its angle."""
    gray = np.hstack([draw(heads["collins"], 30), draw(heads["hopper"])])
    faces = utils.read_emotions(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR), detector=face_detector)
    tracks = tracking.FaceTracker(face_detector, still=True).find(gray, 0.0)
    assert [face.box for face in faces] == [tuple(box) for box in tracking.stack_boxes(tracks).tolist()]
    assert [face.angle for face in faces] == [track.view.angle for track in tracks]
    assert sorted(face.angle for face in faces) == [0, 25] and all(face.track is None for face in faces)


@pytest.mark.parametrize("width", [48, 64, 100, 112])
def test_read_emotions_takes_a_small_square_portrait_as_a_whole(portrait, width):
    """Data sets of faces have such images; the face fills them, as the cascade's box does."""
    face = cv2.resize(portrait[78:250, 116:288], (width, width), interpolation=cv2.INTER_AREA)
    (found,) = utils.read_emotions(face)
    assert found.box == (0, 0, width, width) and found.angle == 0


def test_all_cropped_faces_of_fer2013_are_read_as_a_whole(sample_csv):
    """The drawn faces of the sample have FER2013's form: 48x48 pixels, the face fills the image."""
    faces, _ = utils.load_fer2013(sample_csv, "val")
    for face in faces[:10]:
        (found,) = utils.read_emotions(cv2.cvtColor(face, cv2.COLOR_GRAY2BGR))
        assert found.box == (0, 0, 48, 48)


def test_a_smaller_face_in_a_small_square_image_is_not_the_whole(face_detector, heads):
    gray = cv2.resize(draw(heads["collins"], size=(280, 280)), (112, 112), interpolation=cv2.INTER_AREA)
    boxes, _ = utils.find_faces(gray, face_detector)
    assert len(boxes) == 1 and 48 <= boxes[0, 2] < 80


@pytest.mark.parametrize("shape", [(48, 48), (47, 47), (113, 113), (48, 60)])
def test_plain_or_other_small_images_are_not_portraits(face_detector, shape):
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    plain = np.full(shape, 90, np.uint8)
    assert len(utils.find_faces(plain if shape == (48, 48) else noise, face_detector)[0]) == 0


FORK = """
import os, sys, threading, time
import cv2, utils
frame = cv2.resize(cv2.imread(sys.argv[1]), (240, 280))
expected, running = utils.read_emotions(frame), True
def read():
    while running:
        utils.read_emotions(frame)
threads = [threading.Thread(target=read) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(3):
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        os._exit(0 if utils.read_emotions(frame) == expected else 1)
    print(os.waitpid(child, 0)[1], flush=True)
running = False
for thread in threads:
    thread.join()
print(utils.read_emotions(frame) == expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_while_threads_read_emotions_can_read_too(portrait_path):
    """Without the hooks on fork, the child waits for ever for threads that exist in its parent only."""
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(portrait_path)]
    printed = subprocess.check_output(command, cwd=utils.ROOT, text=True, timeout=300)
    assert printed.split() == ["0", "0", "0", "True"]


def test_read_emotions_in_several_threads_gives_the_same(portrait_path):
    portrait = cv2.resize(cv2.imread(str(portrait_path)), (300, 300))
    frames = [portrait, portrait[:, ::-1].copy(), portrait[:250], np.full((200, 200, 3), 90, np.uint8)]
    expected = [utils.read_emotions(frame) for frame in frames]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(utils.read_emotions, frames * 10)) == expected * 10


def test_read_emotions_of_a_frame_without_faces_is_empty():
    assert utils.read_emotions(np.full((200, 200, 3), 90, np.uint8)) == []


# ---------------------------------------------------------------------------------------------------------------------
# 4. Probabilities -> drawing
# ---------------------------------------------------------------------------------------------------------------------


def test_label_below_min_confidence_is_uncertain():
    probabilities = np.array([[0.7, 0.3], [0.45, 0.55]], np.float32)
    labels = utils.choose_labels(probabilities, ("Happy", "Sad"), min_confidence=0.6)
    assert [label for label, _ in labels] == ["Happy", utils.UNCERTAIN]
    assert [confidence for _, confidence in labels] == pytest.approx([0.7, 0.55])


@pytest.mark.parametrize("size", [(180, 320), (480, 640), (1080, 1920)])
@pytest.mark.parametrize("corner", [(0, 0), (0.9, 0.9), (0.4, 0.4)])
def test_annotate_frame_draws_box_and_label_on_a_copy(size, corner):
    frame = np.full((*size, 3), 200, np.uint8)
    box = [int(corner[0] * size[1]), int(corner[1] * size[0]), size[0] // 4, size[0] // 4]
    drawn = utils.annotate_frame(frame, [utils.Face(tuple(box), "Happy", 0.83, {})])
    assert (frame == 200).all()
    color = np.array(utils.EMOTION_COLORS["Happy"][::-1])
    assert (drawn == color).all(axis=-1).sum() > 200  # The bar behind the label lies within the frame.
    assert (drawn.max(axis=-1) < 120).sum() > 20  # Its black letters.


def test_annotate_frame_turns_the_box_of_a_tilted_face_clockwise():
    """The box 100..200 around (150, 150), turned by 30 degrees.

    The middle of its top edge, 50 above the centre, moves to 50 (sin 30, -cos 30) = (25, -43) from it: (175, 107).
    That of its bottom edge moves to (125, 193).
    """
    frame = np.full((300, 300, 3), 200, np.uint8)
    drawn = utils.annotate_frame(frame, [utils.Face((100, 100, 100, 100), "Sad", 0.5, {}, angle=30.0)])
    color = np.array(utils.EMOTION_COLORS["Sad"][::-1])
    for x, y in ((175, 107), (125, 193)):
        assert (drawn[y - 2 : y + 3, x - 2 : x + 3] == color).all(axis=-1).any()
    assert (drawn[98:105, 98:105] == 200).all()  # Here the corner of an upright box would be.


@pytest.mark.parametrize("width", [1, 30, 300])
def test_text_wider_than_the_frame_is_made_smaller(width):
    frame = np.full((120, width, 3), 200, np.uint8)
    bottom = utils.put_text(frame, "No picture from Camera 0; trying to open it again.", (0, 0), 0.8, (40, 40, 40))
    assert 0 < bottom <= 120 and (frame == 40).all(axis=-1).any()
    if width == 300:  # The last letter is within the frame.
        assert (frame[:bottom, 280:] > 100).any()


# ---------------------------------------------------------------------------------------------------------------------
# 5. FER2013 and FER+ -> faces, labels, votes
# ---------------------------------------------------------------------------------------------------------------------

FACES = np.random.default_rng(0).integers(0, 256, (12, 48, 48), dtype=np.uint8)
EMOTION_IDS = [0, 3, 1, 4, 2, 5, 6, 0, 3, 4, 5, 6]
USAGES = ["Training"] * 7 + ["PublicTest"] * 3 + ["PrivateTest"] * 2


def csv_text(faces=FACES, emotions=EMOTION_IDS, usages=USAGES, order=("emotion", "pixels", "Usage"), comma=","):
    lines = [comma.join(order)]
    for emotion, face, usage in zip(emotions, faces, usages, strict=True):
        fields = {"emotion": str(emotion), "pixels": " ".join(map(str, face.ravel().tolist())), "Usage": usage}
        lines.append(",".join(fields[name] for name in order))
    return "\n".join(lines) + "\n"


def write_plain(folder):
    (folder / "fer2013.csv").write_text(csv_text())
    return folder / "fer2013.csv"


def write_gzip(folder):
    (folder / "fer2013.csv.gz").write_bytes(gzip.compress(csv_text().encode()))
    return folder / "fer2013.csv.gz"


def write_gzip_in_parts(folder):
    content = csv_text().encode()
    (folder / "fer2013.csv.gz").write_bytes(gzip.compress(content[:20_000]) + gzip.compress(content[20_000:]))
    return folder / "fer2013.csv.gz"


def write_zip(folder):
    with zipfile.ZipFile(folder / "fer2013.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fer2013.csv", csv_text())
    return folder / "fer2013.zip"


def write_competition_zip(folder):
    with zipfile.ZipFile(folder / "competition.zip", "w") as archive:
        archive.writestr("train.csv", "emotion,pixels\n")
        archive.writestr("__MACOSX/._icml_face_data.csv", "\0")
        archive.writestr("icml_face_data.csv", csv_text(order=("emotion", "Usage", "pixels"), comma=", "))
    return folder / "competition.zip"


def write_tar(folder, mode="w:gz", name="fer2013.tar.gz"):
    """Kaggle's archive: the CSV, a README and a .bib in one folder. Here the README comes first."""
    (folder / "README").write_text("readme " * 300)
    write_plain(folder)
    with tarfile.open(folder / name, mode) as archive:
        archive.add(folder / "README", "fer2013/README")
        archive.add(folder / "fer2013.csv", "fer2013/fer2013.csv")
        archive.add(folder / "README", "fer2013/fer2013.bib")
    (folder / "fer2013.csv").unlink()
    return folder / name


def write_plain_tar(folder):
    return write_tar(folder, "w", "fer2013.tar")


def write_icml(folder):
    (folder / "icml_face_data.csv").write_text(csv_text(order=("emotion", "Usage", "pixels"), comma=", "))
    return folder / "icml_face_data.csv"


def write_windows(folder):
    (folder / "fer2013.csv").write_bytes(b"\xef\xbb\xbf" + csv_text().replace("\n", "\r\n").encode())
    return folder / "fer2013.csv"


def write_blank_lines(folder):
    (folder / "fer2013.csv").write_text(csv_text().replace("\n", "\n\n,,\n"))
    return folder / "fer2013.csv"


def write_folders(folder):
    for number, (emotion, face, usage) in enumerate(zip(EMOTION_IDS, FACES, USAGES, strict=True)):
        half = "train" if usage == "Training" else "test"
        place = folder / "images" / half / utils.EMOTIONS[emotion].lower()
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{usage}_{number}.png"), face)
    return folder / "images"


WRITERS = [
    write_plain,
    write_gzip,
    write_gzip_in_parts,
    write_zip,
    write_competition_zip,
    write_tar,
    write_plain_tar,
    write_icml,
    write_windows,
    write_blank_lines,
    write_folders,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_gives_the_same_arrays(tmp_path, write):
    path = write(tmp_path)
    faces, labels = utils.load_fer2013(path, "train", 7)
    assert np.array_equal(faces[..., 0], FACES[:7]) and faces.dtype == np.uint8 and faces.shape == (7, 48, 48, 1)
    assert labels.tolist() == EMOTION_IDS[:7]
    assert np.array_equal(utils.load_fer2013(path, "val", 7)[0][..., 0], FACES[7:10])
    assert utils.load_fer2013(path, "test", 7)[1].tolist() == [5, 6]


def test_five_classes_leave_out_disgust_and_fear(tmp_path):
    """The ids in Training are 0 3 1 4 2 5 6. Ids 1 and 2 are left out; 0 3 4 5 6 become labels 0 1 2 3 4."""
    faces, labels = utils.load_fer2013(write_plain(tmp_path), "train", 5)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(faces[..., 0], FACES[[0, 1, 3, 5, 6]])


def test_limit_keeps_the_first_rows(tmp_path):
    assert utils.load_fer2013(write_plain(tmp_path), "train", 7, limit=3)[1].tolist() == EMOTION_IDS[:3]


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=2304, max_size=2304))
def test_pixels_survive_the_text(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    path.write_text(f"emotion,pixels,Usage\n6,{' '.join(map(str, pixels))},Training\n")
    assert utils.load_fer2013(path, "train")[0].tobytes() == pixels


@pytest.mark.parametrize("reader", ["csv", "archive", "votes", "model.json", "network"])
def test_damaged_files_are_read_correctly_or_refused_in_one_line(reader):
    counts = fuzz.run(reader, cases=100)
    assert counts.total() >= 80  # Hypothesis may find fewer different cases.


GOOD = " ".join(["7"] * 2304)
HEADER = "emotion,pixels,Usage\n"
PIXELS = "`pixels` must hold 2304 numbers, but row"
RANGE = "`pixels` must be within 0..255, but row 2 of x.csv holds"
WHOLE = "`pixels` must hold whole numbers with spaces between, but row 2 of x.csv does not."
EMOTION = "`emotion` must be one of 0, 1, 2, 3, 4, 5, 6, but row 2 of x.csv holds"
USAGE = "`Usage` must be one of Training, PublicTest, PrivateTest, but row 2 of x.csv holds"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}0,{GOOD},Training\n3,{GOOD[:-2]},Training\n", f"{PIXELS} 3 of x.csv holds 2303."),
        (f"{HEADER}0,{GOOD} 1,Training\n", f"{PIXELS} 2 of x.csv holds 2305."),
        (f"{HEADER}0,{GOOD[:-1]}256,Training\n", f"{RANGE} 256."),
        (f"{HEADER}0,-1{GOOD[1:]},Training\n", f"{RANGE} -1."),
        (f"{HEADER}0,{'9' * 20}{GOOD[1:]},Training\n", f"{RANGE} {2**63 - 1}."),
        (f"{HEADER}0,x{GOOD[1:]},Training\n", WHOLE),
        (f"{HEADER}0,7.5{GOOD[1:]},Training\n", WHOLE),
        (f"{HEADER}0,,Training\n", f"{PIXELS} 2 of x.csv holds 0."),
        (f"{HEADER}7,{GOOD},Training\n", f"{EMOTION} '7'."),
        (f"{HEADER}happy,{GOOD},Training\n", f"{EMOTION} 'happy'."),
        (f"{HEADER}0,{GOOD},Dev\n", f"{USAGE} 'Dev'."),
        (f"{HEADER}\n0,{GOOD}\n", "x.csv must have 3 fields a row, but row 3 has 2."),
        (f"{HEADER}0,{GOOD},Training,more\n", "x.csv must have 3 fields a row, but row 2 has 4."),
        (f"emotion,pixels\n0,{GOOD}\n", "x.csv must have the column Usage, but has 'emotion, pixels'."),
        (HEADER, "x.csv: a header and no rows. Download it again."),
        ("", "x.csv must have the column emotion, but has ''."),
        ("\n\n\n", "x.csv must have the column emotion, but has ''."),
        (f"{HEADER}0,{'7 ' * 20000}\n", "A row of x.csv must have at most 20000 bytes, but row 2 has more."),
        ("binary \x80", "x.csv must have the column emotion, but has 'binary \ufffd'."),
        (f'{HEADER}0,"{GOOD},Training\n' + "\n" * 140_000, "x.csv must have at most 80000 rows, but has more."),
    ],
)  # fmt: skip
def test_a_damaged_csv_is_refused_with_its_row(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        utils.load_fer2013("x.csv", "train", 7)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["cut.csv.gz", "cut.zip", "cut.tar", "encrypted.zip", "junk.csv.gz", "junk.csv.xz"])
def test_a_damaged_archive_is_refused(tmp_path, name):
    encrypted = bytearray(write_zip(tmp_path).read_bytes())
    encrypted[6] |= 1  # The flag before the file, and the one in the list at the end.
    encrypted[encrypted.rfind(b"PK\x01\x02") + 8] |= 1
    tar = write_plain_tar(tmp_path).read_bytes()
    content = {
        "cut.csv.gz": gzip.compress(csv_text().encode())[:5000],
        "cut.zip": b"PK\x03\x04" + bytes(500),
        "cut.tar": tar[: tar.rindex(b"\n", 0, 60_000) + 1],
        "encrypted.zip": bytes(encrypted),
        "junk.csv.gz": b"\x1f\x8b" + bytes(500),
        "junk.csv.xz": b"\xfd7zXZ" + bytes(500),
    }
    (tmp_path / name).write_bytes(content[name])
    with pytest.raises(ValueError, match=rf"{name}: not readable as a CSV \(.+\). Download it again.$"):
        utils.load_fer2013(tmp_path / name, "train", 7)


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file. Download FER2013 from Kaggle.*--data.*make_sample"):
        utils.load_fer2013(tmp_path / "fer2013.csv", "train")
    with pytest.raises(FileNotFoundError, match="no such file. Download fer2013new.csv from github.com/microsoft"):
        utils.load_votes(tmp_path / "fer2013new.csv", write_plain(tmp_path), "train")


def test_an_unknown_split_or_class_count_is_refused(tmp_path):
    path = write_plain(tmp_path)
    with pytest.raises(ValueError, match="train, val, test, but is private"):
        utils.load_fer2013(path, "private")
    with pytest.raises(ValueError, match="5, 7, but is 6"):
        utils.load_fer2013(path, "train", 6)


def test_a_split_without_rows_is_named(tmp_path):
    path = tmp_path / "public.csv"
    path.write_text("".join(line for line in csv_text().splitlines(keepends=True) if "PrivateTest" not in line))
    with pytest.raises(ValueError, match="public.csv: no PrivateTest rows .*Splits with rows: train, val.$"):
        utils.load_fer2013(path, "test", 7)


@pytest.mark.parametrize(
    ("name", "face", "message"),
    [
        ("train/joy/Training_1.png", FACES[0], "A folder of faces must be named angry, .* in another"),
        ("train/happy/face_1.png", FACES[0], "The name of a face must begin with Training, .* does not"),
        ("train/happy/Training_1.png", FACES[0][:40], "48x48 pixels, but .*Training_1.png is not"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, name, face, message):
    (tmp_path / name).parent.mkdir(parents=True)
    cv2.imwrite(str(tmp_path / name), face)
    with pytest.raises(ValueError, match=message):
        utils.load_fer2013(tmp_path, "train", 7)


@needs_posix
def test_a_named_pipe_in_a_folder_is_refused(tmp_path):
    (tmp_path / "train" / "happy").mkdir(parents=True)
    os.mkfifo(tmp_path / "train" / "happy" / "Training_1.jpg")
    with pytest.raises(ValueError, match="48x48 pixels, but .*Training_1.jpg is not"):
        utils.load_fer2013(tmp_path, "train", 7)


def test_a_folder_without_faces_is_refused(tmp_path):
    for path in (tmp_path, Path("/")):
        with pytest.raises(ValueError, match="no train/<emotion>/"):
            utils.load_fer2013(path, "train")


def test_a_data_set_that_changes_is_read_again(tmp_path):
    path = write_plain(tmp_path)
    assert len(utils.load_fer2013(path, "train", 7)[0]) == 7
    path.write_text("".join(csv_text().splitlines(keepends=True)[:4]))
    assert len(utils.load_fer2013(path, "train", 7)[0]) == 3
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# Votes.

VOTES_HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
# One row for each of FACES, with the columns of VOTES_HEADER.
VOTES = [
    (0, 0, 0, 0, 10, 0, 0, 0, 0, 0),
    (3, 6, 0, 0, 0, 0, 0, 0, 1, 0),
    (0, 0, 0, 0, 3, 5, 0, 2, 0, 0),
    (0, 0, 0, 5, 1, 0, 3, 0, 1, 0),
    (0, 0, 2, 0, 0, 0, 8, 0, 0, 0),
    (0, 0, 0, 0, 0, 0, 0, 0, 2, 8),
    (1, 0, 0, 0, 0, 9, 0, 0, 0, 0),
    *[(0, 10, 0, 0, 0, 0, 0, 0, 0, 0)] * 5,
]


NEUTRAL = "`neutral` must be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, but row 2 of v.csv holds"


def votes_text(votes=VOTES, usages=USAGES, header=VOTES_HEADER):
    lines = [f"{usage},fer.png,{','.join(map(str, row))}\n" for usage, row in zip(usages, votes, strict=True)]
    return header + "".join(lines)


def write_votes(folder, text):
    (folder / "fer2013new.csv").write_text(text)
    return folder / "fer2013new.csv"


def test_votes_become_shares_weights_and_consensus(tmp_path):
    """Labels of Training are Angry, Happy, Disgust, Sad, Fear, Surprise, Neutral.

    Row 2, five classes: 3 neutral + 6 happiness of 10 votes: shares 0.667 and 0.333, weight 0.9, Happy by 6 > 5.
    Row 4: 5 of 10 for sadness are not more than half. Row 6: no vote for an emotion. Row 7: disgust is not a class.
    """
    path, data = write_votes(tmp_path, votes_text()), write_plain(tmp_path)
    votes, weights, consensus = utils.load_votes(path, data, "train", 5)
    assert votes.dtype == weights.dtype == np.float32
    # Rows 1, 2, 4, 6, 7 of the CSV; columns Angry, Happy, Sad, Surprise, Neutral.
    shares = [[1, 0, 0, 0, 0], [0, 6 / 9, 0, 0, 3 / 9], [1 / 6, 0, 5 / 6, 0, 0], [0] * 5, [0, 0, 0, 0, 1]]
    assert np.allclose(votes, shares)
    assert np.allclose(weights, [1, 0.9, 0.6, 0, 0.1])
    assert consensus.tolist() == [0, 1, -1, -1, -1]
    assert utils.load_votes(path, data, "train", 7)[2].tolist() == [0, 3, -1, -1, 2, -1, 1]
    assert utils.load_votes(path, data, "train", 7, limit=2)[2].tolist() == [0, 3]
    assert utils.load_votes(path, data, "test", 7)[0].shape == (2, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (votes_text(VOTES[:-1], USAGES[:-1]), "v.csv must have one row for each of x.csv's 12, but has 11."),
        (
            votes_text(usages=USAGES[::-1]),
            "`Usage` of v.csv must equal that of x.csv in every row, but differs in row 2.",
        ),
        (
            votes_text(VOTES[::-1]),
            "v.csv must have the row order of x.csv, but most votes name the label of only 8% of 12 successive faces "
            "(FER2013: over 59%).",
        ),
        (votes_text(header="Usage,anger\n"), "v.csv must have the column disgust, but has 'Usage, anger'."),
        (votes_text([(11, *VOTES[0][1:]), *VOTES[1:]]), f"{NEUTRAL} '11'."),
        (votes_text([(1, *VOTES[0][1:]), *VOTES[1:]]), "A face has at most 10 votes, but row 2 of v.csv holds 11."),
        (votes_text([(0.5, *VOTES[0][1:]), *VOTES[1:]]), f"{NEUTRAL} '0.5'."),
        (VOTES_HEADER, "v.csv: a header and no rows. Download it again."),
        (csv_text(), "v.csv must have the column anger, but has 'emotion, pixels, Usage'."),
    ],
)  # fmt: skip
def test_votes_that_do_not_fit_are_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text(csv_text())
    Path("v.csv").write_text(text)
    with pytest.raises(ValueError) as caught:
        utils.load_votes("v.csv", "x.csv", "val", 7)
    assert str(caught.value) == message


def test_votes_are_refused_with_a_folder(tmp_path):
    with pytest.raises(ValueError, match="a folder of images has lost the row order of the votes. Name fer2013.csv"):
        utils.load_votes(write_votes(tmp_path, votes_text()), write_folders(tmp_path), "train", 7)


def test_votes_in_another_order_within_a_block_are_refused(sample_csv, sample_votes, tmp_path):
    """Rows 501 to 1000 of 1680 are reversed: the other blocks still agree."""
    header, *lines = sample_votes.read_text().splitlines(keepends=True)
    assert len(utils.load_votes(sample_votes, sample_csv, "train", 7)[0]) == 1120
    path = write_votes(tmp_path, "".join([header, *lines[:500], *lines[999:499:-1], *lines[1000:]]))
    with pytest.raises(ValueError, match=r"only \d+% of 560 successive faces"):
        utils.load_votes(path, sample_csv, "train", 7)


# Wrong data sets.


@pytest.fixture(scope="module")
def uneven(sample_csv):
    """The drawn faces with another number of faces for each split and emotion, as FER2013 has."""
    faces, emotions, usages = utils._read_csv(sample_csv)
    kept = np.zeros(len(faces), bool)
    for usage, number in ((0, 155), (1, 30), (2, 25)):
        for emotion in range(7):
            kept[np.flatnonzero((usages == usage) & (emotions == emotion))[: number + emotion - 3]] = True
    return faces[kept], emotions[kept], usages[kept]


ALPHABETICAL = np.array([0, 1, 2, 3, 5, 6, 4])  # Angry, Disgust, Fear, Happy, Neutral, Sad, Surprise.


def make_public_test_of_training(faces, emotions, usages):
    rows = np.concatenate([np.flatnonzero(usages == 0), np.flatnonzero(usages == 0)[:210], np.flatnonzero(usages == 2)])
    return faces[rows], emotions[rows], np.sort(usages)


SIZES = "not the whole of FER2013: Training, PublicTest, PrivateTest have"
WRONG = {
    "shuffled labels": (
        lambda f, e, u: (f, np.random.default_rng(0).permutation(e), u),
        "labels may be shuffled: those of Training are not related to the pixels.",
    ),
    "inverted pixels": (lambda f, e, u: (255 - f, e, u), "pixels may be inverted, transposed or blank: the mean face"),
    "transposed pixels": (lambda f, e, u: (f.swapaxes(1, 2), e, u), "pixels may be inverted, transposed or blank: the"),
    "upside down": (lambda f, e, u: (f[:, ::-1], e, u), "pixels may be inverted, transposed or blank: the mean face"),
    "all black": (lambda f, e, u: (f * 0, e, u), "pixels may be inverted, transposed or blank: the mean face"),
    "alphabetical": (lambda f, e, u: (f, ALPHABETICAL[e], u), "splits or emotions may be mixed up: Training has "),
    "PublicTest as PrivateTest": (
        lambda f, e, u: (f, e, np.choose(u, [0, 2, 1])),
        f"{SIZES} 1085, 175, 210 rows instead of 1085",
    ),
    "Training as PublicTest": (
        make_public_test_of_training,
        "PublicTest is not independent: 210 of its 210 faces are copies of Training's.",
    ),
    "half missing": (
        lambda f, e, u: (f[::2], e[::2], u[::2]),
        f"{SIZES} 543, 105, 87 rows instead of 1085",
    ),
    "doubled": (
        lambda f, e, u: (np.tile(f, (2, 1, 1, 1)), np.tile(e, 2), np.tile(u, 2)),
        f"{SIZES} 2170, 420, 350 rows instead of 1085",
    ),
}


@pytest.fixture
def counts_of_uneven(uneven, monkeypatch):
    """Makes the counts of the drawn faces those that are expected."""
    counts = [np.bincount(uneven[1][uneven[2] == usage], minlength=7).tolist() for usage in range(3)]
    monkeypatch.setattr(utils, "FACES_PER_CLASS", counts)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_data_set_is_noticed(uneven, counts_of_uneven, monkeypatch, wrong):
    change, message = WRONG[wrong]
    monkeypatch.setattr(utils, "_load_parsed", lambda path: change(*uneven))
    warnings = utils.data_warnings("a.csv")
    assert any(f"a.csv: {message}" in warning for warning in warnings)
    assert len(warnings) <= 2  # Shuffling changes the counts too, and black faces are also copies.


def test_a_right_data_set_gives_no_warning(uneven, counts_of_uneven, monkeypatch):
    monkeypatch.setattr(utils, "_load_parsed", lambda path: uneven)
    assert utils.data_warnings("a.csv") == []


def test_the_drawn_sample_gives_one_warning(sample_csv):
    (warning,) = utils.data_warnings(sample_csv)
    assert warning == (f"{sample_csv}: {SIZES} 1120, 280, 280 rows instead of 28709, 3589, 3589.")


def test_copies_are_exact(tmp_path):
    nearly = FACES[:1].copy()
    nearly[0, 0, 0] ^= 1
    assert utils.find_copies(np.concatenate([FACES[:2], nearly]), FACES[1:]).tolist() == [False, True, False]


# Hangs and floods.


def flood(path):
    """Writes a file that would take minutes or gigabytes to read completely."""
    row, newlines = f"0,{GOOD},Training\n".encode(), b"\n" * 2**20
    entry = tarfile.TarInfo("README")
    entry.size = 300 * 2**20
    # Files in parts; a gzip file may be a sequence of gzip files.
    parts = {
        "newlines.csv": [HEADER.encode(), *[newlines] * 100],
        "columns.csv": [",".join(map(str, range(10**6))).encode()],
        "zeros.csv.gz": [gzip.compress(bytes(2**20))] * 300,
        "newlines.csv.gz": [gzip.compress(HEADER.encode()), *[gzip.compress(newlines)] * 300],
        "quote.csv.gz": [gzip.compress(b'"'), *[gzip.compress(b"a\n" * 2**20)] * 100],
        "name.csv": [b"\x1f\x8b\x08\x08" + bytes(6), *[b"name" * 2**18] * 50],
        "readme.tar.gz": [gzip.compress(entry.tobuf()), *[gzip.compress(bytes(2**20))] * 300],
    }
    content = {"zeros.zip": [bytes(2**20)] * 300, "rows.zip": [HEADER.encode(), *[row * 100] * 3, *[newlines] * 300]}
    if path.name in content:
        options = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
        with zipfile.ZipFile(path, "w", **options) as archive, archive.open("fer2013.csv", "w") as file:
            file.writelines(content[path.name])
    elif path.name == "fifo.csv":
        os.mkfifo(path)
    else:
        with open(path, "wb") as file:
            file.writelines(parts.get(path.name, []))
            if path.name == "sparse.csv":
                file.truncate(10**11)


FLOODS = ["newlines.csv", "columns.csv", "zeros.csv.gz", "newlines.csv.gz", "quote.csv.gz", "name.csv"]
FLOODS += ["zeros.zip", "rows.zip", "readme.tar.gz", "/"]
FLOODS += [pytest.param(name, marks=needs_posix) for name in ("fifo.csv", "sparse.csv", "/dev/zero")]


@pytest.mark.parametrize("name", FLOODS)
def test_floods_are_refused_early(tmp_path, name, sample_csv):
    path = tmp_path / name  # An absolute name stays as it is.
    if path.parent == tmp_path:
        flood(path)
    utils.load_fer2013(sample_csv, "train")
    for read in (lambda: utils.load_fer2013(path, "train"), lambda: utils.load_votes(path, sample_csv, "train")):
        before, started = peak_memory_mb(), time.process_time()
        with pytest.raises((ValueError, OSError)) as caught:
            read()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert time.process_time() - started < 3
        assert peak_memory_mb() - before < 200


# The published data, where it is.

needs_fer2013 = pytest.mark.skipif(not utils.DEFAULT_DATA.exists(), reason="needs the real data/fer2013.csv")


@needs_fer2013
@pytest.mark.parametrize(("num_classes", "train", "val"), [(5, 24176, 3037), (7, 28709, 3589)])
def test_fer2013_has_its_known_counts(num_classes, train, val):
    assert len(utils.load_fer2013(utils.DEFAULT_DATA, "train", num_classes)[0]) == train
    assert len(utils.load_fer2013(utils.DEFAULT_DATA, "val", num_classes)[0]) == val


@needs_fer2013
def test_fer2013_gives_no_warning():
    assert utils.data_warnings(utils.DEFAULT_DATA) == []


@needs_fer2013
def test_the_expected_mean_face_is_fer2013s():
    faces, _ = utils.load_fer2013(utils.DEFAULT_DATA, "train", 7)
    blocks = faces.mean(axis=0).reshape(6, 8, 6, 8).mean(axis=(1, 3))
    assert np.array_equal(blocks.round(), utils.MEAN_FACE)


# data/make_sample.py


def test_the_sample_is_the_same_for_the_same_seed(tmp_path, run_script):
    contents = []
    for seed in (0, 0, 1):
        arguments = ("--output", tmp_path / "drawn.csv", "--faces-per-class", 2, "--seed", seed)
        finished = run_script("data/make_sample.py", *arguments)
        assert finished.returncode == 0, finished.stderr
        contents.append([(tmp_path / name).read_bytes() for name in ("drawn.csv", "drawn_votes.csv")])
    assert contents[0] == contents[1] and contents[0][0] != contents[2][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn.csv", "drawn_votes.csv"]


def test_the_sample_has_all_splits_and_fitting_votes(sample_csv, sample_votes):
    for split, rows in (("train", 1120), ("val", 280), ("test", 280)):
        faces, labels = utils.load_fer2013(sample_csv, split, 7)
        assert len(faces) == rows and np.bincount(labels).tolist() == [rows // 7] * 7
        votes, weights, consensus = utils.load_votes(sample_votes, sample_csv, split, 7)
        assert 0.5 < np.mean(consensus == labels) < 1 and 0.5 < weights.mean() < 1
        assert np.mean(votes.argmax(axis=1) == labels) > 0.9


def test_the_sample_goes_to_a_csv_file_only(tmp_path, run_script):
    finished = run_script("data/make_sample.py", "--output", tmp_path / "faces.txt")
    assert finished.returncode == 2 and "must be a file whose name ends in .csv" in finished.stderr
    (tmp_path / "file").touch()
    finished = run_script("data/make_sample.py", "--output", tmp_path / "file" / "faces.csv")
    (line,) = finished.stderr.splitlines()
    assert finished.returncode == 2 and line.startswith(f"make_sample.py: {tmp_path / 'file' / 'faces.csv'}: ")
    assert line.endswith(". Choose another --output.")


# ---------------------------------------------------------------------------------------------------------------------
# 6. Files and messages
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("rtsp://user:secret@host:554/live?token=secret#secret", "rtsp://host:554/live"),
        ("http://user:se/cr?et#secret@host/live", "http://host/live"),
        ("http://host/@name/live", "http://host/@name/live"),
        ("http://user:secret@[::1]:80/live", "http://[::1]:80/live"),
        ("http://[::1]:80/live", "http://[::1]:80/live"),
        ("photos/face?.jpg", "photos/face?.jpg"),
        ("a\nb\x1b[31m", "a\\x0ab\\x1b[31m"),
    ],
)
def test_printable_shows_no_secret_and_no_control_character(source, text):
    assert utils.printable(source) == text


def test_long_texts_are_shortened():
    assert len(utils.printable("x" * 50_000)) == utils.LONGEST_TEXT


def test_replaced_file_is_complete_or_unchanged(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk"), utils.replaced(path) as temporary:
        temporary.write_text("half")
        raise OSError("The disk is full.")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with utils.replaced(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_quiet_stderr_hides_native_output_only_inside(capfd):
    with utils.quiet_stderr():
        os.write(2, b"hidden")
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"
