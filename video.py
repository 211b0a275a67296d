"""Frames in, from an image, a video, a folder of them, a camera or a stream; annotated images and videos out.

A source (`Files` or `LiveCapture`, from `open_source`) has

    frames()   yields `SourceFrame`
    kind       "image", "video", "folder", "camera" or "stream"
    started    of a camera or stream: when it was opened (`time.perf_counter`)
    total      number of frames, None where it is unknown
    title      for messages, without the secrets of an address
    paths      the files, or the address of one; empty for a camera or stream
    problem    after the last frame: a sentence that says what went wrong, or None
    close()
"""

import base64
import contextlib
import http.client
import os
import re
import shutil
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import utils

DEMO_CLIP = utils.ROOT / "data" / "demo.mp4"
OUTPUT_DIR = Path("output")  # Snapshots, and annotated files without --output.
VIDEO_SUFFIXES = {".3gp", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
IMAGE_SUFFIXES = {".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
WRITABLE_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4"}  # Videos for which OpenCV has an encoder.
MAX_IMAGE_BYTES = 400_000_000  # 100 million pixels, the limit that webcam_demo.py sets, with four bytes each.
MAX_VIDEO_PIXELS = 40_000_000  # Per frame: 8K has 33 million.
MAX_DOWNLOAD = 1_000_000_000  # Bytes.
MAX_CAMERAS = 1000  # A larger number is not a camera's index.
STREAM_TIMEOUT = 5.0  # Seconds without a frame before a stream is opened again. A camera's driver has its own.
HEADER_TIMEOUT = 2.0  # Seconds that a web server may take to answer.
PATIENCE = 0.5  # Seconds without a frame before a stream counts as stalled. Slower cameras are rare.
RETRY_PAUSES = (0.5, 1, 2, 4)  # Seconds before each attempt to open it again.
ASSUMED_FPS = 25.0  # For cameras and streams that announce no rate.
MAX_FPS = 500.0  # Higher values are timestamp rates, not frame rates.
MAX_FAILURES = 100  # Failed attempts in a row to read a frame of a file. Each may be a damaged frame.
MISSING_FRAMES = 0.02  # Share of a video's announced frames that may be missing without a message.
LONGEST_GAP = 60.0  # Seconds that a written video may stand still. A longer gap, or a jump of the clock, is cut.
DISK_RESERVE = 16_000_000  # Bytes that stay free for the index at the end of a video: 16 a frame, for 11 hours.
UNREADABLE = (
    "{}: cannot be read as a video or image. Check its permissions, copy it again, or convert it to .mp4 or .jpg."
)


class SourceFrame(NamedTuple):
    """One frame of a source, and where it comes from."""

    image: np.ndarray | None  # uint8 (H, W, 3) BGR. None while a live source stalls.
    time_s: float  # Seconds into the file, or since the camera or stream was opened.
    file: str  # Name of the file, or title of the camera or stream.
    fps: float  # Frames per second that the file or camera announces.
    still: bool  # Whether it is an image rather than a frame of a video.


def open_source(source):
    """Opens a camera index, a video, an image, a folder of them, or an address.

    Without a source (None) this is camera 0 or, if there is none, the bundled clip.

    Raises:
        OSError, ValueError: it does not exist, cannot be opened, or exceeds a limit.
    """
    if source is None or source.isdecimal() and int(source) < MAX_CAMERAS:
        index = int(source or 0)
        capture = open_capture(index)
        if read_capture(capture) is not None:
            return LiveCapture(capture, index)
        capture.release()
        if source:
            raise ValueError(
                f"Camera {source}: cannot be opened. Check that it is plugged in, that no other program uses it and "
                "that this terminal may use it, or try without one: --source data/demo.mp4"
            )
        print(f"No camera found; playing the bundled clip {utils.printable(DEMO_CLIP)}.")
        source = str(DEMO_CLIP)
    if source.startswith("file://"):
        source = urllib.request.url2pathname(urllib.parse.urlsplit(source).path)
    return open_address(source) if "://" in source else open_path(source)


def open_path(source):
    """Opens a file, or the images and videos of a folder in the order of their names."""
    path, name = Path(source), utils.printable(source)
    if not source or not path.exists():
        raise FileNotFoundError(f"{name or '--source'}: no such file. Give a camera index, a file, a folder or a URL.")
    paths = [path]
    if path.is_dir():
        suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
        # macOS leaves a ._photo.jpg, which is not an image, next to each photo.jpg on disks of other systems.
        paths = [file for file in path.iterdir() if file.suffix.lower() in suffixes and file.name[0] != "."]
        paths = sorted(file for file in paths if file.is_file())
        if not paths:
            raise ValueError(f"{name}: no images or videos. Put files there that end in {', '.join(sorted(suffixes))}.")
    elif not path.is_file():  # Reading a named pipe or a device might never end.
        raise ValueError(f"{name}: not a regular file. For a camera give its index, such as 0.")
    for file in paths:
        check_encoding(file)
    return Files(paths, name, "folder" if path.is_dir() else "image" if is_image(path) else "video")


def check_encoding(path):
    """Refuses a name that is not UTF-8, such as old archives leave, because OpenCV would crash."""
    if re.search("[\ud800-\udfff]", os.path.realpath(path)):
        raise ValueError(f"{utils.printable(path)}: its name is not UTF-8. Rename the file or its folder.")


def open_address(address):
    """Opens the address of a stream or of a file."""
    title, length, capture = utils.printable(address), content_length(address), open_capture(address)
    check_frame_size(capture, title)
    ends = length is not None or capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
    if capture.isOpened() and not ends:
        return LiveCapture(capture, address)
    playable = ends and capture.read()[0]
    capture.release()
    if playable:
        return Files([address], title, "video")
    if length is None or length > MAX_DOWNLOAD:
        raise ValueError(f"{title}: cannot be opened. Check the address in a video player.")
    # For example an MP4 file with its index at the end, on a server that cannot seek.
    print(f"Downloading {title}, because it cannot be played from its server.")
    folder = tempfile.TemporaryDirectory(prefix="webcam-demo-")
    path = Path(folder.name, f"download{Path(title).suffix}")
    try:
        with request(address, STREAM_TIMEOUT) as response, open(path, "wb") as file:
            shutil.copyfileobj(response, file)
        if path.stat().st_size < length:
            raise OSError("it ended early")
    except (OSError, http.client.HTTPException) as error:
        folder.cleanup()
        raise ValueError(f"{title}: the download failed ({utils.shorten(error)}). Try again.") from error
    return Files([path], title, "image" if is_image(path) else "video", folder)


def content_length(address):
    """Returns the size in bytes of a file on a web server, None for a stream, a playlist or a server that is silent."""
    try:
        with request(address, HEADER_TIMEOUT) as response:
            kind, length = response.headers.get_content_type(), response.headers.get("Content-Length", "")
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return int(length) if length.isdecimal() and not re.search("^multipart/|mpegurl|dash", kind) else None


def request(address, timeout):
    """Sends a request to a web server, with the user and password of the address; returns the response."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https"):
        raise ValueError("not a web address")
    sent = urllib.request.Request(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl())
    if parts.username:
        credentials = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}").encode()
        sent.add_unredirected_header("Authorization", f"Basic {base64.b64encode(credentials).decode()}")
    return urllib.request.urlopen(sent, timeout=timeout)


def open_capture(target):
    """Opens a camera index, a path or an address. If that fails, the capture reads no frames."""
    if isinstance(target, int):
        return cv2.VideoCapture(target)
    milliseconds = int(STREAM_TIMEOUT * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    if isinstance(target, Path):
        target = target.resolve()  # FFmpeg takes a relative name such as 12:30.mp4 for an address.
    return cv2.VideoCapture(str(target), cv2.CAP_FFMPEG, limits)


def read_capture(capture):
    """Returns the next frame of a capture, None if there is none."""
    with contextlib.suppress(cv2.error):  # Some camera drivers raise.
        return capture.read()[1]
    return None


def frame_rate(capture):
    """Returns the frames per second that a capture announces, or a usual rate if it announces none."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 0 < fps <= MAX_FPS else ASSUMED_FPS


def check_frame_size(capture, name):
    """Refuses frames that are too large. Their size may change within a video or stream."""
    width, height = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > MAX_VIDEO_PIXELS:
        limit = f"at most {MAX_VIDEO_PIXELS // 10**6} million pixels are possible"
        raise ValueError(f"{name}: frames of {width}x{height} pixels, but {limit}. Make the video smaller.")


def is_image(target):
    """Returns whether a path or an address has the suffix of an image."""
    path = re.split("[?#]", target)[0] if isinstance(target, str) else target
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


class Files:
    """Images and videos, one after the other, every frame of each.

    `paths` is a list of Path, or of one address. `close` removes `folder`, the temporary one of a downloaded file.

    Raises:
        ValueError: the only file is a video that cannot be read.
    """

    def __init__(self, paths, title, kind, folder=None):
        self.paths, self.title, self.kind, self.folder, self.problems = paths, title, kind, folder, []
        self.total = 1 if kind == "image" else None
        if kind == "video":
            capture = open_capture(paths[0])
            check_frame_size(capture, title)
            opened, count = capture.isOpened(), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            capture.release()
            if not opened:
                raise ValueError(UNREADABLE.format(title))
            self.total = count if count > 0 else None

    def frames(self):
        for path in self.paths:
            name = utils.printable(path) if self.kind == "folder" else self.title
            try:
                if isinstance(path, Path) and is_image(path):
                    yield SourceFrame(read_image(path, name), 0.0, path.name, ASSUMED_FPS, still=True)
                else:
                    yield from read_video(path, name)
            except ValueError as error:
                self.problems.append(str(error))

    @property
    def problem(self):
        more = len(self.problems) - 1
        return " ".join(self.problems[:1] + [f"Other files with a problem: {more}."] * (more > 0)) or None

    def close(self):
        if self.folder:
            self.folder.cleanup()


def read_image(path, name):
    """Reads an image file as uint8 (H, W, 3) BGR.

    Raises:
        ValueError: it cannot be read, or is too large.
    """
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise ValueError(f"{name}: larger than 400 MB. Make the image smaller.")
        content = np.fromfile(path, np.uint8)  # OpenCV cannot open a path with letters beyond ASCII on Windows.
        with utils.quiet_stderr():  # libpng and libjpeg print what is wrong with a damaged file.
            image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror}). Check its permissions.") from error
    except cv2.error as error:
        if "MAX_IMAGE" in str(error):
            raise ValueError(f"{name}: more than 100 million pixels. Make the image smaller.") from error
        image = None
    if image is None:
        raise ValueError(UNREADABLE.format(name))
    return image


