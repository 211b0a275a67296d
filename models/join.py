"""Joins trained networks into one, which reads a face as they do on average, and writes it as a model folder.

    python models/join.py models/large-5 models/small-5 --output-dir models/emotions-5

The networks stand side by side under one dense layer, whose logits are the mean of theirs. Nothing is trained; only the
temperature is fitted on PublicTest, as after every training.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train  # First, because it keeps TensorFlow from greeting.

# isort: split
import keras
import pandas as pd

import checkpoints
import evaluate
import networks
import utils


def read_network(folder):
    """Reads what train.py wrote.

    Returns:
        description: dict, the content of its `model.json`.
        history: `pandas.DataFrame`, of its `history.csv`.
        network: `keras.Model`.

    Raises:
        FileNotFoundError, ValueError: a part is missing or damaged, or the networks in the folder are joined ones.
    """
    description = utils.load_emotion_model(folder).description
    training = description.get("training")
    if not isinstance(training, dict) or {"data_sha256": str, "seconds": int} != {
        name: type(training.get(name)) for name in ("data_sha256", "seconds")
    }:
        raise ValueError(f"{folder / 'model.json'} must say how train.py trained. Received: no complete `training`.")
    if "joined" in training:
        raise ValueError(f"Networks that train.py wrote are joined. Received: {folder}, which holds joined ones.")
    history = evaluate.read_history(folder / "history.csv")
    try:
        network = keras.saving.load_model(folder / "model.keras", compile=False)
    except (*utils.UNREADABLE, AttributeError) as error:
        raise ValueError(f"{folder / 'model.keras'} must be a network of train.py. Received: {error!r}.") from error
    return description, history, network


def join(folders, data, output_dir):
    """Writes the model folder of joined networks.

    Args:
        folders: model folders of the same classes that have learned from the same faces.
        data: path of the data set.
        output_dir: model folder to write.

    Returns:
        description: dict, the content of `model.json`. Its `training` is that of the first network, but for the
            seconds of all, the accuracy of what is written, and `joined`, a list of every network's own.

    Raises:
        FileNotFoundError, ValueError: the data or a network cannot be used.
    """
    output_dir = output_dir.resolve()
    if not train.can_export():
        raise ValueError("Joining needs Keras on TensorFlow. Repeat with KERAS_BACKEND=tensorflow.")
    checkpoints.check_replaceable(output_dir)
    if output_dir in [folder.resolve() for folder in folders]:
        raise ValueError(f"--output-dir must not be one of the networks that are joined. Received: {output_dir}.")
    descriptions, histories, trained = zip(*map(read_network, folders), strict=True)
    trainings = [description["training"] for description in descriptions]
    if len({(*one["classes"], one["training"]["data_sha256"]) for one in descriptions}) > 1:
        raise ValueError(
            "Networks are joined that read the same classes and have learned from the same faces. "
            f"Received: {', '.join(map(str, folders))}, which differ in that."
        )
    num_classes, limit = len(descriptions[0]["classes"]), trainings[0].get("limit")
    if train.data_hash(*utils.load_fer2013(data, "train", num_classes, limit)) != trainings[0]["data_sha256"]:
        raise ValueError(f"--data must be the data set that the networks have learned from. Received: {data}.")
    faces, labels = utils.load_fer2013(data, "val", num_classes, limit)
    network = networks.join(trained)
    training = trainings[0] | {"seconds": sum(each["seconds"] for each in trainings), "joined": trainings}
    counts = {"parameters": network.count_params(), "macs": networks.count_macs(network)}
    description = descriptions[0] | counts | {"training": training}
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with checkpoints.replaced_folder(output_dir) as folder:
        history = pd.concat(histories, keys=range(1, len(folders) + 1), names=["network", None]).reset_index("network")
        history.astype({"epoch": int, "size": int}).to_csv(folder / "history.csv", index=False)
        train.write_model(folder, network, description, faces, labels)
        train.write_description(folder, description)
        train.keep_better(output_dir, description)
    return description


def main(argv=None):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="model folders that train.py wrote")
    parser.add_argument("--output-dir", type=Path, required=True, help="model folder to write")
    parser.add_argument("--data", type=Path, default=utils.DEFAULT_DATA, help="data set (default: data/fer2013.csv)")
    args = parser.parse_args(argv)
    if len(args.folders) < 2:
        parser.error("Two networks or more are joined.")
    utils.make_any_name_printable()
    try:
        description = join(args.folders, args.data, args.output_dir)
    except (OSError, ValueError) as error:
        print(f"join.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(
        f"Validation accuracy {description['training']['val_accuracy']:.4f} (PublicTest). The model is in "
        f"{args.output_dir}.\nNext: python evaluate.py --data {args.data} --model {args.output_dir} --split val"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
