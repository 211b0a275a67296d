"""The path from input to labeled frame, shared by train.py, evaluate.py and webcam_demo.py.

A function belongs here only if it is a step on that path and all scripts must agree on it. The exceptions are the
metrics that train.py and evaluate.py share, and the helpers for files and messages. Importing this module loads OpenCV
and NumPy. LiteRT is imported when a model is loaded, Pillow when a label is drawn, TensorFlow and Keras never.

The data has the same names in every file:

    frame          uint8 (H, W, 3)       BGR image, as OpenCV returns it
    gray           uint8 (H, W)          grayscale frame
    boxes          int (F, 4)            x, y, width, height in frame pixels; (0, 4) without a face
    faces          uint8 (N, 48, 48, 1)  raw 0..255, the network's input, from the CSV or the camera
    labels         int (N,)              index into the model's classes
    votes          float32 (N, C)        share of the raters' votes per class; rows sum to 1, or 0 without votes
    probabilities  float32 (N, C)        rows sum to 1, columns in the order of the model's classes

A layer inside the saved model normalizes the gray levels, so every script feeds it the same input as training does.
"""

import collections
import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import NamedTuple

try:
    import cv2
except ImportError as error:
    # Part of the message -> what to install. The N editions of Windows lack the Media Feature Pack.
    remedies = {
        "libGL": "apt-get install libgl1; or, without windows: pip uninstall opencv-python, pip install "
        "opencv-python-headless",
        "DLL": "the Visual C++ Redistributable and, on Windows N, the Media Feature Pack",
    }
    remedy = next((text for part, text in remedies.items() if part in str(error)), None)
    if not remedy:
        raise
    raise ImportError(f"OpenCV lacks a system library ({error}). Install it: {remedy}") from error
import numpy as np

# 1. Labels, shapes, paths ---------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent
DEFAULT_MODEL = ROOT / "models" / "emotions-5"

# RGB, the same in every figure and on every frame: the Okabe-Ito palette, which color-blind readers can tell apart.
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
# Outputs of the network: one for FER2013's labels, one for the votes of FER+. A model may lack the second.
HEADS = ("labels", "votes")
OPENCV = '"opencv-python>=4.13,<5"'  # The package to install. requirements-demo.txt has the reasons.
MAX_MODEL_BYTES = {"model.json": 1_000_000, "model.tflite": 100_000_000}
UNCERTAIN = "uncertain"  # The label of a face whose most probable emotion is below the minimum confidence.


class Face(NamedTuple):
    """One face in a frame: its place and its emotion."""

    box: tuple[int, int, int, int]  # x, y, width, height in pixels of the frame.
    label: str  # The most probable emotion, or `UNCERTAIN`.
    confidence: float  # Probability of the most probable emotion, 0..1.
    probabilities: dict[str, float]  # Emotion -> 0..1, in the order of the model's classes.
    angle: float = 0.0  # Degrees by which the head is tilted clockwise.
    track: int | None = None  # Number of the face, from 1; None in a single image.
    held: bool = False  # Missed in this frame, but its place still looks like it.


# 2. Frame -> faces ----------------------------------------------------------------------------------------------------

# OpenCV's Haar cascades: one finds faces, one confirms them, one finds faces that look to the left.
CASCADES = {
    "frontal": "haarcascade_frontalface_default.xml",
    "confirming": "haarcascade_frontalface_alt.xml",
    "profile": "haarcascade_profileface.xml",
}
FaceDetector = collections.namedtuple("FaceDetector", [*CASCADES, "model"])
# On the square root of the gray levels, the frontal cascades miss fewer dark-skinned and dim faces, but the profile
# cascade misses more. The network gets the plain gray levels, as in training.
TONE = np.rint(np.sqrt(np.arange(256) / 255) * 255).astype(np.uint8)
SEARCH_WIDTH = 64  # Pixels of the face in a search around a box.
SEARCH_MARGIN = 0.3  # On each side of the box, in widths of the box.
SEARCH_SIZES = (0.75, 1.35)  # The smallest and the largest face, in widths of the box.
SEARCH_STEP = 1.1  # Ratio of successive sizes.
# How many detections must agree on a new face: of the frontal cascade, of the confirming one, and of the frontal one if
# the confirming one finds none. One of 112 false candidates from the frontal cascade had 30.
NEW_NEIGHBORS = 5
CONFIRMING_NEIGHBORS = 4
SURE_NEIGHBORS = 30
# The network's probability that a candidate is a face. Above SURE_SCORE the confirming cascade is not needed; it misses
# tilted and dark-skinned faces. Buildings and text reach 0.95. Below LEAST_SCORE the candidate is rejected.
SURE_SCORE = 0.97
LEAST_SCORE = 0.1
# Evidence is counted in detections. See `face_evidence`.
SCORE_EVIDENCE = 60  # Added for a probability of 1.
MIN_OVERLAP = 0.5  # Two boxes sharing this much of the smaller one cannot both be faces.

