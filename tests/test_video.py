"""Frames from real files, servers and cameras, and videos and images written and read back.

python -m pytest tests/test_video.py
"""

import base64
import contextlib
import fractions
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

import av
import cv2
import numpy as np
import pillow_heif
import pytest
from conftest import ROOT
from PIL import Image

import video

pillow_heif.register_heif_opener()
SAMPLE_RATE = 48_000


def write_film(
    path, frames, times=None, codec="libx264", rate=10, sound=None, layout="stereo", container=None, **attributes
):
    """Writes a film of frames, uint8 (H, W, 3), at times in seconds, or ten a second. Returns its path.

    `rate` is the number of frames per second that it announces, `sound` a list of codecs and the seconds between which
    a tone is heard, `layout` its channels. `container` has FFmpeg's options of the format, `attributes` are those of
    the video's codec context.
    """
    times = np.arange(len(frames)) / 10 if times is None else times
    tick = fractions.Fraction(1, 10 if path.suffix == ".avi" else 1000)
    with av.open(str(path), "w", container_options=container or {}) as output:
        stream = output.add_stream(codec, fractions.Fraction(rate).limit_denominator(1001))
        stream.width, stream.height = frames[0].shape[1::-1]
        stream.pix_fmt, stream.codec_context.time_base = "yuvj420p" if codec == "mjpeg" else "yuv420p", tick
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        tones = [output.add_stream(name, SAMPLE_RATE, layout=layout) for name, *_ in sound or []]
        for frame, time_s in zip(frames, times, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, "bgr24")
            picture.pts, picture.time_base = round(time_s / tick), tick
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
        for tone, (_, start, end) in zip(tones, sound or [], strict=True):
            for number in range(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE), 960):
                output.mux(tone.encode(make_tone(number)))
            output.mux(tone.encode())
    return path


def make_tone(number):
    """Returns 20 ms of a tone of 440 Hz, from the sample of this number on."""
    wave = 10_000 * np.sin(2 * np.pi * 440 / SAMPLE_RATE * np.arange(number, number + 960))
    tone = av.AudioFrame.from_ndarray(wave.astype(np.int16)[np.newaxis], format="s16", layout="mono")
    tone.sample_rate, tone.pts, tone.time_base = SAMPLE_RATE, number, fractions.Fraction(1, SAMPLE_RATE)
    return tone


def gray_frames(count):
    """Returns frames of 160x120 pixels, each brighter than the one before."""
    return [np.full((120, 160, 3), 6 * number, np.uint8) for number in range(count)]


def write_animation(path, frames, milliseconds=100, **options):
    first, *others = (Image.fromarray(frame[..., ::-1]) for frame in frames)
    first.save(path, save_all=True, append_images=others, duration=milliseconds, **options)
    return path


def read_all(source):
    with source:
        return [frame for frame in source.frames() if frame.image is not None]


def read_path(path):
    """Returns the frames of a file and what went wrong."""
    source = video.open_source(str(path))
    return read_all(source), source.problem


def annotate(path, output):
    """Writes all frames of a source to an annotated file, as they are. Returns its path."""
    with video.open_source(str(path)) as source, video.AnnotatedFiles(output, source) as files:
        for frame in source.frames():
            files.write(frame.image, frame)
    return output


def inspect(path):
    """Decodes a film; returns its codecs, the times of its frames, and the times between which it is heard."""
    with av.open(str(path)) as container:
        codecs = {stream.type: stream.codec_context.codec.canonical_name for stream in container.streams}
        frames = [(frame.time, frame.format.name) for frame in container.decode(video=0)]
    heard = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0) if container.streams.audio else ():
            level = np.abs(frame.to_ndarray().astype(float)).max() * (1 if "fl" in frame.format.name else 2**-15)
            heard += [frame.time, frame.time + frame.samples / frame.sample_rate] if level > 0.01 else []
    return codecs, [time_s for time_s, _ in frames], (heard[0], heard[-1]) if heard else None


def check_quarters(image, colors, size):
    """Checks the width and height of an image, and the colors, as text, of its quarters, row by row."""
    assert image.shape == (size[1], size[0], 3)
    names = {(1, 0, 0): "blue", (0, 1, 0): "green", (0, 0, 1): "red", (1, 1, 1): "white"}
    corners = [image[y, x] > 128 for y in (5, -5) for x in (5, -5)]
    assert [names[tuple(map(int, corner))] for corner in corners] == colors.split()


