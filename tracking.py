"""Faces over time: found fast, kept through misses, their probabilities averaged; used by webcam_demo.py.

A full scan of a 1280x720 frame takes the cascade 80 ms. So a scan is made on a reduced picture, mostly in coarse steps,
and while there are faces to follow its sizes are shared out over several frames. A place that a scan proposes counts as
a face only if a second search around it finds one too. In every frame each known face is looked for only around where
it should be, and only at its size, which takes 1 ms.
"""

import itertools
from dataclasses import dataclass, field

import cv2
import numpy as np

import utils

SCAN_INTERVAL = 0.45  # Seconds between scans while there are faces to follow; without any, every frame is scanned.
FINE_INTERVAL = 1.8  # Seconds between the scans that are fine; that of a new scene is fine too.
# Borders between the parts of a fine and of a coarse scan, in the smallest size looked for; each takes about as long.
FINE_PARTS, COARSE_PARTS = (1.0, 1.15, 1.42, 2.0, 2.4, 3.0, 4.2, np.inf), (1.0, 1.42, 2.4, 3.0, 4.2, np.inf)
# Step between sizes, neighbours that a place needs in the scan, and in the search that has to confirm it.
FINE_SCAN, COARSE_SCAN = (1.1, 5, 3), (1.2, 2, 5)
# Of the frame's height, in a video and in a still: smaller faces, or those under 48 pixels, are not looked for.
SMALLEST_SHARE, SMALLEST_STILL_SHARE = 1 / 15, 1 / 30
WINDOW = 24  # Pixels of the smallest face in the reduced picture of a scan: the cascade's own window.
KNOWN_NEIGHBORS = 3  # Neighbours that a known face needs to remain one.
SEARCH_WIDTH = 64  # Pixels to which a face is reduced for the search around it.
SEARCH_MARGIN = 0.3  # Of the face's width, on each side.
SEARCH_SIZES = (0.75, 1.35)  # Of the face's width.
CUT = 25  # Mean change in gray levels, of a thumbnail around its mean, from which on a frame is of another scene.
MIN_OVERLAP = 0.3  # Intersection over union from which on two boxes are the same face.
HOLD = 0.4  # Seconds that a face is still shown, where it should be, when it is not found.
MEMORY = 1.2  # Seconds that a face keeps its number when it is not found, such as behind somebody else.
AGILITY, VELOCITY_GAIN = 0.6, 0.15  # How much of a box's surprise moves it, and its velocity: an alpha-beta filter.
SMOOTHING = 0.4  # Seconds: time constant of the average over a face's probabilities.


@dataclass
class Track:
    """One face: its number from 1, where it is now, and what is known of it."""

    number: int
    box: np.ndarray  # float (4,): x, y, width, height.
    seen: float  # Seconds: when the face was last found.
    time: float  # Seconds: of `box`, later than `seen` while the face is held.
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))  # Pixels per second.
    probabilities: np.ndarray | None = None
    averaged: float = 0.0  # Seconds: when `probabilities` last took in new ones.


