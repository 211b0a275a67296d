"""Measures the face tracker on drawn clips whose faces are known: faces found, fit of the boxes, false boxes, time.

    python tests/benchmarks/benchmark_tracking.py   prints the tables, writes figures/benchmark_tracking.json
    python tests/benchmarks/benchmark_tracking.py --frames FOLDER   also writes every tenth frame, annotated
    python tests/benchmarks/benchmark_tracking.py --only speaks     only these clips; writes no figure

Each clip moves photographed heads over a photographed background, so every frame's boxes are known:

    Eileen Collins   skimage.data.astronaut(), NASA, public domain
    Grace Hopper     matplotlib's sample_data/grace_hopper.jpg, United States Navy, public domain
    small faces      skimage.data.lfw_subset(), 25x25 pixels of Labeled Faces in the Wild, seven dark-skinned people
                     and five light-skinned ones; the package's license note is in skimage/data/README.txt
    backgrounds      skimage.data: brick, coffee, grass, gravel, motorcycle, page, rocket, text

A face counts as found if a box overlaps it by at least half of their union. No package ships a large portrait of a
dark-skinned person. The clips named "dark-skinned" tone-map the two portraits; real dark skin is in "small faces" only.
A turned or lowered head is an ellipsoid with a nose and a plain back. A speaking mouth is warped and darkened. Time is
the CPU time of one thread.
"""

import argparse
import collections
import itertools
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib.cbook
import numpy as np
import skimage.data

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tracking
import utils

FIGURE = ROOT / "figures" / "benchmark_tracking.json"
SIZE, FPS = (640, 360), 25  # width and height in pixels, frames a second
KINDS = ("frontal", "tilted", "turned")
TONES = ("light", "dark")  # of the skin of frontal faces
TILTED, TURNED = 15, 30  # degrees above which a face counts as tilted, and as turned
MIN_OVERLAP = 0.5  # least intersection over union of a box and its face
GOOD_OVERLAP = 0.7
MIN_SHOWN = 0.6  # share of a face in the picture and uncovered: a face that shows less may be found or missed
NOISE = 2.0  # standard deviation in gray levels, in every clip
DARK, LIGHT = (13, 22, 26, 64, 83, 84, 88), (15, 34, 52, 69, 86)  # people of lfw_subset


class Pose(NamedTuple):
    """Where a face is: middle and width of its box in pixels, degrees of tilt (clockwise), turn and nod, open mouth."""

    x: float
    y: float
    width: float
    tilt: float = 0
    turn: float = 0
    nod: float = 0  # forward
    mouth: float = 0  # how far it is open, 0..1


class Clip(NamedTuple):
    """A drawn video: functions of the time 0..1 give the poses of its heads, nearest last, None for an absent one."""

    name: str
    heads: tuple
    poses: object
    background: str = "coffee"
    frames: int = 75
    size: tuple = SIZE
    exposure: object = lambda t: 1
    noise: float = NOISE


def load_heads():
    """Returns the heads by name, float32 (2W, 2W) around a face of width W, gray."""
    collins = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2GRAY)
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        hopper = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_GRAYSCALE)
    # The middle and the width of the face, where OpenCV's cascade puts its box.
    heads = {"collins": cut_head(collins, (223, 114), 98), "hopper": cut_head(hopper, (267, 217), 228)}
    heads |= {f"{name}, dark-skinned": darken_skin(head) for name, head in heads.items()}
    heads |= {f"{name}, glasses": put_on_glasses(heads[name]) for name in ("collins", "collins, dark-skinned")}
    faces = skimage.data.lfw_subset().astype(np.float32) * 255
    heads |= {number: cut_head(faces[number], (11.5, 12), 23.5) for number in DARK + LIGHT}
    return heads


def cut_head(photograph, middle, width):
    """Returns the square around a face, enlarged or reduced to a face of 120 pixels."""
    to_head = np.array(
        [[120 / width, 0, 120 - middle[0] * 120 / width], [0, 120 / width, 120 - middle[1] * 120 / width]]
    )
    return cv2.warpAffine(
        np.float32(photograph), to_head, (240, 240), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE
    )


