"""Images and labels: loading, checking, batches and augmentation.

A batch, as a training step takes it:

    dataset = data.load("cifar10")                                  # NumPy, uint8, on the host
    train = jax.device_put(dataset.train)                           # uint8, on the device
    batch = data.take(train, data.batch_indices(key, step, len(train.labels), 128))   # in jit
    images = data.augment(augment_key, batch.images, **dataset.augmentation._asdict())
    x = data.to_float(images)                                       # float32 in [0, 1]

`load` looks for `<data_dir>/<name>.npz`, then for what TensorFlow Datasets has prepared there, then
for the official archive in `manual_dir`, and only then on the network. `data_dir` is by default
the environment variable MIXJAX_DATA_DIR, or `~/.cache/mixjax`.
"""

from mixjax.batch import to_float
from mixjax.data.augmentation import Augmentation, augment
from mixjax.data.batching import batch_indices, take
from mixjax.data.datasets import Dataset, Split, check, from_arrays
from mixjax.data.errors import DataError
from mixjax.data.loading import NAMES, default_dir, load

__all__ = [
    "NAMES",
    "Augmentation",
    "DataError",
    "Dataset",
    "Split",
    "augment",
    "batch_indices",
    "check",
    "default_dir",
    "from_arrays",
    "load",
    "take",
    "to_float",
]
