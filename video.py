"""Reads frames from images, videos, folders, cameras and streams, and writes annotated images and videos.

PyAV reads and writes videos, OpenCV reads cameras and most images, Pillow the other images. `open_source` returns a
`FileSource` or `LiveSource`, a context manager with

    frames()   yields `SourceFrame`
    kind       "image", "video", "folder", "camera" or "stream"
    started    when a camera or stream was opened (`time.perf_counter`)
    total      approximate number of frames, or None if it is unknown
    title      name for messages, without the secrets of an address
    paths      list of the files, or of one address; empty for a camera or stream
    ended      whether `frames` has reached the end of the files
    problem    after the last frame: a sentence that says what went wrong, or None
"""

import collections
import concurrent.futures
import contextlib
import fractions
import functools
import gc
import itertools
import logging
import os
import queue
import re
import shutil
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import cli
import utils

LIVE_KINDS = ("camera", "stream")
DEMO_CLIP = utils.ROOT / "data" / "demo.mp4"
OUTPUT_DIR = Path("output")  # Snapshots, and annotated files without --output.
WRITABLE_IMAGES = {".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# Suffix of a video -> FFmpeg's name of its format.
WRITABLE_VIDEOS = {".m4v": "mp4", ".mkv": "matroska", ".mov": "mov", ".mp4": "mp4", ".webm": "webm"}
# In a folder, files with other suffixes are read only if their first bytes are those of an image.
FOLDER_SUFFIXES = {".avif", ".gif", ".heic", ".heif", ".jp2", ".tga", *WRITABLE_IMAGES, *WRITABLE_VIDEOS}
FOLDER_SUFFIXES |= {".3g2", ".3gp", ".asf", ".avi", ".dv", ".flv", ".m2ts", ".m2v", ".mpeg", ".mpg", ".mts", ".mxf"}
FOLDER_SUFFIXES |= {".ogv", ".ts", ".vob", ".wmv"}
IMAGE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|BM....\0\0\0\0|II[*+]\0|MM\0[*+]|P[1-6f]\s+[#\d]|\0\0\0\x0cjP  |\xff\x4f\xff\x51"
    rb"|RIFF....WEBP|....ftyp(avi[fos]|hei[cfmsx]|hev[cmsx]|mif1|msf1)",
    re.DOTALL,
)
PLAYLIST = b"#EXTM3U"
LIVE_START = re.compile(rb"--|" + PLAYLIST + rb"|\s*<")  # Multipart, a playlist, or a web page.
ANIMATIONS, ALBUMS = {"AVIF", "GIF", "PNG", "WEBP"}, {"HEIF", "TIFF"}  # Pillow's names of formats with several images.
MAX_IMAGE_PIXELS = 100_000_000  # The demo needs 8 bytes for each.
MAX_IMAGE_FILE = 4 * MAX_IMAGE_PIXELS  # Bytes.
MAX_SCANNED_PIXELS = 1_000_000_000  # Sum over the scans of a progressive JPEG, usually ten. Decoding takes 10 s.
MAX_VIDEO_PIXELS = 40_000_000  # Per frame: 8K has 33 million.
MAX_DOWNLOAD = 1_000_000_000  # Bytes.
MAX_CAMERAS = 1000  # A larger number is not a camera's index.
STREAM_TIMEOUT = 5.0  # Seconds without data before a stream is opened again. Camera drivers have their own.
MAX_LEAD = 2.0  # Seconds by which a frame of a playlist may arrive early. More means that its times jumped.
PATIENCE = 0.5  # Seconds without a frame before a stream counts as stalled. Slower cameras are rare.
RETRY_PAUSES = (0.5, 1, 2, 4)  # Seconds before each attempt to open a camera or stream again.
ASSUMED_FPS, MAX_FPS = 25.0, 1000.0  # If no rate is announced; higher values are timestamp rates.
MIN_FPS = 0.01  # In a written video. So the last frame is shown for at most 100 seconds.
MISSING_SECONDS = 1.0  # A Matroska file that ends this much too early counts as cut off.
HD_HEIGHT = 720  # Lines. From this height on, players assume BT.709 colors if a video states none.
BT709, UNSPECIFIED, BT601, LIMITED_RANGE = 1, 2, 6, 1  # FFmpeg's numbers for colors.
COVER = 1 << 10  # FFmpeg's flag for the cover image of a music file.
DISK_RESERVE = 16_000_000  # Bytes kept free for the index at the end of a video: 16 per frame, enough for 11 hours.
H264 = ("libx264", {"preset": "ultrafast", "crf": "25"})  # Slower presets take longer than the demo.
VP9 = ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "lag-in-frames": "0", "crf": "32"})
# Video format -> audio codecs that its players support. Matroska players support all.
COPIED_SOUND = {"mp4": {"aac", "mp3"}, "mov": {"aac", "mp3"}, "webm": {"opus", "vorbis"}}
SOUND_RATE = 48_000  # Samples per second of sound that is encoded.
NO_SOUND = (np.inf, [])  # Stands for the end of the sound.
CANNOT_READ = (
    "{}: cannot be read as a video or image. Check its permissions, copy it again, or convert it to .mp4 or .jpg."
)
NO_MEMORY = "{}: too large for the free memory, or damaged. Close other programs, or make it smaller."


