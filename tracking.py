"""Faces over time: found fast, kept through misses, their probabilities averaged; used by webcam_demo.py.

A full scan of a frame takes the cascade 100 ms. So each frame is scanned in part only, and each known face is searched
only around the place where it should be, at about its size, which takes 1 ms. A scan proposes many places; a face is
what two cascades find there.
"""

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

import utils

# The scan. At scale 0 the frame has 360 lines; at each further scale it is reduced once more.
SCAN_LINES = 360  # of the shorter side; a smaller frame is scanned as it is
SCALE_STEP = 1.44
WINDOW = 24  # pixels of the smallest face that the cascades find
LARGEST = 29  # pixels of the largest face looked for at one scale: WINDOW and WINDOW * SIZE_STEP
SIZE_STEP = 1.2
STRIP_ROWS = 30  # A scale is scanned in strips, so that no frame takes long.
STRIDE = 4  # The cascades look at every second column of every second row.
# Windows scanned in a frame, where a face is shown and where none is. A thousand take 0.1 to 0.2 ms.
BUDGET, BUDGET_ALONE = 8_000, 60_000
PROFILE_COST = 1.5  # of the frontal cascade's time
SIDE_SCALE = 2  # Tilted heads and profiles are scanned for from this scale on: smaller ones cost too much.

# Known faces.
KNOWN_WIDTH, KNOWN_SIZES, KNOWN_NEIGHBORS = 48, (0.8, 1.25), 2  # see utils.search_face
TILT = 25  # degrees between the angles at which a lost face is searched; the cascade bears 15 by itself
MAX_TILT = 50  # degrees
HOLD = 0.8  # seconds that a face is shown while the cascades miss it, if it looks alike
SAME_PLACE = 0.2  # share of the smaller box that a lost face and a new one have in common, if they are the same
MEMORY = 1.2  # seconds that a lost face is searched for where it should be
LOST_PEOPLE = 20  # faces of which the thumbnail is kept after that
AGILITY, VELOCITY_GAIN = 0.6, 0.15  # of the difference between a box and its prediction: an alpha-beta filter
SMOOTHING = 0.4  # seconds: time constant of the average over a face's probabilities
CUT = 25  # gray levels: mean change of a 32x18 thumbnail that makes a frame the first of another scene

# New faces.
NEW_NEIGHBORS, NEW_PROFILE_NEIGHBORS, PROFILE_NEIGHBORS = 5, 7, 3
# Detections of the confirming cascade, summed over frames. A face has about 20 in one frame, anything else rarely 10.
SHOWN_EVIDENCE, TRUSTED_EVIDENCE = 10, 30
MAX_FAILURES = 2  # confirmations in a row that fail before a new face is forgotten
MIN_HITS = 3  # frames in which a tilted face or a profile must be found before it is shown

# Correlations of two thumbnails, -1..1.
THUMBNAIL = 24  # pixels
ALIKE_HELD = 0.6  # A held face's place looks like the face.
ALIKE_TILTED = 0.4  # What is found at another angle is still this face.
HELD_CONTRAST = 0.5  # of the thumbnail's contrast, which a held face's place must have
MIN_CONTRAST = 1  # grey level: standard deviation of a thumbnail, below which it is plain and like nothing
ALIKE_PERSON = 0.8  # A new face is a person who was lost.


class View(NamedTuple):
    """How a head is held, which decides how the cascades find it."""

    angle: float = 0.0  # degrees by which it is tilted clockwise
    profile: bool = False
    flipped: bool = False  # The cascade knows one side; the other one is found in the mirror image.


UPRIGHT, PROFILES = View(), (View(profile=True), View(profile=True, flipped=True))
SIDES = (PROFILES[0], View(-TILT), PROFILES[1], View(TILT))


