"""Every rule of the tracker, with the real cascades on real portraits.

python -m pytest tests/test_tracking.py
"""

import benchmark_tracking as drawn
import cv2
import numpy as np
import pytest
import skimage.data

import tracking
import utils
import video

FPS = 25


@pytest.fixture(scope="module")
def detector():
    return utils.load_face_detector()


@pytest.fixture(scope="module")
def head(portrait):
    """The photograph's head, gray, 150x190 pixels."""
    return cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY)[60:250, 110:260]


@pytest.fixture(scope="module")
def heads():
    """The heads of the benchmark by name, which can be tilted and turned."""
    return drawn.load_heads()


def scene(*placed, size=(360, 640)):
    """Returns a gray frame with heads at (x, y), the later ones in front."""
    frame = np.full(size, 110, np.uint8)
    for picture, x, y in placed:
        left, right = max(0, x), min(size[1], x + picture.shape[1])
        if right > left:
            frame[y : y + picture.shape[0], left:right] = picture[:, left - x : right - x]
    return frame


def pose(head, tilt=0.0, turn=0.0):
    """Returns a frame with one head of the benchmark, 120 pixels wide, tilted and turned by degrees."""
    frame = np.full((360, 640), 150, np.float32)
    drawn.draw_head(frame, head, drawn.Pose(320, 180, 120, tilt, turn))
    return np.uint8(np.rint(frame))


def follow(tracker, frames):
    """Returns the numbers and boxes of the faces in each frame."""
    found = (tracker.find(frame, i / FPS) for i, frame in enumerate(frames))
    return [([track.track_id for track in tracks], tracking.stack_boxes(tracks)) for tracks in found]


def test_a_moving_face_keeps_its_number_and_its_box(detector, head):
    results = follow(tracking.FaceTracker(detector), [scene((head, 20 + 6 * i, 80)) for i in range(60)])
    assert all(numbers == [1] for numbers, _ in results)
    centers = np.array([boxes[0, 0] + boxes[0, 2] / 2 for _, boxes in results])
    expected = 20 + 6 * np.arange(60) + 75
    assert np.abs(centers - expected)[5:].max() < 20  # Pixels; the head is 150 wide.


def test_a_face_far_smaller_than_the_frame_is_found(detector, head):
    small = cv2.resize(head, None, fx=0.18, fy=0.18, interpolation=cv2.INTER_AREA)  # The face is 31 pixels wide.
    results = follow(tracking.FaceTracker(detector), [scene((small, 300, 150))] * 3)
    assert results[-1][0] == [1] and results[-1][1][0, 2] < 40


@pytest.mark.parametrize("gain", [1, 0.25])
@pytest.mark.parametrize("name", ["collins", "hopper", "collins, dark-skinned", "hopper, dark-skinned", 26, 64, 83, 88])
def test_light_and_dark_faces_are_found_within_three_frames(detector, heads, name, gain):
    """The numbers are dark-skinned people of skimage.data.lfw_subset(); a gain of 0.25 is a dim room."""
    frame = np.uint8(np.rint(gain * pose(heads[name]).astype(float)))
    assert follow(tracking.FaceTracker(detector), [frame] * 3)[-1][0] == [1]


def test_a_face_that_appears_is_found_within_four_frames(detector, heads):
    """The wall alone is no cut, so the face is found by the scan in parts."""
    wall = np.full((360, 640), 150, np.uint8)
    for waiting in range(20, 26):  # The scan is at another strip each time.
        results = follow(tracking.FaceTracker(detector), [wall] * waiting + [pose(heads["hopper"])] * 4)
        assert results[-1][0] == [1]


def test_a_face_that_the_edge_of_the_frame_cuts_off_is_found(detector, heads):
    frame = np.full((360, 640), 150, np.float32)
    drawn.draw_head(frame, heads["hopper"], drawn.Pose(320, 130, 300))  # The forehead is above the frame.
    ((numbers, boxes),) = follow(tracking.FaceTracker(detector), [np.uint8(frame)])
    assert numbers == [1] and drawn.overlap(boxes[0], (170, -20, 300, 300)) > 0.6


@pytest.mark.parametrize("missed", [0.3, tracking.MEMORY + 0.2])
def test_a_face_that_comes_back_keeps_its_number(detector, head, missed):
    frames = [scene((head, 200, 80))] * 10 + [scene()] * round(missed * FPS) + [scene((head, 340, 80))] * 10
    results = follow(tracking.FaceTracker(detector), frames)
    assert results[0][0] == [1] and results[-1][0] == [1]


