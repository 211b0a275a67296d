"""The summary and the picture of a log agree with what the log holds.

python -m pytest tests/test_timeline.py
"""

import io
import json
import os
import subprocess
import sys

import cv2
import pytest

import timeline
import utils

# Face 1 for four frames of half a second, three of them happy; face 2 in one of them; one frame without a face.
ROWS = [
    {"frame": 0, "time_s": 0.0, "track": 1, "label": "Happy", "Happy": 0.8, "Sad": 0.2},
    {"frame": 1, "time_s": 0.5, "track": 1, "label": "Happy", "Happy": 0.7, "Sad": 0.3},
    {"frame": 1, "time_s": 0.5, "track": 2, "label": "Sad", "Happy": 0.1, "Sad": 0.9},
    {"frame": 2, "time_s": 1.0, "track": 1, "label": "Happy", "Happy": 0.6, "Sad": 0.4},
    {"frame": 3, "time_s": 1.5, "track": 1, "label": "Sad", "Happy": 0.4, "Sad": 0.6},
    {"frame": 4, "time_s": 2.0, "track": None, "label": None, "Happy": None, "Sad": None},
]


@pytest.fixture(params=["log.csv", "log.jsonl"])
def log(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        lines = [",".join("" if value is None else str(value) for value in row.values()) for row in ROWS]
        path.write_text("\n".join([",".join(ROWS[0]), *lines]) + "\n")
    return path


def test_the_summary_weighs_each_frame_by_its_time(log):
    """Two people in 2.5 s are 48 a minute; face 1 is happy for 1.5 of its 2 s."""
    lines = timeline.summarize(timeline.read_log(log)).splitlines()
    assert lines[0] == "5 faces in 5 frames, 2 people or scenes (48.0 a minute)."
    assert lines[1].strip() == "face 1: 2.0 s, Happy 75%, Sad 25%"
    assert lines[2].strip() == "face 2: 0.5 s, Sad 100%"


def test_the_picture_lies_beside_the_log(log, capsys):
    assert timeline.main([str(log)]) == 0
    picture = cv2.imread(str(log.with_name("log-timeline.png")))
    assert picture.shape[1] > 600 and (picture < 250).any(axis=-1).mean() > 0.1
    assert "log-timeline.png" in capsys.readouterr().out


def test_a_face_of_one_frame_is_drawn_for_as_long_as_the_frame_stood(log, monkeypatch):
    """Face 2 was seen in one frame of half a second, nine tenths of it sad."""
    rows = timeline.read_log(log)
    timeline.summarize(rows)
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.stackplot", lambda axes, times, columns, **_: drawn.append((times, columns))
    )
    timeline.plot_timeline(rows, log.with_name("picture.png"))
    assert drawn[1] == ([0.5, 1.0], [[0.1, 0.1], [0.9, 0.9]])


def test_what_a_spreadsheet_does_to_a_log_changes_no_summary(tmp_path):
    """It sorts the rows by label and marks the file as UTF-8."""
    header, *rows = [list(ROWS[0]), *(["" if value is None else str(value) for value in row.values()] for row in ROWS)]
    for name, order in (("as_written", rows), ("sorted", sorted(rows, key=lambda row: row[3]))):
        text = "\n".join(",".join(row) for row in [header, *order])
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8-sig")
    first, second = (timeline.summarize(timeline.read_log(path)) for path in sorted(tmp_path.iterdir()))
    assert first == second and "48.0 a minute" in first


def test_a_picture_that_cannot_be_written_costs_no_summary(log):
    timeline.picture_path(log).mkdir()
    assert "48.0 a minute" in timeline.report(log) and "cannot be written" in timeline.report(log)


def test_images_have_no_time_to_draw(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("file,frame,time_s,track,label,Happy,Sad\na.png,0,0.0,1,Happy,0.8,0.2\nb.png,1,0.0,1,Sad,0.3,0.7\n")
    assert "2 faces in 2 frames" in timeline.report(log)
    assert not timeline.picture_path(log).exists()


def test_without_matplotlib_there_is_a_sentence_instead(log, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in timeline.report(log)
    assert not log.with_name("log-timeline.png").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("other.csv", "a,b\n1,2\n"),
        ("other.csv", "frame,time_s,track,label\n0,0.0,1,Happy\n"),
        ("other.jsonl", "{'frame'"),
        ("other.jsonl", "[1, 2]"),
    ],
)
def test_a_file_that_is_no_log_is_one_line_and_status_2(tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    assert timeline.main([str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and name in error


def test_a_missing_log_is_one_line_and_status_2(tmp_path, capsys):
    assert timeline.main([str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_terminal_without_the_letters_of_a_name_and_a_notebook_show_the_sentence(tmp_path, monkeypatch):
    command = [sys.executable, utils.ROOT / "timeline.py", tmp_path / "kr\u00f3l.csv"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 2 and "kr\\xf3l.csv" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # Like a notebook's, it has no `reconfigure`.
    assert timeline.main([str(tmp_path / "kr\u00f3l.csv")]) == 2
    assert "kr\u00f3l.csv" in sys.stderr.getvalue()
