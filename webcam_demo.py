"""Shows the emotion of every face in a camera, video, image, folder or stream.

    python webcam_demo.py                                     camera 0, or the bundled clip if there is no camera
    python webcam_demo.py film.mp4 --output labeled.mp4 --log emotions.csv
    python webcam_demo.py photo.jpg --no-display              prints one line per face
    python webcam_demo.py photos/ --output labeled/           prints one line per file
    python webcam_demo.py http://192.168.0.7:8080/video
    python webcam_demo.py film.mp4 --no-display --benchmark
    python webcam_demo.py 1 --camera-size 1280x720            camera 1; for two cameras, run the demo twice

Keys: q or Esc quits, space pauses, s saves a snapshot, m mirrors, b shows the probabilities of the nearest face, f the
frame rate and latency, h help. Closing the window quits too.
"""

import signal
import time

STARTED = time.perf_counter()  # Before the imports, which take most of the time to the first frame.
import cli

if __name__ == "__main__":
    cli.handle_signals(signal.SIG_DFL)  # Ctrl-C ends the imports at once. `cli.run_script` handles it later.
    cli.check_installed("webcam_demo.py", "requirements-demo.txt", "ai_edge_litert", "av", "cv2", "PIL", "tqdm")

import argparse
import array
import collections
import contextlib
import datetime
import json
import os
import re
import sys
from pathlib import Path

# Hide OpenCV's messages about missing cameras and damaged files. Our own messages say what to do.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS", "0")  # Windows: a camera opens in 1 s instead of 20.

import utils  # isort: skip - First, because it says what to do if OpenCV cannot be loaded.
import cv2
import numpy as np
import tqdm

import emotion_log
import tracking
import video
from window import Window, has_display


class Benchmark:
    """Counts frames and faces, and times the stages of each frame. The clock starts when the object is created."""

    STAGES = ("read", "detect", "classify", "draw")

    def __init__(self):
        self.seconds = array.array("d")  # One per stage, frame after frame: 3 MB for an hour of video.
        self.frames = self.faces = 0
        self.video_frames, self.video_faces = collections.Counter(), collections.Counter()  # Per file.
        self.startup = None  # Seconds from the start of the script to the first frame with a labeled face.
        self.started = time.perf_counter()
        self.done = collections.deque([self.started], maxlen=30)  # When the last frames were completed.
        self.current = dict.fromkeys(self.STAGES, 0.0)  # Seconds of the current frame.

    @contextlib.contextmanager
    def stage(self, name):
        """Times a stage of the current frame."""
        begun = time.perf_counter()
        yield
        self.current[name] = time.perf_counter() - begun

    def count(self, source_frame, faces):
        """Counts a completed frame with this number of faces."""
        self.seconds.extend(self.current.values())
        self.frames, self.faces = self.frames + 1, self.faces + faces
        if not source_frame.still:
            self.video_frames[source_frame.file] += 1
            self.video_faces[source_frame.file] += faces
        self.done.append(time.perf_counter())
        if faces and self.startup is None:
            self.startup = round(time.perf_counter() - STARTED, 3)

    def fps(self):
        """Returns the frames per second of the whole run."""
        return self.frames / max(self.done[-1] - self.started, 1e-9)

    def recent_fps(self):
        """Returns the frames per second of the last frames."""
        return (len(self.done) - 1) / max(self.done[-1] - self.done[0], 1e-9)

    def report(self):
        """Returns a table for people, followed by one line of JSON for programs."""
        stages = 1000 * np.reshape(self.seconds, (-1, len(self.STAGES)))  # (N, 4), milliseconds.
        times = np.column_stack([stages, stages.sum(axis=1)])
        times = times if len(times) else np.zeros((1, 5))
        medians, p95s = np.percentile(times, (50, 95), axis=0).round(2).tolist()
        result = {"frames": self.frames, "faces": self.faces, "fps": round(self.fps(), 1), "startup_s": self.startup}
        result |= {"peak_memory_mb": peak_memory_mb()}
        rows = list(zip((*self.STAGES, "frame"), medians, p95s, strict=True))
        lines = [f"{'stage':<10}{'median ms':>12}{'p95 ms':>12}"]
        lines += [f"{stage:<10}{median:>12.2f}{p95:>12.2f}" for stage, median, p95 in rows]
        lines += [f"{name}: {value}" for name, value in result.items()]
        result["stages_ms"] = {stage: {"median": median, "p95": p95} for stage, median, p95 in rows[:-1]}
        return "\n".join([*lines, json.dumps(result)])


