"""Frames from real files, servers and cameras, and videos and images written and read back.

python -m pytest tests/test_video.py
"""

import base64
import contextlib
import functools
import http.server
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import video


def write_video(path, frames, fps=10):
    codec = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, fps, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()


def count_frames(path):
    """Decodes a video to its end; returns its frames and its frames per second."""
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    return count, capture.get(cv2.CAP_PROP_FPS)


def gray_frames(count):
    """Returns frames of 160x120 pixels, each brighter than the one before."""
    return [np.full((120, 160, 3), 6 * number, np.uint8) for number in range(count)]


def read_all(source):
    with_images = [frame for frame in source.frames() if frame.image is not None]
    source.close()
    return with_images


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def test_video_frames_have_times_rate_and_file_name(clip):
    source = video.open_source(str(clip))
    frames = read_all(source)
    assert source.total == len(frames) == 30 and source.problem is None
    assert [frame.time_s for frame in frames] == pytest.approx([number / 10 for number in range(30)])
    assert {(frame.file, frame.fps, frame.still) for frame in frames} == {("clip.mp4", 10.0, False)}
    assert frames[0].image.shape == (450, 384, 3) and frames[29].image.mean() == pytest.approx(90, abs=3)


def test_frames_of_irregular_length_keep_their_own_times(tmp_path):
    """A GIF whose frames last 0.1, 0.3 and 0.2 seconds."""
    images = [Image.fromarray(frame) for frame in gray_frames(3)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[100, 300, 200])
    frames = read_all(video.open_source(str(tmp_path / "a.gif")))
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.1, 0.4])


def drop_avi_frames(path, dropped):
    """Rewrites an AVI with some frames empty, in the video and in the index, as a recorder that is too slow does."""
    content = path.read_bytes()
    begin, end = content.index(b"movi"), content.rindex(b"idx1")
    position, number, movie, index = begin + 4, 0, b"movi", b""
    while position < end:
        name, size = struct.unpack("<4sI", content[position : position + 8])
        data = content[position + 8 : position + 8 + size]
        if name == b"00dc":
            data = b"" if number in dropped else data
            index += struct.pack("<4sIII", name, 16 if data else 0, len(movie), len(data))
            number += 1
        movie += struct.pack("<4sI", name, len(data)) + data + b"\0" * (len(data) % 2)
        position += 8 + size + size % 2
    body = b"AVI " + content[12 : begin - 8]
    for name, data in ((b"LIST", movie), (b"idx1", index)):
        body += struct.pack("<4sI", name, len(data)) + data
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)


@pytest.mark.parametrize("dropped", [{5, 6, 7, 20}, {36, 37, 38, 39}])
def test_avi_with_dropped_frames_is_complete(tmp_path, dropped):
    write_video(tmp_path / "a.avi", gray_frames(40))
    drop_avi_frames(tmp_path / "a.avi", dropped)
    source = video.open_source(str(tmp_path / "a.avi"))
    assert len(read_all(source)) == 36 and source.problem is None


