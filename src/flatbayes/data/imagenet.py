"""ImageNet (ILSVRC 2012; Deng et al., CVPR 2009) and Tiny ImageNet, from their unpacked folders."""

from dataclasses import dataclass
from pathlib import Path

from flatbayes.core.names import format_count
from flatbayes.data.hub import find_data_root
from flatbayes.data.image_folder import list_class_names, list_image_files, list_labelled_images, make_encoded_splits
from flatbayes.data.source import DataSource, RawSplits

TINY_IMAGENET_NAME = "tiny-imagenet-200"
ANNOTATIONS_FILE = "val_annotations.txt"


@dataclass(frozen=True, kw_only=True)
class ImageNet(DataSource):
    """1,281,167 training and 50,000 validation color images in 1000 classes.

    The published validation images are the test split, since the labels of the published test images are not public.

    Attributes:
        root: Folder with the subfolders train and val, each with one folder of images per class. None reads the
            folder imagenet in the folder that the environment variable FLATBAYES_DATA names.
        size: Height and width: the shorter side is scaled to 8/7 of it (256 for 224), and the center is cropped.
        stream: Decode images when a batch needs them; decoded, all are 200 GB.
        val_size: Validation examples, taken from the training images, as a fraction (below 1) or as a number of
            examples.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels; the border is filled with black.

    Examples:
        >>> from PIL import Image
        >>> for name in ("train/n01440764", "train/n01443537", "val/n01440764", "val/n01443537"):
        ...     Path(name).mkdir(parents=True)
        ...     for k in range(10):  # the real data have 1,000 classes
        ...         Image.new("RGB", (40, 32), (k, 0, 0)).save(f"{name}/{k}.JPEG")
        >>> splits = ImageNet(root=".", size=32, val_size=0.5).load(seed=0)
        >>> splits.train.inputs.shape, splits.test.inputs.shape
        (torch.Size([10, 3, 32, 32]), torch.Size([20, 3, 32, 32]))
    """

    root: str | None = None
    size: int = 224
    stream: bool = True
    val_size: float = 10_000
    flip: bool = True
    pad: int = 28

    def read(self) -> RawSplits:
        """List the images of both splits; they stay encoded."""
        contents = "the folders train and val, each with one folder of images per class"
        folder = find_data_root(self.root, "imagenet", "ImageNet", contents)
        train, val = folder / "train", folder / "val"
        for root in (train, val):
            if not root.is_dir():
                raise FileNotFoundError(f"There is no folder {root}. Unpack the images of ILSVRC 2012 there.")
        class_names = list_class_names(train)
        if not list_class_names(val):
            raise ValueError(
                f"{val} has no folders of classes. Sort its images into folders named like those of {train}, as the "
                "ground truth of ILSVRC 2012 says."
            )
        labelled_files = {
            "train": list_labelled_images(train, class_names, train),
            "test": list_labelled_images(val, class_names, train),
        }
        splits = make_encoded_splits(labelled_files, self.size, crop=True, stream=self.stream)
        return RawSplits(unsplit=splits["train"], test=splits["test"], class_names=class_names)


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(DataSource):
    r"""100,000 training and 10,000 validation color images of 64 x 64 pixels in 200 classes.

    The published validation images are the test split, since the labels of the published test images are not public.

    Attributes:
        root: Folder that tiny-imagenet-200.zip is unpacked in. None reads the folder tiny-imagenet in the folder that
            the environment variable FLATBAYES_DATA names.
        stream: Decode images when a batch needs them; decoded, all are 1.4 GB.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels; the border is filled with black.

    Examples:
        >>> from PIL import Image
        >>> for name in ("train/n01443537/images", "train/n01629819/images", "val/images"):
        ...     Path(name).mkdir(parents=True)
        ...     for k in range(10):  # the real data have 200 classes
        ...         Image.new("RGB", (64, 64), (k, 0, 0)).save(f"{name}/{k}.JPEG")
        >>> lines = [f"{k}.JPEG\tn01443537" for k in range(5)] + [
        ...     f"{k}.JPEG\tn01629819" for k in range(5, 10)
        ... ]
        >>> size = Path("val/val_annotations.txt").write_text("\n".join(lines))
        >>> TinyImageNet(root=".").load(seed=0).test.inputs.shape
        torch.Size([10, 3, 64, 64])
    """

    root: str | None = None
    stream: bool = False
    flip: bool = True
    pad: int = 8

    def read(self) -> RawSplits:
        """List the images of both splits; they stay encoded."""
        folder = find_data_root(self.root, "tiny-imagenet", "Tiny ImageNet", f"{TINY_IMAGENET_NAME}.zip, unpacked")
        top = folder / TINY_IMAGENET_NAME if (folder / TINY_IMAGENET_NAME).is_dir() else folder
        if not (top / "train").is_dir():
            raise FileNotFoundError(
                f"There is no folder {top / 'train'}. Unpack {TINY_IMAGENET_NAME}.zip in {folder}."
            )
        wnids = list_class_names(top / "train")
        labelled_files = {
            "train": list_labelled_images(top / "train", wnids, top / "train", warns=False),  # it has files of boxes
            "test": list_annotated_images(top / "val", wnids),
        }
        splits = make_encoded_splits(labelled_files, None, crop=False, stream=self.stream)
        class_names = read_class_words(top / "words.txt", wnids)
        return RawSplits(unsplit=splits["train"], test=splits["test"], class_names=class_names)


def list_annotated_images(folder: Path, wnids: tuple[str, ...]) -> list[tuple[Path, int]]:
    """List the images of a folder with the labels from its annotations file.

    Args:
        folder: Holds the subfolder images and `val_annotations.txt`, whose lines are a file name and a WordNet id.
        wnids: WordNet ids of the classes, in the order of their labels.

    Raises:
        FileNotFoundError: There is no annotations file.
        ValueError: A line has an unknown image or class, or an image has no line.
    """
    path = folder / ANNOTATIONS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Unpack {TINY_IMAGENET_NAME}.zip again.")
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    files = {file.name: file for file in list_image_files(folder / "images")}
    labelled_images = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, rest = line.partition("\t")
        label = labels.get(rest.partition("\t")[0])
        if label is None or name not in files:
            raise ValueError(
                f"Line {number} of {path} must name an image of {folder / 'images'} and a class of the training "
                f"images, got {line!r}. Unpack {TINY_IMAGENET_NAME}.zip again."
            )
        labelled_images.append((files.pop(name), label))
    if files:
        raise ValueError(
            f"{path} has no line for {format_count(len(files), 'image')}, such as {min(files)}. Unpack "
            f"{TINY_IMAGENET_NAME}.zip again."
        )
    return labelled_images


def read_class_words(path: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """Read the names of classes from words.txt; the WordNet ids if there is no file or the names are not unique."""
    if not path.is_file():
        return wnids
    lines = (line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines())
    words = {wnid: text.partition(",")[0].strip() for wnid, _, text in lines}
    class_names = tuple(words.get(wnid, wnid) for wnid in wnids)
    return class_names if len(set(class_names)) == len(wnids) else wnids