def peak_memory_mb():
    """Returns the peak resident memory of this process in MB, or None if the system has no /proc."""
    with contextlib.suppress(OSError, IndexError):
        # Not getrusage: it includes memory that the parent process used before the exec.
        return round(int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024, 1)
    return None


class FrameLabeler:
    """Finds and labels the faces of successive frames. Each file starts with a new tracker."""

    def __init__(self, model, detector, min_confidence, benchmark, numbered=False):
        self.model, self.detector, self.min_confidence, self.benchmark = model, detector, min_confidence, benchmark
        self.numbered = numbered  # Draws a face's number even if it is the only face.
        self.file = self.tracker = self.mirrored = None

    def label(self, source_frame, mirrored=False):
        """Labels the faces of a frame. If `mirrored` is set, the frame is mirrored first.

        Returns:
            annotated: uint8 (H, W, 3) BGR.
            faces: list of `utils.Face`, in the order of their tracks.
        """
        frame = cv2.flip(source_frame.image, 1) if mirrored else source_frame.image
        time_s = source_frame.time_s
        if source_frame.file != self.file:
            self.tracker = tracking.FaceTracker(self.detector)
        elif mirrored != self.mirrored:
            self.tracker.mirror(frame.shape[1])
        self.file, self.mirrored = source_frame.file, mirrored
        with self.benchmark.stage("detect"):
            gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
            tracks = tracking.find_still(gray, self.detector) if source_frame.still else self.tracker.find(gray, time_s)
        with self.benchmark.stage("classify"):
            faces = self.classify(gray, tracks, time_s)
        with self.benchmark.stage("draw"):
            annotated = utils.annotate_frame(frame, faces, self.numbered)
        return annotated, faces

    def classify(self, gray, tracks, time_s):
        """Returns a `utils.Face` for each track in a frame, uint8 (H, W), with its probabilities averaged over time."""
        boxes, angles = tracking.stack_boxes(tracks), [track.view.angle for track in tracks]
        predictions = self.model.predict(utils.crop_faces(gray, boxes, angles))
        averages = [track.average(new, time_s) for track, new in zip(tracks, predictions, strict=True)]
        averages = np.reshape(averages, predictions.shape)
        faces = utils.label_faces(boxes, angles, averages, self.model.classes, self.min_confidence)
        pairs = zip(faces, tracks, strict=True)
        return [face._replace(track=track.track_id, held=track.held) for face, track in pairs]


def run(source, labeler, benchmark, window, output, log):
    """Labels the frames of a source until it ends or the window is closed. `window`, `output` and `log` may be None."""
    hidden = True if source.total in (None, 1) or sys.stderr is None else None  # None: show the bar on a terminal only.
    # Delayed, so that the bar comes after the messages about the output.
    frames = iter(tqdm.tqdm(source.frames(), total=source.total, unit=" frames", disable=hidden, delay=1))
    call = window.call if window else lambda function, *args: function(*args)
    while not (window and window.closed):
        with benchmark.stage("read"):
            source_frame = call(next, frames, None)
        if source_frame is None:
            break
        if source_frame.image is None:
            if window:
                window.stall()
            continue
        annotated, faces = call(labeler.label, source_frame, bool(window and window.mirrored))
        benchmark.count(source_frame, len(faces))
        if source_frame.still:
            is_folder = source.kind == "folder"
            text = file_text(source_frame.file, faces) if is_folder else image_text(faces, source_frame.image.shape)
            print(text, flush=True)
        if log:
            utc = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            log.write(benchmark.frames - 1, source_frame.time_s, source_frame.file, faces, utc)
        if output:
            output.write(annotated, source_frame)
        if window:
            window.show(annotated, source_frame, faces, benchmark.recent_fps())


def run_to_failure(source, labeler, benchmark, window, output, log):
    """Calls `run`, and closes the window and the files. Returns the error that ended `run` early, or None."""
    try:
        with contextlib.ExitStack() as stack:
            for part in filter(None, (window, log, output)):
                stack.enter_context(part)
            run(source, labeler, benchmark, window, output, log)
    except (KeyboardInterrupt, MemoryError, OSError) as error:
        return error.with_traceback(None)  # It would keep the film open, which Windows cannot delete then.
    except cv2.error as error:
        if error.code != cv2.Error.StsNoMem:
            raise
        return MemoryError()


