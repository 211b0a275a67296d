"""The demo as a user runs it: on real pictures, encoded videos and a live stream, with its files read back.

python -m pytest tests/test_webcam_demo.py
"""

import contextlib
import csv
import fractions
import http.server
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pillow_heif
import pytest
from conftest import ROOT
from PIL import Image

import emotion_log
import utils
import video
import webcam_demo

DEMO = [sys.executable, str(ROOT / "webcam_demo.py")]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can do without a display")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files, names and signals")
NO_DISPLAY = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}


@pytest.fixture
def headless(run_script, tmp_path):
    """Runs the demo as a user without a display does, in an empty folder; returns the finished process."""

    def run(*arguments, env=NO_DISPLAY, **options):
        return run_script("webcam_demo.py", *arguments, cwd=tmp_path, env=env, **options)

    return run


@pytest.fixture(scope="module")
def without_matplotlib(tmp_path_factory):
    """An environment in which the timeline is not drawn, because that takes longer than the demo."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "matplotlib.py").write_text("raise ImportError")
    return {**NO_DISPLAY, "PYTHONPATH": str(folder)}


@pytest.fixture
def demo(tmp_path, monkeypatch, capsys):
    """Does the same within this process, which is faster, but does not show what OpenCV itself prints."""
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        try:
            status = webcam_demo.main([*map(str, arguments)])
        except SystemExit as ended:  # From argparse.
            status = ended.code
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return run


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def count_frames(path):
    """Decodes a video to its end; returns its frames and its frames per second."""
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.read()[0]:
        count += 1
    return count, capture.get(cv2.CAP_PROP_FPS)


# ---------------------------------------------------------------------------------------------------------------------
# What it writes and prints
# ---------------------------------------------------------------------------------------------------------------------


def test_two_sources_are_refused_with_the_next_step(headless):
    finished = headless("a.jpg", "b.jpg")
    assert finished.returncode == 2
    assert "arguments: b.jpg. Give one SOURCE: for several files, name their folder." in finished.stderr


def test_video_is_labeled_frame_by_frame(headless, clip, tmp_path, without_matplotlib):
    finished = headless(clip, "--no-display", "--output", "out.mp4", "--log", "log.csv", env=without_matplotlib)
    assert finished.returncode == 0, finished.stderr
    rows = read_csv(tmp_path / "log.csv")
    head = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert head == "frame,time_s,track,x,y,width,height,label,confidence,Angry,Happy,Sad,Surprise,Neutral,angle,held"
    assert [float(row["time_s"]) for row in rows] == pytest.approx([int(row["frame"]) / 10 for row in rows])
    assert {int(row["frame"]) for row in rows} == set(range(30))
    faces = [row for row in rows if row["label"]]
    assert {int(row["frame"]) for row in faces} >= set(range(20)) and {row["track"] for row in faces} == {"1"}
    for row in faces:
        probabilities = [float(row[name]) for name in ("Angry", "Happy", "Sad", "Surprise", "Neutral")]
        assert sum(probabilities) == pytest.approx(1, abs=1e-3) and float(row["confidence"]) == max(probabilities)
    assert all(not row["x"] and not row["Happy"] for row in rows if not row["label"])
    assert count_frames(tmp_path / "out.mp4") == (30, 10)
    assert re.search(r"^30 frames, \d+ faces, [\d.]+ frames/s\.$", finished.stdout, re.MULTILINE)


def test_image_prints_one_line_per_face_where_the_face_is(demo, portrait_path, tmp_path):
    finished = demo(portrait_path, "--no-display", "--output", "out.png", "--log", "log.csv")
    assert finished.returncode == 0, finished.stderr
    (row,) = read_csv(tmp_path / "log.csv")
    x, y, width, height = (int(row[name]) for name in ("x", "y", "width", "height"))
    assert x < 260 < x + width and y < 210 < y + height  # The nose, read off the picture in pixels.
    confidence = f"{float(row['confidence']):.0%}"
    line = f"face 1: {row['label']} {confidence}, x {x}, y {y}, width {width}, height {height}"
    assert finished.stdout.splitlines()[0] == line and "frames/s" not in finished.stdout
    before, after = cv2.imread(str(portrait_path)), cv2.imread(str(tmp_path / "out.png"))
    changed = (before.astype(int) - after).any(axis=-1)
    assert changed[y : y + height, x].mean() > 0.9  # The box's left side.
    assert not changed[y + height + 20 :].any()


def test_small_square_portrait_is_a_face_as_a_whole(demo, portrait, tmp_path):
    face = cv2.resize(portrait[78:250, 116:288], (48, 48), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "face.png"), face)
    finished = demo("face.png", "--no-display")
    assert finished.returncode == 0, finished.stderr
    assert re.match(r"face 1: \w+ \d+%, x 0, y 0, width 48, height 48, the image as a whole\n", finished.stdout)


@pytest.mark.parametrize("name", ["photo.avif", "photo.heic", "photo.tga", "photo"])
def test_every_kind_of_image_prints_its_faces_and_is_written(demo, portrait, tmp_path, name):
    pillow_heif.register_heif_opener()
    Image.fromarray(portrait[..., ::-1]).save(tmp_path / name, None if "." in name else "ppm")
    finished = demo(name, "--no-display", "--output", "out.png")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("face 1: ") and cv2.imread(str(tmp_path / "out.png")).shape == portrait.shape


def test_frames_of_the_log_are_those_of_the_output(demo, portrait, tmp_path):
    """Of a screen recording, most of whose frames come at once."""
    times = [0, 0.02, 0.04, 0.06, 0.5, 0.52, 3.0, 60.0]
    with av.open(str(tmp_path / "a.mkv"), "w") as output:
        stream = output.add_stream("libx264", 25)
        stream.height, stream.width, stream.pix_fmt = *portrait.shape[:2], "yuv420p"
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for time_s in times:
            picture = av.VideoFrame.from_ndarray(portrait, "bgr24")
            picture.pts, picture.time_base = round(1000 * time_s), fractions.Fraction(1, 1000)
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    finished = demo("a.mkv", "--no-display", "--output", "out.mp4", "--log", "log.csv")
    assert finished.returncode == 0, finished.stderr
    logged = [(int(row["frame"]), float(row["time_s"])) for row in read_csv(tmp_path / "log.csv")]
    with av.open(str(tmp_path / "out.mp4")) as written:
        assert logged == [(number, round(frame.time, 3)) for number, frame in enumerate(written.decode(video=0))]
    assert [time_s for _, time_s in logged] == times


def test_image_without_a_face_says_so(demo, tmp_path):
    cv2.imwrite(str(tmp_path / "gray.png"), np.full((200, 300, 3), 80, np.uint8))
    finished = demo("gray.png", "--no-display")
    assert finished.returncode == 0 and finished.stdout == "No face found.\n"


def test_folder_prints_one_line_per_file_and_writes_a_folder(demo, portrait, clip, tmp_path):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "b.jpg"), portrait)
    cv2.imwrite(str(tmp_path / "photos" / "a.png"), np.full((200, 300, 3), 80, np.uint8))
    for name in ("c.mp4", "d.mp4"):
        shutil.copy(clip, tmp_path / "photos" / name)
    finished = demo("photos", "--no-display", "--output", "labelled", "--log", "log.csv")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0] == "a.png: no face" and re.fullmatch(r"b\.jpg: [A-Z][a-z]+ \d+%", lines[1])
    assert lines[2].startswith("c.mp4: 30 frames, ") and lines[3] == lines[2].replace("c.mp4", "d.mp4")
    assert lines[-1] == "Drew log-timeline.png." and (tmp_path / "log-timeline.png").is_file()
    rows = read_csv(tmp_path / "log.csv")
    assert next(iter(rows[0])) == "file"
    first, second = ([row for row in rows if row["file"] == name] for name in ("c.mp4", "d.mp4"))
    strip = [{name: row[name] for name in row if name not in ("file", "frame")} for row in first]
    assert strip == [{name: row[name] for name in row if name not in ("file", "frame")} for row in second]
    assert second[0]["time_s"] == "0.0" and second[0]["track"] == "1"
    assert sorted(os.listdir(tmp_path / "labelled")) == ["a.png", "b.jpg", "c.mp4", "d.mp4"]
    assert count_frames(tmp_path / "labelled" / "d.mp4") == (30, 10)


def test_benchmark_ends_with_one_json_object(headless, clip):
    finished = headless(clip, "--no-display", "--benchmark")
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert set(result) == {"frames", "faces", "fps", "startup_s", "peak_memory_mb", "stages_ms"}
    assert result["frames"] == 30 and result["faces"] >= 20 and result["fps"] > 0
    assert 0 < result["startup_s"] < 60 and set(result["stages_ms"]) == {"read", "detect", "classify", "draw"}
    assert all(0 < times["median"] <= times["p95"] for times in result["stages_ms"].values())


def test_frame_rate_leaves_out_the_time_before_the_first_frame(demo, portrait_path, monkeypatch):
    opened, benchmarks, open_output = [], [], webcam_demo.open_output
    monkeypatch.setattr(
        webcam_demo, "open_output", lambda *args: open_output(*args) or opened.append(time.perf_counter())
    )
    monkeypatch.setattr(webcam_demo, "report", lambda *args: benchmarks.append(args[-1]))
    demo(portrait_path, "--no-display")
    start, end = benchmarks[0].done
    assert opened[0] <= start < end and benchmarks[0].fps() == benchmarks[0].recent_fps() == 1 / (end - start)


@pytest.fixture
def labeler():
    model, detector = utils.load_emotion_model(), utils.load_face_detector()
    return webcam_demo.FrameLabeler(model, detector, 0.3, webcam_demo.Benchmark())


def test_mirrored_face_is_labeled_on_the_other_side_with_its_number(labeler, portrait):
    frame = np.full((450, 900, 3), 90, np.uint8)
    frame[:, :384] = portrait
    left = []
    for number in range(6):
        source_frame = video.SourceFrame(frame, number / 10, "clip.mp4", 10.0, still=False)
        annotated, faces = labeler.label(source_frame, mirrored=number == 5)
        for face in faces:
            assert face.track == 1
            left.append(face.box[0] if number < 5 else 900 - face.box[0] - face.box[2])
    assert len(left) == 6 and max(left) - min(left) < 20 and (annotated[440, 890] == frame[440, 9]).all()


def test_network_gets_a_tilted_face_upright_and_the_box_is_drawn_tilted(labeler, portrait, monkeypatch):
    received, crop = [], utils.crop_faces
    monkeypatch.setattr(utils, "crop_faces", lambda *args: received.append(args[2]) or crop(*args))
    height, width = portrait.shape[:2]
    tilted = cv2.warpAffine(portrait, cv2.getRotationMatrix2D((width / 2, height / 2), -30, 1), (width, height))
    for number in range(20):
        _, faces = labeler.label(video.SourceFrame(tilted, number / 10, "clip.mp4", 10.0, still=False))
    assert received[-1] == [25] == [face.angle for face in faces]  # The tracker's step that is nearest.


def test_only_a_camera_is_shown_mirrored(monkeypatch):
    monkeypatch.setattr(webcam_demo, "has_display", lambda: True)
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    for kind in ("camera", "stream", "video"):
        source = type("Source", (), {"kind": kind})
        assert webcam_demo.open_window(webcam_demo.parse_args([]), source).mirrored == (kind == "camera")


@LINUX
def test_without_source_camera_and_display_the_bundled_clip_is_labeled(demo, clip, tmp_path, monkeypatch):
    """A shorter clip takes its place here."""
    if cv2.VideoCapture(0).isOpened():
        pytest.skip("this machine has a camera")
    assert video.DEMO_CLIP.is_file()
    monkeypatch.setattr(video, "DEMO_CLIP", clip)
    finished = demo()
    assert finished.returncode == 0, finished.stderr
    assert "No camera found" in finished.stdout and "No display found" in finished.stdout
    assert count_frames(tmp_path / "output" / "labelled-clip.mp4") == (30, 10)


@LINUX
@pytest.mark.parametrize("display", [("DISPLAY", ":77"), ("WAYLAND_DISPLAY", "wayland-77")])
def test_display_that_does_not_exist_is_noticed(demo, portrait_path, tmp_path, monkeypatch, display):
    monkeypatch.setenv(*display)
    finished = demo(portrait_path)
    assert finished.returncode == 0 and "No display found" in finished.stdout, finished.stderr
    assert os.listdir(tmp_path / "output") == [f"labelled-{portrait_path.stem}.png"]


@LINUX
@pytest.mark.parametrize("stem", ["a", "喜" * 80])
def test_files_with_long_paths_keep_their_names(demo, portrait_path, tmp_path, stem):
    folder = tmp_path / ("d" * 100) / ("d" * 100)
    folder.mkdir(parents=True)
    shutil.copy(portrait_path, folder / f"{stem}.jpg")
    assert demo(folder / f"{stem}.jpg").returncode == 0
    assert os.listdir(tmp_path / "output") == [f"labelled-{stem[:66]}.png"]  # 198 bytes of UTF-8.


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("97", ["Camera 97: cannot be opened", "--source"]),
        ("garbage.mp4", ["garbage.mp4: cannot be read"]),
        ("half.png", ["half.png: cannot be read"]),
    ],
)
def test_opencv_adds_no_line_about_a_source_that_cannot_be_read(headless, tmp_path, portrait, source, words):
    (tmp_path / "garbage.mp4").write_bytes(os.urandom(3000))
    (tmp_path / "half.png").write_bytes(cv2.imencode(".png", portrait)[1].tobytes()[:50])
    check_mistake(headless(source, "--no-display"), words)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.mp4", ["missing.mp4: no such file"]),
        ("", ["--source: no such file"]),
        ("garbage.jpg", ["garbage.jpg: cannot be read"]),
        ("empty", ["empty: no images or videos"]),
        pytest.param("pipe.jpg", ["pipe.jpg: not a regular file"], marks=POSIX),
        pytest.param("/dev/zero", ["/dev/zero: not a regular file"], marks=POSIX),
        ("two\nlines\x1b[31m.mp4", ["two\\x0alines\\x1b[31m.mp4: no such file"]),
    ],
)
def test_source_that_cannot_be_read_is_one_line_and_status_2(demo, tmp_path, source, words):
    (tmp_path / "garbage.jpg").write_bytes(os.urandom(3000))
    (tmp_path / "empty").mkdir()
    if source == "pipe.jpg":
        os.mkfifo(tmp_path / source)
    check_mistake(demo(source, "--no-display"), words)


def test_failed_run_keeps_the_former_log(demo, tmp_path):
    (tmp_path / "garbage.jpg").write_bytes(os.urandom(3000))
    (tmp_path / "log.csv").write_text("former")
    finished = demo("garbage.jpg", "--no-display", "--log", "log.csv")
    assert finished.returncode == 2 and "Wrote" not in finished.stdout
    assert (tmp_path / "log.csv").read_text() == "former"


def check_mistake(finished, words):
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1, finished.stderr
    for word in words:
        assert word in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "occupied/out.mp4"], ["occupied/out.mp4: ", "occupied is not a folder."]),
        (["--output", "out.xyz"], ["--output must end in", "out.xyz"]),
        pytest.param(["--output", "pipe.mp4"], ["pipe.mp4: not a regular file"], marks=POSIX),
        (["--output", ""], ["--output", "empty"]),
        (["--log", "occupied/log.csv"], ["occupied/log.csv: ", "occupied is not a folder."]),
        (["--log", "log.txt"], [".csv or .jsonl", "log.txt"]),
        pytest.param(["--log", "pipe.csv"], ["pipe.csv: not a regular file"], marks=POSIX),
        pytest.param(["--log", "loop.csv"], ["loop.csv"], marks=POSIX),
        (["--log", ""], ["--log", "empty"]),
        (["--log", "two\nlines.txt"], ["two\\x0alines.txt"]),
        (["--model", "emotions5"], ["emotions5", "models/emotions-5", "models/emotions-7"]),
        (["--min-confidence", "1.5"], ["0 to 1", "1.5"]),
        (["--camera-size", "720p"], ["--camera-size", "1280x720", "720p"]),
        (["--source", "other.mp4"], ["once"]),
        (["--speed", "2"], ["--speed"]),
    ],
)
def test_wrong_argument_is_one_line_and_status_2(demo, clip, tmp_path, arguments, words):
    (tmp_path / "occupied").write_text("a file where a folder would have to be")
    if arguments[1].startswith("pipe"):
        os.mkfifo(tmp_path / arguments[1])
    if arguments[1] == "loop.csv":
        (tmp_path / "loop.csv").symlink_to("loop.csv")
    check_mistake(demo(clip, "--no-display", *arguments), words)


@pytest.mark.skipif(sys.platform != "linux", reason="a running program is not writable there only")
def test_output_that_is_not_writable_is_refused_before_the_first_frame(demo, clip, tmp_path):
    shutil.copy(shutil.which("sleep"), tmp_path / "busy.mp4")
    with subprocess.Popen([tmp_path / "busy.mp4", "60"]) as program:
        finished = demo(clip, "--no-display", "--output", tmp_path / "busy.mp4", "--log", tmp_path / "a.csv")
        program.kill()
    check_mistake(finished, ["busy.mp4: Text file busy."])
    assert not (tmp_path / "a.csv").exists()


@LINUX
@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="needs unshare, which mounts a read-only disk",
)
@pytest.mark.parametrize("option", ["--log", "--output"])
def test_read_only_folder_is_refused_before_the_first_frame(clip, tmp_path, option):
    (tmp_path / "disk").mkdir()
    file = {"--log": "log.csv", "--output": "out.mp4"}[option]
    command = f"mount -t tmpfs -o ro none disk && cd disk && {' '.join(DEMO)} {clip} --no-display {option} {file}"
    finished = subprocess.run(["unshare", "-rm", "bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    check_mistake(finished, [f"{file}: its folder is read-only"])
    assert finished.stdout == ""


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("Insufficient memory")])
def test_too_little_memory_leaves_a_video_that_plays(long_video, tmp_path, monkeypatch, capsys, error):
    """It runs out at the eleventh frame."""
    error.code = cv2.Error.StsNoMem
    label, frames = webcam_demo.FrameLabeler.label, iter(range(10))

    def label_ten(*args, **options):
        if next(frames, None) is None:
            raise error
        return label(*args, **options)

    monkeypatch.setattr(webcam_demo.FrameLabeler, "label", label_ten)
    output = tmp_path / "out.mp4"
    with pytest.raises(MemoryError):
        webcam_demo.demo(webcam_demo.parse_args([str(long_video), "--no-display", "--output", str(output)]))
    assert "10 frames" in capsys.readouterr().out and count_frames(output)[0] == 10


def test_source_is_never_overwritten(demo, clip, portrait_path, tmp_path):
    """The same path, links, a log's timeline with the name of a photograph."""
    photographs = [tmp_path / "a.jpg", tmp_path / "seen-timeline.png"]
    for photograph in photographs:
        photograph.write_bytes(portrait_path.read_bytes())
    (tmp_path / "chosen").mkdir()
    os.link(photographs[0], tmp_path / "chosen" / "a.jpg")
    cases = [
        (clip, "--output", clip),
        (photographs[1], "--log", tmp_path / "seen.csv"),
        (tmp_path, "--log", tmp_path / "seen.csv"),
        (tmp_path / "chosen", "--output", tmp_path),
    ]
    before = clip.read_bytes()
    for arguments in cases:
        finished = demo(*arguments, "--no-display")
        assert finished.returncode == 2 and "must be different files" in finished.stderr, arguments
    assert clip.read_bytes() == before
    assert all(photograph.read_bytes() == portrait_path.read_bytes() for photograph in photographs)
    assert len(list(tmp_path.iterdir())) == 3


