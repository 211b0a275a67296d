"""Writes, reads and summarizes the demo's log.

    python emotion_log.py emotions.csv                           prints a summary, draws emotions-timeline.png
    python emotion_log.py logs/                                  does the same for all logs of a folder
    python emotion_log.py monday.csv tuesday.jsonl               prints one summary of several logs
    python emotion_log.py emotions.csv --intervals out.csv       writes when each face had which label

The demo does the same for its --log at the end. If the demo is killed, the log is complete up to the last frame.
"""

import codecs
import contextlib
import csv
import io
import itertools
import json
import os
import sys
import warnings

import numpy as np

import cli
import utils

SUFFIXES = (".csv", ".jsonl")
LABELS = (*utils.EMOTIONS, utils.UNCERTAIN, "")  # "" for a frame without a face.
TRACK_KEY = ["log", "file", "track"]  # The columns that identify a track.
MAX_LOG_ROWS = 2_000_000  # 18 hours of one face at 30 frames a second.
MAX_LOG_BYTES = 1_000_000_000  # MAX_LOG_ROWS rows are 200 million bytes of CSV, or 600 million of JSON lines.
CHUNK = 50_000  # Rows that are parsed at once. A row takes 2,000 bytes as a dict, and 80 in a DataFrame.
MAX_TIME = 1e9  # Seconds, 30 years. A frame has no later time.
LONGEST_FRAME = 1.0  # Most seconds that a frame of a camera or stream counts, so that a stall is not counted.
MIN_GAP = 0.002  # Seconds. Times are rounded to thousandths.
TRACKS_LISTED = 12  # Tracks in the summary: those seen longest.
TRACKS_DRAWN = 6  # Tracks in the timeline: those seen longest.
POINTS_DRAWN = 2000  # Per track of the timeline: more than its width in pixels.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # A spreadsheet runs a cell that begins like this.
ESCAPED = r"^'(?=[=+\-@\t\r])"  # The apostrophe that is written before such a cell.
NOT_A_LOG = (ValueError, TypeError, LookupError, OverflowError, RecursionError, csv.Error)

# Writing --------------------------------------------------------------------------------------------------------------


