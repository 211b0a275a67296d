"""Finds faces in a video quickly, follows them and averages their probabilities. Used by webcam_demo.py.

The cascade needs 40 ms to scan a frame of 640x360 pixels, so each frame is scanned only in part. A known face is
searched for near its expected place, at about its size, which takes 1 ms. If that place is unchanged, the search is
skipped. Now and then the face is searched for carefully: more detections have to agree, and an upright face wins over a
tilted one. A candidate from the scan counts as a face once the network or a second cascade confirms it. A profile has
to be found in several frames.
"""

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

import utils

# The scan. At scale 1 the frame has 360 lines; each further scale is smaller by SCALE_STEP.
SCAN_LINES = 360  # pixels to which the shorter side is reduced; a smaller frame is scanned as it is
SIZE_STEP = 1.2  # one scale covers two sizes
MIN_SIZE = 24  # pixels of the smallest face that the cascades find
MAX_SIZE = 29  # pixels of the largest face looked for at one scale: MIN_SIZE * SIZE_STEP
SCALE_STEP = SIZE_STEP**2
STRIDE = 4  # The cascades look at every second column of every second row.
SIDE_SCALE = 2  # First scale for tilted heads and profiles: scanning for small ones costs too much.
PADDED_SCALE = 4  # From this scale on, the frame's edge is repeated, to find large faces that are cut off.
PADDING = 0.2  # width of the repeated edge, as a share of the shorter side
OTHER_STRIPS = 8  # strips between two scans for upright faces of a seventh of the frame or more, which are cheap
# A strip holds about STRIP_WINDOWS detection windows (2 ms) and has a fixed overhead of STRIP_COST. Each frame scans
# four strips, or one while a face is shown, because following a face takes time too.
STRIP_WINDOWS = 8_000
STRIP_COST = 1_500
PADDED_STRIP_COST = 4_500  # Mostly for reducing the padded frame.
BUDGET = 8_000  # windows
IDLE_BUDGET = 36_000

# Known faces.
KNOWN_SIZES = (0.75, 1.25)  # the smallest and the largest face, in widths of the box; see utils.search_face
KNOWN_STEP = 1.2  # ratio of successive sizes
KNOWN_NEIGHBORS = 2  # detections that have to agree
KNOWN_PROFILE_NEIGHBORS = 3
CHECK_INTERVAL = 0.2  # seconds between careful searches for an upright face; a tilted one is checked in every frame
CHECK_SIZES = (0.6, 1.35)  # A box at a wrong angle may have become too large.
SETTLED = 0.05  # widths of the box: a search that moves and resizes it by less has confirmed it
FAR = 0.25  # widths of the box: a face that seems to have moved farther in one frame is confirmed
WIDER = 1.8  # factor by which the search area of a missed face is enlarged
MAX_UNCHECKED = 1.0  # seconds that a frontal face is followed while the careful searches miss it
TILT = 25  # degrees: step between the angles that are searched; the cascade tolerates 15 by itself
MAX_TILT = 50  # degrees
MIN_ELAPSED = 1 / 60  # least seconds between two frames; shorter times in a burst would give absurd velocities
MAX_GROWTH = 3  # largest factor per second by which a face grows or shrinks, as when a head comes near
HOLD = 0.3  # seconds that a face is shown while missed, if the image there looks like it
MEMORY = 1.2  # seconds that a lost face is searched for where it should be
LOST_PEOPLE = 20  # faces whose thumbnails are kept after that, to recognize them
POSITION_GAIN, VELOCITY_GAIN = 0.6, 0.15  # gains of the alpha-beta filter that smooths a face's path
SMOOTHING = 0.4  # seconds: time constant of the average over a face's probabilities
CUT = 25  # gray levels: a larger mean change of the 32x18 thumbnail means another scene

# New faces. Their evidence is the sum of `utils.face_evidence` over the frames.
SHOWN_EVIDENCE = 30  # A face has about 85 in one frame, a blurred one about 40.
TRUSTED_EVIDENCE = 200  # From here on, the face is no longer confirmed.
MAX_REFUSALS = 3  # failed confirmations in a row before a new face is dropped; one may fail while a head tilts
MIN_HITS = 3  # frames in which a tilted face or a profile must be found before it is shown

