"""Faces over time: found fast, kept through misses, their probabilities averaged; used by webcam_demo.py.

A full scan of a frame takes the cascade 100 ms, so the scan is shared out over frames. In every frame each known face
is searched only around the place where it should be, and only at its size, which takes 1 ms.
"""

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

import utils


class View(NamedTuple):
    """How a head is held, which decides how the cascades find it."""

    angle: float = 0.0  # Degrees by which it is tilted clockwise.
    profile: bool = False
    flipped: bool = False  # A profile that looks to the right of the picture.


UPRIGHT, PROFILES = View(), (View(profile=True), View(profile=True, flipped=True))
TILT_STEP = 25  # Degrees; the frontal cascade itself finds faces that are tilted up to 15.
TILTS = (View(-TILT_STEP), View(TILT_STEP))
MAX_TILT = 50  # Degrees.

# The scan. Scale 1 is a frame of 360 lines; each further scale is 1.44 times smaller and takes two sizes of faces.
SCAN_LINES = 360  # A smaller frame is scanned as it is.
WINDOW, SCALE_STEP, SIZE_STEP, SCAN_NEIGHBORS = 24, 1.44, 1.2, 0  # WINDOW: pixels of the cascade's smallest face.
STRIP_ROWS = 30  # A scale is scanned in strips, so that no frame takes long.
# Windows that the cascade looks at in a frame; 1000 take it 0.2 ms, the profile cascade half as much again.
SCAN_BUDGET, SCAN_BUDGET_ALONE = 8_000, 60_000  # With known faces in view, and without.
LARGE = 2  # Scale from which on tilted heads and profiles are scanned for, while nobody is in view.

KNOWN_WIDTH = 48
KNOWN_NEIGHBORS = 2  # Neighbours that a known face needs to remain one.
NEW_PROFILE_NEIGHBORS, PROFILE_NEIGHBORS = 6, 3
NEW_NEIGHBORS = 5
CHECK_EVERY, TRUSTED, DOUBTED = 3, 3, 2
CUT = 25  # Mean change in gray levels, of a thumbnail around its mean, from which on a frame is of another scene.
HOLD = 0.8  # Seconds that a face is still shown when the cascades miss it, while it looks alike.
ALIKE = 0.6  # Correlation of two thumbnails from which on they show the same face in successive frames.
SAME_PERSON = 0.8  # Correlation of two thumbnails from which on a new face is one that was lost.
MEMORY = 1.2  # Seconds that a lost face is searched for where it should be.
THUMBNAIL = 24  # Pixels.
AGILITY, VELOCITY_GAIN = 0.6, 0.15  # How much of a box's surprise moves it, and its velocity: an alpha-beta filter.
SMOOTHING = 0.4  # Seconds: time constant of the average over a face's probabilities.
LOST_PEOPLE = 20


@dataclass
class Track:
    """One face: its number from 1, where it is now, and what is known of it."""

    number: int
    box: np.ndarray  # float (4,): x, y, width, height.
    seen: float  # Seconds: when the face was last found.
    time: float  # Seconds: of `box`, later than `seen` while the face is held.
    thumbnail: np.ndarray  # uint8 (24, 24), when it was last found.
    view: View = UPRIGHT
    held: bool = False  # The cascades miss the face, but its place looks like it.
    hits: int = 1
    passed: int = 1
    failed: int = 0
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))  # Pixels per second.
    probabilities: np.ndarray | None = None
    averaged: float = 0.0  # Seconds: when `probabilities` last took in new ones.

    @property
    def angle(self):
        return self.view.angle

    @property
    def turned(self):
        return self.view.profile


