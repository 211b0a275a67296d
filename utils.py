"""The path from input to labelled frame, shared by train.py, evaluate.py and webcam_demo.py.

A function belongs here only if it is a step on that path and all scripts must agree on it. The exceptions are the
helpers for files and messages. Importing this module loads OpenCV and NumPy. LiteRT is imported when a
model is loaded, TensorFlow and Keras never.

The data that flows has the same names in every file:

    frame          uint8 (H, W, 3)       BGR image as OpenCV gives it
    gray           uint8 (H, W)          grayscale frame
    boxes          int (F, 4)            x, y, width, height in frame pixels; (0, 4) without a face
    faces          uint8 (N, 48, 48, 1)  raw 0..255, from the CSV and from the camera alike: the network's input
    labels         int (N,)              index into the model's classes
    votes          float32 (N, C)        share of the raters' votes per class; rows sum to 1, or 0 without votes
    probabilities  float32 (N, C)        rows sum to 1, columns in the order of the model's classes

A layer inside the saved model normalises the gray levels, so every script feeds the network as in training.
"""

import collections
import contextlib
import csv
import functools
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import sys
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

# 1. Labels, shapes, paths ---------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent
DEFAULT_DATA = ROOT / "data" / "fer2013.csv"
DEFAULT_MODEL = ROOT / "models" / "emotions-5"

# RGB, the same in every figure and on every frame: the Okabe-Ito palette, which colour-blind readers can tell apart.
EMOTION_COLORS = {
    "Angry": (213, 94, 0),
    "Disgust": (0, 158, 115),
    "Fear": (204, 121, 167),
    "Happy": (230, 159, 0),
    "Sad": (0, 114, 178),
    "Surprise": (86, 180, 233),
    "Neutral": (127, 127, 127),
}
EMOTIONS = tuple(EMOTION_COLORS)  # The position is FER2013's emotion id.
CLASS_SETS = {5: (0, 3, 4, 5, 6), 7: (0, 1, 2, 3, 4, 5, 6)}  # Number of classes -> FER2013 ids, in label order.
IMAGE_SIZE = 48  # Pixels, width and height of a face.
SPLITS = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
# Outputs of the network, for FER2013's labels and the votes of FER+, with their weights in the demo's probabilities. On
# PublicTest these give the highest sum of both accuracies while losing at most a point on the consensus.
HEAD_WEIGHTS = {"labels": 0.3, "votes": 0.7}
HEADS = tuple(HEAD_WEIGHTS)
OPENCV = '"opencv-python>=4.13,<5"'  # What to install; requirements-demo.txt has the reasons.
UNCERTAIN = "uncertain"  # The label of a face whose most probable emotion is below the minimum confidence.


class Face(NamedTuple):
    """One face of a frame: where it is and what is seen in it."""

    box: tuple[int, int, int, int]  # x, y, width, height in pixels of the frame
    label: str  # The most probable emotion, or `UNCERTAIN`.
    confidence: float  # Probability of the most probable emotion, 0..1.
    probabilities: dict[str, float]  # Emotion -> 0..1, in the order of the model's classes.
    angle: float = 0.0  # Degrees by which the head is tilted clockwise.
    track: int | None = None  # Number of the face, from 1; None in a single image.
    held: bool = False  # Not found in this frame, shown where it was.


# 2. Frame -> faces ----------------------------------------------------------------------------------------------------

# OpenCV's Haar cascades: one finds faces, one confirms them, one finds faces that look to the left.
# `alt` alone misses some dark-skinned faces, but confirms those that `default` finds.
CASCADES = {
    "frontal": "haarcascade_frontalface_default.xml",
    "confirming": "haarcascade_frontalface_alt.xml",
    "profile": "haarcascade_profileface.xml",
}
FaceDetector = collections.namedtuple("FaceDetector", CASCADES)
# The frontal cascades get the square root of the gray levels, in which they miss fewer dark-skinned and dim faces. The
# profile cascade misses more in it. The network gets the gray levels as they are, as in training.
TONE = np.rint(np.sqrt(np.arange(256) / 255) * 255).astype(np.uint8)
SEARCH_WIDTH = 64  # Pixels of the face in a search around a box.
SEARCH_MARGIN = 0.3  # On each side of the box, in widths of the box.
SEARCH_SIZES = (0.75, 1.35)  # The smallest and the largest face, in widths of the box.
SEARCH_STEP = 1.1  # Ratio of successive sizes.
# Detections that have to agree on a new face: of `default`, of `alt`, and of `default` if `alt` finds none. Of 112
# places that are not a face and that `default` proposes, one had 30.
NEW_NEIGHBORS = 5
CONFIRMING_NEIGHBORS = 4
SURE_NEIGHBORS = 30
MIN_OVERLAP = 0.5  # Two boxes sharing this much of the smaller one cannot both be faces.

# Single images, where time does not matter.
STILL_LINES = 1440  # Of the shorter side; a larger image is reduced, so the smallest face is a thirtieth of it.
LONGEST_SIDE = 20_000  # Pixels; OpenCV cannot rotate an image of 32,767.
STILL_WIDTH = 96  # Pixels of the face when it is confirmed.
STILL_ANGLES = (0, -25, 25, -50, 50)  # Degrees; the cascade tolerates 15 by itself.
STILL_PADDING = 0.25  # Of the shorter side: the edge is repeated around the image to find faces that it cuts off.
STILL_EVIDENCE = 30  # See `confirm_face`.
LEAST_EVIDENCE = 20  # Enough for an upright face that is alone, if its share of the image's shorter side is large.
LEAST_SHARE = 0.2
PROFILE_NEIGHBORS = 7  # Nothing confirms a profile, so more detections have to agree.
# Square images of these sides in pixels, as data sets of faces have them, are a face as a whole. The least contrast is
# a standard deviation in gray levels. A face found in them is another one only if it is narrower than this share.
PORTRAIT_SIZES = (IMAGE_SIZE, 112)
PORTRAIT_CONTRAST = 5
PORTRAIT_SHARE = 0.7


def load_face_detector():
    """Loads `CASCADES` as a `FaceDetector`, a named tuple of `cv2.CascadeClassifier`.

    Raises:
        ValueError: this OpenCV has no cascades (5.x has none), or one is damaged.
    """
    return FaceDetector(*map(_load_cascade, CASCADES.values()))


