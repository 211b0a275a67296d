"""The path from a pixel to a labeled pixel: faces, models, drawing.

python -m pytest tests/test_utils.py
"""

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
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

import fer2013
import tracking
import utils

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


class Judge:
    """Stands in for a model: gives every window the same score."""

    def __init__(self, score):
        self.score = score

    def face_scores(self, faces):
        return np.full(len(faces), self.score, np.float32)


@pytest.mark.parametrize(
    ("score", "is_seen", "neighbors", "count"),
    [(0.99, False, 1000, 1), (0.3, True, 1000, 1), (0.3, False, 1000, 0), (0.3, False, 5, 1), (0.05, True, 5, 0)],
)
def test_faces_are_confirmed_by_the_network_or_by_a_cascade(
    heads, face_detector, blind, monkeypatch, score, is_seen, neighbors, count
):
    """`is_seen`: the second cascade sees the face. `neighbors`: as many detections of the first one do without it."""
    monkeypatch.setattr(utils, "SURE_NEIGHBORS", neighbors)
    detector = face_detector._replace(confirming=face_detector.confirming if is_seen else blind, model=Judge(score))
    assert len(utils.detect_faces(draw(heads["collins"]), detector)) == count


def test_network_tells_faces_from_their_parts_and_from_textures(face_detector, gray_portrait):
    face, eye, mouth = (116, 78, 172, 172), (125, 110, 50, 50), (150, 180, 64, 64)
    scores = face_detector.model.face_scores(utils.crop_faces(gray_portrait, [face, eye, mouth]))
    assert scores.dtype == np.float32 and scores[0] > 0.9 and scores[1:].max() < 0.2
    textures = [utils.crop_faces(getattr(skimage.data, name)(), [face])[0] for name in ("brick", "grass", "gravel")]
    assert face_detector.model.face_scores(np.array(textures)).max() < 0.5


def test_a_model_without_that_output_leaves_it_to_the_cascades():
    model = make_model({"labels": [0, 0]}, {"labels": 1.0})
    assert model.face_scores(np.zeros((3, 48, 48, 1), np.uint8)).tolist() == [0.5] * 3


def test_no_window_has_no_score(face_detector):
    assert face_detector.model.face_scores(np.zeros((0, 48, 48, 1), np.uint8)).shape == (0,)


def test_a_detected_face_holds_no_other(gray_portrait, face_detector, monkeypatch):
    """Each of two boxes around the same face would be confirmed. Only the one with more evidence stays."""
    large, small = np.array([116.0, 78, 172, 172]), np.array([134.0, 100, 136, 136])
    monkeypatch.setattr(utils, "_scan", lambda *arguments, **options: [small, large])
    evidence = [utils.face_evidence(gray_portrait, box, face_detector, 0, utils.STILL_WIDTH) for box in (large, small)]
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


@pytest.fixture(scope="module", params=SHIPPED, ids=lambda folder: folder.name)
def folder(request):
    """The folder of a shipped model."""
    return request.param


def test_exported_network_agrees_with_keras_on_real_crops(folder, crops):
    import keras

    keras_logits = keras.models.load_model(folder / "model.keras", compile=False)(crops.astype(np.float32))
    for head, logits in utils.load_emotion_model(folder).logits(crops).items():
        expected = np.asarray(keras_logits[head])
        assert np.abs(logits - expected).max() < 0.2
        # The labels head sees two emotions of almost the same probability in one of the photographs.
        least = 0.99 if head == "votes" else 0.98
        assert np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)) >= least


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


def make_model(outputs, temperatures, bias=(0.0, 0.0)):
    """Returns a model whose heads put out the same logits for every face."""
    description = {"classes": ["Angry", "Happy"], "heads": list(outputs), "temperatures": temperatures}
    description["bias"] = list(bias)
    return utils.EmotionModel(
        lambda faces: {head: np.tile(row, (len(faces), 1)) for head, row in outputs.items()}, description
    )