@dataclass(eq=False)  # Two tracks are equal only if they are the same one.
class Track:
    """One face: where it is now, and what is known of it."""

    box: np.ndarray  # float (4,): x, y, width, height
    view: View
    thumbnail: np.ndarray | None  # uint8 (24, 24), upright, from when the face was last found
    seen: float  # seconds: when the face was last found
    time: float  # seconds: of `box`, later than `seen` while the face is held
    number: int = 0  # from 1, given when the face is first shown
    held: bool = False  # The cascades miss the face, but its place looks like it.
    hits: int = 0  # frames in which it was found
    evidence: int = 0
    failures: int = 0
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))  # pixels per second
    probabilities: np.ndarray | None = None
    averaged: float = 0.0  # seconds: when `probabilities` last took in new ones

    @property
    def angle(self):
        """Degrees by which the head is tilted clockwise; 0 for a profile."""
        return self.view.angle

    @property
    def turned(self):
        """Whether only the profile cascade finds the face."""
        return self.view.profile

    def views(self):
        """Returns the views in which to search for the face, likeliest first."""
        tilts = [View(self.angle + change) for change in (0, -TILT, TILT) if abs(self.angle + change) <= MAX_TILT]
        return sorted([*tilts, *PROFILES], key=lambda view: view != self.view)

    def is_known(self):
        """Returns whether there is enough evidence to show the face."""
        if self.view != UPRIGHT and not self.number and self.hits < MIN_HITS:
            return False
        return self.turned or self.evidence >= SHOWN_EVIDENCE or self.number > 0