class FaceTracker:
    """Follows the faces of a video.

    Args:
        detector: from `utils.load_face_detector`.
        still: the frames are pictures that have nothing to do with each other: each is scanned, and finely.
    """

    def __init__(self, detector, still=False):
        self.detector, self.still = detector, still
        self.tracks, self.visible, self.lost, self.count = [], [], [], 0
        self.scan = None
        self.sides = itertools.cycle(PROFILES + TILTS)
        self.scene = None
        self.pictures = {}

    def find(self, gray, time_s):
        if self.still:
            return self._find_still(gray, time_s)
        cut = self._is_cut(gray)
        self.pictures = {}
        if cut:
            self.lost, self.tracks, self.scan = self.tracks + self.lost, [], None
        self._follow(gray, time_s)
        self.visible = [t for t in self.tracks if t.seen == time_s or t.held]
        budget = np.inf if cut or self.scan is None else SCAN_BUDGET if self.visible else SCAN_BUDGET_ALONE
        self._scan(gray, time_s, budget)
        self.visible = [t for t in self.tracks if (t.seen == time_s or t.held) and (not t.turned or t.hits > 1)]
        return np.array([np.rint(track.box) for track in self.visible], int).reshape(-1, 4)

    def _find_still(self, gray, time_s):
        boxes = utils.detect_faces(gray, self.detector, max(utils.IMAGE_SIZE, round(gray.shape[0] / 30)))
        self.visible = []
        for box in boxes.astype(float):
            self.count += 1
            self.visible.append(Track(self.count, box, time_s, time_s, None))
        self.tracks = self.visible
        return boxes

    def average(self, probabilities, time_s):
        """Averages the faces' probabilities over time, so that a label does not flicker.

        Args:
            probabilities: float32 (F, C) of the faces that `find` has just returned.
            time_s: the frame's time in seconds.

        Returns:
            float32 (F, C): exponential averages with the time constant `SMOOTHING`, whatever the frame rate.
        """
        for track, new in zip(self.visible, probabilities, strict=True):
            if track.probabilities is None:
                track.probabilities, track.averaged = new, time_s
            elif track.seen == time_s:  # A held face's place may show something else by now.
                weight = 1 - np.exp(-(time_s - track.averaged) / SMOOTHING)
                track.probabilities = (1 - weight) * track.probabilities + weight * new
                track.averaged = time_s
        rows = [track.probabilities for track in self.visible]
        return np.array(rows, np.float32).reshape(probabilities.shape)

    def mirror(self, width):
        """Moves what is known to the other side: from now on the frames, this wide in pixels, are mirrored."""
        self.scene, self.scan = self.scene[:, ::-1], None
        for track in self.tracks:
            track.box[0] = width - track.box[0] - track.box[2]
            track.velocity[0] *= -1
            track.thumbnail = np.ascontiguousarray(track.thumbnail[:, ::-1])
            track.view = View(-track.view.angle, track.view.profile, track.view.profile and not track.view.flipped)

    def numbers(self):
        """Returns the numbers of the faces that `find` has just returned, list of F int."""
        return [track.number for track in self.visible]

    def _is_cut(self, gray):
        scene = cv2.resize(gray, (32, 18), interpolation=cv2.INTER_AREA).astype(float)
        scene -= scene.mean()
        previous, self.scene = self.scene, scene
        return previous is not None and np.abs(scene - previous).mean() > CUT

    def _follow(self, gray, time_s):
        """Moves the known faces to where they are now."""
        found = []
        for track in self.tracks:
            track.box[:2] += track.velocity * (time_s - track.time)
            track.time = time_s
            view, box = self._search(gray, track.box, self._views(track), KNOWN_NEIGHBORS)
            if box is not None:
                thumbnail = cut_thumbnail(gray, box, view)
                found.append((likeness(thumbnail, track.thumbnail), track, view, box, thumbnail))
        taken = []
        for _, track, view, box, thumbnail in sorted(found, key=lambda item: -item[0]):
            if not utils.shares_place(box, taken):
                taken.append(box)
                surprise = box - track.box
                track.velocity += VELOCITY_GAIN * surprise[:2] / max(time_s - track.seen, 1e-3)
                track.box, track.seen, track.view, track.thumbnail = (
                    track.box + AGILITY * surprise,
                    time_s,
                    view,
                    thumbnail,
                )
                track.hits += 1
                if track.passed < TRUSTED and track.hits % CHECK_EVERY == 0 and not view.profile:
                    if utils.search_face(gray, box, self.detector.confirming, 4, view.angle) is not None:
                        track.passed, track.failed = track.passed + 1, 0
                    else:
                        track.failed += 1
        self.tracks = [t for t in self.tracks if t.failed < DOUBTED]
        for track in self.tracks:
            track.held = track.seen < time_s and self._hold(gray, track, time_s, taken)
        self.lost = [t for t in self.tracks if time_s - t.seen > MEMORY and t.hits > 2] + self.lost
        self.lost = self.lost[:LOST_PEOPLE]
        self.tracks = [t for t in self.tracks if time_s - t.seen <= MEMORY]

    def _views(self, track):
        angle = track.angle
        yield View(angle)
        if track.turned:
            yield track.view
        for other in (angle - TILT_STEP, angle + TILT_STEP):
            if abs(other) <= MAX_TILT:
                yield View(other)
        yield from (view for view in PROFILES if view != track.view)

    def _search(self, gray, box, views, neighbors):
        for view in views:
            cascade = self.detector.profile if view.profile else self.detector.frontal
            found = utils.search_face(
                gray,
                box,
                cascade,
                PROFILE_NEIGHBORS if view.profile else neighbors,
                view.angle,
                view.flipped,
                KNOWN_WIDTH,
            )
            if found is not None:
                return view, found
        return None, None

    def _hold(self, gray, track, time_s, taken):
        """Moves a face that the cascades miss to the place nearby that looks most like it."""
        if time_s - track.seen > HOLD:
            return False
        margin = 0.3
        size = round(THUMBNAIL * (1 + 2 * margin))
        patch = utils.cut_square(gray, track.box, size, margin, track.angle)
        scores = cv2.matchTemplate(patch, track.thumbnail, cv2.TM_CCOEFF_NORMED)
        _, best, _, (x, y) = cv2.minMaxLoc(scores)
        if not ALIKE <= best <= 1.01:
            return False
        offset = (np.array([x, y]) - (size - THUMBNAIL) / 2) * track.box[2] / THUMBNAIL
        angle = np.radians(track.angle)
        offset = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ offset
        if utils.shares_place([*(track.box[:2] + offset), *track.box[2:]], taken):
            return False
        track.box[:2] += offset
        return True

    def _scan(self, gray, time_s, budget):
        if self.scan is None:
            self.scan = self._plan(gray.shape)
        alone = not self.visible
        for view, scale, top, bottom, windows in self.scan:
            if view == UPRIGHT or alone:
                self._scan_strip(gray, time_s, view, scale, top, bottom)
                budget -= windows
            if budget <= 0:
                return
        self.scan = self._plan(gray.shape)

    def _plan(self, shape):
        """Yields the parts of one scan, large faces first."""
        for view in (UPRIGHT, next(self.sides)):
            scale = min(1.0, SCAN_LINES / min(shape))
            scales = []
            while min(shape) * scale >= WINDOW:
                scales.append(scale)
                scale /= SCALE_STEP
            for scale in reversed(scales if view == UPRIGHT else scales[LARGE:]):
                height, width = (round(side * scale) for side in shape)
                for top in range(0, max(1, height - WINDOW), STRIP_ROWS):
                    bottom = min(height, top + STRIP_ROWS + 29)
                    windows = (bottom - top - WINDOW) * max(1, width - WINDOW) / 4 * 1.7 * (1.5 if view.profile else 1)
                    yield view, scale, top, bottom, windows

    def _scan_strip(self, gray, time_s, view, scale, top, bottom):
        base_scale = min(1.0, SCAN_LINES / min(gray.shape))
        base = self._picture(gray, view, base_scale)
        ratio = base_scale / scale
        rows = base[round(top * ratio) : round(bottom * ratio)]
        picture = (
            cv2.resize(rows, (round(base.shape[1] / ratio), bottom - top), interpolation=cv2.INTER_AREA)
            if ratio > 1
            else rows
        )
        cascade = self.detector.profile if view.profile else self.detector.frontal
        boxes = cascade.detectMultiScale(picture, SIZE_STEP, SCAN_NEIGHBORS, minSize=(WINDOW,) * 2, maxSize=(29, 29))
        tried = []
        for x, y, width, height in sorted(map(tuple, boxes)):
            if any(utils.shared((x, y, width, height), other) > 0.6 for other in tried):
                continue
            tried.append((x, y, width, height))
            center = np.array([x + width / 2, y + top + height / 2]) / scale
            if view.flipped:
                center[0] = gray.shape[1] - center[0]
            if view.angle:
                center = np.linalg.inv(np.vstack([rotation(gray.shape, view.angle), [0, 0, 1]]))[:2] @ [*center, 1]
            width /= scale
            self._meet(gray, time_s, np.array([*(center - width / 2), width, width]), view)

    def _picture(self, gray, view, scale):
        key = (view, id(gray))
        if key not in self.pictures:
            picture = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray
            if view.angle:
                picture = cv2.warpAffine(picture, rotation(picture.shape, view.angle), picture.shape[::-1])
            if view.flipped:
                picture = np.ascontiguousarray(picture[:, ::-1])
            self.pictures[key] = picture
        return self.pictures[key]

    def _meet(self, gray, time_s, place, view):
        """Adds a face that the scan proposes, if it is one and not known."""
        shown = [track.box for track in self.tracks if track.seen == time_s or track.held]
        if utils.shares_place(place, shown):
            return
        if view.profile:
            box = utils.search_face(gray, place, self.detector.profile, NEW_PROFILE_NEIGHBORS, 0, view.flipped)
        else:
            box = utils.search_face(gray, place, self.detector.frontal, NEW_NEIGHBORS, view.angle)
            if box is not None and utils.search_face(gray, box, self.detector.confirming, 4, view.angle) is None:
                box = None
        if box is None or utils.shares_place(box, shown):
            return
        thumbnail = cut_thumbnail(gray, box, view)
        track = self._recognize(box, thumbnail, time_s)
        if track is None:
            self.count += 1
            track = Track(self.count, box, time_s, time_s, thumbnail)
            self.tracks.append(track)
        track.box, track.seen, track.time, track.thumbnail, track.view, track.velocity = (
            box,
            time_s,
            time_s,
            thumbnail,
            view,
            np.zeros(2),
        )

    def _recognize(self, box, thumbnail, time_s):
        """Returns the track of a lost face that is this one, or None."""
        for track in self.tracks:
            if track.seen < time_s and utils.shared(track.box, box) >= 0.5:
                track.hits += 1
                return track
        away = [track for track in self.tracks if track.seen < time_s and not track.held] + self.lost
        best = max(away, key=lambda track: likeness(track.thumbnail, thumbnail), default=None)
        if best is None or likeness(best.thumbnail, thumbnail) < SAME_PERSON:
            return None
        self.lost = [t for t in self.lost if t is not best]
        if best not in self.tracks:
            self.tracks.append(best)
        return best


def rotation(shape, angle):
    return cv2.getRotationMatrix2D((shape[1] / 2, shape[0] / 2), angle, 1)


def cut_thumbnail(gray, box, view):
    return utils.cut_square(gray, box, THUMBNAIL, 0, view.angle)


def likeness(a, b):
    return float(cv2.matchTemplate(a, b, cv2.TM_CCOEFF_NORMED)[0, 0])
