"""Where the data sets come from: official names, versions, archives and their checksums."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from mixjax.data import archives
from mixjax.data.augmentation import NO_AUGMENTATION, Augmentation

Columns = Mapping[str, np.ndarray | list[str]]  # "image" [N, H, W, C], "label" [N], ...
_DIGITS = tuple("0123456789")
_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file to download; `sha256` and `size` in bytes are checked."""

    url: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """The last part of the URL, and the file's name in a `manual_dir`."""
        return self.url.rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set under its official name and version.

    Attributes:
      name: as TensorFlow Datasets has it.
      version: as TensorFlow Datasets has it.
      image_shape: `(H, W, C)`.
      class_names: a name per class.
      archives: the files to download.
      read: `(paths by file name, "train" or "test") -> Columns`.
      augmentation: what leaves an image in its class. Digits and garments are centred, a mirrored
        digit is no longer that digit, and the shoes of Fashion-MNIST all point the same way.
    """

    name: str
    version: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    archives: tuple[Archive, ...]
    read: Callable[[Mapping[str, pathlib.Path], str], Columns]
    augmentation: Augmentation = NO_AUGMENTATION


def _read_cifar10(paths, split):
    members = {
        "train": tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("cifar-10-batches-bin/test_batch.bin",),
    }
    images, labels = archives.read_cifar(paths["cifar-10-binary.tar.gz"], members[split], 1)
    return {"id": _ids(split, len(images)), "image": images, "label": labels[:, 0]}


def _read_cifar100(paths, split):
    members = (f"cifar-100-binary/{split}.bin",)
    images, labels = archives.read_cifar(paths["cifar-100-binary.tar.gz"], members, 2)
    columns = {"coarse_label": labels[:, 0], "label": labels[:, 1]}
    return {"id": _ids(split, len(images)), "image": images} | columns


def _read_mnist(paths, split):
    prefix = {"train": "train", "test": "t10k"}[split]
    images = archives.read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"])
    labels = archives.read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"])
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{prefix}: {images.shape} images do not go with {labels.shape} labels")
    return {"image": images[..., None], "label": labels}


def _ids(split, num_examples):
    return [f"{split}_{index:05d}" for index in range(num_examples)]


_MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

SOURCES = {
    source.name: source
    for source in (
        Source(
            "cifar10",
            "3.0.2",
            (32, 32, 3),
            tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
            (
                Archive(
                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                    170052171,
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                ),
            ),
            _read_cifar10,
            Augmentation(pad=4, flip=True),
        ),
        Source(
            "cifar100",
            "3.0.2",
            (32, 32, 3),
            tuple(_CIFAR100_CLASSES.split()),
            (
                Archive(
                    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                    168513733,
                    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                ),
            ),
            _read_cifar100,
            Augmentation(pad=4, flip=True),
        ),
        Source(
            "mnist",
            "3.0.1",
            (28, 28, 1),
            _DIGITS,
            (
                Archive(
                    _MNIST_URL + "train-images-idx3-ubyte.gz",
                    9912422,
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                ),
                Archive(
                    _MNIST_URL + "train-labels-idx1-ubyte.gz",
                    28881,
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                ),
                Archive(
                    _MNIST_URL + "t10k-images-idx3-ubyte.gz",
                    1648877,
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                ),
                Archive(
                    _MNIST_URL + "t10k-labels-idx1-ubyte.gz",
                    4542,
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            ),
            _read_mnist,
        ),
        Source(
            "fashion_mnist",
            "3.0.1",
            (28, 28, 1),
            (
                *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
                *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            ),
            (
                Archive(
                    _FASHION_URL + "train-images-idx3-ubyte.gz",
                    26421880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                ),
                Archive(
                    _FASHION_URL + "train-labels-idx1-ubyte.gz",
                    29515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                ),
                Archive(
                    _FASHION_URL + "t10k-images-idx3-ubyte.gz",
                    4422102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                ),
                Archive(
                    _FASHION_URL + "t10k-labels-idx1-ubyte.gz",
                    5148,
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            ),
            _read_mnist,
        ),
    )
}