def test_prediction_of_the_demo_is_the_votes_head_with_the_bias():
    """Logits 0 and 2 ln 3 at temperature 2 give 1/4, 3/4; 0 and 0 give 1/2, 1/2, and with a bias of ln 4 4/5, 1/5."""
    outputs, face = {"labels": [0, 2 * np.log(3)], "votes": [0, 0]}, np.zeros((1, 48, 48, 1), np.uint8)
    model = make_model(outputs, {"labels": 2.0, "votes": 1.0}, bias=[np.log(4), 0.0])
    assert model.predict(face, "labels")[0] == pytest.approx([0.25, 0.75])
    assert model.predict(face, "votes")[0] == pytest.approx([0.5, 0.5])
    assert model.predict(face)[0] == pytest.approx([0.8, 0.2])


def test_prediction_without_votes_is_the_labels_head():
    model, face = make_model({"labels": [0, 2 * np.log(3)]}, {"labels": 2.0}), np.zeros((1, 48, 48, 1), np.uint8)
    assert model.predict(face)[0] == pytest.approx([0.25, 0.75])


def test_softmax_of_large_logits_is_finite():
    assert utils.softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]])).tolist() == [[1, 0], [0.5, 0.5]]


def test_calibration_error_by_hand():
    """Two faces at 0.9, one right: |0.9 - 0.5| = 0.4. Two at 0.6, both right: |0.6 - 1| = 0.4. Their mean is 0.4."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert utils.expected_calibration_error(probabilities, np.array([0, 1, 0, 0])) == pytest.approx(0.4)


def test_mean_recall_by_hand():
    """Class 0: one of two faces; class 2: the only one; class 1 has no face. (1/2 + 1) / 2 = 0.75."""
    assert utils.mean_recall(np.eye(3)[[0, 1, 2]], np.array([0, 0, 2])) == 0.75


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
        ("bias", [0, 0, 0, 0]),
        ("bias", [0, 0, 0, 0, float("nan")]),
        ("bias", [0, 0, 0, 0, 10**400]),
        ("bias", [0, 0, 0, 0, True]),
        ("training.tau", "0.5"),
    ],
)
def test_wrong_value_in_the_description_is_refused_by_name(copied, key, value):
    description = json.loads((copied / "model.json").read_text())
    section, _, name = key.rpartition(".")
    (description[section] if section else description)[name] = value
    (copied / "model.json").write_text(json.dumps(description))
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
    with pytest.raises(ValueError, match="model.tflite: its outputs must be logits of 5 classes named labels"):
        utils.load_emotion_model(copied)


def test_flipped_bit_of_the_network_is_refused(copied):
    content = bytearray((copied / "model.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "model.tflite").write_bytes(content)
    with pytest.raises(ValueError, match="model.tflite: not the file that model.json describes"):
        utils.load_emotion_model(copied)


@pytest.mark.parametrize("reader", ["model.json", "network"])
def test_damaged_model_is_read_correctly_or_refused_in_one_line(reader):
    counts = fuzz.run(reader, cases=100)
    assert counts.total() >= 80  # Hypothesis may find fewer different cases.


@pytest.mark.parametrize("name", utils.MAX_MODEL_BYTES)
def test_file_of_a_model_that_is_far_too_large_is_refused_before_it_is_read(copied, name):
    with open(copied / name, "r+b") as file:
        file.truncate(utils.MAX_MODEL_BYTES[name] + 1)
    with pytest.raises(ValueError, match=f"{name}: larger than"):
        utils.load_emotion_model(copied)


@pytest.mark.parametrize(
    "output",
    [
        {"labels": np.zeros((2, 1))},
        {"votes": np.zeros((1, 5))},
        {"labels": np.zeros((2, 10))},
        {"labels": np.full((2, 5), np.nan)},
        {"face": np.zeros((2, 5))},
        {"face": np.full((2, 1), np.inf)},
        {"another": np.zeros((2, 1))},
    ],
)
def test_network_whose_outputs_are_not_logits_is_refused(copied, monkeypatch, output):
    """Its hash is right: a stranger's model may hold anything."""
    outputs = dict.fromkeys(utils.HEADS, np.zeros((2, 5))) | {"face": np.zeros((2, 1))}
    monkeypatch.setattr(utils, "load_network", lambda content: lambda faces: outputs)
    utils.load_emotion_model(copied)
    outputs |= output
    with pytest.raises(ValueError, match="model.tflite: its outputs must be logits of 5 classes"):
        utils.load_emotion_model(copied)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_omp_num_threads_limits_the_threads_of_the_library(portrait_path):
    code = f"""
import cv2, os, utils
utils.read_emotions(cv2.imread({str(portrait_path)!r}))
print(cv2.getNumThreads(), utils.count_threads(), len(os.listdir("/proc/self/task")))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=utils.ROOT, text=True, env=environment)
    assert printed.split() == ["1", "1", "1"]


def test_opencv_without_libgl_names_the_package(tmp_path):
    """As in a container without a desktop's libraries."""
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    for program in ("utils", "webcam_demo"):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", f"import sys; sys.path.append({str(utils.ROOT)!r}); import {program}"]
        finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert "libGL.so.1" in finished.stderr and "apt-get install libgl1" in finished.stderr.splitlines()[-1]


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


