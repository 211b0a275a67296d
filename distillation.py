"""Soft labels: what networks that have not seen a Training face think of it; used by train.py and evaluate.py.

Each network of a set is trained without one fold of Training (`train.py --fold`) and then reads the faces of that fold;
data/make_soft_labels.py averages what they read into data/soft_labels-7.npz, which later trainings learn from beside
the labels (knowledge distillation: Hinton et al., 2015). A face is known by the hash of its pixels, so that the file
fits any order of the data set, and any form of it but JPEG, which changes pixels.
"""

import hashlib

import numpy as np
import pandas as pd

import utils

FOLDS = 5
DEFAULT_PATH = utils.ROOT / "data" / "soft_labels-7.npz"


def hash_faces(faces):
    """Returns the first 8 bytes of the SHA-256 of each face's pixels, uint64 (N,)."""
    digests = b"".join(hashlib.sha256(face.tobytes()).digest()[:8] for face in faces)
    return np.frombuffer(digests, "<u8")


def assign_folds(faces, labels):
    """Shares faces out over folds: copies of an image into one fold, and the same part of each class into each.

    Returns:
        folds: int (N,), 0..FOLDS - 1, the same for any order of the faces.
    """
    hashes = hash_faces(faces)
    images = pd.DataFrame({"hash": hashes, "label": labels}).sort_values(["label", "hash"]).drop_duplicates("hash")
    fold_of = pd.Series(np.arange(len(images)) % FOLDS, index=images["hash"])
    return fold_of[hashes].to_numpy()


def save_soft_labels(path, hashes, probabilities):
    """Writes soft labels, 15 bytes a face: `hashes` uint64 (N,), `probabilities` float (N, 7) to 1/255."""
    order = np.argsort(hashes)
    np.savez_compressed(path, hashes=hashes[order], probabilities=np.rint(255 * probabilities[order]).astype(np.uint8))


def read_arrays(path, *names):
    """Returns the arrays of these names in an `.npz` file.

    Raises:
        ValueError: it is none, damaged, or has not all of them.
    """
    try:
        with np.load(path) as stored:
            return [stored[name] for name in names]
    except utils.UNREADABLE as error:
        raise ValueError(str(error)) from error


def load_soft_labels(path, faces, num_classes):
    """Reads the soft labels of faces.

    Returns:
        probabilities: float32 (N, num_classes), rows sum to 1; 0 for a face without soft label.
        share: float32 (N,), how much of the seven emotions' probabilities is the classes', 0 for such a face: the less,
            the less the probabilities mean.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        hashes, all_probabilities = read_arrays(path, "hashes", "probabilities")
        all_probabilities = all_probabilities.astype(np.float32)
        if not len(hashes) or all_probabilities.shape != (len(hashes), len(utils.EMOTIONS)):
            raise ValueError(f"probabilities of shape {all_probabilities.shape} for {len(hashes)} hashes")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must be soft labels. Received: {error}. Without them: --no-soft-labels") from error
    wanted = hash_faces(faces)
    rows = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
    known = (hashes[rows] == wanted)[:, np.newaxis]
    everything = np.where(known, all_probabilities[rows], 0)
    probabilities = everything[:, utils.CLASS_SETS[num_classes]]
    total = probabilities.sum(axis=1)
    share = total / np.maximum(everything.sum(axis=1), 1)
    return probabilities / np.maximum(total, 1)[:, np.newaxis], share
