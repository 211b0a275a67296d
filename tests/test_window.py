"""The window, driven on a virtual screen by real key strokes.

python -m pytest tests/test_window.py     (needs Linux with Xvfb and xdotool)
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from conftest import ROOT

import utils
import video
import window

needs_screen = pytest.mark.skipif(
    not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="needs Xvfb and xdotool"
)


@pytest.fixture(scope="module")
def screen():
    """A virtual screen; returns the environment that shows windows on it."""
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x960x24"]
    server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as numbers:
        number = numbers.readline().strip()
    yield {**os.environ, "DISPLAY": f":{number}"}
    server.terminate()
    server.wait()


def ask_to_close(display_name, window_id):
    """Sends a window what its close button sends: a client message (ICCCM 4.2.8.1), which xdotool cannot."""

    class ClientMessage(ctypes.Structure):
        _fields_ = [
            ("type", ctypes.c_int),
            ("serial", ctypes.c_ulong),
            ("send_event", ctypes.c_int),
            ("display", ctypes.c_void_p),
            ("window", ctypes.c_ulong),
            ("message_type", ctypes.c_ulong),
            ("format", ctypes.c_int),
            ("data", ctypes.c_long * 5),
            ("padding", ctypes.c_long * 24),  # XSendEvent reads a whole XEvent.
        ]

    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype = ctypes.c_void_p
    x11.XInternAtom.restype = ctypes.c_ulong
    display = ctypes.c_void_p(x11.XOpenDisplay(display_name.encode()))
    protocols, delete = (x11.XInternAtom(display, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW"))
    message = ClientMessage(type=33, window=window_id, message_type=protocols, format=32)  # 33 is ClientMessage.
    message.data[0] = delete
    x11.XSendEvent(display, ctypes.c_ulong(window_id), 0, ctypes.c_long(0), ctypes.byref(message))
    x11.XCloseDisplay(display)


class Demo:
    """A running demo, controlled by xdotool."""

    def __init__(self, screen, folder, *arguments):
        command = [sys.executable, str(ROOT / "webcam_demo.py"), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=folder, env=screen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.screen = screen
        self.window = self.xdotool("search", "--sync", "--onlyvisible", "--name", window.TITLE).split()[-1]
        self.xdotool("windowfocus", "--sync", self.window)  # Without a window manager no window gets the focus.

    def xdotool(self, *words):
        return subprocess.run(["xdotool", *words], env=self.screen, capture_output=True, text=True, timeout=20).stdout

    def press(self, key):
        self.xdotool("key", key)
        time.sleep(0.2)

    def wait(self):
        stdout, stderr = self.process.communicate(timeout=20)
        return self.process.returncode, stdout, stderr


@pytest.fixture
def demo(screen, portrait_path, tmp_path):
    """The demo showing the photograph, which stays until a key ends it."""
    running = Demo(screen, tmp_path, portrait_path)
    yield running
    running.process.kill()


@needs_screen
def test_escape_ends_the_demo(demo):
    assert demo.process.poll() is None
    demo.press("Escape")
    status, stdout, stderr = demo.wait()
    assert (status, stderr) == (0, "") and stdout.startswith("face 1: ") and stdout.count("\n") == 1


@needs_screen
def test_closing_the_window_ends_the_demo(demo):
    ask_to_close(demo.screen["DISPLAY"], int(demo.window))
    assert demo.wait()[0] == 0


@needs_screen
def test_s_saves_the_frame_without_notes_in_the_windows_size_and_q_ends_the_demo(demo, tmp_path):
    """No toolbar takes room away: the window is as large as the photograph."""
    wait_for(lambda: demo.press("s") or any(tmp_path.glob("output/snapshot-*.png")))  # Not before the first frame.
    size = re.findall(r"^(WIDTH|HEIGHT)=(\d+)$", demo.xdotool("getwindowgeometry", "--shell", demo.window), re.M)
    demo.press("q")
    status, stdout, stderr = demo.wait()
    snapshot = min(tmp_path.glob("output/snapshot-*.png"))
    assert (status, stderr) == (0, "") and f"Saved {snapshot.relative_to(tmp_path)}" in stdout
    picture = cv2.imread(str(snapshot))
    assert picture.shape == (600, 512, 3) and dict(size) == {"WIDTH": "512", "HEIGHT": "600"}
    assert not (picture[:10, :10] == utils.DARK).all(axis=-1).any()  # The hint was shown there.


SLOW_FRAME = """
import sys, time, window
class Source:
    kind, title = "video", "film.mp4"
with window.Window(Source()) as opened:
    print("ready", flush=True)
    opened.call(lambda: sys.stdin.readline() and time.sleep(1))
    print(sorted(opened.overlays), opened.mirrored, opened.paused, opened.closed)
