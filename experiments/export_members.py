"""A finished run's members and test examples for programs in PyTorch, AutoAttack's or ARC's.

    python -m experiments.export_members --run-dir runs/demo --output exported

Writes into the new folder `exported` a state dict of PyTorch for each member of the most robust
mixture, `member_1.safetensors` and so on, under the names that `models.save_pretrained` explains;
`examples.npz` with `images [N, channels, H, W]` in [0, 1] and `labels [N]`; and `mixture.json` with
the architecture, the members' weights, mean and standard deviation of the pixels, norm and radius,
and a digest of every file of weights.
"""

import dataclasses
import io
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.meunier_2021.algorithm import build
from experiments.meunier_2021.training import restore
from experiments.run import program
from experiments.run.command_line import flag
from experiments.run.reading import read_run
from mixjax import checks, data, files, models
from mixjax.models.resnet import CHANNEL_MEAN, CHANNEL_STD
from mixjax.typing import PyTree

PROGRAM = "experiments.export_members"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every field is a flag."""

    run_dir: str = flag("", "folder of the finished run")
    output: str = flag("exported", "folder to write, which must not be there yet")
    num_examples: int = flag(0, "test examples; 0: as many as the run itself tested")
    data_dir: str = flag("", "folder of prepared data sets; empty: the user's cache")
    manual_dir: str = flag("", "folder with the official archives, to prepare data offline")
    debug: bool = flag(False, "show the traceback of an error")


def main(argv=None):
    """Exports a run; bad input ends in one line and exit code 2."""
    program.main(PROGRAM, __doc__ or "", {"members": Settings()}, run, argv, folder="")


def run(call: program.Call):
    """Reads the run, writes the folder."""
    settings = call.config
    checks.at_least(0, num_examples=settings.num_examples)
    if not settings.run_dir:
        raise ValueError("run_dir must be the folder of a finished run: --run-dir DIR")
    found = read_run(pathlib.Path(settings.run_dir))
    config = found.config
    dataset = data.load(
        config.dataset, settings.data_dir or None, manual_dir=settings.manual_dir or None
    )
    game = build(config, dataset)
    state = restore(game, found.checkpoints, found.recorded)
    number = settings.num_examples or config.test_examples
    images, labels = (part[:number] for part in dataset.test)
    told = {"architecture": config.model, "width": config.width, "dataset": config.dataset}
    told |= {"norm": config.norm, "epsilon": config.epsilon}
    folder = pathlib.Path(settings.output)
    write(folder, game.model, state.average, state.weights, images, labels, told)
    print(f"{folder} holds {config.members} members and {len(labels)} examples.")


def write(
    folder: pathlib.Path,
    model: models.Model,
    variables: PyTree,
    weights: Any,
    images: Any,
    labels: Any,
    told: dict[str, Any],
):
    """Writes members, leaves `[L, ...]`, and examples `[N, H, W, channels]` into a new folder.

    Raises:
      ValueError: if the folder is there, or the model is none that `models.save_pretrained` writes.
    """
    if folder.exists():
        raise ValueError(f"output {folder} is there already: choose another")
    folder.mkdir(parents=True)
    digests = {}
    for k in range(len(weights)):
        name = f"member_{k + 1}.safetensors"
        member = jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k]), variables)
        digests[name] = models.save_pretrained(folder / name, model, member)
    contents, arrays = io.BytesIO(), np.asarray(data.to_float(images)).transpose(0, 3, 1, 2)
    np.savez(contents, images=np.float32(arrays), labels=np.int64(labels))
    files.write(folder / "examples.npz", contents.getvalue())
    pixels = {"mean": CHANNEL_MEAN, "std": CHANNEL_STD}
    of_members = {"weights": np.asarray(weights).tolist(), "sha256": digests}
    files.write_json(folder / "mixture.json", told | of_members | {"pixels": pixels})


if __name__ == "__main__":
    main()