@pytest.fixture(scope="module")
def quarters():
    """An image of 160x120 pixels: blue and green above red and white."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[:60, :80], image[:60, 80:], image[60:, :80], image[60:][:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    return image


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------

TURNS = {  # EXIF orientation -> the quarters' colors row by row, and the size.
    1: ("blue green red white", (160, 120)),
    2: ("green blue white red", (160, 120)),
    3: ("white red green blue", (160, 120)),
    4: ("red white blue green", (160, 120)),
    5: ("blue red green white", (120, 160)),
    6: ("red blue white green", (120, 160)),
    7: ("white green red blue", (120, 160)),
    8: ("green white blue red", (120, 160)),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("suffix", [".jpg", ".heic", ".avif"])
def test_photographs_are_turned_as_they_say(tmp_path, quarters, suffix, turn):
    exif = Image.Exif()
    exif[0x112] = turn
    path = tmp_path / f"a{suffix}"
    Image.fromarray(quarters[..., ::-1]).save(path, exif=exif.tobytes(), quality=95)
    (frame,), problem = read_path(path)
    assert frame.still and problem is None
    check_quarters(frame.image, *TURNS[turn])


def test_heic_of_several_tiles_is_read_as_a_whole(tmp_path):
    """Phones store tiles of 512x512 pixels."""
    row = np.linspace(0, 255, 1400, dtype=np.uint8)
    image = np.repeat(np.tile(row, (1200, 1))[..., np.newaxis], 3, axis=2)
    Image.fromarray(image).save(tmp_path / "a.heic")
    (frame,), _ = read_path(tmp_path / "a.heic")
    assert frame.image.shape == (1200, 1400, 3)
    assert np.abs(frame.image[::100, ::100, 0] - image[::100, ::100, 0].astype(int)).max() < 10


@pytest.mark.parametrize(
    "written", ["avif", "bmp", "gif", "heif", "jpeg", "jpeg2000", "png", "ppm", "tga", "tiff", "webp"]
)
def test_image_is_known_by_its_content(tmp_path, serve, quarters, written):
    """By path, without a suffix, with a wrong one, and by address. TGA is known by its suffix."""
    names = ["a.tga"] if written == "tga" else ["a", "a.mp4"]
    address = serve(functools.partial(FileServer, directory=tmp_path))
    for name in names:
        Image.fromarray(quarters[..., ::-1]).save(tmp_path / name, written)
        for source in (str(tmp_path / name), *[f"http://{address}/{name}?token=1"] * (written != "tga")):
            opened = video.open_source(source)
            assert (opened.kind, opened.total) == ("image", 1)
            (frame,) = read_all(opened)
            check_quarters(frame.image, *TURNS[1])
            assert frame.file == name


def test_photograph_from_a_web_server_is_the_same_as_from_its_file(tmp_path, serve, portrait):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(portrait[..., ::-1]).save(tmp_path / "a.jpg", exif=exif)
    (by_path,), _ = read_path(tmp_path / "a.jpg")
    address = serve(functools.partial(FileServer, directory=tmp_path))
    source = video.open_source(f"http://{address}/a.jpg")
    (by_address,) = read_all(source)
    assert by_path.image.shape == (384, 450, 3) and (by_address.image == by_path.image).all()
    assert not os.path.exists(source.folder.name)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_levels_in_16_bits_are_stretched(tmp_path, portrait, bits):
    gray = cv2.cvtColor(portrait, cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(tmp_path / "a.png"), gray if bits == 8 else (gray.astype(np.uint16) << bits - 8))
    (frame,), _ = read_path(tmp_path / "a.png")
    assert frame.image.dtype == np.uint8 and frame.image.max() > 240
    assert np.abs(frame.image[..., 0] - gray * (frame.image.max() / gray.max())).max() <= 2


def test_images_of_8_bits_are_those_of_imread(tmp_path, portrait_path):
    for name in ("a.jpg", "a.png", "a.webp", "a.tif", "a.bmp"):
        Image.open(portrait_path).save(tmp_path / name)
        (frame,), _ = read_path(tmp_path / name)
        assert (frame.image == cv2.imread(str(tmp_path / name))).all()


@pytest.mark.parametrize("name", ["a.tif", "a.pfm"])
@pytest.mark.parametrize("extreme", [20, np.nan, np.inf])
def test_float_image_is_stretched(tmp_path, name, extreme):
    levels = np.tile(np.linspace(-1, 20, 160, dtype=np.float32), (120, 1))
    levels[0, 0] = extreme
    Image.fromarray(levels).save(tmp_path / name)
    (frame,), _ = read_path(tmp_path / name)
    assert frame.image.shape == (120, 160, 3) and frame.image[..., 0].mean() == pytest.approx(121, abs=2)
    assert frame.image.min() == 0 and frame.image.max() == 255


@pytest.mark.parametrize("suffix", [".avif", ".gif", ".png", ".webp"])
def test_animated_images_are_read_frame_by_frame(tmp_path, suffix):
    """Their frames last 0.1, 0.3 and 0.2 seconds."""
    options = {".avif": {"quality": 90}, ".webp": {"lossless": True}}.get(suffix, {})
    path = write_animation(tmp_path / f"a{suffix}", gray_frames(20)[9:20:5], [100, 300, 200], **options)
    source = video.open_source(str(path))
    frames = read_all(source)
    assert source.kind == "video" and not frames[0].still
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.1, 0.4])
    assert [frame.image.mean() for frame in frames] == pytest.approx([54, 84, 114], abs=4)


@pytest.mark.parametrize("milliseconds", [[5000, 5000], [500, 500, 3000], [3000, 100, 100]])
def test_last_frame_keeps_its_duration(tmp_path, milliseconds):
    path = write_animation(tmp_path / "a.gif", gray_frames(20)[9::5][: len(milliseconds)], milliseconds)
    with av.open(str(annotate(path, tmp_path / "a.mp4"))) as written:
        assert written.duration == pytest.approx(1000 * sum(milliseconds), rel=0.02)


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_video_whose_last_frame_is_long_is_complete(tmp_path, suffix):
    path = write_animation(tmp_path / "a.gif", gray_frames(20)[9:20:5], 3 * [5000])
    frames, problem = read_path(annotate(path, tmp_path / f"a{suffix}"))
    assert len(frames) == 3 and problem is None


def test_big_tiff_is_an_image(tmp_path, quarters):
    Image.fromarray(quarters[..., ::-1]).save(tmp_path / "a.tif", big_tiff=True)
    (frame,), _ = read_path(tmp_path / "a.tif")
    check_quarters(frame.image, *TURNS[1])


@pytest.mark.parametrize("suffix", [".tif", ".heic"])
def test_further_pages_are_mentioned(tmp_path, capsys, suffix):
    first, *others = map(Image.fromarray, gray_frames(12))
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=others)
    frames, problem = read_path(tmp_path / f"a{suffix}")
    assert len(frames) == 1 and frames[0].still and problem is None
    assert "only the first of 12 images is read" in capsys.readouterr().out


def test_progressive_jpeg_of_many_scans_is_refused_at_once(tmp_path):
    """Its 150 scans would take a minute. Ten scans are usual, and are read."""
    Image.new("L", (6000, 5000)).save(tmp_path / "a.jpg", progressive=True, quality=50)
    content = (tmp_path / "a.jpg").read_bytes()
    (frame,), problem = read_path(tmp_path / "a.jpg")
    assert frame.image.shape == (5000, 6000, 3) and problem is None
    last = content.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(content[:last] + 150 * content[last:-2] + content[-2:])
    started = time.monotonic()
    frames, problem = read_path(tmp_path / "a.jpg")
    assert frames == [] and "scans" in problem and time.monotonic() - started < 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_no_memory_is_left_by_a_film_that_was_read(clip):
    """In a process of its own: the first frame of each film, 0.5 MB here, used to stay."""
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import video
for number in range(41):
    with video.open_source({str(clip)!r}) as source:
        frames = sum(1 for frame in source.frames())
    if number in (10, 40):
        print(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0])
"""
    first, last = map(int, subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert last - first < 6_000  # kB; half a megabyte for each of 30 films would be 15,000.


def test_path_with_a_drive_letter_is_not_an_address():
    with pytest.raises(FileNotFoundError, match="C://none.mp4: no such file"):
        video.open_source("C://none.mp4")


def test_limits_are_stated(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_VIDEO_PIXELS", 160 * 120 - 1)
    with pytest.raises(ValueError, match="160x120 pixels, but at most"):
        video.open_source(str(write_film(tmp_path / "a.mp4", gray_frames(2))))
    monkeypatch.setattr(video, "MAX_IMAGE_FILE", 10)
    cv2.imwrite(str(tmp_path / "a.png"), gray_frames(1)[0])
    frames, problem = read_path(tmp_path / "a.png")
    assert frames == [] and "Make the image smaller" in problem


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
# Folders
# ---------------------------------------------------------------------------------------------------------------------


def test_folder_gives_every_frame_and_names_each_damaged_file(tmp_path, clip, portrait, capfd):
    """Half a PNG and the start of a JPEG, about which libpng and libjpeg print lines, are among the files."""
    shutil.copy(clip, tmp_path / "c.mp4")
    cv2.imwrite(str(tmp_path / "a.png"), portrait)
    png, jpeg = (cv2.imencode(suffix, portrait)[1].tobytes() for suffix in (".png", ".jpg"))
    damaged = {"d.png": png[:50], "d.jpg": jpeg[:200], "d.mp4": os.urandom(3000), "d.heic": b"", "d.gif": b"GIF89a"}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    source = video.open_source(str(tmp_path))
    files = [frame.file for frame in read_all(source)]
    assert files == ["a.png"] + 30 * ["c.mp4"] and source.kind == "folder"
    printed, errors = capfd.readouterr()
    assert errors == "" and source.problem == f"{tmp_path}: 5 of 7 files could not be read completely."
    assert [line.partition(": ")[0] for line in printed.splitlines()] == [
        str(tmp_path / name) for name in sorted(damaged)
    ]


def test_folder_tells_what_it_skips(tmp_path, portrait, capsys):
    """A photograph without a suffix is read; hidden files are not mentioned."""
    (tmp_path / "photo").write_bytes(cv2.imencode(".jpg", portrait)[1].tobytes())
    for name in ("a.txt", "b.txt", "c.pdf", "Makefile", "._a.png"):
        (tmp_path / name).write_bytes(b"not an image")
    for name in ("2024", "2025", ".git"):
        (tmp_path / name).mkdir()
    assert [frame.file for frame in read_all(video.open_source(str(tmp_path)))] == ["photo"]
    skipped = "skipped 4 files (Makefile, .txt, .pdf) and 2 subfolders (2024, 2025)."
    assert capsys.readouterr().out == f"{tmp_path}: {skipped}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have shorter names, and no such bytes in them")
def test_unreadable_file_and_strange_names_do_not_end_a_folder(tmp_path, portrait):
    """A name that is not UTF-8, names of 254 bytes, and a file whose reading fails."""
    films, photo = tmp_path / "films", cv2.imencode(".jpg", portrait)[1].tobytes()
    films.mkdir()
    (films / "mem.jpg").symlink_to("/proc/self/mem")
    for name in (os.fsdecode(b"caf\xe9.jpg"), 250 * "x" + ".jpg"):
        (films / name).write_bytes(photo)
    Image.fromarray(portrait).save(films / (249 * "y" + ".heic"))
    annotate(films, tmp_path / "out")
    written = {os.fsencode(path.name) for path in (tmp_path / "out").iterdir()}
    assert written == {b"caf\xe9.jpg", 250 * b"x" + b".jpg", 249 * b"y" + b".jpg"}


def test_annotated_files_of_a_folder_keep_names_that_can_be_written(tmp_path, clip, portrait):
    (tmp_path / "in").mkdir()
    for name in ("a.heic", "b.jfif", "c.gif"):
        Image.fromarray(portrait).save(tmp_path / "in" / name, {"b.jfif": "jpeg"}.get(name))
    write_animation(tmp_path / "in" / "d.png", gray_frames(2))
    shutil.copy(clip, tmp_path / "in" / "e.ts")
    annotate(tmp_path / "in", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["a.heic.jpg", "b.jfif", "c.gif.jpg", "d.png.mp4", "e.ts.mp4"]


# ---------------------------------------------------------------------------------------------------------------------
# Videos
# ---------------------------------------------------------------------------------------------------------------------


def test_video_frames_have_times_rate_and_file_name(clip):
    source = video.open_source(str(clip))
    frames = read_all(source)
    assert source.total == len(frames) == 30 and source.ended and source.problem is None
    assert [frame.time_s for frame in frames] == pytest.approx([number / 10 for number in range(30)])
    assert {(frame.file, frame.fps, frame.still) for frame in frames} == {("clip.mp4", 10.0, False)}
    assert frames[0].image.shape == (450, 384, 3) and frames[29].image.mean() == pytest.approx(90, abs=3)


@pytest.mark.parametrize(
    ("ratio", "size"),
    [("4/3", (213, 120)), ("64/45", (228, 120)), ("8/9", (160, 135)), ("0", (160, 120))],
    ids=["camcorder", "PAL", "NTSC", "unknown"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_pixels_that_are_not_square(tmp_path, quarters, suffix, ratio, size):
    path = write_film(tmp_path / f"a{suffix}", 3 * [quarters], sample_aspect_ratio=fractions.Fraction(ratio))
    frames, _ = read_path(path)
    assert len(frames) == 3
    check_quarters(frames[0].image, TURNS[1][0], size)


MATRICES = {1: "++", 2: "-+", 3: "--", 4: "+-"}  # Orientations without a quarter turn: signs of x and y.
TURNED_MATRICES = {5: "++", 6: "+-", 7: "--", 8: "-+"}  # Signs of x to y and of y to x.


@pytest.mark.parametrize("turn", TURNS)
def test_turned_and_mirrored_videos(tmp_path, quarters, turn):
    """The display matrix of an MP4 has nine numbers of 32 bits: a, b, u, c, d, v, x, y, w."""
    one = {"+": 0x10000, "-": -0x10000}
    if turn in MATRICES:
        a, d, b, c = *(one[sign] for sign in MATRICES[turn]), 0, 0
    else:
        a, d, b, c = 0, 0, *(one[sign] for sign in TURNED_MATRICES[turn])
    path = write_film(tmp_path / "a.mp4", 3 * [quarters])
    content = path.read_bytes()
    plain = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    assert content.count(plain) == 2  # Of the whole, and of the video.
    position = content.rindex(plain)
    path.write_bytes(
        content[:position] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000) + content[position + 36 :]
    )
    frames, _ = read_path(path)
    check_quarters(frames[-1].image, *TURNS[turn])


def test_face_of_a_camcorder_is_not_squeezed(tmp_path, portrait):
    """The same face, stored in pixels that are twice as wide as high."""
    narrow = cv2.resize(portrait, (192, 450), interpolation=cv2.INTER_AREA)
    frames, _ = read_path(write_film(tmp_path / "a.mp4", [narrow], sample_aspect_ratio=fractions.Fraction(2)))
    assert frames[0].image.shape == portrait.shape
    assert np.abs(frames[0].image.astype(int) - portrait).mean() < 8


VARIABLE = [0, 0.02, 0.04, 0.3, 0.31, 1.6, 7.0, 5000.0, 5000.001]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".mov", ".m4v"])
def test_every_frame_is_written_with_its_own_time(tmp_path, suffix):
    """A screen recording: many frames at once, then one that stays for over an hour."""
    path = write_film(tmp_path / "a.mkv", gray_frames(30)[10 : 10 + len(VARIABLE)], VARIABLE)
    frames, problem = read_path(path)
    assert [frame.time_s for frame in frames] == pytest.approx(VARIABLE) and problem is None
    written, problem = read_path(annotate(path, tmp_path / f"out{suffix}"))
    assert [frame.time_s for frame in written] == pytest.approx(VARIABLE, abs=0.0006) and problem is None
    levels = [[frame.image.mean() for frame in part] for part in (frames, written)]
    assert levels[0] == pytest.approx(levels[1], abs=4)
    assert (tmp_path / f"out{suffix}").stat().st_size < 100_000


def test_fast_film_keeps_its_frames(tmp_path):
    """A thousand frames a second."""
    path = write_film(tmp_path / "a.mp4", 8 * gray_frames(10), np.arange(80) / 1000)
    _, times, _ = inspect(annotate(path, tmp_path / "out.mp4"))
    assert times == pytest.approx(np.arange(80) / 1000)


@pytest.mark.parametrize("fps", [23.976, 29.8372, 66.667, 119.88012, 240.02])
def test_frame_rate_is_kept(tmp_path, fps):
    path = write_film(tmp_path / "a.mkv", gray_frames(12), np.arange(12) / fps, rate=fps)
    frames, _ = read_path(annotate(path, tmp_path / "out.mp4"))
    assert frames[0].fps == pytest.approx(fps, rel=0.05)


def test_times_begin_with_the_sound(tmp_path):
    """The picture begins a second and a half later, in the log and in the annotated file."""
    path = write_film(tmp_path / "a.mkv", gray_frames(5), 1.5 + np.arange(5) / 10, sound=[("aac", 0, 2)])
    frames, _ = read_path(path)
    assert [frame.time_s for frame in frames] == pytest.approx(1.5 + np.arange(5) / 10, abs=0.03)
    _, times, heard = inspect(annotate(path, tmp_path / "out.mp4"))
    assert times == pytest.approx(1.5 + np.arange(5) / 10, abs=0.03) and heard == pytest.approx((0, 2), abs=0.05)


def test_film_that_begins_late_begins_at_0(tmp_path):
    """Part of a longer recording: its first time is an hour."""
    path = write_film(tmp_path / "a.ts", gray_frames(5), 3600 + np.arange(5) / 10, sound=[("aac", 3600.2, 3601)])
    frames, _ = read_path(path)
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(5) / 10, abs=0.03)
    _, times, heard = inspect(annotate(path, tmp_path / "out.mp4"))
    assert times == pytest.approx(np.arange(5) / 10, abs=0.03) and heard == pytest.approx((0.2, 1), abs=0.07)