# Single images, where time does not matter.
STILL_LINES = 1440  # Pixels. A longer shorter side is reduced to this. The smallest face is a thirtieth of it.
LONGEST_SIDE = 20_000  # Pixels; OpenCV cannot rotate an image of 32,767.
STILL_WIDTH = 96  # Pixels of the face when it is confirmed.
STILL_ANGLES = (0, -25, 25, -50, 50)  # Degrees; the cascade tolerates 15 by itself.
STILL_PADDING = 0.25  # Share of the shorter side by which the edge is repeated, to find faces that are cut off.
STILL_EVIDENCE = 30  # Least evidence of a face.
LEAST_EVIDENCE = 20  # Enough for the only upright face, if it is wide enough.
LEAST_SHARE = 0.2  # Least width of such a face, as a share of the image's shorter side.
PROFILE_NEIGHBORS = 7  # No second detector confirms a profile, so more detections have to agree.
# A small square image counts as one face, as in face data sets, unless a smaller face is found in it.
PORTRAIT_SIZES = (IMAGE_SIZE, 112)  # Least and largest side in pixels.
PORTRAIT_CONTRAST = 5  # Least standard deviation of the gray levels.
PORTRAIT_SHARE = 0.7  # Largest width of such a smaller face, as a share of the side.


def load_face_detector():
    """Loads `CASCADES` as a `FaceDetector`, a named tuple of `cv2.CascadeClassifier`s and the default `EmotionModel`.

    That model confirms faces, even if another one names the emotions, which may have been trained on drawn faces.
    If `OMP_NUM_THREADS` is set, it limits OpenCV's threads, because OpenCV does not read it.

    Raises:
        ValueError: this OpenCV has no cascades (5.x has none), or a file is damaged.
        FileNotFoundError: the default model is missing.
    """
    if "OMP_NUM_THREADS" in os.environ:
        cv2.setNumThreads(count_threads())
    return FaceDetector(*map(load_cascade, CASCADES.values()), load_emotion_model())


def load_cascade(name):
    """Loads one of OpenCV's cascade files as `cv2.CascadeClassifier`, or raises ValueError."""
    path = Path(getattr(cv2, "data", cv2).__path__[0]) / name
    if not hasattr(cv2, "CascadeClassifier") or not path.exists():
        raise ValueError(f"OpenCV {cv2.__version__} has no Haar cascades. Install 4.x: pip install {OPENCV}")
    cascade, storage = cv2.CascadeClassifier(), cv2.FileStorage()
    with contextlib.suppress(cv2.error):
        # From memory, because OpenCV on Windows cannot open non-ASCII paths.
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
    _check_gray(gray)
    with _shared.lock:  # The cascades keep state during a call.
        faces = _find_frontal(gray, detector, angles=(0,))
    return np.array([np.rint(box) for box, _ in faces], int).reshape(-1, 4)


def _check_gray(gray):
    if gray.ndim != 2:
        raise ValueError(f"`gray` must have two dimensions, but it has {gray.ndim}. Use cv2.COLOR_BGR2GRAY.")


def find_faces(gray, detector):
    """Finds the faces of a single image, also tilted ones or, if there are none, profiles.

    A small square image (`PORTRAIT_SIZES`) may count as one face.

    Returns:
        boxes: int (F, 4), largest first.
        angles: list of F degrees by which the faces are tilted clockwise.
    """
    faces = _find_frontal(gray, detector, STILL_ANGLES) or _find_profiles(gray, detector)
    if _is_portrait(gray) and all(box[2] > PORTRAIT_SHARE * len(gray) for box, _ in faces):
        faces = [((0, 0, len(gray), len(gray)), 0)]
    return np.array([np.rint(box) for box, _ in faces], int).reshape(-1, 4), [angle for _, angle in faces]


def _is_portrait(gray):
    """Returns whether an image has the shape of a cropped face and enough contrast."""
    height, width = gray.shape
    return height == width and PORTRAIT_SIZES[0] <= width <= PORTRAIT_SIZES[1] and gray.std() >= PORTRAIT_CONTRAST


