"""The path from a pixel to a labelled pixel, shared by train.py, evaluate.py and webcam_demo.py.

A function belongs here only if it is a step on that path and all scripts must agree on it. The exceptions are the
helpers at the end, for files and the terminal. Importing this module costs OpenCV and NumPy. LiteRT is imported when a
model is loaded, pandas when a CSV is read, TensorFlow and Keras never.

The data that flows has the same names in every file:

    frame          uint8 (H, W, 3)       BGR image as OpenCV gives it
    gray           uint8 (H, W)          grayscale frame
    boxes          int (F, 4)            x, y, width, height in frame pixels; no face is (0, 4)
    faces          uint8 (N, 48, 48, 1)  raw 0..255, from the CSV and from the camera alike: the network's input
    labels         int (N,)              index into the model's classes
    votes          float32 (N, C)        share of the raters' votes per class; rows sum to 1, or 0 without votes
    probabilities  float32 (N, C)        rows sum to 1, columns in the order of the model's classes

Pixels are rescaled by a layer inside the saved model, so no script can feed it differently from how it was trained.

As a library:

    for face in utils.read_emotions(cv2.imread("photo.jpg")):
        print(face.box, face.label, face.confidence)
"""

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import re
import signal
import sys
import threading
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

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
    """Returns an emotion's colour in Matplotlib's range, 0..1."""
    return tuple(channel / 255 for channel in EMOTION_COLORS[emotion])


# ---------------------------------------------------------------------------------------------------------------------
# 2. FER2013 -> faces, labels
# ---------------------------------------------------------------------------------------------------------------------

COLUMNS = ("emotion", "pixels", "Usage")
VOTE_COLUMNS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # In the order of EMOTIONS.
OTHER_VOTE_COLUMNS = ("contempt", "unknown", "NF")  # Counted in the total only; NF means no face.
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
    rows = _split_rows(emotions, usages, split, num_classes)[:limit]
    if len(rows) == 0:
        there = ", ".join(name for i, name in enumerate(SPLITS) if i in usages) or "none"
        raise ValueError(
            f"{path} holds no {SPLITS[split]} rows for these {num_classes} classes, so there is no {split} split. "
            f"Splits with rows: {there}."
        )
    return faces[rows], np.searchsorted(CLASS_SETS[num_classes], emotions[rows])


def _split_rows(emotions, usages, split, num_classes):
    """Returns the rows of a split whose emotion is among the classes."""
    return np.flatnonzero((usages == list(SPLITS).index(split)) & np.isin(emotions, CLASS_SETS[num_classes]))


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
    import pandas as pd

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. Download fer2013new.csv from github.com/microsoft/FERPlus.")
    _, emotions, usages = _load_parsed(Path(data).resolve())
    table = pd.read_csv(path)
    missing = [column for column in ("Usage", *VOTE_COLUMNS, *OTHER_VOTE_COLUMNS) if column not in table.columns]
    if missing:
        raise ValueError(f"{path} must have the column {missing[0]}, but has {', '.join(table.columns)[:80]}.")
    if not np.array_equal(table["Usage"].map(list(SPLITS.values()).index), usages):
        raise ValueError(f"`Usage` of {path} must equal that of {data} in every row, but it differs.")
    rows = _split_rows(emotions, usages, split, num_classes)[:limit]
    ids = list(CLASS_SETS[num_classes])
    counts = table[list(VOTE_COLUMNS)].to_numpy(np.float32)[rows][:, ids]
    totals = table[[*VOTE_COLUMNS, *OTHER_VOTE_COLUMNS]].to_numpy(np.float32)[rows].sum(axis=1)
    sums = counts.sum(axis=1)
    consensus = np.where(counts.max(axis=1) * 2 > totals, counts.argmax(axis=1), -1)
    return counts / np.maximum(sums, 1)[:, np.newaxis], sums / np.maximum(totals, 1), consensus


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
    with contextlib.suppress(OSError), replaced(cache) as new:
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
            f'OpenCV {cv2.__version__} has no Haar cascades. Install 4.x: pip install "opencv-python>=4.12,<5"'
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

HEADS = ("labels", "votes")  # Outputs of the network: FER2013's labels, and the votes of FER+.
HASH_PATTERN = re.compile("[0-9a-f]{64}")


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
            batch = faces[start : start + self.BATCH_SIZE].astype(np.float32)
            outputs = self.run(faces=batch)
            for head in self.heads:
                logits[head][start : start + len(batch)] = outputs[head]
        return logits

    def predict(self, faces, head=None):
        """Returns calibrated probabilities, float32 (N, C), of faces, uint8 (N, 48, 48, 1).

        Args:
            head: "labels" or "votes"; None for the mean of the heads' probabilities.
        """
        logits, temperatures = self.logits(faces), self.description["temperatures"]
        heads = self.heads if head is None else (head,)
        return np.mean([softmax(logits[name] / temperatures[name]) for name in heads], axis=0)


