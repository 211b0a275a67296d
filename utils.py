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
import functools
import hashlib
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

# 1. Labels, shapes, paths ---------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent
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
HEADS = (
    "labels",
    "votes",
)  # Outputs of the network, for FER2013's labels and the votes of FER+. A model may lack the second.
OPENCV = '"opencv-python>=4.13,<5"'  # What to install; requirements.txt has the reasons.
UNCERTAIN = "uncertain"  # The label of a face whose most probable emotion is below the minimum confidence.

# 2. Frame -> faces ----------------------------------------------------------------------------------------------------

# OpenCV's Haar cascades: one finds faces, one confirms them, one finds faces that look to the left.
# `alt` alone misses some dark-skinned faces, but confirms 97 % of the faces that `default` finds, whatever their skin.
CASCADES = {
    "frontal": "haarcascade_frontalface_default.xml",
    "confirming": "haarcascade_frontalface_alt.xml",
    "profile": "haarcascade_profileface.xml",
}
FaceDetector = collections.namedtuple("FaceDetector", CASCADES)
SEARCH_WIDTH = 64  # Pixels of the face in a search around a box.
SEARCH_MARGIN = 0.3  # On each side of the box, in widths of the box.
SEARCH_SIZES = (0.75, 1.35)  # The smallest and the largest face, in widths of the box.
CONFIRMING_NEIGHBORS = 4
MIN_OVERLAP = 0.5  # Two boxes sharing this much of the smaller one cannot both be faces.


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


def detect_faces(gray, detector):
    """Finds the upright faces of an image (Viola & Jones, 2001).

    Their width is at least 48 pixels and at least a thirtieth of the image's shorter side. Returns boxes, int (F, 4),
    largest first; (0, 4) without a face.
    """
    min_size = max(IMAGE_SIZE, round(min(gray.shape) / 30))
    found = detector.frontal.detectMultiScale(gray, scaleFactor=1.1, minNeighbors=5, minSize=(min_size, min_size))
    boxes = []
    for box in sorted(map(tuple, found), key=lambda box: (-box[2], box)):
        # The cascade also finds faces in eyes and mouths, and in backgrounds. Confirming a face costs about 1 ms.
        if not overlaps_any(box, boxes) and search_face(gray, box, detector.confirming, CONFIRMING_NEIGHBORS)[1]:
            boxes.append(box)
    return np.array(boxes, int).reshape(-1, 4)