def _find_frontal(gray, detector, angles):
    """Returns pairs of box and angle of the frontal faces, largest first."""
    still = _prepare_still(gray, TONE)
    places = [(box, angle) for angle in angles for box in _scan(still, detector.frontal, NEW_NEIGHBORS, angle)]
    found = [(face_evidence(gray, box, detector, angle, STILL_WIDTH), box, angle) for box, angle in places]
    found.sort(key=lambda face: (-face[0], *face[1]))
    faces = []
    # Evidence is highest at the face's own angle, and for the whole face rather than for an eye or the mouth.
    for evidence, box, angle in found:
        if evidence >= STILL_EVIDENCE and not overlaps_any(box, [other for other, _ in faces]):
            faces.append((box, angle))
    if not faces:
        least = LEAST_SHARE * min(gray.shape)
        upright = [(evidence, box) for evidence, box, angle in found if angle == 0]
        faces = [(box, 0) for evidence, box in upright if evidence >= LEAST_EVIDENCE and box[2] >= least][:1]
    return sorted(faces, key=lambda face: (-face[0][2], *face[0]))


def _find_profiles(gray, detector):
    """Returns pairs of box and angle 0 of the profiles, largest first."""
    faces, still = [], _prepare_still(gray)
    for flipped in (False, True):
        for box in _scan(still, detector.profile, PROFILE_NEIGHBORS, flipped=flipped):
            box, _ = search_face(gray, box, detector.profile, PROFILE_NEIGHBORS, flipped=flipped, tone=None)
            if box is not None and not overlaps_any(box, [other for other, _ in faces]):
                faces.append((box, 0))
    return sorted(faces, key=lambda face: (-face[0][2], *face[0]))


def _prepare_still(gray, tone=None):
    """Returns an image reduced, toned and padded for `_scan`, its padding in pixels, and its reduction."""
    reduced, reduction = reduce_image(gray, STILL_LINES)
    reduced = reduced if tone is None else cv2.LUT(reduced, tone)
    padding = round(STILL_PADDING * min(reduced.shape))
    return cv2.copyMakeBorder(reduced, *[padding] * 4, cv2.BORDER_REPLICATE), padding, reduction


def reduce_image(gray, lines):
    """Returns an image whose shorter side has at most `lines` pixels, and the factor of its reduction, 0..1."""
    reduction = min(1.0, lines / min(gray.shape), LONGEST_SIDE / max(gray.shape))
    if min(gray.shape) * reduction < 1:
        return gray[:1, :1], 1.0  # Too narrow for a face.
    return cv2.resize(gray, None, fx=reduction, fy=reduction, interpolation=cv2.INTER_AREA), reduction


def _scan(still, cascade, neighbors, angle=0, flipped=False):
    """Returns the boxes, float (4,), that a cascade finds in a prepared image, turned by an angle and flipped."""
    padded, padding, reduction = still
    image, to_padded = turn_upright(padded, angle, flipped)
    found = cascade.detectMultiScale(image, SEARCH_STEP, neighbors, minSize=(IMAGE_SIZE, IMAGE_SIZE))
    # Sorted, because the threads of the cascade finish in varying order.
    points = [(to_padded @ (x + width / 2, y + width / 2, 1), width) for x, y, width, _ in sorted(map(tuple, found))]
    return [square_around(point - padding, width) / reduction for point, width in points]


def square_around(point, width):
    """Returns the square box, float (4,), around a point x, y."""
    return np.array([*(point - width / 2), width, width])


def middle(box):
    """Returns the middle x, y of a box."""
    return np.add(box[:2], np.divide(box[2:], 2))


def turn_upright(image, angle, flipped=False):
    """Returns an image turned so that tilted heads are upright, and the matrix (2, 3) that turns points back."""
    if not angle and not flipped:
        return image, np.eye(2, 3)
    to_upright = cv2.getRotationMatrix2D((image.shape[1] / 2, image.shape[0] / 2), angle, 1)
    if flipped:
        to_upright[0] = -to_upright[0]
        to_upright[0, 2] += image.shape[1]
    return cv2.warpAffine(image, to_upright, image.shape[::-1]), cv2.invertAffineTransform(to_upright)


def face_evidence(gray, box, detector, angle=0.0, face_width=SEARCH_WIDTH):
    """Returns the evidence that a box holds a face, an int; 0 if it is rejected.

    The evidence is the number of detections that agree plus `SCORE_EVIDENCE` times the network's score. A face has
    about 85, a blurred one about 40.
    """
    place, found = search_face(gray, box, detector.frontal, NEW_NEIGHBORS, angle, face_width=face_width)
    if place is None:
        return 0
    score = float(detector.model.face_scores(crop_faces(gray, [place], [angle]))[0])
    if score <= LEAST_SCORE:
        return 0
    if score <= SURE_SCORE and found < SURE_NEIGHBORS:
        cascade, neighbors = detector.confirming, CONFIRMING_NEIGHBORS
        if search_face(gray, box, cascade, neighbors, angle, face_width=face_width)[0] is None:
            return 0
    return found + round(SCORE_EVIDENCE * score)