class EmotionLog:
    """Writes one row per face and frame to a file, as CSV or as JSON lines (`.jsonl`).

    An existing log is emptied at the first frame, so a run without frames keeps it.

    Args:
        files: list of str, the names of a folder's files. If there are any, rows begin with the frame's file.
        utc_column: end rows with the time of day.

    Raises:
        OSError, ValueError: the file cannot be written, another demo is writing it, or its suffix is wrong.
    """

    def __init__(self, path, classes, files=(), utc_column=False):
        check_path(path)
        self.path, self.file_column, self.utc_column = path, len(files) > 0, utc_column
        self.face_columns = ["track", "x", "y", "width", "height", "label", "confidence", *classes, "angle", "held"]
        self.columns = ["file"] * self.file_column + ["frame", "time_s", *self.face_columns] + ["utc"] * utc_column
        # Tells spreadsheets that names are UTF-8. ASCII logs need no mark, which some programs misread.
        self.mark = "" if all(map(str.isascii, files)) else "\ufeff"
        self.rows, self.json_lines = 0, path.suffix.lower() == ".jsonl"

    def __enter__(self):
        """Opens the file and keeps other demos from writing it."""
        name = utils.printable(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.is_new = not self.path.exists()
            # Line buffering, so that every row is written even if the process is killed.
            self.file = open(self.path, "a", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115
        except OSError as error:
            raise OSError(f"{name}: {error.strerror}. Choose another --log.") from error
        if not cli.lock(self.file):
            self.file.close()
            raise OSError(f"{name}: another demo is writing this log. Choose another --log.")
        self.writer = csv.writer(self.file)
        return self

    def __exit__(self, *error):
        """Closes the file, and deletes it if it is new and there was no frame."""
        with contextlib.suppress(OSError):  # After a failed write, which raised already, closing fails too.
            self.file.close()
        if self.is_new and self.rows == 0:
            self.path.unlink(missing_ok=True)

    def write(self, number, time_s, file, faces, utc=None):
        """Adds the rows of a frame: one per `utils.Face`, or one with empty fields.

        Args:
            number: number of the frame, from 0.
            time_s: seconds into the video, or since the camera or stream was opened.
            file: name of the frame's file.
            utc: time of day in ISO 8601.
        """
        try:
            if self.rows == 0:
                self._begin()
            for fields in map(face_fields, faces) if faces else [[None] * len(self.face_columns)]:
                row = [number, round(time_s, 3), *fields]
                row = [round(value, 4) if isinstance(value, float) else value for value in row]
                self._write_row([file] * self.file_column + row + [utc] * self.utc_column)
        except OSError as error:
            name = utils.printable(self.path)
            raise OSError(f"{name}: the log ends early ({error.strerror}). Free some space.") from error

    def _begin(self):
        """Empties the file and, for a CSV, writes the names of the columns."""
        self.file.truncate(0)
        if not self.json_lines:
            self.file.write(self.mark)
            self.writer.writerow(self.columns)

    def _write_row(self, row):
        if self.json_lines:
            self.file.write(json.dumps(dict(zip(self.columns, row, strict=True))) + "\n")
        else:
            self.writer.writerow(map(escape_formula, row))
        self.rows += 1


def face_fields(face):
    """Returns the fields of a `utils.Face` in the order of `EmotionLog.face_columns`."""
    probabilities = face.probabilities.values()
    return face.track, *face.box, face.label, face.confidence, *probabilities, face.angle, int(face.held)


def escape_formula(value):
    """Returns a cell's value, with an apostrophe before text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def check_path(path):
    """Raises OSError or ValueError if a path has the wrong suffix or is not a regular file."""
    name = utils.printable(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"The name of a log must end in {' or '.join(SUFFIXES)}, but {name} does not.")
    if path.exists() and not path.is_file():  # Opening a named pipe would wait for its other end.
        raise OSError(f"{name}: not a regular file. Choose another name for the log.")


# Reading --------------------------------------------------------------------------------------------------------------
# The functions below need pandas. The demo calls them after its last frame.


def read_log(path):
    """Reads a log that the demo wrote, even if pandas or a spreadsheet has saved it again.

    Returns:
        DataFrame with a row per face and frame, and one per frame without a face. Its columns:
            log: str, the log's path.
            file: str, the name of the frame's file, or "".
            frame, track: int; track is 0 without a face.
            time_s, seconds: float, when the frame was shown, and for how long.
            label: one of `LABELS`.
            held: bool, whether the face was held.
            live: bool, whether the source was a camera or stream.
            one per class: float32, its probability 0..1, or 0 without a face.

    Raises:
        OSError, ValueError: the file cannot be read, is not a log, or is too large.
    """
    check_path(path)
    name = utils.printable(path)
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file. Write a log with: python webcam_demo.py --log emotions.csv")
    if path.stat().st_size > MAX_LOG_BYTES:
        raise ValueError(f"{name}: larger than {MAX_LOG_BYTES / 1e6:,.0f} MB. Split the log.")
    try:
        rows = parse_log(path.read_bytes(), path.suffix.lower() == ".jsonl")
    except NOT_A_LOG as error:
        reason = utils.shorten(error)
        raise ValueError(f"{name}: not a log of webcam_demo.py ({reason}). Choose a file that --log wrote.") from error
    return rows.assign(log=str(path), seconds=frame_seconds(rows))


def parse_log(content, json_lines):
    """Parses the bytes of a log. Returns the columns of `read_log` except for `log` and `seconds`."""
    import pandas as pd

    chunks, count, parse = [], 0, parse_json_lines if json_lines else parse_csv
    for chunk in parse(content.removeprefix(codecs.BOM_UTF8)):
        chunks.append(check_rows(chunk.set_index(np.arange(count, count + len(chunk)) + 1)))
        count += len(chunk)
        if count > MAX_LOG_ROWS:
            raise ValueError(f"more than {MAX_LOG_ROWS:,} rows")
    if not count:
        raise ValueError("no rows")
    return pd.concat(chunks, ignore_index=True)


def parse_json_lines(content):
    """Yields DataFrames of at most `CHUNK` rows from the bytes of a log of JSON lines."""
    import pandas as pd

    start = content.rfind(b"\n") + 1
    if start and content[start:].strip()[-1:] not in (b"}", b""):
        content = content[:start]  # The last row is cut off, as by a full disk.
    lines = filter(bytes.strip, io.BytesIO(content))
    while batch := list(itertools.islice(lines, CHUNK)):
        yield pd.DataFrame([json.loads(line) for line in batch])


def parse_csv(content):
    """Yields DataFrames of at most `CHUNK` rows from the bytes of a CSV with commas, semicolons or tabs."""
    import pandas as pd

    header, separator = io.BytesIO(content).readline(), None
    if header.startswith(b"sep="):  # A line for spreadsheets.
        separator, content = chr(header[4]), content[len(header) :]
        header = io.BytesIO(content).readline()
    separator = separator or max(",;\t", key=header.decode(errors="replace").count)
    start = content.rfind(b"\n") + 1
    if 0 < count_fields(content[start:], separator) < count_fields(header, separator):
        content = content[:start]  # The last row is cut off, as by a full disk.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ParserWarning)  # Rows may end with an extra separator.
        yield from pd.read_csv(
            io.BytesIO(content), sep=separator, chunksize=CHUNK, dtype={"file": str, "label": str}, low_memory=False,
            keep_default_na=False, na_values=[""], index_col=False, encoding_errors="replace",
        )  # fmt: skip


def count_fields(line, separator):
    """Returns the number of fields in a line of a CSV, bytes."""
    return len(next(csv.reader([line.decode(errors="replace")], delimiter=separator), []))


def check_rows(chunk):
    """Returns a part of a log with the columns of `parse_log`. The index must be the row number, from 1.

    Raises:
        ValueError: a column is missing, or the demo does not write such a value.
    """
    import pandas as pd

    classes = list_classes(chunk)
    missing = [column for column in ("frame", "time_s", "track", "label") if column not in chunk]
    if missing or not classes:
        raise ValueError(f"no column {missing[0] if missing else utils.EMOTIONS[0]}")
    chunk = chunk.dropna(how="all")  # Spreadsheets may write such rows at the end.
    numbers = pd.DataFrame({column: to_numbers(chunk[column]) for column in ("frame", "time_s", "track", *classes)})
    no_face, whole = chunk["track"].isna() | (chunk["track"] == ""), numbers[["frame", "track"]] % 1 == 0
    valid = {
        "frame": whole["frame"] & (numbers["frame"].abs() < 2**31),
        "time_s": numbers["time_s"].abs() < MAX_TIME,
        "track": no_face | whole["track"] & numbers["track"].between(1, 2**31),
        "label": no_face | chunk["label"].isin(LABELS[:-1]),
    } | {emotion: chunk[emotion].isna() | numbers[emotion].between(0, 1) for emotion in classes}
    for column, rows in valid.items():
        if not rows.all():
            raise ValueError(f"row {rows.idxmin()}: {column} {chunk[column][rows.idxmin()]}")
    label = pd.Categorical(chunk["label"].mask(no_face, ""), categories=LABELS)
    file = chunk["file"].fillna("").astype(str).str.replace(ESCAPED, "", regex=True) if "file" in chunk else ""
    # Older logs lack the column `held`, and pandas may have saved it as True and False.
    texts = chunk.get("held", pd.Series("", chunk.index)).astype(str).str.lower().replace("true", "1")
    held = to_numbers(texts).fillna(0) != 0
    numbers[["track", *classes]] = numbers[["track", *classes]].mask(no_face, 0).fillna(0)
    numbers = numbers.astype({"frame": int, "track": int} | dict.fromkeys(classes, np.float32))
    return numbers.assign(label=label, file=file, held=held, live="utc" in chunk)


def list_classes(rows):
    """Returns the emotions that are columns of a log, list of str."""
    return [emotion for emotion in utils.EMOTIONS if emotion in rows]


def to_numbers(column):
    """Returns a column as floats. Accepts decimal points and commas. Anything else becomes NaN."""
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column):
        column = column.astype(str).str.replace(",", ".", regex=False)
    return pd.to_numeric(column, errors="coerce").astype(float)


def frame_seconds(rows):
    """Returns how long the frame of each row was shown, seconds (N,).

    The last frame of a file counts as long as the one before. `LONGEST_FRAME` limits frames of cameras and streams.
    """
    frames = rows.drop_duplicates("frame").sort_values("frame").set_index("frame")
    seconds = -frames.groupby("file")["time_s"].diff(-1).clip(upper=0)
    seconds = seconds.mask(frames["live"], seconds.clip(upper=LONGEST_FRAME))
    return rows["frame"].map(seconds.groupby(frames["file"]).ffill().fillna(0))


# Summing up -----------------------------------------------------------------------------------------------------------


def find_seen(rows):
    """Returns the rows of faces that were found, not held. A held face repeats an earlier frame's emotion."""
    return rows[(rows["track"] > 0) & ~rows["held"]]


def find_tracks(rows, count):
    """Returns the `count` tracks seen longest, list of DataFrames, and the number of all. Leaves out images."""
    groups = find_seen(rows).groupby(TRACK_KEY)
    seconds = groups["seconds"].sum()
    longest = seconds[seconds > 0].sort_values(ascending=False, kind="stable").index
    return [groups.get_group(key).sort_values("frame") for key in longest[:count]], len(longest)


def sum_by_label(rows, weights):
    """Returns the sum of the weights (N,) per label, a Series, largest first."""
    sums = weights.groupby(rows["label"], observed=True).sum()
    return sums.sort_values(ascending=False, kind="stable")


def describe(rows):
    """Returns a text: how long the faces of these rows were seen, and each label's share of that time."""
    seconds, total = sum_by_label(rows, rows["seconds"]), rows["seconds"].sum()
    return ", ".join([f"{total:.1f} s", *(f"{label} {share:.0%}" for label, share in (seconds / total).items())])


def count_labels(rows):
    """Returns a text: how many of these rows have each label."""
    return ", ".join(f"{label} {count}" for label, count in sum_by_label(rows, rows["track"] > 0).items())


def plural(number, noun):
    """Returns for example "1 face" or "1,200 faces"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def track_name(track, several_logs):
    """Returns a readable name of a track, from its rows."""
    log, file, number = track[TRACK_KEY].iloc[0]
    places = [utils.printable(log)] * several_logs + [utils.printable(file)] * bool(file)
    return ", ".join([*places, f"face {number}"]) if places else f"Face {number}"


def summarize(rows):
    """Returns a text: how long each face was seen, and each label's share of that time. `rows`: see `read_log`."""
    logs, faces, seen = rows["log"].nunique(), rows[rows["track"] > 0], find_seen(rows)
    frames, held = len(rows[["log", "frame"]].drop_duplicates()), len(faces) - len(seen)
    text = f"{plural(len(faces), 'face')} in {plural(frames, 'frame')}"
    text += f" of {logs:,} logs" * (logs > 1) + f", {held:,} of them held" * (held > 0)
    if not rows["seconds"].any():  # Images.
        return f"{text}: {count_labels(seen) or 'no face'}."
    tracks, number = find_tracks(rows, TRACKS_LISTED)
    lines = [f"{text}, {plural(number, 'track')}.{' Shares of the time that each was seen:' if number else ''}"]
    lines += [f"  All: {describe(seen)}"] * (logs > 1 and number > 0)
    lines += [f"  {track_name(track, logs > 1)}: {describe(track)}" for track in tracks]
    lines += [f"  and {number - len(tracks):,} more, seen for less time"] * (number > len(tracks))
    images = seen[(seen["seconds"] == 0) & ~seen["live"]]
    lines += [f"  Images: {count_labels(images)}"] * (len(images) > 0)
    return "\n".join(lines)


def find_intervals(rows):
    """Returns a DataFrame with one row per interval in which a face had the same label without a break.

    Its columns are `track`, `label`, `start_s` and `end_s`. Before them come `log` if there are several logs, and
    `file` if a log has this column. Held faces and images are left out.
    """
    seen = find_seen(rows).sort_values([*TRACK_KEY, "frame"])
    seen = seen.assign(label=seen["label"].astype(str), end_s=seen["time_s"] + seen["seconds"])
    same = [*TRACK_KEY, "label"]
    starts = (seen[same] != seen[same].shift()).any(axis=1) | (seen["time_s"] - seen["end_s"].shift() > MIN_GAP)
    rows_of = seen.groupby(starts.cumsum())
    intervals = rows_of[same].first().assign(start_s=rows_of["time_s"].first(), end_s=rows_of["end_s"].last())
    intervals = intervals[intervals["end_s"] > intervals["start_s"]].round(3)
    is_needed = {"log": rows["log"].nunique() > 1, "file": (rows["file"] != "").any()}
    return intervals.drop(columns=[column for column in is_needed if not is_needed[column]])


def write_intervals(rows, path):
    """Writes `find_intervals` as a CSV, for annotation tools such as ELAN."""
    if path.exists() and any(os.path.samefile(path, log) for log in rows["log"].unique()):
        raise ValueError(f"{utils.printable(path)}: one of the logs. Choose another --intervals.")
    intervals = find_intervals(rows)
    has_names = "log" in intervals or "file" in intervals
    for column in {"log", "file"} & set(intervals):
        intervals[column] = intervals[column].map(escape_formula)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with cli.replaced(path) as new:
            encoding = "utf-8-sig" if has_names else "utf-8"
            intervals.to_csv(new, index=False, encoding=encoding, errors="backslashreplace")
    except OSError as error:
        raise OSError(f"{utils.printable(path)}: cannot be written ({error.strerror}). Choose another path.") from error


def timeline_path(log):
    """Returns the path of the timeline of a log or of a folder of logs."""
    log = log if log.name else log.resolve()  # The folder "." has no name.
    return log.with_name(f"{log.stem if log.suffix.lower() in SUFFIXES else log.name}-timeline.png")


def timeline_curves(rows):
    """Returns the curves of the tracks seen longest, sorted by first frame, and the number of other tracks.

    A curve is (name, seconds (K,), probabilities (K, C)). Where a face appears or disappears, all probabilities are 0.
    """
    (tracks, number), curves, classes = find_tracks(rows, TRACKS_DRAWN), [], list_classes(rows)
    for track in sorted(tracks, key=lambda track: track["time_s"].iloc[0]):
        time_s, probabilities = track["time_s"].to_numpy(), track[classes].to_numpy()
        ends = time_s + track["seconds"].to_numpy()
        shortest = max(MIN_GAP, (ends[-1] - time_s[0]) / POINTS_DRAWN)
        gaps = np.flatnonzero(time_s[1:] - ends[:-1] > shortest) + 1
        curve = [], []
        for first, last in zip([0, *gaps], [*gaps, len(track)], strict=True):
            drawn, nothing = slice(first, last, len(track) // POINTS_DRAWN + 1), np.zeros((1, len(classes)))
            curve[0].extend([time_s[first], *time_s[drawn], *[ends[last - 1]] * 2])  # Shown until the next frame.
            curve[1].extend([nothing, probabilities[drawn], probabilities[last - 1 : last], nothing])
        name = track_name(track, rows["log"].nunique() > 1)
        curves.append((name, np.array(curve[0]), np.concatenate(curve[1])))
    return curves, number - len(curves)


def draw_timeline(rows, path, command):
    """Draws the timeline into a file, if there are curves. Returns a line that says so or why not, or None."""
    name = utils.printable(path)
    try:
        curves, others = timeline_curves(rows)
        if not curves:
            if not path.exists():
                return None
            path.unlink()  # From a former log with this name.
            return f"Deleted {name}: this log has no timeline."
        import plots  # Imports Matplotlib, which the demo does not require.

        with cli.replaced(path) as new:
            plots.timeline(curves, list_classes(rows), others, new)
    except ModuleNotFoundError:
        return f"For a timeline: pip install matplotlib seaborn, then {command}"
    except (ImportError, MemoryError, OSError) as error:  # Too little memory can raise ImportError too.
        reason = getattr(error, "strerror", None) or utils.shorten(error) or "too little memory"
        return f"{name}: cannot be drawn ({reason}). Try again: {command}"
    return f"Drew {name}."


# Script ---------------------------------------------------------------------------------------------------------------


def read_logs(paths):
    """Reads logs, and all logs in folders, as one DataFrame; see `read_log`. Skips other files in folders.

    Raises:
        OSError, ValueError: a log cannot be read, a folder has none, or pandas is missing.
    """
    try:
        import pandas as pd
    except ImportError as error:
        command = f"pip install pandas matplotlib seaborn, then {command_for(paths)}"
        raise ValueError(f"pandas is missing ({utils.shorten(error)}). For a summary: {command}") from error
    logs, known = [], set()
    for path in paths:
        in_folder = path.is_dir()
        named = [file for file in path.rglob("[!.]*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        for file in sorted(named) if in_folder else [path]:
            if file.resolve() in known:  # Given twice, or in a folder that was also given.
                continue
            known.add(file.resolve())
            try:
                logs.append(read_log(file))
            except (OSError, ValueError) as error:
                if not in_folder:
                    raise
                print(f"Skipped {cli.explain(error)}", flush=True)
    if not logs:
        raise ValueError(f"{utils.printable(paths[0])}: no logs. Name a log of webcam_demo.py, or a folder of logs.")
    rows = pd.concat(logs, ignore_index=True)
    return rows.fillna(dict.fromkeys(utils.EMOTIONS, 0))  # The models of two logs may have different classes.


def command_for(paths):
    """Returns the command that summarizes these logs."""
    return f"python emotion_log.py {' '.join(map(utils.printable, paths))}"


def report(paths, intervals=None):
    """Returns the summary of logs and folders of logs. Draws a timeline if only one path is given.

    Args:
        paths: list of Path.
        intervals: Path of a CSV to write with `write_intervals`, or None.

    Raises:
        OSError, ValueError: a log cannot be read, or the intervals cannot be written.
    """
    rows = read_logs(paths)
    lines = [summarize(rows)]
    if intervals:
        write_intervals(rows, intervals)
        lines.append(f"Wrote {utils.printable(intervals)}.")
    if len(paths) == 1:
        lines.append(draw_timeline(rows, timeline_path(paths[0]), command_for(paths)))
    return "\n".join(filter(None, lines))


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    parser.add_argument("logs", nargs="+", metavar="LOG", type=cli.path, help="log (.csv, .jsonl) or folder of logs")
    parser.add_argument("--intervals", metavar="CSV", type=cli.path, help="write when each face had which label")
    args = parser.parse_args(argv)
    if args.intervals and args.intervals.suffix.lower() != ".csv":
        parser.error(f"--intervals must end in .csv, but it is {utils.printable(args.intervals)}.")
    return args


def main(argv=None):
    args = parse_args(argv)
    return cli.run_script("emotion_log.py", lambda: print(report(args.logs, args.intervals)))


if __name__ == "__main__":
    sys.exit(main())
