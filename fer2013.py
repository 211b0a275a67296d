"""FER2013 and FER+: faces, labels, votes, and signs that a copy differs from the published data sets.

Used by train.py and evaluate.py.
"""

import contextlib
import csv
import functools
import gzip
import hashlib
import itertools
import math
import tarfile
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np

from utils import CLASS_SETS, EMOTIONS, IMAGE_SIZE, ROOT, printable, quiet_stderr, shorten

DEFAULT_DATA = ROOT / "data" / "fer2013.csv"
SPLITS = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
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
