"""From a frame to faces and back to a drawing, with the real cascade on a real photograph.

python -m pytest tests/test_faces.py
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import utils
import window


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=2304, max_size=2304), st.integers(0, 200), st.integers(0, 100))
def test_a_face_pasted_into_a_frame_is_cropped_back_bit_for_bit(pixels, x, y):
    face = np.frombuffer(pixels, np.uint8).reshape(48, 48)
    gray = np.full((148, 248), 99, np.uint8)
    gray[y : y + 48, x : x + 48] = face
    faces = utils.crop_faces(gray, np.array([[x, y, 48, 48]]))
    assert faces.shape == (1, 48, 48, 1) and np.array_equal(faces[0, ..., 0], face)


@pytest.mark.parametrize(
    "box", [(-30, -30, 80, 80), (90, 40, 80, 80), (-500, 10, 60, 60), (10, 900, 60, 60), (5, 5, 0, 0)]
)
def test_a_box_beyond_the_frame_still_gives_a_face(box):
    gray = np.random.default_rng(0).integers(0, 256, (100, 120), dtype=np.uint8)
    assert utils.crop_faces(gray, np.array([box])).shape == (1, 48, 48, 1)


def test_cropping_keeps_what_is_inside_the_frame():
    """Of a box that begins 48 pixels left of the frame, the right half stays: columns 0 to 47, all of value 50."""
    gray = np.full((96, 200), 200, np.uint8)
    gray[:, :48] = 50
    assert (utils.crop_faces(gray, np.array([[-48, 0, 96, 96]])) == 50).all()


def test_the_cascade_finds_the_one_face_of_the_portrait(portrait):
    gray = cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY)
    ((x, y, width, height),) = utils.detect_faces(gray, utils.load_face_detector())
    eyes_and_mouth = [(145, 140), (215, 140), (182, 205)]  # Read off the picture, in pixels.
    assert all(x < a < x + width and y < b < y + height for a, b in eyes_and_mouth)
    assert width == height and 120 < width < 240


def test_no_face_is_an_empty_array_of_boxes_that_goes_all_the_way(trained):
    gray = np.full((200, 300), 120, np.uint8)
    boxes = utils.detect_faces(gray, utils.load_face_detector())
    assert boxes.shape == (0, 4)
    faces = utils.crop_faces(gray, boxes)
    assert faces.shape == (0, 48, 48, 1)
    model = utils.load_emotion_model(trained[0])
    probabilities = model.predict(faces)
    assert probabilities.shape == (0, 5)
    frame = np.zeros((200, 300, 3), np.uint8)
    assert np.array_equal(utils.annotate_frame(frame, boxes, utils.choose_labels(probabilities, model.classes)), frame)


def test_an_opencv_without_cascades_names_the_pin(monkeypatch):
    monkeypatch.delattr(cv2, "CascadeClassifier")
    with pytest.raises(ValueError, match=r"opencv-python>=4.10,<5"):
        utils.load_face_detector()


@pytest.mark.parametrize("part", [0, 0.5])
def test_a_damaged_cascade_is_named(monkeypatch, tmp_path, part):
    content = (Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml").read_text()
    cascade = tmp_path / "haarcascade_frontalface_default.xml"
    cascade.write_text(content[: int(part * len(content))])
    monkeypatch.setattr(cv2.data, "__path__", [str(tmp_path)])
    with pytest.raises(ValueError, match="damaged .*haarcascade"):
        utils.load_face_detector()


def test_a_label_under_the_confidence_asked_for_is_uncertain():
    probabilities = np.array([[0.7, 0.3], [0.45, 0.55]], np.float32)
    labels = utils.choose_labels(probabilities, ("Happy", "Sad"), min_confidence=0.6)
    assert [label for label, _ in labels] == ["Happy", utils.UNCERTAIN]
    assert [confidence for _, confidence in labels] == pytest.approx([0.7, 0.55])


@pytest.mark.parametrize("size", [(180, 320), (480, 640), (1080, 1920)])
@pytest.mark.parametrize("corner", [(0, 0), (0.9, 0.9), (0.4, 0.4)])
def test_a_drawing_changes_a_copy_and_shows_box_and_label(size, corner):
    frame = np.full((*size, 3), 200, np.uint8)
    box = [int(corner[0] * size[1]), int(corner[1] * size[0]), size[0] // 4, size[0] // 4]
    drawn = utils.annotate_frame(frame, np.array([box]), [("Happy", 0.83)])
    assert (frame == 200).all()
    color = np.array(utils.EMOTION_COLORS["Happy"][::-1])
    assert (drawn == color).all(axis=-1).sum() > 200  # The bar behind the label lies within the frame.
    assert (drawn.max(axis=-1) < 120).sum() > 20  # Its black letters.
    window.put_notes(frame, ["30 frames/s", "q  quit"])
    assert (frame == 40).all(axis=-1).sum() > 200  # The notes' bars.
