"""Shows the emotion of every face on a camera, a video, an image, a folder of images or a stream.

    python webcam_demo.py                                     camera 0, or the bundled clip where there is none
    python webcam_demo.py --source film.mp4 --output labelled.mp4 --log emotions.csv
    python webcam_demo.py --source photos/ --output labelled/ --no-display
    python webcam_demo.py --source http://192.168.0.7:8080/video
    python webcam_demo.py --source film.mp4 --no-display --benchmark

Keys: q or Esc quits, space pauses, s saves a snapshot, m mirrors, b shows the probabilities of the nearest face, f the
frame rate and latency, h help. Closing the window ends it too.
"""

import time

STARTED = time.perf_counter()  # Before the imports, which are most of the time to the first frame.

import argparse
import array
import collections
import contextlib
import csv
import datetime
import json
import os
import signal
import sys
from pathlib import Path

# OpenCV and FFmpeg would print their own lines on every camera that is not there; ours say what to do about it.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS", "0")  # Windows: a camera opens in 1 s, not in 20.

import cv2
import numpy as np
import tqdm

import timeline
import utils
from sources import IMAGE_SUFFIXES, is_image, open_source
from tracking import FaceTracker

OUTPUT_DIR = Path("output")  # Of snapshots, and of annotated files that nobody gave a name.
WINDOW = "Emotions"
HELP = ["q, Esc  quit", "space   pause", "s  snapshot", "m  mirror", "b  probabilities", "f  frame rate", "h  help"]
WRITABLE_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4"}  # Of videos, with the encoders that OpenCV brings.
SECONDS_PER_IMAGE = 1.0  # In the window, for a folder's images; a single one stays until a key ends it.


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


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
            path = path if path.suffix.lower() in WRITABLE_SUFFIXES else path.with_suffix(".mp4")
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


class Window:
    """The window, its keys and what they switch."""

    def __init__(self, mirrored):
        self.mirrored, self.paused, self.closed, self.frame = mirrored, False, False, None
        self.overlays = {"f"}  # The keys of those that are on: b, f, h.
        self.name, self.clock = None, 0.0  # The video's, and what the clock showed at its second 0, pauses taken off.
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, frame, source, time_s, name):
        """Shows a frame, a file's not before its time, and obeys the keys."""
        if self.frame is None:
            cv2.resizeWindow(WINDOW, *frame.shape[1::-1])
        self.draw(frame)
        now = time.perf_counter()
        if source.live:
            self.wait(0)
        elif is_still(source, name):
            self.wait(SECONDS_PER_IMAGE if source.many else np.inf)
        else:
            if name != self.name:  # A video begins.
                self.name, self.clock = name, now - time_s
            self.wait(time_s + self.clock - now)

    def describe(self, boxes, probabilities, classes, fps, latency):
        """Takes what the overlays of the next frame say; `latency` is in seconds, None for files."""
        self.rate = f"{fps:.0f} frames/s" + (f", {1000 * latency:.0f} ms behind" if latency is not None else "")
        nearest = int(np.argmax(boxes[:, 2])) if len(boxes) else None
        self.nearest = None if nearest is None else (probabilities[nearest], classes)

    def draw(self, frame):
        """Shows a frame with the overlays that the keys have switched on."""
        self.plain, self.frame = frame, frame.copy()
        utils.put_notes(self.frame, [self.rate] * ("f" in self.overlays) + HELP * ("h" in self.overlays))
        if "b" in self.overlays and self.nearest:
            utils.put_bars(self.frame, *self.nearest)
        cv2.imshow(WINDOW, self.frame)

    def stall(self, name):
        """Says on the last frame that a live source gives no more."""
        if self.frame is not None:
            frame = self.frame.copy()
            utils.put_notes(frame, [f"No picture from {name}; trying to open it again."])
            cv2.imshow(WINDOW, frame)
        self.wait(0)

    def wait(self, seconds):
        """Obeys the keys, at least once and until the time is over; a pause does not count."""
        while True:
            before = time.perf_counter()
            self.press(cv2.waitKey(int(np.clip(seconds * 1000, 1, 20))) & 0xFF)
            self.closed = self.closed or not is_visible(WINDOW)
            elapsed = time.perf_counter() - before
            if not self.paused:
                seconds -= elapsed
            else:
                self.clock += elapsed
            if self.closed or seconds <= 0 and not self.paused:
                return

    def press(self, key):
        if key in (ord("q"), 27):  # 27 is Esc.
            self.closed = True
        elif key == ord(" "):
            self.paused = not self.paused
        elif key == ord("m"):
            self.mirrored = not self.mirrored
        elif chr(key) in "bfh" and self.frame is not None:
            self.overlays ^= {chr(key)}
            self.draw(self.plain)  # At once, also while the picture stands still.
        elif key == ord("s") and self.frame is not None:
            OUTPUT_DIR.mkdir(exist_ok=True)
            path = OUTPUT_DIR / f"snapshot-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}.png"
            print(f"Saved {path}." if write_image(path, self.frame) else f"Cannot write {path}.", flush=True)

    def close(self):
        cv2.destroyAllWindows()


