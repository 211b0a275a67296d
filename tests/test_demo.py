"""The demo on real pictures, encoded videos and a live stream, with its files read back.

python -m pytest tests/test_demo.py
"""

import csv
import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
from conftest import ROOT

import results
import sources
import utils
import webcam_demo


@pytest.fixture
def headless(run_script, trained, tmp_path):
    """Runs the demo as a user without a display does, in an empty folder."""

    def run(*arguments, **options):
        environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
        return run_script("webcam_demo.py", "--model", trained[0], *arguments, cwd=tmp_path, env=environment, **options)

    return run


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def count_frames(path):
    """Decodes a video to its end; returns its frames, frames per second and the last frame."""
    capture, count, last = cv2.VideoCapture(str(path)), 0, None
    while True:
        ok, frame = capture.read()
        if not ok:
            return count, capture.get(cv2.CAP_PROP_FPS), last
        count, last = count + 1, frame


def test_a_video_is_labelled_frame_by_frame(headless, clip, tmp_path):
    finished = headless("--source", clip, "--no-display", "--output", "out.mp4", "--log", "log.csv")
    assert finished.returncode == 0, finished.stderr
    rows = read_csv(tmp_path / "log.csv")
    assert [int(row["frame"]) for row in rows] == list(range(30))
    assert [float(row["time_s"]) for row in rows] == pytest.approx([i / 10 for i in range(30)])
    seen, empty = rows[:20], rows[20:]
    assert {row["track"] for row in seen} == {"1"} and {row["label"] for row in seen} <= {*utils.EMOTIONS, "uncertain"}
    for row in seen:
        probabilities = [float(row[name]) for name in ("Angry", "Happy", "Sad", "Surprise", "Neutral")]
        assert sum(probabilities) == pytest.approx(1, abs=1e-3)
        assert float(row["confidence"]) == max(probabilities)
    assert all(not row["label"] and not row["x"] and not row["Happy"] for row in empty)
    assert count_frames(tmp_path / "out.mp4")[:2] == (30, 10)


def test_the_columns_are_those_that_readers_rely_on(headless, clip, tmp_path):
    headless("--source", clip, "--no-display", "--log", "log.csv")
    head = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert head == "frame,time_s,track,x,y,width,height,label,confidence,Angry,Happy,Sad,Surprise,Neutral"


def test_json_lines_hold_the_same_as_the_csv(headless, clip, tmp_path):
    for name in ("log.csv", "log.jsonl"):
        assert headless("--source", clip, "--no-display", "--log", name).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    texts = [{name: "" if value is None else str(value) for name, value in line.items()} for line in lines]
    assert texts == read_csv(tmp_path / "log.csv")
    assert isinstance(lines[0]["x"], int) and lines[-1]["label"] is None


def test_an_image_is_labelled_where_the_face_is(headless, portrait_path, tmp_path):
    finished = headless("--source", portrait_path, "--no-display", "--output", "out.png", "--log", "log.csv")
    assert finished.returncode == 0, finished.stderr
    (row,) = read_csv(tmp_path / "log.csv")
    x, y, width, height = (int(row[name]) for name in ("x", "y", "width", "height"))
    assert x < 260 < x + width and y < 210 < y + height  # The nose, read off the picture in pixels.
    before, after = cv2.imread(str(portrait_path)), cv2.imread(str(tmp_path / "out.png"))
    changed = (before.astype(int) - after).any(axis=-1)
    assert changed[y : y + height, x].mean() > 0.9  # The box's left side.
    assert not changed[y + height + 20 :].any()


def test_a_folder_gives_a_folder_and_names_its_files_in_the_log(headless, portrait, tmp_path):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "b.jpg"), portrait)
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), np.full((200, 300, 3), 80, np.uint8))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "._b.jpg").write_bytes(b"what a Mac leaves")
    finished = headless("--source", "photos", "--no-display", "--output", "labelled", "--log", "log.csv")
    assert finished.returncode == 0, finished.stderr
    rows = read_csv(tmp_path / "log.csv")
    assert [(row["file"], bool(row["label"])) for row in rows] == [("a.png", False), ("b.jpg", True)]
    assert list(rows[0])[0] == "file"
    assert sorted(os.listdir(tmp_path / "labelled")) == ["a.png", "b.jpg"]