def image_text(faces, shape):
    """Returns one line per face of an image of a shape (height, width, ...)."""
    lines = []
    for number, face in enumerate(faces, start=1):
        x, y, width, height = face.box
        place = f"x {x}, y {y}, width {width}, height {height}"
        place += ", the image as a whole" if face.box == (0, 0, shape[1], shape[0]) else ""
        lines.append(f"face {number}: {face.label} {face.confidence:.0%}, {place}")
    return "\n".join(lines) or "No face found."


def file_text(file, faces):
    """Returns one line for an image of a folder."""
    labels = ", ".join(f"{face.label} {face.confidence:.0%}" for face in faces)
    return f"{utils.printable(file)}: {labels or 'no face'}"


def demo(args):
    """Opens the source and the outputs, runs the loop, closes them and reports.

    Raises:
        KeyboardInterrupt, MemoryError, OSError, ValueError: the user stopped the demo, memory ran out, the source ended
            early, or a file cannot be written. The files are completed and reported first.
    """
    model, detector = utils.load_emotion_model(args.model), utils.load_face_detector()
    with video.open_source(args.source, args.camera_size) as source:
        window = open_window(args, source)
        files = list(map(video.file_name, source.paths)) if source.kind == "folder" else []
        is_live = source.kind in video.LIVE_KINDS
        log = emotion_log.EmotionLog(args.log, model.classes, files, is_live) if args.log else None
        output = open_output(args, source, window)
        benchmark = Benchmark()
        labeler = FrameLabeler(model, detector, args.min_confidence, benchmark, numbered=log is not None)
        failure = run_to_failure(source, labeler, benchmark, window, output, log)
        if benchmark.frames or not failure:  # Before the source is closed, which takes seconds if a stream stalls.
            report(args, source, output, log, benchmark)
    if failure or source.problem:
        raise failure or ValueError(source.problem)


def open_window(args, source):
    """Opens the window, or prints why there is none."""
    if args.no_display:
        return None
    if not has_display():
        print("No display found, so there is no window.")
        return None
    try:
        return Window(source)
    except cv2.error:
        reinstall = f"pip uninstall opencv-python-headless, then pip install --force-reinstall {utils.OPENCV}"
        print(f"This OpenCV cannot open windows. Replace it: {reinstall}")
        return None


def open_output(args, source, window):
    """Opens the annotated file. Without --output, there is one only if a window was wanted but cannot open."""
    path = args.output
    if not path and not window and not args.no_display:
        suffix = {"folder": "", "image": ".png"}.get(source.kind, ".mp4")
        path = video.OUTPUT_DIR / f"labelled-{source_stem(source)}{suffix}"
        hint = "; Ctrl-C ends it" if source.kind in video.LIVE_KINDS else ""
        print(f"Writing {utils.printable(path)} instead{hint}.")
    check_paths(args, source, path)
    if path is None:
        return None
    name, suffix = utils.printable(path), path.suffix.lower()
    if source.kind == "folder" and suffix in {*video.WRITABLE_IMAGES, *video.WRITABLE_VIDEOS}:
        raise ValueError(f"--output must be a folder, because the source is one, but it is {name}.")
    suffixes = video.WRITABLE_IMAGES if source.kind == "image" else video.WRITABLE_VIDEOS
    if source.kind != "folder" and suffix not in suffixes:
        raise ValueError(f"--output must end in {', '.join(sorted(suffixes))}, but it is {name}.")
    return video.AnnotatedFiles(path, source)


def source_stem(source):
    """Returns a name for the output file, in at most 200 bytes: that of the source or, if it has none, its kind."""
    path = "" if source.kind == "camera" else re.sub("^[a-z]+://[^/]*", "", source.title)  # Without the host.
    return os.fsencode(Path(path).stem)[:200].decode(errors="ignore") or source.kind