# Similarity of two thumbnails: correlation, -1..1.
THUMBNAIL = 24  # pixels
# Least similarity at which
HELD_SIMILARITY = 0.6  # the place of a missed face still looks like it, so it is held
UNCHANGED_SIMILARITY = 0.96  # a face is where it is expected, and is not searched for between careful searches
SAME_SIMILARITY = 0.4  # a face found at another angle is still the same face
PERSON_SIMILARITY = 0.8  # a new face is a person who was lost
MIN_CONTRAST = 1  # gray level: standard deviation of a thumbnail, below which it is plain and matches nothing
HELD_CONTRAST = 0.5  # least contrast of a held face's place, as a share of the face's


class View(NamedTuple):
    """The pose of a head, which decides which cascade finds it."""

    angle: float = 0.0  # degrees by which it is tilted clockwise
    profile: bool = False
    flipped: bool = False  # The cascade finds one side only; the other side is found in the flipped image.

    def cascade(self, detector):
        """Returns the cascade that finds heads of this view."""
        return detector.profile if self.profile else detector.frontal

    @property
    def tone(self):
        """The gray levels with which the cascade works best, see `utils.search_face`."""
        return None if self.profile else utils.TONE


UPRIGHT, PROFILES = View(), (View(profile=True), View(profile=True, flipped=True))
VIEW_PAIRS = (PROFILES[0], View(-TILT)), (PROFILES[1], View(TILT))  # Each scan uses one of the pairs.


@dataclass(eq=False)  # Compared by identity.
class Track:
    """One face: its current position, and what is known about it."""

    box: np.ndarray  # float (4,): x, y, width, height
    view: View
    thumbnail: np.ndarray  # uint8 (24, 24), upright, from when the face was last found
    seen: float  # seconds: when the face was last found
    time: float  # seconds: time of `box`, later than `seen` while the face is held or lost
    track_id: int = 0  # from 1, given when the face is first shown
    checked: float = 0.0  # seconds: when a careful search last found the face
    settled: bool = False  # The last search found the face where the box was.
    held: bool = False  # The cascades miss the face, but its place looks like it.
    hits: int = 1  # frames in which it was found
    misses: int = 0  # frames since it was last found
    evidence: int = 0
    refusals: int = 0  # confirmations in a row that failed
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))  # pixels per second
    probabilities: np.ndarray | None = None
    averaged: float = 0.0  # seconds: when `probabilities` was last updated

    @property
    def present(self):
        """Whether the face is in the frame, found or held."""
        return self.held or self.seen == self.time

    @property
    def shown(self):
        """Whether the face is in the frame and confirmed."""
        is_confirmed = self.view.profile or self.evidence >= SHOWN_EVIDENCE
        is_known = is_confirmed and (self.view == UPRIGHT or self.hits >= MIN_HITS)
        return self.present and (is_known or self.track_id > 0)

    def views(self):
        """Returns the views in which to search for the face, likeliest first; only two for a lost face."""
        angles = (self.view.angle - TILT, self.view.angle + TILT)
        others = [view for view in (*map(View, angles), *PROFILES) if view != self.view and abs(view.angle) <= MAX_TILT]
        if self.time - self.seen > HOLD:
            others = [others[self.misses % len(others)]]
        return [self.view, *others]

    def move(self, box, view):
        """Moves the track to where its face was found, smoothed by an alpha-beta filter.

        The box of a frontal face found at another angle is not smoothed, because its former box was wrong.
        """
        elapsed = max(self.time - self.seen, MIN_ELAPSED)
        residual, width, growth = box - self.box, self.box[2], MAX_GROWTH**elapsed
        self.settled = view == self.view == UPRIGHT and np.abs(residual).max() < SETTLED * width
        if view == self.view or view.profile:
            box = self.box + POSITION_GAIN * residual
            box = utils.square_around(utils.middle(box), np.clip(box[2], width / growth, width * growth))
        self.box = box
        self.velocity += VELOCITY_GAIN * (residual[:2] + residual[2:] / 2) / elapsed
        self.view, self.seen, self.hits, self.misses = view, self.time, self.hits + 1, 0

    def average(self, probabilities, time_s):
        """Averages the probabilities, float32 (C,), of a frame with those of earlier frames, against flicker.

        The average is exponential. Its time constant is `SMOOTHING` at every frame rate.
        """
        if self.probabilities is None:
            self.probabilities, self.averaged = probabilities, time_s
        elif not self.held:  # A held face may be half hidden.
            weight = np.float32(1 - np.exp(-(time_s - self.averaged) / SMOOTHING))
            self.probabilities = (1 - weight) * self.probabilities + weight * probabilities
            self.averaged = time_s
        return self.probabilities