def test_a_folder_of_videos_gives_one_log_and_a_video_for_each(headless, clip, tmp_path):
    (tmp_path / "films").mkdir()
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / "films" / name).write_bytes(clip.read_bytes())
    finished = headless("--source", "films", "--no-display", "--output", "labelled", "--log", "log.csv")
    assert finished.returncode == 0, finished.stderr
    rows = read_csv(tmp_path / "log.csv")
    assert [row["file"] for row in rows] == ["one.mp4"] * 30 + ["two.mp4"] * 30
    halves = [{name: row[name] for name in row if name not in ("file", "frame")} for row in rows]
    assert halves[:30] == halves[30:] and rows[30]["time_s"] == "0.0"
    assert [count_frames(tmp_path / "labelled" / name)[:2] for name in ("one.mp4", "two.mp4")] == [(30, 10)] * 2


def test_a_damaged_file_in_a_folder_is_named_and_the_others_are_done(headless, portrait, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(os.urandom(2000))
    (tmp_path / "photos" / "c.jpg").write_bytes(b"")
    (tmp_path / "photos" / "folder.jpg").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "d.jpg"), portrait)
    finished = headless("--source", "photos", "--no-display", "--log", "log.csv")
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1
    assert "a.jpg cannot be read" in finished.stderr and "1 more" in finished.stderr
    assert [row["file"] for row in read_csv(tmp_path / "log.csv")] == ["d.jpg"]


def test_an_image_may_have_a_file_address_and_what_cannot_be_written_is_told(headless, portrait_path, tmp_path):
    finished = headless("--source", portrait_path.as_uri(), "--no-display", "--output", "a.png")
    assert finished.returncode == 0 and (tmp_path / "a.png").exists()
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((100, 17000, 3), np.uint8))  # WebP ends at 16383.
    finished = headless("--source", "wide.png", "--no-display", "--output", "wide.webp")
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1 and "wide.webp" in finished.stderr
    assert "Wrote" not in finished.stdout


def test_a_written_video_holds_each_frame_until_the_next_one(tmp_path):
    """Ten frames a second; gray levels at 0, 0.1, 0.5 and, after a jump of the clock, 1000.5 seconds."""
    writer = results.VideoWriter(tmp_path / "out.avi", 10, (64, 48), 0.0)
    for time_s, level in ((0.0, 50), (0.1, 100), (0.5, 150), (1000.5, 200)):
        writer.write(np.full((48, 64, 3), level, np.uint8), time_s)
    writer.close()
    capture, levels = cv2.VideoCapture(str(tmp_path / "out.avi")), []
    while (read := capture.read())[0]:
        levels.append(round(float(read[1].mean()) / 50) * 50)
    assert levels[:6] == [50, 100, 100, 100, 100, 150]
    assert levels[6:] == [150] * (10 * int(results.LONGEST_GAP) - 1) + [200]


@pytest.mark.parametrize("fps", [29.8372, 66.667, 119.88012, 240.02])
def test_a_video_of_any_rate_can_be_written(tmp_path, fps):
    """Four frames, at the times that the rate announces."""
    writer = results.VideoWriter(tmp_path / "out.mp4", fps, (64, 48), 0.0)
    for number in range(4):
        writer.write(np.zeros((48, 64, 3), np.uint8), number / fps)
    writer.close()
    assert count_frames(tmp_path / "out.mp4")[:2] == (4, pytest.approx(fps, rel=1e-3))
    source = sources.open_source(str(tmp_path / "out.mp4"))
    assert len(list(source.frames())) == 4 and source.fps == pytest.approx(fps, rel=1e-3)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets no other process hold the size of a file")
