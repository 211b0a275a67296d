"""Where frames come from: images, videos, a camera or a stream; used by webcam_demo.py.

Every source has

    frames()   yields (frame, seconds, file name); a frame of None says that a live source has no news
    live       whether frames come by the clock
    many       whether the frames are of several files
    fps        frames per second, of the file that the last frame was from
    total      number of frames, None where nobody knows
    name       camera index, path or address
    paths      of the files, none of a camera or stream
    problem    afterwards: the sentence that says why it ended early, or None
    latency()  seconds since the last frame was taken, None for files
    close()
"""

import contextlib
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import cv2
import numpy as np

import utils

DEMO_CLIP = utils.ROOT / "data" / "demo.mp4"
VIDEO_SUFFIXES = {".3gp", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
IMAGE_SUFFIXES = {".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
STREAM_TIMEOUT = 5.0  # Seconds without a frame before a stream is opened again; a camera's driver has its own.
PATIENCE = 0.5  # Seconds without a frame before a stream counts as stalled; slower cameras are rare.
RETRY_PAUSES = (0.5, 1, 2, 4)  # Seconds before each try to open it again.
ASSUMED_FPS = 25.0  # Of cameras and streams that do not tell.
MAX_FPS = 500.0  # What announces more means ticks of a clock, not frames.
MAX_CAMERAS = 1000  # A larger number is no camera's index.
MISSING_FRAMES = 0.02  # Share of a video's announced frames that may be missing without a word.
EXACT_LENGTHS = {".avi"}  # Videos that announce their frames' number; others announce a guess from the time.


class Files:
    """Images and videos, one after the other, every frame of each.

    Args:
        paths: of the files; a video may be an address too.
        name: of all of them: the path of the file or of their folder.

    Raises:
        ValueError: the only file is a video that cannot be read.
    """

    live = False

    def __init__(self, paths, name, many):
        self.paths, self.name, self.many, self.problems = paths, name, many, []
        self.lengths = [1 if is_image(path) else count_frames(path) for path in paths]
        self.total = None if None in self.lengths else sum(self.lengths)
        if self.total == 0:
            raise ValueError(f"{name} cannot be read as a video or image. Convert it to .mp4 or .jpg.")
        self.fps = ASSUMED_FPS

    def frames(self):
        for path, length in zip(self.paths, self.lengths, strict=True):
            count = 0
            for frame, time_s in self._image(path) if isinstance(path, Path) and is_image(path) else self._video(path):
                yield frame, time_s, Path(path).name
                count += 1
            if count == 0:
                self.problems.append(f"{path} cannot be read as a video or image.")
            elif length and count < length * (1 - MISSING_FRAMES) - 1:
                if Path(path).suffix.lower() in EXACT_LENGTHS:
                    self.problems.append(f"{path} ends after frame {count} of {length}: the rest cannot be read.")
                else:
                    print(f"{path} had {count} frames where it announced {length}.")

    @property
    def problem(self):
        more = len(self.problems) - 1
        return " ".join(self.problems[:1] + [f"So it is with {more} more of these files."] * (more > 0)) or None

    def _image(self, path):
        image = utils.read_image(path)
        return [] if image is None else [(image, 0.0)]

    def _video(self, path):
        """Yields the frames of a video with their times, and sets their rate."""
        capture, time_s = open_capture(path), -np.inf
        self.fps = frame_rate(capture)
        while True:
            ok, frame = capture.read()
            if not ok:
                break
            # The file's own time, as frames of a telephone come at no fixed rate; some files have none, or jump back.
            announced = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            time_s = announced if announced > time_s else time_s + 1 / self.fps
            yield frame, time_s
        capture.release()

    def latency(self):
        return None

    def close(self):
        pass


class LiveCapture:
    """A camera or stream, read in a thread of its own, of which only the newest frame counts: a slow user queues none.

    A frame of None says that there is no news, so that the window stays alive while the stream stalls.
    """

    live, many, total, paths = True, False, None, ()

    def __init__(self, capture, name):
        self.capture, self.name, self.problem = capture, name, None
        self.fps = frame_rate(capture)
        self.newest, self.news, self.stopped = None, threading.Condition(), threading.Event()
        self.started, self.shown = time.perf_counter(), 0.0
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        try:
            self._read_and_retry()
        finally:  # Also after a fault in OpenCV: whoever waits for frames has to learn that none will come.
            if not self.stopped.is_set():
                name = f"Camera {self.name}" if isinstance(self.name, int) else self.name
                self.problem = f"{name} gave no more frames and could not be opened again. Is it still connected?"
            self.stopped.set()
            self.capture.release()

    def _read_and_retry(self):
        pauses = iter(RETRY_PAUSES)
        while not self.stopped.is_set():
            ok = False
            with contextlib.suppress(cv2.error):  # As in `open_camera`.
                ok, frame = self.capture.read()
            if ok:
                pauses = iter(RETRY_PAUSES)
                with self.news:
                    self.newest = frame, time.perf_counter() - self.started, str(self.name)
                    self.news.notify()
                continue
            pause = next(pauses, None)
            if pause is None:
                return
            self.capture.release()
            if not self.stopped.wait(pause):
                self.capture = open_capture(self.name)

    def frames(self):
        while not self.stopped.is_set() or self.newest:
            with self.news:
                if self.newest is None:
                    self.news.wait(timeout=PATIENCE)
                newest, self.newest = self.newest, None
            if newest:
                self.shown = newest[1]
            yield newest or (None, time.perf_counter() - self.started, str(self.name))

    def latency(self):
        return time.perf_counter() - self.started - self.shown

    def close(self):
        self.stopped.set()
        self.thread.join(timeout=STREAM_TIMEOUT)


def frame_rate(capture):
    """Returns the frames per second that a capture announces, or what is usual where it announces none."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 0 < fps <= MAX_FPS else ASSUMED_FPS


def open_capture(target):
    """Opens a camera index, a file or an address; what cannot be opened reads no frames."""
    if isinstance(target, int):
        return cv2.VideoCapture(target)
    milliseconds = int(STREAM_TIMEOUT * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    if isinstance(target, Path):
        target = target.resolve()  # FFmpeg takes a relative name such as 12:30.mp4 for an address.
    return cv2.VideoCapture(str(target), cv2.CAP_FFMPEG, limits)


def is_image(path):
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def is_still(source, name):
    """Tells whether a file of a source is an image; a camera's or stream's name may look like one and is none."""
    return not source.live and is_image(name)


def count_frames(path):
    """Returns the number of frames that a video announces, None if it announces none, 0 for what is no video."""
    capture = open_capture(path)
    opened, count = capture.isOpened(), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return (count if count > 0 else None) if opened else 0


def open_source(source):
    """Opens what --source names.

    Args:
        source: camera index, path of a video, image or folder of them, or address of a stream; None for camera 0 or,
            where there is none, the bundled clip.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be opened or read.
    """
    if source is None:
        camera = open_camera(0)
        if camera:
            return LiveCapture(camera, 0)
        print(f"No camera found; playing the bundled clip {DEMO_CLIP}.")
        source = str(DEMO_CLIP)
    if source.isdecimal() and int(source) < MAX_CAMERAS:
        return open_live(int(source))
    if source.startswith("file://"):
        source = urllib.request.url2pathname(urllib.parse.urlsplit(source).path)
    if "://" in source:
        return open_live(source)
    path = Path(source)
    if not source or not path.exists():
        raise FileNotFoundError(f"--source must be a camera index, a file, a folder or a URL. There is no {source!r}.")
    if not path.is_dir():
        check_name(path)
        return Files([path], path, many=False)
    paths = [file for file in path.iterdir() if is_image(file) or file.suffix.lower() in VIDEO_SUFFIXES]
    # A Mac leaves a ._photo.jpg that is no picture beside each photo.jpg on other systems' disks.
    paths = sorted(file for file in paths if file.is_file() and not file.name.startswith("."))
    if not paths:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
        raise ValueError(f"A folder must hold images or videos ({suffixes}). Received: {path}, which holds none.")
    for file in paths:
        check_name(file)
    return Files(paths, path, many=True)


def check_name(path):
    """Refuses a name that cannot be written as text, such as some that old archives leave: OpenCV would crash.

    Raises:
        ValueError: it is such a name.
    """
    name = str(path.resolve())
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"The names of a file and its folders must be UTF-8. Rename {name!a}.") from error


def open_camera(index):
    """Opens a camera; returns None where there is none, or one that gives no picture."""
    capture = open_capture(index)
    with contextlib.suppress(cv2.error):  # Some drivers raise instead of giving no frame.
        if capture.isOpened() and capture.read()[0]:
            return capture
    capture.release()
    return None


def open_live(target):
    """Opens a camera index or an address; an address may turn out to be a video with an end.

    Raises:
        ValueError: it cannot be opened.
    """
    if isinstance(target, int):
        camera = open_camera(target)
        if camera:
            return LiveCapture(camera, target)
        raise ValueError(
            f"Camera {target} cannot be opened. Is it plugged in, not in use by another program, and may this terminal "
            "use it? Each camera has a number, from 0 on. Without one: --source data/demo.mp4."
        )
    capture = open_capture(target)
    if capture.isOpened() and capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
        capture.release()
        return Files([target], target, many=False)
    if capture.isOpened():
        return LiveCapture(capture, target)
    raise ValueError(f"{target} cannot be opened as a stream. Is the address right, and does a player show it?")