def _load_cascade(name):
    path = Path(getattr(cv2, "data", cv2).__path__[0]) / name
    if not hasattr(cv2, "CascadeClassifier") or not path.exists():
        raise ValueError(f"OpenCV {cv2.__version__} has no Haar cascades. Install 4.x: pip install {OPENCV}")
    cascade, storage = cv2.CascadeClassifier(), cv2.FileStorage()
    with contextlib.suppress(cv2.error):
        # From memory, because OpenCV cannot open a path with letters beyond ASCII on Windows.
        storage.open(path.read_text(encoding="utf-8"), cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
        cascade.read(storage.getFirstTopLevelNode())
    if cascade.empty():
        raise ValueError(f"{path}: damaged. Reinstall it: pip install --force-reinstall {OPENCV}")
    return cascade


def detect_faces(gray, detector) -> np.ndarray:
    """Finds the upright faces of an image (Viola & Jones, 2001).

    Their width is at least 48 pixels and at least a thirtieth of the image's shorter side. Returns boxes, int (F, 4),
    largest first; (0, 4) without a face.
    """
    faces = _find_frontal(gray, detector, angles=(0,))
    return np.array([np.rint(box) for box, _ in faces], int).reshape(-1, 4)


def find_faces(gray, detector):
    """Finds the faces of a single image, tilted ones and profiles too.

    A small square image that holds no smaller face is a face as a whole, because data sets have such portraits.

    Returns:
        boxes: int (F, 4), largest first.
        angles: list of F degrees by which the faces are tilted clockwise.
    """
    faces = _find_frontal(gray, detector, STILL_ANGLES) or _find_profiles(gray, detector)
    if _is_portrait(gray) and all(box[2] > PORTRAIT_SHARE * len(gray) for box, _ in faces):
        faces = [((0, 0, len(gray), len(gray)), 0)]
    return np.array([np.rint(box) for box, _ in faces], int).reshape(-1, 4), [angle for _, angle in faces]


def _is_portrait(gray):
    """Returns whether an image has the shape of a cropped face, and is not plain."""
    height, width = gray.shape
    return height == width and PORTRAIT_SIZES[0] <= width <= PORTRAIT_SIZES[1] and gray.std() >= PORTRAIT_CONTRAST


def _find_frontal(gray, detector, angles):
    """Returns pairs of box and angle of the faces that look ahead, largest first."""
    places = [(box, angle) for angle in angles for box in _scan(gray, detector.frontal, NEW_NEIGHBORS, angle)]
    found = [(confirm_face(gray, box, detector, angle, STILL_WIDTH), box, angle) for box, angle in places]
    found.sort(key=lambda face: (-face[0], *face[1]))
    faces = []
    # A face has most evidence at its own angle. Its eyes and mouth have less than the whole.
    for evidence, box, angle in found:
        if evidence >= STILL_EVIDENCE and not overlaps_any(box, [other for other, _ in faces]):
            faces.append((box, angle))
    if not faces:
        least = LEAST_SHARE * min(gray.shape)
        alone = (face for face in found if face[0] >= LEAST_EVIDENCE and face[1][2] >= least and face[2] == 0)
        faces = [(box, angle) for _, box, angle in itertools.islice(alone, 1)]
    return sorted(faces, key=lambda face: (-face[0][2], *face[0]))


def _find_profiles(gray, detector):
    """Returns pairs of box and angle 0 of the faces that look to a side, largest first."""
    faces = []
    for flipped in (False, True):
        for box in _scan(gray, detector.profile, PROFILE_NEIGHBORS, flipped=flipped, tone=None):
            box, _ = search_face(gray, box, detector.profile, PROFILE_NEIGHBORS, flipped=flipped, tone=None)
            if box is not None and not overlaps_any(box, [other for other, _ in faces]):
                faces.append((box, 0))
    return sorted(faces, key=lambda face: (-face[0][2], *face[0]))


def _scan(gray, cascade, neighbors, angle=0, flipped=False, tone=TONE):
    """Returns the boxes, float (4,), that a cascade finds in a whole image, turned by an angle and flipped."""
    reduction = min(1.0, STILL_LINES / min(gray.shape), LONGEST_SIDE / max(gray.shape))
    if min(gray.shape) * reduction < 1:
        return []
    reduced = cv2.resize(gray, None, fx=reduction, fy=reduction, interpolation=cv2.INTER_AREA)
    reduced = reduced if tone is None else cv2.LUT(reduced, tone)
    padding = round(STILL_PADDING * min(reduced.shape))
    padded = cv2.copyMakeBorder(reduced, *[padding] * 4, cv2.BORDER_REPLICATE)
    image, to_padded = turn_upright(padded, angle, flipped)
    found = cascade.detectMultiScale(image, SEARCH_STEP, neighbors, minSize=(IMAGE_SIZE, IMAGE_SIZE))
    # Sorted, because the order of the cascade's threads varies.
    middles = [(to_padded @ (x + width / 2, y + width / 2, 1), width) for x, y, width, _ in sorted(map(tuple, found))]
    return [np.array([*(middle - padding - width / 2), width, width]) / reduction for middle, width in middles]


def turn_upright(image, angle, flipped=False):
    """Returns an image turned so that tilted heads are upright, and the matrix (2, 3) that turns points back."""
    if not angle and not flipped:
        return image, np.eye(2, 3)
    to_upright = cv2.getRotationMatrix2D((image.shape[1] / 2, image.shape[0] / 2), angle, 1)
    if flipped:
        to_upright[0] = -to_upright[0]
        to_upright[0, 2] += image.shape[1]
    return cv2.warpAffine(image, to_upright, image.shape[::-1]), cv2.invertAffineTransform(to_upright)


def confirm_face(gray, box, detector, angle=0.0, face_width=SEARCH_WIDTH):
    """Returns how many detections of both frontal cascades agree on a face at a box; 0 if it is not one.

    A face has about 100, a dark or blurred one about 30. Nine in ten of the other places have 18 or fewer.
    """
    found = search_face(gray, box, detector.frontal, NEW_NEIGHBORS, angle, face_width=face_width)[1]
    confirmed = search_face(gray, box, detector.confirming, CONFIRMING_NEIGHBORS, angle, face_width=face_width)[1]
    return found + confirmed if confirmed or found >= SURE_NEIGHBORS else 0


def search_face(
    gray, box, cascade, neighbors, angle=0.0, flipped=False, *, face_width=SEARCH_WIDTH, sizes=SEARCH_SIZES,
    step=SEARCH_STEP, tone=TONE,
):  # fmt: skip
    """Searches the surroundings of a box for a face of about its size.

    Args:
        gray: uint8 (H, W).
        neighbors: number of detections that have to agree.
        angle: degrees by which the face is tilted clockwise.
        flipped: search the horizontally flipped image.
        face_width: pixels to which the box is reduced or enlarged. With fewer than 64 the boxes are too large.
        sizes: the smallest and the largest face, in widths of the box.
        step: ratio of successive sizes.
        tone: uint8 (256,), the new value of each gray level; None leaves them as they are.

    Returns:
        box: float (4,), the face near the middle on which most detections agree; None if there is none.
        agreeing: int, the number of detections that agree on it.
    """
    size = round(face_width * (1 + 2 * SEARCH_MARGIN))
    patch = cut_square(gray, box, size, SEARCH_MARGIN, angle)
    patch = patch[:, ::-1] if flipped else patch
    patch = patch if tone is None else cv2.LUT(patch, tone)
    smallest, largest = ((round(share * face_width),) * 2 for share in sizes)
    found, agreeing = cascade.detectMultiScale2(patch, step, neighbors, minSize=smallest, maxSize=largest)
    if len(found) == 0:
        return None, 0
    # Middle of each face, in pixels from the middle of the patch, and its width.
    offsets = np.array([(x + (width - size) / 2, y + (width - size) / 2, width) for x, y, width, _ in found])
    closeness = 1 - np.hypot(offsets[:, 0], offsets[:, 1]) / face_width
    best = np.argmax(agreeing * closeness)
    x, y, width = offsets[best] * box[2] / face_width
    x, y = np.add(box[:2], np.divide(box[2:], 2)) + rotate((-x if flipped else x, y), angle)
    return np.array([x - width / 2, y - width / 2, width, width]), int(agreeing[best])


def rotate(offset, angle):
    """Rotates an offset (x, y) clockwise by `angle` degrees."""
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return np.array([[cosine, -sine], [sine, cosine]]) @ offset


def cut_square(gray, box, size, margin=0.0, angle=0.0, exact=False):
    """Cuts the square around a box out of a frame, uint8 (size, size); the frame's edge is repeated beyond it.

    Args:
        size: width in pixels of the result.
        margin: kept around the box on each side, in widths of the box.
        angle: degrees by which the box's content is tilted clockwise; it is turned upright.
        exact: average over the area of each pixel of the result. This is sharper, and up to five times slower.
    """
    x, y, width, height = box
    center_x, center_y, side = x + width / 2, y + height / 2, max(width, height, 1) * (1 + 2 * margin)
    reach = side * 0.75 if angle else side / 2  # Half a diagonal, and a little for the interpolation.
    left = int(np.clip(center_x - reach, 0, gray.shape[1] - 1))
    top = int(np.clip(center_y - reach, 0, gray.shape[0] - 1))
    region = gray[top : max(top + 1, int(center_y + reach) + 2), left : max(left + 1, int(center_x + reach) + 2)]
    reduction = max(1, side / size) if exact else max(1, int(side / size))  # OpenCV has a fast way for whole numbers.
    if reduction > 1 and min(region.shape) >= reduction:
        # Averaging over areas first keeps a large face from aliasing.
        region = cv2.resize(region, None, fx=1 / reduction, fy=1 / reduction, interpolation=cv2.INTER_AREA)
    else:
        reduction = 1
    center = ((center_x - left) / reduction - 0.5, (center_y - top) / reduction - 0.5)
    to_square = cv2.getRotationMatrix2D(center, angle, size / side * reduction)
    to_square[:, 2] += (size - 1) / 2 - center[0], (size - 1) / 2 - center[1]
    return cv2.warpAffine(region, to_square, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def overlaps_any(box, others):
    """Returns whether a box overlaps another one so much that they belong to the same face."""
    return any(overlap(box, other) >= MIN_OVERLAP for other in others)


def overlap(box, other):
    """Returns the intersection of two boxes over the smaller one, 0..1: 1 where one lies within the other."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(0, width) * max(0, height) / min(box[2] * box[3], other[2] * other[3])


def crop_faces(gray, boxes, angles=None):
    """Cuts faces, uint8 (F, 48, 48, 1), out of a frame. An upright box of 48x48 pixels is copied bit for bit.

    Args:
        boxes: int (F, 4), framed like FER2013's faces, as the cascade's are; the frame's edge is repeated beyond it.
        angles: F degrees by which the faces are tilted clockwise; they are turned upright.
    """
    angles = np.zeros(len(boxes)) if angles is None else angles
    pairs = zip(boxes, angles, strict=True)
    faces = [cut_square(gray, box, IMAGE_SIZE, angle=angle, exact=True) for box, angle in pairs]
    return np.array(faces, np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 1)


# 3. Faces -> probabilities --------------------------------------------------------------------------------------------


class EmotionModel:
    """The exported network of a model folder, run by LiteRT.

    Attributes:
        classes: tuple of str, the emotion of each column of the probabilities.
        heads: tuple of str, the outputs of the network: `("labels",)` or `("labels", "votes")`.
        description: dict, the content of `model.json`.
    """

    BATCH_SIZE = 64  # Faces per forward pass: enough for any frame, and a whole split does not fill the memory.

    def __init__(self, run, description):
        self.run, self.description = run, description
        self.classes, self.heads = tuple(description["classes"]), tuple(description["heads"])

    def logits(self, faces):
        """Returns the output of each head, dict of float32 (N, C), for faces, uint8 (N, 48, 48, 1)."""
        logits = {head: np.empty((len(faces), len(self.classes)), np.float32) for head in self.heads}
        for start in range(0, len(faces), self.BATCH_SIZE):
            batch = slice(start, start + self.BATCH_SIZE)
            outputs = self.run(faces=faces[batch].astype(np.float32))
            for head in self.heads:
                logits[head][batch] = outputs[head]
        return logits

    def predict(self, faces, head=None):
        """Returns probabilities, float32 (N, C), of faces: calibrated ones of a head, or the heads' weighted mean."""
        logits = self.logits(faces)
        return self.probabilities(logits if head is None else {head: logits[head]})

    def probabilities(self, logits):
        """Returns the weighted mean of the heads' calibrated probabilities, float32 (N, C), of the logits of each."""
        temperatures, weights = self.description["temperatures"], [HEAD_WEIGHTS[head] for head in logits]
        probabilities = [softmax(logits[head] / temperatures[head]) for head in logits]
        return np.average(probabilities, axis=0, weights=weights).astype(np.float32)


def softmax(logits):
    """Returns probabilities, float (N, C), of logits, float (N, C)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def calibration_bins(probabilities, labels, bins=15):
    """Sorts predictions, float (N, C), into bins of equal width by their confidence.

    Returns the mean confidence, the mean accuracy and the count of each bin. The means of an empty bin are NaN.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    rows = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(rows, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(rows, weights=values, minlength=bins) / count for values in (confidence, correct)]
    return *means, count


def expected_calibration_error(probabilities, labels):
    """Returns the mean distance of confidence and accuracy, weighted by the faces in each bin (Guo et al., 2017)."""
    confidence, accuracy, count = calibration_bins(probabilities, labels)
    return float(np.nansum(np.abs(confidence - accuracy) * count) / len(labels))


def load_emotion_model(folder=DEFAULT_MODEL):
    """Loads `model.tflite` and `model.json` of a model folder; takes a tenth of a second, without TensorFlow.

    Raises:
        FileNotFoundError: the folder or one of the two files is missing.
        ValueError: a file is damaged, or the two do not belong together.
    """
    folder = Path(folder)
    for name in ("model.json", "model.tflite"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{printable(folder / name)}: no such file. {_list_models(folder)}")
    description = _read_description(folder / "model.json")
    content = (folder / "model.tflite").read_bytes()  # From memory: a path may hold characters that LiteRT cannot open.
    if hashlib.sha256(content).hexdigest() != description["tflite_sha256"]:  # Damaged weights load silently.
        raise ValueError(
            f"{printable(folder / 'model.tflite')}: not the file that model.json describes. Restore it, or train the "
            f"model again: python train.py --output-dir {printable(folder)}"
        )
    run = load_network(content)
    outputs = set(run.get_output_details())
    if outputs != set(description["heads"]):
        raise ValueError(
            f"`heads` of {printable(folder / 'model.json')} must be the outputs of model.tflite, but they are "
            f"{description['heads']} and {sorted(outputs)}."
        )
    return EmotionModel(run, description)


def _list_models(folder):
    """Returns a sentence that names the model folders next to a missing one, or says how to train one."""
    for parent in (folder.parent, ROOT / "models"):
        complete = [path.parent for path in parent.glob("*/model.tflite") if path.with_name("model.json").is_file()]
        if complete:
            return f"Model folders: {', '.join(sorted(map(printable, complete)))}."
    return f"Train it: python train.py --output-dir {printable(folder)}"


def load_network(content):
    """Returns the signature runner of a `.tflite` file's content."""
    try:
        with quiet_stderr():  # LiteRT prints a line when it starts.
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_content=content, num_threads=min(os.cpu_count() or 1, 4))
            run = interpreter.get_signature_runner()
            run(faces=np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 1), np.float32))  # LiteRT prints more at the first run.
            return run
    except ImportError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Ctrl-C while the native module was loading.
            raise KeyboardInterrupt from error
        raise ValueError("LiteRT is not installed. Install it: pip install -r requirements-demo.txt") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"model.tflite: LiteRT cannot read it ({shorten(error)}). Train the model again.") from error