def test_avi_that_was_cut_off_is_reported(tmp_path):
    write_video(tmp_path / "a.avi", gray_frames(40))
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(content[: len(content) // 2] + os.urandom(2000))
    source = video.open_source(str(tmp_path / "a.avi"))
    count = len(read_all(source))
    assert 0 < count < 40 and f"ends after frame {count} of 40" in source.problem


def test_mp4_that_was_cut_off_is_noticed(tmp_path):
    content = video.DEMO_CLIP.read_bytes()
    for name, part in (("whole", content), ("half", content[: len(content) // 2]), ("text", b"no video at all")):
        (tmp_path / name).write_bytes(part)
        assert video.is_cut_off(tmp_path / name) == (name == "half")


def test_damaged_frames_are_skipped(tmp_path):
    """40,000 bytes are blank within the bundled clip, of 255 frames at 25 frames/s."""
    content = bytearray(video.DEMO_CLIP.read_bytes())
    content[400_000:440_000] = bytes(40_000)
    (tmp_path / "a.mp4").write_bytes(content)
    frames = read_all(video.open_source(str(tmp_path / "a.mp4")))
    assert len(frames) > 240
    assert frames[-1].time_s == pytest.approx(254 / 25, abs=0.01)


def test_fractional_and_high_frame_rates_are_written_and_read(tmp_path):
    for fps in (29.8372, 66.667, 119.88012, 240.02):
        writer = video.VideoWriter(tmp_path / "out.mp4", fps, (64, 48), 0.0)
        for number in range(4):
            writer.write(np.zeros((48, 64, 3), np.uint8), number / fps)
        writer.close()
        frames = read_all(video.open_source(str(tmp_path / "out.mp4")))
        assert [frame.fps for frame in frames] == pytest.approx([fps] * 4, rel=1e-3)


def test_folder_gives_every_frame_and_names_the_damaged_file(tmp_path, clip, portrait, capfd):
    """Half a PNG and half a JPEG, about which libpng and libjpeg print lines, are among the files."""
    shutil.copy(clip, tmp_path / "c.mp4")
    cv2.imwrite(str(tmp_path / "a.png"), portrait)
    for suffix in (".png", ".jpg"):
        content = cv2.imencode(suffix, portrait)[1].tobytes()
        (tmp_path / f"half{suffix}").write_bytes(content[: len(content) // 2 if suffix == ".png" else 500])
    (tmp_path / "._a.png").write_bytes(b"left by macOS")
    (tmp_path / "notes.txt").write_text("not an image")
    if hasattr(os, "mkfifo"):  # Windows has none.
        os.mkfifo(tmp_path / "pipe.jpg")
    source = video.open_source(str(tmp_path))
    files = [frame.file for frame in read_all(source)]
    assert (
        files[0] == "a.png" and files.count("c.mp4") == 30 and set(files) <= {"a.png", "c.mp4", "half.jpg", "half.png"}
    )
    assert capfd.readouterr().err == ""


def test_limits_are_stated(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_VIDEO_PIXELS", 160 * 120 - 1)
    write_video(tmp_path / "a.mp4", gray_frames(2))
    with pytest.raises(ValueError, match="160x120 pixels, but at most"):
        video.open_source(str(tmp_path / "a.mp4"))
    monkeypatch.setattr(video, "MAX_IMAGE_BYTES", 10)
    cv2.imwrite(str(tmp_path / "a.png"), gray_frames(1)[0])
    source = video.open_source(str(tmp_path / "a.png"))
    assert read_all(source) == [] and "larger than 400 MB" in source.problem


def write_large_png(path, side):
    """Writes a black image of side x side pixels, one bit each, a few kB long."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + side // 8) * side))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


class LargeFrames(http.server.BaseHTTPRequestHandler):
    """Streams frames of 12,000x12,000 pixels as motion JPEG."""

    jpeg = functools.cache(lambda: cv2.imencode(".jpg", np.zeros((12000, 12000), np.uint8))[1].tobytes())

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        jpeg = type(self).jpeg()
        while True:
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
            self.wfile.write(jpeg + b"\r\n")

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(OSError):  # The demo hangs up.
            super().handle()


# Runs the demo and prints its own peak memory in kB; wait4() would count that of the tests, from before the exec.
MEASURED_DEMO = f"""
import re, sys
sys.path.insert(0, {str(ROOT)!r})
import webcam_demo
status = webcam_demo.main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
sys.exit(status)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc for the peak memory")
@pytest.mark.parametrize("kind", ["image", "stream"])
def test_too_many_pixels_are_refused_within_1_gb_and_10_s(tmp_path, serve, kind):
    if kind == "image":
        write_large_png(tmp_path / "large.png", 20_000)
        source, limit = tmp_path / "large.png", "more than 100 million pixels"
    else:
        LargeFrames.jpeg()
        source, limit = f"http://{serve(LargeFrames)}/", "12000x12000 pixels, but at most 40 million"
    command = [sys.executable, "-c", MEASURED_DEMO, str(source), "--no-display"]
    started = time.monotonic()
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 2 and limit in finished.stderr
    assert time.monotonic() - started < 10 and int(finished.stdout.split()[-1]) < 1_000_000


# ---------------------------------------------------------------------------------------------------------------------
# Servers
# ---------------------------------------------------------------------------------------------------------------------


class FileServer(http.server.SimpleHTTPRequestHandler):
    """Serves files without ranges, as many small servers do. With `password` set, only to requests with it."""

    password = None

    def do_GET(self):
        expected = self.password and f"Basic {base64.b64encode(f'user:{self.password}'.encode()).decode()}"
        if expected != self.headers.get("Authorization"):
            self.send_error(401)
            return
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def web_folder(tmp_path_factory):
    """A folder with a few frames in four formats."""
    folder, frames = tmp_path_factory.mktemp("web"), gray_frames(10)
    write_video(folder / "a.ts", frames)
    cv2.imwrite(str(folder / "a.jpg"), frames[5])
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(folder / "a.gif", save_all=True, append_images=images[1:], duration=100, loop=0)
    noise = np.random.default_rng(0).integers(0, 256, (30, 240, 320, 3), dtype=np.uint8)
    write_video(folder / "noise.mp4", noise)
    return folder


@pytest.mark.parametrize(("file", "count"), [("a.ts", 10), ("a.gif", 10), ("a.jpg", 1), ("noise.mp4", 30)])
def test_file_on_a_web_server_is_played_once_and_to_its_end(web_folder, serve, file, count):
    """The index of noise.mp4 is at its end, where FFmpeg cannot get without ranges."""
    address = serve(functools.partial(FileServer, directory=web_folder))
    source = video.open_source(f"http://{address}/{file}?token=secret")
    assert isinstance(source, video.Files) and source.title == f"http://{address}/{file}"
    assert len(read_all(source)) == count and source.problem is None
    assert not source.folder or not os.path.exists(source.folder.name)


class HalfServer(FileServer):
    """Closes the connection after half of a file."""

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // 2])


def test_download_that_ends_early_is_one_line(web_folder, serve):
    address = serve(functools.partial(HalfServer, directory=web_folder))
    with pytest.raises(ValueError, match="noise.mp4: the download failed .it ended early.. Try again."):
        video.open_source(f"http://{address}/noise.mp4")


@pytest.mark.parametrize("file", ["a.gif", "noise.mp4"])
def test_password_of_an_address_reaches_the_server(web_folder, serve, file, monkeypatch):
    monkeypatch.setattr(FileServer, "password", "p@ss")
    address = serve(functools.partial(FileServer, directory=web_folder))
    assert read_all(video.open_source(f"http://user:p%40ss@{address}/{file}"))
    with pytest.raises(ValueError, match="cannot be opened") as raised:
        video.open_source(f"http://user:wrong@{address}/{file}")
    assert "wrong" not in str(raised.value)


# ---------------------------------------------------------------------------------------------------------------------
# Cameras and streams
# ---------------------------------------------------------------------------------------------------------------------


class Camera:
    """Counts upwards, a hundred frames a second; `script` says what else happens before the frame of a number.

    A number of seconds is a stall, False a read that fails, an exception one that raises it.
    """

    def __init__(self, script=(), size=2):
        self.number, self.script, self.size = 0, dict(script), size

    def read(self):
        event = self.script.pop(self.number + 1, 0.01)
        if isinstance(event, Exception):
            raise event
        time.sleep(event)
        if event is False:
            return False, None
        self.number += 1
        return True, np.full((2, 2, 3), self.number % 250, np.uint8)

    def get(self, name):
        return self.size if name in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT) else 0.0

    def isOpened(self):
        return True

    def release(self):
        pass


def numbers(source, count):
    """Returns the numbers of the next frames, None where the source stalled."""
    images = (frame.image for frame in source.frames())
    return [None if image is None else int(image[0, 0, 0]) for _, image in zip(range(count), images, strict=False)]


def test_slow_consumer_of_a_live_source_gets_the_newest_frame():
    camera = Camera()
    source = video.LiveCapture(camera, 0)
    ages = []
    for _, frame in zip(range(6), source.frames(), strict=False):
        if frame.image is not None:
            ages.append(camera.number - int(frame.image[0, 0, 0]))
        time.sleep(0.1)
    source.close()
    assert len(ages) >= 5 and max(ages) <= 10  # A hundred milliseconds.


def test_stalled_stream_is_reported_and_continues(monkeypatch):
    monkeypatch.setattr(video, "PATIENCE", 0.1)
    source = video.LiveCapture(Camera({3: 0.5}), 0)
    seen = numbers(source, 12)
    source.close()
    assert seen.count(None) >= 3  # Half a second, reported every tenth of it.
    after = seen[len(seen) - seen[::-1].index(None) :]
    assert after and after[0] == 3 and source.problem is None


@pytest.mark.parametrize("failure", [False, cv2.error("the driver")])
def test_unplugged_camera_is_opened_again(monkeypatch, failure):
    """Its reads fail after three frames; the second attempt to open it succeeds, and it counts from 1 again."""
    opened = [Camera({1: False}), Camera()]
    monkeypatch.setattr(video, "open_capture", lambda target: opened.pop(0))
    monkeypatch.setattr(video, "RETRY_PAUSES", (0.05, 0.1, 0.2))
    source = video.LiveCapture(Camera({4: failure}), 0)
    seen = [number for number in numbers(source, 10) if number]
    source.close()
    assert opened == [] and len(seen) > 3 and source.problem is None


def test_camera_that_raises_at_once_is_not_opened(monkeypatch):
    monkeypatch.setattr(video, "open_capture", lambda target: Camera({1: cv2.error("the driver")}))
    with pytest.raises(ValueError, match="Camera 3: cannot be opened"):
        video.open_source("3")


def test_camera_that_stays_unplugged_ends_with_a_sentence(monkeypatch):
    monkeypatch.setattr(video, "open_capture", lambda target: Camera({1: False}))
    monkeypatch.setattr(video, "RETRY_PAUSES", (0.01, 0.02))
    source = video.LiveCapture(Camera({2: False}), 0)
    assert [number for number in numbers(source, 1000) if number] == [1]
    assert source.problem.startswith("Camera 0: no more frames, and it cannot be opened again.")


def test_live_source_whose_frames_grow_too_large_ends():
    source = video.LiveCapture(Camera(size=12_000), 0)
    assert not any(numbers(source, 1000)) and "12000x12000 pixels" in source.problem


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def test_written_video_holds_each_frame_until_the_next(tmp_path):
    """Ten frames a second; gray levels at 0, 0.1, 0.5 and, after a jump of the clock, 1000.5 seconds."""
    writer = video.VideoWriter(tmp_path / "out.avi", 10, (64, 48), 0.0)
    for time_s, level in ((0.0, 50), (0.1, 100), (0.5, 150), (1000.5, 200)):
        writer.write(np.full((48, 64, 3), level, np.uint8), time_s)
    writer.close()
    frames = read_all(video.open_source(str(tmp_path / "out.avi")))
    levels = [round(float(frame.image.mean()) / 50) * 50 for frame in frames]
    assert levels[:6] == [50, 100, 100, 100, 100, 150]
    assert levels[6:] == [150] * (10 * int(video.LONGEST_GAP) - 1) + [200]


def test_video_of_single_pixels_is_labelled_and_written(run_script, tmp_path):
    images = [Image.new("RGB", (1, 1), (10 * number, 0, 0)) for number in range(5)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    finished = run_script("webcam_demo.py", tmp_path / "a.gif", "--no-display", "--output", tmp_path / "out.mp4")
    assert finished.returncode == 0, finished.stderr
    assert count_frames(tmp_path / "out.mp4") == (5, 10)


@pytest.fixture(scope="module")
def noisy_video(tmp_path_factory, portrait):
    """A video that is a few MB long when it is written again, with a face for the log."""
    path = tmp_path_factory.mktemp("noisy") / "noisy.avi"
    noise = np.random.default_rng(0).integers(0, 200, (4, *portrait.shape), dtype=np.uint8)
    frames = [portrait // 2 + still // 2 for still in noise]
    write_video(path, [frames[number % 4] for number in range(100)])
    return path


needs_small_disk = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="needs unshare, which mounts a small disk",
)


@needs_small_disk
@pytest.mark.parametrize("name", ["out.mp4", "out.avi"])
def test_full_disk_stops_the_demo_and_the_video_so_far_plays(noisy_video, tmp_path, name):
    """Of 18 MB, 16 stay free for the index, so about 2 MB are written."""
    (tmp_path / "disk").mkdir()
    demo = f"{sys.executable} {ROOT / 'webcam_demo.py'} {noisy_video} --no-display --output disk/{name}"
    mount = "mount -t tmpfs -o size=18M none disk"
    command = f"{mount} && {{ {demo}; status=$?; cp disk/* .; ls -A disk > listing; exit $status; }}"
    finished = subprocess.run(["unshare", "-rm", "bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1, finished.stderr
    frames, _ = count_frames(tmp_path / name)
    assert f"the disk is full, so it ends after frame {frames}." in finished.stderr and 10 < frames < 100
    assert (tmp_path / "listing").read_text().split() == [name]


@needs_small_disk
def test_full_disk_ends_the_log_and_the_demo(clip, tmp_path):
    """The disk has one block, 4 kB."""
    (tmp_path / "disk").mkdir()
    demo = f"{sys.executable} {ROOT / 'webcam_demo.py'} {clip} --no-display --log disk/log.jsonl"
    command = f"mount -t tmpfs -o size=4k none disk && {{ {demo}; status=$?; cp disk/log.jsonl log; exit $status; }}"
    finished = subprocess.run(["unshare", "-rm", "bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1, finished.stderr
    assert "disk/log.jsonl: the log ends early (No space left on device)" in finished.stderr
    assert len((tmp_path / "log").read_bytes()) == 4096


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for the size of a file")
@pytest.mark.parametrize("name", ["out.mp4", "out.avi", "out.mkv"])
def test_video_that_cannot_be_completed_leaves_the_former_file(clip, tmp_path, name):
    (tmp_path / name).write_bytes(b"former")
    command = f"ulimit -f 8; {sys.executable} {ROOT / 'webcam_demo.py'} {clip} --no-display --output {name}"
    finished = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 2 and f"{name}: could not be completed" in finished.stderr
    assert (tmp_path / name).read_bytes() == b"former" and os.listdir(tmp_path) == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_sigkill_leaves_the_former_video(noisy_video, clip, tmp_path):
    shutil.copy(clip, tmp_path / "out.mp4")
    command = [sys.executable, str(ROOT / "webcam_demo.py"), str(noisy_video), "--no-display", "--output", "out.mp4"]
    process = subprocess.Popen([*command, "--log", "log.csv"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    log, deadline = tmp_path / "log.csv", time.monotonic() + 30
    while (
        process.poll() is None
        and time.monotonic() < deadline
        and not (log.exists() and log.read_text().count("\n") > 10)
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert count_frames(tmp_path / "out.mp4") == (30, 10)


def test_image_that_the_format_cannot_hold_is_reported(tmp_path):
    with pytest.raises(OSError, match="cannot hold 17000x4 pixels"):  # WebP ends at 16383.
        video.write_image(tmp_path / "wide.webp", np.zeros((4, 17000, 3), np.uint8))
    assert os.listdir(tmp_path) == []