def test_two_files_with_the_same_annotated_name_are_refused(demo, clip, tmp_path):
    (tmp_path / "films").mkdir()
    for name in ("a.gif", "a.gif.mp4"):
        shutil.copy(clip, tmp_path / "films" / name)
    finished = demo("films", "--no-display", "--output", "labelled")
    assert finished.returncode == 2 and "a.gif.mp4 must be different files" in finished.stderr
    assert not (tmp_path / "labelled").exists()


def test_files_of_the_model_are_never_overwritten(demo, clip, tmp_path):
    shutil.copytree(utils.DEFAULT_MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.keras"))
    before = (tmp_path / "model" / "history.csv").read_bytes()
    for log in ("model/model.json", "model/history.csv"):
        finished = demo(clip, "--no-display", "--model", "model", "--log", log)
        assert finished.returncode == 2 and finished.stderr.count("\n") == 1
    assert "a file of the model" in finished.stderr and (tmp_path / "model" / "history.csv").read_bytes() == before


def test_output_of_a_folder_must_be_a_folder(demo, portrait_path, tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(portrait_path, tmp_path / "photos" / "saved.jfif")
    finished = demo("photos", "--no-display", "--output", "out.mp4")
    assert finished.returncode == 2 and "must be a folder" in finished.stderr
    finished = demo("photos", "--no-display", "--output", "out")
    assert finished.returncode == 0 and cv2.imread(str(tmp_path / "out" / "saved.jfif")).shape == (600, 512, 3)


@POSIX
@pytest.mark.parametrize("name", ["12:30", "two\nlines"])
def test_names_with_colon_and_newline_are_files(demo, clip, tmp_path, name):
    shutil.copy(clip, tmp_path / f"{name}.mp4")
    finished = demo(f"{name}.mp4", "--no-display", "--output", f"{name}-out.mp4")
    assert finished.returncode == 0, finished.stderr
    assert count_frames(tmp_path / f"{name}-out.mp4")[0] == 30
    assert f"Wrote {utils.printable(f'{name}-out.mp4')}." in finished.stdout.splitlines()


def test_damaged_video_keeps_what_was_read(demo, portrait, tmp_path):
    """In an AVI the frames follow each other, so the first half of one is half a video with a whole header."""
    writer = cv2.VideoWriter(str(tmp_path / "whole.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, portrait.shape[1::-1])
    for _ in range(40):
        writer.write(portrait)
    writer.release()
    whole = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2] + os.urandom(2000))
    finished = demo("cut.avi", "--no-display", "--output", "out.mp4", "--log", "log.csv")
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1
    assert "cut.avi: ends after frame" in finished.stderr and "Wrote out.mp4." in finished.stdout
    frames, _ = count_frames(tmp_path / "out.mp4")
    assert 10 < frames < 40 and int(read_csv(tmp_path / "log.csv")[-1]["frame"]) == frames - 1


# ---------------------------------------------------------------------------------------------------------------------
# Packages
# ---------------------------------------------------------------------------------------------------------------------


def run_program(program, folder):
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**NO_DISPLAY, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_demo_and_library_import_no_training_package(clip, tmp_path):
    """The only attempt is that of the summary, after the loop."""
    hidden = ["tensorflow", "keras", "pandas", "matplotlib", "seaborn", "sklearn"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden}));"
        f"import webcam_demo; sys.exit(webcam_demo.main([{str(clip)!r}, '--no-display', '--log', 'log.csv']))"
    )
    finished = run_program(program, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "pip install pandas matplotlib" in finished.stdout and len(emotion_log.read_log(tmp_path / "log.csv"))


def test_missing_litert_is_one_line_that_names_the_command(headless, clip, tmp_path):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "ai_edge_litert.py").write_text('raise ImportError("No module named ai_edge_litert")')
    finished = headless(clip, "--no-display", env={**NO_DISPLAY, "PYTHONPATH": str(tmp_path / "packages")})
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1, finished.stderr
    assert "pip install -r requirements-demo.txt" in finished.stderr


