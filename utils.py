"""The path from a pixel to a labelled pixel, shared by train.py, evaluate.py and webcam_demo.py.

A function belongs here only if it is a step on that path and the scripts would disagree if one changed it alone; only
the last two, about files and the terminal, are none.
Importing this module costs OpenCV and NumPy; pandas is imported where a CSV is read, TensorFlow and Keras never.

The data that flows, one name each in every file:

    frame          uint8 (H, W, 3)       BGR image as OpenCV gives it
    gray           uint8 (H, W)          grayscale frame
    boxes          int (F, 4)            x, y, width, height in frame pixels; no face is (0, 4)
    faces          uint8 (N, 48, 48, 1)  raw 0..255, from the CSV and from the camera alike: what the model eats
    labels         int (N,)              index into the model's classes
    probabilities  float32 (N, C)        rows sum to 1, columns in the order of the model's classes

Pixels are rescaled by a layer inside the saved model, so no script can feed it differently from how it was trained.
"""

import contextlib
import hashlib
import json
import os
import sys
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np

# ---------------------------------------------------------------------------------------------------------------------
# 1. Labels, shapes, paths
# ---------------------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent
DEFAULT_DATA = ROOT / "data" / "fer2013.csv"
DEFAULT_MODEL = ROOT / "models" / "emotions-5"

EMOTIONS = ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")  # the position is FER2013's emotion id
CLASS_SETS = {5: (0, 3, 4, 5, 6), 7: (0, 1, 2, 3, 4, 5, 6)}  # number of classes -> FER2013 ids, in label order
IMAGE_SIZE = 48  # pixels, width and height of a face
SPLITS = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}

# RGB, the same in every figure and on every frame: the Okabe-Ito palette, told apart by colour-blind readers too.
EMOTION_COLORS = {
    "Angry": (213, 94, 0),
    "Disgust": (0, 158, 115),
    "Fear": (204, 121, 167),
    "Happy": (230, 159, 0),
    "Sad": (0, 114, 178),
    "Surprise": (86, 180, 233),
    "Neutral": (127, 127, 127),
}


def rgb(emotion):
    """Returns an emotion's colour as Matplotlib wants it, 0..1."""
    return tuple(channel / 255 for channel in EMOTION_COLORS[emotion])


# ---------------------------------------------------------------------------------------------------------------------
# 2. FER2013 -> faces, labels
# ---------------------------------------------------------------------------------------------------------------------

COLUMNS = ("emotion", "pixels", "Usage")
COMPRESSIONS = {".gz": "gzip", ".zip": "zip"}  # Suffix -> pandas's name; all others are read as plain text.
# What NumPy, pandas, gzip and zip raise on files that are damaged, encrypted or packed in a way of their own.
UNREADABLE = (OSError, ValueError, TypeError, LookupError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile)
HOW_TO_GET_DATA = (
    "Download FER2013 from Kaggle (fer2013.csv, icml_face_data.csv, either one as .gz or .zip, or the train/ and test/ "
    "folders), put it at data/fer2013.csv or name it with --data; or try the pipeline with drawn faces: "
    "python data/make_sample.py, then --data data/sample.csv."
)