def test_edit_list_and_webm_are_complete(tmp_path, capsys):
    """An MP4 of 40 frames whose edit list shows the last 20; its header announces all of them."""
    path = write_film(tmp_path / "a.mp4", gray_frames(40), codec="mpeg4", gop_size=1)
    content = bytearray(path.read_bytes())
    edit = content.index(b"elst")
    assert struct.unpack(">III", content[edit + 8 : edit + 20])[0] == 1  # Version and flags, number of entries: one.
    (timescale,) = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)
    struct.pack_into(">Ii", content, edit + 12, 2000, 2 * timescale)
    path.write_bytes(content)
    frames, problem = read_path(path)
    assert len(frames) == 20 and problem is None
    frames, problem = read_path(write_film(tmp_path / "a.webm", gray_frames(37), 3 * np.arange(37), "libvpx"))
    assert len(frames) == 37 and problem is None and capsys.readouterr().out == ""


def test_sound_with_a_cover_is_not_a_video(tmp_path, portrait):
    """As music players store it: the cover is a video stream of one frame, and announces any number."""
    with av.open(str(tmp_path / "song.m4a"), "w", format="mp4") as output:
        tone, cover = output.add_stream("aac", SAMPLE_RATE), output.add_stream("mjpeg", 90_000)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 384, 450, "yuvj420p", 1 << 10
        picture = av.VideoFrame.from_ndarray(portrait, "bgr24")
        output.mux(cover.encode(picture.reformat(format="yuvj420p")))
        output.mux(cover.encode())
        for number in range(0, SAMPLE_RATE, 960):
            output.mux(tone.encode(make_tone(number)))
        output.mux(tone.encode())
    with pytest.raises(ValueError, match="song.m4a: has no video"):
        video.open_source(str(tmp_path / "song.m4a"))


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mov", ".mp4", ".webm"])
def test_file_that_was_cut_off_is_reported(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (40, 120, 160, 3), dtype=np.uint8)
    codec = {".avi": "mjpeg", ".webm": "libvpx"}.get(suffix, "libx264")
    path = write_film(tmp_path / f"a{suffix}", noise, codec=codec, container={"movflags": "faststart"})
    frames, problem = read_path(path)
    assert len(frames) == 40 and problem is None
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    frames, problem = read_path(path)
    assert 10 < len(frames) < 40 and f"a{suffix}: ends after frame {len(frames)}. The rest" in problem


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
    path = write_film(tmp_path / "a.avi", gray_frames(40), codec="mjpeg")
    drop_avi_frames(path, dropped)
    frames, problem = read_path(path)
    assert len(frames) == 36 and problem is None
    times = [number / 10 for number in range(40) if number not in dropped]
    assert [frame.time_s for frame in frames] == pytest.approx(times)