"""


@needs_screen
def test_keys_pressed_quickly_while_a_frame_is_labeled_are_not_lost(screen, tmp_path):
    """Overlays b and h on and f off, mirrored, paused, b off and on, while the only frame waits for them."""
    environment = {**screen, "PYTHONPATH": str(ROOT)}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SLOW_FRAME], **streams, env=environment) as demo:
        assert demo.stdout.readline() == "ready\n"
        xdotool = ["xdotool", "search", "--sync", "--onlyvisible", "--name", window.TITLE, "windowfocus", "--sync"]
        keys = ["b", "f", "h", "m", "space", "b", "b"]
        subprocess.run([*xdotool, "key", "--delay", "50", *keys], env=environment, check=True, timeout=20)
        assert demo.communicate("sent\n", timeout=20)[0] == "['b', 'h'] True True False\n"


@pytest.fixture
def long_video(tmp_path, portrait):
    """Ten seconds of a face that is not in the middle of the picture."""
    writer = cv2.VideoWriter(str(tmp_path / "long.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, portrait.shape[1::-1])
    for _ in range(250):
        writer.write(portrait)
    writer.release()
    return tmp_path / "long.mp4"


@needs_screen
def test_space_pauses_and_continues_and_m_mirrors(screen, long_video, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")  # Drawing the timeline takes longer than the demo.
    running = Demo({**screen, "PYTHONPATH": str(tmp_path)}, tmp_path, long_video, "--log", "log.csv")
    wait_for(lambda: len(read_lines(tmp_path)) > 1)
    running.press("space")
    time.sleep(0.3)  # The frame under way ends.
    lines = read_lines(tmp_path)
    time.sleep(0.5)  # Twelve frames of the video.
    assert len(lines) == len(read_lines(tmp_path)) < 250
    running.press("m")
    running.press("space")
    wait_for(lambda: len(read_lines(tmp_path)) > len(lines) + 5)
    running.press("q")
    assert running.wait()[0] == 0
    rows = [line.split(",") for line in read_lines(tmp_path)]
    lefts = [int(row[3]) for row in rows if row[3]]
    assert [int(row[0]) for row in rows] == list(range(len(rows))) and len(lines) < len(rows) < 250
    assert max(lefts) - min(lefts) > 10


def read_lines(folder):
    """Returns the lines of the log without its header."""
    return (folder / "log.csv").read_text().splitlines()[1:] if (folder / "log.csv").exists() else []


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


class Source:
    kind, title = "stream", "Camera 0"

    def __init__(self):
        self.started = time.perf_counter() - 0.02


@pytest.fixture
def pictures(monkeypatch):
    """Without a screen: the list of pictures that would be shown, and the keys that will be pressed."""
    shown, keys = [], []
    for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(window, "wait_key", lambda _: ord(keys.pop()) if keys else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1)
    return shown, keys


def gray_frame(still=False):
    return video.SourceFrame(np.full((360, 640, 3), 90, np.uint8), 0.0, "camera", 25.0, still)


def test_minimized_window_on_macos_is_not_a_closed_one(pictures, monkeypatch):
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 0)
    assert not window.is_visible("Emotions")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert window.is_visible("Emotions")


def test_each_overlay_is_drawn_while_its_key_is_on(pictures, monkeypatch):
    monkeypatch.setattr(window, "HINT_SECONDS", -1)
    (shown, keys), opened, frame = pictures, window.Window(Source()), gray_frame()
    faces = [utils.Face((40, 40, 90, 90), "Happy", 0.7, {"Happy": 0.7, "Sad": 0.3})]
    keys[:] = "f"
    opened.show(frame.image, frame, faces, fps=30.0)
    with_rate, plain = shown[-2:]
    assert (with_rate != plain).any() and np.array_equal(plain, frame.image)
    for key, rows, columns in (("h", slice(0, 180), slice(0, 320)), ("b", slice(180, 360), slice(0, 320))):
        keys[:] = key
        opened.show(frame.image, frame, faces, fps=30.0)
        changed = (shown[-1] != frame.image).any(axis=2)
        assert changed[rows, columns].sum() > 500 and changed.sum() == changed[rows, columns].sum()
        keys[:] = key
        opened.show(frame.image, frame, faces, fps=30.0)
        assert np.array_equal(shown[-1], frame.image)


def test_stall_is_written_on_the_last_frame(pictures, monkeypatch):
    monkeypatch.setattr(window, "HINT_SECONDS", -1)
    (shown, keys), opened, frame, texts = pictures, window.Window(Source()), gray_frame(), []
    monkeypatch.setattr(window, "put_lines", lambda _, lines: texts.append(lines))
    opened.stall()  # Before its first frame.
    assert shown == []
    keys[:] = "f"
    opened.show(frame.image, frame, [], fps=30.0)
    opened.stall()
    assert texts[-1] == ["No picture from Camera 0; trying to open it again."] and not opened.closed


def test_live_source_shows_its_frame_rate_and_latency(pictures, monkeypatch):
    """The frame was taken 20 ms after the source was opened, more than 80 ms ago."""
    monkeypatch.setattr(window, "HINT_SECONDS", -1)
    source, texts = Source(), []
    source.started -= 0.08
    monkeypatch.setattr(window, "put_lines", lambda _, lines: texts.append(lines))
    frame = gray_frame()._replace(time_s=0.02)
    window.Window(source).show(frame.image, frame, [], fps=30.0)
    behind = re.fullmatch(r"30 frames/s, (\d+) ms behind", *texts[-1])
    assert 80 <= int(behind.group(1)) < 1000


def test_line_of_keys_is_shown_for_the_first_seconds_and_no_frame_rate_on_a_still(pictures, monkeypatch):
    """A still stays until a key ends it, and is drawn again without the line."""
    monkeypatch.setattr(window, "HINT_SECONDS", 0.2)
    source, texts = Source(), []
    source.kind = "image"
    opened = window.Window(source)
    monkeypatch.setattr(window, "put_lines", lambda _, lines: texts.append(lines))
    monkeypatch.setattr(window, "wait_key", lambda _: time.sleep(0.02) or (-1 if len(texts) < 2 else ord("q")))
    frame = gray_frame(still=True)
    opened.show(frame.image, frame, [], fps=30.0)
    assert texts == [["h: help, q: quit"], []] and opened.closed


def test_help_of_a_single_image_leaves_out_what_works_from_the_next_frame_on(pictures, monkeypatch):
    texts = []
    monkeypatch.setattr(window, "put_lines", lambda _, lines: texts.append(lines))
    for kind in ("image", "folder"):
        source, keys = Source(), iter("hq")
        source.kind = kind
        monkeypatch.setattr(window, "wait_key", lambda _, keys=keys: ord(next(keys)))
        frame = gray_frame(still=True)
        window.Window(source).show(frame.image, frame, [], fps=30.0)
        assert "s: snapshot" in texts[-1] and ("m: mirror" in texts[-1]) == (kind == "folder")


def test_paused_is_shown_while_paused(pictures, monkeypatch):
    """Space pauses the first frame of a video, which is due at once; another one continues."""
    monkeypatch.setattr(window, "HINT_SECONDS", -1)
    (_, keys), source, texts = pictures, Source(), []
    source.kind = "video"
    monkeypatch.setattr(window, "put_lines", lambda _, lines: texts.append(lines))
    keys[:] = "  "
    frame = gray_frame()
    window.Window(source).show(frame.image, frame, [], fps=30.0)
    assert texts == [["30 frames/s"], [window.PAUSED, "30 frames/s"], ["30 frames/s"]]


def test_note_after_a_snapshot_vanishes(pictures, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(window, "HINT_SECONDS", -1)
    monkeypatch.setattr(window, "SAVED_SECONDS", 0.1)
    monkeypatch.chdir(tmp_path)
    (_, keys), source, texts = pictures, Source(), []
    source.kind = "image"
    monkeypatch.setattr(window, "put_lines", lambda _, lines: texts.append(lines))
    monkeypatch.setattr(
        window,
        "wait_key",
        lambda _: time.sleep(0.02) or (ord("q") if len(texts) > 2 else ord(keys.pop()) if keys else -1),
    )
    keys[:] = "s"
    frame = gray_frame(still=True)
    window.Window(source).show(frame.image, frame, [], fps=30.0)
    assert texts == [[], ["snapshot saved"], []] and len(list(tmp_path.glob("output/snapshot-*.png"))) == 1
    assert capsys.readouterr().out.startswith("Saved output")


def test_snapshot_that_cannot_be_written_says_why(monkeypatch, tmp_path, capsys):
    (tmp_path / "output").touch()
    monkeypatch.chdir(tmp_path)
    note = window.save_snapshot(np.zeros((20, 20, 3), np.uint8))
    assert "cannot be written" in note and note in capsys.readouterr().out


def test_bars_name_the_face_if_there_are_several(pictures):
    faces = [utils.Face((40, 40, 90, 90), "Happy", 0.7, {"Happy": 0.7, "Sad": 0.3}, track=3)]
    heights = []
    for numbered in (False, True):
        image = np.full((360, 640, 3), 90, np.uint8)
        window.put_bars(image, faces[0], numbered)
        heights.append((image != 90).any(axis=(1, 2)).sum())
        happy, sad = (
            (image == utils.EMOTION_COLORS[name][::-1]).all(axis=-1).any(axis=0).sum() for name in ("Happy", "Sad")
        )
        assert happy / sad == pytest.approx(7 / 3, rel=0.05)
    assert heights[1] == heights[0] * 3 / 2


def test_closed_window_draws_no_further_frame(pictures):
    """Otherwise it would open again."""
    (shown, keys), opened, frame = pictures, window.Window(Source()), gray_frame()
    keys[:] = "q"
    assert opened.call(lambda: time.sleep(0.1) or 7) == 7 and opened.closed
    opened.show(frame.image, frame, [], fps=30.0)
    opened.stall()
    assert shown == []


def test_error_in_a_called_function_is_raised(pictures):
    with window.Window(Source()) as opened, pytest.raises(ZeroDivisionError):
        opened.call(lambda: 1 // 0)


def test_window_fits_the_screen_and_keeps_the_shape():
    assert window.window_size(640, 360) == (640, 360)
    assert window.window_size(3840, 2160) == (1280, 720)
    assert window.window_size(1000, 2000) == (360, 720)
    assert window.window_size(100_000, 1) == (1280, 1)