class Find(NamedTuple):
    """The result of a search for a known face."""

    similarity: float  # of the old and the new thumbnail
    track: Track
    box: np.ndarray
    view: View
    thumbnail: np.ndarray


class FaceTracker:
    """Follows the faces of a video, with a detector from `utils.load_face_detector`."""

    def __init__(self, detector):
        self.detector, self.scan = detector, Scan(detector)
        self.tracks, self.lost, self.count = [], [], 0
        self.scene = None  # float (18, 32): thumbnail of the previous frame

    def find(self, gray, time_s):
        """Returns the faces in the next frame, list of Track in the order of their numbers.

        Args:
            gray: uint8 (H, W).
            time_s: the frame's time in seconds, which never goes back.
        """
        self._update(gray, time_s)
        shown = [track for track in self.tracks if track.shown]
        for track in shown:
            if not track.track_id:
                self._give_number(track)
        return sorted(shown, key=lambda track: track.track_id)

    def mirror(self, width):
        """Mirrors all tracks, for frames that are mirrored from now on. `width`: their width in pixels."""
        if self.scene is not None:
            self.scene = self.scene[:, ::-1]
        for track in self.tracks + self.lost:
            track.box[0] = width - track.box[0] - track.box[2]
            track.velocity[0] *= -1
            track.thumbnail = np.ascontiguousarray(track.thumbnail[:, ::-1])
            is_flipped = track.view.profile and not track.view.flipped
            track.view = track.view._replace(angle=-track.view.angle, flipped=is_flipped)

    def _update(self, gray, time_s):
        """Updates the tracks with the next frame of a video."""
        reduced, reduction = utils.reduce_image(gray, SCAN_LINES)
        is_new_scene = self._is_cut(reduced)
        if is_new_scene:
            self._forget(self.tracks)
        self._follow(gray, time_s)
        self._forget([track for track in self.tracks if time_s - track.seen > MEMORY])
        budget = np.inf if is_new_scene else IDLE_BUDGET if self._shows_nobody() else BUDGET
        for place, view in self.scan.propose(reduced, budget, self._shows_nobody):
            self._begin(gray, place / reduction, view, time_s)

    def _is_cut(self, reduced):
        """Returns whether a frame is the first of a scene."""
        scene = cv2.resize(reduced, (32, 18), interpolation=cv2.INTER_AREA).astype(float)
        scene -= scene.mean()  # So that a change of brightness, by a lamp or the exposure, is not a cut.
        previous, self.scene = self.scene, scene
        return previous is None or np.abs(scene - previous).mean() > CUT

    def _shows_nobody(self):
        """Returns whether no face is shown."""
        return not any(track.shown for track in self.tracks)

    def _forget(self, tracks):
        """Stops following these tracks. Keeps those with a number, to recognize the people."""
        self.tracks = [track for track in self.tracks if track not in tracks]
        self.lost = ([track for track in tracks if track.track_id] + self.lost)[:LOST_PEOPLE]

    def _follow(self, gray, time_s):
        """Moves each track to where its face is in this frame."""
        for track in self.tracks:
            track.box[:2] += track.velocity * (time_s - track.time)
            track.time = time_s
        first = min(self.tracks, key=lambda track: track.checked, default=None)
        finds = [self._search_known(gray, track, track is first) for track in self.tracks]
        # Where one face covers another, both tracks find the front face. It goes to the track whose thumbnail it
        # matches best.
        taken = []
        for _, track, box, view, thumbnail in sorted(filter(None, finds), key=lambda find: -find.similarity):
            if not utils.overlaps_any(box, taken):
                track.move(box, view)
                if utils.overlaps_any(track.box, taken):
                    track.box = box  # The smoothed box lags behind and would cover the other face.
                taken.append(track.box)
                if is_within(box, gray.shape):  # A face that is cut off would not help to recognize the person.
                    track.thumbnail = thumbnail
                self._confirm(gray, track)
        self.tracks = [track for track in self.tracks if track.refusals < MAX_REFUSALS]
        for track in self.tracks:
            track.held = 0 < time_s - track.seen <= HOLD and self._hold(gray, track, taken)
            if track.held:
                taken.append(track.box)

    def _search(self, gray, box, view, neighbors, **options):
        """Returns the box of a face in this view near another box, float (4,), or None."""
        cascade, options = view.cascade(self.detector), {"tone": view.tone, **options}
        return utils.search_face(gray, box, cascade, neighbors, view.angle, view.flipped, **options)[0]

    def _search_known(self, gray, track, is_first):
        """Returns a `Find` of a known face, or None if the cascades miss it.

        `is_first`: this track was checked longest ago. The others wait longer, so that one frame does not check all.
        """
        if self._is_unchanged(gray, track):
            return Find(1.0, track, track.box, track.view, track.thumbnail)
        is_due = track.view != UPRIGHT or track.time - track.checked >= CHECK_INTERVAL * (1 if is_first else 3)
        if is_due and (find := self._identify(gray, track, *self._check(gray, track))):
            track.checked = track.time
            return find
        for view in track.views():
            is_allowed = view.profile or track.view.profile or track.time - track.checked < MAX_UNCHECKED
            if is_allowed and (find := self._identify(gray, track, self._search_view(gray, track, view), view)):
                return find
        track.misses += 1
        return self._identify(gray, track, self._search_widely(gray, track), UPRIGHT)

    def _is_unchanged(self, gray, track):
        """Returns whether the expected place of a recently checked upright face still looks like it."""
        is_due = track.time - track.checked >= CHECK_INTERVAL
        if is_due or not track.settled or track.misses or track.evidence < TRUSTED_EVIDENCE:
            return False
        return similarity(utils.cut_square(gray, track.box, THUMBNAIL), track.thumbnail) >= UNCHANGED_SIMILARITY

    def _check(self, gray, track):
        """Searches carefully for a frontal face. Returns its box, or None, and its view.

        An upright face wins over a tilted one, unless the tilt fits much better.
        """
        is_upright = track.view == UPRIGHT
        upright, agreeing = self._search_carefully(gray, track, sizes=utils.SEARCH_SIZES if is_upright else CHECK_SIZES)
        is_due = upright is not None or track.time - track.checked >= CHECK_INTERVAL
        if is_upright or track.view.profile or not is_due:
            return upright, UPRIGHT
        tilted, tilted_agreeing = self._search_carefully(gray, track, track.view.angle)
        return (upright, UPRIGHT) if 2 * agreeing >= tilted_agreeing else (tilted, track.view)

    def _search_carefully(self, gray, track, angle=0.0, **options):
        """Returns the box near a track on which many detections agree, or None, and their number."""
        return utils.search_face(gray, track.box, self.detector.frontal, utils.NEW_NEIGHBORS, angle, **options)

    def _search_view(self, gray, track, view):
        """Returns the box of a known face in a view, float (4,), or None."""
        if view.profile:
            neighbors = KNOWN_PROFILE_NEIGHBORS if view == track.view else utils.PROFILE_NEIGHBORS
            return self._search(gray, track.box, view, neighbors)
        searches = [{"step": KNOWN_STEP}]
        if view == track.view:  # Finer steps find more faces. Plain gray levels find more turned faces.
            searches += [{}, {"tone": None}]
        for options in searches:
            box = self._search(gray, track.box, view, KNOWN_NEIGHBORS, sizes=KNOWN_SIZES, **options)
            if box is not None:
                return box
        return None

    def _search_widely(self, gray, track):
        """Returns the box of an upright face that has moved far since the last frame, float (4,), or None."""
        surroundings = utils.square_around(utils.middle(track.box), WIDER * track.box[2])
        width, sizes = round(WIDER * utils.SEARCH_WIDTH), np.divide(KNOWN_SIZES, WIDER)
        return self._search(gray, surroundings, UPRIGHT, utils.NEW_NEIGHBORS, face_width=width, sizes=sizes)

    def _identify(self, gray, track, box, view):
        """Returns a box, float (4,) or None, as a `Find`; None if it is not the track's face.

        A face at another angle or far away is confirmed like a new one, because a tilted shoulder or sleeve can look
        like a face.
        """
        if box is None:
            return None
        thumbnail = utils.cut_square(gray, box, THUMBNAIL, angle=view.angle)
        alike = similarity(thumbnail, track.thumbnail)
        distance = np.hypot(*(utils.middle(box) - utils.middle(track.box)))
        is_step = view.angle != track.view.angle or track.view.profile or distance > FAR * track.box[2]
        if is_step and not view.profile:
            is_tilt = view.angle not in (0, track.view.angle)
            if (is_tilt and alike < SAME_SIMILARITY) or not utils.face_evidence(gray, box, self.detector, view.angle):
                return None
        return Find(alike, track, box, view, thumbnail)

    def _confirm(self, gray, track):
        """Adds evidence that a new track is a face. A false detection may pass once, but not in every frame."""
        if track.view.profile or track.evidence >= TRUSTED_EVIDENCE:
            return
        evidence = utils.face_evidence(gray, track.box, self.detector, track.view.angle)
        track.evidence += evidence
        track.refusals = 0 if evidence else track.refusals + 1

    def _hold(self, gray, track, taken):
        """Moves a missed face to the most similar place nearby. Returns whether it is similar enough and free."""
        margin = round(THUMBNAIL * utils.SEARCH_MARGIN)
        patch = utils.cut_square(gray, track.box, THUMBNAIL + 2 * margin, margin / THUMBNAIL, track.view.angle)
        _, best, _, (left, top) = cv2.minMaxLoc(cv2.matchTemplate(patch, track.thumbnail, cv2.TM_CCOEFF_NORMED))
        # Faint traces of a face make a plain place correlate. For a plain thumbnail OpenCV returns 1 everywhere.
        contrast = patch[top : top + THUMBNAIL, left : left + THUMBNAIL].std()
        if best < HELD_SIMILARITY or contrast < max(MIN_CONTRAST, HELD_CONTRAST * track.thumbnail.std()):
            return False
        offset = np.array((left - margin, top - margin)) * track.box[2] / THUMBNAIL
        track.box[:2] += utils.rotate(offset, track.view.angle)
        return is_within((*utils.middle(track.box), 0, 0), gray.shape) and not utils.overlaps_any(track.box, taken)

    def _begin(self, gray, place, view, time_s):
        """Starts a track at a candidate from the scan, if it is confirmed and no face is followed there."""
        present = [track.box for track in self.tracks if track.present]
        if utils.overlaps_any(place, present):
            return
        box = self._search(gray, place, view, utils.PROFILE_NEIGHBORS if view.profile else utils.NEW_NEIGHBORS)
        if box is None or utils.overlaps_any(box, present):
            return
        track = make_track(gray, box, view, time_s)
        self._confirm(gray, track)
        if not track.refusals:
            self.tracks.append(track)

    def _give_number(self, track):
        """Gives a face, when first shown, the number of a similar lost face, or a new number."""
        gone = [old for old in self.tracks if old.track_id and not old.shown] + self.lost
        old = max(gone, key=lambda old: similarity(old.thumbnail, track.thumbnail), default=None)
        if old is None or similarity(old.thumbnail, track.thumbnail) < PERSON_SIMILARITY:
            self.count += 1
            track.track_id = self.count
            return
        track.track_id, track.probabilities, track.averaged = old.track_id, old.probabilities, old.averaged
        track.evidence = max(track.evidence, old.evidence)
        self.tracks = [other for other in self.tracks if other is not old]
        self.lost = [other for other in self.lost if other is not old]


