"""ImageNet (Deng et al., CVPR 2009; ILSVRC 2012), and Tiny ImageNet, from the folders that they unpack to."""

from dataclasses import dataclass
from pathlib import Path

from flatbayes.data.archive import find_data_root
from flatbayes.data.image_folder import list_class_names, list_image_files, list_labelled_images, make_encoded_splits
from flatbayes.data.source import DataSource, RawSplits

TINY_IMAGENET_NAME = "tiny-imagenet-200"
ANNOTATIONS_FILE = "val_annotations.txt"


@dataclass(frozen=True, kw_only=True)
class ImageNet(DataSource):
    """1,281,167 + 50,000 colour photographs in 1000 classes; the published validation images are the test part.

    Attributes:
        root: Folder with train and val, each with one folder of images per class; None takes the folder imagenet in
            the one that the environment variable FLATBAYES_DATA names.
        size: Height and width: the shorter side is scaled to 8/7 of it (256 for 224), and the middle cut out.
        stream: Decode images when a batch asks for them; decoded, all would be 200 GB.
        val_size: Validation examples, taken from the training images, as a fraction (below 1) or as a count.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels, what enters being black.
    """

    root: str | None = None
    size: int = 224
    stream: bool = True
    val_size: float = 10_000
    flip: bool = True
    pad: int = 28

    def read(self) -> RawSplits:
        """Both parts, images still encoded."""
        contents = "the folders train and val, each with one folder of images per class"
        folder = find_data_root(self.root, "imagenet", "ImageNet", contents)
        train, val = folder / "train", folder / "val"
        for part in (train, val):
            if not part.is_dir():
                raise FileNotFoundError(f"There is no folder {part}. Unpack the images of ILSVRC 2012 there.")
        names = list_class_names(train)
        if not list_class_names(val):
            raise ValueError(
                f"{val} has no folders of classes. Sort its images into folders named like those of {train}, as the "
                "ground truth of ILSVRC 2012 says."
            )
        found = {"train": list_labelled_images(train, names, train), "test": list_labelled_images(val, names, train)}
        parts = make_encoded_splits(found, self.size, crop=True, stream=self.stream)
        return RawSplits(unsplit=parts["train"], test=parts["test"], class_names=names)


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(DataSource):
    """100,000 + 10,000 colour photographs of 64 x 64 pixels in 200 classes; the validation images are the test part.

    Attributes:
        root: Folder that tiny-imagenet-200.zip is unpacked in; None takes the folder tiny-imagenet in the one that
            the environment variable FLATBAYES_DATA names.
        stream: Decode images when a batch asks for them; decoded, all are 1.4 GB.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels, what enters being black.
    """

    root: str | None = None
    stream: bool = False
    flip: bool = True
    pad: int = 8

    def read(self) -> RawSplits:
        """Both parts, images still encoded."""
        folder = find_data_root(self.root, "tiny-imagenet", "Tiny ImageNet", f"{TINY_IMAGENET_NAME}.zip, unpacked")
        top = folder / TINY_IMAGENET_NAME if (folder / TINY_IMAGENET_NAME).is_dir() else folder
        if not (top / "train").is_dir():
            raise FileNotFoundError(
                f"There is no folder {top / 'train'}. Unpack {TINY_IMAGENET_NAME}.zip in {folder}."
            )
        classes = list_class_names(top / "train")
        found = {
            "train": list_labelled_images(top / "train", classes, top / "train"),
            "test": list_annotated_images(top / "val", classes),
        }
        parts = make_encoded_splits(found, None, crop=False, stream=self.stream)
        return RawSplits(
            unsplit=parts["train"], test=parts["test"], class_names=read_class_words(top / "words.txt", classes)
        )


def list_annotated_images(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """The images of a folder, with the labels that its list of annotations gives them.

    Args:
        folder: With the subfolder images and `val_annotations.txt`: lines of a file's name and its class.
        classes: In the order of their labels.

    Raises:
        FileNotFoundError: There is no list.
        ValueError: A line is none, names no class, or an image that is not there; or an image is not listed.
    """
    path = folder / ANNOTATIONS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Unpack {TINY_IMAGENET_NAME}.zip again.")
    labels = {name: label for label, name in enumerate(classes)}
    files = {file.name: file for file in list_image_files(folder / "images")}
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, rest = line.partition("\t")
        label = labels.get(rest.partition("\t")[0])
        if label is None or name not in files:
            raise ValueError(
                f"Line {number} of {path} must name an image of {folder / 'images'} and a class of the training "
                f"images, got {line!r}. Unpack {TINY_IMAGENET_NAME}.zip again."
            )
        found.append((files.pop(name), label))
    if files:
        raise ValueError(
            f"{path} has no line for {len(files)} images, such as {min(files)}. Unpack {TINY_IMAGENET_NAME}.zip again."
        )
    return found


def read_class_words(path: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """What the classes are called, or their own names where the list is missing or does not tell them apart."""
    if not path.is_file():
        return classes
    lines = (line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines())
    known = {name: text.partition(",")[0].strip() for name, _, text in lines}
    called = tuple(known.get(name, name) for name in classes)
    return called if len(set(called)) == len(classes) else classes
