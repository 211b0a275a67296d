"""The window, driven on a virtual screen by real key strokes.

python -m pytest tests/test_window.py     (needs Linux with Xvfb and xdotool)
"""

import ctypes
import os
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from conftest import ROOT

import window

pytestmark = pytest.mark.skipif(not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="needs Xvfb and xdotool")


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


def ask_to_close(display_name, window):
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
    message = ClientMessage(type=33, window=window, message_type=protocols, format=32)  # 33 is ClientMessage.
    message.data[0] = delete
    x11.XSendEvent(display, ctypes.c_ulong(window), 0, ctypes.c_long(0), ctypes.byref(message))
    x11.XCloseDisplay(display)


class Demo:
    """A running demo and the hands that type into it."""

    def __init__(self, screen, folder, *arguments):
        command = [sys.executable, str(ROOT / "webcam_demo.py"), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=folder, env=screen, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.screen = screen
        found = self.xdotool("search", "--sync", "--onlyvisible", "--name", window.WINDOW)
        self.window = found.split()[-1]
        self.xdotool("windowfocus", "--sync", self.window)  # Without a window manager nobody else gives it the focus.

    def xdotool(self, *words):
        finished = subprocess.run(["xdotool", *words], env=self.screen, capture_output=True, text=True, timeout=20)
        return finished.stdout

    def press(self, key):
        self.xdotool("key", key)
        time.sleep(0.2)

    def wait(self):
        stdout, stderr = self.process.communicate(timeout=20)
        return self.process.returncode, stdout, stderr


@pytest.fixture
def demo(screen, trained, portrait_path, tmp_path):
    """The demo showing the photograph, which stays until a key ends it."""
    running = Demo(screen, tmp_path, "--source", portrait_path, "--model", trained[0])
    yield running
    running.process.kill()


@pytest.mark.parametrize("key", ["q", "Escape"])
def test_a_key_ends_the_demo(demo, key):
    assert demo.process.poll() is None
    demo.press(key)
    assert demo.wait()[0] == 0


def test_closing_the_window_ends_the_demo(demo):
    ask_to_close(demo.screen["DISPLAY"], int(demo.window))
    assert demo.wait()[0] == 0


def test_a_snapshot_is_what_the_window_shows(demo, tmp_path):
    demo.press("s")
    demo.press("q")
    status, stdout, _ = demo.wait()
    (snapshot,) = (tmp_path / "output").glob("snapshot-*.png")
    assert status == 0 and f"Saved {snapshot.relative_to(tmp_path)}" in stdout
    assert cv2.imread(str(snapshot)).shape == (600, 512, 3)


def test_space_pauses_and_goes_on(screen, trained, clip, tmp_path):
    """The clip lasts three seconds: after a pause of four it still has to be played."""
    running = Demo(screen, tmp_path, "--source", clip, "--model", trained[0], "--log", "log.csv")
    running.press("space")
    time.sleep(4)
    assert running.process.poll() is None
    rows = (tmp_path / "log.csv").read_text().count("\n")
    assert rows < 30
    running.press("space")
    assert running.wait()[0] == 0
    assert (tmp_path / "log.csv").read_text().count("\n") == 31


def test_m_mirrors(screen, trained, clip, tmp_path):
    running = Demo(screen, tmp_path, "--source", clip, "--model", trained[0], "--log", "log.csv")
    running.press("m")
    assert running.wait()[0] == 0
    lefts = [int(line.split(",")[3]) for line in (tmp_path / "log.csv").read_text().splitlines()[1:21]]
    assert max(lefts) - min(lefts) > 10  # The face is not in the middle of the picture.


class Source:
    live, many, name = True, False, "http://camera"


def test_each_overlay_is_drawn_while_its_key_is_on_and_a_stall_is_told(monkeypatch):
    """Without a screen: what would be shown is kept, keys come from a list."""
    shown, keys = [], []
    for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, frame: shown.append(frame))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord(keys.pop()) if keys else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1)
    opened, frame = window.Window(mirrored=False), np.full((360, 640, 3), 90, np.uint8)
    boxes, probabilities = np.array([[300, 100, 90, 90]]), np.array([[0.7, 0.3]], np.float32)
    opened.describe(boxes, probabilities, ("Happy", "Sad"), fps=30.0, latency=0.02)
    keys[:] = "f"
    opened.show(frame, Source, 0.0, "camera")
    with_rate, plain = shown[-2:]
    assert (with_rate != plain).any() and np.array_equal(plain, frame)
    for key, rows, columns in (("h", slice(0, 180), slice(0, 320)), ("b", slice(180, 360), slice(0, 320))):
        keys[:] = key
        opened.show(frame, Source, 0.0, "camera")
        changed = (shown[-1] != frame).any(axis=2)
        assert changed[rows, columns].sum() > 500 and changed.sum() == changed[rows, columns].sum()
        keys[:] = key
        opened.show(frame, Source, 0.0, "camera")
        assert np.array_equal(shown[-1], frame)
    opened.stall("http://camera")
    assert (shown[-1] != frame).any() and not opened.closed
