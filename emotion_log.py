"""The demo's log: its columns, writing it, reading it and summing it up.

    python emotion_log.py emotions.csv        prints a summary and draws emotions-timeline.png

The demo does the same for its --log, after its last frame.
"""

import collections
import contextlib
import csv
import itertools
import json
import sys

import numpy as np

import cli
import utils

SUFFIXES = (".csv", ".jsonl")
MAX_ROWS = 2_000_000  # 18 hours of one face at 30 frames a second; summing them up takes 20 s and 500 MB.
MAX_LINE = 65_536  # Characters.
LONGEST_FRAME = 1.0  # Seconds that one row counts at most, so that a stream's stall is not counted.
TRACKS_LISTED = 12  # In the summary, those seen longest.
TRACKS_DRAWN = 6  # In the timeline.
POINTS_DRAWN = 2000  # Per track of the timeline, more than its pixels.
MIN_GAP = 0.002  # Seconds. Times are rounded to thousandths.
LABELS = (*utils.EMOTIONS, utils.UNCERTAIN, "")  # "" for a frame without a face.
NOT_A_LOG = (ValueError, TypeError, LookupError, OverflowError, RecursionError, csv.Error)


class EmotionLog:
    """Writes one row per face and frame to a file, as CSV or as JSON lines (`.jsonl`).

    A row may begin with the frame's file (`file_column`) and end with the time of day (`utc_column`). The first frame
    replaces the file, so that a run without one keeps the former log.

    Raises:
        OSError, ValueError: the file cannot be written, or its name has another suffix.
    """

    def __init__(self, path, classes, file_column=False, utc_column=False):
        check_path(path)
        self.path, self.classes, self.file_column, self.utc_column = path, classes, file_column, utc_column
        self.columns = ["frame", "time_s", "track", "x", "y", "width", "height", "label", "confidence", *classes]
        self.columns = ["file"] * file_column + self.columns + ["angle", "held"] + ["utc"] * utc_column
        self.file, self.json_lines = None, path.suffix.lower() == ".jsonl"

    def open(self):
        """Opens the file, and writes the names of the columns to a CSV."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Line buffering: a row is on disk at once, even if the process is killed.
            self.file = open(self.path, "w", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115
        except OSError as error:
            raise OSError(f"{utils.printable(self.path)}: {error.strerror}. Choose another --log.") from error
        self.writer = csv.writer(self.file)
        if not self.json_lines:
            self.writer.writerow(self.columns)

    def write(self, number, time_s, file, faces, utc=None):
        """Adds the rows of a frame: one per `utils.Face`, or one with empty fields. `utc`: time of day in ISO 8601."""
        if self.file is None:
            self.open()
        no_face = [None] * (9 + len(self.classes))
        for fields in map(face_fields, faces) if faces else [no_face]:
            row = [number, round(time_s, 3), *fields]
            row = [round(value, 4) if isinstance(value, float) else value for value in row]
            row = [file] * self.file_column + row + [utc] * self.utc_column
            try:
                if self.json_lines:
                    self.file.write(json.dumps(dict(zip(self.columns, row, strict=True))) + "\n")
                else:
                    self.writer.writerow(row)
            except OSError as error:
                name = utils.printable(self.path)
                raise OSError(f"{name}: the log ends early ({error.strerror}). Free some space.") from error

    def close(self):
        with contextlib.suppress(OSError):  # After a failed write, which raised, closing fails too.
            if self.file:
                self.file.close()


def face_fields(face):
    """Returns the fields of a `utils.Face` in the order of the log's columns, from `track` to `held`."""
    probabilities = face.probabilities.values()
    return face.track, *face.box, face.label, face.confidence, *probabilities, face.angle, int(face.held)


def check_path(path):
    """Refuses a path that cannot be a log: of another suffix, or of something other than a regular file."""
    name = utils.printable(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"The name of a log must end in {' or '.join(SUFFIXES)}, but {name} does not.")
    if path.exists() and not path.is_file():  # Opening a named pipe would wait for its other end.
        raise OSError(f"{name}: not a regular file. Choose another name for the log.")