def darken_skin(head):
    """Tone-maps a light-skinned face: skin falls to a third of its brightness, highlights and shadows stay."""
    return 255 * (head / 255) ** 2.2 * 0.85 + 4


def put_on_glasses(head):
    """Draws dark frames round the eyes and a reflection in each glass."""
    head = head.copy()
    for x in (97, 143):
        cv2.ellipse(head, (x, 108), (19, 15), 0, 0, 360, 60, 2, cv2.LINE_AA)
        cv2.line(head, (x - 9, 101), (x - 4, 97), 200, 2, cv2.LINE_AA)
    cv2.line(head, (116, 105), (124, 105), 60, 2, cv2.LINE_AA)
    return head


def open_mouth(head, opening):
    """Moves the chin down and darkens the gap between the lips; `opening` is 0..1."""
    y, x = np.mgrid[:240, :240].astype(np.float32)
    reach = np.exp(-(((x - 120) / 34) ** 2)) * np.clip((y - 153) / 4, 0, 1) * np.clip((215 - y) / 40, 0, 1)
    head = cv2.remap(np.float32(head), x, np.float32(y - 12 * opening * reach), cv2.INTER_LINEAR)
    gap = np.clip(1.3 - np.hypot((x - 120) / 17, (y - 155 - 5 * opening) / max(1, 8 * opening)), 0, 0.8)
    return head * (1 - gap * min(1, 2 * opening))


def head_mask():
    """Returns the opacity 0..1 of a head's picture: an ellipse from the hair to the chin, soft at its edge."""
    y, x = np.mgrid[:240, :240]
    distance = np.hypot((x - 120) / 74, (y - 114) / 92)
    return np.float32(np.clip((1.08 - distance) / 0.12, 0, 1))


def head_depth():
    """Returns how far each pixel of a head's picture lies before the ears: an ellipsoid with a nose."""
    y, x = np.mgrid[:240, :240]
    skull = 78 * np.sqrt(np.clip(1 - ((x - 120) / 76) ** 2 - ((y - 114) / 100) ** 2, 0, 1))
    return np.float32(skull + 20 * np.exp(-(((x - 120) / 9) ** 2) - ((y - 128) / 15) ** 2))


MASK, DEPTH = head_mask(), head_depth()