def read_video(path, name):
    """Yields the frames of a video with their times.

    Raises:
        ValueError: at the end, if frames are missing; before it, if they are too large.
    """
    capture, count, time_s = open_capture(path), 0, -np.inf
    fps, announced = frame_rate(capture), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    file = path.name if isinstance(path, Path) else name
    try:
        for image in read_frames(capture, attempts=MAX_FAILURES if isinstance(path, Path) else 1):
            check_frame_size(capture, name)
            # The file's own times, because phones record at no fixed rate. Some files have none, or jump back.
            stated = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            time_s = stated if stated > time_s else time_s + 1 / fps
            yield SourceFrame(image, time_s, file, fps, still=is_image(path))
            count += 1
    finally:
        capture.release()
    if count == 0:
        raise ValueError(UNREADABLE.format(name))
    if count < announced * (1 - MISSING_FRAMES) - 1:
        if is_cut_off(path):
            raise ValueError(f"{name}: ends after frame {count} of {announced:.0f}. The rest is missing.")
        print(f"{name}: {count} frames, where {announced:.0f} were announced.")


def read_frames(capture, attempts):
    """Yields the frames of a video, uint8 (H, W, 3), without the damaged ones, until so many attempts fail in a row."""
    failures = 0
    while failures < attempts:
        good, image = capture.read()
        failures = 0 if good else failures + 1
        if good:
            yield image