@pytest.mark.parametrize("name", ["out.mp4", "out.avi", "out.mkv"])
def test_a_full_disk_is_told(trained, clip, tmp_path, name):
    command = f"ulimit -f 8; {sys.executable} {ROOT / 'webcam_demo.py'} --model {trained[0]} --source {clip}"
    finished = subprocess.run(
        ["bash", "-c", f"{command} --no-display --output {name}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 2 and f"{name} could not be completed" in finished.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can do without a display")
def test_without_arguments_camera_and_display_the_bundled_clip_is_labelled(headless, tmp_path):
    if cv2.VideoCapture(0).isOpened():
        pytest.skip("this machine has a camera")
    finished = headless()
    assert finished.returncode == 0, finished.stderr
    assert "No camera found" in finished.stdout
    assert "No display found" in finished.stdout
    frames, fps, _ = count_frames(tmp_path / "output" / "labelled-demo.mp4")
    original_frames, original_fps, _ = count_frames(sources.DEMO_CLIP)
    assert (frames, fps) == (original_frames, original_fps)


def test_the_benchmark_ends_with_one_json_object(headless, clip):
    finished = headless("--source", clip, "--no-display", "--benchmark")
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert set(result) == {"frames", "faces", "fps", "startup_s", "peak_memory_mb", "stages_ms"}
    assert result["frames"] == 30 and result["faces"] == 20 and result["fps"] > 0
    assert 0 < result["startup_s"] < 60
    assert all(0 < times["median"] <= times["p95"] for times in result["stages_ms"].values())
    assert set(result["stages_ms"]) == {"read", "detect", "classify", "draw"}


def test_the_frame_rate_leaves_out_the_time_before_the_first_frame():
    benchmark = webcam_demo.Benchmark()
    time.sleep(0.5)
    for _ in benchmark.time_reading(iter([("frame", 0.0, "clip")] * 5)):
        benchmark.count(0)
    assert benchmark.pace() > 20 and benchmark.fps() > 20


def test_the_demo_imports_neither_keras_nor_pandas_nor_matplotlib(clip, trained):
    program = (
        "import sys, webcam_demo;"
        f"status = webcam_demo.main(['--source', {str(clip)!r}, '--model', {str(trained[0])!r}, '--no-display']);"
        "print(status, sorted({'tensorflow', 'keras', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.stdout.splitlines()[-1] == "0 []", finished.stderr


def test_importing_a_script_does_nothing(tmp_path):
    program = "import train, evaluate, webcam_demo, sources, tracking, utils"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0 and finished.stdout == "" and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("97", ["Camera 97", "--source"]),
        ("missing.mp4", ["missing.mp4", "There is no"]),
        ("", ["There is no", "camera index"]),
        ("garbage.mp4", ["garbage.mp4", "cannot be read"]),
        ("garbage.jpg", ["garbage.jpg", "cannot be read"]),
        ("empty", ["empty", "holds none"]),
        ("http://127.0.0.1:1/video", ["127.0.0.1:1", "cannot be opened"]),
    ],
)
def test_a_source_that_cannot_be_read_is_one_line_and_status_2(headless, tmp_path, source, words):
    (tmp_path / "garbage.mp4").write_bytes(os.urandom(3000))
    (tmp_path / "garbage.jpg").write_bytes(os.urandom(3000))
    (tmp_path / "empty").mkdir()
    finished = headless("--source", source, "--no-display")
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1, finished.stderr
    for word in words:
        assert word in finished.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--output", "occupied/out.mp4"),
        ("--output", "out.xyz"),
        ("--log", "occupied/log.csv"),
        ("--model", "nowhere"),
        ("--min-confidence", "1.5"),
        ("--speed", "2"),
    ],
)
def test_a_bad_argument_is_one_line_and_status_2(headless, clip, tmp_path, arguments):
    (tmp_path / "occupied").write_text("a file where a folder would have to be")
    finished = headless("--source", clip, "--no-display", *arguments)
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1 and arguments[-1].split("/")[0] in finished.stderr


def test_the_source_is_never_overwritten(headless, clip):
    before = clip.read_bytes()
    finished = headless("--source", clip, "--no-display", "--output", clip)
    assert finished.returncode == 2 and "different files" in finished.stderr
    assert clip.read_bytes() == before