class FaceTracker:
    """Follows the faces of a video.

    Args:
        detector: from `utils.load_face_detector`.
        still: the frames are pictures that have nothing to do with each other: each is scanned, and finely.

    Attributes:
        visible: list of Track, the faces that `find` has just returned, in the same order.
    """

    def __init__(self, detector, still=False):
        self.detector, self.still, self.scan = detector, still, Scan(detector)
        self.tracks, self.visible, self.lost, self.count = [], [], [], 0
        self.scene = None  # float (18, 32): the frame before, reduced

    def find(self, gray, time_s):
        """Finds the faces of the next frame.

        Args:
            gray: uint8 (H, W).
            time_s: the frame's time in seconds, which never goes back.

        Returns:
            boxes: int (F, 4), in the order of `visible`, which is that of the numbers.
        """
        if self.still:
            smallest = max(utils.IMAGE_SIZE, round(gray.shape[0] / 30))
            boxes = utils.detect_faces(gray, self.detector, smallest).astype(float)
            self.tracks = [Track(box, UPRIGHT, None, time_s, time_s, evidence=SHOWN_EVIDENCE) for box in boxes]
        else:
            self._find_moving(gray, time_s)
        self.visible = self._shown(time_s)
        for track in self.visible:
            self._give_number(track)
        self.visible.sort(key=lambda track: track.number)
        return np.array([np.rint(track.box) for track in self.visible], int).reshape(-1, 4)

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
            elif track.seen == time_s:  # A held face may be half hidden.
                weight = 1 - np.exp(-(time_s - track.averaged) / SMOOTHING)
                track.probabilities = (1 - weight) * track.probabilities + weight * new
                track.averaged = time_s
        rows = [track.probabilities for track in self.visible]
        return np.array(rows, np.float32).reshape(probabilities.shape)

    def mirror(self, width):
        """Moves what is known to the other side: from now on the frames, this wide in pixels, are mirrored."""
        if self.scene is None:  # No frame was seen yet, or the frames are stills.
            return
        self.scene = self.scene[:, ::-1]
        for track in self.tracks + self.lost:
            track.box[0] = width - track.box[0] - track.box[2]
            track.velocity[0] *= -1
            track.thumbnail = np.ascontiguousarray(track.thumbnail[:, ::-1])
            track.view = View(-track.angle, track.turned, track.turned and not track.view.flipped)

    def numbers(self):
        """Returns the numbers of the faces that `find` has just returned, list of F int."""
        return [track.number for track in self.visible]

    def _shown(self, time_s):
        """Returns the tracks whose face is in the frame."""
        return [track for track in self.tracks if track.is_known() and (track.held or track.seen == time_s)]

    def _find_moving(self, gray, time_s):
        """Updates the tracks by the next frame of a video."""
        is_new_scene = self._is_cut(gray)
        if is_new_scene:
            self._forget(self.tracks)
        self._follow(gray, time_s)
        self._forget([track for track in self.tracks if time_s - track.seen > MEMORY])
        budget = np.inf if is_new_scene else BUDGET if self._shown(time_s) else BUDGET_ALONE
        for place, view in self.scan.propose(gray, budget, lambda: not self._shown(time_s)):
            self._meet(gray, place, view, time_s)

    def _is_cut(self, gray):
        """Returns whether a frame belongs to another scene than the one before, or is the first."""
        scene = cv2.resize(gray, (32, 18), interpolation=cv2.INTER_AREA).astype(float)
        scene -= scene.mean()  # A change of brightness, by a lamp or the camera's exposure, is not a cut.
        previous, self.scene = self.scene, scene
        return previous is None or np.abs(scene - previous).mean() > CUT

    def _forget(self, tracks):
        """Stops following these tracks, and keeps the people among them to recognise them."""
        self.tracks = [track for track in self.tracks if track not in tracks]
        self.lost = ([track for track in tracks if track.number] + self.lost)[:LOST_PEOPLE]

    def _follow(self, gray, time_s):
        """Moves each track to where its face is in this frame."""
        finds = []
        for track in self.tracks:
            track.box[:2] += track.velocity * (time_s - track.time)
            track.time = time_s
            finds += [(track, *find) for find in [self._search(gray, track)] if find]
        # Where one face covers another, both tracks find the one in front: it belongs to the track it looks like.
        taken = []
        for track, box, view, thumbnail, _ in sorted(finds, key=lambda find: -find[-1]):
            surprise = box - track.box
            moved = track.box + AGILITY * surprise
            if not utils.shares_place(moved, taken):
                taken.append(moved)
                track.velocity += VELOCITY_GAIN * surprise[:2] / max(time_s - track.seen, 1e-3)
                track.box, track.view, track.seen, track.hits = moved, view, time_s, track.hits + 1
                if is_within(box, gray.shape):  # Half a face is of no use to recognise the person who comes back.
                    track.thumbnail = thumbnail
                self._confirm(gray, track)
        self.tracks = [track for track in self.tracks if track.failures < MAX_FAILURES]
        for track in self.tracks:
            track.held = (
                0 < time_s - track.seen <= HOLD
                and self._hold(gray, track)
                and is_within((*(track.box[:2] + track.box[2:] / 2), 0, 0), gray.shape)
                and not utils.shares_place(track.box, taken)
            )

    def _search(self, gray, track):
        """Returns box, view, thumbnail and likeness of a known face; None if the cascades miss it."""
        for view in track.views():
            if view.profile:
                box, _ = utils.search_face(gray, track.box, self.detector.profile, PROFILE_NEIGHBORS, 0, view.flipped)
            else:
                box, _ = utils.search_face(
                    gray, track.box, self.detector.frontal, KNOWN_NEIGHBORS, view.angle, False, KNOWN_WIDTH, KNOWN_SIZES
                )
            if box is not None:
                thumbnail = utils.cut_square(gray, box, THUMBNAIL, angle=view.angle)
                alike = correlation(thumbnail, track.thumbnail)
                # Turned by an angle, a shoulder or a sleeve can pass for a face.
                if view.angle == track.angle or view.profile or alike >= ALIKE_TILTED:
                    return box, view, thumbnail, alike
        return None

    def _confirm(self, gray, track):
        """Collects evidence that a new track is a face; what is not a face passes now and then, but not each time."""
        if track.turned or track.evidence >= TRUSTED_EVIDENCE:
            return
        box, agreeing = utils.search_face(
            gray, track.box, self.detector.confirming, utils.CONFIRMING_NEIGHBORS, track.angle
        )
        track.evidence += agreeing
        track.failures = track.failures + 1 if box is None else 0

    def _hold(self, gray, track):
        """Moves a face that the cascades miss to the place nearby that looks like it; returns whether there is one."""
        margin = round(THUMBNAIL * utils.SEARCH_MARGIN)
        size = THUMBNAIL + 2 * margin
        patch = utils.cut_square(gray, track.box, size, margin / THUMBNAIL, track.angle)
        correlations = cv2.matchTemplate(patch, track.thumbnail, cv2.TM_CCOEFF_NORMED)
        windows = np.lib.stride_tricks.sliding_window_view(patch, (THUMBNAIL, THUMBNAIL))
        # A nearly plain place correlates by the little that is left of the face, a plain one by OpenCV's definition.
        correlations[windows.std(axis=(2, 3)) < max(MIN_CONTRAST, HELD_CONTRAST * track.thumbnail.std())] = 0
        _, alike, _, place = cv2.minMaxLoc(correlations)
        if alike < ALIKE_HELD:
            return False
        offset = (np.array(place) - margin) * track.box[2] / THUMBNAIL
        angle = np.radians(track.angle)
        track.box[:2] += np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ offset
        return True

    def _meet(self, gray, place, view, time_s):
        """Begins a track where the scan proposes a face, if the cascades agree and nothing is followed there."""
        followed = [track.box for track in self.tracks if track.held or track.seen == time_s]
        if utils.shares_place(place, followed):
            return
        cascade = self.detector.profile if view.profile else self.detector.frontal
        neighbors = NEW_PROFILE_NEIGHBORS if view.profile else NEW_NEIGHBORS
        box, _ = utils.search_face(gray, place, cascade, neighbors, view.angle, view.flipped)
        if box is None or utils.shares_place(box, followed):
            return
        track = Track(box, view, utils.cut_square(gray, box, THUMBNAIL, angle=view.angle), time_s, time_s, hits=1)
        self._confirm(gray, track)
        if track.failures:
            return
        lost = [
            old
            for old in self.tracks
            if utils.shared(box, old.box) >= SAME_PLACE and not utils.shares_place(old.box, followed)
        ]
        if lost:
            self._continue(max(lost, key=lambda old: utils.shared(box, old.box)), track)
        else:
            self.tracks.append(track)

    def _continue(self, old, new):
        """Gives a new track the number and the probabilities of an old one, which it replaces."""
        self.tracks = [track for track in self.tracks if track is not old and track is not new] + [new]
        self.lost = [track for track in self.lost if track is not old]
        new.number, new.probabilities, new.averaged = old.number, old.probabilities, old.averaged
        new.evidence = max(new.evidence, old.evidence)

    def _give_number(self, track):
        """Gives a face that is shown for the first time the number of a lost person it looks like, or a new one."""
        if track.number:
            return
        gone = [old for old in self.tracks if old.number and old not in self.visible] + self.lost
        likeness = [correlation(old.thumbnail, track.thumbnail) for old in gone]
        if likeness and max(likeness) >= ALIKE_PERSON:
            self._continue(gone[int(np.argmax(likeness))], track)
        else:
            self.count += 1
            track.number = self.count