def is_cut_off(path):
    """Returns whether a file is an AVI or MP4 that is shorter than its headers say. Other formats announce a guess."""
    if not isinstance(path, Path):
        return False
    length, end = path.stat().st_size, 0
    with open(path, "rb") as file:
        head = file.read(8)
        if head[:4] == b"RIFF":
            return length < int.from_bytes(head[4:], "little") + 8
        if head[4:] != b"ftyp":
            return False
        for _ in range(100):  # Boxes of the MP4. Each begins with its size; 1 stands for a longer number behind.
            file.seek(end)
            head = file.read(16)
            size = int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4], "big")
            end += size
            if size < 8 or end >= length:
                break
    return end > length


class LiveCapture:
    """A camera or stream, read in a background thread.

    Only the newest frame is kept, so a slow consumer skips frames instead of lagging. While the stream stalls, frames
    without an image keep the window alive, and its `target`, an index or address, is opened again.
    """

    total, paths = None, ()

    def __init__(self, capture, target):
        self.capture, self.target, self.problem = capture, target, None
        self.kind = "camera" if isinstance(target, int) else "stream"
        self.title = f"Camera {target}" if self.kind == "camera" else utils.printable(target)
        self.fps, self.started = frame_rate(capture), time.perf_counter()
        self.newest, self.news, self.stopped = None, threading.Condition(), threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        problem = f"{self.title}: no more frames, and it cannot be opened again. Check that it is still connected."
        try:
            while not self.stopped.is_set() and (image := self._next_image()) is not None:
                check_frame_size(self.capture, self.title)
                with self.news:
                    self.newest = self._frame(image)
                    self.news.notify()
        except ValueError as error:
            problem = str(error)
        finally:  # Also after an error in OpenCV: the consumer has to learn that no more frames come.
            self.problem = None if self.stopped.is_set() else problem
            self.stopped.set()
            self.capture.release()

    def _next_image(self):
        """Returns the next image, None if the source fails and cannot be opened again."""
        for pause in RETRY_PAUSES:
            image = read_capture(self.capture)
            if image is not None:
                return image
            self.capture.release()
            if self.stopped.wait(pause):
                return None
            self.capture = open_capture(self.target)
        return read_capture(self.capture)

    def _frame(self, image):
        return SourceFrame(image, time.perf_counter() - self.started, self.title, self.fps, still=False)

    def frames(self):
        while not self.stopped.is_set() or self.newest:
            with self.news:
                if self.newest is None:
                    self.news.wait(timeout=PATIENCE)
                newest, self.newest = self.newest, None
            yield newest or self._frame(None)

    def close(self):
        self.stopped.set()
        self.thread.join(timeout=STREAM_TIMEOUT)