def read_log(path):
    """Reads a log that the demo wrote, CSV or JSON lines.

    Returns:
        rows: structured array (N,) of about 60 bytes a row. `frame` and `track` are int (track 0: no face), `time_s` is
            in seconds, `label` an index into `LABELS`, `file` one into `files`, `probabilities` is float32 (C,),
            `seconds` is how long the frame was shown.
        classes: tuple of C str.
        files: list of str.

    Raises:
        OSError, ValueError: the file cannot be read, is not such a log, or has more than `MAX_ROWS` rows.
    """
    check_path(path)
    name = utils.printable(path)
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file. Write a log with: python webcam_demo.py --log emotions.csv")
    json_lines = path.suffix.lower() == ".jsonl"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Spreadsheets write a byte order mark.
            collections.deque(bounded_lines(file), maxlen=0)  # Fails early: parsing is the slow part.
            file.seek(0)
            try:
                return parse_log(bounded_lines(file), json_lines)
            except NOT_A_LOG:
                file.seek(0)
                with contextlib.suppress(*NOT_A_LOG):  # A full disk cuts the last line off.
                    return parse_log((line for line in bounded_lines(file) if line.endswith("\n")), json_lines)
                raise
    except NOT_A_LOG as error:
        reason = utils.shorten(error)
        raise ValueError(f"{name}: not a log of webcam_demo.py ({reason}). Name the file that --log wrote.") from error


def bounded_lines(file):
    """Yields the lines of a text file. Raises ValueError if one is too long or there are too many."""
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), ""), start=1):
        if len(line) == MAX_LINE:
            raise ValueError(f"line {number} has {MAX_LINE:,} characters or more")
        if number > MAX_ROWS + 1:
            raise ValueError(f"more than {MAX_ROWS:,} rows")
        yield line


def parse_log(lines, json_lines):
    """Parses the lines of a log; see `read_log`."""
    records = (json.loads(line) for line in lines if not line.isspace()) if json_lines else csv.DictReader(lines)
    first = next(records, None)
    if first is None:
        raise ValueError("no rows")
    classes = tuple(emotion for emotion in utils.EMOTIONS if emotion in first)
    missing = [column for column in ("frame", "time_s", "track", "label") if column not in first]
    if missing or not classes:
        raise ValueError(f"no column {missing[0] if missing else utils.EMOTIONS[0]}")
    files = {}  # Name -> number.
    records = enumerate(itertools.chain([first], records), start=1)
    dtype = [("frame", np.int32), ("time_s", float), ("track", np.int32), ("label", np.int8), ("file", np.int32)]
    dtype += [("probabilities", np.float32, (len(classes),)), ("seconds", float)]
    with np.errstate(over="ignore"):  # An overflow becomes infinity, which is refused below.
        rows = np.fromiter((parse_record(record, row, classes, files) for row, record in records), np.dtype(dtype))
    valid = np.isfinite(rows["time_s"]) & ((rows["probabilities"] >= 0) & (rows["probabilities"] <= 1)).all(axis=1)
    if not valid.all():
        raise ValueError(f"a time or probability out of range in row {valid.argmin() + 1}")
    rows["seconds"] = frame_seconds(rows)
    return rows, classes, list(files)


def parse_record(record, row, classes, files):
    """Returns the values of a row's dict in the order of the array's columns; see `read_log`."""
    try:
        file = files.setdefault(record.get("file"), len(files))
        track, label, probabilities = 0, LABELS.index(""), [0.0] * len(classes)
        if record["track"] not in ("", None):
            track, label = int(record["track"]), LABELS.index(record["label"])
            probabilities = [float(record[emotion]) for emotion in classes]
        return int(record["frame"]), float(record["time_s"]), track, label, file, probabilities, 0.0
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"row {row}: {error}") from error


def frame_seconds(rows):
    """Returns how long the frame of each row was shown, seconds (N,): a file's last one as long as the one before."""
    _, first, frame = np.unique(rows["frame"], return_index=True, return_inverse=True)
    time_s, file = rows["time_s"][first], rows["file"][first]
    seconds = np.clip(np.diff(time_s, append=time_s[-1]), 0, LONGEST_FRAME)
    ends = np.append(np.diff(file) != 0, True)  # The last frame of each file.
    seconds[ends] = 0
    seconds[ends] = np.append(0, seconds[:-1])[ends]
    return seconds[frame]


def find_tracks(rows):
    """Returns the rows of each track of a video or stream, a list of arrays, the track seen longest first."""
    faces = rows[rows["track"] > 0]
    faces = faces[np.lexsort((faces["frame"], faces["track"], faces["file"]))]
    new = (np.diff(faces["track"]) != 0) | (np.diff(faces["file"]) != 0)
    tracks = [track for track in np.split(faces, np.flatnonzero(new) + 1) if track["seconds"].any()]
    return sorted(tracks, key=lambda track: -track["seconds"].sum())