def turn_head(head, degrees, depth=DEPTH, mask=MASK):
    """Turns a head to the side: its picture lies on `depth`, the back of the head is plain hair."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    # Three points for each pixel leave no gaps where the picture is stretched.
    x, rows = np.meshgrid(np.arange(0, 240, 1 / 3), np.arange(240))
    depth, value = np.repeat(depth, 3, axis=1), np.repeat(head, 3, axis=1)
    columns = np.rint((x - 120) * cosine + depth * sine).astype(int) + 120
    drawn = (np.repeat(mask, 3, axis=1) > 0.5) & (columns >= 0) & (columns < 240)
    order = np.argsort((depth * cosine - (x - 120) * sine)[drawn])  # The nearest points are drawn last.
    turned = np.full((240, 240), np.percentile(head, 10), np.float32)
    turned[rows[drawn][order], columns[drawn][order]] = value[drawn][order]
    return cv2.medianBlur(turned, 5)


def draw_head(frame, head, pose):
    """Draws a head into the frame, float32 (H, W)."""
    to_frame = cv2.getRotationMatrix2D((120, 120), -pose.tilt, pose.width / 120)
    to_frame[:, 2] += pose.x - 120, pose.y - 120
    size, flags = frame.shape[::-1], cv2.INTER_AREA if pose.width < 120 else cv2.INTER_LINEAR
    head = open_mouth(head, pose.mouth) if pose.mouth else head
    head = turn_head(head.T, pose.nod, DEPTH.T, MASK.T).T if pose.nod else head
    head = turn_head(head, pose.turn) if pose.turn else head
    picture = cv2.warpAffine(np.ascontiguousarray(head), to_frame, size, flags=flags)
    opacity = cv2.warpAffine(MASK, to_frame, size, flags=flags)
    frame += opacity * (picture - frame)


def load_background(name, size):
    """Returns a background that is larger than a frame, float32 (H, W); "wall" is smooth and "black" is black."""
    width, height = size[0] + 80, size[1] + 80
    if name in ("wall", "black"):
        picture = np.full((height, width), 0 if name == "black" else 150, np.float32)
        return picture + np.linspace(0, 0 if name == "black" else 40, width, dtype=np.float32)
    picture = skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    picture = np.float32(picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    scale = max(width / picture.shape[1], height / picture.shape[0])
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)[:height, :width]


def film(clip, heads):
    """Yields the frames of a clip and what is in them: gray uint8 (H, W), list of (box, kind or None to ignore)."""
    random, background = np.random.default_rng(len(clip.name)), load_background(clip.background, clip.size)
    for t in np.linspace(0, 1, clip.frames):
        left, top = 40 + 30 * np.sin(5 * t), 40 + 20 * np.sin(3 * t)
        to_frame = np.float32([[1, 0, -left], [0, 1, -top]])
        frame = cv2.warpAffine(background, to_frame, clip.size, flags=cv2.INTER_LINEAR)
        poses = [(name, pose) for name, pose in zip(clip.heads, clip.poses(t), strict=True) if pose is not None]
        for name, pose in poses:
            draw_head(frame, heads[name], pose)
        frame = clip.exposure(t) * frame + clip.noise * random.standard_normal(frame.shape, np.float32)
        yield np.uint8(np.clip(np.rint(frame), 0, 255)), describe(poses, clip.size, clip.exposure(t))


def describe(poses, size, exposure):
    """Returns box, kind and tone of skin of each face; the kind is None where too little of the face shows."""
    truth = []
    boxes = [(face_x(p) - p.width / 2, face_y(p) - p.width / 2, p.width, p.width) for _, p in poses]
    for i, ((name, pose), box) in enumerate(zip(poses, boxes, strict=True)):
        hidden = max((covered(box, other) for other in boxes[i + 1 :]), default=0)
        shown = covered(box, (0, 0, *size)) - hidden
        kind = "turned" if abs(pose.turn) > TURNED else "tilted" if abs(pose.tilt) > TILTED else "frontal"
        truth.append((box, kind if shown >= MIN_SHOWN and exposure >= 0.1 else None, skin_tone(name)))
    return truth


def face_x(pose):
    """Returns the middle of the face: it moves to the side to which the head turns."""
    return pose.x + 0.35 * pose.width * np.sin(np.radians(pose.turn))


def face_y(pose):
    """Returns the middle of the face: it moves down when the head nods."""
    return pose.y + 0.35 * pose.width * np.sin(np.radians(pose.nod))


def skin_tone(name):
    """Returns whether a head is dark- or light-skinned."""
    return "dark" if name in DARK or "dark-skinned" in str(name) else "light"


def covered(box, other):
    """Returns the share 0..1 of a box that another one covers."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(0, width) * max(0, height) / (box[2] * box[3])


def overlap(box, other):
    """Returns the intersection over union of two boxes, 0..1."""
    intersection = covered(box, other) * box[2] * box[3]
    return intersection / (box[2] * box[3] + other[2] * other[3] - intersection)


def swing(t, degrees, times=1):
    """Returns an angle that swings to both sides and rests for a quarter of the time in the middle."""
    return degrees * np.sin(2 * np.pi * times * t) * min(1, 1.5 * abs(np.sin(2 * np.pi * times * t)))