def test_opencv_without_windows_is_one_line(clip, monkeypatch, capsys):
    """opencv-python-headless raises cv2.error from namedWindow."""
    monkeypatch.setattr(webcam_demo, "has_display", lambda: True)

    def refuse(*_):
        raise cv2.error("The function is not implemented. Rebuild the library with Windows, GTK+ 2.x or Cocoa support.")

    monkeypatch.setattr(cv2, "namedWindow", refuse)
    assert webcam_demo.open_window(webcam_demo.parse_args([]), video.open_source(str(clip))) is None
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "pip uninstall opencv-python-headless" in printed


def test_importing_the_demo_does_nothing(tmp_path):
    program = "import signal; before = signal.getsignal(2); import webcam_demo; assert signal.getsignal(2) is before"
    finished = run_program(program, tmp_path)
    assert (finished.returncode, finished.stdout, finished.stderr, os.listdir(tmp_path)) == (0, "", "", [])


# ---------------------------------------------------------------------------------------------------------------------
# Interrupts
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def long_video(tmp_path, portrait):
    path = tmp_path / "long.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, portrait.shape[1::-1])
    for _ in range(300):
        writer.write(portrait)
    writer.release()
    return path


@POSIX
def test_ctrl_c_in_the_loop_leaves_a_playable_video_and_a_log(tmp_path, long_video, without_matplotlib):
    command = [*DEMO, str(long_video), "--no-display", "--output", "out.mp4", "--log", "log.csv"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=without_matplotlib, **pipes)
    log, deadline = tmp_path / "log.csv", time.monotonic() + 30
    while time.monotonic() < deadline and not (log.exists() and log.read_text().count("\n") > 10):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and stderr == "webcam_demo.py: stopped.\n" and "Wrote out.mp4." in stdout
    frames, _ = count_frames(tmp_path / "out.mp4")
    assert 10 <= frames < 300 and abs(int(read_csv(log)[-1]["frame"]) + 1 - frames) <= 1


