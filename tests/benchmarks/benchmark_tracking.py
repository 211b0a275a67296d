"""Measures the face tracker on drawn clips whose faces are known: faces found, boxes that are not a face, time a frame.

    python tests/benchmarks/benchmark_tracking.py   prints the table, writes figures/benchmark_tracking.json
    python tests/benchmarks/benchmark_tracking.py --frames FOLDER   also writes every tenth frame, annotated
    python tests/benchmarks/benchmark_tracking.py --former OLD.py   also measures another tracking.py, frame by frame in turn

Each clip moves photographed heads over a photographed background, so every frame's boxes are known:

    Eileen Collins   skimage.data.astronaut(), NASA, public domain
    Grace Hopper     matplotlib's sample_data/grace_hopper.jpg, United States Navy, public domain
    small faces      skimage.data.lfw_subset(), 25x25 pixels of Labeled Faces in the Wild, seven dark-skinned people
                     and five light-skinned ones; the package's licence note is in skimage/data/README.txt
    backgrounds      skimage.data: brick, coffee, grass, gravel, motorcycle, page, rocket, text

No package ships a large portrait of a dark-skinned person. The clips named "dark-skinned" tone-map the two portraits;
real dark skin is in "small faces" only. A turned head is an ellipsoid with a nose
and a plain back.

The row of the former tracker came from: git show af09fd4:tracking.py > OLD.py, then --former OLD.py. It stays in the
JSON file when a run leaves --former out. Time is the CPU time of one thread.
"""

import argparse
import importlib.util
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
TILTED, TURNED = 15, 30  # degrees above which a face counts as tilted, and as turned
MIN_OVERLAP = 0.3  # least intersection over union of a box and its face
MIN_SHOWN = 0.6  # share of a face in the picture and uncovered: a face that shows less may be found or missed
NOISE = 2.0  # standard deviation in grey levels, in every clip
DARK, LIGHT = (13, 22, 26, 64, 83, 84, 88), (15, 34, 52, 69, 86)  # people of lfw_subset
HEAD = 2.0  # width of a head's picture, in widths of the face's box


class Pose(NamedTuple):
    """Where a face is: middle and width of its box in pixels, and degrees of its tilt (clockwise) and turn."""

    x: float
    y: float
    width: float
    tilt: float = 0
    turn: float = 0


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


def turn_head(head, degrees):
    """Turns a head to the side: its picture lies on `head_depth`, the back of the head is plain hair."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    # Three points for each pixel leave no gaps where the picture is stretched.
    x, rows = np.meshgrid(np.arange(0, 240, 1 / 3), np.arange(240))
    depth, value = np.repeat(DEPTH, 3, axis=1), np.repeat(head, 3, axis=1)
    columns = np.rint((x - 120) * cosine + depth * sine).astype(int) + 120
    drawn = (np.repeat(MASK, 3, axis=1) > 0.5) & (columns >= 0) & (columns < 240)
    order = np.argsort((depth * cosine - (x - 120) * sine)[drawn])  # The nearest points are drawn last.
    turned = np.full((240, 240), np.percentile(head, 10), np.float32)
    turned[rows[drawn][order], columns[drawn][order]] = value[drawn][order]
    return cv2.medianBlur(turned, 5)


def draw_head(frame, head, pose):
    """Draws a head into the frame, float32 (H, W)."""
    to_frame = cv2.getRotationMatrix2D((120, 120), -pose.tilt, pose.width / 120)
    to_frame[:, 2] += pose.x - 120, pose.y - 120
    size, flags = frame.shape[::-1], cv2.INTER_AREA if pose.width < 120 else cv2.INTER_LINEAR
    picture = cv2.warpAffine(turn_head(head, pose.turn) if pose.turn else head, to_frame, size, flags=flags)
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
        poses = [pose for _, pose in poses]
        yield np.uint8(np.clip(np.rint(frame), 0, 255)), describe(poses, clip.size, clip.exposure(t))


def describe(poses, size, exposure):
    """Returns the box of each face and its kind, which is None where too little of the face shows."""
    truth, boxes = [], [(face_x(p) - p.width / 2, p.y - p.width / 2, p.width, p.width) for p in poses]
    for i, (pose, box) in enumerate(zip(poses, boxes, strict=True)):
        hidden = max((covered(box, other) for other in boxes[i + 1 :]), default=0)
        shown = covered(box, (0, 0, *size)) - hidden
        kind = "turned" if abs(pose.turn) > TURNED else "tilted" if abs(pose.tilt) > TILTED else "frontal"
        truth.append((box, kind if shown >= MIN_SHOWN and exposure >= 0.2 else None))
    return truth


def face_x(pose):
    """Returns the middle of the face: it moves to the side to which the head turns."""
    return pose.x + 0.35 * pose.width * np.sin(np.radians(pose.turn))


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


CLIPS = (
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
    """Counts of one tracker over all clips."""

    def __init__(self):
        self.found, self.faces = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
        self.boxes, self.false, self.numbers = 0, 0, {}
        self.milliseconds = {}

    def add(self, clip, truth, boxes, numbers, milliseconds):
        """Counts one frame's boxes; each face takes the box that overlaps it most."""
        self.boxes, free = self.boxes + len(boxes), list(range(len(boxes)))
        for face, kind in truth:
            best = max(free, key=lambda i: overlap(boxes[i], face), default=None)
            found = best is not None and overlap(boxes[best], face) >= MIN_OVERLAP
            if found:
                free.remove(best)
                self.numbers.setdefault(clip, set()).add(numbers[best])
            if kind:
                self.faces[kind] += 1
                self.found[kind] += found
        self.false += len(free)
        self.milliseconds.setdefault(clip, []).append(milliseconds)
        return free

    def summary(self):
        """Returns the table's row: percent found by kind, percent of boxes that are not a face, ms a frame."""
        pooled = np.concatenate([times for name, times in self.milliseconds.items() if "1280x720" not in name])
        large, nobody = self.milliseconds["two at 1280x720"], self.milliseconds["nobody at 1280x720"]
        return {
            **{kind: round(100 * self.found[kind] / self.faces[kind], 1) for kind in KINDS},
            "no_face": round(100 * self.false / self.boxes, 1),
            "numbers": sum(map(len, self.numbers.values())),
            "ms": round(float(np.mean(pooled)), 2),
            "ms_two_720p_median": round(float(np.median(large)), 2),
            "ms_two_720p_p95": round(float(np.percentile(large, 95)), 2),
            "ms_nobody_720p": round(float(np.mean(nobody)), 2),
        }