def test_raw_stream_without_times_has_those_of_its_rate(tmp_path):
    frames, problem = read_path(write_film(tmp_path / "a.h264", gray_frames(20), max_b_frames=0))
    assert [frame.time_s for frame in frames] == pytest.approx(np.arange(20) / frames[0].fps) and problem is None


def test_damaged_frames_are_skipped(tmp_path):
    """40,000 bytes are blank within the bundled clip, of 255 frames at 25 frames/s."""
    content = bytearray(video.DEMO_CLIP.read_bytes())
    content[400_000:440_000] = bytes(40_000)
    (tmp_path / "a.mp4").write_bytes(content)
    frames, problem = read_path(tmp_path / "a.mp4")
    assert len(frames) > 240 and problem is None
    assert frames[-1].time_s == pytest.approx(254 / 25, abs=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Annotated videos
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "recorded", "output", "written"),
    [
        (".mp4", "aac", ".mp4", "aac"),
        (".ts", "aac", ".mp4", "aac"),
        (".mkv", "libmp3lame", ".mp4", "mp3"),
        (".mov", "pcm_s16le", ".mp4", "aac"),
        (".mkv", "flac", ".m4v", "aac"),
        (".mkv", "ac3", ".mov", "aac"),
        (".mkv", "flac", ".mkv", "flac"),
        (".mkv", "libopus", ".webm", "opus"),
        (".mp4", "aac", ".webm", "opus"),
    ],
)
def test_sound_is_kept(tmp_path, suffix, recorded, output, written):
    """It lasts longer than the pictures, to the end."""
    path = write_film(tmp_path / f"a{suffix}", gray_frames(20), sound=[(recorded, 0, 3)])
    codecs, times, heard = inspect(annotate(path, tmp_path / f"out{output}"))
    assert codecs == {"video": "vp9" if output == ".webm" else "h264", "audio": written}
    assert times == pytest.approx(np.arange(20) / 10, abs=0.03) and heard == pytest.approx((0, 3), abs=0.06)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize(("codec", "layout"), [("aac", "stereo"), ("ac3", "5.1")])
