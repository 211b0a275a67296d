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
    """A running demo and the hands that type into it."""

    def __init__(self, screen, folder, *arguments):
        command = [sys.executable, str(ROOT / "webcam_demo.py"), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=folder, env=screen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.screen = screen
        self.window = self.xdotool("search", "--sync", "--onlyvisible", "--name", window.WINDOW).split()[-1]
        self.xdotool("windowfocus", "--sync", self.window)  # Without a window manager nobody else gives it the focus.

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
@pytest.mark.parametrize("key", ["q", "Escape"])
def test_key_ends_the_demo(demo, key):
    assert demo.process.poll() is None
    demo.press(key)
    status, stdout, stderr = demo.wait()
    assert (status, stderr) == (0, "") and stdout.startswith("face 1: ") and stdout.count("\n") == 1


@needs_screen
def test_closing_the_window_ends_the_demo(demo):
    ask_to_close(demo.screen["DISPLAY"], int(demo.window))
    assert demo.wait()[0] == 0


@needs_screen
def test_snapshot_is_what_the_window_shows_and_the_picture_has_the_windows_size(demo, tmp_path):
    """No toolbar takes room away: the window is as large as the photograph."""
    demo.press("s")
    size = re.findall(r"^(WIDTH|HEIGHT)=(\d+)$", demo.xdotool("getwindowgeometry", "--shell", demo.window), re.M)
    demo.press("q")
    status, stdout, _ = demo.wait()
    (snapshot,) = (tmp_path / "output").glob("snapshot-*.png")
    assert status == 0 and f"Saved {snapshot.relative_to(tmp_path)}" in stdout
    assert cv2.imread(str(snapshot)).shape == (600, 512, 3) and dict(size) == {"WIDTH": "512", "HEIGHT": "600"}


@needs_screen
def test_space_pauses_and_continues(screen, clip, tmp_path):
    running, log = Demo(screen, tmp_path, clip, "--log", "log.csv"), tmp_path / "log.csv"
    running.press("space")
    time.sleep(0.3)  # The frame under way ends.
    rows = log.read_text().count("\n")
    time.sleep(1)  # Ten frames of the clip.
    assert 1 < rows == log.read_text().count("\n") < 30
    running.press("space")
    assert running.wait()[0] == 0
    assert log.read_text().count("\n") == 31


@needs_screen
def test_m_mirrors(screen, clip, tmp_path):
    running = Demo(screen, tmp_path, clip, "--log", "log.csv")
    running.press("m")
    assert running.wait()[0] == 0
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    lefts = [int(row[3]) for row in rows if row[3]]
    assert max(lefts) - min(lefts) > 10  # The face is not in the middle of the picture.


class Source:
    live, many = True, False

    def latency(self):
        return 0.02


@pytest.fixture
def pictures(monkeypatch):
    """Without a screen: the list of pictures that would be shown, and the keys that will be pressed."""
    shown, keys = [], []
    for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord(keys.pop()) if keys else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1)
    return shown, keys


def gray_frame(still=False):
    return video.SourceFrame(np.full((360, 640, 3), 90, np.uint8), 0.0, "camera", 25.0, still)


def test_each_overlay_is_drawn_while_its_key_is_on(pictures, monkeypatch):
    monkeypatch.setattr(window, "HINT_SECONDS", -1)
    (shown, keys), opened, frame = pictures, window.Window(mirrored=False), gray_frame()
    bars = ([0.7, 0.3], ("Happy", "Sad"))
    keys[:] = "f"
    opened.show(frame.image, Source(), frame, bars, fps=30.0)
    with_rate, plain = shown[-2:]
    assert (with_rate != plain).any() and np.array_equal(plain, frame.image)
    for key, rows, columns in (("h", slice(0, 180), slice(0, 320)), ("b", slice(180, 360), slice(0, 320))):
        keys[:] = key
        opened.show(frame.image, Source(), frame, bars)
        changed = (shown[-1] != frame.image).any(axis=2)
        assert changed[rows, columns].sum() > 500 and changed.sum() == changed[rows, columns].sum()
        keys[:] = key
        opened.show(frame.image, Source(), frame, bars)
        assert np.array_equal(shown[-1], frame.image)


def test_stall_is_written_on_the_last_frame(pictures, monkeypatch):
    monkeypatch.setattr(window, "HINT_SECONDS", -1)
    (shown, keys), opened, frame, texts = pictures, window.Window(mirrored=False), gray_frame(), []
    monkeypatch.setattr(window, "put_notes", lambda _, lines: texts.append(lines))
    opened.stall("Camera 0")  # Before its first frame.
    assert shown == []
    keys[:] = "f"
    opened.show(frame.image, Source(), frame)
    opened.stall("Camera 0")
    assert texts[-1] == ["No picture from Camera 0; trying to open it again."] and not opened.closed


def test_line_of_keys_is_shown_for_the_first_seconds_and_no_frame_rate_on_a_still(pictures, monkeypatch):
    """A still stays until a key ends it, and is drawn again without the line."""
    monkeypatch.setattr(window, "HINT_SECONDS", 0.2)
    texts, opened = [], window.Window(mirrored=False)
    monkeypatch.setattr(window, "put_notes", lambda _, lines: texts.append(lines))
    monkeypatch.setattr(cv2, "waitKey", lambda _: time.sleep(0.02) or (-1 if len(texts) < 2 else ord("q")))
    source, frame = Source(), gray_frame(still=True)
    source.live = False
    opened.show(frame.image, source, frame, fps=30.0)
    assert texts == [["h: help, q: quit"], []] and opened.closed


def test_window_fits_the_screen_and_keeps_the_shape():
    assert window.window_size(640, 360) == (640, 360)
    assert window.window_size(3840, 2160) == (1280, 720)
    assert window.window_size(1000, 2000) == (360, 720)
    assert window.window_size(100_000, 1) == (1280, 1)
