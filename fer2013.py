"""Reads FER2013 and FER+, and warns if a copy differs from them. Used by train.py and evaluate.py.

data = fer2013.read("data/fer2013.csv")
faces, labels = data.select("train")
votes, weights, consensus = data.read_votes("data/fer2013new.csv").select("train")
"""

import contextlib
import gzip
import hashlib
import itertools
import lzma
import os
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

import utils

DEFAULT_DATA = utils.ROOT / "data" / "fer2013.csv"
SPLITS = {"train": "Training", "val": "PublicTest", "test": "PrivateTest"}
COLUMNS = ("emotion", "pixels", "Usage")
VOTE_COLUMNS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # In the order of EMOTIONS.
OTHER_VOTE_COLUMNS = ("contempt", "unknown", "NF")  # Counted in the total only; NF means no face.
# Allowed texts of a field. Their position is the value.
EMOTION_IDS = tuple(map(str, range(len(utils.EMOTIONS))))
USAGES = tuple(SPLITS.values())
VOTE_COUNTS = tuple(map(str, range(11)))  # Ten people looked at each face.
HOW_TO_GET_DATA = (
    "Download FER2013 from Kaggle to data/fer2013.csv, or name it with --data (accepted forms: data/README.md). "
    "To try drawn faces instead: python data/make_sample.py, then --data data/sample.csv."
)
HOW_TO_GET_VOTES = "Download fer2013new.csv from github.com/microsoft/FERPlus."
ARCHIVE_ERRORS = (lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
MAX_FILE_BYTES = 1_000_000_000  # fer2013.csv has 301 million.
ROWS_PER_TABLE = 2000  # Rows whose text is in memory at once, 17 MB.

# Properties of FER2013, and the limits beyond which `Dataset.warnings` warns.
FACES_PER_CLASS = (  # Training, PublicTest, PrivateTest; in the order of EMOTIONS.
    (3995, 436, 4097, 7215, 4830, 3171, 4965),
    (467, 56, 496, 895, 653, 415, 607),
    (491, 55, 528, 879, 594, 416, 626),
)
MEAN_FACE = (  # Gray levels of the mean Training face, in 6 rows of blocks of 8x8 pixels.
    110, 124, 145, 144, 123, 109, 111, 129, 148, 147, 128, 110, 120, 131, 142, 143, 131, 121,
    125, 152, 152, 152, 151, 125, 119, 133, 132, 132, 133, 118, 115, 119, 128, 128, 119, 113,
)  # fmt: skip
MIN_ROWS_TO_JUDGE = 1000  # Per split. Statistics of fewer rows vary too much by chance.
MIN_MEAN_FACE_CORRELATION = 0.75  # At least 0.99 in 1,000 faces of FER2013; 0.68 if transposed, 0.65 if upside down.
MIN_CLASS_SEPARATION = 2.0  # At least 2.2 in 1,000 faces of FER2013; at most 1.8 if the labels are shuffled.
MAX_COPIES = 0.2  # Share of a split's faces that are also in Training. FER2013: 0.08.
MIN_AGREEMENT = 0.4  # Share of rows in which the label has the most votes. FER2013: 0.59 in the worst 500 rows.
ROWS_PER_AGREEMENT = 500


class Dataset(NamedTuple):
    """A copy of FER2013 (Goodfellow et al., 2013)."""

    path: Path
    faces: np.ndarray  # uint8 (N, 48, 48, 1), of all splits.
    emotions: np.ndarray  # int64 (N,), position in EMOTIONS.
    usages: np.ndarray  # int64 (N,), position in SPLITS.

    def select(self, split, num_classes=5, limit=None):
        """Returns the first `limit` faces, uint8 (N, 48, 48, 1), of a split with their labels, int64 (N,).

        Faces of emotions outside the 5 or 7 classes are left out.

        Raises:
            ValueError: the data set has no such face.
        """
        rows = self.find_rows(split, num_classes, limit)
        if len(rows) == 0:
            problem = f"no {SPLITS[split]} rows of these {num_classes} classes"
            there = ", ".join(name for i, name in enumerate(SPLITS) if i in self.usages)
            raise ValueError(f"{utils.printable(self.path)}: {problem}. Splits with rows: {there}.")
        return self.faces[rows], np.searchsorted(utils.CLASS_SETS[num_classes], self.emotions[rows])

    def find_rows(self, split, num_classes, limit):
        """Returns the positions of the rows that `select` takes, int64 (N,)."""
        in_split = self.usages == list(SPLITS).index(split)
        return np.flatnonzero(in_split & np.isin(self.emotions, utils.CLASS_SETS[num_classes]))[:limit]

    def read_votes(self, path):
        """Reads `fer2013new.csv` of FER+ (Barsoum et al., 2016), which has the row order of the data set, as `Votes`.

        Raises:
            FileNotFoundError: there is no file at `path`, or it is too large.
            ValueError: the file breaks a rule of the format, or its rows are not those of the data set.
        """
        path, columns = Path(path), (*VOTE_COLUMNS, *OTHER_VOTE_COLUMNS)
        check_file(path, HOW_TO_GET_VOTES)
        if self.path.is_dir():
            problem = "a folder of images lacks the row order of the votes"
            raise ValueError(f"{utils.printable(path)}: {problem}. Name fer2013.csv with --data.")
        table = pd.concat(read_tables(path, ("Usage", *columns)))
        counts = np.stack([parse_choice(table[column], VOTE_COUNTS) for column in columns], axis=1)
        votes = Votes(self, counts[:, : len(VOTE_COLUMNS)], counts.sum(axis=1))
        votes.check_rows(parse_choice(table["Usage"], USAGES), utils.printable(path))
        return votes

    def warnings(self):
        """Returns at most one warning per kind of difference from the published data set, list of str."""
        warnings = {"counts": compare_counts(self.emotions, self.usages)}  # The first warning of each kind.
        for number, split in enumerate(USAGES):
            faces, emotions = self.faces[self.usages == number], self.emotions[self.usages == number]
            copies = int(find_copies(faces, self.faces[self.usages == 0]).sum()) if number else 0
            if copies > MAX_COPIES * len(faces):
                text = f"{split} is not independent: {copies} of its {len(faces)} faces are copies of Training faces."
                warnings.setdefault("copies", text)
            if len(faces) < MIN_ROWS_TO_JUDGE:
                continue
            correlation = correlate_mean_face(faces)
            if correlation < MIN_MEAN_FACE_CORRELATION:
                text = f"the mean face of {split} has a correlation of {correlation:.2f} with FER2013's."
                warnings.setdefault("pixels", f"pixels may be inverted, transposed or blank: {text}")
            elif class_separation(faces, emotions) < MIN_CLASS_SEPARATION:
                text = f"labels may be shuffled: those of {split} are not related to the pixels."
                warnings.setdefault("labels", text)
        return [f"{utils.printable(self.path)}: {warning}" for warning in warnings.values() if warning]


class Votes(NamedTuple):
    """The votes of FER+ for the faces of a data set."""

    data: Dataset
    counts: np.ndarray  # int64 (N, 7), votes for each of EMOTIONS.
    totals: np.ndarray  # int64 (N,), including votes for another emotion or for none.

    def select(self, split, num_classes=5, limit=None):
        """Selects the votes for the faces that `Dataset.select` returns.

        Returns:
            votes: float32 (N, C), rows sum to 1, or 0 without a vote for a class.
            weights: float32 (N,), share of the ten votes that fall on the classes, 0..1.
            consensus: int64 (N,), the class that more than half of the ten votes name, or -1.
        """
        rows = self.data.find_rows(split, num_classes, limit)
        counts, totals = self.counts[rows][:, utils.CLASS_SETS[num_classes]], self.totals[rows]
        sums = counts.sum(axis=1, keepdims=True)
        votes, weights = counts / np.maximum(sums, 1), sums[:, 0] / np.maximum(totals, 1)
        consensus = np.where(counts.max(axis=1) * 2 > totals, counts.argmax(axis=1), -1)
        return votes.astype(np.float32), weights.astype(np.float32), consensus

    def check_rows(self, usages, name):
        """Checks, by split and emotion, that the votes have the row order of the data set."""
        other, expected = utils.printable(self.data.path), self.data.usages
        differ = (i for i, pair in enumerate(itertools.zip_longest(usages, expected)) if pair[0] != pair[1])
        row = next(differ, None)
        if row is not None:
            raise ValueError(f"{name} must have {other}'s rows, but their `Usage` differs in row {row + 2}.")
        agrees = self.counts.argmax(axis=1) == self.data.emotions
        blocks = np.array_split(agrees, max(1, len(agrees) // ROWS_PER_AGREEMENT))
        lowest = min(block.mean() for block in blocks)
        if lowest < MIN_AGREEMENT:
            found = f"most votes match the label of only {lowest:.0%} of {len(blocks[0])} successive faces"
            raise ValueError(f"{name} must have the row order of {other}, but {found} (FER2013: over 59%).")


def compare_counts(emotions, usages):
    """Returns a warning if a split does not have FER2013's number of faces per emotion, else None."""
    counts = np.array([np.bincount(emotions[usages == number], minlength=7) for number in range(3)])
    if np.array_equal(counts, FACES_PER_CLASS):
        return None
    split, emotion = np.argwhere(counts != FACES_PER_CLASS)[0]
    found = f"{USAGES[split]} has {counts[split, emotion]} faces of {utils.EMOTIONS[emotion]}"
    return f"rows may be missing, doubled or mixed up: {found} instead of {FACES_PER_CLASS[split][emotion]}."


def find_copies(faces, others):
    """Returns a mask, bool (N,), of the faces that are exact copies of one of the others."""
    seen = {face.tobytes() for face in others}
    return np.array([face.tobytes() in seen for face in faces], bool)


def correlate_mean_face(faces):
    """Returns the correlation of the mean face with FER2013's, -1..1; 0 if the mean face is blank."""
    blocks = faces.mean(axis=0, dtype=np.float32).reshape(6, 8, 6, 8).mean(axis=(1, 3))
    return np.corrcoef(blocks.ravel(), MEAN_FACE)[0, 1] if blocks.std() else 0.0


def class_separation(faces, emotions):
    """Returns the F statistic of the emotions' mean faces (one-way ANOVA over 144 pixels): about 1 by chance."""
    pixels = faces[:, 2::4, 2::4].reshape(len(faces), -1).astype(np.float32)
    pixels -= pixels.mean(axis=0)
    groups = [pixels[emotions == emotion] for emotion in np.unique(emotions)]
    between = sum(len(group) * np.square(group.mean(axis=0)).sum() for group in groups)
    within = np.square(pixels).sum() - between
    return between / max(1, len(groups) - 1) / (within / (len(faces) - len(groups)))


def hash_split(faces, labels):
    """Returns the SHA-256 of faces and labels in hexadecimal digits, as in `model.json`."""
    return hashlib.sha256(faces.tobytes() + labels.astype("<i8").tobytes()).hexdigest()


# Reading files --------------------------------------------------------------------------------------------------------


def read(path):
    """Reads a copy of FER2013 in any form that data/README.md lists, as a `Dataset`. The whole CSV takes 3 s.

    Raises:
        FileNotFoundError: there is nothing at `path`, or the file is too large.
        ValueError: the data breaks a rule of the format.
    """
    path = Path(path)
    if path.is_dir():
        tables, read_face, emotions = [list_images(path)], read_image, [name.lower() for name in utils.EMOTIONS]
    else:
        check_file(path, HOW_TO_GET_DATA)
        tables, read_face, emotions = read_tables(path, COLUMNS), parse_pixels, EMOTION_IDS
    parts = []
    for table in tables:
        faces = np.array([read_face(source, where) for where, source in table["pixels"].items()], np.uint8)
        parts.append((faces, parse_choice(table["emotion"], emotions), parse_choice(table["Usage"], USAGES)))
    return Dataset(path, *map(np.concatenate, zip(*parts, strict=True)))


def check_file(path, remedy):
    """Raises FileNotFoundError unless the path is a regular file of a reasonable size."""
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        problem = f"no such file, or larger than {MAX_FILE_BYTES / 1e9:.0f} GB"
        raise FileNotFoundError(f"{utils.printable(path)}: {problem}. {remedy}")


def parse_choice(column, allowed):
    """Returns the position of each text of a column among the allowed ones, int64 (N,)."""
    choices = column.str.strip().map({text: position for position, text in enumerate(allowed)})
    wrong = column[choices.isna()]
    if len(wrong):
        found = f"in {wrong.index[0]} it is {wrong.iloc[0][:40]!r}"
        raise ValueError(f"`{column.name}` must be one of {', '.join(allowed)}, but {found}.")
    return choices.to_numpy(np.int64)


def parse_pixels(text, where):
    """Parses the pixels of one row. Returns the face, uint8 (48, 48, 1)."""
    try:
        pixels = np.fromstring(text, dtype=np.int64, sep=" ")
    except ValueError as error:
        raise ValueError(f"`pixels` must hold whole numbers separated by spaces, but {where} does not.") from error
    if pixels.size != utils.IMAGE_SIZE**2:
        raise ValueError(f"`pixels` must hold {utils.IMAGE_SIZE**2} numbers, but {where} holds {pixels.size}.")
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"`pixels` must be within 0..255, but {where} holds {pixels.min()} to {pixels.max()}.")
    return pixels.astype(np.uint8).reshape(utils.IMAGE_SIZE, utils.IMAGE_SIZE, 1)


def read_tables(path, columns):
    """Yields the non-empty rows as tables of texts. The index names the row: "row 2 of <file>" follows the header."""
    rows, name = 0, utils.printable(path)
    options = {"dtype": str, "usecols": columns, "index_col": False, "chunksize": ROWS_PER_TABLE}
    options |= {"keep_default_na": False, "skipinitialspace": True, "skip_blank_lines": False}
    try:
        with open_csv(path) as file:
            for table in pd.read_csv(file, encoding="utf-8-sig", encoding_errors="replace", **options):
                table.index = [f"row {number + 2} of {name}" for number in table.index]
                table = table[(table != "").any(axis=1)]
                rows += len(table)
                yield table
        if rows == 0:
            raise ValueError("a header and no rows")
    except PermissionError:
        raise
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, *ARCHIVE_ERRORS) as error:
        raise ValueError(
            f"{name}: not readable as a CSV ({utils.shorten(error)}). Download it again, or see data/README.md."
        ) from error


@contextlib.contextmanager
def open_csv(path):
    """Yields the stream of the CSV in a plain, gzip, zip or tar file. The first bytes tell the type."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        if file.peek(2)[:2] == b"\x1f\x8b":
            file = stack.enter_context(gzip.open(file))
        if file.peek(2)[:2] == b"PK":
            archive = stack.enter_context(zipfile.ZipFile(file))
            yield archive.open(find_csv({entry.filename: entry.file_size for entry in archive.infolist()}))
        elif file.peek(512)[257:262] == b"ustar":
            archive = stack.enter_context(tarfile.open(fileobj=file))
            yield archive.extractfile(find_csv({entry.name: entry.size for entry in archive}))
        else:
            yield file
        file.seek(0, os.SEEK_END)  # The checksum of gzip is at the end.


def find_csv(sizes):
    """Returns the name of an archive's largest CSV. If there are parts of the data set, that is the whole."""
    # Skips hidden files, which macOS adds.
    names = [name for name in sizes if name.lower().endswith(".csv") and not Path(name).name.startswith(".")]
    if not names:
        raise OSError("no CSV in the archive; unpack an archive of images")
    return max(names, key=sizes.get)


def list_images(path):
    """Returns the folder form as a table like a CSV's, with files as `pixels`, sorted by the numbers in their names."""
    found = (*path.glob("train/*/[!.]*"), *path.glob("test/*/[!.]*"))
    files = [file for file in found if file.suffix.lower() in (".jpg", ".jpeg", ".png")]
    if not files:
        problem = "no train/<emotion>/*.jpg and test/<emotion>/*.jpg"
        raise ValueError(f"{utils.printable(path)}: {problem}. {HOW_TO_GET_DATA}")
    files.sort(key=lambda file: (int("0" + "".join(filter(str.isdecimal, file.stem))), file.name))
    rows = [(file.parent.name.lower(), file, file.stem.split("_")[0]) for file in files]
    return pd.DataFrame(rows, map(utils.printable, files), COLUMNS)


def read_image(file, where):
    """Returns the face, uint8 (48, 48, 1), of a file of the folder form."""
    image, size = None, utils.IMAGE_SIZE
    with contextlib.suppress(cv2.error), utils.quiet_stderr():  # libpng and libjpeg print warnings.
        # From memory: OpenCV on Windows cannot open non-ASCII paths.
        image = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None or image.shape != (size, size):
        raise ValueError(f"A face must be an image of {size}x{size} pixels, but {where} is not.")
    return image[..., np.newaxis]