def _read_description(path):
    """Reads `model.json` and checks all that inference relies on."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        known = {(ids, tuple(EMOTIONS[i] for i in ids)) for ids in CLASS_SETS.values()}
        heads, temperatures = description["heads"], description["temperatures"]
        numbers = {name: description[name] for name in ("parameters", "macs")}
        numbers |= {f"temperatures.{head}": temperatures[head] for head in heads}
        checks = {
            "classes": (tuple(description["fer2013_ids"]), tuple(description["classes"])) in known,
            "image_size": description["image_size"] == IMAGE_SIZE,
            "heads": tuple(heads) in (HEADS, HEADS[:1]),
            "training": isinstance(description["training"], dict),
            "tflite_sha256": re.fullmatch("[0-9a-f]{64}", description["tflite_sha256"]),
        }
        for name, number in numbers.items():
            checks[name] = type(number) in (int, float) and 0 < number <= sys.float_info.max
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{printable(path)}: not a model description ({shorten(repr(error))}). Train the model again."
        ) from error
    wrong = next((name for name, right in checks.items() if not right), None)
    if wrong:
        raise ValueError(f"`{wrong}` in {printable(path)} is not one that train.py writes. Train the model again.")
    return description


def read_emotions(frame, model=None, detector=None) -> list[Face]:
    """Finds the faces of an image and names their emotions. Returns a list of `Face`, largest first.

    A small square image in which no face is found, as data sets of faces have them, is a face as a whole. Several
    threads may call this function; they take turns.

    Args:
        frame: uint8 (H, W, 3) BGR, as `cv2.imread` returns it.
        model: from `load_emotion_model`, or a model folder; None for the default one. A folder is loaded once.
        detector: from `load_face_detector`; None for one that is loaded once.

    Raises:
        ValueError: `frame` is not such an array, for example because `cv2.imread` found no image, or `model` is
            neither a model nor its folder.
        FileNotFoundError: `model` is a folder that has no model.
    """
    gray = cv2.cvtColor(_check_frame(frame), cv2.COLOR_BGR2GRAY)
    with _shared.lock:
        detector = _shared.load_detector() if detector is None else detector
        if model is None or isinstance(model, str | os.PathLike):
            model = _shared.load_model(DEFAULT_MODEL if model is None else model)
        elif not isinstance(model, EmotionModel):
            raise ValueError(f"`model` must be a folder or from load_emotion_model, but it is {type(model).__name__}.")
        boxes, angles = find_faces(gray, detector)
        probabilities = model.predict(crop_faces(gray, boxes, angles))
    faces = label_faces(boxes, probabilities, model.classes)
    return [face._replace(angle=float(angle)) for face, angle in zip(faces, angles, strict=True)]


def _check_frame(frame):
    """Returns a frame, or raises ValueError with what to do instead."""
    if isinstance(frame, np.ndarray):
        if frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and frame.size:
            return frame
        received, remedy = f"{frame.dtype} {frame.shape}", ""
    else:
        received, remedy = type(frame).__name__, ""
    if isinstance(frame, str | os.PathLike):
        remedy = " Read the file first: frame = cv2.imread(path)."
    elif hasattr(frame, "convert"):  # An image of Pillow, which is not imported here.
        remedy = ' Convert it: frame = numpy.array(image.convert("RGB"))[:, :, ::-1].copy().'
    raise ValueError(f"`frame` must be a uint8 array (height, width, 3), but it is {received}.{remedy}")


class _Shared:
    """What the calls of `read_emotions` share. Cascades and networks keep state during a call: threads take turns."""

    def __init__(self):
        self.lock = threading.Lock()
        self.load_model = functools.lru_cache(maxsize=4)(load_emotion_model)
        self.load_detector = functools.cache(load_face_detector)


def _renew_shared():
    """Gives a forked process its own lock, model and detector, because their threads exist in its parent only."""
    global _shared
    _inherited.append(_shared)  # Kept, because deleting a network waits for its threads.
    _shared = _Shared()


_shared, _inherited = _Shared(), []
if hasattr(os, "register_at_fork"):  # Windows has no fork.
    # A fork waits for the call under way, so that no native lock is held in the child.
    os.register_at_fork(
        before=lambda: _shared.lock.acquire(),
        after_in_parent=lambda: _shared.lock.release(),
        after_in_child=_renew_shared,
    )

# 4. Probabilities -> drawing ------------------------------------------------------------------------------------------


def choose_labels(probabilities, classes, min_confidence=0.0):
    """Returns F pairs of label and confidence: the most probable emotion, or `UNCERTAIN` below `min_confidence`."""
    best = zip(probabilities.argmax(axis=1), probabilities.max(axis=1).tolist(), strict=True)
    return [(classes[i] if confidence >= min_confidence else UNCERTAIN, confidence) for i, confidence in best]


def label_faces(boxes, probabilities, classes, min_confidence=0.0) -> list[Face]:
    """Returns the upright faces of boxes, int (F, 4), and probabilities, float (F, C)."""
    labels = choose_labels(probabilities, classes, min_confidence)
    rows = zip(boxes.tolist(), labels, probabilities.tolist(), strict=True)
    return [Face(tuple(box), *label, dict(zip(classes, row, strict=True))) for box, label, row in rows]


def annotate_frame(frame, faces) -> np.ndarray:
    """Returns a copy of a frame with a box, a label and a confidence for every face.

    Args:
        frame: uint8 (H, W, 3) BGR.
        faces: list of `Face`.
    """
    frame = frame.copy()
    scale = text_scale(frame)
    for face in faces:
        x, y, width, height = face.box
        color = EMOTION_COLORS.get(face.label, (90, 90, 90))[::-1]  # RGB to BGR.
        corners = cv2.boxPoints(((x + width / 2, y + height / 2), (float(width), float(height)), float(face.angle)))
        corners = np.rint(corners).astype(np.int32)
        cv2.polylines(frame, [corners], True, color, max(1, round(3 * scale)), cv2.LINE_AA)
        put_text(frame, f"{face.label} {face.confidence:.0%}", corners.min(axis=0).tolist(), scale, color)
    return frame


def text_scale(frame):
    """Returns the size of letters for a frame: about 3 % of its height, and never too small to read."""
    return max(frame.shape[0] / 720, 0.5)


def put_text(frame, text, corner, scale, color):
    """Writes text on a filled bar above `corner` (x, y), or as near as the frame allows.

    Text that is wider than the frame is made smaller. Returns the lower edge of the bar in pixels.
    """
    font, pad = cv2.FONT_HERSHEY_SIMPLEX, round(6 * scale)
    (width, height), baseline = cv2.getTextSize(text, font, 0.8 * scale, max(1, round(2 * scale)))
    scale *= min(1.0, max(1, frame.shape[1] - 2 * pad) / width)
    thickness = max(1, round(2 * scale))
    (width, height), baseline = cv2.getTextSize(text, font, 0.8 * scale, thickness)
    x = max(0, min(corner[0], frame.shape[1] - width - 2 * pad))
    bottom = max(corner[1], height + baseline + 2 * pad)
    cv2.rectangle(frame, (x, bottom - height - baseline - 2 * pad), (x + width + 2 * pad, bottom), color, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(color, (0.114, 0.587, 0.299)) > 110 else (255, 255, 255)  # By the bar's brightness.
    cv2.putText(frame, text, (x + pad, bottom - baseline - pad), font, 0.8 * scale, ink, thickness, cv2.LINE_AA)
    return bottom


# 5. Files and messages ------------------------------------------------------------------------------------------------

LONGEST_TEXT = 200  # Characters of a path or of a library's message in one of our lines.
NEW_PREFIX = ".new-"  # Prefix of a file being written; a kill leaves it.


@contextlib.contextmanager
def replaced(path):
    """Yields a temporary path with the same suffix. On success it replaces `path`; on an error it is deleted."""
    temporary = path.with_name(f"{NEW_PREFIX}{os.getpid()}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def printable(source):
    """Returns a path or address as text for messages, titles and file names, without the secrets of an address.

    Userinfo, query and fragment of an address are left out, control characters escaped, long texts shortened.
    """
    text = str(source)
    scheme, separator, rest = text.partition("://")
    if separator:
        authority = re.match("[^/?#]*", rest).group()
        port = authority.rpartition("@")[2].rpartition(":")[2]
        # A password with a slash ends the authority too early. Then its "port" is not a number.
        broken = ":" in authority and "@" in rest and not re.fullmatch(r"\d*|.*\]", port)
        rest = rest.rpartition("@")[2] if broken else rest.removeprefix(authority.rpartition("@")[0]).removeprefix("@")
        text = scheme + separator + re.split("[?#]", rest)[0]
    return shorten(text)


def shorten(text):
    """Returns a text on one line, without control characters, of at most `LONGEST_TEXT` characters."""
    line = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in str(text))
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 3]}..."


@contextlib.contextmanager
def quiet_stderr():
    """Hides what native libraries print to file descriptor 2. Python's own `sys.stderr` must not be used inside."""
    try:
        saved = os.dup(2)
    except OSError:  # The program was started without stderr.
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