class LimitError(ValueError):
    """A file or stream exceeds a limit."""


class SourceFrame(NamedTuple):
    """One frame of a source, and its origin."""

    image: np.ndarray | None  # uint8 (H, W, 3) BGR. None while a live source stalls.
    time_s: float  # Seconds into the file, or since the camera or stream was opened.
    file: str  # Name of the file, or title of the camera or stream.
    fps: float  # Frames per second that the file or camera announces.
    still: bool  # Whether this is a single image, not a frame of a video.


def open_source(source, camera_size=None):
    """Opens a camera index, a video, an image, a folder or an address.

    None opens camera 0 or, if there is none, the bundled clip. `camera_size` is the width and height in pixels to ask a
    camera for.

    Raises:
        OSError, ValueError: the source does not exist, cannot be opened, or exceeds a limit.
    """
    if source is None or source.isdecimal() and int(source) < MAX_CAMERAS:
        index = int(source or 0)
        frames = read_camera(index, camera_size)
        if first := next(frames, None):
            size = first.image.shape[1::-1]
            if camera_size not in (None, size):
                print(f"Camera {index}: sends {size[0]}x{size[1]} pixels instead.")
            return LiveSource("camera", first.file, lambda: read_camera(index, camera_size), frames)
        if source:
            raise ValueError(
                f"Camera {source}: cannot be opened. Check that it is plugged in, that no other program uses it and "
                f"that this terminal may use it, or try without a camera: --source {utils.printable(DEMO_CLIP)}"
            )
        print(f"No camera found, or access is not allowed yet; playing the bundled clip {utils.printable(DEMO_CLIP)}.")
        source = str(DEMO_CLIP)
    if source.startswith("file://"):
        source = urllib.request.url2pathname(urllib.parse.urlsplit(source).path)
    return open_address(source) if "://" in source[2:] else open_path(source)  # C://film.mp4 is a path.


def open_path(source):
    """Opens a file, or the images and videos of a folder in the order of their names."""
    path, name = Path(source), utils.printable(source)
    if not source or not path.exists():
        raise FileNotFoundError(f"{name or '--source'}: no such file. Name a camera index, a file, a folder or a URL.")
    if path.is_dir():
        return FileSource(list_folder(path, name), name, is_folder=True)
    if not path.is_file():  # Reading a named pipe or a device might never end.
        raise ValueError(f"{name}: not a regular file. For a camera give its index, such as 0.")
    return FileSource([path], name)


def list_folder(folder, name):
    """Returns the images and videos of a folder. Prints which other files it skips, except for hidden files."""
    # Hidden files are skipped: next to photo.jpg, macOS may leave a ._photo.jpg, which is not an image.
    paths = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    found = [path for path in paths if path.is_file() and (path.suffix.lower() in FOLDER_SUFFIXES or is_image(path))]
    folders, known = [path.name for path in paths if path.is_dir()], set(found)
    others = collections.Counter(path.suffix or path.name for path in paths if path not in known and not path.is_dir())
    groups = (("file", others.total(), others), ("subfolder", len(folders), folders))
    skipped = [f"{count} {kind}{'s' * (count > 1)} ({', '.join(names)})" for kind, count, names in groups if count]
    if not found:
        raise ValueError(f"{name}: no images or videos. Put files there that end in .jpg, .png, .mp4 or the like.")
    if skipped:
        print(utils.shorten(f"{name}: skipped {' and '.join(skipped)}."))
    return found


def open_address(address):
    """Opens an address: a stream, a file that plays from its server, or else a downloaded copy of the file."""
    av, title, start, size = import_av(), utils.printable(address), b"", 0  # 0 or -1: the size is unknown.
    if address.startswith("http"):
        with contextlib.suppress(av.FFmpegError), av.open(address, format="data", timeout=STREAM_TIMEOUT) as content:
            start, size = bytes(next(content.demux())), content.size
    if not IMAGE_START.match(start):
        seconds, is_playable = 0.0, False
        with contextlib.suppress(av.FFmpegError), Film(address, title) as film:
            seconds, is_playable = film.seconds, next(film.frames(), None) is not None
        is_live = not seconds and (size <= 0 or LIVE_START.match(start))
        if is_playable and is_live:
            pace = pace_frames if start.startswith(PLAYLIST) else iter
            return LiveSource("stream", title, lambda: pace(read_video(address, title)))
        # If the size is unknown, FFmpeg mistakes the end of the file for an error.
        if is_playable and (size > 0 or not start or LIVE_START.match(start)):
            return FileSource([address], title)
        if is_live or size > MAX_DOWNLOAD:
            raise ValueError(f"{title}: cannot be opened. Check the address in a video player.")
        # For example an MP4 file with its index at the end, on a server that cannot seek.
        print(f"Downloading {title}, because it cannot be played from the server.")
    path, folder = download(address, title, size)
    return FileSource([path], title, folder=folder)