def search_face(
    gray, box, cascade, neighbors, angle=0.0, flipped=False, *, face_width=SEARCH_WIDTH, sizes=SEARCH_SIZES,
    step=SEARCH_STEP, tone=TONE,
):  # fmt: skip
    """Searches the surroundings of a box for a face of about its size.

    Returns the box near the middle on which most detections agree, float (4,) or None, and the number of these
    detections.

    Args:
        neighbors: number of detections that have to agree.
        angle: degrees by which the face is tilted clockwise.
        flipped: search the horizontally flipped image.
        face_width: pixels to which the box is scaled. With fewer than 64, the found boxes are too large.
        sizes: the smallest and the largest face, in widths of the box.
        step: ratio of successive sizes.
        tone: uint8 (256,), the new value of each gray level; None leaves them as they are.
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
    return square_around(middle(box) + rotate((-x if flipped else x, y), angle), width), int(agreeing[best])


def rotate(offset, angle):
    """Rotates an offset (x, y) clockwise by `angle` degrees."""
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return np.array([[cosine, -sine], [sine, cosine]]) @ offset


def cut_square(gray, box, size, margin=0.0, angle=0.0, exact=False):
    """Cuts the square around a box out of a frame, uint8 (size, size). Beyond the frame, its edge is repeated.

    Args:
        size: width in pixels of the result.
        margin: extra space on each side of the box, in widths of the box.
        angle: degrees by which the box's content is tilted clockwise; it is turned upright.
        exact: average over the exact area of each resulting pixel: sharper, but up to five times slower.
    """
    x, y, width, height = box
    center_x, center_y, side = x + width / 2, y + height / 2, max(width, height, 1) * (1 + 2 * margin)
    reach = side * 0.75 if angle else side / 2  # Half a diagonal, and a little for the interpolation.
    left = int(np.clip(center_x - reach, 0, gray.shape[1] - 1))
    top = int(np.clip(center_y - reach, 0, gray.shape[0] - 1))
    region = gray[top : max(top + 1, int(center_y + reach) + 2), left : max(left + 1, int(center_x + reach) + 2)]
    reduction = max(1, side / size) if exact else max(1, int(side / size))  # OpenCV is fast for whole numbers.
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
    """Returns whether a box overlaps one of the others so much that both must be the same face."""
    return any(overlap(box, other) >= MIN_OVERLAP for other in others)


def overlap(box, other):
    """Returns the intersection of two boxes over the smaller box, 0..1: 1 if one lies within the other."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(0, width) * max(0, height) / min(box[2] * box[3], other[2] * other[3])


def crop_faces(gray, boxes, angles=None):
    """Cuts faces, uint8 (F, 48, 48, 1), out of a frame. An upright box of 48x48 pixels is copied bit for bit.

    Args:
        boxes: int (F, 4), framed like FER2013's faces, as the cascade's boxes are. Beyond the frame, its edge is
            repeated.
        angles: F degrees by which the faces are tilted clockwise; they are turned upright.
    """
    _check_gray(gray)
    angles = np.zeros(len(boxes)) if angles is None else angles
    pairs = zip(boxes, angles, strict=True)
    faces = [cut_square(gray, box, IMAGE_SIZE, angle=angle, exact=True) for box, angle in pairs]
    return np.array(faces, np.uint8).reshape(len(faces), IMAGE_SIZE, IMAGE_SIZE, 1)


# 3. Faces -> probabilities --------------------------------------------------------------------------------------------


