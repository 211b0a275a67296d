"""Downloads and copies the files that the page needs, and git does not hold, into docs/vendor/.

    python docs/vendor.py

It needs npm and the packages of requirements-demo.txt. npm checks its packages against package-lock.json.
"""

import argparse
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import cv2

DOCS = Path(__file__).resolve().parent
VENDOR, MODEL, CLIP = DOCS / "vendor", DOCS.parent / "models" / "emotions-5", DOCS.parent / "data" / "demo.mp4"
CASCADES = {  # SHA-256 of the files in opencv-python.
    "haarcascade_frontalface_default.xml": "0f7d4527844eb514d4a4948e822da90fbb16a34a0bbbbc6adc6498747a5aafb0",
    "haarcascade_frontalface_alt.xml": "6281df13459cc218ff047d02b2ae3859b12ff14a93ffe8952f7b33fad7b9697b",
    "haarcascade_profileface.xml": "b39a4a3be45539db146a7fc1d3e761a292c196eb88421185e6a615b3055e612d",
}
# The build of LiteRT for browsers with relaxed SIMD, and the one for others.
LITERT_BUILDS = ("litert_wasm_internal", "litert_wasm_compat_internal")
WASM_IN_BASE64 = re.compile('"data:application/octet-stream;base64,(AGFzb[^"]+)"')  # "\0asm" comes first.


def install_packages(folder):
    """Installs what package-lock.json lists into a folder, unchanged and without running its scripts."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(DOCS / name, folder)
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm is not installed. Install Node.js, which brings it.")
    subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True, stdout=sys.stderr
    )
    return folder / "node_modules"


def copy_litert(packages, output):
    output.mkdir()
    script = (packages / "@litertjs/core/dist/index.js").read_text(encoding="utf-8")
    # A worker knows no import map, so the import has to name a file.
    script = script.replace('"@litertjs/wasm-utils"', '"./wasm-utils.js"')
    write_script(output / "litert.js", script)
    script = (packages / "@litertjs/wasm-utils/dist/index.js").read_text(encoding="utf-8")
    write_script(output / "wasm-utils.js", script)
    for build in LITERT_BUILDS:
        for suffix in (".js", ".wasm"):
            shutil.copy(packages / "@litertjs/core/wasm" / (build + suffix), output)
    # LiteRT's package names its license without the text. The text is the same as OpenCV's.
    shutil.copy(packages / "@opencvjs/web/LICENSE", output)


def copy_opencv(packages, output):
    """Splits OpenCV into its script and its WebAssembly, which the script holds in base64."""
    output.mkdir()
    script = (packages / "@opencvjs/web/lib/opencv_js.js").read_text(encoding="utf-8")
    (output / "opencv.wasm").write_bytes(base64.b64decode(WASM_IN_BASE64.search(script)[1]))
    write_script(output / "opencv.js", WASM_IN_BASE64.sub('"opencv.wasm"', script))
    shutil.copy(packages / "@opencvjs/web/LICENSE", output)
    for name, expected in CASCADES.items():
        copy_checked(Path(cv2.data.haarcascades) / name, output, expected)


def write_script(path, script):
    """Writes a script without the address of its source map, which is not copied."""
    path.write_text(re.sub(r"\n//# sourceMappingURL=.*", "\n", script), encoding="utf-8")


def copy_checked(path, folder, expected):
    """Copies a file whose SHA-256 has to be the expected one."""
    content = path.read_bytes()
    received = hashlib.sha256(content).hexdigest()
    if received != expected:
        sys.exit(f"{path}: its SHA-256 is {received}, but {expected} was expected.")
    (folder / path.name).write_bytes(content)


def copy_model(output):
    output.mkdir()
    shutil.copy(MODEL / "model.json", output)
    description = json.loads((MODEL / "model.json").read_text(encoding="utf-8"))
    copy_checked(MODEL / "model.tflite", output, description["tflite_sha256"])


def encode_clip(output):
    """Writes the bundled clip as H.264, because browsers do not play MPEG-4 Part 2."""
    with av.open(str(CLIP)) as clip, av.open(str(output), "w", options={"movflags": "faststart"}) as encoded:
        source = clip.streams.video[0]
        stream = encoded.add_stream("libx264", rate=source.average_rate, options={"crf": "20", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = source.width, source.height, "yuv420p"
        for frame in clip.decode(source):
            encoded.mux(stream.encode(frame.reformat(format="yuv420p")))
        encoded.mux(stream.encode())


def main():
    """Replaces docs/vendor/ once everything is complete."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(dir=DOCS, prefix=".new-") as folder:
        output = Path(folder) / "vendor"
        output.mkdir()
        (Path(folder) / "packages").mkdir()
        packages = install_packages(Path(folder) / "packages")
        copy_litert(packages, output / "litert")
        copy_opencv(packages, output / "opencv")
        copy_model(output / "model")
        encode_clip(output / "demo.mp4")
        shutil.rmtree(VENDOR, ignore_errors=True)
        output.rename(VENDOR)
    size = sum(path.stat().st_size for path in VENDOR.rglob("*") if path.is_file())
    print(f"{VENDOR}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