@pytest.mark.parametrize("code", ["GRAY2BGR", "BGRA2BGR"])
def test_read_emotions_says_how_to_convert_gray_and_transparent_images(portrait, code):
    other = cv2.cvtColor(portrait, getattr(cv2, f"COLOR_BGR2{code.removesuffix('2BGR')}"))
    with pytest.raises(ValueError, match=re.escape(f"Convert it: frame = cv2.cvtColor(frame, cv2.COLOR_{code}).")):
        utils.read_emotions(other)
    assert len(utils.read_emotions(cv2.cvtColor(other, getattr(cv2, f"COLOR_{code}")))) == 1


def test_read_emotions_says_that_an_image_was_not_found(portrait):
    with pytest.raises(ValueError, match="cv2.imread could not read an image: check the path."):
        utils.read_emotions(cv2.imread("missing.jpg"))
    with pytest.raises(ValueError, match="`detector` must be from load_face_detector, but it is CascadeClassifier."):
        utils.read_emotions(portrait, detector=cv2.CascadeClassifier())


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
    tracks = tracking.find_still(gray, face_detector)
    assert [face.box for face in faces] == [tuple(box) for box in tracking.stack_boxes(tracks).tolist()]
    assert [face.angle for face in faces] == [track.view.angle for track in tracks]
    assert sorted(face.angle for face in faces) == [0, 25] and all(face.track is None for face in faces)


@pytest.mark.parametrize("width", [48, 64, 100, 112])
def test_read_emotions_takes_a_small_square_portrait_as_a_whole(portrait, width):
    """Data sets of faces have such images; the face fills them, as the cascade's box does."""
    face = cv2.resize(portrait[78:250, 116:288], (width, width), interpolation=cv2.INTER_AREA)
    (found,) = utils.read_emotions(face)
    assert found.box == (0, 0, width, width) and found.angle == 0


def test_cropped_faces_of_a_data_set_are_a_face_as_a_whole(sample_csv):
    """The drawn faces of the sample have FER2013's form: 48x48 pixels, the face fills the image."""
    faces, _ = fer2013.read(sample_csv).select("val")
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


SIZES = [(180, 320), (480, 640), (1080, 1920)]


