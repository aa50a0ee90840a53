"""Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN: local files, read by torchvision; `prepare` gets them.

The files lie below a root as torchvision lays them out. CIFAR's are pickles, and unpickling runs whatever a file
says: no file is opened whose MD5 is not that of the published one. Nothing here touches the network.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
from abc import abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from ..errors import DataError
from ..reading import opened
from .base import Dataset, DataSource, Splits

ROOT = "ADVKIT_DATA"
"""Environment variable: the root where none is given."""

MAX_BYTES = 1 << 30
"""Of one file: a sparse one may claim anything, an archive's member unpack to anything."""


def default_root() -> Path:
    """The folder that ADVKIT_DATA names, else `advkit` in the user's cache folder."""
    if given := os.environ.get(ROOT):
        return Path(os.path.expanduser(given)).absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")) / "advkit"


class TorchvisionSource(DataSource):
    """A data set whose files are known by their MD5, and read by torchvision once those fit."""

    decodes = False
    classes: ClassVar[int]
    shape: ClassVar[tuple[int, int, int]]
    images: ClassVar[tuple[int, int]]
    """How many to train on and to test on."""

    files: ClassVar[Mapping[str, str]]
    """MD5 by path below the root; no two have the same name."""

    archive: ClassVar[str] = ""
    """What the files are published in, where that is one archive."""

    origin: ClassVar[str]
    """Where the files are published."""

    transform: ClassVar[str] = "crop-flip"

    def load(self, root: Path | None, limit: int | None) -> Splits:
        """See `DataSource.load`; without a `root`, from `default_root`."""
        root = root or default_root()
        command = f"`advkit data prepare {self.name} --data-root {shlex.quote(str(root))}`"
        for file, md5 in self.files.items():
            found = md5_of(root / file)
            if found is None:
                raise DataError(
                    f"{self.name} is not in {root}: {file} is absent; "
                    f"get it with {command}, from local copies with --from FOLDER."
                )
            if found != md5:
                raise DataError(
                    f"{root / file} is damaged: its MD5 is not that of the published file; replace it with {command}."
                )
        return Splits(self._part(root, True, limit), self._part(root, False, limit), self.transform)

    def _part(self, root: Path, train: bool, limit: int | None) -> Dataset:
        datasets = torchvision_datasets()
        try:
            images, labels, classes = self.read(datasets, root, train)
        except ImportError as error:  # scipy, which SVHN's reader wants
            raise no_vision(error) from None
        except Exception as error:  # the published bytes, so it is the reader's fault, whatever it raises
            raise DataError(
                f"torchvision can not read {self.name} in {root} ({type(error).__name__}: {error}); "
                "reinstall it with pip install 'advkit[vision]'."
            ) from error
        kept = self.places(labels, limit)
        return Dataset(self.name, images[kept].contiguous(), labels[kept], classes, kept)

    @abstractmethod
    def read(self, datasets: Any, root: Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Images (N, C, H, W) uint8, labels (N,) int64 and class names, by readers of `torchvision.datasets`."""

    @abstractmethod
    def download(self, datasets: Any, folder: Path) -> None:
        """Let torchvision fetch the files into `folder`; it raises whatever it raises."""


@final
class FashionMnist(TorchvisionSource):
    """Fashion-MNIST, 28x28 gray: 60,000 training and 10,000 test images of 10 articles."""

    name = "fashion-mnist"
    defaults = {"attack.eps": 0.1, "run.batch_size": 128}
    classes, shape, images = 10, (1, 28, 28), (60_000, 10_000)
    # Of what the published gz files unpack to: copies that somebody packed anew are as good.
    files = {
        "FashionMNIST/raw/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "FashionMNIST/raw/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "FashionMNIST/raw/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "FashionMNIST/raw/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }
    origin = "https://github.com/zalandoresearch/fashion-mnist"

    def read(self, datasets: Any, root: Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        # By its functions: the class would prefer a file of an old torchvision, whose MD5 nobody knows.
        path = f"{root}/FashionMNIST/raw/{'train' if train else 't10k'}"
        images: Tensor = datasets.mnist.read_image_file(f"{path}-images-idx3-ubyte")
        labels: Tensor = datasets.mnist.read_label_file(f"{path}-labels-idx1-ubyte")
        return images.unsqueeze(1), labels, tuple(datasets.FashionMNIST.classes)

    def download(self, datasets: Any, folder: Path) -> None:
        datasets.FashionMNIST(str(folder), download=True)


class _Cifar(TorchvisionSource):
    defaults = {"attack.eps": "8/255", "run.batch_size": 128}
    shape, images = (3, 32, 32), (50_000, 10_000)
    reader: ClassVar[str]

    def read(self, datasets: Any, root: Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        found = getattr(datasets, self.reader)(str(root), train=train)
        return torch.from_numpy(found.data).permute(0, 3, 1, 2), torch.tensor(found.targets), tuple(found.classes)

    def download(self, datasets: Any, folder: Path) -> None:
        getattr(datasets, self.reader)(str(folder), download=True)


@final
class Cifar10(_Cifar):
    """CIFAR-10, 32x32 colour: 50,000 training and 10,000 test images of 10 animals and vehicles."""

    name = "cifar10"
    classes, reader = 10, "CIFAR10"
    files = {
        "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
        "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    }
    archive = "cifar-10-python.tar.gz"
    origin = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"


@final
class Cifar100(_Cifar):
    """CIFAR-100, 32x32 colour: 50,000 training and 10,000 test images of 100 fine classes."""

    name = "cifar100"
    classes, reader = 100, "CIFAR100"
    files = {
        "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
        "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    }
    archive = "cifar-100-python.tar.gz"
    origin = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"


@final
class Svhn(TorchvisionSource):
    """Street View House Numbers, 32x32 colour: 73,257 training and 26,032 test images of 10 digits."""

    name = "svhn"
    defaults = {"attack.eps": "8/255", "attack.step_size": "eps/8", "run.batch_size": 128}
    classes, shape, images = 10, (3, 32, 32), (73_257, 26_032)
    files = {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    }
    origin = "http://ufldl.stanford.edu/housenumbers/"
    transform = "none"  # a mirrored digit is another sign, a shifted crop shows its neighbours

    def read(self, datasets: Any, root: Path, train: bool) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        found = datasets.SVHN(str(root), split="train" if train else "test")
        return torch.from_numpy(found.data), torch.from_numpy(found.labels), tuple(str(digit) for digit in range(10))

    def download(self, datasets: Any, folder: Path) -> None:
        for split in ("train", "test"):
            datasets.SVHN(str(folder), split=split, download=True)


def md5_of(path: Path) -> str | None:
    """In hex; None where there is nothing. Raises DataError where there is no readable file."""
    try:
        with opened(path) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_BYTES:
                raise OSError(errno.EFBIG, f"it has more than {MAX_BYTES} bytes")
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason = "it is no file" if error.errno in (errno.EINVAL, errno.EISDIR) else error.strerror
        raise DataError(f"{path} can not be read ({reason}); check its permissions, or remove it.") from None


def torchvision_datasets() -> Any:
    """The module `torchvision.datasets`. Importing it takes seconds, so it waits until a data set needs it."""
    try:
        return import_module("torchvision.datasets")
    except Exception as error:  # ImportError; RuntimeError where it does not fit the torch that is installed
        raise no_vision(error) from None


def no_vision(error: Exception) -> DataError:
    """What to say where torchvision, or the scipy it wants, can not be imported."""
    reason = " ".join(str(error).split())
    return DataError(f"This data set needs torchvision and scipy ({reason}); pip install 'advkit[vision]'.")