def softmax(logits):
    """Returns probabilities, float (N, C), of logits, float (N, C)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


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
            f"{printable(folder / 'model.tflite')}: not the file that model.json describes. Export it again: "
            f"python train.py --output-dir {printable(folder)}"
        )
    run = _load_network(content)
    outputs = set(run.get_output_details())
    if outputs != set(description["heads"]):
        raise ValueError(
            f"`heads` of {printable(folder / 'model.json')} must be the outputs of model.tflite, but they are "
            f"{description['heads']} and {sorted(outputs)}."
        )
    return EmotionModel(run, description)


def _list_models(folder):
    """Returns a sentence that names the model folders next to the one asked for, or tells how to train one."""
    parent = folder.parent if folder.parent.is_dir() and any(folder.parent.glob("*/model.tflite")) else ROOT / "models"
    found = sorted(printable(path.parent) for path in parent.glob("*/model.tflite"))
    return f"Model folders: {', '.join(found)}." if found else f"Train it: python train.py --output-dir {folder}"


def _load_network(content):
    """Returns the signature runner of a `.tflite` file's content.

    Raises:
        ValueError: LiteRT is not installed or cannot read the content.
    """
    try:
        with quiet_stderr():  # LiteRT prints a line when it starts.
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_content=content, num_threads=min(os.cpu_count() or 1, 4))
            return interpreter.get_signature_runner()
    except ImportError as error:
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
        checks = {
            "classes": (tuple(description["fer2013_ids"]), tuple(description["classes"])) in known,
            "image_size": description["image_size"] == IMAGE_SIZE,
            "heads": tuple(heads) in (HEADS, HEADS[:1]),
            "tflite_sha256": bool(HASH_PATTERN.fullmatch(description["tflite_sha256"])),
            **{name: _is_positive(number) for name, number in numbers.items()},
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{printable(path)}: not a model description ({shorten(repr(error))}). Train the model again."
        ) from error
    wrong = next((name for name, right in checks.items() if not right), None)
    if wrong:
        raise ValueError(f"`{wrong}` in {printable(path)} is not one that train.py writes. Train the model again.")
    return description


def _is_positive(number):
    """Returns whether a JSON value is a finite number above 0 that fits a float."""
    try:
        return not isinstance(number, bool) and math.isfinite(number) and number > 0
    except (TypeError, OverflowError):
        return False


class Face(NamedTuple):
    """One face of a frame: its box in pixels, its emotion, and the probability of every emotion."""

    box: tuple  # x, y, width, height.
    label: str
    confidence: float  # 0..1.
    probabilities: dict  # Emotion -> 0..1.


def read_emotions(frame, model=None, detector=None):
    """Finds the faces of a picture and names their emotions.

    Args:
        frame: uint8 (H, W, 3) BGR, as `cv2.imread` returns it.
        model: from `load_emotion_model`; None for the default one, which is loaded once.
        detector: from `load_face_detector`; None likewise.

    Returns:
        list of `Face`, largest first.

    Raises:
        ValueError: `frame` is not such an array, for example because `cv2.imread` found no image.
    """
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        shape = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"`frame` must be a uint8 array (height, width, 3), but it is {shape}.")
    model, detector = model or _default_model(), detector or _default_detector()
    gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    boxes = detect_faces(gray, detector)
    probabilities = model.predict(crop_faces(gray, boxes))
    return [
        Face(tuple(box), label, confidence, dict(zip(model.classes, row, strict=True)))
        for box, (label, confidence), row in zip(
            boxes.tolist(), choose_labels(probabilities, model.classes), probabilities.tolist(), strict=True
        )
    ]


_default_model = functools.cache(load_emotion_model)
_default_detector = functools.cache(load_face_detector)


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

LONGEST_TEXT = 200  # Characters of a path or of a library's message in one of our lines.


@contextlib.contextmanager
def replaced(path):
    """Yields a temporary path with the same suffix. On success it replaces `path`; on an error it is deleted."""
    temporary = path.with_name(f".new-{os.getpid()}-{path.name}")
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


def run_script(name, run):
    """Runs a script's work and returns its exit status.

    A mistake of the user's ends in one line on stderr and status 2. Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt
    in `run` and end in one line and status 130. A reader that closes the pipe early ends the script quietly.

    Args:
        name: of the script, for messages.
        run: function without arguments; may return an exit status.
    """
    _interrupt_on_signals()
    escape_unprintable_output()
    try:
        status = run() or 0
        if sys.stdout:  # None under pythonw.
            sys.stdout.flush()  # Here, where a full disk or a closed pipe is still caught.
        return status
    except BrokenPipeError:
        _discard_output()
        return 0
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            _discard_output()
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped.", file=sys.stderr)
        return 130


def _interrupt_on_signals():
    """Makes SIGTERM and SIGHUP act like Ctrl-C. A signal that is ignored, as under nohup, stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP.
        if number and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _discard_output():
    """Points stdout at nothing, so that Python's last flush does not raise again."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def escape_unprintable_output():
    """Makes print() escape characters that the terminal's encoding cannot show, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # A notebook's streams show every character.
            stream.reconfigure(errors="backslashreplace")