# 6. FER2013 and FER+ -> faces, labels, votes --------------------------------------------------------------------------

COLUMNS = ("emotion", "pixels", "Usage")
VOTE_COLUMNS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # In the order of EMOTIONS.
OTHER_VOTE_COLUMNS = ("contempt", "unknown", "NF")  # Counted in the total only; NF means no face.
# Allowed texts of a field. Their position is the value.
EMOTION_IDS = tuple(map(str, range(len(EMOTIONS))))
USAGES = tuple(SPLITS.values())
VOTE_COUNTS = tuple(map(str, range(11)))  # Ten people looked at each face.
HOW_TO_GET_DATA = (
    "Download FER2013 from Kaggle, put it at data/fer2013.csv or name it with --data (its forms: data/README.md). "
    "To try the pipeline with drawn faces: python data/make_sample.py, then --data data/sample.csv."
)

# Limits on the cost of reading a file.
MAX_FILE_BYTES = 1_000_000_000  # fer2013.csv has 301 million.
MAX_ROWS = 80_000  # FER2013 has 35,887; a copy with a blank line after each row has 71,774.
MAX_ROW_BYTES = 20_000  # A row of FER2013 has at most 9,240.
MAX_IMAGE_BYTES = 100_000  # A face of the folder form has about 2,000.
MAX_BYTES_AROUND_CSV = 1_000_000  # The other files of a tar file.
UNREADABLE = (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError, csv.Error)

