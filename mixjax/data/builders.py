"""TensorFlow Datasets without TensorFlow: prepares array_record files and reads them back.

The builders bear the official names and versions, so that the registered ones read what they have
prepared, and they read what others have. Only this module imports TensorFlow Datasets.
"""

import contextlib
import io
import pathlib
import tempfile
import urllib.request

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.checksums import UrlInfo

from mixjax import checks
from mixjax.data.cache import checked
from mixjax.data.datasets import Split
from mixjax.data.errors import DataError
from mixjax.data.sources import Source

_PROBE_SECONDS = 15.0
_CHUNK = 1000  # examples read at once: three times as fast as one by one


def read(
    source: Source, data_dir: pathlib.Path, manual_dir: pathlib.Path | None, *, progress: bool
) -> tuple[Split, Split]:
    """The training and test split of `<data_dir>/<name>/<version>`, prepared first if it is absent.

    Args:
      source: the data set.
      data_dir: folder of all data sets.
      manual_dir: folder with the official archives; `None` downloads them.
      progress: whether TensorFlow Datasets shows what it does.

    Raises:
      DataError: saying what to do, if the data can neither be found nor be obtained.
    """
    tfds.display_progress_bar(progress)
    folder = data_dir / source.name / source.version
    # TensorFlow Datasets, requests and the readers of archives raise classes of their own.
    try:
        if not folder.exists():
            _prepare(_builder(source, data_dir, manual_dir, progress), data_dir, folder, manual_dir)
    except Exception as error:
        files = ", ".join(archive.filename for archive in source.archives)
        raise DataError(
            f"{source.name} cannot be had ({_first_line(error)}): pass a manual_dir with {files}, "
            f"or put {source.name}.npz or a prepared {source.name}/{source.version} into {data_dir}"
        ) from error
    try:
        builder = _builder(source, data_dir, manual_dir, progress)
        train, test = (_read_split(builder, source, name) for name in ("train", "test"))
    except Exception as error:
        raise DataError(
            f"{folder} cannot be read as array_record ({_first_line(error)}): delete it, and it is "
            "prepared again"
        ) from error
    return train, test


def _prepare(builder, data_dir, folder, manual_dir):
    data_dir.mkdir(parents=True, exist_ok=True)
    # Removed afterwards: neither parts of files nor archives, which are not needed again, stay.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=data_dir) as downloads:
        try:
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=manual_dir, try_download_gcs=False
                ),
            )
        except OSError:
            # Another process may have been faster: its folder appeared whole, ours could not.
            if not folder.exists():
                raise


def _builder(source, data_dir, manual_dir, progress):
    label_names = list(source.class_names)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = source.name
        VERSION = tfds.core.Version(source.version)
        url_infos = {
            archive.url: UrlInfo(
                size=archive.size, checksum=archive.sha256, filename=archive.filename
            )
            for archive in source.archives
        }

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=source.image_shape, encoding_format="png"),
                "label": tfds.features.ClassLabel(names=label_names),
            }
            if source.name.startswith("cifar"):
                features["id"] = tfds.features.Text()
            if source.name == "cifar100":
                features["coarse_label"] = tfds.features.ClassLabel(num_classes=20)
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            for archive in source.archives:
                if manual_dir is None:
                    _require_reachable(archive.url)
                elif not (manual_dir / archive.filename).is_file():
                    raise FileNotFoundError(f"{manual_dir} has no {archive.filename}")
            urls = {archive.filename: archive.url for archive in source.archives}
            paths = dl_manager.download(urls)
            return {split: self._generate_examples(paths, split) for split in ("train", "test")}

        def _generate_examples(self, paths, split):
            columns = source.read(paths, split)
            for index, values in enumerate(zip(*columns.values(), strict=True)):
                example = dict(zip(columns, values, strict=True))
                yield index, example | {"image": _to_png(example["image"])}

        def _log_download_bytes(self):
            if progress:
                super()._log_download_bytes()

        def _log_download_done(self):
            if progress:
                super()._log_download_done()

    return Builder(data_dir=data_dir, file_format="array_record")


def _require_reachable(url):
    """Raises `OSError` if nobody answers: the download manager would try again for minutes."""
    request = urllib.request.Request(url, method="HEAD")
    with contextlib.closing(urllib.request.urlopen(request, timeout=_PROBE_SECONDS)):
        pass


def _read_split(builder, source, name):
    # Pillow decodes: TensorFlow Datasets asks for OpenCV in a warning.
    decoders = {"image": tfds.decode.SkipDecoding()}
    examples = builder.as_data_source(split=name, decoders=decoders)
    images = np.empty((len(examples), *source.image_shape), np.uint8)
    labels = np.empty(len(examples), np.int64)
    for start in range(0, len(examples), _CHUNK):
        indices = range(start, min(start + _CHUNK, len(examples)))
        for index, example in zip(indices, examples.__getitems__(indices), strict=True):
            images[index] = _from_png(example["image"], source.image_shape)
            labels[index] = example["label"]
    return checked(Split(images, labels), source, name=f"{name}.")


def _from_png(encoded, shape):
    image = np.asarray(Image.open(io.BytesIO(encoded)))
    checks.shape(shape, image=image[..., None] if image.ndim == 2 else image)
    return image.reshape(shape)


def _to_png(image):
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def _first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":. ") if lines else type(error).__name__