def test_another_person_gets_another_number(detector, heads):
    frames = [pose(heads["hopper"])] * 5 + [scene()] * 40 + [pose(heads["collins"])] * 10
    results = follow(tracking.FaceTracker(detector), frames)
    assert results[0][0] == [1] and results[-1][0] == [2]


def test_two_people_who_cross_keep_their_numbers(detector, head):
    """One walks to the right in front of the other, who walks to the left and is hidden for a moment."""
    small = cv2.resize(head, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    frames = [scene((small, 470 - 8 * i, 110), (head, 20 + 8 * i, 80)) for i in range(56)]
    results = follow(tracking.FaceTracker(detector), frames)
    first, last = (dict(zip(numbers, boxes[:, 2], strict=True)) for numbers, boxes in (results[3], results[-1]))
    assert set(first) == set(last) == {1, 2}
    assert max(first, key=first.get) == max(last, key=last.get)  # The wider box is the same person's.


def test_two_tracks_never_share_a_face(detector, head):
    tracker = tracking.FaceTracker(detector)
    small = cv2.resize(head, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    for i in range(56):
        tracks = tracker.find(scene((small, 470 - 8 * i, 110), (head, 20 + 8 * i, 80)), i / FPS)
        boxes = tracking.stack_boxes(tracks)
        assert not any(utils.overlaps_any(box, boxes[:k]) for k, box in enumerate(boxes))


@pytest.mark.parametrize("tilt", [-28, 28])
def test_a_face_that_tilts_is_followed_with_its_angle(detector, heads, tilt):
    tracker = tracking.FaceTracker(detector)
    results = follow(tracker, [pose(heads["hopper"], tilt=tilt * min(1, i / 15)) for i in range(25)])
    assert all(numbers == [1] for numbers, _ in results)
    assert tracker.tracks[0].view == tracking.View(np.sign(tilt) * tracking.TILT)


@pytest.mark.parametrize("tilt", [-25, 25])
def test_a_face_that_is_tilted_from_the_start_is_found(detector, heads, tilt):
    tracker = tracking.FaceTracker(detector)
    follow(tracker, [pose(heads["collins"], tilt=tilt)] * 40)
    assert [track.view.angle for track in tracker.tracks if track.shown] == [tilt]


@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize(("name", "turn"), [("collins, dark-skinned", 55), ("collins, dark-skinned", 50)])
def test_a_profile_is_found_in_its_view(detector, heads, name, turn, is_flipped):
    tracker, frame = tracking.FaceTracker(detector), pose(heads[name], turn=turn)
    frame = cv2.flip(frame, 1) if is_flipped else frame
    views = [track.view for i in range(60) for track in tracker.find(frame, i / FPS)]
    assert tracking.PROFILES[not is_flipped] in views and tracking.PROFILES[is_flipped] not in views


def known_face(detector, head, tilt=0):
    """Returns a tracker that knows one face, and its track."""
    tracker = tracking.FaceTracker(detector)
    (track,) = [tracker.find(pose(head, tilt), i / FPS) for i in range(10)][-1]
    return tracker, track


@pytest.mark.parametrize("view", [tracking.View(50), tracking.View(-25), *tracking.PROFILES])
def test_an_upright_face_overrules_a_tilted_or_profile_box(detector, heads, view):
    """The box is half too large and at a wrong angle."""
    tracker, track = known_face(detector, heads["hopper"])
    track.view, track.box = view, utils.square_around(utils.middle(track.box), 1.5 * track.box[2])
    (track,) = tracker.find(pose(heads["hopper"]), 10 / FPS)
    assert track.view == tracking.UPRIGHT and not track.held
    for i in (11, 12):
        (track,) = tracker.find(pose(heads["hopper"]), i / FPS)
    assert drawn.overlap(track.box, (260, 120, 120, 120)) > 0.7


@pytest.mark.parametrize("tilt", [-35, 35])
def test_a_tilt_that_fits_is_not_overruled(detector, heads, tilt):
    tracker, _ = known_face(detector, heads["collins"], tilt)
    angles = {t.view.angle for i in range(40) for t in tracker.find(pose(heads["collins"], tilt), 1 + i / FPS)}
    assert angles <= {np.sign(tilt) * 25.0, np.sign(tilt) * 50.0}


@pytest.mark.parametrize(("scale", "shift"), [(1.3, 0), (1, 0.25), (0.75, 0), (1.3, 0.2)])
def test_a_box_that_drifted_is_corrected(detector, heads, scale, shift):
    tracker, track = known_face(detector, heads["collins"])
    right = track.box.copy()
    track.box = utils.square_around(utils.middle(right), scale * right[2]) + (shift * right[2], 0, 0, 0)
    for i in range(10, 20):
        (track,) = tracker.find(pose(heads["collins"]), i / FPS)
    assert drawn.overlap(track.box, right) > 0.8


def test_the_box_of_a_face_at_rest_keeps_its_size(detector, heads):
    """The search at a known place must not prefer larger boxes, because each search begins where the last one ended."""
    results = follow(tracking.FaceTracker(detector), [pose(heads["hopper"])] * 60)
    widths = np.array([boxes[0, 2] for _, boxes in results])
    assert np.abs(widths / 120 - 1).max() < 0.15  # The face is 120 pixels wide.


def test_a_face_at_rest_is_searched_for_only_now_and_then(detector, head, monkeypatch):
    tracker, searches, search = tracking.FaceTracker(detector), [], utils.search_face
    monkeypatch.setattr(utils, "search_face", lambda *args, **more: searches.append(args) or search(*args, **more))
    at_rest, moved = scene((head, 240, 80)), scene((head, 262, 80))
    for number in range(75):
        if number == 50:
            searches.clear()
        (before,) = [track.box.copy() for track in tracker.find(at_rest, number / FPS)]
    assert 4 <= len(searches) <= 6  # In the last second, one for each CHECK_INTERVAL.
    (track,) = tracker.find(moved, 75 / FPS)
    assert track.box[0] - before[0] > 10  # The face is 22 pixels to the right; its path is smoothed.


def test_a_box_grows_no_faster_than_a_head_can(detector):
    box, blank = np.array([100.0, 100, 80, 80]), np.zeros((24, 24), np.uint8)
    track = tracking.Track(box, tracking.UPRIGHT, blank, seen=0.0, time=1 / FPS)
    track.move(np.array([60.0, 60, 160, 160]), tracking.UPRIGHT)
    assert track.box[2] == pytest.approx(80 * tracking.MAX_GROWTH ** (1 / FPS))


def test_a_face_that_moves_far_is_found_again_at_once(detector, heads):
    tracker, track = known_face(detector, heads["hopper"])
    moved = np.roll(pose(heads["hopper"]), 70, axis=1)  # More than half of the face's width.
    (found,) = tracker.find(moved, 10 / FPS)
    assert found is track and not found.held and drawn.overlap(found.box, (330, 120, 120, 120)) > 0.5


def test_a_face_that_speaks_and_tilts_slightly_is_never_lost(detector, heads):
    clip = next(clip for clip in drawn.CLIPS if clip.name == "speaks, tilts slightly and comes back")
    tracker, overlaps = tracking.FaceTracker(detector), []
    for i, (frame, ((face, *_),)) in enumerate(drawn.film(clip, heads)):
        (track,) = tracker.find(frame, i / FPS)
        overlaps.append(drawn.overlap(track.box, face))
    assert min(overlaps) > 0.6 and track.view == tracking.UPRIGHT


def test_eyes_and_mouth_of_a_large_face_are_not_faces(detector, heads):
    frame = np.full((720, 1280), 150, np.float32)
    drawn.draw_head(frame, heads["hopper"], drawn.Pose(640, 360, 560))
    results = follow(tracking.FaceTracker(detector), [np.uint8(frame)] * 12)
    assert all(numbers == [1] for numbers, _ in results)


def test_a_face_is_held_only_while_its_place_looks_like_it(detector, head):
    """Once the face is covered, its box is gone in the next frame, and not after `HOLD` seconds."""
    tracker = tracking.FaceTracker(detector)
    follow(tracker, [scene((head, 200, 80))] * 10)
    covered = scene((head, 200, 80))
    covered[80:270, 200:350] = skimage.data.brick()[:190, :150]
    assert tracker.find(covered, 10 / FPS) == []


def test_a_face_that_the_cascades_miss_is_held_where_it_moves(detector, head):
    tracker = tracking.FaceTracker(detector)
    before = follow(tracker, [scene((head, 200, 80))] * 10)[-1][1]
    blind = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_russian_plate_number.xml")
    tracker.detector = detector._replace(frontal=blind, confirming=blind, profile=blind)
    tracker.scan.detector = tracker.detector
    (track,) = tracker.find(scene((head, 212, 84)), 10 / FPS)
    assert track.track_id == 1 and track.held
    assert np.abs(track.box - before - (12, 4, 0, 0)).max() <= 5  # Pixels; the head is 150 wide.
    held = [[track.held for track in tracker.find(scene((head, 212, 84)), i / FPS)] for i in range(11, 40)]
    assert held == [[True]] * (int(0.3 * FPS) - 1) + [[]] * 23  # No more than 0.3 s without a measurement.


@pytest.mark.parametrize("level", [0, 110])
def test_no_face_is_held_on_a_plain_picture(detector, head, level):
    """The face fades to one gray level within five frames, too slowly for a cut."""
    face, plain = scene((head, 200, 80)), np.full((360, 640), level, np.float32)
    fade = [np.uint8(np.rint(plain + (face - plain) * max(0, 1 - i / 5))) for i in range(12)]
    results = follow(tracking.FaceTracker(detector), [face] * 5 + fade)
    assert results[4][0] == [1] and all(numbers == [] for numbers, _ in results[11:])


def test_a_new_scene_takes_its_faces_with_it(detector, head):
    window = scene()
    window[:, 320:] = 230
    results = follow(tracking.FaceTracker(detector), [scene((head, 200, 80))] * 5 + [window] * 3)
    assert [numbers for numbers, _ in results] == [[1]] * 5 + [[]] * 3
    assert all(boxes.shape == (0, 4) for _, boxes in results[5:])


def test_brightness_change_is_not_a_cut(detector, head):
    frames = [scene((head, 200, 80)) // 2, scene((head, 200, 80)) // 2 + 60]
    results = follow(tracking.FaceTracker(detector), [frames[0]] * 5 + [frames[1]] * 5)
    assert [numbers for numbers, _ in results] == [[1]] * 10


def test_mirroring_takes_the_faces_along(detector, head):
    tracker, frame = tracking.FaceTracker(detector), scene((head, 60, 80))
    tracker.mirror(640)  # Before the first frame there is nothing to move.
    follow(tracker, [frame] * 5)
    tracker.mirror(640)
    (track,) = tracker.find(np.ascontiguousarray(frame[:, ::-1]), 0.2)
    assert track.track_id == 1 and abs(track.box[0] + track.box[2] / 2 - (640 - 135)) < 20  # The head is 150 wide.


def test_faces_of_a_still_picture_are_numbered_from_1(detector, head):
    tracks = tracking.find_still(scene((head, 80, 80), (head, 400, 80)), detector)
    assert [track.track_id for track in tracks] == [1, 2]


@pytest.mark.parametrize("tilt", [-35, 35])
def test_a_tilted_face_is_found_in_a_still_picture(detector, heads, tilt):
    (track,) = tracking.find_still(pose(heads["collins"], tilt=tilt), detector)
    assert track.view.angle in (np.sign(tilt) * 25, np.sign(tilt) * 50)
    assert np.abs(track.box - (260, 120, 120, 120)).max() < 30  # Pixels; the face is 120 wide.


@pytest.mark.parametrize("name", ["brick", "coffee", "grass", "page", "text"])
def test_textures_are_not_faces(detector, name):
    picture = getattr(skimage.data, name)()
    picture = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    results = follow(tracking.FaceTracker(detector), [picture[i:, i:] for i in range(12)])
    assert all(numbers == [] for numbers, _ in results)
    assert tracking.find_still(picture, detector) == []


def test_noise_is_not_a_face(detector):
    noise = np.random.default_rng(0).integers(0, 256, (20, 240, 320), dtype=np.uint8)
    assert all(numbers == [] for numbers, _ in follow(tracking.FaceTracker(detector), noise))


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (24, 24), (400, 30), (1, 99_000), (90_000, 30)])
def test_a_frame_of_any_size_is_searched(detector, shape):
    gray = np.zeros(shape, np.uint8)
    assert tracking.FaceTracker(detector).find(gray, 0.0) == tracking.find_still(gray, detector) == []


def scanned_strips(detector, monkeypatch, shape, budget):
    """Yields the strips that are scanned in each frame, in which nothing is found, and without the cascades' time."""
    scan, strips = tracking.Scan(detector), []
    monkeypatch.setattr(scan, "_scan_strip", lambda strip, *picture: strips.append(strip) or ())
    while True:
        strips.clear()
        list(scan.propose(np.zeros(shape, np.uint8), budget, lambda: True))
        yield list(strips)


def test_a_scan_is_finished_in_the_frames_that_follow(detector, monkeypatch):
    """With a small budget the strips of all scales come in turn, the large faces first and most often."""
    frames, strips = scanned_strips(detector, monkeypatch, (360, 640), tracking.BUDGET), []
    while not strips or strips[-1].view == tracking.UPRIGHT:
        new = next(frames)
        assert new
        strips += new
    upright = [strip for strip in strips if strip.view == tracking.UPRIGHT]
    small = [strip for strip in upright if strip.scale > 0.5]
    assert len(set(small)) == len(small) and small[-1].scale == 1.0
    assert [strip.scale for strip in small] == sorted(strip.scale for strip in small)
    assert set(upright) == set(tracking.plan_strips((360, 640), [tracking.UPRIGHT]))


def test_tilted_heads_and_profiles_of_both_sides_are_scanned_for(detector, monkeypatch):
    frames, views = scanned_strips(detector, monkeypatch, (360, 640), tracking.BUDGET), set()
    for _ in range(100):
        views |= {strip.view for strip in next(frames)}
    assert views == {tracking.UPRIGHT, *tracking.VIEW_PAIRS[0], *tracking.VIEW_PAIRS[1]}


@pytest.mark.parametrize("shape", [(480, 640), (720, 1280), (1280, 720), (3000, 4000)])
@pytest.mark.parametrize("budget", [tracking.BUDGET, tracking.IDLE_BUDGET])
def test_a_frame_costs_at_most_one_strip_more_than_the_budget(detector, monkeypatch, shape, budget):
    frames = scanned_strips(detector, monkeypatch, shape, budget)
    most = 1.1 * (tracking.STRIP_WINDOWS + tracking.PADDED_STRIP_COST)  # Rows are rounded, so strips differ a little.
    assert all(sum(strip.cost for strip in next(frames)) < budget + most for _ in range(20))


def test_the_bundled_clip_shows_two_people_who_tilt_turn_and_leave(detector):
    """Its shots: Collins, both, nobody, and Hopper who tilts, turns, leaves and comes back; see data/make_demo.py."""
    tracker, shown, angles = tracking.FaceTracker(detector), [], []
    with video.open_source(str(video.DEMO_CLIP)) as source:
        for frame, time_s, *_ in source.frames():
            tracks = tracker.find(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), time_s)
            shown.append([track.track_id for track in tracks])
            angles.append([track.view.angle for track in tracks])
    assert len(shown) == 255 and tracker.count == 2
    assert shown[:45] == [[1]] * 45 and shown[46:90] == [[1, 2]] * 44
    assert shown[90:110] == [[]] * 20 and shown[110:195] == [[2]] * 85
    assert angles[155] == [-tracking.TILT]
    assert shown[219] == [] and shown[-1] == [2]


