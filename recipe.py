"""The recipe: every number that decides how good a model becomes, with its reason or unit; used by train.py.

But for the epochs and the batch size, which are its flags.
"""

# The networks, and what else differs between them: the large one takes four times the operations, and bears more
# change of the faces.
#   STAGES: (filters, convolutions, residual pairs of them) of each stage; the picture is halved between stages.
#   MIRROR_SYMMETRIC: a face and its mirror image get the same probabilities; the numbers of filters must be even.
#   HEAD_DROPOUT: before the dense layer.
#   MAX_ROTATION: in degrees. MAX_SCALE: share of the face's size. ERASING_PROBABILITY: of a face, to lose a rectangle.
NETWORKS = {
    "small": {
        "STAGES": ((24, 2, 0), (48, 2, 0), (96, 1, 1), (192, 2, 0)),
        "MIRROR_SYMMETRIC": False,
        "HEAD_DROPOUT": 0.3,
        "MAX_ROTATION": 10,
        "MAX_SCALE": 0.1,
        "ERASING_PROBABILITY": 0.4,
    },
    "large": {
        "STAGES": ((32, 2, 0), (64, 1, 1), (160, 1, 2), (320, 1, 1)),
        "MIRROR_SYMMETRIC": True,
        "HEAD_DROPOUT": 0.4,
        "MAX_ROTATION": 12,
        "MAX_SCALE": 0.15,
        "ERASING_PROBABILITY": 0.5,
    },
}
STAGE_DROPOUT = 0.1  # After every stage but the first, whole channels.
BATCH_NORM_MOMENTUM = 0.9  # Keras's 0.99 lags: in a short run its statistics are still those of the first steps.

# Optimisation: stochastic gradient descent, the rate rising for WARMUP of all steps and falling to zero as a cosine.
PEAK_LEARNING_RATE = 0.1
WARMUP = 0.05
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-3  # Keras multiplies it by the rate, outside the momentum: the usual 5e-4 over 1 - 0.9.
LABEL_SMOOTHING = 0.1
TEACHER_SMOOTHING = 0.0  # Of folds: smoothing hides which emotions a face is between (Müller et al., 2019).
SOFT_WEIGHT = 0.25  # Of a soft label beside the label, where there is one.

# Crops: (width in pixels, share of the run at which it ends). A crop at the face's own scale teaches as much as the
# whole face, at two thirds of the cost.
SIZES = ((40, 0.75), (48, 1.0))

# Augmentation, drawn anew for every face and epoch, besides what the networks differ in.
MAX_SHIFT = 0.1  # Share of the crop's size.
MAX_CONTRAST = 0.3  # Share of the distance of each pixel from mid-gray.
ERASING_SIDE = (0.15, 0.4)  # Share of the face's side.