def test_sound_of_joined_recordings_goes_on(tmp_path, suffix, codec, layout):
    """The times of the second one begin at 0 again, and its channels may be others."""
    parts = [
        write_film(tmp_path / f"{channels}.ts", gray_frames(20), sound=[(codec, 0, 2)], layout=channels).read_bytes()
        for channels in ("stereo", layout)
    ]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(parts))
    _, times, heard = inspect(annotate(path, tmp_path / f"out{suffix}"))
    assert len(times) == 40 and heard == pytest.approx((0, 4), abs=0.15)


def test_damaged_sound_ends_and_the_picture_goes_on(tmp_path, capsys, monkeypatch):
    path = write_film(tmp_path / "a.mkv", gray_frames(20), sound=[("aac", 0, 2)])
    shift = video.shift_times

    def jump_back(parts, start):
        for number, (time_s, part) in enumerate(shift(parts, start)):
            part.pts = part.dts = part.pts if number < 40 else 0
            yield time_s, part

    monkeypatch.setattr(video, "shift_times", jump_back)
    _, times, heard = inspect(annotate(path, tmp_path / "out.mp4"))
    assert len(times) == 20 and heard == pytest.approx((0, 0.85), abs=0.1)
    assert "out.mp4: the rest of the sound is left out (" in capsys.readouterr().out


def test_sound_that_begins_late_in_a_live_format(tmp_path):
    """FLV names its streams where they begin. FFmpeg knows of this sound after it has opened the file."""
    silent = write_film(tmp_path / "a.flv", gray_frames(40) * 4, np.arange(160) / 10)
    loud = write_film(tmp_path / "b.flv", gray_frames(20), sound=[("aac", 0, 2)])
    silent.write_bytes(silent.read_bytes() + loud.read_bytes()[13:])  # Without the header.
    frames, problem = read_path(silent)
    assert len(frames) == 180 and problem is None
    assert len(inspect(annotate(silent, tmp_path / "out.mp4"))[1]) == 180


def test_what_is_left_out_is_said_once(tmp_path, capsys):
    film = write_film(tmp_path / "a.mkv", gray_frames(5), sound=[("aac", 0, 1), ("ac3", 0, 1)])
    with av.open(str(film)) as source, av.open(str(tmp_path / "b.mkv"), "w") as output:
        streams = [output.add_stream_from_template(stream, opaque=True) for stream in source.streams]
        subtitle = av.Packet(b"Hello")
        subtitle.stream = output.add_mux_stream("subrip")
        subtitle.pts = subtitle.dts = 0
        subtitle.duration, subtitle.time_base = 500, fractions.Fraction(1, 1000)
        output.mux(subtitle)
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    codecs, times, _ = inspect(annotate(tmp_path / "b.mkv", tmp_path / "out.mp4"))
    assert codecs == {"video": "h264", "audio": "aac"} and len(times) == 5
    said = "further sound tracks and subtitles are left out."
    assert capsys.readouterr().out == f"{tmp_path / 'out.mp4'}: {said}\n"


def test_stopped_video_has_no_more_sound_than_pictures(tmp_path):
    path = write_film(tmp_path / "a.mp4", gray_frames(40), sound=[("aac", 0, 4)])
    with video.open_source(str(path)) as source, video.AnnotatedFiles(tmp_path / "out.mp4", source) as files:
        for frame, _ in zip(source.frames(), range(11), strict=False):
            files.write(frame.image, frame)
    _, times, heard = inspect(tmp_path / "out.mp4")
    assert len(times) == 11 and heard == pytest.approx((0, 1), abs=0.06)