def crowd(t):
    """Twelve small faces that sway, three of them out of step and tilted."""
    return [
        Pose(60 + 104 * (i % 6) + 12 * np.sin(6 * t + i), 110 + 150 * (i // 6) + 6 * np.sin(9 * t + i), 40 + 2 * i)
        if i % 4
        else Pose(60 + 104 * (i % 6), 110 + 150 * (i // 6), 40 + 2 * i, swing(t, 28))
        for i in range(12)
    ]


def speaks(t):
    """A mouth that opens and closes about four times a second."""
    return 0.5 + 0.5 * np.sin(80 * t) * np.sin(13 * t)


CLIPS = (
    Clip(
        "speaks, tilts slightly and comes back", ("collins",),
        lambda t: [Pose(320 + 6 * np.sin(9 * t), 180, 120, swing(t, 22, 2), 0, 0, speaks(t))], "coffee", 100,
    ),
    Clip(
        "dark-skinned, speaks, tilts slightly", ("hopper, dark-skinned",),
        lambda t: [Pose(320, 180 + 5 * np.sin(7 * t), 100, swing(t, 22, 2), 0, 0, speaks(t))], "motorcycle", 100,
    ),
    Clip(
        "looks down at a telephone", ("collins",),
        lambda t: [Pose(320, 180, 110, 6, 0, 34 * min(1, max(0, 5 * t - 1)) * min(1, max(0, 5 - 5 * t)))], "brick", 100,
    ),
    Clip("glasses", ("collins, glasses",), lambda t: [Pose(250 + 140 * t, 170, 96, 0, 12, 0, speaks(t))], "motorcycle"),
    Clip(
        "dark-skinned, glasses", ("collins, dark-skinned, glasses",),
        lambda t: [Pose(250 + 140 * t, 170, 96, 0, 12, 0, speaks(t))], "motorcycle",
    ),
    Clip(
        "low-key", ("collins",), lambda t: [Pose(320 + 30 * t, 180, 110, swing(t, 14), 0, 0, speaks(t))], "coffee", 75,
        SIZE, lambda t: 0.2,
    ),
    Clip(
        "dark-skinned, low-key", ("hopper, dark-skinned",), lambda t: [Pose(320 + 30 * t, 180, 110, swing(t, 14))],
        "coffee", 75, SIZE, lambda t: 0.3,
    ),
    Clip("fills the picture", ("hopper",), lambda t: [Pose(320, 160 + 25 * t, 330, 4, 0, 0, speaks(t))], "coffee"),
    Clip("sits before a wall", ("collins",), lambda t: [Pose(300 + 60 * t, 180 + 10 * np.sin(20 * t), 120)], "brick"),
    Clip("walks", ("hopper",), lambda t: [Pose(80 + 480 * t, 170 + 8 * np.sin(30 * t), 80)], "motorcycle"),
    Clip("dark-skinned, walks", ("hopper, dark-skinned",), lambda t: [Pose(560 - 480 * t, 180, 84)], "brick"),
    Clip("dark-skinned, tilts", ("collins, dark-skinned",), lambda t: [Pose(320, 180, 110, swing(t, 38))], "coffee"),
    Clip("dark-skinned, turns", ("hopper, dark-skinned",), lambda t: [Pose(320, 180, 110, 0, swing(t, 55))], "wall"),
    Clip("tilts", ("hopper",), lambda t: [Pose(320 + 40 * t, 180, 120, swing(t, 38, 2))], "grass", 100),
    Clip("turns", ("collins",), lambda t: [Pose(320, 180, 120, 0, swing(t, 55, 2))], "rocket", 100),
    Clip("turned from the start", ("hopper",), lambda t: [Pose(260 + 90 * t, 170, 120, 0, 48)], "wall", 50),
    Clip(
        "dark-skinned, turned from the start", ("hopper, dark-skinned",),
        lambda t: [Pose(380 - 90 * t, 170, 110, 0, -38 - 10 * t)], "coffee", 50,
    ),
    Clip("tilted from the start", ("collins",), lambda t: [Pose(260 + 90 * t, 170, 120, -26)], "grass", 50),
    Clip("comes near", ("collins",), lambda t: [Pose(320, 180, 34 * 8**t)], "brick"),
    Clip(
        "in a dark room", ("hopper",), lambda t: [Pose(350 - 60 * t, 180, 100, swing(t, 20))], "coffee", 75, SIZE,
        lambda t: 0.55 - 0.3 * t, 7,
    ),
    Clip(
        "two cross", ("collins", "hopper"), lambda t: [Pose(100 + 440 * t, 160, 80), Pose(560 - 460 * t, 190, 110)],
        "motorcycle", 100,
    ),
    Clip(
        "leaves and comes back", ("collins",),
        lambda t: [Pose(320 - 560 * np.sin(np.pi * min(1, max(0, 1.6 * t - 0.3))), 170, 110)], "text", 100,
    ),
    Clip(
        "fades to black", ("hopper",), lambda t: [Pose(320, 180, 120)] if t < 0.7 else [None], "coffee", 75, SIZE,
        lambda t: min(1, max(0, 3 - 5 * t)),
    ),
    Clip("close-up", ("hopper",), lambda t: [Pose(320, 190, 200 + 90 * t, swing(t, 12))], "coffee"),
    Clip("dark-skinned, close-up", ("collins, dark-skinned",), lambda t: [Pose(330, 180, 290 - 90 * t)], "page"),
    Clip(
        "hides and appears", ("hopper",), lambda t: [Pose(200 + 240 * t, 170, 110) if t % 0.3 < 0.2 else None],
        "motorcycle", 100,
    ),
    Clip("rushes out", ("collins",), lambda t: [Pose(320 + 1800 * max(0, t - 0.6), 180, 120)], "text", 50),
    Clip("small faces", DARK + LIGHT, crowd, "wall", 60),
    Clip("turns before a page", ("hopper",), lambda t: [Pose(220, 180, 90, 12, 100 * max(0, t - 0.4))], "page", 60),
    *(Clip(f"no face: {name}", (), lambda t: [], name, 30)
      for name in ("brick", "coffee", "gravel", "motorcycle", "page", "rocket", "text", "black")),
    Clip(
        "two at 1280x720", ("collins", "hopper"),
        lambda t: [Pose(400 + 40 * t, 330, 150), Pose(880 - 60 * t, 360 + 20 * np.sin(9 * t), 230)],
        "motorcycle", 75, (1280, 720),
    ),
    Clip("nobody at 1280x720", (), lambda t: [], "motorcycle", 30, (1280, 720)),
)  # fmt: skip


class Score:
    """Counts of the tracker over all clips."""

    def __init__(self):
        self.faces, self.found = collections.Counter(), collections.Counter()  # by kind, and by tone if frontal
        self.boxes, self.false, self.held, self.people, self.overlaps = 0, 0, 0, {}, []
        self.milliseconds = {}

    def add(self, clip, truth, tracks, milliseconds):
        """Counts one frame's boxes; each face takes the box that overlaps it most. Returns the false boxes."""
        boxes = tracking.stack_boxes(tracks)
        self.boxes, free = self.boxes + len(boxes), list(range(len(boxes)))
        self.held += sum(track.held for track in tracks)
        for face, kind, tone in truth:
            best = max(free, key=lambda i: overlap(boxes[i], face), default=None)
            found = best is not None and overlap(boxes[best], face) >= MIN_OVERLAP
            if found:
                free.remove(best)
                self.people.setdefault(clip, set()).add(tracks[best].track_id)
                self.overlaps.append(overlap(boxes[best], face))
            if kind:
                keys = (kind, tone) if kind == "frontal" else (kind,)
                self.faces.update(keys)
                self.found.update(keys if found else ())
        self.false += len(free)
        self.milliseconds.setdefault(clip, []).append(milliseconds)
        return free

    def join(self, other):
        """Adds the counts of another clip."""
        self.faces, self.found = self.faces + other.faces, self.found + other.found
        self.boxes, self.false, self.held = self.boxes + other.boxes, self.false + other.false, self.held + other.held
        self.people, self.overlaps = self.people | other.people, self.overlaps + other.overlaps
        self.milliseconds |= other.milliseconds

    def summary(self):
        """Returns percentages of faces found and of boxes, the fit of the boxes, and ms a frame."""
        times = self.milliseconds
        pooled = np.concatenate([values for name, values in times.items() if "1280x720" not in name] or [[0.0]])
        large, nobody = times.get("two at 1280x720", [0.0]), times.get("nobody at 1280x720", [0.0])
        return {
            **{kind: percent(self.found[kind], self.faces[kind]) for kind in (*KINDS, *TONES)},
            "no_face": percent(self.false, self.boxes),
            "held": percent(self.held, self.boxes),
            "median_iou": round(float(np.median(self.overlaps or [0])), 2),
            "iou_over_0.7": percent(sum(value >= GOOD_OVERLAP for value in self.overlaps), len(self.overlaps)),
            "numbers": sum(map(len, self.people.values())),
            "ms": round(float(np.mean(pooled)), 2),
            "ms_two_720p_median": round(float(np.median(large)), 2),
            "ms_two_720p_p95": round(float(np.percentile(large, 95)), 2),
            "ms_nobody_720p": round(float(np.mean(nobody)), 2),
        }


def percent(part, whole):
    return round(100 * part / max(1, whole), 1)


def measure_confirmation(detector, heads):
    """Returns the percentage of frontal faces that are confirmed at once, by tone, and of false candidates."""
    confirmed = {"light": [], "dark": [], "no face": []}
    for name, width, gain in itertools.product(heads, (40, 70, 110), (1, 0.4)):
        frame = np.full((360, 360), 150, np.float32)
        draw_head(frame, heads[name], Pose(180, 180, width, 8))
        gray = np.uint8(gain * frame)
        box = np.array([180 - width / 2, 180 - width / 2, width, width])
        confirmed[skin_tone(name)].append(utils.face_evidence(gray, box, detector) > 0)
    for name in ("brick", "coffee", "grass", "gravel", "motorcycle", "page", "rocket", "text"):
        gray = np.uint8(load_background(name, SIZE))
        for box in detector.frontal.detectMultiScale(cv2.LUT(gray, utils.TONE), 1.1, 1, minSize=(24, 24)):
            confirmed["no face"].append(utils.face_evidence(gray, box, detector) > 0)
    return {f"confirmed, {kind}": percent(sum(answers), len(answers)) for kind, answers in confirmed.items()}


def follow(clip, heads, tracker, score, folder):
    """Runs the tracker over a clip and counts what it finds."""
    for number, (gray, truth) in enumerate(film(clip, heads)):
        start = time.thread_time()
        tracks = tracker.find(gray, number / FPS)
        false = score.add(clip.name, truth, tracks, 1e3 * (time.thread_time() - start))
        if folder and number % 10 == 0:
            write_frame(folder / f"{clip.name.replace(' ', '-')}-{number:03}.jpg", gray, truth, tracks, false)


def write_frame(path, gray, truth, tracks, false):
    """Writes a frame: known faces in white, boxes in green, held ones in orange, false ones in red."""
    frame = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    for (x, y, width, height), kind, _ in truth:
        cv2.rectangle(frame, (round(x), round(y)), (round(x + width), round(y + height)), (255, 255, 255), 1)
        cv2.putText(frame, str(kind), (round(x), round(y) - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255))
    for i, track in enumerate(tracks):
        x, y, width, height = track.box
        corners = cv2.boxPoints(((x + width / 2, y + height / 2), (width, height), track.view.angle))
        color = (0, 0, 255) if i in false else (0, 140, 255) if track.held else (0, 200, 0)
        cv2.polylines(frame, [np.rint(corners).astype(int)], True, color, 2)
    cv2.imwrite(str(path), frame)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, help="existing folder for annotated frames")
    parser.add_argument("--only", default="", help="only clips whose name holds this text; nothing is written")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    cv2.setNumThreads(1)
    detector, heads, total = utils.load_face_detector(), load_heads(), Score()
    for clip in CLIPS:
        if args.only in clip.name:
            score = Score()
            follow(clip, heads, tracking.FaceTracker(detector), score, args.frames)
            print(
                f"{clip.name:40}", *(f"{key} {value}" for key, value in list(score.summary().items())[:9]), flush=True
            )
            total.join(score)
    result = total.summary()
    if not args.only:
        result |= measure_confirmation(detector, heads)
        FIGURE.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