def load_tracker(path):
    """Returns a function that makes the FaceTracker of a former tracking.py, which needs the frontal cascade alone."""
    specification = importlib.util.spec_from_file_location("former_tracking", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)

    class Former(module.FaceTracker):
        def find(self, gray, time_s):
            super().find(gray, time_s)
            return self.visible

    return lambda detector: Former(detector.frontal)


def follow(clip, heads, trackers, scores, folder):
    """Runs the trackers over a clip, in turn on each frame, and counts what they find."""
    for frame, (gray, truth) in enumerate(film(clip, heads)):
        for name, tracker in trackers.items():
            start = time.thread_time()
            tracks = tracker.find(gray, frame / FPS)
            milliseconds = 1e3 * (time.thread_time() - start)
            boxes, numbers = tracking.stack_boxes(tracks), [track.track_id for track in tracks]
            false = scores[name].add(clip.name, truth, boxes, numbers, milliseconds)
            if folder and frame % 10 == 0:
                write_frame(folder / f"{clip.name.replace(' ', '-')}-{frame:03}-{name}.jpg", gray, truth, boxes, false)


def write_frame(path, gray, truth, boxes, false):
    """Writes a frame: known faces in white, boxes in green, boxes that are not a face in red."""
    frame = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    for (x, y, width, height), kind in truth:
        cv2.rectangle(frame, (round(x), round(y)), (round(x + width), round(y + height)), (255, 255, 255), 1)
        cv2.putText(frame, str(kind), (round(x), round(y) - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255))
    for i, (x, y, width, height) in enumerate(boxes):
        cv2.rectangle(frame, (x, y), (x + width, y + height), (0, 0, 255) if i in false else (0, 200, 0), 2)
    cv2.imwrite(str(path), frame)


def print_table(rows):
    """Prints one line per tracker."""
    head = ("tracker", *KINDS, "no face", "numbers", "ms", "two 720p", "p95", "nobody")
    print(" | ".join(f"{text:>9}" for text in head))
    for name, row in rows.items():
        print(" | ".join(f"{value:>9}" for value in (name, *row.values())))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--former", type=Path, help="a former tracking.py to measure beside the present one")
    parser.add_argument("--frames", type=Path, help="existing folder for annotated frames")
    parser.add_argument("--only", default="", help="only clips whose name holds this text; nothing is written")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    cv2.setNumThreads(1)
    makers = {"new": tracking.FaceTracker} | ({"former": load_tracker(args.former)} if args.former else {})
    detector, heads, scores = utils.load_face_detector(), load_heads(), {name: Score() for name in makers}
    for clip in CLIPS:
        if args.only in clip.name:
            follow(clip, heads, {name: make(detector) for name, make in makers.items()}, scores, args.frames)
    rows = json.loads(FIGURE.read_text()) if FIGURE.exists() else {}
    rows |= {name: score.summary() for name, score in scores.items()}
    print_table(rows)
    if not args.only:
        FIGURE.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