@pytest.mark.parametrize("fps", [10, 60])
def test_smoothing_takes_the_same_seconds_at_any_frame_rate(fps):
    """After one time constant of a new answer, 1 - 1/e = 63% of it has arrived."""
    track = tracking.Track(np.zeros(4), tracking.UPRIGHT, np.zeros((24, 24), np.uint8), 0.0, 0.0)
    track.average(np.array([1, 0], np.float32), 0.0)
    for number in range(1, round(tracking.SMOOTHING * fps) + 1):
        averaged = track.average(np.array([0, 1], np.float32), number / fps)
    assert averaged[1] == pytest.approx(1 - 1 / np.e, abs=1e-3)
    assert averaged.sum() == pytest.approx(1) and averaged.dtype == np.float32


def test_similarity_ignores_brightness(head):
    thumbnail = cv2.resize(head, (24, 24), interpolation=cv2.INTER_AREA)
    assert tracking.similarity(thumbnail, thumbnail // 2 + 30) > 0.99
    assert tracking.similarity(thumbnail, np.full_like(thumbnail, 90)) == 0
    assert tracking.similarity(thumbnail, 255 - thumbnail) == pytest.approx(-1, abs=1e-3)


def test_mirroring_turns_tilts_and_profiles_around(detector):
    tracker, thumbnail = tracking.FaceTracker(detector), np.zeros((24, 24), np.uint8)
    tracker.find(scene(), 0.0)
    views = [tracking.View(25.0), *tracking.PROFILES]
    tracker.tracks = [tracking.Track(np.array([10.0, 20, 30, 30]), view, thumbnail, 0.0, 0.0) for view in views]
    tracker.mirror(640)
    assert [track.view for track in tracker.tracks] == [tracking.View(-25.0), *tracking.PROFILES[::-1]]