class EmotionModel:
    """The exported network of a model folder, run by LiteRT.

    Attributes:
        run: function that runs the network: from `faces=`, float32 (N, 48, 48, 1), to a dict of head to logits,
            float32 (N, C).
        classes: tuple of str, the emotion of each column of the probabilities.
        heads: tuple of str, outputs of the network: `("labels",)` or `("labels", "votes")`. The demo uses the last.
        description: dict, the content of `model.json`.
    """

    BATCH_SIZE = 64  # Faces per forward pass: enough for any frame, and small enough to score a whole split.

    def __init__(self, run, description):
        self.run, self.description = run, description
        self.classes, self.heads = tuple(description["classes"]), tuple(description["heads"])

    def logits(self, faces) -> dict[str, np.ndarray]:
        """Returns the output of each head, dict of float32 (N, C), for faces, uint8 (N, 48, 48, 1).

        Raises:
            ValueError: `faces` are not such an array. To the network, gray levels scaled to 0..1 would be blank.
        """
        if faces.dtype != np.uint8 or faces.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 1):
            received = f"{faces.dtype} {faces.shape}"
            raise ValueError(f"`faces` must be uint8 (N, 48, 48, 1), but they are {received}. Use crop_faces.")
        logits = {head: np.empty((len(faces), len(self.classes)), np.float32) for head in self.heads}
        for start in range(0, len(faces), self.BATCH_SIZE):
            batch = slice(start, start + self.BATCH_SIZE)
            outputs = self.run(faces=faces[batch].astype(np.float32))
            for head in self.heads:
                logits[head][batch] = outputs[head]
        return logits

    def face_scores(self, faces) -> np.ndarray:
        """Returns the probability, float32 (N,), that each window, uint8 (N, 48, 48, 1), holds a face.

        If the network has no such output, it is 0.5, so that the cascades decide.
        """
        if len(faces) == 0:  # LiteRT would crash the process.
            return np.empty(0, np.float32)
        logits = self.run(faces=faces.astype(np.float32)).get("face")
        return np.full(len(faces), 0.5, np.float32) if logits is None else 1 / (1 + np.exp(-logits[:, 0]))

    def predict(self, faces, head=None) -> np.ndarray:
        """Returns the probabilities, float32 (N, C), of faces, uint8 (N, 48, 48, 1).

        With `head`, they come from that head. Without, they are those that the demo shows: from the last head, with the
        bias that corrects for rare classes (Menon et al., 2021).
        """
        return self.probabilities(self.logits(faces), head)

    def probabilities(self, logits, head=None):
        """Returns the same as `predict`, from the output of `logits`."""
        bias = 0.0 if head else np.array(self.description["bias"], np.float32)
        head = head or self.heads[-1]
        return softmax(logits[head] / self.description["temperatures"][head] + bias).astype(np.float32)


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
    """Returns the mean gap between confidence and accuracy, weighted by the faces in each bin (Guo et al., 2017)."""
    confidence, accuracy, count = calibration_bins(probabilities, labels)
    return float(np.nansum(np.abs(confidence - accuracy) * count) / len(labels))


def mean_recall(scores, labels):
    """Returns the mean recall of the classes in labels, int (N,). The highest score, float (N, C), is predicted."""
    right = scores.argmax(axis=1) == labels
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def load_emotion_model(folder=DEFAULT_MODEL) -> EmotionModel:
    """Loads `model.tflite` and `model.json` of a model folder, in a tenth of a second and without TensorFlow.

    Raises:
        FileNotFoundError: the folder or one of the two files is missing.
        ValueError: a file is damaged, or the two do not belong together.
    """
    folder = Path(folder)
    for name, limit in MAX_MODEL_BYTES.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{printable(folder / name)}: no such file. {_list_models(folder)}")
        if (folder / name).stat().st_size > limit:
            raise ValueError(f"{printable(folder / name)}: larger than {limit // 10**6} MB, so not from train.py.")
    description = _read_description(folder / "model.json")
    content = (folder / "model.tflite").read_bytes()  # From memory: LiteRT cannot open every path.
    if hashlib.sha256(content).hexdigest() != description["tflite_sha256"]:  # Damaged weights load silently.
        raise ValueError(
            f"{printable(folder / 'model.tflite')}: not the file that model.json describes. Restore it, or train the "
            f"model again: python train.py --output-dir {printable(folder)}"
        )
    run = load_network(content)
    _check_outputs(run, description, folder / "model.tflite")
    return EmotionModel(run, description)


def _check_outputs(run, description, path):
    """Raises ValueError unless the outputs are those of `model.json`: finite logits (N, C) per head, maybe `face`."""
    try:
        outputs = run(faces=np.zeros((2, IMAGE_SIZE, IMAGE_SIZE, 1), np.float32))
    except (ValueError, RuntimeError):  # For example, if the number of faces is fixed.
        outputs = {}
    heads, shape = description["heads"], (2, len(description["classes"]))
    shapes = dict.fromkeys(heads, shape) | ({"face": (2, 1)} if "face" in outputs else {})
    if {name: output.shape for name, output in outputs.items() if np.isfinite(output).all()} != shapes:
        problem = f"its outputs must be logits of {shape[1]} classes named {', '.join(heads)}, but they are not"
        raise ValueError(f"{printable(path)}: {problem}. Train the model again.")


def _list_models(folder):
    """Returns a sentence that names existing model folders or, if there are none, says how to train one."""
    for parent in (folder.parent, ROOT / "models"):
        complete = [path.parent for path in parent.glob("*/model.tflite") if path.with_name("model.json").is_file()]
        if complete:
            return f"Model folders: {', '.join(sorted(map(printable, complete)))}."
    return f"Train it: python train.py --output-dir {printable(folder)}"


def count_threads():
    """Returns the number of threads for LiteRT: `OMP_NUM_THREADS` if set, otherwise one per core, at most 4."""
    number = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(number)) if number.isdecimal() else min(os.cpu_count() or 1, 4)