class Strip(NamedTuple):
    """A part of a scan: rows of the frame at one view and scale, and their cost."""

    view: View
    scale: float  # pixels of the strip per pixel of the reduced frame
    padding: int  # pixels around the reduced frame
    top: int
    bottom: int
    cost: float  # windows


class Scan:
    """Proposes candidates for faces. Each frame scans some strips, and the next frame continues."""

    def __init__(self, detector):
        self.detector, self.shape = detector, None
        self.strips = iter(())  # Remaining strips of the current scan.
        self.sides = itertools.cycle(VIEW_PAIRS)

    def propose(self, reduced, budget, search_sides):
        """Yields candidates for faces as (box, view), with about two false ones per 100,000 windows.

        Args:
            reduced: uint8 (H, W), the reduced frame; the boxes are in its pixels.
            budget: windows to scan; infinity for the whole frame in every view.
            search_sides: function that returns whether to search for profiles and tilted heads too.
        """
        if min(reduced.shape) < MIN_SIZE:
            return
        if reduced.shape != self.shape or budget == np.inf:
            self.shape = reduced.shape
            self.strips = plan_strips(self.shape, (UPRIGHT, *VIEW_PAIRS[0], *VIEW_PAIRS[1]))
        images = {}
        for strip in self.strips:
            if strip.view == UPRIGHT or search_sides():
                budget -= strip.cost
                key = strip.view, strip.padding
                if key not in images:
                    padded = cv2.copyMakeBorder(reduced, *[strip.padding] * 4, cv2.BORDER_REPLICATE)
                    images[key] = utils.turn_upright(padded, strip.view.angle, strip.view.flipped)
                for box in self._scan_strip(strip, *images[key]):
                    yield box, strip.view
                if budget <= 0:
                    return
        self.strips = plan_strips(self.shape, (UPRIGHT, *next(self.sides)))
        if search_sides():
            self.strips = repeat_large(self.strips)

    def _scan_strip(self, strip, image, to_padded):
        """Yields the boxes found in one strip of a rotated image, in pixels of the reduced frame."""
        rows = image[round(strip.top / strip.scale) : round(strip.bottom / strip.scale)]
        size = (round(rows.shape[1] * strip.scale), strip.bottom - strip.top)
        image, cascade = cv2.resize(rows, size, interpolation=cv2.INTER_AREA), strip.view.cascade(self.detector)
        image = image if strip.view.tone is None else cv2.LUT(image, strip.view.tone)
        # minNeighbors=0 finds a quarter more faces than 2, and costs two more searches per scan.
        found = cascade.detectMultiScale(image, SIZE_STEP, 0, minSize=(MIN_SIZE,) * 2, maxSize=(MAX_SIZE,) * 2)
        kept = []
        # Sorted, because the cascade's threads finish in varying order, and face numbers must be reproducible.
        for box in sorted(map(tuple, found)):
            if not utils.overlaps_any(box, kept):
                kept.append(box)
                x, y, width, _ = box
                point = to_padded @ ((x + width / 2) / strip.scale, (y + width / 2 + strip.top) / strip.scale, 1)
                width /= strip.scale
                yield utils.square_around(point - strip.padding, width)


