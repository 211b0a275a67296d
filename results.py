"""What the demo leaves behind: a log of the emotions, and annotated videos and images; used by webcam_demo.py."""

import csv
import datetime
import json
from pathlib import Path

import cv2

import utils
from sources import is_still, open_capture

OUTPUT_DIR = Path("output")  # Of snapshots, and of annotated files that nobody gave a name.
LONGEST_GAP = 60.0  # Seconds that a written video may stand still; a longer gap, or a jump of a file's clock, is cut.
WRITABLE_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4"}  # Of videos, with the encoders that OpenCV brings.


class EmotionLog:
    """Writes one row per face and frame, as CSV or, for a name that ends in .jsonl, as JSON lines."""

    def __init__(self, path, classes, source):
        self.file_column, self.utc_column = source.many, source.live
        path.parent.mkdir(parents=True, exist_ok=True)
        # Line buffering: what was seen is on disk at once, whatever happens to the program.
        self.path = path
        self.file = open(path, "w", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.json_lines, self.classes = path.suffix.lower() == ".jsonl", classes
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
    """Returns a number with four digits after the point, None for none."""
    return None if number is None else round(number, 4)


class AnnotatedFiles:
    """Writes what was drawn into a file of --output's name or, of a folder's files, into a folder of that name."""

    def __init__(self, path, source):
        self.path, self.source, self.name, self.writer, self.written = path, source, None, None, 0
        (path if source.many else path.parent).mkdir(parents=True, exist_ok=True)

    def write(self, frame, time_s, name):
        self.written += 1
        path = annotated_path(self.path, self.source, name)
        if is_still(self.source, name):
            if not write_image(path, frame):
                raise ValueError(f"--output must be an image file that can be written. Received: {path}.")
            return
        if name != self.name:
            self.close()
            self.name, self.writer = name, VideoWriter(path, self.source.fps, frame.shape[1::-1], time_s)
        self.writer.write(frame, time_s)

    def close(self):
        if self.writer:
            self.writer.close()
            self.writer = None


def annotated_path(output, source, name):
    """Returns where the annotated form of a source's file of that name is written."""
    path = output / name if source.many else output
    writable = is_still(source, name) or path.suffix.lower() in WRITABLE_SUFFIXES
    return path if writable else path.with_name(f"{path.name}.mp4")


def write_image(path, frame):
    """Writes an image file, or leaves what was there; tells whether that was possible."""
    try:
        encoded, content = cv2.imencode(".jpg" if path.suffix.lower() == ".jfif" else path.suffix, frame)
        if encoded:
            with utils.replaced_file(path) as new:
                new.write_bytes(content)  # Python opens paths that OpenCV cannot, on Windows.
    except (cv2.error, OSError):
        return False
    return encoded


class VideoWriter:
    """Writes a video that plays at the right speed, whatever the times between its frames were.

    Its rate is constant: a frame that stayed on screen for long is written several times, and of two that came at
    nearly the same time only one.

    Raises:
        ValueError: it cannot be written, or not completed.
    """

    def __init__(self, path, fps, size, start):
        fps = fps if fps < 65 else round(fps, 2)  # MPEG-4 divides a second into at most 65,535 parts.
        self.path, self.fps, self.size, self.written = path, fps, size, 0
        self.start, self.time, self.frame = start, start, None  # The times are seconds; the frame is the last one.
        codec = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix.lower() == ".avi" else "mp4v"))
        self.writer = cv2.VideoWriter(str(path.resolve()), cv2.CAP_FFMPEG, codec, fps, size)
        if not self.writer.isOpened():
            raise ValueError(f"--output must be a video file that can be written. Received: {path}.")

    def write(self, frame, time_s):
        if frame.shape[1::-1] != self.size:
            frame = cv2.resize(frame, self.size)
        self.start += max(0.0, time_s - self.time - LONGEST_GAP)
        self.time, slot = time_s, round((time_s - self.start) * self.fps)
        while self.written < slot:
            self.put(self.frame)
        if self.written == slot:
            self.put(frame)
        self.frame = frame

    def put(self, frame):
        self.writer.write(frame)
        self.written += 1

    def close(self):
        self.writer.release()
        # OpenCV itself tells nobody that the disk was full: then the last frame cannot be reached.
        capture = open_capture(self.path)
        capture.set(cv2.CAP_PROP_POS_FRAMES, self.written - 1)
        capture.read()
        reached = capture.get(cv2.CAP_PROP_POS_FRAMES)
        capture.release()
        if reached < self.written:
            raise ValueError(f"{self.path} could not be completed. Is the disk full?")