# What FER2013 is like, and when a data set is not like it.
FACES_PER_CLASS = (  # Training, PublicTest, PrivateTest; in the order of EMOTIONS.
    (3995, 436, 4097, 7215, 4830, 3171, 4965),
    (467, 56, 496, 895, 653, 415, 607),
    (491, 55, 528, 879, 594, 416, 626),
)
MEAN_FACE = (  # Gray levels of the mean Training face, in blocks of 8x8 pixels.
    (110, 124, 145, 144, 123, 109),
    (111, 129, 148, 147, 128, 110),
    (120, 131, 142, 143, 131, 121),
    (125, 152, 152, 152, 151, 125),
    (119, 133, 132, 132, 133, 118),
    (115, 119, 128, 128, 119, 113),
)
MIN_ROWS_TO_JUDGE = 1000  # In a split. Fewer rows differ too much by chance.
MIN_MEAN_FACE_CORRELATION = 0.75  # At least 0.99 in 1,000 faces of FER2013; 0.68 if transposed, 0.65 if upside down.
MIN_LABEL_SIGNAL = 2.0  # At least 2.2 in 1,000 faces of FER2013, at most 1.8 if the labels are shuffled.
MAX_COPIES = 0.2  # Share of a split's faces that are in Training. FER2013: 0.08.
MIN_AGREEMENT = 0.4  # Share of rows in which most votes name the label. FER2013: 0.59 in the worst 500 rows.
ROWS_PER_AGREEMENT = 500


