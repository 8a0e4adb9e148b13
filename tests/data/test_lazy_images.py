"""Images that are decoded when they are asked for are those that would be in memory."""

import time

import numpy as np
import pytest
import torch

from flatbayes.data import ClassSplit, ImageFolder, ImageParquet, LazyImages, image_cache, lazy_images
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
    held, streamed = (ImageFolder(path=str(folder), stream=stream).load(0) for stream in (False, True))
    return held.train.inputs, streamed.train.inputs


def test_looks_like_the_tensor(pair):
    held, streamed = pair
    assert isinstance(streamed, LazyImages)
    assert (streamed.shape, streamed.dtype, len(streamed)) == (held.shape, held.dtype, len(held))


def test_decodes_what_is_asked_for_in_that_order(pair):
    held, streamed = pair
    places = torch.tensor([5, 0, 3, 3, 7])
    assert torch.equal(streamed[places], held[places])
    assert torch.equal(streamed[:4], held[:4])
    assert torch.equal(streamed.subset(places)[torch.tensor([1, 0])], held[torch.tensor([0, 5])])


def test_batches_are_those_of_the_tensor(pair):
    held, streamed = pair
    assert all(torch.equal(one, other) for one, other in zip(streamed.split(4), held.split(4), strict=True))


def test_is_standardised_by_a_sample(pair, monkeypatch):
    held, streamed = pair
    assert torch.equal(streamed.standardization.mean, Standardize.fit(held).mean)
    monkeypatch.setattr(lazy_images, "NUM_STATISTICS_IMAGES", 5)
    few = streamed.subset(torch.arange(len(streamed))).standardization
    assert not torch.equal(few.mean, streamed.standardization.mean)
    assert few.mean.sub(streamed.standardization.mean).abs().max() < 30


def test_only_a_few_batches_are_decoded_ahead(folder):
    streamed = ImageFolder(path=str(folder), stream=True).load(0).train.inputs
    asked = []

    def encoded(rows):
        asked.append(len(rows))
        return streamed.read_encoded(rows)

    watched = LazyImages(encoded, streamed.layout, streamed.rows)
    batches = watched.split(2)
    next(batches)
    time.sleep(0.2)  # more than all of them would take
    assert 1 <= len(asked) <= 1 + lazy_images.PREFETCH_BATCHES
    batches.close()  # and stops when no one wants more
    assert len(asked) <= 1 + lazy_images.PREFETCH_BATCHES


def test_damage_is_named_when_it_is_met(folder, truncate):
    truncate(folder / "cat" / "3.png")
    streamed = ImageFolder(path=str(folder), stream=True, val_size=1, test_size=1).load(0).train
    with pytest.raises(ValueError, match=r"cat.3.png is a damaged image"):
        list(streamed.inputs.split(8))


def test_parts_know_what_is_in_memory(folder):
    part = ImageFolder(path=str(folder), stream=True).load(0).train
    assert isinstance(part.take(torch.arange(3)).inputs, LazyImages)
    assert torch.equal(part.subsample(4).input_tensor, part.subsample(4).inputs)
    assert len(part.subsample(1000).input_tensor) == len(part)
    with pytest.raises(ValueError, match=r"needs all \d+ images in memory.*--max_examples"):
        _ = part.input_tensor


def test_class_splits_and_foreign_images_stream_too(folder):
    source = ClassSplit(source=ImageFolder(path=str(folder), stream=True))
    loaded = source.load(0)
    assert isinstance(loaded.train.inputs, LazyImages)
    assert loaded.num_classes == 2
    foreign = match_input_format(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), loaded.train.inputs)
    assert foreign.shape == (2, 3, 4, 4)


def test_parquet_files_are_copied_once_and_mapped(tmp_path, write_parquet, pixels, monkeypatch):
    monkeypatch.setenv("FLATBAYES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_cache, "IMAGES_PER_BATCH", 7)
    image_cache.build_image_cache.cache_clear()
    images, labels = pixels(20), [0, 1] * 10
    write_parquet(tmp_path / "data" / "train-0.parquet", images[:12], labels[:12])
    write_parquet(tmp_path / "data" / "train-1.parquet", images[12:], labels[12:])
    held, streamed = (ImageParquet(path=str(tmp_path / "data"), stream=s).load(0).train for s in (False, True))
    assert torch.equal(streamed.inputs[:], held.inputs)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(held)))
    assert torch.equal(streamed.inputs[order], held.inputs[order])
    first = list((tmp_path / "cache").iterdir())
    ImageParquet(path=str(tmp_path / "data"), stream=True).load(1).train.inputs[:3]
    assert list((tmp_path / "cache").iterdir()) == first
    assert [file.suffix for file in first] == [".arrow"]


def test_a_changed_parquet_file_is_copied_again(tmp_path, write_parquet, pixels, monkeypatch):
    monkeypatch.setenv("FLATBAYES_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data" / "train.parquet"
    for seed in (0, 1):
        image_cache.build_image_cache.cache_clear()
        write_parquet(path, pixels(12 + seed, seed=seed), [0, 1] * 6 + [0] * seed)
        held, streamed = (ImageParquet(path=str(path), stream=stream).load(0).test for stream in (False, True))
        assert torch.equal(streamed.inputs[:], held.inputs)
