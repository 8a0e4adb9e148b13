"""Images that are decoded when they are asked for are those that would be in memory."""

import time

import numpy as np
import pytest
import torch

from flatbayes.data import ClassSplit, ImageFolder, ImageParquet, LazyImages, image_parquet, lazy_images
from flatbayes.data.ood import match_input_format
from flatbayes.data.standardize import Standardize


@pytest.fixture
def folder(tmp_path, png, pixels):
    for seed, name in enumerate(("cat", "mouse", "owl")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index, image in enumerate(pixels(10, seed=seed)):
            (tmp_path / "images" / name / f"{index}.png").write_bytes(png(image))
    return tmp_path / "images"


@pytest.fixture
def pair(folder):
    in_memory, streamed = (ImageFolder(path=str(folder), stream=stream).load(0) for stream in (False, True))
    return in_memory.train.inputs, streamed.train.inputs


def test_shape_and_dtype_are_those_of_the_tensor(pair):
    in_memory, streamed = pair
    assert isinstance(streamed, LazyImages)
    assert (streamed.shape, streamed.dtype, len(streamed)) == (in_memory.shape, in_memory.dtype, len(in_memory))


def test_indexing_decodes_the_images_in_order(pair):
    in_memory, streamed = pair
    places = torch.tensor([5, 0, 3, 3, 7])
    assert torch.equal(streamed[places], in_memory[places])
    assert torch.equal(streamed[:4], in_memory[:4])
    assert torch.equal(streamed.subset(places)[torch.tensor([1, 0])], in_memory[torch.tensor([0, 5])])


def test_batches_equal_those_of_the_tensor(pair):
    in_memory, streamed = pair
    assert all(
        torch.equal(batch, expected) for batch, expected in zip(streamed.split(4), in_memory.split(4), strict=True)
    )


def test_standardization_uses_a_random_sample(pair, monkeypatch):
    in_memory, streamed = pair
    assert torch.equal(streamed.standardization.mean, Standardize.fit(in_memory).mean)
    monkeypatch.setattr(lazy_images, "NUM_STATISTICS_IMAGES", 5)
    few = streamed.subset(torch.arange(len(streamed))).standardization
    assert not torch.equal(few.mean, streamed.standardization.mean)
    assert few.mean.sub(streamed.standardization.mean).abs().max() < 30


def test_only_a_few_batches_are_decoded_ahead(folder):
    streamed = ImageFolder(path=str(folder), stream=True).load(0).train.inputs
    request_sizes = []

    def encoded(rows):
        request_sizes.append(len(rows))
        return streamed.read_encoded(rows)

    recorder = LazyImages(encoded, streamed.layout, streamed.rows)
    batches = recorder.split(2)
    next(batches)
    time.sleep(0.2)  # more than all of them would take
    assert 1 <= len(request_sizes) <= 1 + lazy_images.PREFETCH_BATCHES
    batches.close()  # and stops when no one wants more
    assert len(request_sizes) <= 1 + lazy_images.PREFETCH_BATCHES


def test_a_damaged_image_is_named_when_it_is_decoded(folder, truncate):
    truncate(folder / "cat" / "3.png")
    streamed = ImageFolder(path=str(folder), stream=True, val_size=1, test_size=1).load(0).train
    with pytest.raises(ValueError, match=r"cat.3.png is a damaged image"):
        list(streamed.inputs.split(8))


def test_splits_subsample_into_memory(folder):
    split = ImageFolder(path=str(folder), stream=True).load(0).train
    assert isinstance(split.take(torch.arange(3)).inputs, LazyImages)
    assert torch.equal(split.subsample(4).input_tensor, split.subsample(4).inputs)
    assert len(split.subsample(1000).input_tensor) == len(split)
    with pytest.raises(ValueError, match=r"needs all \d+ images in memory.*--max_examples"):
        _ = split.input_tensor


def test_class_splits_and_ood_references_may_be_streamed(folder):
    source = ClassSplit(source=ImageFolder(path=str(folder), stream=True))
    loaded = source.load(0)
    assert isinstance(loaded.train.inputs, LazyImages)
    assert loaded.num_classes == 2
    ood = match_input_format(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), loaded.train.inputs)
    assert ood.shape == (2, 3, 4, 4)


def test_parquet_files_are_copied_once_and_mapped(tmp_path, write_parquet, pixels, monkeypatch):
    monkeypatch.setenv("FLATBAYES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_parquet, "IMAGES_PER_BATCH", 7)
    image_parquet.build_image_cache.cache_clear()
    images, labels = pixels(20), [0, 1] * 10
    write_parquet(tmp_path / "data" / "train-0.parquet", images[:12], labels[:12])
    write_parquet(tmp_path / "data" / "train-1.parquet", images[12:], labels[12:])
    in_memory, streamed = (ImageParquet(path=str(tmp_path / "data"), stream=s).load(0).train for s in (False, True))
    assert torch.equal(streamed.inputs[:], in_memory.inputs)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(in_memory)))
    assert torch.equal(streamed.inputs[order], in_memory.inputs[order])
    first = list((tmp_path / "cache").iterdir())
    ImageParquet(path=str(tmp_path / "data"), stream=True).load(1).train.inputs[:3]
    assert list((tmp_path / "cache").iterdir()) == first
    assert [file.suffix for file in first] == [".arrow"]


def test_a_changed_parquet_file_is_copied_again(tmp_path, write_parquet, pixels, monkeypatch):
    monkeypatch.setenv("FLATBAYES_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data" / "train.parquet"
    for seed in (0, 1):
        image_parquet.build_image_cache.cache_clear()
        write_parquet(path, pixels(12 + seed, seed=seed), [0, 1] * 6 + [0] * seed)
        in_memory, streamed = (ImageParquet(path=str(path), stream=stream).load(0).test for stream in (False, True))
        assert torch.equal(streamed.inputs[:], in_memory.inputs)
