"""What a configuration does not say is the named class's own default, not that of the option's default."""

import pytest
import yaml

from flatbayes.cli import main
from flatbayes.cli.defaults import fill_defaults, get_class_defaults
from flatbayes.core.spec import to_spec
from flatbayes.flatness import ASAM, LESAM
from flatbayes.posteriors import LRT, SGVB, SWAG, Ensemble


@pytest.mark.parametrize("thing", [ASAM(), LESAM(), SGVB(), SWAG(), LRT(), Ensemble()])
def test_a_bare_name_is_the_default(thing):
    spec = to_spec(thing)
    assert fill_defaults({"class_path": spec["class_path"]}) == spec
    assert fill_defaults([{"class_path": spec["class_path"], "init_args": None}]) == [spec]


def test_what_is_given_is_kept_and_what_is_within_is_completed():
    spec = to_spec(Ensemble(SWAG(rank=3), size=2))
    short = {
        "class_path": "flatbayes.posteriors.Ensemble",
        "init_args": {"member": {"class_path": "flatbayes.posteriors.SWAG", "init_args": {"rank": 3}}, "size": 2},
    }
    assert fill_defaults({"posterior": short, "epochs": 3}) == {"posterior": spec, "epochs": 3}


def test_other_classes_and_nonsense_stay_what_they_are():
    for thing in ({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}, {"class_path": 3}, {"class_path": "flatbayes.no.Such"}, 7, None, "x"):  # fmt: skip
        assert fill_defaults(thing) == thing
    assert get_class_defaults("os.system") == {}


def test_a_configuration_gives_what_the_class_says(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("flatbayes.cli.fit.run", seen.append)
    config = {
        "data": {"class_path": "flatbayes.data.Digits"},
        "flatness": {"class_path": "flatbayes.flatness.ASAM"},
        "posterior": {"class_path": "flatbayes.posteriors.SGVB", "init_args": {"temperature": 0.5}},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "o")]) == 0
    assert seen[0].flatness == ASAM()
    assert seen[0].posterior == SGVB(temperature=0.5)
