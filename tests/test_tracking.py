"""Faces keep their numbers, are not lost for speed, and their labels are steady, with the real cascade.

python -m pytest tests/test_tracking.py
"""

import cv2
import numpy as np
import pytest

import sources
import tracking
import utils

FPS = 25


@pytest.fixture(scope="module")
def detector():
    return utils.load_face_detector()


@pytest.fixture(scope="module")
def head(portrait):
    """The photograph's head, gray, 150x190 pixels."""
    return cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY)[60:250, 110:260]


def scene(*placed, size=(360, 640)):
    """Returns a gray frame with heads at (x, y), the later ones in front."""
    frame = np.full(size, 110, np.uint8)
    for picture, x, y in placed:
        left, right = max(0, x), min(size[1], x + picture.shape[1])
        if right > left:
            frame[y : y + picture.shape[0], left:right] = picture[:, left - x : right - x]
    return frame


def follow(tracker, frames):
    """Returns the numbers and boxes that the tracker gives for each frame."""
    return [(tracker.numbers(), boxes) for i, frame in enumerate(frames) for boxes in [tracker.find(frame, i / FPS)]]


def test_a_moving_face_keeps_its_number_and_its_box(detector, head):
    results = follow(tracking.FaceTracker(detector), [scene((head, 20 + 6 * i, 80)) for i in range(60)])
    assert all(numbers == [1] for numbers, _ in results)
    centers = np.array([boxes[0, 0] + boxes[0, 2] / 2 for _, boxes in results])
    expected = 20 + 6 * np.arange(60) + 75
    assert np.abs(centers - expected)[5:].max() < 20  # Pixels; the head is 150 wide.


@pytest.mark.parametrize(("missed", "number"), [(0.3, 1), (tracking.MEMORY + 0.2, 2)])
def test_a_face_keeps_its_number_through_a_short_absence_only(detector, head, missed, number):
    frames = [scene((head, 200, 80))] * 10 + [scene()] * round(missed * FPS) + [scene((head, 204, 80))] * 10
    results = follow(tracking.FaceTracker(detector), frames)
    assert results[0][0] == [1] and results[-1][0] == [number]


def test_two_people_who_cross_keep_their_numbers(detector, head):
    """One walks to the right in front of the other, who walks to the left and is hidden for a moment."""
    small = cv2.resize(head, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    frames = [scene((small, 470 - 8 * i, 110), (head, 20 + 8 * i, 80)) for i in range(56)]
    results = follow(tracking.FaceTracker(detector), frames)
    first, last = (dict(zip(numbers, boxes[:, 2], strict=True)) for numbers, boxes in (results[3], results[-1]))
    assert set(first) == set(last) == {1, 2}
    assert max(first, key=first.get) == max(last, key=last.get)  # The wider box is the same person's.


def test_a_new_scene_takes_its_faces_with_it(detector, head):
    window = scene()
    window[:, 320:] = 230
    results = follow(tracking.FaceTracker(detector), [scene((head, 200, 80))] * 5 + [window] * 3)
    assert [numbers for numbers, _ in results] == [[1]] * 5 + [[]] * 3
    assert all(boxes.shape == (0, 4) for _, boxes in results[5:])


def test_a_lamp_is_no_new_scene(detector, head):
    frames = [scene((head, 200, 80)) // 2, scene((head, 200, 80)) // 2 + 60]
    results = follow(tracking.FaceTracker(detector), [frames[0]] * 5 + [frames[1]] * 5)
    assert [numbers for numbers, _ in results] == [[1]] * 10


def test_mirroring_takes_the_faces_along(detector, head):
    tracker, frame = tracking.FaceTracker(detector), scene((head, 60, 80))
    follow(tracker, [frame] * 5)
    tracker.mirror(640)
    boxes = tracker.find(np.ascontiguousarray(frame[:, ::-1]), 0.2)
    assert tracker.numbers() == [1] and abs(boxes[0, 0] + boxes[0, 2] / 2 - (640 - 135)) < 20  # The head is 150 wide.


def test_pictures_that_have_nothing_to_do_with_each_other_share_no_face(detector, head):
    tracker = tracking.FaceTracker(detector, still=True)
    numbers = [tracker.find(scene((head, 200, 80)), float(i)) is not None and tracker.numbers() for i in range(3)]
    assert numbers == [[1], [2], [3]]


def test_noise_is_no_face(detector):
    noise = np.random.default_rng(0).integers(0, 256, (20, 240, 320), dtype=np.uint8)
    assert all(numbers == [] for numbers, _ in follow(tracking.FaceTracker(detector), noise))


def test_no_face_of_the_bundled_clip_is_lost_for_speed(detector):
    tracker, found, scanned = tracking.FaceTracker(detector), 0, 0
    source = sources.open_source(str(sources.DEMO_CLIP))
    for number, (frame, time_s, _) in enumerate(source.frames()):
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        boxes = tracker.find(gray, time_s)
        if number % 8 == 0:
            faces = utils.detect_faces(gray, detector)
            assert all(tracking.overlaps_any(face, boxes) for face in faces)
            found, scanned = found + len(boxes), scanned + len(faces)
    source.close()
    assert found >= scanned > 30


def visible_track(tracker, time_s):
    """Makes the tracker believe that it found one face."""
    if not tracker.tracks:
        tracker.tracks = [tracking.Track(1, np.array([10.0, 10, 50, 50]), time_s, time_s)]
    tracker.tracks[0].seen = time_s
    tracker.visible = tracker.tracks


@pytest.mark.parametrize("fps", [10, 60])
def test_smoothing_takes_the_same_seconds_at_any_frame_rate(fps):
    """After one time constant of a new answer, 1 - 1/e = 63 % of it has arrived."""
    tracker = tracking.FaceTracker(None)
    visible_track(tracker, 0.0)
    tracker.average(np.array([[1, 0]], np.float32), 0.0)
    for number in range(1, round(tracking.SMOOTHING * fps) + 1):
        visible_track(tracker, number / fps)
        averaged = tracker.average(np.array([[0, 1]], np.float32), number / fps)
    assert averaged[0, 1] == pytest.approx(1 - 1 / np.e, abs=1e-3)
    assert averaged.sum() == pytest.approx(1) and averaged.dtype == np.float32


def test_overlap_of_two_boxes_by_hand():
    """10x10 and 10x10, moved by 5 in x: intersection 50, union 150."""
    assert tracking.overlap((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(1 / 3)
    assert tracking.overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0