def load_fer2013(path, split, num_classes=5, limit=None):
    """Loads one split of FER2013.

    Args:
        path: `fer2013.csv` or `icml_face_data.csv`, plain, `.gz` or `.zip`; or a folder that holds
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
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}. Received: {split}.")
    if num_classes not in CLASS_SETS:
        raise ValueError(f"`num_classes` must be one of {', '.join(map(str, CLASS_SETS))}. Received: {num_classes}.")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no data set at {path}. {HOW_TO_GET_DATA}")
    faces, emotions, usages = _load_parsed(path.resolve())
    ids = np.array(CLASS_SETS[num_classes])
    rows = np.flatnonzero((usages == list(SPLITS).index(split)) & np.isin(emotions, ids))[:limit]
    if len(rows) == 0:
        there = ", ".join(name for i, name in enumerate(SPLITS) if i in usages) or "none"
        raise ValueError(
            f"{path} holds no {SPLITS[split]} rows for these {num_classes} classes, so there is no {split} split. "
            f"Splits with rows: {there}."
        )
    return faces[rows], np.searchsorted(ids, emotions[rows])


def _load_parsed(path):
    """Returns faces, emotion ids and split numbers of the whole data set, from the cache beside it if that is fresh."""
    cache, signature = path.with_name(path.name + ".cache.npz"), _signature(path)
    try:
        with np.load(cache) as stored:
            if stored["signature"] == signature:
                return stored["faces"], stored["emotions"], stored["usages"]
    except UNREADABLE:
        pass  # No cache, or a damaged one: it is written anew.
    faces, emotions, usages = _read_folder(path) if path.is_dir() else _read_csv(path)
    # A read-only or full disk costs the next start a few seconds, nothing else.
    with contextlib.suppress(OSError), replaced_file(cache) as new:
        np.savez(new, signature=signature, faces=faces, emotions=emotions, usages=usages)
    return faces, emotions, usages


def _signature(path):
    """Returns a text that changes when the data set does: names, sizes and modification times."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _read_csv(path):
    """Parses a CSV of one face a row; the row of a message is the line of the file, the header being row 1."""
    import pandas as pd  # Half a second that only reading a CSV is worth.

    try:
        table = pd.read_csv(
            path,
            compression=COMPRESSIONS.get(path.suffix.lower()),
            dtype=str,
            skipinitialspace=True,
            keep_default_na=False,
            skip_blank_lines=False,
        )
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} must be a CSV with the columns {', '.join(COLUMNS)}. Received: {reason}") from error
    table.columns = table.columns.str.strip()
    table = table.loc[:, ~table.columns.duplicated()]
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        received = ", ".join(table.columns)[:80]
        raise ValueError(
            f"{path} must have the columns {', '.join(COLUMNS)}. Missing: {missing[0]}. Received: {received!r}."
        )
    if not isinstance(table.index, pd.RangeIndex):  # Pandas takes surplus fields for names of the rows.
        raise ValueError(f"A row of {path} must have as many fields as the header. Received: more in row 2.")
    table = table.fillna("")  # Of a row that ends early.
    table = table[(table != "").any(axis=1)]  # Without blank lines; the index still counts them.
    if table.empty:
        raise ValueError(f"{path} must hold one face a row. Received: a header and no rows.")
    emotions = _look_up(table["emotion"], [str(i) for i in range(len(EMOTIONS))], "emotion", path)
    usages = _look_up(table["Usage"], list(SPLITS.values()), "Usage", path)
    faces = np.empty((len(table), IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)
    for i, (row, text) in enumerate(table["pixels"].items()):
        faces[i] = _parse_pixels(text, f"row {row + 2} of {path}")
    return faces, emotions, usages


def _look_up(column, allowed, name, path):
    """Returns the position of every text of a column in `allowed`."""
    positions = column.str.strip().map({text: position for position, text in enumerate(allowed)})
    if positions.isna().any():
        row = positions.isna().idxmax()
        rule = f"`{name}` must be one of {', '.join(allowed)}."
        raise ValueError(f"{rule} Received: {column[row][:40]!r} in row {row + 2} of {path}.")
    return positions.to_numpy(np.int64)


def _parse_pixels(text, where):
    """Returns the face, uint8 (48, 48, 1), of one text of 2304 numbers."""
    try:
        pixels = np.fromstring(text, dtype=np.int64, sep=" ")
    except ValueError as error:
        raise ValueError(
            f"`pixels` must be whole numbers with spaces between. Received: other characters in {where}."
        ) from error
    if pixels.size != IMAGE_SIZE * IMAGE_SIZE:
        raise ValueError(f"`pixels` must hold {IMAGE_SIZE * IMAGE_SIZE} numbers. Received: {pixels.size} in {where}.")
    if pixels.min() < 0 or pixels.max() > 255:
        outside = pixels[(pixels < 0) | (pixels > 255)][0]
        raise ValueError(f"`pixels` must be within 0..255. Received: {outside} in {where}.")
    return pixels.reshape(IMAGE_SIZE, IMAGE_SIZE, 1)


def read_image(path, mode=cv2.IMREAD_COLOR):
    """Reads an image file as uint8 (H, W, 3) or, with `cv2.IMREAD_GRAYSCALE`, (H, W); None if it is none."""
    try:
        content = np.fromfile(path, np.uint8)  # OpenCV cannot open a path with letters beyond ASCII on Windows.
        return cv2.imdecode(content, mode) if content.size else None
    except (OSError, cv2.error):  # It may not be read, or has more pixels than OpenCV takes.
        return None


def _read_folder(path):
    """Reads the folder form, in the order of the numbers in the file names, whatever class a file is in."""
    files = [file for part in ("train", "test") for file in path.glob(f"{part}/*/[!.]*")]
    files = [file for file in files if file.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if not files:
        raise ValueError(f"{path} must hold train/<emotion>/*.jpg and test/<emotion>/*.jpg. Received: no such file.")
    files.sort(key=lambda file: (int("0" + "".join(filter(str.isdigit, file.stem))), file.name))
    faces = np.empty((len(files), IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)
    emotions, usages = np.empty(len(files), np.int64), np.empty(len(files), np.int64)
    ids = {emotion.lower(): i for i, emotion in enumerate(EMOTIONS)}
    for row, file in enumerate(files):
        emotion, usage = file.parent.name.lower(), file.stem.split("_")[0]
        if emotion not in ids:
            raise ValueError(f"A folder of faces must be named {', '.join(ids)}. Received: {file.parent}.")
        if usage not in SPLITS.values():
            raise ValueError(f"A face's file name must begin with {', '.join(SPLITS.values())}. Received: {file}.")
        image = read_image(file, cv2.IMREAD_GRAYSCALE)
        if image is None or image.shape != (IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"A face must be an image of {IMAGE_SIZE}x{IMAGE_SIZE} pixels. Received: {file}.")
        faces[row, ..., 0] = image
        emotions[row], usages[row] = ids[emotion], list(SPLITS.values()).index(usage)
    return faces, emotions, usages


# ---------------------------------------------------------------------------------------------------------------------
# 3. Frame -> faces
# ---------------------------------------------------------------------------------------------------------------------


def load_face_detector():
    """Loads OpenCV's Haar cascade for frontal faces.

    Returns:
        detector: `cv2.CascadeClassifier`.

    Raises:
        ValueError: this OpenCV has no cascades (those of 5.x have none), or a damaged one.
    """
    path = Path(getattr(cv2, "data", cv2).__path__[0]) / "haarcascade_frontalface_default.xml"
    if not hasattr(cv2, "CascadeClassifier") or not path.exists():
        raise ValueError(
            f"OpenCV must bring its Haar cascades. Received: OpenCV {cv2.__version__} without them. "
            'Install one that does: pip install "opencv-python>=4.10,<5"'
        )
    detector, storage = cv2.CascadeClassifier(), cv2.FileStorage()
    with contextlib.suppress(cv2.error):
        # From memory, because OpenCV cannot open a path with letters beyond ASCII on Windows.
        storage.open(path.read_text(encoding="utf-8"), cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
        detector.read(storage.getFirstTopLevelNode())
    if detector.empty():
        raise ValueError(f"The face cascade must be readable. Received: a damaged {path}. Reinstall opencv-python.")
    return detector


def detect_faces(gray, detector, min_size=48):
    """Finds the faces of a frame (Viola & Jones, 2001).

    Args:
        gray: uint8 (H, W).
        detector: from `load_face_detector()`.
        min_size: width in pixels of the smallest face looked for.

    Returns:
        boxes: int (F, 4), largest face first; (0, 4) where there is none.
    """
    boxes = detector.detectMultiScale(gray, scaleFactor=1.1, minNeighbors=5, minSize=(min_size, min_size))
    boxes = np.array(boxes, dtype=int).reshape(-1, 4)
    return boxes[np.argsort(-boxes[:, 2], kind="stable")]


def crop_faces(gray, boxes):
    """Cuts faces out of a frame and brings them to FER2013's size.

    The cascade frames a face as FER2013 does: with larger boxes or smaller ones no more is read than chance explains
    (figures/crop.png).

    Args:
        gray: uint8 (H, W).
        boxes: int (F, 4); the part outside the frame is cut off, at least one pixel stays.

    Returns:
        faces: uint8 (F, 48, 48, 1); a box of 48x48 pixels is copied bit for bit.
    """
    height, width = gray.shape
    faces = np.empty((len(boxes), IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)
    for i, (x, y, box_width, box_height) in enumerate(boxes):
        left, top = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
        right, bottom = min(max(x + box_width, left + 1), width), min(max(y + box_height, top + 1), height)
        crop = gray[top:bottom, left:right]
        # Averaging over areas keeps a large face from aliasing; a face under 48 pixels is interpolated.
        method = cv2.INTER_AREA if crop.shape[0] >= IMAGE_SIZE else cv2.INTER_LINEAR
        faces[i, ..., 0] = cv2.resize(crop, (IMAGE_SIZE, IMAGE_SIZE), interpolation=method)
    return faces


# ---------------------------------------------------------------------------------------------------------------------
# 4. Faces -> probabilities
# ---------------------------------------------------------------------------------------------------------------------

MODEL_PARTS = ("model.keras", "model.tflite", "history.csv", "model.json")


class EmotionModel:
    """The exported network of a model folder, run by OpenCV.

    Attributes:
        classes: tuple of str, the emotion of each column of the probabilities.
        description: dict, the content of `model.json`.
    """

    BATCH_SIZE = 64  # Faces per forward pass: a frame's faces always fit, and a whole split does not fill the memory.

    def __init__(self, network, description):
        self.network, self.classes, self.description = network, tuple(description["classes"]), description

    def predict(self, faces):
        """Returns the probabilities, float32 (N, C), of faces, uint8 (N, 48, 48, 1)."""
        probabilities = np.empty((len(faces), len(self.classes)), np.float32)
        for start in range(0, len(faces), self.BATCH_SIZE):
            batch = faces[start : start + self.BATCH_SIZE].astype(np.float32)
            self.network.setInput(batch.reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE))  # One channel: NHWC equals NCHW.
            probabilities[start : start + len(batch)] = self.network.forward()
        return probabilities


def load_emotion_model(folder):
    """Loads a model folder for inference with `cv2.dnn`: a tenth of a second, where importing TensorFlow takes several.

    Raises:
        FileNotFoundError: the folder or one of its parts is missing.
        ValueError: a part is damaged, or the parts do not belong together.
    """
    folder = Path(folder)
    remedy = f"Make it with: python train.py --output-dir {folder} (others: models/README.md)"
    for part in MODEL_PARTS:
        if not (folder / part).is_file():
            raise FileNotFoundError(
                f"A model folder must hold {', '.join(MODEL_PARTS)}. Missing: {folder / part}. {remedy}"
            )
    try:
        description = _read_description(folder / "model.json")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{folder / 'model.json'} must describe a model as train.py does. Received: {error!r}. {remedy}"
        ) from error
    # From memory, because OpenCV cannot open a path with letters beyond ASCII on Windows.
    content = np.fromfile(folder / "model.tflite", np.uint8)
    sha256 = hashlib.sha256(content).hexdigest()
    if description.get("tflite_sha256", sha256) != sha256:  # OpenCV reads some damaged networks, and crashes on others.
        raise ValueError(
            f"{folder / 'model.tflite'} must be the network that model.json describes. "
            f"Received: a damaged one, or another. {remedy}"
        )
    try:
        network = cv2.dnn.readNetFromTFLite(content)
        network.setInput(np.zeros((1, 1, IMAGE_SIZE, IMAGE_SIZE), np.float32))
        columns = network.forward().shape[-1]
    except cv2.error as error:
        raise ValueError(
            f"{folder / 'model.tflite'} must be a TensorFlow Lite network. Received: {error.err}. {remedy}"
        ) from error
    if columns != len(description["classes"]):
        raise ValueError(
            f"{folder / 'model.tflite'} must have one output per class of model.json "
            f"({len(description['classes'])}). Received: {columns}. {remedy}"
        )
    return EmotionModel(network, description)


def _read_description(path):
    """Reads `model.json` and checks what the scripts rely on."""
    description = json.loads(path.read_text(encoding="utf-8"))
    known = {(ids, tuple(EMOTIONS[i] for i in ids)) for ids in CLASS_SETS.values()}
    if (tuple(description["fer2013_ids"]), tuple(description["classes"])) not in known:
        raise ValueError(f"`classes` {description['classes']} with `fer2013_ids` {description['fer2013_ids']}")
    if description["image_size"] != IMAGE_SIZE:
        raise ValueError(f"`image_size` {description['image_size']}")
    numbers = (description["parameters"], description["macs"], description.setdefault("temperature", 1.0))
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(f"`parameters`, `macs` and `temperature` {numbers}")
    return description


# ---------------------------------------------------------------------------------------------------------------------
# 5. Probabilities -> drawing
# ---------------------------------------------------------------------------------------------------------------------

UNCERTAIN = "uncertain"  # The label of a face whose most probable emotion is under the asked-for confidence.


def choose_labels(probabilities, classes, min_confidence=0.0):
    """Names the most probable emotion of each face.

    Args:
        probabilities: float (F, C).
        classes: C names.
        min_confidence: below it the label is `UNCERTAIN`.

    Returns:
        list of (label, confidence), F of them.
    """
    best = zip(probabilities.argmax(axis=1), probabilities.max(axis=1).tolist(), strict=True)
    return [(classes[i] if confidence >= min_confidence else UNCERTAIN, confidence) for i, confidence in best]


def annotate_frame(frame, boxes, labels):
    """Draws a box with label and confidence around every face.

    Args:
        frame: uint8 (H, W, 3) BGR; it is not changed.
        boxes: int (F, 4).
        labels: F pairs of label and confidence, as `choose_labels` gives them.

    Returns:
        frame: uint8 (H, W, 3), the annotated copy.
    """
    frame = frame.copy()
    scale = text_scale(frame)
    for (x, y, width, height), (label, confidence) in zip(boxes, labels, strict=True):
        color = EMOTION_COLORS.get(label, (90, 90, 90))[::-1]  # RGB to BGR.
        cv2.rectangle(frame, (x, y), (x + width, y + height), color, max(1, round(3 * scale)), cv2.LINE_AA)
        put_text(frame, f"{label} {confidence:.0%}", (x, y), scale, color)
    return frame


def text_scale(frame):
    """Returns the size of letters for a frame: about 3 % of its height, and never too small to read."""
    return max(frame.shape[0] / 720, 0.5)


def put_text(frame, text, corner, scale, color):
    """Writes text on a filled bar above `corner` (x, y), or as near as the frame allows; returns its lower edge."""
    thickness = max(1, round(2 * scale))
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.8 * scale, thickness)
    pad = round(6 * scale)
    x = max(0, min(corner[0], frame.shape[1] - width - 2 * pad))
    bottom = max(corner[1], height + baseline + 2 * pad)
    cv2.rectangle(frame, (x, bottom - height - baseline - 2 * pad), (x + width + 2 * pad, bottom), color, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(color, (0.114, 0.587, 0.299)) > 110 else (255, 255, 255)  # By the bar's brightness.
    origin = (x + pad, bottom - baseline - pad)
    cv2.putText(frame, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.8 * scale, ink, thickness, cv2.LINE_AA)
    return bottom


# ---------------------------------------------------------------------------------------------------------------------
# 6. Files and the terminal
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replaced_file(path):
    """Gives a path to write to, whose file takes the place of `path` when it is complete, or is gone when it is not.

    It has the same ending, by which many libraries choose the format.
    """
    new = path.with_name(f".new-{os.getpid()}-{path.name}")
    try:
        yield new
        new.replace(path)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()  # It is still there only where something stopped the writing.


def make_any_name_printable():
    """Lets a path be printed that has letters which the terminal's encoding lacks, with escapes in their place."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # A notebook's streams take every letter as they are.
            stream.reconfigure(errors="backslashreplace")