@POSIX
def test_ignored_ctrl_c_stays_ignored(tmp_path, clip):
    """As in a job that a script left in the background."""
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), "stderr": subprocess.PIPE}
    process = subprocess.Popen([*DEMO, str(clip), "--no-display"], cwd=tmp_path, stdout=subprocess.PIPE, **options)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    stdout, stderr = process.communicate()
    assert process.returncode == 0 and stderr == b"" and b"30 frames" in stdout


def wait_for_handler(process):
    """Waits until a process has its own handler for SIGTERM."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


@LINUX
def test_signal_at_any_moment_is_one_line_and_status_130(tmp_path, clip):
    """From the moment on at which the script handles signals, to its last frame."""
    moments = random.Random(0)
    for number in range(9):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = subprocess.Popen(
            [*DEMO, str(clip), "--no-display", "--output", "out.mp4"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_handler(process)
        time.sleep(moments.uniform(0, 0.6))
        process.send_signal((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[number % 3])
        stderr = process.communicate(timeout=30)[1]
        assert (process.returncode, stderr) in [(130, "webcam_demo.py: stopped.\n"), (0, "")]
        assert set(os.listdir(folder)) <= {"out.mp4"}


# ---------------------------------------------------------------------------------------------------------------------
# Streams and privacy
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mjpeg(portrait):
    """Serves a portrait as a motion JPEG stream, `frames` times in all; then there is nothing."""

    class MjpegStream(http.server.BaseHTTPRequestHandler):
        frames, jpeg = 40, cv2.imencode(".jpg", portrait)[1].tobytes()

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            while MjpegStream.frames:
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(self.jpeg))
                self.wfile.write(self.jpeg + b"\r\n")
                MjpegStream.frames -= 1
                time.sleep(0.03)

        def log_message(self, *_):
            pass

        def handle(self):
            with contextlib.suppress(OSError):  # The client hangs up.
                super().handle()

    return MjpegStream


@LINUX
def test_live_stream_is_labeled_and_shows_no_secrets(mjpeg, serve, tmp_path, monkeypatch, capsys):
    """Its end is a sentence. User, password, query and fragment are in no text, title, log or name of a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(webcam_demo, "has_display", lambda: False)
    monkeypatch.setattr(video, "RETRY_PAUSES", (0.1,))
    status = webcam_demo.main([f"http://user:pass@{serve(mjpeg)}/hall?token=secret#part", "--log", "log.csv"])
    printed = capsys.readouterr()
    assert status == 2 and printed.err.count("\n") == 1 and "/hall: no more frames" in printed.err
    rows = read_csv(tmp_path / "log.csv")
    assert len(rows) > 2 and all(row["utc"] for row in rows) and any(row["label"] for row in rows)
    times = [float(row["time_s"]) for row in rows]
    assert times == sorted(times)
    frames, fps = count_frames(tmp_path / "output" / "labelled-hall.mp4")
    assert frames / fps == pytest.approx(times[-1] - times[0], abs=0.2)
    texts = [printed.out, printed.err, (tmp_path / "log.csv").read_text(), *map(str, tmp_path.rglob("*"))]
    assert not re.search("user|pass|token|secret|part", "\n".join(texts).replace(str(tmp_path), ""))


