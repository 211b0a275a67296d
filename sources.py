"""Where frames come from: images, a video, a camera or a stream; used by webcam_demo.py.

Every source has

    frames()   yields (frame, seconds, file name); a frame of None says that a live source has no news
    live       whether frames come by the clock
    fps        frames per second
    total      number of frames, None where nobody knows
    name       camera index, path or address
    problem    afterwards: the sentence that says why it ended early, or None
    close()
"""

import threading
import time
from pathlib import Path

import cv2

import utils

DEMO_CLIP = utils.ROOT / "data" / "demo.mp4"
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
STREAM_TIMEOUT = 5.0  # Seconds without a frame before a camera or stream is opened again.
RETRY_PAUSES = (0.5, 1, 2, 4)  # Seconds before each try to open it again.
ASSUMED_FPS = 25.0  # Of cameras and streams that do not tell.
MISSING_FRAMES = 0.02  # Share of a video's announced frames that may be missing: containers announce estimates.


class ImageFiles:
    """Images one after the other, a second each."""

    live, fps = False, 1.0

    def __init__(self, paths, name):
        self.paths, self.name, self.total, self.problem = paths, name, len(paths), None
        self.suffix = ".png" if len(paths) == 1 else ""

    def frames(self):
        for number, path in enumerate(self.paths):
            frame = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if frame is None:
                self.problem = f"{path} cannot be read as an image."
            else:
                yield frame, float(number), path.name

    def close(self):
        pass


class VideoFile:
    """A video of known length, frame by frame, none left out."""

    live, suffix = False, ".mp4"

    def __init__(self, capture, name):
        self.capture, self.name, self.problem = capture, name, None
        self.fps, self.total = frame_rate(capture), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))

    def frames(self):
        count = 0
        while True:
            ok, frame = self.capture.read()
            if not ok:
                break
            yield frame, count / self.fps, Path(self.name).name
            count += 1
        if count < self.total * (1 - MISSING_FRAMES) - 1:
            self.problem = f"{self.name} ends after frame {count} of {self.total}: what follows cannot be read."

    def close(self):
        self.capture.release()


class LiveCapture:
    """A camera or stream, read in a thread of its own, of which only the newest frame counts: a slow user queues none.

    A frame of None says that there is no news, so that the window stays alive while the stream stalls.
    """

    live, total, suffix = True, None, ".mp4"

    def __init__(self, capture, name):
        self.capture, self.name, self.problem = capture, name, None
        self.fps = frame_rate(capture)
        self.newest, self.news, self.stopped = None, threading.Condition(), False
        self.started = time.perf_counter()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        pauses = iter(RETRY_PAUSES)
        while not self.stopped:
            ok, frame = self.capture.read()
            if ok:
                pauses = iter(RETRY_PAUSES)
                with self.news:
                    self.newest = frame, time.perf_counter() - self.started, str(self.name)
                    self.news.notify()
                continue
            pause = next(pauses, None)
            if pause is None:
                self.problem = f"{self.name} gave no more frames and could not be opened again."
                break
            time.sleep(pause)
            self.capture.release()
            self.capture = open_capture(self.name)
        self.capture.release()
        self.stopped = True

    def frames(self):
        while not self.stopped or self.newest:
            with self.news:
                if self.newest is None:
                    self.news.wait(timeout=0.1)
                newest, self.newest = self.newest, None
            yield newest or (None, time.perf_counter() - self.started, str(self.name))

    def close(self):
        self.stopped = True
        self.thread.join(timeout=STREAM_TIMEOUT)


def frame_rate(capture):
    """Returns the frames per second that a capture announces, or what is usual where it announces nonsense."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 1 <= fps <= 240 else ASSUMED_FPS


def open_capture(target):
    """Opens a camera index, a file or an address; what cannot be opened reads no frames."""
    if isinstance(target, int):
        return cv2.VideoCapture(target)
    milliseconds = int(STREAM_TIMEOUT * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    return cv2.VideoCapture(str(target), cv2.CAP_FFMPEG, limits)


def open_source(source):
    """Opens what --source names.

    Args:
        source: camera index, path of a video, image or folder of images, or URL of a stream; None for camera 0 or,
            where there is none, the bundled clip.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be opened or read.
    """
    if source is None:
        capture = open_capture(0)
        if capture.isOpened():
            return LiveCapture(capture, 0)
        print(f"No camera found; playing the bundled clip {DEMO_CLIP}.")
        source = str(DEMO_CLIP)
    path = Path(source)
    if source.isdecimal() or "://" in source:
        target = int(source) if source.isdecimal() else source
    elif not path.exists():
        raise FileNotFoundError(
            f"--source must be a camera index, a file, a folder or a URL. Received: {source}, which does not exist."
        )
    elif path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return open_images(path)
    else:
        target = path
    capture = open_capture(target)
    if not capture.isOpened():
        raise ValueError(explain_unopened(target))
    return (
        VideoFile(capture, str(target)) if capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0 else LiveCapture(capture, target)
    )


def open_images(path):
    """Opens an image, or all of a folder's images in the order of their names."""
    paths = (
        sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES) if path.is_dir() else [path]
    )
    if not paths:
        raise ValueError(
            f"A folder must hold images ({', '.join(sorted(IMAGE_SUFFIXES))}). Received: {path}, which holds none."
        )
    return ImageFiles(paths, path)


def explain_unopened(target):
    if isinstance(target, int):
        return (
            f"Camera {target} cannot be opened. Is it plugged in, not in use by another program, and may this terminal "
            "use it? For another camera: --source 1. Without one: --source data/demo.mp4."
        )
    if isinstance(target, Path):
        return f"{target} cannot be read as a video or image. Convert it to .mp4 or .jpg."
    return f"{target} cannot be opened as a stream. Is the address right, and does a browser or player show it?"