def load_network(content):
    """Returns a thread-safe function that runs the network in a `.tflite` file's content, bytes."""
    try:
        with quiet_stderr():  # LiteRT prints a line when it starts.
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_content=content, num_threads=count_threads())
            run = interpreter.get_signature_runner()
            run(faces=np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 1), np.float32))  # LiteRT prints more at the first run.

        def run_alone(**inputs):  # LiteRT keeps state during a call, so parallel calls would mix up their outputs.
            with _shared.lock:
                return run(**inputs)

        return run_alone
    except ImportError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Ctrl-C while the native module was loading.
            raise KeyboardInterrupt from error
        remedy = "pip install -r requirements-demo.txt; on Windows also https://aka.ms/vs/17/release/vc_redist.x64.exe"
        raise ValueError(f"LiteRT cannot be loaded ({shorten(error)}). Install it: {remedy}") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"model.tflite: LiteRT cannot read it ({shorten(error)}). Train the model again.") from error


def _read_description(path):
    """Reads `model.json` and checks every value that inference relies on."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        class_sets = {(ids, tuple(EMOTIONS[i] for i in ids)) for ids in CLASS_SETS.values()}
        heads, bias = description["heads"], description["bias"]
        positive = {name: description[name] for name in ("parameters", "macs")}
        positive |= {f"temperatures.{head}": description["temperatures"][head] for head in heads}
        checks = {
            "classes": (tuple(description["fer2013_ids"]), tuple(description["classes"])) in class_sets,
            "image_size": description["image_size"] == IMAGE_SIZE,
            "heads": tuple(heads) in (HEADS, HEADS[:1]),
            "bias": len(bias) == len(description["classes"]) and all(map(_is_finite, bias)),
            "training.tau": _is_finite(description["training"].get("tau", 0)),
            "tflite_sha256": re.fullmatch("[0-9a-f]{64}", description["tflite_sha256"]),
        }
        checks |= {name: _is_finite(number) and number > 0 for name, number in positive.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{printable(path)}: not a model description ({shorten(repr(error))}). Train the model again."
        ) from error
    wrong = next((name for name, right in checks.items() if not right), None)
    if wrong:
        raise ValueError(f"`{wrong}` in {printable(path)} has an invalid value. Train the model again.")
    return description


def _is_finite(number):
    """Returns whether a value from JSON is a number that fits into a float."""
    return type(number) in (int, float) and abs(number) <= sys.float_info.max


def read_emotions(frame, model=None, detector=None) -> list[Face]:
    """Finds the faces of an image and names their emotions. Returns a list of `Face`, largest first.

    A small square image without a smaller face counts as one face, because data sets have such portraits. Several
    threads may call this function; they take turns.

    Args:
        frame: uint8 (H, W, 3) BGR, as `cv2.imread` returns it.
        model: from `load_emotion_model`, or a model folder; None for the default one. A folder is loaded once.
        detector: from `load_face_detector`; None for one that is loaded once.

    Raises:
        ValueError: `frame` is not such an array (`cv2.imread` returns None if it fails), or `model` or `detector` has
            the wrong type.
        FileNotFoundError: `model` is a folder that has no model.
    """
    gray = cv2.cvtColor(_check_frame(frame), cv2.COLOR_BGR2GRAY)
    with _shared.lock:
        detector = _shared.load_detector() if detector is None else detector
        if not isinstance(detector, FaceDetector):
            raise ValueError(f"`detector` must be from load_face_detector, but it is {type(detector).__name__}.")
        if model is None or isinstance(model, str | os.PathLike):
            model = _shared.load_model(DEFAULT_MODEL if model is None else model)
        elif not isinstance(model, EmotionModel):
            raise ValueError(f"`model` must be a folder or from load_emotion_model, but it is {type(model).__name__}.")
        boxes, angles = find_faces(gray, detector)
        probabilities = model.predict(crop_faces(gray, boxes, angles))
    return label_faces(boxes, angles, probabilities, model.classes)


def _check_frame(frame):
    """Returns a valid frame unchanged, or raises ValueError that says what to do."""
    is_array, remedy = isinstance(frame, np.ndarray), ""
    if is_array and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and frame.size:
        return frame
    received = f"{frame.dtype} {frame.shape}" if is_array else type(frame).__name__
    if isinstance(frame, str | os.PathLike):
        remedy = " Read the file first: frame = cv2.imread(path)."
    elif frame is None:
        remedy = " cv2.imread could not read an image: check the path."
    elif is_array and frame.dtype == np.uint8 and frame.shape[2:] in ((), (1,), (4,)) and frame.size:
        code = "BGRA2BGR" if frame.shape[2:] == (4,) else "GRAY2BGR"
        remedy = f" Convert it: frame = cv2.cvtColor(frame, cv2.COLOR_{code})."
    elif hasattr(frame, "convert"):  # A Pillow image. Pillow is not imported here.
        remedy = ' Convert it: frame = numpy.array(image.convert("RGB"))[:, :, ::-1].copy().'
    raise ValueError(f"`frame` must be a uint8 array (height, width, 3), but it is {received}.{remedy}")


class _Shared:
    """Objects that all threads share. Cascades and networks keep state during a call, so threads must hold the lock."""

    def __init__(self):
        self.lock = threading.RLock()  # Taken twice by `quiet_stderr` and by a reloaded module's hooks.
        self.load_model = functools.lru_cache(maxsize=4)(load_emotion_model)
        self.load_detector = functools.cache(load_face_detector)


def _renew_shared():
    """Gives a forked process its own lock, model and detector, because their threads exist in its parent only."""
    global _shared
    _inherited.append(_shared)  # Never deleted: deleting a network would wait for threads that do not exist here.
    _shared = _Shared()


_shared, _inherited = _Shared(), []
if hasattr(os, "register_at_fork"):  # Windows has no fork.
    # A fork waits for the current call, so that the child never inherits a locked native lock.
    os.register_at_fork(
        before=lambda: _shared.lock.acquire(),
        after_in_parent=lambda: _shared.lock.release(),
        after_in_child=_renew_shared,
    )

# 4. Probabilities -> drawing ------------------------------------------------------------------------------------------

TEXT_SHARE, MIN_TEXT = 0.03, 12  # Size of letters: share of the frame's height, and least size in pixels.
SMALL_FACE, SMALL_TEXT = 5, 0.7  # A face narrower than 5 times the size of letters gets letters of 0.7 times that size.
UNCERTAIN_COLOR, DARK = (90, 90, 90), (32, 32, 32)  # BGR or RGB.


def choose_labels(probabilities, classes, min_confidence=0.0) -> list[tuple[str, float]]:
    """Returns the label and the confidence, 0..1, of each row of probabilities, float (F, C).

    The label is the most probable of the C classes, or `UNCERTAIN` where its probability is below `min_confidence`.
    """
    best = zip(probabilities.argmax(axis=1), probabilities.max(axis=1).tolist(), strict=True)
    return [(classes[i] if confidence >= min_confidence else UNCERTAIN, confidence) for i, confidence in best]


def label_faces(boxes, angles, probabilities, classes, min_confidence=0.0) -> list[Face]:
    """Returns the faces of boxes, int (F, 4), angles, F degrees clockwise, and probabilities, float (F, C)."""
    labels = choose_labels(probabilities, classes, min_confidence)
    rows = zip(boxes.tolist(), labels, probabilities.tolist(), angles, strict=True)
    return [
        Face(tuple(box), *label, dict(zip(classes, row, strict=True)), float(angle)) for box, label, row, angle in rows
    ]


def annotate_frame(frame, faces, numbered=False) -> np.ndarray:
    """Returns a copy of a frame with a box and a label for every face.

    The label is the emotion and its confidence. A held face has a dashed box and no confidence. The number of a face
    is drawn if there are several faces, or if `numbered` is set.

    Args:
        frame: uint8 (H, W, 3) BGR.
        faces: list of `Face`.
    """
    frame = frame.copy()
    sizes = [label_size(frame, face) for face in faces]
    edges = [draw_box(frame, face, max(1, round(size / 8))) for face, size in zip(faces, sizes, strict=True)]
    numbered = numbered or len(faces) > 1
    placed = []  # x, y, width, height of each label.
    for face, size, edge in zip(faces, sizes, edges, strict=True):
        label = shrink(draw_label(face, size, numbered and face.track is not None), frame.shape[1])
        corner = place_label(label, edge, frame, placed, [other.box for other in faces])
        paste(frame, label, corner)
        placed.append((*corner, *label.shape[1::-1]))
    return frame


def text_size(frame):
    """Returns the size of letters in pixels for a frame, uint8 (H, W, 3)."""
    return max(round(frame.shape[0] * TEXT_SHARE), MIN_TEXT)


def label_size(frame, face):
    """Returns the size of a face's letters in pixels: one of two, so that it does not change with every frame."""
    size = text_size(frame)
    return max(round(size * SMALL_TEXT), MIN_TEXT) if face.box[2] < SMALL_FACE * size else size