class AnnotatedFiles:
    """Writes annotated frames to an image or a video or, for the files of a folder, to a folder of them.

    Raises:
        OSError: they cannot be written. A video that is nevertheless closed plays as far as it was written.
    """

    def __init__(self, path, many):
        self.path, self.many, self.file, self.writer, self.written = path, many, None, None, 0
        folder = path if many else path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            name = utils.printable(folder)
            raise OSError(f"{name}: cannot be a folder ({error.strerror}). Choose another --output.") from error

    def write(self, annotated, source_frame):
        """Writes a frame, uint8 (H, W, 3), that was drawn on a `SourceFrame`."""
        path = annotated_path(self.path / source_frame.file) if self.many else self.path
        if source_frame.still:
            write_image(path, annotated)
        else:
            if source_frame.file != self.file:
                self.close()
                self.file = source_frame.file
                self.writer = VideoWriter(path, source_frame.fps, annotated.shape[1::-1], source_frame.time_s)
            self.writer.write(annotated, source_frame.time_s)
        self.written += 1

    def close(self):
        writer, self.writer = self.writer, None
        if writer:
            writer.close()


def annotated_path(path):
    """Returns the path of an annotated file, which ends in .mp4 if OpenCV cannot write videos of its own suffix."""
    writable = path.suffix.lower() in IMAGE_SUFFIXES | WRITABLE_SUFFIXES
    return path if writable else path.with_name(f"{path.name}.mp4")


