"""Members and examples for programs in PyTorch: what is written is what was trained."""

import json

import jax
import numpy as np
import pytest

from experiments import export_members
from mixjax import data, ensemble, models


def test_what_is_exported_answers_as_the_members_do(tmp_path, key):
    model = models.small_resnet(width=2)
    variables = ensemble.init(model.init, key, 2)
    images, labels = (part[:3] for part in data.load("digits").test)
    folder, weights = tmp_path / "out", [0.25, 0.75]
    arguments = model, variables, weights, images, labels, {"norm": "l2", "epsilon": 0.5}
    export_members.write(folder, *arguments)
    told = json.loads((folder / "mixture.json").read_text())
    assert (told["weights"], told["norm"], told["epsilon"]) == (weights, "l2", 0.5)
    with np.load(folder / "examples.npz") as stored:
        exported, classes = stored["images"], stored["labels"]
    assert exported.shape == (3, 1, 8, 8) and exported.dtype == np.float32
    np.testing.assert_array_equal(classes, labels)
    apply = jax.jit(model.apply)
    for k, (name, digest) in enumerate(sorted(told["sha256"].items())):
        loaded = models.load_pretrained(folder / name, model, sha256=digest)
        member = jax.tree.map(lambda leaf, k=k: leaf[k], variables)
        wanted = apply(member, data.to_float(images))
        np.testing.assert_array_equal(apply(loaded, exported.transpose(0, 2, 3, 1)), wanted)
    with pytest.raises(ValueError, match="output .* is there already"):
        export_members.write(folder, *arguments)


def test_a_folder_that_holds_no_run_is_refused_in_one_line(tmp_path, capsys):
    for flags, message in (([], "run_dir must be"), (["--run-dir", str(tmp_path)], "holds no run")):
        with pytest.raises(SystemExit) as stop:
            export_members.main([*flags, "--output", str(tmp_path / "out")])
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and message in line
    assert not (tmp_path / "out").exists()