def face_color(face):
    """Returns the color of a `Face`, BGR."""
    return EMOTION_COLORS.get(face.label, UNCERTAIN_COLOR)[::-1]


def draw_box(frame, face, thickness):
    """Draws the box of a `Face` with lines of a thickness in pixels, dashed for a held face.

    Returns the edges of the drawing: left, top, right, bottom. A tilted box reaches beyond left and right.
    """
    x, y, width, height = face.box
    turned = ((x + width / 2, y + height / 2), (float(width), float(height)), float(face.angle))
    corners, color = np.rint(cv2.boxPoints(turned)).astype(np.int32), face_color(face)
    if face.held:
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            dashes = 1 + int(np.hypot(*(end - start)) / (6 * thickness))
            ends = np.rint(np.linspace(start, end, 2 * dashes)).astype(np.int32).reshape(dashes, 2, 2)
            cv2.polylines(frame, list(ends), False, color, thickness, cv2.LINE_AA)
    else:
        cv2.polylines(frame, [corners], True, color, thickness, cv2.LINE_AA)
    half, bottom = thickness // 2, int(corners[:, 1].max())
    return x - half, int(corners[:, 1].min()) - half, x + width + half + 1, bottom + half + 1


def draw_label(face, size, has_number):
    """Returns the label of a `Face` as an image, uint8 (h, w, 3) BGR, with letters of a size in pixels."""
    text = face.label if face.held else f"{face.label} {face.confidence:.0%}"
    label = draw_text(text, size, face_color(face))
    return np.hstack([draw_text(str(face.track), size, DARK), label]) if has_number else label


