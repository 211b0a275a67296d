"""What the demo leaves behind: a log of the emotions, and annotated videos and images; used by webcam_demo.py."""

import csv
import datetime
import json
from pathlib import Path

import cv2

from sources import is_still

OUTPUT_DIR = Path("output")  # Of snapshots, and of annotated files that nobody gave a name.
WRITABLE_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4"}  # Of videos, with the encoders that OpenCV brings.


class EmotionLog:
    """Writes one row per face and frame, as CSV or, for a name that ends in .jsonl, as JSON lines."""

    def __init__(self, path, classes, source):
        self.file_column, self.utc_column = source.many, source.live
        path.parent.mkdir(parents=True, exist_ok=True)
        # Line buffering: what was seen is on disk at once, whatever happens to the program.
        self.path = path
        self.file = open(path, "w", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.json_lines, self.classes = path.suffix == ".jsonl", classes
        self.columns = ["frame", "time_s", "track", "x", "y", "width", "height", "label", "confidence", *classes]
        self.columns = ["file"] * self.file_column + self.columns + ["utc"] * self.utc_column
        self.writer = csv.writer(self.file)
        if not self.json_lines:
            self.writer.writerow(self.columns)

    def write(self, number, time_s, name, faces):
        """Adds a frame's rows: one per face, or one with empty fields.

        Args:
            number: the frame's, from 0.
            time_s: seconds into the file, or since the start.
            name: file the frame is from.
            faces: list of (track, box, (label, confidence), probabilities).
        """
        utc = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        empty = (None, (None,) * 4, (None, None), (None,) * len(self.classes))
        for track, box, (label, confidence), probabilities in faces or [empty]:
            row = [name] * self.file_column + [number, round(time_s, 3), track, *map(plain, box), label]
            row += [plain(confidence), *map(plain, probabilities)] + [utc] * self.utc_column
            if self.json_lines:
                self.file.write(json.dumps(dict(zip(self.columns, row, strict=True))) + "\n")
            else:
                self.writer.writerow(row)

    def close(self):
        self.file.close()


def plain(number):
    """Returns a number as Python writes it, fractions with four digits."""
    return round(number.item() if hasattr(number, "item") else number, 4) if number is not None else None


class AnnotatedFiles:
    """Writes what was drawn into a file of --output's name or, of a folder's files, into a folder of that name."""

    def __init__(self, path, source):
        self.path, self.source, self.name, self.writer = path, source, None, None
        (path if source.many else path.parent).mkdir(parents=True, exist_ok=True)

    def write(self, frame, time_s, name):
        path = self.path / name if self.source.many else self.path
        if is_still(self.source, name):
            if not write_image(path, frame):
                raise ValueError(f"--output must be an image file that can be written. Received: {path}.")
            return
        if name != self.name:
            self.close()
            path = path if path.suffix.lower() in WRITABLE_SUFFIXES else path.with_name(f"{path.name}.mp4")
            self.name, self.writer = name, VideoWriter(path, self.source.fps, frame.shape[1::-1], time_s)
        self.writer.write(frame, time_s)

    def close(self):
        if self.writer:
            self.writer.writer.release()


def write_image(path, frame):
    """Writes an image file; tells whether that was possible."""
    try:
        path.write_bytes(cv2.imencode(path.suffix, frame)[1])  # Python opens paths that OpenCV cannot, on Windows.
    except (cv2.error, OSError):
        return False
    return True


class VideoWriter:
    """Writes a video that plays at the right speed, whatever the times between its frames were."""

    def __init__(self, path, fps, size, start):
        self.fps, self.size, self.start, self.written = fps, size, start, 0
        codec = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix.lower() == ".avi" else "mp4v"))
        self.writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, fps, size)
        if not self.writer.isOpened():
            raise ValueError(f"--output must be a video file that can be written. Received: {path}.")

    def write(self, frame, time_s):
        if frame.shape[1::-1] != self.size:
            frame = cv2.resize(frame, self.size)
        # A camera's frames come when they come: one that stayed on screen for long is written several times.
        while self.written <= (time_s - self.start) * self.fps + 0.5:
            self.writer.write(frame)
            self.written += 1