def search_face(gray, box, cascade, neighbors, angle=0.0, flipped=False, face_width=SEARCH_WIDTH, sizes=SEARCH_SIZES):
    """Searches the surroundings of a box for a face of about its size.

    Args:
        neighbors: number of detections that have to agree.
        angle: degrees by which the face is tilted clockwise.
        flipped: search the horizontally flipped image.
        face_width: pixels to which the box is reduced or enlarged; fewer cost less and find less.
        sizes: the smallest and the largest face, in widths of the box.

    Returns:
        box: float (4,), the face near the middle on which most detections agree; None if there is none.
        agreeing: int, the number of detections that agree on it.
    """
    size = round(face_width * (1 + 2 * SEARCH_MARGIN))
    patch = cut_square(gray, box, size, SEARCH_MARGIN, angle)
    patch = patch[:, ::-1] if flipped else patch
    smallest, largest = ((round(share * face_width),) * 2 for share in sizes)
    found, agreeing = cascade.detectMultiScale2(patch, 1.1, neighbors, minSize=smallest, maxSize=largest)
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
    """Returns an offset x, y after a rotation by an angle in degrees, clockwise."""
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
        run: the network, from keyword `faces`, float32 (N, 48, 48, 1), to a dict of head to logits, float32 (N, C).
        classes: tuple of str, the emotion of each column of the probabilities.
        heads: tuple of str, outputs of the network: `("labels",)` or `("labels", "votes")`. The demo reads the last.
        description: dict, the content of `model.json`.
    """

    BATCH_SIZE = 64  # Faces per forward pass: enough for any frame, and a whole split does not fill the memory.

    def __init__(self, run, description):
        self.run, self.description = run, description
        self.classes, self.heads = tuple(description["classes"]), tuple(description["heads"])

    def logits(self, faces) -> dict[str, np.ndarray]:
        """Returns the output of each head, dict of float32 (N, C), for faces, uint8 (N, 48, 48, 1)."""
        logits = {head: np.empty((len(faces), len(self.classes)), np.float32) for head in self.heads}
        for start in range(0, len(faces), self.BATCH_SIZE):
            batch = slice(start, start + self.BATCH_SIZE)
            outputs = self.run(faces=faces[batch].astype(np.float32))
            for head in self.heads:
                logits[head][batch] = outputs[head]
        return logits

    def predict(self, faces, head=None) -> np.ndarray:
        """Returns probabilities, float32 (N, C), of faces, uint8 (N, 48, 48, 1): the demo's, or those of a head.

        The demo's are those of the last head, with the bias that makes up for rare classes (Menon et al., 2021).
        """
        return self.probabilities(self.logits(faces), head)

    def probabilities(self, logits, head=None):
        """Returns what `predict` does, from the output of `logits`."""
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
    """Returns the mean distance of confidence and accuracy, weighted by the faces in each bin (Guo et al., 2017)."""
    confidence, accuracy, count = calibration_bins(probabilities, labels)
    return float(np.nansum(np.abs(confidence - accuracy) * count) / len(labels))


def mean_recall(scores, labels):
    """Returns the mean recall of the classes in labels, int (N,), where the highest score, float (N, C), decides."""
    right = scores.argmax(axis=1) == labels
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def load_emotion_model(folder=DEFAULT_MODEL) -> EmotionModel:
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
        raise ValueError("LiteRT is not installed. Install it: pip install -r requirements.txt") from error
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
        bias = [type(number) in (int, float) and abs(number) <= sys.float_info.max for number in description["bias"]]
        checks = {
            "classes": (tuple(description["fer2013_ids"]), tuple(description["classes"])) in known,
            "image_size": description["image_size"] == IMAGE_SIZE,
            "heads": tuple(heads) in (HEADS, HEADS[:1]),
            "bias": len(bias) == len(description["classes"]) and all(bias),
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


class Face(NamedTuple):
    """One face of a frame: its box in pixels, its emotion, and the probability of every emotion."""

    box: tuple  # x, y, width, height.
    label: str
    confidence: float  # 0..1.
    probabilities: dict  # Emotion -> 0..1.


def read_emotions(frame, model=None, detector=None):
    """Finds the upright faces of an image and names their emotions. Returns a list of `Face`, largest first.

    Several threads may call it; they take turns.

    Args:
        frame: uint8 (H, W, 3) BGR, as `cv2.imread` returns it.
        model: from `load_emotion_model`; None for the default one, which is loaded once.
        detector: from `load_face_detector`; None likewise.

    Raises:
        ValueError: `frame` is not such an array, for example because `cv2.imread` found no image.
    """
    is_array = isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3
    if not is_array or frame.shape[2] != 3 or frame.size == 0:
        shape = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"`frame` must be a uint8 array (height, width, 3), but it is {shape}.")
    gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    with _turn:
        model, detector = model or _default_model(), detector or _default_detector()
        boxes = detect_faces(gray, detector)
        probabilities = model.predict(crop_faces(gray, boxes))
    labels = choose_labels(probabilities, model.classes)
    rows = zip(boxes.tolist(), labels, probabilities.tolist(), strict=True)
    return [Face(tuple(box), *label, dict(zip(model.classes, row, strict=True))) for box, label, row in rows]


_default_model = functools.cache(load_emotion_model)
_default_detector = functools.cache(load_face_detector)
_turn = threading.Lock()  # Cascades and networks keep their state between calls.

# 4. Probabilities -> drawing ------------------------------------------------------------------------------------------


def choose_labels(probabilities, classes, min_confidence=0.0):
    """Returns F pairs of label and confidence: the most probable emotion, or `UNCERTAIN` below `min_confidence`."""
    best = zip(probabilities.argmax(axis=1), probabilities.max(axis=1).tolist(), strict=True)
    return [(classes[i] if confidence >= min_confidence else UNCERTAIN, confidence) for i, confidence in best]


def annotate_frame(frame, boxes, labels, angles=None):
    """Returns a copy of a frame with a box, a label and a confidence for every face.

    Args:
        labels: F pairs of label and confidence, from `choose_labels`.
        angles: F angles in degrees, by which the heads are tilted clockwise; None if all are upright.
    """
    frame = frame.copy()
    scale = text_scale(frame)
    angles = [0.0] * len(boxes) if angles is None else angles
    for (x, y, width, height), (label, confidence), angle in zip(boxes, labels, angles, strict=True):
        color = EMOTION_COLORS.get(label, (90, 90, 90))[::-1]  # RGB to BGR.
        corners = cv2.boxPoints(((x + width / 2, y + height / 2), (float(width), float(height)), float(angle)))
        corners = np.rint(corners).astype(np.int32)
        cv2.polylines(frame, [corners], True, color, max(1, round(3 * scale)), cv2.LINE_AA)
        put_text(frame, f"{label} {confidence:.0%}", corners.min(axis=0).tolist(), scale, color)
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