@functools.lru_cache(maxsize=256)  # Drawing a text takes 0.2 ms.
def draw_text(text, size, color):
    """Returns a text on a bar of a color, BGR, as an image, uint8 (h, w, 3) BGR, with letters of a size in pixels."""
    from PIL import Image, ImageDraw, ImageFont  # Takes 30 ms, so only when a label is drawn.

    font, pad = ImageFont.load_default(size), size // 3
    width, height = round(font.getlength(text)) + 2 * pad, sum(font.getmetrics()) + pad // 2
    image = Image.new("RGB", (width, height), color)
    ink = (0, 0, 0) if np.dot(color, (0.114, 0.587, 0.299)) > 100 else (255, 255, 255)  # Contrasts with the bar.
    ImageDraw.Draw(image).text((pad, pad // 4), text, ink, font)
    return np.array(image)


def shrink(image, width):
    """Returns an image, uint8 (h, w, 3), reduced to at most `width` pixels in width."""
    scale = min(1.0, width / image.shape[1])
    size = round(image.shape[1] * scale), max(1, round(image.shape[0] * scale))
    return image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def place_label(label, edges, frame, others, boxes):
    """Returns the corner x, y next to a face where its label covers least of other labels and of the middles of faces.

    Args:
        label, frame: images, of which only the sizes are used.
        edges: left, top, right and bottom of the face in pixels.
        others: list of x, y, width, height of the labels already placed.
        boxes: list of x, y, width, height of the faces in the frame.
    """
    (height, width), (left, top, right, bottom) = label.shape[:2], edges
    lines = (top - height, bottom, top - 2 * height, bottom + height, top - 3 * height, bottom + 2 * height)
    corners = np.array([(x, y) for y in lines for x in (left, right - width)])  # Best first.
    corners = corners.clip(0, np.maximum(0, np.subtract(frame.shape[1::-1], (width, height))))
    middles = [(x + w // 4, y + h // 4, w - w // 2, h - h // 2) for x, y, w, h in boxes]
    taken, weights = np.array([*others, *middles]), np.repeat((10, 1), (len(others), len(middles)))
    starts = np.maximum(corners[:, np.newaxis], taken[:, :2])  # (corners, taken, 2)
    ends = np.minimum(corners[:, np.newaxis] + (width, height), taken[:, :2] + taken[:, 2:])
    covered = (ends - starts).clip(0).prod(axis=2) @ weights  # Pixels.
    return tuple(corners[covered.argmin()].tolist())


def paste(frame, image, corner):
    """Copies an image, uint8 (h, w, 3), into a frame, with its corner at x, y. Parts outside are cut off."""
    x, y = corner
    area = frame[y : y + image.shape[0], x : x + image.shape[1]]
    area[:] = image[: area.shape[0], : area.shape[1]]


# 5. Files and messages ------------------------------------------------------------------------------------------------

LONGEST_TEXT = 200  # Characters of a path or of a library's message in a printed line.


def printable(source):
    """Returns a path or address as text for messages, titles and file names.

    Leaves out userinfo, query and fragment of an address, which may be secret. Escapes control characters and shortens
    long texts.
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
    """Returns a text on one line, with control characters escaped and the middle of a long text left out."""
    line = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in str(text))
    half = LONGEST_TEXT // 2
    return line if len(line) <= LONGEST_TEXT else f"{line[: half - 3]}...{line[-half:]}"


@contextlib.contextmanager
def quiet_stderr():
    """Hides output of native libraries to file descriptor 2. Do not use Python's own `sys.stderr` inside."""
    with _shared.lock:  # Two threads at once could leave stderr hidden.
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