def test_annotated_video_can_be_played_while_it_loads_and_by_most_players(tmp_path):
    """Its index comes first, its pixels are 4:2:0, and its size is even."""
    path = write_animation(tmp_path / "a.gif", [frame[:119, :159] for frame in gray_frames(5)])
    output = annotate(path, tmp_path / "out.mp4")
    content = output.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    with av.open(str(output)) as container:
        stream = container.streams.video[0].codec_context
        assert (stream.pix_fmt, stream.width, stream.height) == ("yuv420p", 160, 120)


@pytest.mark.parametrize("height", [360, 720])
def test_colors_of_an_annotated_video_are_those_of_the_film(tmp_path, quarters, height):
    """The film states no matrix, so players choose one by its height. The annotated one states it."""
    frame = cv2.resize(quarters, (640, height), interpolation=cv2.INTER_NEAREST) // 2 + 40
    path = write_film(tmp_path / "a.mp4", 3 * [frame])
    output = annotate(path, tmp_path / "out.mp4")
    (before, *_), _ = read_path(path)
    (after, *_), _ = read_path(output)
    assert np.abs(before.image.astype(int) - after.image).mean() < 3
    with av.open(str(output)) as container:
        assert container.streams.video[0].codec_context.colorspace == video.BT601


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_video_stopped_before_its_first_frame_leaves_the_former_file(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"former")
    writer = video.VideoWriter(path, (160, 120), video.SourceFrame(None, 0.0, "a", 10.0, still=False))
    writer.close(whole=False)
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == b"former"


def test_frames_of_another_size_are_resized(tmp_path):
    path = tmp_path / "out.mp4"
    writer = video.VideoWriter(path, (160, 120), video.SourceFrame(None, 0.0, "a", 10.0, still=False))
    for number, size in enumerate([(160, 120), (80, 60), (321, 241)]):
        writer.write(np.full((*size[::-1], 3), 90, np.uint8), number / 10, 10.0)
    writer.close()
    frames, _ = read_path(path)
    assert [frame.image.shape for frame in frames] == 3 * [(120, 160, 3)]


def test_video_of_single_pixels_is_labeled_and_written(run_script, tmp_path):
    path = write_animation(tmp_path / "a.gif", [np.full((1, 1, 3), 20 * number, np.uint8) for number in range(5)])
    finished = run_script("webcam_demo.py", path, "--no-display", "--output", tmp_path / "out.mp4")
    assert finished.returncode == 0, finished.stderr
    frames, _ = read_path(tmp_path / "out.mp4")
    assert len(frames) == 5 and frames[0].fps == 10 and frames[0].image.shape == (2, 2, 3)


def test_two_demos_into_one_output_do_not_mix(tmp_path, clip):
    """The last one to end wins, and its file is complete."""
    command = [sys.executable, str(ROOT / "webcam_demo.py"), "--no-display", "--output", "out.mp4"]
    long = write_film(tmp_path / "long.mp4", 3 * gray_frames(40))
    demos = [subprocess.Popen([*command, str(path)], cwd=tmp_path) for path in (long, clip)]
    assert [demo.wait() for demo in demos] == [0, 0]
    frames, problem = read_path(tmp_path / "out.mp4")
    assert len(frames) in (120, 30) and problem is None and sorted(os.listdir(tmp_path)) == ["long.mp4", "out.mp4"]


@pytest.fixture(scope="module")
def noisy_video(tmp_path_factory, portrait):
    """A video that is a few MB long when it is written again, with a face for the log."""
    random = np.random.default_rng(0)
    frames = [portrait // 2 + random.integers(0, 100, portrait.shape, dtype=np.uint8) for _ in range(100)]
    return write_film(tmp_path_factory.mktemp("noisy") / "noisy.avi", frames, codec="mjpeg", bit_rate=10**8)


needs_small_disk = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="needs unshare, which mounts a small disk",
)