class Strip(NamedTuple):
    """A part of a scan: rows of a view at a scale, and the number of windows in it."""

    view: View
    scale: float  # pixels of the strip per pixel of the reduced frame
    top: int
    bottom: int
    windows: float


class Scan:
    """Proposes places of faces, a strip of the frame at a time, and goes on in the next frame."""

    def __init__(self, detector):
        self.detector, self.shape, self.strips = detector, None, iter(())
        self.sides = itertools.cycle(SIDES)

    def propose(self, gray, budget, is_alone):
        """Yields (box, view) of places that may be a face: about two for each 100,000 windows without one.

        Args:
            gray: uint8 (H, W).
            budget: windows to scan; a scan ends with its last strip even if windows are left.
            is_alone: function that returns whether no face is known; if so, profiles and tilted heads are looked for
                too, one view in each scan.
        """
        if gray.shape != self.shape or budget == np.inf:
            self.shape, self.strips = gray.shape, self._plan(gray.shape)
        pictures = {}
        while budget > 0:
            strip = next(self.strips, None)
            if strip is None:
                self.strips = self._plan(gray.shape)
                return
            if strip.view == UPRIGHT or is_alone():
                budget -= strip.windows
                yield from self._scan_strip(gray, strip, pictures)

    def _plan(self, shape):
        """Yields the strips of one scan, the large faces first."""
        reduction = min(1.0, SCAN_LINES / min(shape))
        height, width = (side * reduction for side in shape)
        count = max(0, int(np.log(max(1, min(height, width) / WINDOW)) / np.log(SCALE_STEP))) + 1
        for view in (UPRIGHT, next(self.sides)):
            smallest = 0 if view == UPRIGHT else SIDE_SCALE
            for scale in [SCALE_STEP**-i for i in range(smallest, count)][::-1]:
                rows, columns = round(height * scale), round(width * scale)
                for top in range(0, rows - WINDOW, STRIP_ROWS):
                    bottom = min(rows, top + STRIP_ROWS + LARGEST)
                    windows = (bottom - top - WINDOW) * (columns - WINDOW) / STRIDE * (1 + 1 / SCALE_STEP)
                    yield Strip(view, scale, top, bottom, windows * (PROFILE_COST if view.profile else 1))

    def _scan_strip(self, gray, strip, pictures):
        """Yields the proposals of one strip; `pictures` holds the frame's reduced pictures by view."""
        reduction = min(1.0, SCAN_LINES / min(gray.shape))
        if UPRIGHT not in pictures:
            pictures[UPRIGHT] = cv2.resize(gray, None, fx=reduction, fy=reduction, interpolation=cv2.INTER_AREA)
        to_view = view_matrix(strip.view, pictures[UPRIGHT].shape)
        if strip.view not in pictures:
            upright = pictures[UPRIGHT]
            pictures[strip.view] = cv2.warpAffine(upright, to_view, upright.shape[::-1])
        rows = pictures[strip.view][round(strip.top / strip.scale) : round(strip.bottom / strip.scale)]
        size = (round(rows.shape[1] * strip.scale), strip.bottom - strip.top)
        picture = cv2.resize(rows, size, interpolation=cv2.INTER_AREA)
        cascade = self.detector.profile if strip.view.profile else self.detector.frontal
        # No neighbours are asked for: that finds a quarter more faces than two, for two searches more in a scan.
        found = cascade.detectMultiScale(picture, SIZE_STEP, 0, minSize=(WINDOW,) * 2, maxSize=(LARGEST,) * 2)
        to_frame = cv2.invertAffineTransform(to_view) / reduction
        for x, y, width, _ in without_repeats(found):
            middle = to_frame @ ((x + width / 2) / strip.scale, (y + width / 2 + strip.top) / strip.scale, 1)
            width /= strip.scale * reduction
            yield np.array([*(middle - width / 2), width, width]), strip.view


def view_matrix(view, shape):
    """Returns the affine matrix, float (2, 3), that turns a picture so that heads of this view are upright."""
    matrix = cv2.getRotationMatrix2D((shape[1] / 2, shape[0] / 2), view.angle, 1)
    if view.flipped:
        matrix[0] = -matrix[0]
        matrix[0, 2] += shape[1]
    return matrix


def without_repeats(boxes):
    """Returns the boxes that do not share their place with one before them, from left to right."""
    kept = []
    # The cascade's threads find the boxes in any order, and so would number the faces.
    for box in sorted(map(tuple, boxes)):
        if not utils.shares_place(box, kept):
            kept.append(box)
    return kept


def is_within(box, shape):
    """Returns whether a box lies in a frame of this shape as a whole."""
    x, y, width, height = box
    return x >= 0 and y >= 0 and x + width <= shape[1] and y + height <= shape[0]


def correlation(thumbnail, other):
    """Returns how alike two thumbnails are, -1..1, whatever their brightness and contrast."""
    if min(thumbnail.std(), other.std()) < MIN_CONTRAST:
        return 0.0
    return float(cv2.matchTemplate(thumbnail, other, cv2.TM_CCOEFF_NORMED)[0, 0])