def pace_frames(frames):
    """Yields the frames of a playlist when they are due. The server sends many at a time, one segment."""
    begun, first = time.perf_counter(), 0.0  # When a frame was shown, and its time.
    with contextlib.closing(frames):
        for frame in frames:
            lead = begun + frame.time_s - first - time.perf_counter()
            if 0 < lead < MAX_LEAD:
                time.sleep(lead)
            else:
                begun, first = time.perf_counter(), frame.time_s
            yield frame


def download(address, title, size):
    """Downloads a file. Returns the Path of the copy and its temporary folder. `size`: bytes; 0 or -1 if unknown."""
    av, folder = import_av(), tempfile.TemporaryDirectory(prefix="webcam-demo-")
    path = Path(folder.name, re.sub(r"[^\w.-]", "_", title.rpartition("/")[2])[-100:] or "download")
    try:
        end_error = contextlib.suppress(*([av.error.OSError] if size <= 0 else []))  # Raised at an unknown end.
        with av.open(address, format="data", timeout=STREAM_TIMEOUT) as content, open(path, "wb") as file, end_error:
            for packet in content.demux():
                file.write(packet)
                if file.tell() > MAX_DOWNLOAD:
                    raise OSError(f"larger than {MAX_DOWNLOAD // 10**6} MB")
        if path.stat().st_size < size:
            raise OSError("it ended early")
        return path, folder
    except (av.FFmpegError, OSError) as error:
        folder.cleanup()
        reason = utils.shorten(getattr(error, "strerror", None) or error)
        raise ValueError(f"{title}: the download failed ({reason}). Try again, or download it yourself.") from error


def check_frame_size(width, height, name):
    """Raises LimitError if a frame is too large. The size may change within a video or stream."""
    if width * height > MAX_VIDEO_PIXELS:
        limit = f"at most {MAX_VIDEO_PIXELS // 10**6} million pixels are allowed"
        raise LimitError(f"{name}: frames of {width}x{height} pixels, but {limit}. Make the video smaller.")


def file_name(target):
    """Returns the name of a file, or the title of an address. Bytes that are not UTF-8 are escaped."""
    is_path = isinstance(target, Path)
    return os.fsencode(target.name).decode(errors="backslashreplace") if is_path else utils.printable(target)


class FileSource(contextlib.AbstractContextManager):
    """Yields every frame of images and videos, one file after the other.

    `paths` is a list of Path, or of one address. `folder` is the temporary folder of a downloaded file, or None.

    Raises:
        ValueError: the only file is a video that cannot be read.
    """

    def __init__(self, paths, title, is_folder=False, folder=None):
        self.paths, self.title, self.folder, self.problems, self.ended = paths, title, folder, [], False
        self.readers = {path: find_reader(path) for path in paths}
        first = self.readers[paths[0]]
        self.kind = "folder" if is_folder else "image" if first is read_image else "video"
        self.total = 1 if self.kind == "image" else None
        if self.kind == "video" and first is read_video:  # Not an animated image.
            try:
                with Film(paths[0], title) as film:
                    self.total = round(film.seconds * film.fps) or None
            except import_av().FFmpegError as error:
                raise ValueError(CANNOT_READ.format(title)) from error

    def frames(self):
        for path, read in self.readers.items():
            try:
                frames = read(path, utils.printable(path) if self.kind == "folder" else self.title)
                yield from frames if read is read_image else read_ahead(frames)
            except ValueError as error:
                self.problems.append(str(error))
                if self.kind == "folder":
                    print(error, flush=True)
        self.ended = True

    @property
    def problem(self):
        if self.kind == "folder" and self.problems:
            return f"{self.title}: {len(self.problems)} of {len(self.paths)} files could not be read completely."
        return "".join(self.problems) or None

    def __exit__(self, *_):
        if self.folder:
            self.folder.cleanup()


def find_reader(target):
    """Returns the function that reads a Path or an address."""
    if isinstance(target, Path) and is_image(target):
        with contextlib.suppress(ValueError), open_image(target, target) as image:
            return read_animation if image.format in ANIMATIONS and image.n_frames > 1 else read_image
        return read_image
    return read_video


