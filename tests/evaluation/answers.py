"""An `Evaluation` of which the answers are known and nothing was attacked."""

import numpy as np

from mixjax import evaluation


def of_answers(correct, weights, runs, **fields):
    """What is not given is taken for none, and the average for as right as the heaviest member."""
    correct, weights = np.asarray(correct, bool), np.asarray(weights, np.float64)
    num_examples, num_runs = correct.shape[0], len(runs)
    given = {
        "name": "mixture",
        "threat": None,
        "num_steps": (0,) * num_runs,
        "labels": np.zeros(num_examples, np.int32),
        "averaged_correct": correct[:, :, int(np.argmax(weights))],
        "is_nan": np.zeros_like(correct),
        "is_complete": np.ones(num_examples, bool),
        "images": np.zeros((num_examples, 0), np.float32),
        "num_attacked": np.full(num_runs, num_examples),
    }
    given |= {name: np.zeros(num_runs) for name in ("num_answers", "num_gradients", "seconds")}
    made = {"weights": weights, "runs": tuple(runs), "correct": correct}
    return evaluation.Evaluation(**made, **given | fields)