def test_a_file_of_a_folder_is_never_overwritten(headless, portrait_path, tmp_path):
    """A slip, --log for --output, and a photograph that has the name of the log's picture."""
    photographs = [tmp_path / "a.jpg", tmp_path / "seen-timeline.png"]
    for photograph in photographs:
        photograph.write_bytes(portrait_path.read_bytes())
    for log in ("a.jpg", "seen.csv"):
        finished = headless("--source", tmp_path, "--no-display", "--log", tmp_path / log)
        assert finished.returncode == 2 and "different files" in finished.stderr
    (tmp_path / "chosen").mkdir()
    os.link(photographs[0], tmp_path / "chosen" / "a.jpg")
    finished = headless("--source", tmp_path / "chosen", "--no-display", "--output", tmp_path)
    assert finished.returncode == 2 and "different files" in finished.stderr
    assert all(photograph.read_bytes() == portrait_path.read_bytes() for photograph in photographs)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_output_of_a_folder_is_no_file(headless, portrait_path, tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(portrait_path, tmp_path / "photos" / "saved.jfif")
    finished = headless("--source", "photos", "--no-display", "--output", "out.mp4")
    assert finished.returncode == 2 and "must be a folder" in finished.stderr
    finished = headless("--source", "photos", "--no-display", "--output", "out")
    assert finished.returncode == 0 and cv2.imread(str(tmp_path / "out" / "saved.jfif")).shape == (600, 512, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows allows no colon in a file's name")
def test_a_name_with_a_colon_is_no_address(headless, clip, tmp_path):
    shutil.copy(clip, tmp_path / "12:30.mp4")
    finished = headless("--source", "12:30.mp4", "--no-display", "--output", "12:31.mp4")
    assert finished.returncode == 0, finished.stderr
    assert count_frames(tmp_path / "12:31.mp4")[0] == 30


def test_the_picture_of_a_log_overwrites_nothing(headless, portrait_path, tmp_path):
    photograph = tmp_path / "seen-timeline.png"
    photograph.write_bytes(portrait_path.read_bytes())
    finished = headless("--source", photograph, "--no-display", "--log", tmp_path / "seen.csv")
    assert finished.returncode == 2 and "different files" in finished.stderr
    assert photograph.read_bytes() == portrait_path.read_bytes() and not (tmp_path / "seen.csv").exists()


def test_a_video_that_ends_in_garbage_keeps_what_was_read(headless, portrait, tmp_path):
    """In an AVI the frames follow each other, so the first half of one is half a video with a whole header."""
    writer = cv2.VideoWriter(str(tmp_path / "whole.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, portrait.shape[1::-1])
    for _ in range(40):
        writer.write(portrait)
    writer.release()
    whole = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2] + os.urandom(2000))
    finished = headless("--source", "cut.avi", "--no-display", "--output", "out.mp4", "--log", "log.csv")
    assert finished.returncode == 2
    assert "cut.avi ends after frame" in finished.stderr and finished.stderr.count("\n") == 1
    frames, _, _ = count_frames(tmp_path / "out.mp4")
    assert 10 < frames < 40 and len(read_csv(tmp_path / "log.csv")) == frames


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to another process")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ctrl_c_and_kill_leave_playable_files(trained, tmp_path, portrait, sent):
    writer = cv2.VideoWriter(str(tmp_path / "long.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25, portrait.shape[1::-1])
    for _ in range(800):
        writer.write(portrait)
    writer.release()
    command = [sys.executable, str(ROOT / "webcam_demo.py"), "--model", str(trained[0]), "--source", "long.mp4"]
    command += ["--no-display", "--output", "out.mp4", "--log", "log.csv"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "log.csv", time.monotonic() + 30
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 10):
        time.sleep(0.02)
    process.send_signal(getattr(signal, sent))
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in stderr
    frames, _, _ = count_frames(tmp_path / "out.mp4")
    assert 10 <= frames < 800 and abs(len(read_csv(log)) - frames) <= 1


class MjpegStream(http.server.BaseHTTPRequestHandler):
    """Serves a portrait as a motion JPEG stream; the server's `frames` says when it breaks off."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for _ in range(self.server.frames):
            jpeg = self.server.jpeg
            self.wfile.write(
                b"--frame\r\nContent-Type: image/jpeg\r\n" + f"Content-Length: {len(jpeg)}\r\n\r\n".encode()
            )
            self.wfile.write(jpeg + b"\r\n")
            time.sleep(0.04)
        self.server.frames = 0  # From now on, there is nothing.

    def log_message(self, *_):
        pass


@pytest.fixture
def stream(portrait):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), MjpegStream)
    server.jpeg, server.frames = cv2.imencode(".jpg", portrait)[1].tobytes(), 50
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/video.mjpg"
    server.shutdown()


def test_the_address_of_a_photograph_gives_one_frame(portrait_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=portrait_path.parent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = sources.open_source(f"http://127.0.0.1:{server.server_port}/{portrait_path.name}")
    frames = list(source.frames())
    server.shutdown()
    assert len(frames) == 1 and frames[0][0].shape == (600, 512, 3) and source.problem is None


def test_what_a_stream_is_written_to_is_named_by_its_address_without_the_password(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    source = sources.LiveCapture(Camera(), f"http://user@127.0.0.1/hall?token={'x' * 300}")
    args = webcam_demo.parse_args([])
    assert webcam_demo.open_output(args, source, None).path == results.OUTPUT_DIR / "labelled-hall.mp4"
    source.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can do without a display")
@pytest.mark.parametrize("display", [{"DISPLAY": ":77"}, {"WAYLAND_DISPLAY": "wayland-77"}])
def test_a_display_that_is_not_there_is_none(run_script, trained, portrait_path, tmp_path, display):
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = ("webcam_demo.py", "--model", trained[0], "--source", portrait_path)
    finished = run_script(*command, cwd=tmp_path, env=environment | display)
    assert finished.returncode == 0 and "No display found" in finished.stdout, finished.stderr
    assert len(list((tmp_path / "output").glob("*.png"))) == 1


def test_a_live_stream_is_labelled_and_its_end_is_a_sentence(headless, stream, tmp_path):
    finished = headless("--source", stream, "--no-display", "--output", "out.mp4", "--log", "log.csv")
    assert finished.returncode == 2
    assert "gave no more frames" in finished.stderr and finished.stderr.count("\n") == 1
    rows = read_csv(tmp_path / "log.csv")
    assert len(rows) > 5 and {row["label"] for row in rows if row["label"]} and all(row["utc"] for row in rows)
    times = [float(row["time_s"]) for row in rows]
    assert times == sorted(times)
    frames, fps, _ = count_frames(tmp_path / "out.mp4")
    assert frames / fps == pytest.approx(times[-1] - times[0], abs=0.2)


class Camera:
    """Counts upwards, a hundred frames a second; `script` says what else happens before the frame of a number.

    A number of seconds is a stall, False a read that fails, an exception one that raises it.
    """

    def __init__(self, script=()):
        self.number, self.script = 0, dict(script)

    def read(self):
        event = self.script.pop(self.number + 1, 0.01)
        if isinstance(event, Exception):
            raise event
        time.sleep(event)
        if event is False:
            return False, None
        self.number += 1
        return True, np.full((2, 2, 3), self.number % 250, np.uint8)

    def get(self, _):
        return 0.0

    def isOpened(self):
        return True

    def release(self):
        pass


def numbers(source, count):
    """Returns the next frames' numbers, None where the source had no news."""
    frames = (frame for frame, _, _ in source.frames())
    return [None if frame is None else int(frame[0, 0, 0]) for _, frame in zip(range(count), frames, strict=False)]


def test_a_slow_reader_of_a_live_stream_gets_the_newest_frame():
    camera = Camera()
    source = sources.LiveCapture(camera, 0)
    ages = []
    for _, (frame, _, _) in zip(range(6), source.frames(), strict=False):
        if frame is not None:
            ages.append(camera.number - int(frame[0, 0, 0]))
        time.sleep(0.1)
    source.close()
    assert len(ages) >= 5 and max(ages) <= 10  # A hundred milliseconds.


def test_a_stalled_stream_says_so_at_once_and_goes_on(monkeypatch):
    monkeypatch.setattr(sources, "PATIENCE", 0.1)
    source = sources.LiveCapture(Camera({3: 0.5}), 0)
    seen = numbers(source, 12)
    source.close()
    assert seen.count(None) >= 3  # Half a second, told every tenth of it.
    after = seen[len(seen) - seen[::-1].index(None) :]
    assert after and after[0] == 3 and source.problem is None


@pytest.mark.parametrize("failure", [False, cv2.error("the driver")])
def test_a_camera_that_was_unplugged_is_opened_again(monkeypatch, failure):
    """Its reads fail after three frames; the second try to open it finds it again, which counts from 1."""
    opened = [Camera({1: False}), Camera()]
    monkeypatch.setattr(sources, "open_capture", lambda name: opened.pop(0))
    monkeypatch.setattr(sources, "RETRY_PAUSES", (0.05, 0.1, 0.2))
    source = sources.LiveCapture(Camera({4: failure}), 0)
    seen = [number for number in numbers(source, 10) if number]
    source.close()
    assert opened == [] and seen[0] <= 3 and 1 in seen[1:]


def test_a_camera_that_raises_at_once_is_none(monkeypatch):
    monkeypatch.setattr(sources, "open_capture", lambda name: Camera({1: cv2.error("the driver")}))
    assert sources.open_camera(0) is None


def test_a_camera_that_stays_away_ends_with_a_sentence(monkeypatch):
    monkeypatch.setattr(sources, "open_capture", lambda name: Camera({1: False}))
    monkeypatch.setattr(sources, "RETRY_PAUSES", (0.01, 0.02))
    source = sources.LiveCapture(Camera({2: False}), 0)
    assert [number for number in numbers(source, 1000) if number] == [1]
    assert source.problem == ("Camera 0 gave no more frames and could not be opened again. Is it still connected?")