def load_fer2013(path, split, num_classes=5, limit=None):
    """Loads one split of FER2013.

    Args:
        path: `fer2013.csv` or `icml_face_data.csv`, plain or in a gzip, zip or tar file; or a folder that holds
            `train/<emotion>/*.jpg` and `test/<emotion>/*.jpg`, whose file names begin with the split they belong to.
        split: "train", "val" or "test".
        num_classes: 5 or 7; rows of the other emotions are left out.
        limit: keep only the first `limit` rows of the split.

    Returns:
        faces: uint8 (N, 48, 48, 1).
        labels: int64 (N,), index into `CLASS_SETS[num_classes]`.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the data breaks a rule of the format, or holds no row of the split.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, but is {split}.")
    if num_classes not in CLASS_SETS:
        raise ValueError(f"`num_classes` must be one of {', '.join(map(str, CLASS_SETS))}, but is {num_classes}.")
    faces, emotions, usages = _load_parsed(path)
    rows = _split_rows(emotions, usages, split, num_classes)[:limit]
    if len(rows) == 0:
        there = ", ".join(name for i, name in enumerate(SPLITS) if i in usages)
        raise ValueError(
            f"{printable(path)}: no {SPLITS[split]} rows of these {num_classes} classes. Splits with rows: {there}."
        )
    return faces[rows], np.searchsorted(CLASS_SETS[num_classes], emotions[rows])


def load_votes(path, data, split, num_classes=5, limit=None):
    """Loads the votes of FER+ for one split of FER2013 (Barsoum et al., 2016).

    Args:
        path: `fer2013new.csv`, whose rows follow those of `data`.
        data, split, num_classes, limit: as for `load_fer2013`.

    Returns:
        votes: float32 (N, C), one row per face of `load_fer2013`.
        weights: float32 (N,), share of the ten votes that fall on the classes, 0..1.
        consensus: int64 (N,), the class that more than half of the ten votes name, or -1.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the file breaks a rule of the format, or its rows are not those of `data`.
    """
    _check_file(Path(path), "Download fer2013new.csv from github.com/microsoft/FERPlus.")
    if Path(data).is_dir():
        raise ValueError(
            f"{printable(path)}: a folder of images has lost the row order of the votes. Name fer2013.csv with --data."
        )
    _, emotions, usages = _load_parsed(data)
    counts, totals, vote_usages = _read_votes(path)
    _check_same_rows(path, data, (usages, emotions), (vote_usages, counts.argmax(axis=1)))
    rows = _split_rows(emotions, usages, split, num_classes)[:limit]
    counts, totals = counts[rows][:, CLASS_SETS[num_classes]], totals[rows]
    sums = counts.sum(axis=1)
    consensus = np.where(counts.max(axis=1) * 2 > totals, counts.argmax(axis=1), -1)
    return counts / np.maximum(sums, 1)[:, np.newaxis], sums / np.maximum(totals, 1), consensus


def data_warnings(path):
    """Returns one line for each kind of sign that a data set is not FER2013 as published (limits: data/README.md)."""
    faces, emotions, usages = _load_parsed(path)
    warnings = {"counts": _compare_counts(emotions, usages)}  # The first warning of each kind.
    for number, split in enumerate(USAGES):
        images, ids = faces[usages == number], emotions[usages == number]
        copies = int(find_copies(images, faces[usages == 0]).sum()) if number else 0
        if copies > MAX_COPIES * len(images):
            text = f"{split} is not independent: {copies} of its {len(images)} faces are copies of Training's."
            warnings.setdefault("copies", text)
        if len(ids) < MIN_ROWS_TO_JUDGE:
            continue
        blocks = images.mean(axis=0, dtype=np.float32).reshape(6, 8, 6, 8).mean(axis=(1, 3))
        correlation = np.corrcoef(blocks.ravel(), np.ravel(MEAN_FACE))[0, 1] if blocks.std() else 0.0
        if correlation < MIN_MEAN_FACE_CORRELATION:
            text = f"the mean face of {split} has a correlation of {correlation:.2f} with FER2013's."
            warnings.setdefault("pixels", f"pixels may be inverted, transposed or blank: {text}")
        elif _label_signal(images, ids) < MIN_LABEL_SIGNAL:
            warnings.setdefault("labels", f"labels may be shuffled: those of {split} are not related to the pixels.")
    return [f"{printable(path)}: {warning}" for warning in warnings.values() if warning]


def find_copies(faces, others):
    """Returns a bool (N,) mask of the faces that are exact copies of one of the others."""
    seen = {face.tobytes() for face in others}
    return np.array([face.tobytes() in seen for face in faces], bool)


def hash_split(faces, labels):
    """Returns the SHA-256 of faces and labels in hexadecimal digits, as in `model.json`."""
    return hashlib.sha256(faces.tobytes() + labels.astype("<i8").tobytes()).hexdigest()


def _split_rows(emotions, usages, split, num_classes):
    """Returns the rows of a split whose emotion is among the classes."""
    return np.flatnonzero((usages == list(SPLITS).index(split)) & np.isin(emotions, CLASS_SETS[num_classes]))


def _compare_counts(emotions, usages):
    """Returns a line if the splits do not have FER2013's number of faces, in total or per emotion, or else None."""
    counts = np.array([np.bincount(emotions[usages == number], minlength=7) for number in range(3)])  # (split, emotion)
    received, expected = (", ".join(map(str, np.sum(table, axis=1))) for table in (counts, FACES_PER_CLASS))
    if received != expected:
        return f"not the whole of FER2013: {', '.join(USAGES)} have {received} rows instead of {expected}."
    if np.array_equal(counts, FACES_PER_CLASS):
        return None
    split, emotion = np.argwhere(counts != FACES_PER_CLASS)[0]
    return (
        f"splits or emotions may be mixed up: {USAGES[split]} has {counts[split, emotion]} faces of "
        f"{EMOTIONS[emotion]} instead of {FACES_PER_CLASS[split][emotion]}."
    )