def read_ahead(frames):
    """Yields the items of a generator. A thread computes the next item while the current one is used."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, frames, None)
        while frame := coming.result():
            coming = pool.submit(next, frames, None)
            yield frame


def is_image(path):
    """Returns whether a file begins like an image or, for TGA, which has no signature, has its suffix."""
    try:
        with open(path, "rb") as file:
            return path.suffix.lower() == ".tga" or bool(IMAGE_START.match(file.read(16)))
    except OSError:
        return False


@functools.cache
def import_pillow():
    """Imports Pillow with support for HEIC. Cameras and videos do not need it."""
    import PIL.Image
    import PIL.ImageOps
    import PIL.ImageSequence
    import pillow_heif

    pillow_heif.register_heif_opener()
    PIL.Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS // 2  # Pillow raises at twice this value.
    warnings.filterwarnings("ignore", module="PIL")  # This line and the next hide warnings about damaged files.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    return PIL


@contextlib.contextmanager
def open_image(path, name):
    """Opens an image with Pillow, which decodes it later, in the `with` block.

    Raises:
        ValueError: the image cannot be read, or is too large. This includes errors in the `with` block.
    """
    pillow = import_pillow()
    try:
        if path.stat().st_size > MAX_IMAGE_FILE:
            raise LimitError(f"{name}: larger than {MAX_IMAGE_FILE // 10**6} MB. Make the image smaller.")
        with pillow.Image.open(path, formats=["TGA"] if path.suffix.lower() == ".tga" else None) as image:
            yield image
    except LimitError:
        raise
    except MemoryError as error:
        raise ValueError(NO_MEMORY.format(name)) from error
    except pillow.Image.DecompressionBombError as error:
        limit = f"more than {MAX_IMAGE_PIXELS // 10**6} million pixels"
        raise LimitError(f"{name}: {limit}. Make the image smaller.") from error
    except Exception as error:  # Pillow raises many types for damaged files.
        raise ValueError(CANNOT_READ.format(name)) from error


def read_image(path, name):
    """Yields the one frame of an image, rotated according to its EXIF data. Raises what `open_image` does."""
    with utils.quiet_stderr(), open_image(path, name) as image:  # libpng and libtiff print messages.
        decoded, pages = None, image.n_frames if image.format in ALBUMS else 1
        if image.format not in ("AVIF", "HEIF"):  # OpenCV does not rotate these.
            content = path.read_bytes()  # OpenCV on Windows cannot open non-ASCII paths.
            scans = content.count(b"\xff\xda") if image.info.get("progressive") else 1
            if scans * image.width * image.height > MAX_SCANNED_PIXELS:  # Ctrl-C has no effect while OpenCV decodes.
                raise LimitError(f"{name}: a JPEG with {scans} scans takes minutes. Save it as a baseline JPEG.")
            with contextlib.suppress(cv2.error):
                decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        decoded = decode_with_pillow(image) if decoded is None else to_8_bits(decoded)
        if decoded.ndim == 2:  # For a grayscale PFM, despite IMREAD_COLOR.
            decoded = cv2.cvtColor(decoded, cv2.COLOR_GRAY2BGR)
    if pages > 1:
        print(f"{name}: only the first of {pages} images is read.")
    yield SourceFrame(decoded, 0.0, file_name(path), ASSUMED_FPS, still=True)


def read_animation(path, name):
    """Yields the frames of an animated image with their times. Raises what `open_image` does."""
    time_s = 0.0
    with open_image(path, name) as image:
        for picture in import_pillow().ImageSequence.Iterator(image):
            decoded, seconds = decode_with_pillow(picture), (image.info.get("duration") or 100) / 1000
            yield SourceFrame(decoded, time_s, file_name(path), 1 / seconds, still=False)
            time_s += seconds


def decode_with_pillow(image):
    """Returns a Pillow image, or its current frame, as uint8 (H, W, 3) BGR."""
    image = import_pillow().ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # One channel of 16 or 32 bits.
        return cv2.cvtColor(to_8_bits(np.asarray(image)), cv2.COLOR_GRAY2BGR)
    return cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)


def to_8_bits(image):
    """Returns an image as uint8. Stretches 16-bit data with at most 12 used bits, as from cameras."""
    if image.dtype == np.uint8:
        return image
    image = np.nan_to_num(image, posinf=0, neginf=0)
    highest = image.max()
    if image.dtype == np.uint16 and highest >= 4096:
        return (image >> 8).astype(np.uint8)
    return cv2.convertScaleAbs(np.maximum(image, 0), alpha=255 / highest if highest > 0 else 1)


@functools.cache
def import_av():
    """Imports PyAV, which a camera does not need.

    On Linux, import OpenCV first: otherwise the first `cv2.imshow` waits forever.
    """
    with utils.quiet_stderr():  # macOS prints two lines about a class that OpenCV's FFmpeg also has.
        import av
        import av.video.reformatter
    return av


def open_container(target):
    """Opens a film (Path) or an address (str) with PyAV, or raises av.FFmpegError."""
    place, timeout = target, STREAM_TIMEOUT
    if isinstance(target, Path):
        place, timeout = str(target.resolve()), None  # FFmpeg would parse a relative 12:30.mp4 as an address.
    return import_av().open(place, options={"rtsp_transport": "tcp"}, timeout=timeout, metadata_errors="replace")


def start_time(container):
    """Returns the start time of a file in seconds. A negative one, from sound, counts as 0."""
    return max(0, container.start_time or 0) / 1e6


def decode(packet):
    """Returns the frames of a packet; an empty list if it is damaged."""
    try:
        return packet.decode()
    except MemoryError:  # PyAV's MemoryError is also an FFmpegError.
        raise
    except import_av().FFmpegError:
        return []


def demux(container, *streams):
    """Yields the packets of a container."""
    with contextlib.suppress(IndexError):  # PyAV raises it at the end if a stream begins late.
        yield from container.demux(*streams)


class Film(contextlib.AbstractContextManager):
    """The video of a file (Path) or address (str). A context manager.

    Raises:
        av.FFmpegError: the file cannot be opened.
        ValueError: it has no video, or the frames are too large.
    """

    def __init__(self, target, name):
        self.container, self.name = open_container(target), name
        self.stream = self.container.streams.best("video")
        if self.stream is None or self.stream.codec_context is None or self.stream.disposition & COVER:
            raise ValueError(f"{name}: has no video that can be decoded. Choose another file, or convert it to H.264.")
        self.stream.thread_type = "AUTO" if isinstance(target, Path) else "SLICE"  # Frame threads delay a stream.
        rate, self.seconds = float(self.stream.average_rate or 0), (self.container.duration or 0) / 1e6
        self.fps = rate if 0 < rate <= MAX_FPS else ASSUMED_FPS
        self.reformatter, self.matrix = import_av().video.reformatter.VideoReformatter(), None
        self.reached, self.is_torn = 0.0, False
        self.shown_size(self.stream.codec_context)

    def shown_size(self, frame):
        """Returns width and height of a frame in square pixels. Raises LimitError for large frames."""
        ratio = self.stream.sample_aspect_ratio or 1  # Width of a pixel over its height.
        size = round(frame.width * max(ratio, 1)), round(frame.height / min(ratio, 1))
        check_frame_size(*size, self.name)
        return size

    def frames(self):
        """Yields the PyAV frames that are not damaged."""
        for packet in demux(self.container):
            end = (packet.pts or 0) + (packet.duration or 0)
            self.reached = max(self.reached, float(end * packet.time_base))
            if packet.stream.index == self.stream.index:
                self.is_torn = packet.is_corrupt if packet.size else self.is_torn
                yield from decode(packet)

    def is_cut_off(self):
        """Returns, after the last frame, whether the end of the file is missing."""
        # Matroska's header states a duration; FFmpeg marks the last packet of other formats.
        expected = self.seconds if "matroska" in self.container.format.name else 0.0
        return self.is_torn or self.reached < expected - MISSING_SECONDS

    def show(self, frame):
        """Returns a frame as uint8 (H, W, 3) BGR with square pixels, after applying its display matrix."""
        colors = BT709 if frame.colorspace == UNSPECIFIED and frame.height >= HD_HEIGHT else None
        shown = self.reformatter.reformat(frame, *self.shown_size(frame), "bgr24", src_colorspace=colors)
        image = shown.to_ndarray()
        if self.matrix is None:  # Read from the first frame only: a frame whose side data was read stays in memory.
            self.matrix = np.frombuffer(frame.side_data.get("DISPLAYMATRIX", b""), np.int32).tolist()
        if not self.matrix:
            return image
        x_to_x, x_to_y, _, y_to_x, y_to_y, *_ = self.matrix
        if abs(x_to_x) < abs(x_to_y):
            image, x_to_x, y_to_y = cv2.transpose(image), y_to_x, x_to_y
        return np.ascontiguousarray(image[:: -1 if y_to_y < 0 else 1, :: -1 if x_to_x < 0 else 1])

    def __exit__(self, *_):
        self.container.close()
        if self.matrix is not None:
            gc.collect()  # The first frame and its side data form a cycle of up to 3 MB.


def read_video(target, name):
    """Yields the frames of a video with their times, as a player shows them. Skips damaged frames.

    Raises:
        ValueError: the frames are too large, there are none, or (after the last one) the end of the file is missing.
    """
    count, is_cut_off = 0, True
    try:
        with Film(target, name) as film:
            start, time_s = start_time(film.container), -1 / film.fps
            for frame in film.frames():
                # Raw streams have no times, and the times of damaged files jump back.
                stated = -np.inf if frame.time is None else frame.time - start
                time_s = stated if stated > time_s else time_s + 1 / film.fps
                count += 1
                yield SourceFrame(film.show(frame), time_s, file_name(target), film.fps, still=False)
            is_cut_off = film.is_cut_off()
    except (MemoryError, BlockingIOError) as error:  # BlockingIOError: no new thread.
        raise ValueError(NO_MEMORY.format(name)) from error
    except import_av().FFmpegError:  # The video breaks off.
        pass
    if count == 0:
        raise ValueError(CANNOT_READ.format(name))
    if is_cut_off:
        raise ValueError(f"{name}: ends after frame {count}. The rest of the file is missing.")


def read_camera(index, size=None):
    """Yields the frames of a camera until a read fails. `size`: width and height to ask for."""
    capture, title = cv2.VideoCapture(index), f"Camera {index}"
    try:
        if size:  # MJPG, because most cameras are slow with large uncompressed frames.
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        rate = capture.get(cv2.CAP_PROP_FPS)
        with contextlib.suppress(cv2.error):  # Some drivers raise.
            while (image := capture.read()[1]) is not None:
                check_frame_size(*image.shape[1::-1], title)
                yield SourceFrame(image, 0.0, title, rate if 0 < rate <= MAX_FPS else ASSUMED_FPS, still=False)
    finally:
        capture.release()


class LiveSource(contextlib.AbstractContextManager):
    """A camera or stream, read in a background thread.

    Only the newest frame is kept, so a slow consumer skips frames instead of lagging. While the source stalls, frames
    without an image keep the window responsive. When the frames end, `open_frames` opens the source again.
    """

    total, paths, ended = None, (), False

    def __init__(self, kind, title, open_frames, frames=None):
        self.kind, self.title, self.open_frames, self.problem = kind, title, open_frames, None
        self.started = time.perf_counter()
        self.newest, self.stopped = queue.Queue(maxsize=1), threading.Event()
        self.thread = threading.Thread(target=self._run, args=[frames or open_frames()], daemon=True)
        self.thread.start()

    def _run(self, frames):
        pauses = iter(RETRY_PAUSES)
        problem = f"{self.title}: no more frames, and it cannot be opened again. Check that it is still connected."
        try:
            while frames:
                if self._read(frames):
                    pauses = iter(RETRY_PAUSES)
                pause = next(pauses, None)
                frames = None if pause is None or self.stopped.wait(pause) else self.open_frames()
        except LimitError as error:
            problem = str(error)
        finally:  # Also after an OpenCV error, to tell the consumer that no more frames come.
            self.problem = None if self.stopped.is_set() else problem
            self.stopped.set()

    def _read(self, frames):
        """Takes frames until they end or the source is closed. Returns whether there were any."""
        frame = None
        try:
            for frame in frames:
                with contextlib.suppress(queue.Empty):
                    self.newest.get_nowait()  # The consumer has not taken this frame: drop it.
                self.newest.put(self._set_time(frame))
                if self.stopped.is_set():
                    break
        except LimitError:
            raise
        except ValueError:  # The stream broke off.
            pass
        frames.close()
        return frame is not None

    def _set_time(self, frame):
        return frame._replace(time_s=time.perf_counter() - self.started)

    def frames(self):
        stalled = SourceFrame(None, 0.0, self.title, ASSUMED_FPS, still=False)
        while not self.stopped.is_set() or not self.newest.empty():
            try:
                frame = self.newest.get(timeout=PATIENCE)
            except queue.Empty:
                frame = self._set_time(stalled)
            yield frame

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join(timeout=STREAM_TIMEOUT)


class AnnotatedFiles(contextlib.AbstractContextManager):
    """Writes annotated frames to an image, a video or, for the files of a folder, a folder.

    This context manager completes the last video, even after an exception. A thread encodes each video frame while the
    next one is computed. `written` is the number of complete files.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(self, path, source):
        self.path, self.source, self.outputs, self.written = path, source, annotated_paths(path, source), 0
        self.inputs = {file_name(path): path for path in source.paths}
        self.pool, self.file, self.writer, self.pending = concurrent.futures.ThreadPoolExecutor(1), None, None, None
        (path if source.kind == "folder" else path.parent).mkdir(parents=True, exist_ok=True)

    def write(self, annotated, source_frame):
        """Writes the annotated frame, uint8 (H, W, 3), of a `SourceFrame`."""
        path = self.outputs.get(source_frame.file, self.path)
        if source_frame.file != self.file:
            self._complete(whole=True)
            self.file = source_frame.file
            if not source_frame.still:
                self.writer = VideoWriter(path, annotated.shape[1::-1], source_frame, self.inputs.get(self.file))
        if source_frame.still:
            write_image(path, annotated)
            self.written += 1
        else:
            self._wait()
            self.pending = self.pool.submit(self.writer.write, annotated, source_frame.time_s, source_frame.fps)

    def _wait(self):
        """Waits for the frame that is being encoded, or raises its error once."""
        pending, self.pending = self.pending, None
        if pending:
            pending.result()

    def _complete(self, whole):
        """Completes the current video. `whole`: all frames were written, so write the rest of the sound too."""
        writer, self.writer = self.writer, None
        if writer:
            try:
                self._wait()
            finally:
                self.pool.submit(writer.close, whole).result()  # After a frame that Ctrl-C left there.
                self.written += writer.written > 0

    def __exit__(self, *_):
        with self.pool:
            self._complete(self.source.ended)


