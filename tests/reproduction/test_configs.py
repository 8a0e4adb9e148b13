"""Cells of the tables: complete configurations that differ only in flatness, data and radius."""

from dataclasses import fields, replace
from functools import partial

import pytest
import torch

from flatbayes import cli, flatness, posteriors
from flatbayes.core.spec import to_spec
from flatbayes.data import CIFAR10, CIFAR100, DataSplits, Split
from flatbayes.flatness import SAM, Plain
from flatbayes.training import TrainingConfig, dry_run
from reproduction import TableConfig, list_tables, load_cells, load_published_results
from reproduction.configs import TABLES_DIR, VARIANTS

CELLS = [cell for table in list_tables() for cell in load_cells(table)]
SOURCES = {"cifar10": CIFAR10(val_size=5000), "cifar100": CIFAR100(val_size=5000)}
CLASSES = {"cifar10": 10, "cifar100": 100}


def images(classes: int) -> DataSplits:
    """As CIFAR is, but small, and told to be as long as it is."""
    part = Split(inputs=torch.randint(256, (64, 3, 8, 8)).to(torch.uint8), targets=torch.arange(64) % classes)
    names = tuple(map(str, range(classes)))
    return DataSplits(train=part, val=part, test=part, class_names=names, feature_names=(), augment=None)


def test_tables_and_methods():
    assert list_tables() == ["cifar10", "cifar100"]
    assert (TABLES_DIR / "quick.yaml").is_file()
    methods = {cell.method for cell in CELLS}
    assert methods == {
        "map", "swa", "swag-diag", "swag", "mc-dropout", "ensemble", "sgld", "sgvb", "sgvb-lrt"
    }  # fmt: skip


@pytest.mark.parametrize("table", list_tables())
def test_cells_and_published_figures_match_one_to_one(table):
    assert sorted(cell.name for cell in load_cells(table)) == sorted(load_published_results(table))


def test_plain_and_flat_variants_differ_in_flatness_only():
    pairs = {}
    for cell in CELLS:
        pairs.setdefault((cell.table, cell.posterior_name), {})[cell.variant] = cell
    for pair in pairs.values():
        assert set(pair) == set(VARIANTS)
        assert pair["plain"].flatness == Plain()
        assert isinstance(pair["flat"].flatness, SAM)
        others = {f.name for f in fields(pair["flat"])} - {"variant", "flatness"}
        for name in others:
            assert to_spec_of(pair["plain"], name) == to_spec_of(pair["flat"], name), name


def test_tables_differ_in_data_and_radius_only():
    ten, hundred = ({cell.name: cell for cell in load_cells(table)} for table in ("cifar10", "cifar100"))
    assert set(ten) == set(hundred)
    for name, cell in ten.items():
        other = hundred[name]
        assert (cell.source, other.source) == (SOURCES["cifar10"], SOURCES["cifar100"])
        for part in ("model", "posterior", "config", "num_draws"):
            assert to_spec_of(cell, part) == to_spec_of(other, part)
        radii = [one.flatness.rho for one in (cell, other) if one.variant == "flat"]
        assert radii in ([], [0.05, 0.1], [0.005, 0.005])


def to_spec_of(cell, name):
    return to_spec(getattr(cell, name))


@pytest.mark.parametrize("table", list_tables())
def test_flatbayes_fit_reads_each_file_alike(table, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("flatbayes.cli.fit.run", seen.append)
    for cell in load_cells(table)[:: 3 if table == "cifar10" else 7]:
        path = TABLES_DIR / table / f"{cell.name}.yaml"
        assert cli.main(["fit", "--config", str(path), "--out", str(tmp_path)]) == 0
        given = seen.pop()
        assert given.data == cell.source
        assert given.posterior == cell.posterior
        assert given.flatness == cell.flatness
        assert given.num_draws == cell.num_draws
        config = TrainingConfig(**{f.name: given[f.name] for f in fields(TrainingConfig)})
        assert to_spec(replace(config, optimizer=None)) == to_spec(replace(cell.config, optimizer=None))
        assert given.optimizer.keywords.items() >= cell.config.optimizer.keywords.items()
        assert given.model["class_path"] == to_spec(cell.model)["class_path"]
        assert given.model["init_args"].items() >= cell.model.keywords.items()


def test_networks_are_built_for_their_data():
    distinct = {(cell.table, str(to_spec(cell.model))): cell for cell in CELLS}
    assert len(distinct) == 2 * 4
    for cell in distinct.values():
        with torch.device("meta"):
            network = cell.model(input_shape=(3, 32, 32), num_classes=CLASSES[cell.table])
            assert network(torch.zeros(2, 3, 32, 32)).shape == (2, CLASSES[cell.table])


@pytest.mark.parametrize("method", sorted({cell.method for cell in CELLS}))
def test_quick_cells_pass_a_dry_run(method):
    few = TableConfig(table="cifar100", cell_pattern=f"*-{method}-flat", max_examples=64, epochs=3)
    for cell in few.cells:
        dry_run(cell.model, images(100), cell.posterior, cell.flatness, cell.config)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: f"{c.table}-{c.name}")
def test_cells_pass_a_dry_run(cell):
    dry_run(cell.model, images(CLASSES[cell.table]), cell.posterior, cell.flatness, cell.config)


def test_settings_are_the_published_ones():
    cell = next(c for c in load_cells("cifar100") if c.name == "wrn28x10-swag-flat")
    assert cell.posterior == posteriors.SWAG(rank=20, scale=0.1)
    assert cell.flatness == flatness.SAM(rho=0.1)
    assert isinstance(cell.config.optimizer, partial)
    assert cell.config.optimizer.keywords == {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005}
    per_epoch = 45_000 // 128
    collected = [step for step in range(300 * per_epoch) if cell.config.is_collection_step(step, per_epoch)]
    assert len(collected) == 300 - 161
    assert collected[0] + 1 == 162 * per_epoch


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no table 'imagenet'. Known: cifar10, cifar100"):
        load_cells("imagenet")
    with pytest.raises(ValueError, match="No cell of cifar10 matches 'vgg-.'. Known: preresnet164-map-plain"):
        load_cells("cifar10", "vgg-*")