def draw_faces(size, faces, numbered=False):
    """Returns a light frame with these faces, and bool masks (H, W): what was drawn, and the bars of DARK."""
    frame = np.full((*size, 3), 200, np.uint8)
    drawn = utils.annotate_frame(frame, faces, numbered)
    assert (frame == 200).all()
    return drawn, (drawn != 200).any(axis=-1), (drawn == utils.DARK).all(axis=-1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("corner", [(0, 0), (0.9, 0.9), (0.4, 0.4)])
def test_annotate_frame_draws_box_and_label_on_a_copy(size, corner):
    box = (int(corner[0] * size[1]), int(corner[1] * size[0]), size[0] // 4, size[0] // 4)
    drawn, _, _ = draw_faces(size, [utils.Face(box, "Happy", 0.83, {})])
    color = np.array(utils.EMOTION_COLORS["Happy"][::-1])
    assert (drawn == color).all(axis=-1).sum() > 200  # The bar behind the label lies within the frame.
    assert (drawn.max(axis=-1) < 120).sum() > 20  # Its black letters.


@pytest.mark.parametrize("size", SIZES)
def test_held_face_has_a_dashed_box_and_no_confidence(size):
    """Along its left edge half of the pixels are drawn. The label is narrower by the confidence."""
    box = (size[1] // 4, size[0] // 4, size[0] // 2, size[0] // 2)
    face = utils.Face(box, "Happy", 0.83, {})
    (_, found, _), (_, held, _) = (draw_faces(size, [face._replace(held=held)]) for held in (False, True))
    edge = slice(box[1], box[1] + box[3]), box[0]
    assert found[edge].all() and 0.3 < held[edge].mean() < 0.8
    above = slice(0, box[1] - 3), slice(None)
    assert held[above].sum() < 0.7 * found[above].sum() and not (held & ~found)[above].any()


@pytest.mark.parametrize(("tracks", "numbered", "drawn"), [([3], False, 0), ([3], True, 1), ([3, 4], False, 2)])
def test_number_is_drawn_if_there_are_several_faces_or_a_log(tracks, numbered, drawn):
    faces = [utils.Face((50 + 300 * i, 150, 100, 100), "Sad", 0.8, {}, track=track) for i, track in enumerate(tracks)]
    _, _, dark = draw_faces((480, 640), faces, numbered)
    count, _, boxes, _ = cv2.connectedComponentsWithStats(dark.astype(np.uint8))
    assert sum(boxes[1:count, cv2.CC_STAT_AREA] > 50) == drawn


def test_faces_without_a_track_have_no_number():
    faces = [utils.Face((50 + 300 * i, 150, 100, 100), "Sad", 0.8, {}) for i in range(2)]
    assert not draw_faces((480, 640), faces, numbered=True)[2].any()


@pytest.mark.parametrize("size", SIZES)
def test_labels_of_neighbors_cover_no_other_label_and_no_middle_of_a_face(size, monkeypatch):
    """Two rows of three faces, which nearly touch each other and whose labels are wider than they are."""
    placed = []
    monkeypatch.setattr(utils, "paste", lambda frame, image, corner: placed.append((*corner, *image.shape[1::-1])))
    side = size[0] // 6
    places = [
        (size[1] // 3 + i * side * 11 // 10, size[0] // 3 + j * side * 3 // 2) for j in range(2) for i in range(3)
    ]
    boxes = [(*place, side, side) for place in places]
    faces = [utils.Face(box, "Surprise", 0.83, {}, track=i + 10) for i, box in enumerate(boxes)]
    draw_faces(size, faces)
    assert len(placed) == 6 and max(label[2] for label in placed) > side
    middles = [(x + side // 4, y + side // 4, side // 2, side // 2) for x, y, _, _ in boxes]
    for i, label in enumerate(placed):
        assert 0 <= label[0] <= size[1] - label[2] and 0 <= label[1] <= size[0] - label[3]
        assert not any(utils.overlap(label, other) for other in placed[:i])
        if size[0] > 180:  # In the smallest frame there is no room for that.
            assert not any(utils.overlap(label, middle) for middle in middles)


def test_annotate_frame_turns_the_box_of_a_tilted_face_clockwise():
    """The box 100..200 around (150, 150), turned by 30 degrees.

    The middle of its top edge, 50 above the center, moves to 50 (sin 30, -cos 30) = (25, -43) from it: (175, 107).
    That of its bottom edge moves to (125, 193).
    """
    frame = np.full((300, 300, 3), 200, np.uint8)
    drawn = utils.annotate_frame(frame, [utils.Face((100, 100, 100, 100), "Sad", 0.5, {}, angle=30.0)])
    color = np.array(utils.EMOTION_COLORS["Sad"][::-1])
    for x, y in ((175, 107), (125, 193)):
        assert (drawn[y - 2 : y + 3, x - 2 : x + 3] == color).all(axis=-1).any()
    assert (drawn[98:105, 98:105] == 200).all()  # Here the corner of an upright box would be.


@pytest.mark.parametrize("width", [1, 30, 60])
def test_label_wider_than_the_frame_is_made_smaller(width):
    """The bar reaches from edge to edge, and the % at its end is still there."""
    drawn, _, _ = draw_faces((48, width), [utils.Face((0, 0, width, 48), "Surprise", 0.83, {})])
    bar = (np.abs(drawn.astype(int) - utils.EMOTION_COLORS["Surprise"][::-1]) < 2).all(axis=-1)
    assert bar[:, [0, -1]].any(axis=0).all()
    if width == 60:
        assert (drawn[:, 48:58].max(axis=-1) < 140).any()


def test_letters_beyond_ascii_are_drawn():
    letters = [utils.draw_text(text, 22, utils.DARK) for text in ("K\u00f6ln", "Koln", "K?ln")]
    assert all(letters[0].shape != other.shape or (letters[0] != other).any() for other in letters[1:])


@pytest.mark.parametrize("color", [*utils.EMOTION_COLORS.values(), utils.UNCERTAIN_COLOR, utils.DARK])
def test_letters_contrast_with_the_bar(color):
    """At least by the factor that WCAG 2 asks for."""
    text = utils.draw_text("Happy", 22, color[::-1])
    dark, light = sorted((relative_luminance(text.min(axis=(0, 1))), relative_luminance(text.max(axis=(0, 1)))))
    assert (light + 0.05) / (dark + 0.05) > 4.5


def relative_luminance(color):
    """Returns the relative luminance of a BGR color as WCAG 2 defines it, 0..1."""
    share = np.asarray(color) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ (0.0722, 0.7152, 0.2126)


# ---------------------------------------------------------------------------------------------------------------------
# 5. Files and messages
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
    text = utils.printable(f"folder/{'x' * 50_000}/name")
    assert len(text) == utils.LONGEST_TEXT and text.startswith("folder/") and text.endswith("/name")


def test_threads_share_a_model_and_a_detector(gray_portrait, crops):
    """They take turns inside, so each gets the answers of its own faces, and messages are seen afterwards."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        models = list(pool.map(lambda _: utils.load_emotion_model(), range(8)))
        parts, model, detector = np.array_split(crops, 60), models[0], utils.load_face_detector()
        together = list(pool.map(model.predict, parts))
        boxes = list(pool.map(lambda _: utils.detect_faces(gray_portrait, detector).tolist(), range(16)))
    alone = [model.predict(part) for part in parts]
    assert all((a == b).all() for a, b in zip(together, alone, strict=True))
    assert boxes == 16 * [utils.detect_faces(gray_portrait, detector).tolist()]
    assert not os.path.samestat(os.fstat(2), os.stat(os.devnull))


def test_color_frame_where_a_gray_one_is_meant_is_refused(portrait):
    with pytest.raises(ValueError, match="`gray` must have two dimensions, but it has 3"):
        utils.detect_faces(portrait, utils.load_face_detector())
    with pytest.raises(ValueError, match="`gray` must have two dimensions, but it has 3"):
        utils.crop_faces(portrait, [(10, 10, 60, 60)])


def test_faces_of_another_size_or_of_gray_levels_up_to_1_are_refused(crops):
    model = utils.load_emotion_model()
    wrong = {
        "float32": crops.astype(np.float32) / 255,
        "64, 64": np.zeros((1, 64, 64, 1), np.uint8),
        "48, 48": crops[0],
    }
    for received, faces in wrong.items():
        with pytest.raises(ValueError, match=rf"`faces` must be uint8 \(N, 48, 48, 1\), but they are .*{received}"):
            model.predict(faces)


def test_quiet_stderr_hides_native_output_only_inside(capfd):
    with utils.quiet_stderr():
        os.write(2, b"hidden")
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"