def annotated_paths(output, source):
    """Returns the paths of the annotated files of a folder, dict of file name to Path; empty for other sources."""
    readers = source.readers if source.kind == "folder" else {}
    return {file_name(path): annotated_path(output / path.name, read is read_image) for path, read in readers.items()}


def annotated_path(path, is_image):
    """Returns the path of an annotated file, with a suffix added if there is no encoder for its own."""
    suffixes, suffix = (WRITABLE_IMAGES, ".jpg") if is_image else (WRITABLE_VIDEOS, ".mp4")
    if path.suffix.lower() in suffixes:
        return path
    return path.with_name((path.name if len(os.fsencode(path.name)) <= 250 else path.stem) + suffix)


def write_image(path, image):
    """Writes an image file, or raises OSError and keeps the existing file."""
    name, encoded = utils.printable(path), False
    with contextlib.suppress(cv2.error):
        encoded, content = cv2.imencode(".jpg" if path.suffix.lower() == ".jfif" else path.suffix, image)
    if not encoded:
        raise OSError(f"{name}: the format cannot hold {image.shape[1]}x{image.shape[0]} pixels. Choose .png.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with cli.replaced(path) as new:
            new.write_bytes(content)  # On Windows, OpenCV cannot open every path.
    except OSError as error:
        raise OSError(f"{name}: cannot be written ({error.strerror}). Choose another path.") from error


class VideoWriter:
    """Writes a video of frames that have their own times, with the sound of a film.

    The file has a temporary name until `close`, because an incomplete video does not play.

    Args:
        size: width and height of the first frame. Frames of other sizes are resized.
        first: the first `SourceFrame`.
        film: Path or address with the sound; None for a live source.

    Raises:
        OSError: the video cannot be written.
    """

    def __init__(self, path, size, first, film=None):
        av, format_name = import_av(), WRITABLE_VIDEOS[path.suffix.lower()]
        self.name, self.size, self.ticks, self.written = utils.printable(path), size, -1, 0
        self.tick = fractions.Fraction(1, 1000 if format_name in ("matroska", "webm") else 90_000)  # Seconds.
        self.start = 0.0 if film else first.time_s  # A live source was opened earlier.
        self.stack = contextlib.ExitStack()
        self.path = self.stack.enter_context(cli.replaced(path))
        with self._explain():
            options = {"movflags": "faststart"}
            self.container = av.open(str(self.path.resolve()), "w", format_name, container_options=options)
            self.stream = add_video(self.container, size, first.fps, self.tick)
            self.sound = read_sound(film, self.container, self.name)
            self.heard, self.packets = self._write_packets([])  # Adds the sound stream before the first frame.

    @contextlib.contextmanager
    def _explain(self):
        """Turns a PyAV error into an OSError that says what to do."""
        try:
            yield
        except import_av().FFmpegError as error:
            problem = f"{self.name}: could not be completed ({error.strerror})."
            raise OSError(f"{problem} Check that disk and memory have room, or choose another --output.") from error

    def write(self, frame, time_s, fps):
        """Writes a frame, uint8 (H, W, 3), that is shown from `time_s`, in seconds, until the next frame.

        The last frame is shown for 1 / `fps` seconds.
        """
        if shutil.disk_usage(self.path.parent).free < DISK_RESERVE:
            raise OSError(f"{self.name}: the disk is full. The video ends after frame {self.written}. Free some space.")
        if frame.shape[1::-1] != self.size:
            frame = cv2.resize(frame, self.size)
        frame = cv2.copyMakeBorder(frame, 0, self.size[1] % 2, 0, self.size[0] % 2, cv2.BORDER_REPLICATE)
        # FFmpeg's conversion takes five times as long, and darkens slightly.
        picture = import_av().VideoFrame.from_ndarray(cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420), "yuv420p")
        self.ticks = max(self.ticks + 1, round((time_s - self.start) / self.tick))
        picture.pts, picture.time_base, picture.duration = self.ticks, self.tick, round(1 / fps / self.tick)
        with self._explain():
            self.container.mux(self.stream.encode(picture))
            self._write_sound(time_s)
        self.written += 1

    def _write_sound(self, until):
        """Writes the sound before a time in seconds."""
        while self.heard < until:
            self.heard, self.packets = self._write_packets(self.packets)

    def _write_packets(self, packets):
        """Writes sound packets. Returns the next ones with their time, or `NO_SOUND` if these are damaged."""
        try:
            self.container.mux(packets)
            return next(self.sound, NO_SOUND)
        except ValueError as error:  # From PyAV. A full disk raises another error.
            print(f"{self.name}: the rest of the sound is left out ({utils.shorten(error)}).", flush=True)
            return NO_SOUND

    def close(self, whole=True):
        """Completes the video and renames it, or raises OSError and keeps the existing file.

        `whole`: write the rest of the sound.
        """
        with self.stack, self._explain(), self.container, contextlib.closing(self.sound):
            self.container.mux(self.stream.encode())
            self._write_sound(np.inf if whole else -np.inf)