class FaceTracker:
    """Follows the faces of a video.

    Args:
        detector: from `utils.load_face_detector`.
        still: the frames are pictures that have nothing to do with each other: each is scanned, and finely.
    """

    def __init__(self, detector, still=False):
        self.detector, self.still = detector, still
        self.tracks, self.visible, self.count = [], [], 0
        self.scanned = self.finely_scanned = -np.inf  # Seconds: when the last scan and the last fine one began.
        self.fine, self.parts = False, []  # The scan under way, and its parts that are still to come.
        self.thumbnail = None

    def find(self, gray, time_s):
        """Finds the faces of the next frame.

        Args:
            gray: uint8 (H, W).
            time_s: the frame's time in seconds, which never goes back.

        Returns:
            boxes: int (F, 4), in the order of `visible`, the tracks they belong to.
        """
        if self.still:
            smallest = max(utils.IMAGE_SIZE, round(gray.shape[0] * SMALLEST_STILL_SHARE))
            self.tracks, found = [], utils.detect_faces(gray, self.detector, smallest).astype(float)
        else:
            found = self._find_moving(gray, time_s)
        self._assign(found, time_s)
        # A face that is held where another one was found is hidden behind it.
        seen = [track.box for track in self.tracks if track.seen == time_s]
        self.visible = [
            track
            for track in self.tracks
            if track.seen == time_s or (time_s - track.seen <= HOLD and not overlaps_any(track.box, seen))
        ]
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
            elif track.seen == time_s:  # A held face's place may show something else by now.
                weight = 1 - np.exp(-(time_s - track.averaged) / SMOOTHING)
                track.probabilities = (1 - weight) * track.probabilities + weight * new
                track.averaged = time_s
        rows = [track.probabilities for track in self.visible]
        return np.array(rows, np.float32).reshape(probabilities.shape)

    def mirror(self, width):
        """Moves what is known to the other side: from now on the frames, this wide in pixels, are mirrored."""
        self.thumbnail = self.thumbnail[:, ::-1]
        for track in self.tracks:
            track.box[0] = width - track.box[0] - track.box[2]
            track.velocity[0] *= -1

    def numbers(self):
        """Returns the numbers of the faces that `find` has just returned, list of F int."""
        return [track.number for track in self.visible]

    def _find_moving(self, gray, time_s):
        """Returns the boxes, float (F, 4), of known faces and, when it is time for a scan, of new ones."""
        self.tracks = [track for track in self.tracks if time_s - track.seen <= MEMORY]
        if self._is_cut(gray):
            self.tracks, self.finely_scanned = [], -np.inf
        for track in self.tracks:
            track.box[:2] += track.velocity * (time_s - track.time)
            track.time = time_s
        found = []
        for track in self.tracks:
            self._search(gray, track.box, KNOWN_NEIGHBORS, found)
        self._scan(gray, time_s, found)
        return found

    def _is_cut(self, gray):
        """Tells whether a frame belongs to another scene than the one before."""
        thumbnail = cv2.resize(gray, (32, 18), interpolation=cv2.INTER_AREA).astype(float)
        thumbnail -= thumbnail.mean()  # A lamp, or a camera's exposure, is no new scene.
        previous, self.thumbnail = self.thumbnail, thumbnail
        return previous is not None and np.abs(thumbnail - previous).mean() > CUT

    def _scan(self, gray, time_s, found):
        """Adds the boxes of new faces to those found: of all sizes where there are no others, else of the next part."""
        if not self.tracks or (not self.parts and time_s - self.scanned >= SCAN_INTERVAL):
            self.fine, self.scanned = time_s - self.finely_scanned >= FINE_INTERVAL, time_s
            self.finely_scanned = time_s if self.fine else self.finely_scanned
            borders = FINE_PARTS if self.fine else COARSE_PARTS
            self.parts = list(itertools.pairwise(borders if self.tracks else (1.0, np.inf)))
        if not self.parts:
            return
        smallest, largest = (WINDOW * size for size in self.parts.pop(0))
        step, neighbors, confirming = FINE_SCAN if self.fine else COARSE_SCAN
        scale = min(1.0, WINDOW / max(utils.IMAGE_SIZE, gray.shape[0] * SMALLEST_SHARE))
        reduced = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        largest = min(largest, max(reduced.shape))
        boxes = self.detector.detectMultiScale(
            reduced, step, neighbors, minSize=(round(smallest),) * 2, maxSize=(round(largest),) * 2
        )
        # From left to right, because the cascade's threads find them in any order, and so would number the faces.
        for box in sorted(boxes, key=tuple):
            if not overlaps_any(box / scale, found):
                self._search(gray, box / scale, confirming, found)

    def _search(self, gray, box, neighbors, found):
        """Adds the box, float (4,), of the face at and around a box to those found, if there is one and it is new."""
        x, y, width, height = box
        margin = SEARCH_MARGIN * width
        left, top = max(0, int(x - margin)), max(0, int(y - margin))
        region = gray[top : max(top, int(y + height + margin)), left : max(left, int(x + width + margin))]
        scale = min(1.0, SEARCH_WIDTH / width)
        smallest, largest = (round(share * width * scale) for share in SEARCH_SIZES)
        if min(region.shape) * scale < smallest:  # Most of it has left the frame.
            return
        reduced = cv2.resize(region, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else region
        boxes = self.detector.detectMultiScale(
            reduced, 1.1, neighbors, minSize=(smallest, smallest), maxSize=(largest, largest)
        )
        boxes = np.array(boxes, float).reshape(-1, 4) / scale + (left, top, 0, 0)
        nearest = max(boxes, key=lambda candidate: overlap(candidate, box), default=None)
        if nearest is not None and not overlaps_any(nearest, found):  # Of two who cross, both lead to the one in front.
            found.append(nearest)

    def _assign(self, found, time_s):
        """Moves each track to the box that overlaps it most; boxes that overlap none are new faces."""
        pairs = [(overlap(box, track.box), i, track) for i, box in enumerate(found) for track in self.tracks]
        taken = set()
        for share, i, track in sorted(pairs, key=lambda pair: -pair[0]):
            if share < MIN_OVERLAP:
                break
            if i not in taken and track.seen < time_s:
                taken.add(i)
                surprise = found[i] - track.box
                track.velocity += VELOCITY_GAIN * surprise[:2] / (time_s - track.seen)
                track.box, track.seen = track.box + AGILITY * surprise, time_s
        for i, box in enumerate(found):
            if i not in taken:
                self.count += 1
                self.tracks.append(Track(self.count, box, time_s, time_s))


def overlaps_any(box, others):
    """Tells whether a box shares its place with one of others."""
    return any(overlap(box, other) >= MIN_OVERLAP for other in others)


def overlap(a, b):
    """Returns the intersection over union of two boxes, 0..1."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    intersection = max(0, width) * max(0, height)
    return intersection / (a[2] * a[3] + b[2] * b[3] - intersection)