@needs_small_disk
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_full_disk_stops_the_demo_and_the_video_so_far_plays(noisy_video, tmp_path, name):
    """Of 17 MB, 16 stay free for the index, so about 1 MB is written."""
    (tmp_path / "disk").mkdir()
    demo = f"{sys.executable} {ROOT / 'webcam_demo.py'} {noisy_video} --no-display --output disk/{name}"
    mount = "mount -t tmpfs -o size=17M none disk"
    command = f"{mount} && {{ {demo}; status=$?; cp disk/* .; ls -A disk > listing; exit $status; }}"
    finished = subprocess.run(["unshare", "-rm", "bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1, finished.stderr
    frames, problem = read_path(tmp_path / name)
    assert f"the disk is full. The video ends after frame {len(frames)}." in finished.stderr and 10 < len(frames) < 100
    assert f"Wrote disk/{name}." in finished.stdout
    assert (tmp_path / "listing").read_text().split() == [name] and problem is None


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
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.webm"])
def test_video_that_cannot_be_completed_leaves_the_former_file(noisy_video, tmp_path, name):
    (tmp_path / name).write_bytes(b"former")
    command = f"ulimit -f 8; {sys.executable} {ROOT / 'webcam_demo.py'} {noisy_video} --no-display --output {name}"
    finished = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 2 and f"{name}: could not be completed" in finished.stderr
    assert "frames/s" in finished.stdout and "Wrote" not in finished.stdout
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert (tmp_path / name).read_bytes() == b"former" and os.listdir(tmp_path) == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_sigkill_leaves_the_former_video(noisy_video, clip, tmp_path):
    shutil.copy(clip, tmp_path / "out.mp4")
    command = [sys.executable, str(ROOT / "webcam_demo.py"), str(noisy_video), "--no-display", "--output", "out.mp4"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline and not any(tmp_path.glob(".new-*-out.mp4")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    frames, problem = read_path(tmp_path / "out.mp4")
    assert len(frames) == 30 and problem is None


def test_image_that_the_format_cannot_hold_is_reported(tmp_path):
    with pytest.raises(OSError, match="cannot hold 17000x4 pixels"):  # WebP ends at 16383.
        video.write_image(tmp_path / "wide.webp", np.zeros((4, 17000, 3), np.uint8))
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------------
# Servers
# ---------------------------------------------------------------------------------------------------------------------


class FileServer(http.server.SimpleHTTPRequestHandler):
    """Serves files without ranges, as many small servers do. With `password` set, only to requests with it."""

    password = None

    def do_GET(self):
        expected = self.password and f"Basic {base64.b64encode(f'user:{self.password}'.encode()).decode()}"
        if expected != self.headers.get("Authorization"):
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="files"')
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(OSError):  # The demo hangs up.
            super().handle()


@pytest.fixture(scope="module")
def web_folder(tmp_path_factory):
    """A folder with a few frames in five formats."""
    folder, frames = tmp_path_factory.mktemp("web"), gray_frames(10)
    write_film(folder / "a.ts", frames, sound=[("aac", 0, 1)])
    write_film(folder / "a.mkv", frames)
    write_animation(folder / "a.gif", frames)
    cv2.imwrite(str(folder / "a.jpg"), frames[5])
    noise = np.random.default_rng(0).integers(0, 256, (30, 240, 320, 3), dtype=np.uint8)
    write_film(folder / "noise.mp4", noise)
    return folder


@pytest.mark.parametrize(("file", "count"), [("a.ts", 10), ("a.gif", 10), ("a.jpg", 1), ("noise.mp4", 30)])
def test_file_on_a_web_server_is_played_once_and_to_its_end(web_folder, serve, file, count):
    """The index of noise.mp4 is at its end, where FFmpeg cannot get without ranges."""
    address = serve(functools.partial(FileServer, directory=web_folder))
    source = video.open_source(f"http://{address}/{file}?token=secret")
    assert isinstance(source, video.FileSource) and source.title == f"http://{address}/{file}"
    assert len(read_all(source)) == count and source.problem is None
    assert not source.folder or not os.path.exists(source.folder.name)


def test_sound_of_a_film_on_a_web_server_is_kept(web_folder, serve, tmp_path):
    address = serve(functools.partial(FileServer, directory=web_folder))
    codecs, times, heard = inspect(annotate(f"http://{address}/a.ts", tmp_path / "out.mp4"))
    assert codecs == {"video": "h264", "audio": "aac"} and len(times) == 10 and heard == pytest.approx((0, 1), abs=0.07)


class UnsizedServer(FileServer):
    """Does not say how long a file is. Closes the connection at its end."""

    def send_header(self, keyword, value):
        if keyword != "Content-Length":
            super().send_header(keyword, value)


@pytest.mark.parametrize(("file", "count"), [("a.mkv", 10), ("a.gif", 10), ("a.jpg", 1)])
def test_file_of_unknown_size_is_read_to_its_end(web_folder, serve, file, count):
    address = serve(functools.partial(UnsizedServer, directory=web_folder))
    source = video.open_source(f"http://{address}/{file}")
    assert len(read_all(source)) == count and source.problem is None


class PlaylistServer(FileServer):
    """Serves a live playlist (HLS) of segments of a second each, with one more every second."""

    def do_GET(self):
        if not self.path.endswith("/live.m3u8"):
            super().do_GET()
            return
        newest = int(time.monotonic() - self.started)
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", f"#EXT-X-MEDIA-SEQUENCE:{newest}"]
        lines += [f"#EXTINF:1.0,\nvod{number}.ts" for number in range(newest, newest + 3)]
        content = "\n".join([*lines, ""]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def test_live_playlist_is_shown_at_its_own_rate(tmp_path, serve):
    """Its frames come by the segment: 20 at once."""
    options = {"hls_time": "1", "hls_list_size": "0"}
    frames = [frame for frame in gray_frames(40) for _ in range(8)]
    write_film(tmp_path / "vod.m3u8", frames, np.arange(320) / 20, rate=20, container=options, gop_size=20)
    assert len(list(tmp_path.glob("vod*.ts"))) == 16
    PlaylistServer.started = time.monotonic()
    address = serve(functools.partial(PlaylistServer, directory=tmp_path))
    with video.open_source(f"http://{address}/live.m3u8") as source:
        assert source.kind == "stream"
        times = [frame.time_s for frame, _ in zip(source.frames(), range(80), strict=False) if frame.image is not None]
    assert len(times) >= 75 and 2.5 < times[-1] - times[0] < 8
    assert np.quantile(np.diff(times), 0.9) < 0.2


class HalfServer(FileServer):
    """Closes the connection after half of a file."""

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // 2])


def test_download_that_ends_early_is_one_line(web_folder, serve):
    address = serve(functools.partial(HalfServer, directory=web_folder))
    with pytest.raises(ValueError, match=r"noise.mp4: the download failed \(.*\). Try again, or download it yourself."):
        video.open_source(f"http://{address}/noise.mp4")


@pytest.mark.parametrize("file", ["a.gif", "a.ts", "noise.mp4"])
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
    """Stands in for cv2.VideoCapture. Counts upwards, a hundred frames a second.

    `script` says what else happens before the frame of a number: a number of seconds is a stall, False a read that
    fails, an exception one that raises it.
    """

    opened = []

    def __init__(self, script=(), size=(2, 2), sizes=()):
        self.number, self.script, self.size, self.sizes, self.settings = 0, dict(script), size, sizes, {}

    def __call__(self, index):
        """Opens it."""
        Camera.opened.append(index)
        return self

    def read(self):
        event = self.script.pop(self.number + 1, 0.01)
        if isinstance(event, Exception):
            raise event
        time.sleep(event)
        if event is False:
            return False, None
        self.number += 1
        return True, np.broadcast_to(np.uint8(self.number % 250), (*self.size[::-1], 3))

    def get(self, name):
        return {cv2.CAP_PROP_FPS: 12.5}.get(name, 0.0)

    def set(self, name, value):
        self.settings[name] = value
        asked = tuple(self.settings.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        self.size = asked if asked in self.sizes else self.size

    def release(self):
        pass


@pytest.fixture
def plug(monkeypatch):
    """Makes these cameras the ones that open, one after the other; the last one again and again."""
    monkeypatch.setattr(video, "RETRY_PAUSES", (0.05, 0.1, 0.2))

    def plug(*cameras):
        cameras = list(cameras)
        monkeypatch.setattr(cv2, "VideoCapture", lambda _: cameras.pop(0) if len(cameras) > 1 else cameras[0])
        return cameras

    return plug


def numbers(source, count):
    """Returns the numbers of the next frames, None where the source stalled."""
    images = (frame.image for frame in source.frames())
    return [None if image is None else int(image[0, 0, 0]) for _, image in zip(range(count), images, strict=False)]


def test_slow_consumer_of_a_live_source_gets_the_newest_frame(plug):
    (camera,) = plug(Camera())
    ages = []
    with video.open_source("0") as source:
        for _, frame in zip(range(6), source.frames(), strict=False):
            if frame.image is not None:
                ages.append(camera.number - int(frame.image[0, 0, 0]))
            time.sleep(0.1)
    assert len(ages) >= 5 and max(ages) <= 10  # A hundred milliseconds.


def test_camera_has_its_own_rate_and_the_size_that_is_asked_for(plug, capsys):
    plug(Camera(size=(640, 480), sizes=[(1280, 720)]))
    with video.open_source("0", (1280, 720)) as source:
        frame = next(source.frames())
    assert frame.image.shape == (720, 1280, 3) and (frame.fps, frame.file) == (12.5, "Camera 0")
    assert capsys.readouterr().out == ""
    plug(Camera(size=(640, 480), sizes=[(1280, 720)]))
    with video.open_source("0", (1920, 1080)) as source:
        assert next(source.frames()).image.shape == (480, 640, 3)
    assert capsys.readouterr().out == "Camera 0: sends 640x480 pixels instead.\n"


def test_stalled_stream_is_reported_and_continues(plug, monkeypatch):
    monkeypatch.setattr(video, "PATIENCE", 0.1)
    plug(Camera({3: 0.5}))
    with video.open_source("0") as source:
        seen = numbers(source, 12)
    assert seen.count(None) >= 3  # Half a second, reported every tenth of it.
    after = seen[len(seen) - seen[::-1].index(None) :]
    assert after and after[0] == 3 and source.problem is None


@pytest.mark.parametrize("failure", [False, cv2.error("the driver")])
def test_unplugged_camera_is_opened_again(plug, failure):
    """Its reads fail after three frames; the second attempt to open it succeeds, and it counts from 1 again."""
    cameras = plug(Camera({4: failure}), Camera({1: False}), Camera())
    with video.open_source("0") as source:
        seen = [number for number in numbers(source, 10) if number]
    assert len(cameras) == 1 and len(seen) > 3 and source.problem is None


def test_camera_that_raises_at_once_is_not_opened(plug):
    plug(Camera({1: cv2.error("the driver")}))
    with pytest.raises(ValueError, match="Camera 3: cannot be opened"):
        video.open_source("3")


def test_camera_that_stays_unplugged_ends_with_a_sentence(plug):
    plug(Camera({3: False}), Camera({1: False}), Camera({1: False}), Camera({1: False}))
    with video.open_source("0") as source:
        assert [number for number in numbers(source, 1000) if number] == [2]
    assert source.problem.startswith("Camera 0: no more frames, and it cannot be opened again.")


def test_live_source_whose_frames_grow_too_large_ends(plug):
    (camera,) = plug(Camera())
    with video.open_source("0") as source:
        camera.size = (12_000, 12_000)
        numbers(source, 1000)
    assert "12000x12000 pixels" in source.problem


@pytest.fixture
def hanging_stream(monkeypatch, portrait):
    """A server of motion JPEG that sends three frames and then nothing, to each client."""
    monkeypatch.setattr(video, "RETRY_PAUSES", (0.1,))
    monkeypatch.setattr(video, "STREAM_TIMEOUT", 1.0)
    jpeg = cv2.imencode(".jpg", portrait)[1].tobytes()

    class Stream(http.server.BaseHTTPRequestHandler):
        clients = 0

        def do_GET(self):
            Stream.clients += 1
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
            for _ in range(3):
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
                self.wfile.write(jpeg + b"\r\n")
            time.sleep(10)

        def handle(self):
            with contextlib.suppress(OSError):  # The demo hangs up.
                super().handle()

        def log_message(self, *_):
            pass

    return Stream


def test_stream_that_hangs_is_opened_again(hanging_stream, serve):
    with video.open_source(f"http://{serve(hanging_stream)}/") as source:
        before, stalls = hanging_stream.clients, 0
        for frame in source.frames():
            stalls += frame.image is None
            if hanging_stream.clients >= before + 3:
                break
    assert stalls >= 2 and source.problem is None


# ---------------------------------------------------------------------------------------------------------------------
# PyAV next to OpenCV
# ---------------------------------------------------------------------------------------------------------------------

# Opens a window as the project does: for a file, PyAV is imported before it; for a camera with --output, after it.
OPEN_WINDOW = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import cv2, numpy as np, video
image = np.zeros((120, 160, 3), np.uint8)
def show():
    cv2.namedWindow("a")
    for _ in range(5):
        cv2.imshow("a", image)
        cv2.waitKey(10)
assert "av" not in sys.modules
ORDER
assert "av" in sys.modules
print("shown")
"""
FILE = "list(video.open_source(sys.argv[1]).frames()); show()"
CAMERA = (
    "show(); first = video.SourceFrame(image, 0.0, 'Camera 0', 25.0, still=False);"
    "writer = video.VideoWriter(video.Path(sys.argv[2]), (160, 120), first);"
    "writer.write(image, 0.0, 10.0); show(); writer.close()"
)


@pytest.mark.skipif(not shutil.which("Xvfb"), reason="needs Xvfb")
@pytest.mark.parametrize("order", [FILE, CAMERA], ids=["file", "camera"])
def test_window_opens_before_and_after_pyav(clip, tmp_path, order):
    read, write = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(write)], pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as display:
        environment = {**os.environ, "DISPLAY": f":{display.readline().strip()}"}
    command = [sys.executable, "-c", OPEN_WINDOW.replace("ORDER", order), str(clip), str(tmp_path / "out.mp4")]
    try:
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    finally:
        server.terminate()
        server.wait()
    assert finished.stdout == "shown\n", finished.stderr