def sum_by_label(rows, weights):
    """Returns (label, sum of the weights (N,)) of each label that occurs, the largest sum first."""
    sums = np.bincount(rows["label"], weights)
    return [(LABELS[i], sums[i]) for i in sorted(np.unique(rows["label"]), key=lambda i: -sums[i])]


def track_name(track, files):
    """Returns the name of a track for people, from its rows."""
    file, number = files[track["file"][0]], track["track"][0]
    return f"{utils.printable(file)}, face {number}" if file else f"Face {number}"


def summarize(rows, files):
    """Returns a text: how long each face was seen, and each emotion's share of that time. `rows`: see `read_log`."""
    faces, tracks = rows[rows["track"] > 0], find_tracks(rows)
    counts = f"{len(faces):,} faces in {len(np.unique(rows['frame'])):,} frames"
    if not rows["seconds"].any():  # Images.
        labels = [f"{label} {count:.0f}" for label, count in sum_by_label(faces, np.ones(len(faces)))]
        return f"{counts}: {', '.join(labels) or 'no face'}."
    lines = [f"{counts}, {len(tracks):,} tracks.{' Shares of the time that each was seen:' if len(tracks) else ''}"]
    for track in tracks[:TRACKS_LISTED]:
        total = track["seconds"].sum()
        shares = [f"{label} {seconds / (total or 1):.0%}" for label, seconds in sum_by_label(track, track["seconds"])]
        lines.append(f"  {track_name(track, files)}: {total:.1f} s, {', '.join(shares)}")
    if len(tracks) > TRACKS_LISTED:
        lines.append(f"  and {len(tracks) - TRACKS_LISTED:,} more, seen for less time")
    return "\n".join(lines)


def timeline_path(log):
    """Returns the path of a log's figure."""
    return log.with_name(f"{log.stem}-timeline.png")


def timeline_curves(rows, files):
    """Returns (name, seconds (K,), probabilities (K, C)) of the tracks seen longest, by their first frame.

    Where a face comes and where it goes, all probabilities are 0.
    """
    curves = []
    for track in sorted(find_tracks(rows)[:TRACKS_DRAWN], key=lambda track: track["time_s"][0]):
        ends, nothing = track["time_s"] + track["seconds"], np.zeros_like(track["probabilities"][:1])
        shortest = max(MIN_GAP, (ends[-1] - track["time_s"][0]) / POINTS_DRAWN)
        gaps = np.flatnonzero(track["time_s"][1:] - ends[:-1] > shortest) + 1
        seconds, probabilities = [], []
        for stay, end in zip(np.split(track, gaps), [*ends[gaps - 1], ends[-1]], strict=True):
            drawn = stay[:: len(track) // POINTS_DRAWN + 1]
            seconds += [drawn["time_s"][:1], drawn["time_s"], [end, end]]  # The last frame is shown until the next one.
            probabilities += [nothing, drawn["probabilities"], stay["probabilities"][-1:], nothing]
        curves.append((track_name(track, files), np.concatenate(seconds), np.concatenate(probabilities)))
    return curves


def report(path):
    """Returns the summary of a log. Draws its timeline, unless it is a log of images or has no face.

    Raises:
        OSError, ValueError: the log cannot be read.
    """
    rows, classes, files = read_log(path)
    summary, curves = summarize(rows, files), timeline_curves(rows, files)
    figure = timeline_path(path)
    try:
        figure.unlink(missing_ok=True)  # Of a former log with this name.
        if not curves:
            return summary
        import plots  # Matplotlib, which the demo does without.

        with utils.replaced(figure) as new:
            plots.timeline(curves, classes, new)
    except ImportError:
        command = f"python emotion_log.py {utils.printable(path)}"
        return f"{summary}\nFor a figure of the log: pip install matplotlib seaborn, then {command}"
    except OSError as error:
        return f"{summary}\n{utils.printable(figure)}: cannot be written ({error.strerror})."
    return f"{summary}\nDrew {utils.printable(figure)}."


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("log", type=cli.path, help="log of webcam_demo.py, .csv or .jsonl")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    return cli.run_script("emotion_log.py", lambda: print(report(args.log)))


if __name__ == "__main__":
    sys.exit(main())