def write_image(path, image):
    """Writes an image file, or raises OSError and leaves the former one."""
    name, encoded = utils.printable(path), False
    with contextlib.suppress(cv2.error):
        encoded, content = cv2.imencode(".jpg" if path.suffix.lower() == ".jfif" else path.suffix, image)
    if not encoded:
        raise OSError(f"{name}: the format cannot hold {image.shape[1]}x{image.shape[0]} pixels. Choose .png.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with utils.replaced(path) as new:
            new.write_bytes(content)  # Python opens paths that OpenCV cannot, on Windows.
    except OSError as error:
        raise OSError(f"{name}: cannot be written ({error.strerror}). Choose another path.") from error


class VideoWriter:
    """Writes a constant-rate video from frames that arrive at irregular times.

    A frame that stayed on screen for long is written several times. Of two frames at nearly the same time, one is
    written. Frames of another `size`, width and height in pixels, are resized. `start` is the first frame's time in
    seconds. The file has a temporary name until `close`, because a video without its end does not play.
    """

    def __init__(self, path, fps, size, start):
        self.fps = fps if fps < 65 else round(fps, 2)  # MPEG-4 divides a second into at most 65,535 parts.
        self.name, self.size, self.written = utils.printable(path), (max(2, size[0]), max(2, size[1])), 0
        self.start, self.time, self.frame = start, start, None  # Seconds, seconds, and the last frame.
        codec = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix.lower() == ".avi" else "mp4v"))
        self.stack = contextlib.ExitStack()
        self.path = self.stack.enter_context(utils.replaced(path))
        self.writer = cv2.VideoWriter(str(self.path.resolve()), cv2.CAP_FFMPEG, codec, self.fps, self.size)
        if not self.writer.isOpened():
            with self.stack:
                raise OSError(f"{self.name}: cannot be written as a video. Choose another --output.")

    def write(self, frame, time_s):
        """Writes a frame, uint8 (H, W, 3), that is shown from `time_s`, in seconds, until the next one."""
        if frame.shape[1::-1] != self.size:
            frame = cv2.resize(frame, self.size)
        self.start += max(0.0, time_s - self.time - LONGEST_GAP)
        self.time, slot = time_s, round((time_s - self.start) * self.fps)
        while self.written < slot:
            self._put(self.frame)
        if self.written == slot:
            self._put(frame)
        self.frame = frame

    def _put(self, frame):
        if shutil.disk_usage(self.path.parent).free < DISK_RESERVE:  # OpenCV does not report a failed write.
            raise OSError(f"{self.name}: the disk is full, so it ends after frame {self.written}. Free some space.")
        self.writer.write(frame)
        self.written += 1

    def close(self):
        """Completes the video and gives it its name, or raises OSError and leaves the former one."""
        with self.stack:
            self.writer.release()
            capture = open_capture(self.path)
            capture.set(cv2.CAP_PROP_POS_FRAMES, self.written - 1)
            capture.read()
            reached = capture.get(cv2.CAP_PROP_POS_FRAMES)
            capture.release()
            if reached < max(1, self.written):
                raise OSError(f"{self.name}: could not be completed. Check that its disk has room.")