def add_video(container, size, fps, tick):
    """Adds a video stream of this width and height to a container and returns it."""
    codec, options = VP9 if container.format.name == "webm" else H264
    stream = container.add_stream(codec, fractions.Fraction(max(fps, MIN_FPS)).limit_denominator(1001), options)
    stream.codec_context.flags |= import_av().codec.context.Flags.frame_duration  # Needed for the last frame.
    stream.width, stream.height = size[0] + size[0] % 2, size[1] + size[1] % 2  # Most players need even sizes.
    stream.pix_fmt, stream.time_base, stream.codec_context.time_base = "yuv420p", tick, tick
    stream.color_primaries, stream.color_trc, stream.colorspace, stream.color_range = BT709, BT709, BT601, LIMITED_RANGE
    return stream


def read_sound(film, output, name):
    """Yields the sound of a film (Path, address or None) for a container: pairs of a time in seconds and packets.

    Copies the sound, or encodes it again if players of this container do not support it. Prints what is left out.
    """
    if film is None:
        return
    av = import_av()
    with contextlib.suppress(av.FFmpegError), open_container(film) as container:  # It may be an animated image.
        streams, source, start = container.streams, container.streams.best("audio"), start_time(container)
        left_out = ["further sound tracks"] * (len(streams.audio) > 1) + ["subtitles"] * bool(streams.subtitles)
        if left_out:
            print(f"{name}: {' and '.join(left_out)} are left out.", flush=True)
        if source is None or source.codec_context is None:
            return
        for other in streams:
            other.discard = av.stream.Discard.default if other is source else av.stream.Discard.all
        codec, known = source.codec_context.codec, COPIED_SOUND.get(output.format.name, output.supported_codecs)
        if {codec.canonical_name, codec.name} & known:
            stream = output.add_stream_from_template(source)
            for time_s, packet in shift_times(demux(container, source), start):
                packet.stream = stream
                yield time_s, [packet]
        else:
            stream = output.add_stream("libopus" if output.format.name == "webm" else "aac", SOUND_RATE)
            decoded = itertools.chain.from_iterable(map(decode, demux(container, source)))
            yield from encode_sound(stream, shift_times(decoded, start))


def shift_times(parts, start):
    """Yields the time in seconds and the part of each packet or frame of sound that began at `start` in its file.

    If times jump back, as where two recordings were joined, a part begins where the part before ends.
    """
    end = -np.inf
    for part in parts:
        if part.pts is None:  # The last packet is empty.
            continue
        pts, ticks = part.pts - round(start / part.time_base), part.duration or 1
        part.pts = part.dts = pts if pts + ticks > end else end
        end = part.pts + ticks
        yield float(part.pts * part.time_base), part


def encode_sound(stream, timed_frames):
    """Yields pairs of a time in seconds and packets. The sound format may change within a broadcast."""
    resamplers = collections.defaultdict(lambda: import_av().AudioResampler(stream.format, stream.layout, SOUND_RATE))
    time_s = 0.0
    for time_s, frame in timed_frames:
        frame.pts, frame.time_base = round(time_s * SOUND_RATE), fractions.Fraction(1, SOUND_RATE)
        resampler = resamplers[frame.format.name, frame.layout.name, frame.sample_rate]
        for resampled in resampler.resample(frame):
            yield time_s, stream.encode(resampled)
    yield time_s, stream.encode()