def _label_signal(faces, emotions):
    """Returns the F statistic of the emotions' mean faces (one-way ANOVA over 144 pixels): about 1 at random."""
    pixels = faces[:, 2::4, 2::4].reshape(len(faces), -1).astype(np.float32)
    pixels -= pixels.mean(axis=0)
    groups = [pixels[emotions == emotion] for emotion in np.unique(emotions)]
    between = sum(len(group) * np.square(group.mean(axis=0)).sum() for group in groups)
    within = np.square(pixels).sum() - between
    return between / max(1, len(groups) - 1) / (within / (len(faces) - len(groups)))


def _check_same_rows(path, data, labelled, voted):
    """Checks that votes follow the rows of a data set, by the splits and by the emotions of both, int (N,) each."""
    (usages, emotions), (vote_usages, most_voted), name, other = labelled, voted, printable(path), printable(data)
    if len(usages) != len(vote_usages):
        raise ValueError(f"{name} must have one row for each of {other}'s {len(usages)}, but has {len(vote_usages)}.")
    if not np.array_equal(usages, vote_usages):
        row = np.argmax(usages != vote_usages)
        raise ValueError(f"`Usage` of {name} must equal that of {other} in every row, but differs in row {row + 2}.")
    blocks = np.array_split(most_voted == emotions, max(1, len(emotions) // ROWS_PER_AGREEMENT))
    lowest = min(block.mean() for block in blocks)
    if lowest < MIN_AGREEMENT:
        raise ValueError(
            f"{name} must have the row order of {other}, but most votes name the label of only {lowest:.0%} of "
            f"{len(blocks[0])} successive faces (FER2013: over 59%)."
        )


def _load_parsed(path):
    """Returns faces, emotion ids and split numbers of the whole data set."""
    path = Path(path)
    if not path.is_dir():
        _check_file(path, HOW_TO_GET_DATA)
    return _load_once(path, path.stat().st_mtime_ns, path.stat().st_ctime_ns)


@functools.lru_cache(maxsize=1)  # The scripts load several splits of one data set.
def _load_once(path, *times):
    """Does the work of `_load_parsed`. Other times mean that the data set has changed since the last call."""
    return _read_folder(path) if path.is_dir() else _read_csv(path)  # 2 s for FER2013.


def _check_file(path, remedy):
    """Checks that there is a regular file; a pipe or device could be read forever."""
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)}: no such file. {remedy}")
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{printable(path)}: not a regular file of at most {MAX_FILE_BYTES / 1e9:.0f} GB. {remedy}")


def _read_csv(path):
    pixels, emotions, usages = bytearray(), [], []
    for where, (emotion, text, usage) in _read_rows(path, COLUMNS):
        emotions.append(_look_up(emotion, EMOTION_IDS, "emotion", where))
        usages.append(_look_up(usage, USAGES, "Usage", where))
        pixels += _parse_pixels(text, where).tobytes()
    faces = np.frombuffer(pixels, np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 1)
    return faces, np.array(emotions, np.int64), np.array(usages, np.int64)


def _read_votes(path):
    """Returns the counts, float32 (N, 7), the totals with the other columns, float32 (N,), and the split numbers."""
    counts, usages, columns = [], [], (*VOTE_COLUMNS, *OTHER_VOTE_COLUMNS)
    for where, (usage, *votes) in _read_rows(path, ("Usage", *columns)):
        usages.append(_look_up(usage, USAGES, "Usage", where))
        counts.append([_look_up(*vote, where) for vote in zip(votes, itertools.repeat(VOTE_COUNTS), columns)])
        if sum(counts[-1]) > 10:
            raise ValueError(f"A face has at most 10 votes, but {where} holds {sum(counts[-1])}.")
    counts = np.array(counts, np.float32)
    return counts[:, : len(VOTE_COLUMNS)], counts.sum(axis=1), np.array(usages, np.int64)


def _look_up(text, allowed, column, where):
    """Returns the position of a field's text among the allowed ones."""
    if text not in allowed:
        raise ValueError(f"`{column}` must be one of {', '.join(allowed)}, but {where} holds {text[:40]!r}.")
    return allowed.index(text)


