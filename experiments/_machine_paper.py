"""Error rates that Hamm 2018 reports: tables 3, 4 and 5 (MNIST) and 8, 9 and 10 (CIFAR-10).

The MNIST classifier without defence has a clean error of .006 in table 1 and of .026 in table 3.
"""

_HEAD = ("clean", "fgsm_curr", "attack_network_curr")


def _published(names, etas, numbers):
    """`eta -> classifier -> attack -> error` from rows of (clean, FGSM-curr, AttNet-curr)."""
    return {
        eta: {
            name: {
                attack: error for attack, error in zip(_HEAD, row, strict=True) if error is not None
            }
            for name, row in zip(names, rows, strict=True)
        }
        for eta, rows in zip(etas, numbers, strict=True)
    }


_NAMES = (
    "No defense", "Adv FGSM1", "Adv FGSM2", "Adv FGSM80", "LWA FGSM", "Sens FGSM", "Alt", "Minimax"
)  # fmt: skip
PAPER = {
    "mnist": _published(
        _NAMES,
        (0.3, 0.4, 0.5, 0.6),
        (
            (
                (0.026, 1.000, 1.000),
                (0.012, 0.995, 1.000),
                (0.012, 0.995, None),
                (0.009, 0.442, 0.899),
                (0.008, 0.048, None),
                (0.009, 0.048, 0.965),
                (None, 0.244, 0.104),
                (None, 0.218, 0.020),
            ),
            (
                (0.026, 1.000, 1.000),
                (0.013, 0.984, 1.000),
                (0.017, 0.999, None),
                (0.009, 0.131, 0.903),
                (0.009, 0.043, None),
                (0.009, 0.038, 0.902),
                (None, 0.503, 0.873),
                (None, 0.238, 0.552),
            ),
            (
                (0.026, 1.000, 1.000),
                (0.010, 0.970, 1.000),
                (0.010, 0.871, None),
                (0.008, 0.089, 0.897),
                (0.009, 0.035, None),
                (0.009, 0.039, 1.000),
                (None, 0.289, 0.902),
                (None, 0.342, 1.000),
            ),
            (
                (0.026, 1.000, 1.000),
                (0.012, 0.889, 1.000),
                (0.008, 0.767, None),
                (0.009, 0.021, 0.897),
                (0.011, 0.034, None),
                (0.010, 0.033, 0.903),
                (None, 0.157, 0.899),
                (None, 0.299, 1.000),
            ),
        ),
    ),
    "cifar10": _published(
        _NAMES,
        (0.1, 0.2, 0.3, 0.4),
        (
            (
                (0.222, 0.976, 0.740),
                (0.220, 0.245, 0.999),
                (0.258, 0.708, None),
                (0.228, 0.086, 1.000),
                (0.223, 0.125, None),
                (0.223, 0.106, 0.898),
                (None, 0.994, 0.264),
                (None, 0.967, 0.276),
            ),
            (
                (0.222, 0.969, 0.905),
                (0.216, 0.264, 1.000),
                (0.305, 0.556, None),
                (0.218, 0.078, 1.000),
                (0.209, 0.105, None),
                (0.209, 0.073, 0.979),
                (None, 0.996, 0.857),
                (None, 0.980, 0.418),
            ),
            (
                (0.222, 0.955, 0.888),
                (0.214, 0.424, 1.000),
                (0.205, 0.389, None),
                (0.223, 0.084, 1.000),
                (0.215, 0.215, None),
                (0.213, 0.089, 1.000),
                (None, 0.987, 0.896),
                (None, 0.967, 0.875),
            ),
            (
                (0.222, 0.941, 0.999),
                (0.208, 0.536, 1.000),
                (0.206, 0.545, None),
                (0.225, 0.124, 0.900),
                (0.210, 0.173, None),
                (0.214, 0.109, 1.000),
                (None, 0.958, 1.000),
                (None, 0.931, 0.994),
            ),
        ),
    ),
}