def plan_strips(shape, views):
    """Yields the strips of a scan. In each view, those for large faces come first."""
    scales = int(np.log(max(1, min(shape) / MIN_SIZE)) / np.log(SCALE_STEP)) + 1
    for view in views:
        for number in reversed(range(0 if view == UPRIGHT else SIDE_SCALE, scales)):
            scale = SCALE_STEP**-number
            padding = round(PADDING * min(shape)) if number >= PADDED_SCALE else 0
            rows, columns = (round((side + 2 * padding) * scale) for side in shape)
            windows_a_row = max(1, columns - MIN_SIZE) / STRIDE * (1 + 1 / SCALE_STEP)
            step = max(1, round(STRIP_WINDOWS / windows_a_row))
            for top in range(0, rows - MIN_SIZE, step):
                bottom = min(rows, top + step + MAX_SIZE)
                cost = (PADDED_STRIP_COST if padding else STRIP_COST) + (bottom - top - MIN_SIZE) * windows_a_row
                yield Strip(view, scale, padding, top, bottom, cost)


def repeat_large(strips):
    """Yields strips and, between them, repeats those for large upright faces, so that these are found soon."""
    strips = list(strips)
    large = [strip for strip in strips if strip.view == UPRIGHT and strip.scale < 1 / SCALE_STEP]
    others = [strip for strip in strips if strip not in large]
    for start in range(0, max(1, len(others)), OTHER_STRIPS):
        yield from large
        yield from others[start : start + OTHER_STRIPS]


