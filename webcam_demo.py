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
import json
import os
import signal
import sys
import urllib.parse
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
from results import OUTPUT_DIR, WRITABLE_SUFFIXES, AnnotatedFiles, EmotionLog, annotated_path
from sources import IMAGE_SUFFIXES, check_name, is_still, open_source
from tracking import FaceTracker
from window import Window, has_display


class Benchmark:
    """Times the stages of each frame."""

    STAGES = ("read", "detect", "classify", "draw")

    def __init__(self):
        self.seconds = {stage: array.array("d") for stage in self.STAGES}  # 8 bytes each: an hour of video is 3 MB.
        self.frames = self.faces = 0
        self.startup = None  # Seconds from the start of the process to the first frame with a labelled face.
        self.start()

    def start(self):
        self.started = time.perf_counter()
        self.recent = collections.deque([self.started], maxlen=30)  # When the last frames were done.

    def time_reading(self, frames):
        """Yields from `frames` and times how long each takes to come."""
        self.start()
        while True:
            started = time.perf_counter()
            item = next(frames, None)
            if item is None:
                return
            if item[0] is not None:  # Else it is no news from a stream.
                self.seconds["read"].append(time.perf_counter() - started)
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
        finished = min(map(len, self.seconds.values()))  # A frame that Ctrl-C fell into has not all its stages.
        whole = np.sum([seconds[:finished] for seconds in self.seconds.values()], axis=0)  # Seconds of each frame.
        for stage, seconds in {**self.seconds, "frame": whole}.items():
            median, p95 = np.percentile(seconds, (50, 95)) * 1000 if len(seconds) else (0.0, 0.0)
            stages[stage] = {"median": round(float(median), 2), "p95": round(float(p95), 2)}
        result = {"frames": self.frames, "faces": self.faces, "fps": round(self.fps(), 1), "startup_s": self.startup}
        result |= {"peak_memory_mb": peak_memory_mb()}
        lines = [f"{'stage':<10}{'median ms':>12}{'95 % ms':>12}"]
        lines += [f"{stage:<10}{times['median']:>12.2f}{times['p95']:>12.2f}" for stage, times in stages.items()]
        lines += [f"{name}: {value}" for name, value in result.items()]
        result["stages_ms"] = {stage: stages[stage] for stage in self.STAGES}
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
    except (OSError, IndexError):
        return None


def run(source, detector, model, log, output, window, benchmark, min_confidence):
    """Labels the frames of a source until it ends or the window is closed.

    Args:
        source: from `sources.open_source`.
        detector, model: from `utils.load_face_detector` and `utils.load_emotion_model`.
        log, output, window: `EmotionLog`, `AnnotatedFiles` and `Window`, or None each.
        benchmark: `Benchmark`, which counts and times.
        min_confidence: a face below it is labelled as uncertain.
    """
    file = None
    for frame, time_s, name in benchmark.time_reading(progress_bar(source)):
        if frame is None:  # A stream that stalls.
            if window:
                window.stall(source.name)
        else:
            mirror = bool(window and window.mirrored)
            if name != file:
                file, tracker, mirrored = name, FaceTracker(detector, still=is_still(source, name)), mirror
            if mirror != mirrored:
                mirrored = mirror
                tracker.mirror(frame.shape[1])
            if mirror:
                frame = cv2.flip(frame, 1)
            boxes, probabilities = find_emotions(frame, time_s, tracker, model, benchmark)
            labels = utils.choose_labels(probabilities, model.classes, min_confidence)
            with benchmark.stage("draw"):
                annotated = utils.annotate_frame(frame, boxes, labels)
            benchmark.count(len(boxes))
            if log:
                faces = list(zip(tracker.numbers(), boxes.tolist(), labels, probabilities.tolist(), strict=True))
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


def progress_bar(source):
    """Yields the frames of a source, with a bar on a terminal where their number is known and more than one."""
    hidden = True if source.total in (None, 1) or sys.stderr is None else None  # None: where there is a terminal.
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
        name = urllib.parse.urlsplit(source.name).path if isinstance(source.name, str) else str(source.name)
        path = OUTPUT_DIR / f"labelled-{Path(name).stem or 'stream'}{suffix}"
        print(f"Writing {path} instead{'; Ctrl-C ends it' if source.live else ''}.")
    check_paths(args, source, path)
    if path is None:
        return None
    check_name(path)
    suffixes = IMAGE_SUFFIXES if is_still(source, source.name) else WRITABLE_SUFFIXES
    if source.many and path.suffix.lower() in IMAGE_SUFFIXES | WRITABLE_SUFFIXES:
        raise ValueError(f"--output must be a folder, because --source is one. Received: {path}.")
    if not source.many and path.suffix.lower() not in suffixes:
        raise ValueError(f"--output must end in {', '.join(sorted(suffixes))}. Received: {path}.")
    return AnnotatedFiles(path, source)


def check_paths(args, source, output):
    """Refuses to write a file that has another use, before anything is written.

    Raises:
        ValueError: one of them would overwrite another one.
    """
    paths = [("--source", path) for path in (source.name, *source.paths) if isinstance(path, Path)]  # No addresses.
    if output:
        files = [annotated_path(output, source, path.name) for path in source.paths] if source.many else []
        paths += [("--output", path) for path in (output, *files)]
    if args.log:
        paths += [("--log", args.log), ("the picture of the log", timeline.picture_path(args.log))]
    uses = {}
    for use, path in paths:
        # Of an existing file its number, which links share.
        identity = os.stat(path)[1:3] if path.exists() else path.resolve()
        other = uses.setdefault(identity, use)
        if other != use:
            raise ValueError(f"{use} and {other} must be different files. Received: {path} for both.")


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
    if output and output.written:
        print(f"Wrote {output.path}.")
    if log:
        print(f"Wrote {log.path}.")
    if log and log.path.is_file():
        try:
            print(timeline.report(log.path))
        except (OSError, ValueError) as error:  # The log is there all the same.
            print(f"The log could not be summed up: {error}")
    if args.benchmark:
        print(report)
    if source.problem:
        print(f"webcam_demo.py: {source.problem}", file=sys.stderr)
    return status or (2 if source.problem else 0)


def main(argv=None):
    args = parse_args(argv)
    for name in ("SIGTERM", "SIGHUP"):  # A kill, or a terminal that is closed, completes the files as Ctrl-C does.
        number = getattr(signal, name, None)  # Windows has no SIGHUP; under nohup it is ignored, and stays so.
        if number and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    utils.make_any_name_printable()
    try:
        return demo(args)
    except (OSError, ValueError, cv2.error) as error:
        print(f"webcam_demo.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