def _parse_pixels(text, where):
    """Returns the pixels, uint8 (2304,), of one text of numbers."""
    try:
        pixels = np.fromstring(text, dtype=np.int64, sep=" ")
    except ValueError as error:
        raise ValueError(f"`pixels` must hold whole numbers with spaces between, but {where} does not.") from error
    if pixels.size != IMAGE_SIZE * IMAGE_SIZE:
        raise ValueError(f"`pixels` must hold {IMAGE_SIZE * IMAGE_SIZE} numbers, but {where} holds {pixels.size}.")
    if pixels.min() < 0 or pixels.max() > 255:
        outside = pixels[(pixels < 0) | (pixels > 255)][0]
        raise ValueError(f"`pixels` must be within 0..255, but {where} holds {outside}.")
    return pixels.astype(np.uint8)


def _read_rows(path, columns):
    """Yields the place, "row 2 of <file>" after the header, and the fields in `columns` of each row with content."""
    name, where = printable(path), None
    try:
        with _open_csv(path) as (stream, size):
            rows = csv.reader(_read_lines(stream, size, name), skipinitialspace=True)
            header = [field.strip("\ufeff ") for field in next(rows, [])]  # Windows programs write a byte order mark.
            for column in columns:
                if column not in header:
                    raise ValueError(f"{name} must have the column {column}, but has {shorten(', '.join(header))!r}.")
            for fields in rows:
                if not any(map(str.strip, fields)):
                    continue
                where, width = f"row {rows.line_num} of {name}", len(fields)
                if width != len(header):
                    problem = f"must have {len(header)} fields a row, but row {rows.line_num} has {width}"
                    raise ValueError(f"{name} {problem}.")
                yield where, [fields[header.index(column)].strip() for column in columns]
    except PermissionError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{name}: not readable as a CSV ({shorten(error)}). Download it again.") from error
    if where is None:
        raise ValueError(f"{name}: a header and no rows. Download it again.")


def _read_lines(stream, size, name):
    """Yields the lines in the next `size` bytes, in bounded memory, whatever the stream holds."""
    for number in range(1, MAX_ROWS + 2):
        line = stream.readline(min(size, MAX_ROW_BYTES + 1))
        if not line and 0 < size < math.inf:
            raise EOFError("it ends early")
        if not line:
            return
        if len(line) > MAX_ROW_BYTES:
            raise ValueError(f"A row of {name} must have at most {MAX_ROW_BYTES} bytes, but row {number} has more.")
        size -= len(line)
        yield line.decode("utf-8", "replace")
    raise ValueError(f"{name} must have at most {MAX_ROWS} rows, but has more.")


@contextlib.contextmanager
def _open_csv(path):
    """Yields the stream and the size of the CSV in a plain, gzip, zip or tar file, told apart by their first bytes."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        if file.peek(2)[:2] == b"PK":
            archive = stack.enter_context(zipfile.ZipFile(file))
            # Python decompresses other methods in unbounded pieces.
            entries = [entry for entry in archive.infolist() if _is_csv(entry.filename)]
            if not entries or {entry.compress_type for entry in entries} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise OSError("no CSV in it, or an unusual compression")
            largest = max(entries, key=lambda entry: entry.file_size)  # The whole data set, if there are parts of it.
            yield stack.enter_context(archive.open(largest)), math.inf
            return
        if file.peek(2)[:2] == b"\x1f\x8b":
            if not zlib.decompressobj(zlib.MAX_WBITS + 16).decompress(file.peek(512), 1):
                raise OSError("no content at its beginning")  # Python would take minutes for a header of 100 MB.
            file = stack.enter_context(gzip.open(file))
        in_tar = b"\0" in file.peek(512)[:512]
        yield file, _skip_to_csv(file) if in_tar else math.inf
        # The checksum of gzip is at the end, after the other files.
        if in_tar and len(file.read(MAX_BYTES_AROUND_CSV)) == MAX_BYTES_AROUND_CSV:
            raise OSError("too much after the CSV")


def _skip_to_csv(stream):
    """Reads a tar file up to the content of its first CSV. Returns the CSV's size in bytes."""
    for _ in range(10):  # Entries.
        entry = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "replace")
        if not 0 <= entry.size < MAX_FILE_BYTES:
            break
        if _is_csv(entry.name):
            return entry.size
        stream.read(min(-(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, MAX_BYTES_AROUND_CSV))
    raise OSError("no CSV at its beginning")


def _is_csv(name):
    """Returns whether a file of an archive is a CSV, and not a hidden file that macOS adds."""
    return name.lower().endswith(".csv") and not Path(name).name.startswith(".")


def _list_images(path):
    """Returns the files of the folder form, in the order of the numbers in their names, whatever class they are in."""
    found = (file for part in ("train", "test") for file in path.glob(f"{part}/*/[!.]*"))
    images = (file for file in found if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    files = list(itertools.islice(images, MAX_ROWS + 1))
    if not files:
        raise ValueError(f"{printable(path)}: no train/<emotion>/*.jpg and test/<emotion>/*.jpg. {HOW_TO_GET_DATA}")
    if len(files) > MAX_ROWS:
        raise ValueError(f"{printable(path)} must have at most {MAX_ROWS} images, but has more.")
    return sorted(files, key=lambda file: (int("0" + "".join(filter(str.isdecimal, file.stem))), file.name))


def _read_folder(path):
    names, faces, emotions, usages = [emotion.lower() for emotion in EMOTIONS], [], [], []
    for file in _list_images(path):
        name, emotion, usage = printable(file), file.parent.name.lower(), file.stem.split("_")[0]
        if emotion not in names:
            raise ValueError(f"A folder of faces must be named {', '.join(names)}, but {name} is in another.")
        if usage not in USAGES:
            raise ValueError(f"The name of a face must begin with {', '.join(USAGES)}, but {name} does not.")
        faces.append(_read_face(file, name))
        emotions.append(names.index(emotion))
        usages.append(USAGES.index(usage))
    return np.array(faces)[..., np.newaxis], np.array(emotions, np.int64), np.array(usages, np.int64)


def _read_face(file, name):
    """Returns the image, uint8 (48, 48), of a file of the folder form."""
    image = None
    if file.is_file() and 0 < file.stat().st_size <= MAX_IMAGE_BYTES:
        with contextlib.suppress(cv2.error), quiet_stderr():  # libpng and libjpeg print warnings.
            # From memory: OpenCV cannot open a path with letters beyond ASCII on Windows.
            image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None or image.shape != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"A face must be an image of {IMAGE_SIZE}x{IMAGE_SIZE} pixels, but {name} is not.")
    return image