def is_visible(window):
    """Tells whether a window has not been closed."""
    try:
        return cv2.getWindowProperty(window, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # With Qt, closing the last window takes away whom to ask.
        return False


def has_display():
    """Tells whether a window can open: on Linux without a display OpenCV would not raise but abort the process."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


# ---------------------------------------------------------------------------------------------------------------------
# The demo
# ---------------------------------------------------------------------------------------------------------------------


class Benchmark:
    """Times the stages of each frame."""

    STAGES = ("read", "detect", "classify", "draw")

    def __init__(self):
        self.seconds = {stage: array.array("d") for stage in self.STAGES}  # 8 bytes each: an hour of video is 3 MB.
        self.frames = self.faces = 0
        self.started = time.perf_counter()
        self.recent = collections.deque([self.started], maxlen=30)  # When the last frames were done.
        self.startup = None  # Seconds from the start of the process to the first frame with a labelled face.

    def time_reading(self, frames):
        """Yields from `frames` and times how long each takes to come."""
        self.started = time.perf_counter()
        while True:
            with self.stage("read"):
                item = next(frames, None)
            if item is None or item[0] is None:
                self.seconds["read"].pop()  # It was the end, or no news from a stream.
            if item is None:
                return
            yield item

    @contextlib.contextmanager
    def stage(self, name):
        started = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - started)

    def count(self, faces):
        self.frames, self.faces = self.frames + 1, self.faces + faces
        self.recent.append(time.perf_counter())
        if faces and self.startup is None:
            self.startup = process_seconds()

    def fps(self):
        """Returns the frames per second of the whole run."""
        return self.frames / max(self.recent[-1] - self.started, 1e-9)

    def pace(self):
        """Returns the frames per second of the last frames."""
        return (len(self.recent) - 1) / max(self.recent[-1] - self.recent[0], 1e-9)

    def report(self):
        """Returns what --benchmark prints: a table for people, and one JSON object for programs."""
        stages = {}
        for stage, seconds in self.seconds.items():
            median, p95 = np.percentile(seconds, (50, 95)) * 1000 if seconds else (0.0, 0.0)
            stages[stage] = {"median": round(float(median), 2), "p95": round(float(p95), 2)}
        result = {"frames": self.frames, "faces": self.faces, "fps": round(self.fps(), 1), "startup_s": self.startup}
        result |= {"peak_memory_mb": peak_memory_mb(), "stages_ms": stages}
        lines = [f"{'stage':<10}{'median ms':>12}{'95 % ms':>12}"]
        lines += [f"{stage:<10}{times['median']:>12.2f}{times['p95']:>12.2f}" for stage, times in stages.items()]
        lines += [f"{name}: {value}" for name, value in result.items() if name != "stages_ms"]
        return "\n".join([*lines, json.dumps(result)])


def process_seconds():
    """Returns the seconds since the process started; where the system does not tell, since this script did."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # Field 22 of proc(5).
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return round(uptime - ticks / os.sysconf("SC_CLK_TCK"), 3)
    except OSError:
        return round(time.perf_counter() - STARTED, 3)


def peak_memory_mb():
    """Returns the most memory this process has held, in MB, or None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)
    except OSError:
        return None


def run(source, detector, model, log, output, window, benchmark, min_confidence):
    """Labels the frames of a source until it ends or the window is closed.

    Args:
        source: from `sources.open_source`.
        detector: from `utils.load_face_detector`.
        model: `utils.EmotionModel`.
        log: `EmotionLog` or None.
        output: `AnnotatedFiles` or None.
        window: `Window` or None.
        benchmark: `Benchmark`, which counts and times.
        min_confidence: a face below it is labelled as uncertain.
    """
    file = None
    for frame, time_s, name in benchmark.time_reading(progress_bar(source)):
        if frame is None:  # A stream that stalls.
            if window:
                window.stall(source.name)
        else:
            if name != file:
                file, tracker = name, FaceTracker(detector, still=is_still(source, name))
            if window and window.mirrored:
                frame = cv2.flip(frame, 1)
            boxes, probabilities = find_emotions(frame, time_s, tracker, model, benchmark)
            labels = utils.choose_labels(probabilities, model.classes, min_confidence)
            with benchmark.stage("draw"):
                annotated = utils.annotate_frame(frame, boxes, labels)
            benchmark.count(len(boxes))
            if log:
                faces = list(zip(tracker.numbers(), boxes, labels, probabilities, strict=True))
                log.write(benchmark.frames - 1, time_s, name, faces)
            if output:
                output.write(annotated, time_s, name)
            if window:
                window.describe(boxes, probabilities, model.classes, benchmark.pace(), source.latency())
                window.show(annotated, source, time_s, name)
        if window and window.closed:
            break


def find_emotions(frame, time_s, tracker, model, benchmark):
    """Returns the boxes, int (F, 4), and averaged probabilities, float32 (F, C), of the faces of a frame."""
    with benchmark.stage("detect"):
        gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        boxes = tracker.find(gray, time_s)
    with benchmark.stage("classify"):
        probabilities = tracker.average(model.predict(utils.crop_faces(gray, boxes)), time_s)
    return boxes, probabilities


def is_still(source, name):
    """Tells whether a file of a source is an image; a camera's or stream's name may look like one and is none."""
    return not source.live and is_image(name)


def progress_bar(source):
    """Yields the frames of a source, with a bar on a terminal where their number is known and more than one."""
    hidden = True if source.total in (None, 1) else None
    with tqdm.tqdm(source.frames(), total=source.total, unit=" frames", disable=hidden) as bar:
        yield from bar


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", help="camera index, video, image, folder of images or URL (default: camera 0)")
    parser.add_argument(
        "--model", type=Path, default=utils.DEFAULT_MODEL, help="model folder (default: models/emotions-5)"
    )
    parser.add_argument("--output", type=Path, help="annotated video (.mp4), image, or folder for a folder's images")
    parser.add_argument("--log", type=Path, help="labels and probabilities per face and frame (.csv or .jsonl)")
    parser.add_argument("--no-display", action="store_true", help="open no window")
    parser.add_argument(
        "--min-confidence", type=probability, default=0.3, help="below it a face is uncertain (default: 0.3)"
    )
    parser.add_argument("--benchmark", action="store_true", help="end with a table of times and one line of JSON")
    return parser.parse_args(argv)


def probability(text):
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number from 0 to 1. Received: {text}.")


def open_window(args, source):
    """Opens the window, or says why there is none."""
    if args.no_display:
        return None
    if not has_display():
        print("No display found, so there is no window.")
        return None
    try:
        return Window(mirrored=isinstance(source.name, int))
    except cv2.error:
        print("This OpenCV opens no windows. Only opencv-python may be installed, no other package of OpenCV.")
        return None


def open_output(args, source, window):
    """Opens the annotated file; where a window was wanted and cannot be, there is one without --output too."""
    path = args.output
    if not path and not window and not args.no_display:
        suffix = "" if source.many else ".png" if is_still(source, source.name) else ".mp4"
        path = OUTPUT_DIR / f"labelled-{Path(str(source.name)).stem}{suffix}"
    for written in filter(None, (path, args.log)):
        if written.exists() and Path(str(source.name)).exists() and written.samefile(source.name):
            raise ValueError(f"--output and --log must not be the source itself. Received: {written}.")
    if path is None:
        return None
    suffixes = IMAGE_SUFFIXES if is_still(source, source.name) else WRITABLE_SUFFIXES
    if not source.many and path.suffix.lower() not in suffixes:
        raise ValueError(f"--output must end in {', '.join(sorted(suffixes))}. Received: {path}.")
    return AnnotatedFiles(path, source)


def demo(args):
    """Opens what the arguments name, runs, closes, reports; returns the exit status."""
    status, benchmark = 0, Benchmark()
    with contextlib.ExitStack() as stack:
        model, detector = utils.load_emotion_model(args.model), utils.load_face_detector()
        source = stack.enter_context(contextlib.closing(open_source(args.source)))
        window = open_window(args, source)
        output = open_output(args, source, window)
        log = EmotionLog(args.log, model.classes, source) if args.log else None
        for part in filter(None, (window, output, log)):
            stack.enter_context(contextlib.closing(part))
        try:
            run(source, detector, model, log, output, window, benchmark, args.min_confidence)
        except KeyboardInterrupt:
            status = 130
    report = benchmark.report()  # Before the timeline is drawn, whose memory is not the loop's.
    print(f"{benchmark.frames} frames, {benchmark.faces} faces, {benchmark.fps():.1f} frames a second.")
    for part in filter(None, (output, log)):
        print(f"Wrote {part.path}.")
    if log:
        print(timeline.report(log.path))
    if args.benchmark:
        print(report)
    if source.problem:
        print(f"webcam_demo.py: {source.problem}", file=sys.stderr)
        return 2
    return status


def main(argv=None):
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # A kill completes the files as Ctrl-C does.
    try:
        return demo(args)
    except (OSError, ValueError) as error:
        print(f"webcam_demo.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