def find_still(gray, detector):
    """Returns the faces of a single image, list of Track with numbers from 1."""
    tracks = []
    for number, (box, angle) in enumerate(zip(*utils.find_faces(gray, detector), strict=True), start=1):
        tracks.append(make_track(gray, box.astype(float), View(angle), time_s=0.0))
        tracks[-1].track_id = number
    return tracks


def stack_boxes(tracks):
    """Returns the boxes of tracks, int (F, 4)."""
    return np.array([np.rint(track.box) for track in tracks], int).reshape(-1, 4)


def make_track(gray, box, view, time_s):
    """Returns the track of a face that is found for the first time."""
    thumbnail = utils.cut_square(gray, box, THUMBNAIL, angle=view.angle)
    return Track(box, view, thumbnail, seen=time_s, time=time_s, checked=time_s)


def is_within(box, shape):
    """Returns whether a box lies completely within a frame of this shape."""
    x, y, width, height = box
    return x >= 0 and y >= 0 and x + width <= shape[1] and y + height <= shape[0]


def similarity(thumbnail, other):
    """Returns the similarity of two thumbnails, -1..1, regardless of brightness and contrast."""
    if min(thumbnail.std(), other.std()) < MIN_CONTRAST:
        return 0.0
    return float(cv2.matchTemplate(thumbnail, other, cv2.TM_CCOEFF_NORMED)[0, 0])