def test_picture_of_a_stalled_stream_shows_no_secrets(mjpeg, serve):
    address = serve(mjpeg)
    with video.open_source(f"http://user:pass@{address}/hall?token=secret") as source:
        assert source.kind == "stream" and source.title == f"http://{address}/hall"  # What `Window.stall` draws.


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_opencv_shows_no_secrets_of_an_address(headless, scheme):
    finished = headless(f"{scheme}://user:pass@127.0.0.1:1/x?token=secret#part", "--no-display")
    check_mistake(finished, ["127.0.0.1:1/x: cannot be opened"])
    assert not re.search("user|pass|token|secret|part", finished.stdout + finished.stderr), finished.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["http://user:pa/ss@127.0.0.1:1/x?token=secret"],
        ["a.mp4", "http://user:pass@127.0.0.1:1/x?token=secret"],
        ["a.mp4", "--source", "http://user:pass@127.0.0.1:1/x?token=secret"],
    ],
)
def test_message_about_an_address_shows_no_secrets(demo, arguments):
    finished = demo(*arguments, "--no-display")
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1
    assert not re.search("user|pa.?ss|token|secret|part", finished.stdout + finished.stderr), finished.stderr


@pytest.mark.skipif(
    not (shutil.which("strace") and shutil.which("unshare"))
    or subprocess.run(["unshare", "-rn", "strace", "--seccomp-bpf", "-f", "true"], capture_output=True).returncode != 0,
    reason="needs unshare and strace, and the right to use them",
)
def test_demo_needs_no_network_and_writes_only_what_was_asked_for(clip, tmp_path):
    """Without any network interface; strace lists each socket and each file that is opened for writing."""
    trace, cache = tmp_path / "trace", tmp_path / "matplotlib"
    command = ["unshare", "-rn", "strace", "--seccomp-bpf", "-f", "-qq", "-s", "4096", "-o", str(trace)]
    command += ["-e", "trace=openat,open,creat,socket,rename,renameat,renameat2,mkdir", *DEMO, str(clip)]
    command += ["--no-display", "--output", "out.mp4", "--log", "log.csv"]
    environment = {**NO_DISPLAY, "PYTHONDONTWRITEBYTECODE": "1", "MPLCONFIGDIR": str(cache)}
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    calls = [line for line in trace.read_text().splitlines() if " = -1 " not in line]
    assert not [call for call in calls if re.search(r"socket\(AF_INET", call)]
    opened = [call for call in calls if re.search("O_WRONLY|O_RDWR|O_CREAT", call)]
    written = {os.path.join(tmp_path, re.search('"(.*?)"', call).group(1)) for call in opened}
    allowed = re.compile(rf"/dev/.+|{re.escape(str(tmp_path))}/(\.new-\d+-)?(out\.mp4|log\.csv|log-timeline\.png)")
    outside = {path for path in written if not allowed.fullmatch(path) and not path.startswith(str(cache))}
    assert outside == set() and any(path.endswith("out.mp4") for path in written)
    assert sorted(os.listdir(tmp_path)) == ["log-timeline.png", "log.csv", "matplotlib", "out.mp4", "trace"]