def check_paths(args, source, output):
    """Raises ValueError, before anything is written, if an output would overwrite a file that has another use."""
    uses = {file_identity(path): "the source" for path in source.paths}
    uses |= {file_identity(path): "a file of the model" for path in args.model.iterdir()}
    written = [(output, "--output")] if output else []
    if output and source.kind == "folder":
        written = [(path, f"the annotated {name}") for name, path in video.annotated_paths(output, source).items()]
    if args.log:
        written += [(args.log, "--log"), (emotion_log.timeline_path(args.log), "the timeline of the log")]
    for path, use in written:
        name = utils.printable(path)
        if path.exists() and not path.is_file():
            raise ValueError(f"{name}: not a regular file. Choose another path.")
        other = uses.setdefault(file_identity(path), use)
        if other != use:
            raise ValueError(f"{other} and {use} must be different files, but both are {name}.")
        folder = next((parent for parent in path.absolute().parents if parent.exists()), path)
        if not folder.is_dir():
            raise ValueError(f"{name}: {utils.printable(folder)} is not a folder. Choose another path.")
        if not os.access(folder, os.W_OK):  # Raise now, not after the last frame.
            raise ValueError(f"{name}: its folder is read-only. Choose another path.")
        if path.exists():
            open(path, "r+b").close()  # Raises OSError.


def file_identity(path):
    """Returns a value that is the same for all paths of a file, including links."""
    return os.stat(path)[1:3] if os.path.exists(path) else os.path.realpath(path)  # Inode and device.


def report(args, source, output, log, benchmark):
    """Prints the counts, the written files and the summary."""
    table = benchmark.report()  # Before the timeline is drawn, which needs more memory than the loop.
    if source.kind == "folder":
        for file, frames in benchmark.video_frames.items():
            print(f"{utils.printable(file)}: {count_faces(frames, benchmark.video_faces[file])}")
    if source.kind != "image":
        print(f"{count_faces(benchmark.frames, benchmark.faces)}, {benchmark.fps():.1f} frames/s.")
    if output and output.written:
        print(f"Wrote {utils.printable(output.path)}.")
    if log and log.rows:
        print(f"Wrote {utils.printable(args.log)}.")
        try:
            print(emotion_log.report([args.log]))
        except (OSError, ValueError, MemoryError) as error:  # The log itself is complete.
            print(f"The log cannot be summarized: {error}")
    if args.benchmark:
        print(table)


def count_faces(frames, faces):
    """Returns for example "1 frame, 2 faces"."""
    return f"{emotion_log.plural(frames, 'frame')}, {emotion_log.plural(faces, 'face')}"


class Parser(cli.Parser):
    def error(self, message):
        """Ends the script with one line, in which addresses are shown without their secrets."""
        if message.startswith("unrecognized arguments"):
            message += ". Give one SOURCE: for several files, name their folder."
        message = re.sub(r"\S+://\S+", lambda address: utils.printable(address.group()), message)
        super().error(utils.shorten(message))


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("positional", nargs="?", metavar="SOURCE", help="camera index, video, image, folder or URL (default: camera 0)")
    add("--source", metavar="SOURCE", help="SOURCE as an option")
    add("--model", type=cli.path, default=utils.DEFAULT_MODEL, help="model folder (default: models/emotions-5)")
    add("--output", type=cli.path, help="write an annotated video (.mp4) or image; a folder if SOURCE is one")
    add("--log", type=cli.path, help="write labels and probabilities per face and frame (.csv or .jsonl)")
    add("--camera-size", type=camera_size, metavar="WxH", help="frame size to ask a camera for, such as 1280x720")
    add("--no-display", action="store_true", help="open no window")
    add("--min-confidence", type=probability, default=0.5, help="a face below it is uncertain (default: 0.5)")
    add("--benchmark", action="store_true", help="print a table of times and one line of JSON at the end")
    args = parser.parse_args(argv)
    if args.positional is not None and args.source is not None:
        parser.error("SOURCE must be given once, but it is given with and without --source.")
    args.source = args.source if args.positional is None else args.positional
    return args


def camera_size(text):
    if not re.fullmatch(r"[1-9]\d{1,4}x[1-9]\d{1,4}", text):
        raise argparse.ArgumentTypeError(f"must be a width and a height such as 1280x720, but it is {text[:40]}.")
    return tuple(map(int, text.split("x")))


def probability(text):
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, but it is {text}.")


def main(argv=None):
    args = parse_args(argv)
    return cli.run_script("webcam_demo.py", lambda: demo(args))


if __name__ == "__main__":
    sys.exit(main())
