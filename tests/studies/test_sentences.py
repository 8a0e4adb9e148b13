"""Fine-tuning on few sentences: batches, a whole setting with a tiny transformer, the summary and the page."""

import math
from itertools import product

import pytest
import torch
from torch import nn

from flatbayes import MAP, SAM, SWAG, fit
from flatbayes.core.files import read_json, replace_nonfinite, write_json
from flatbayes.flatness import Delayed
from studies.fine_tuning.choices import describe_twins
from studies.fine_tuning.page import END, _format_size, render_tables, render_worth
from studies.fine_tuning.selection import select_twins
from studies.fine_tuning.summary import average_cost, find_warmup
from studies.fine_tuning.worth import compare_sizes, find_equal_size, measure_ensemble_equivalents
from studies.sentences import slow_start, study, summary
from studies.sentences.__main__ import main
from studies.sentences.study import Setting, Training
from studies.sentences.summary import LABELS
from studies.sentences.task import Examples, LengthSampler, Task, shuffle_words


class TinyTransformer(nn.Module):
    """A transformer of one layer, with dropout, that is called as those of transformers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 2)

    def embed(self, input_ids):
        return self.embedding(input_ids)

    def forward(self, input_ids, attention_mask):
        hidden = self.layer(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        weights = attention_mask[..., None].to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


class TinyAdapter(TinyTransformer):
    """The same, of which a low-rank adapter of the embedding and the head are trained."""

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
        self.lora_A, self.lora_B, self.head = (
            nn.Linear(8, 2, bias=False),
            nn.Linear(2, 8, bias=False),
            nn.Linear(8, 2),
        )

    def embed(self, input_ids):
        embedded = self.embedding(input_ids)
        return embedded + self.lora_B(self.lora_A(embedded))


def make_examples(count, seed):
    """Sentences of 2 to 6 tokens, whose label says whether most tokens are above 10."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (count,), generator=generator).tolist()
    tokens = [torch.randint(1, 20, (length,), generator=generator).tolist() for length in lengths]
    return Examples(tokens, [int(sum(row) > 10 * len(row)) for row in tokens])


@pytest.fixture
def task():
    return Task(
        make_examples(60, 0),
        make_examples(30, 1),
        make_examples(40, 2),
        {"shuffled": make_examples(10, 3), "foreign": make_examples(10, 4)},
        {"full": TinyTransformer, "lora": TinyAdapter, "default": TinyTransformer},
    )


def test_batches_are_padded_to_their_longest_sentence_only():
    batches = Examples([[5, 6, 7], [5], [5, 6]], [2, 0, 1]).sort_into_batches(2)
    assert [inputs["input_ids"].tolist() for inputs, _ in batches] == [[[5, 0], [5, 6]], [[5, 6, 7]]]
    assert batches[0][0]["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert [targets.tolist() for _, targets in batches] == [[0, 1], [2]]


def test_training_batches_have_every_sentence_and_are_of_similar_length():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 40, (70,), generator=generator).tolist()
    torch.manual_seed(0)
    first, second = [list(LengthSampler(lengths, 8)) for _ in range(2)]
    assert len(first) == len(LengthSampler(lengths, 8)) == 9
    assert sorted(row for rows in first for row in rows) == list(range(70))
    assert first != second
    padded = [sum(len(rows) * max(lengths[row] for row in rows) for rows in batches) for batches in (first, second)]
    assert max(padded) < 1.35 * sum(lengths)


def test_training_sentences_are_nested_and_those_of_seeds_differ(task):
    small, large = task.draw_training(10, 0), task.draw_training(30, 0)
    assert large.tokens[:10] == small.tokens
    assert task.draw_training(10, 1).tokens != small.tokens


def test_shuffled_sentences_have_the_same_words():
    text = "no one would call this a good film"
    (shuffled,) = shuffle_words([text])
    assert shuffled != text
    assert sorted(shuffled.split()) == sorted(text.split())


def test_a_setting_is_trained_once_and_its_page_has_the_numbers(task, tmp_path, monkeypatch):
    setting = Setting(32, "lora")
    monkeypatch.setattr(study, "EPOCHS", {32: 4})
    monkeypatch.setattr(study, "EQUAL_LENGTH_SIZE", 32)
    monkeypatch.setattr(study, "EPOCH_FRACTIONS", {"plain": (0.5, 1.0), "flat": (0.5, 1.0)})
    monkeypatch.setattr(study, "RADII", (0.1,))
    monkeypatch.setattr(study, "NUM_SEEDS", 1)
    monkeypatch.setattr(study, "NUM_SELECTION_SEEDS", 1)
    monkeypatch.setattr(study, "SHARED", {name: study.SHARED[name] for name in ("MAP", "SWAG")})
    for module in (study, summary):
        monkeypatch.setattr(module, "SETTINGS", (setting,))
    chosen = {"plain": {"rho": 0.0, "epochs": 2, "nll": 0.7}, "flat": {"rho": 0.1, "epochs": 4, "nll": 0.6}}
    monkeypatch.setattr(study, "select_twins", lambda trials: select_twins(trials) | chosen)
    study.run_setting(task, setting, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(study, "try_fit_together", None)
        study.run_setting(task, setting, tmp_path)  # everything has a file
    assert {path.suffix for path in (tmp_path / "lora-32").iterdir()} == {".json"}  # no recording is left
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{LABELS.start}\n{END}\nafter\n", encoding="utf-8")
    main([str(tmp_path), "--summary", str(tmp_path / "summary.json"), "--page", str(page)])
    data = summary.summarize_study(tmp_path)
    assert data["finished_trainings"] == data["planned_trainings"] == 12
    (result,) = data["settings"]
    rows = {(row["posterior"], row["metric"]): row for row in result["rows"]}
    assert not any(t["errors"] for t in study.load_trainings(tmp_path))
    assert {name for name, _ in rows} == {*study.SHARED, "SGVB", "TFB", "BLoB", "Ensemble"}
    assert {row["num_seeds"] for (_, metric), row in rows.items() if metric == "nll"} == {1}
    assert result["sharing_factor"] > 1
    equal = {(row["posterior"], row["metric"]): row for row in result["rows_equal_length"]}
    assert equal["MAP", "nll"]["flat"] == rows["MAP", "nll"]["flat"]
    assert equal["MAP", "nll"]["plain"] != rows["MAP", "nll"]["plain"]
    assert {name for name, _ in equal} == {*study.SHARED, "SGVB", "BLoB"}
    assert equal["SGVB", "nll"] == rows["SGVB", "nll"] | {
        key: equal["SGVB", "nll"][key] for key in ("p_holm", "verdict_holm")
    }
    assert 1 <= result["worth_ensemble"]["Ensemble"]["plain"] <= 3
    first = next(t for t in data["trainings"] if t["kind"] == "shared")
    assert first["weights_per_example"] == (16 + 16 + 18) / 32
    assert first["gap"] == first["val_nll"]["MAP"] - first["train_loss"]
    assert first["sharpness"] > 0
    text = page.read_text(encoding="utf-8")
    assert f"{rows['MAP', 'nll']['plain']:.3f} → {rows['MAP', 'nll']['flat']:.3f}" in text
    assert text.endswith("after\n")


def test_sam_may_begin_late_or_train_longer(task, tmp_path, monkeypatch):
    monkeypatch.setattr(slow_start, "load_task", lambda: task)
    flatnesses = []
    monkeypatch.setattr(
        slow_start, "fit", lambda *args, **options: flatnesses.append(args[3]) or fit(*args, **options)
    )
    for arguments in (["--start", "0.5"], ["--min_epochs", "200", "--warmup", "0"]):
        slow_start.main(["--size", "32", "--seed", "0", "--out", str(tmp_path / "x.json"), *arguments])
    late, longer = read_json(tmp_path / "x.json")
    assert flatnesses == [Delayed(SAM(rho=0.05), start=0.5), SAM(rho=0.05)]
    assert (late["start"], longer["min_epochs"]) == (0.5, 200)
    assert [training["history"]["lr"][0] for training in (late, longer)] == pytest.approx([9e-5 * 2 / 30, 9e-5])
    lowest = min(nll for nll in late["history"]["val_nll"] if nll is not None)
    assert late["val"]["nll"] == pytest.approx(lowest, rel=0.05)  # in bfloat16


def test_with_default_options_fit_chooses_on_validation_sentences(task, tmp_path, monkeypatch):
    setting = Setting(32, "default")
    for name, value in {
        "NUM_SEEDS": 1,
        "NUM_SELECTION_SEEDS": 1,
        "DEFAULTS": {"MAP": MAP(), "SWAG": SWAG(rank=2)},
    }.items():
        monkeypatch.setattr(study, name, value)
    for module in (study, summary):
        monkeypatch.setattr(module, "SETTINGS", (setting,))
    assert setting.num_epochs == 150  # 300 steps of two batches
    assert study.estimate_minutes(setting) > 0
    study.run_setting(task, setting, tmp_path)
    assert sorted(path.name for path in (tmp_path / "default-32").iterdir()) == [
        "selection.json",
        "shared-0-0.05.json",
        "shared-0-0.json",
    ]
    data = summary.summarize_study(tmp_path)
    assert data["finished_trainings"] == data["planned_trainings"] == 2
    (result,) = data["settings"]
    assert {row["posterior"] for row in result["rows"]} == {"MAP", "SWAG"}
    assert not result["rows_equal_length"]
    text = render_tables(data, LABELS)
    assert "## 32 sentences, all weights, default options" in text
    assert "SAM with ρ = 0.05" in text


def test_one_training_serves_all_posteriors(task, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "EPOCHS", {32: 2})
    training = Training(tmp_path, Setting(32, "full"), 0, 0.1)
    study.run_training(task, training, study.SHARED, with_test=False)
    val = study.read_json(training.path)
    assert val["cost"]["gradients"] == 8  # of four steps
    assert "test" not in val
    recording = training.recording_path.read_bytes()
    study.run_training(task, training, study.SHARED, with_test=True)  # from the recording
    assert training.recording_path.read_bytes() == recording
    result = study.read_json(training.path)
    assert result["val"] == val["val"]
    assert set(result["test"]) == set(study.SHARED)
    assert {"auroc_shuffled", "auroc_foreign", "aurc", "nll_calibrated"} <= set(result["test"]["SWAG"])


def write_training(folder, kind, seed, rho, nll, epochs=None, **metrics):
    entry = {"nll": nll, "accuracy": 0.8, "nll_calibrated": nll, **metrics}
    name = "Ensemble" if kind == "ensemble" else "MAP"
    training = {"trained": "full", "size": 100, "seed": seed, "rho": rho, "cpu_seconds": 30.0}
    training |= {"cost": {"seconds_together": 10.0, "seconds_one_by_one": 40.0}, "val": {name: entry, "SWAG": entry}}
    suffix = "" if epochs is None else f"-{epochs}e"
    training |= {} if epochs is None else {"epochs": epochs}
    write_json(folder / f"{kind}-{seed}-{rho:g}{suffix}.json", training | {"test": {name: entry}})


def test_summary_of_known_results(tmp_path):
    folder = tmp_path / "full-100"
    folder.mkdir()
    for seed in range(5):
        write_training(folder, "shared", seed, 0.0, 0.7)
        write_training(folder, "shared", seed, 0.1, 0.5 + 0.01 * seed)
        write_training(folder, "ensemble", seed, 0.0, 0.5, ensemble_nlls=[0.8, 0.6, 0.4])
    for rho, nll in ((0.02, 0.65), (0.05, 0.6), (0.2, None)):
        for seed in range(2):
            write_training(folder, "shared", seed, rho, nll)
    results = {
        (rho, 10): [read_json(folder / f"shared-{seed}-{rho:g}.json") for seed in range(2)]
        for rho in (0.0, *study.RADII)
    }
    record = replace_nonfinite(select_twins(results))
    assert record["plain"] == {"rho": 0.0, "epochs": 10, "nll": 0.7}
    assert record["flat"] == {"rho": 0.1, "epochs": 10, "nll": 0.505}
    assert record["is_flat_better"]
    assert record["candidates"][-1]["nll"] is None  # diverged
    write_json(folder / "selection.json", record)
    data = summary.summarize_study(tmp_path)
    (setting,) = data["settings"]
    (row,) = [row for row in setting["rows"] if (row["posterior"], row["metric"]) == ("MAP", "nll")]
    assert (row["num_seeds"], row["plain"], row["verdict"], row["verdict_holm"]) == (5, 0.7, "flat", "flat")
    assert row["difference"] == pytest.approx(-0.18)
    assert data["verdicts"]["all"]["before"] == {"flat": 2, "tie": 1}
    assert setting["sharing_factor"] == 4
    assert setting["cpu_minutes"] == 10.5
    assert setting["worth_ensemble"]["MAP"]["plain"] == pytest.approx(1.5)
    assert setting["worth_ensemble"]["MAP"]["flat"] == pytest.approx(2.4)


def test_settings_without_a_warmup_stay_beside_those_with_one(tmp_path):
    for seed, rho in product(range(3), (0.0, 0.05)):
        path = tmp_path / "default-200" / f"shared-{seed}-{rho:g}.json"
        write_json(path, make_default_training(seed, rho, nll=0.6 - rho - 0.01 * seed * rho))
    twins = {twin: {"rho": rho, "epochs": 24, "nll": 0.5} for twin, rho in (("plain", 0.0), ("flat", 0.05))}
    write_json(tmp_path / "default-200" / "selection.json", {**twins, "is_flat_better": True, "candidates": []})
    before = summary.summarize_study(tmp_path)
    for path in (tmp_path / "default-200").glob("shared-*.json"):
        write_json(path, read_json(path) | {"warmup": 0.1})
    first = summary.summarize_study(tmp_path, before)
    again = summary.summarize_study(tmp_path, first)
    kept = summary.summarize_study(tmp_path / "nothing", again)
    for data in (first, again, kept):
        assert [(s["name"], s["warmup"]) for s in data["settings"]] == [("default-200", 0.1), ("default-200", 0.0)]
        assert [t.get("warmup", 0.0) for t in data["trainings"]].count(0.1) == len(data["trainings"]) / 2 == 6
        assert data["finished_trainings"] == 6
        assert data["law"] == first["law"]
        assert [row["warmup"] for row in data["worth_examples"]] == [0.1, 0.0]


def make_default_training(seed, rho, nll):
    metrics = {"MAP": {"nll": nll, "accuracy": 0.8, "nll_calibrated": nll}}
    law = dict.fromkeys(("train_loss", "gap", "sharpness", "weights_per_example"), 0.1)
    cost = {"seconds_together": 1.0, "seconds_one_by_one": 4.0}
    return {
        **{"trained": "default", "size": 200, "seed": seed, "rho": rho, "epochs": 24, "cpu_seconds": 1.0},
        **{"val": metrics, "test": metrics, "law": law, "cost": cost},
    }


def test_equal_size_is_interpolated_in_the_logarithm():
    assert find_equal_size(0.5, [100, 400], [0.6, 0.4]) == pytest.approx(200)
    assert find_equal_size(0.4, [100, 400], [0.6, 0.4]) == pytest.approx(400)
    assert find_equal_size(0.3, [100, 400], [0.6, 0.4]) is None
    assert find_equal_size(0.7, [100, 400], [0.6, 0.4]) is None
    assert find_equal_size(0.45, [100, 200, 400], [0.6, 0.4, 0.5]) == pytest.approx(100 * math.sqrt(2) ** 1.5)


def test_ensemble_sizes_are_means_over_the_seeds_of_both_twins():
    def train(seed, nll, **ensemble):
        return {"seed": seed, "test": {"MAP": {"nll_calibrated": nll}, "Ensemble": ensemble}}

    curve = {"ensemble_nlls": [0.8, 0.6, 0.4]}
    twins = {"plain": [train(0, 0.7, **curve), train(1, 0.4, **curve)], "flat": [train(0, 0.5), train(2, 0.4)]}
    sizes = measure_ensemble_equivalents(twins)
    assert sizes["MAP"] == {"plain": pytest.approx(1.5), "flat": pytest.approx(2.5)}  # of seed 0
    assert measure_ensemble_equivalents({**twins, "flat": []})["MAP"]["plain"] == pytest.approx(2.25)


def test_sizes_beyond_the_curve_are_told():
    def describe(size, plain, flat):
        return {
            "trained": "full",
            "size": size,
            "rows": [{"posterior": "MAP", "metric": "nll", "interval": (0, 1), "plain": plain, "flat": flat}],
        }

    rows = compare_sizes([describe(100, 0.5, 0.3), describe(400, 0.7, 0.6)])  # plain training grows worse
    assert [_format_size(row, rows) for row in rows] == ["more than 400", "fewer than 100"]
    rows = compare_sizes([describe(100, 0.5, 0.6), describe(400, 0.4, 0.45)])
    assert [_format_size(row, rows) for row in rows] == ["fewer than 100", "200"]


def test_sizes_are_compared_among_settings_with_the_same_warmup():
    def describe(size, plain, flat, **warmup):
        row = {"posterior": "MAP", "metric": "nll", "interval": (0, 1), "plain": plain, "flat": flat}
        return {"trained": "default", "size": size, "rows": [row], **warmup}

    before = [describe(100, 0.9, 0.7), describe(400, 0.5, 0.4)]
    now = [describe(100, 0.6, 0.5, warmup=0.1), describe(400, 0.4, 0.3, warmup=0.1)]
    rows = compare_sizes([before[0], now[0], before[1], now[1]])
    assert [row["equal_plain_size"] for row in rows] == [pytest.approx(200), None] * 2
    assert [_format_size(row, rows) for row in rows] == ["200", "more than 400"] * 2
    text = render_worth({"worth_examples": rows}, LABELS)
    assert "| all weights, default options, no warm-up | MAP | 200 |" in text
    assert "| all weights, default options | MAP | 200 |" in text
    assert [LABELS.describe(setting) for setting in (before[0], now[0])] == [
        "100 sentences, all weights, default options, no warm-up",
        "100 sentences, all weights, default options",
    ]
    assert find_warmup([{}, {}]) == 0
    with pytest.raises(ValueError, match=r"have the warm-ups \[0.0, 0.1\]"):
        find_warmup([{}, {"warmup": 0.1}])


def test_a_setting_whose_twins_have_all_epochs_is_finished_sooner():
    setting = Setting(200, "full")
    choices = [{"plain": {"epochs": 8}, "flat": {"epochs": epochs}} for epochs in (5, 8)]
    counts = [study.count_trainings(setting, choice) for choice in (None, *choices)]
    assert [counts[0] - counts[1], counts[1] - counts[2]] == [3, 3]


def test_measured_costs_are_told():
    selection = {
        "candidates": [],
        "plain": {"epochs": 24, "nll": 0.5, "rho": 0.0},
        "flat": {"epochs": 24, "nll": 0.4, "rho": 0.05},
        "is_flat_better": True,
    }
    setting = {"trained": "default", "selection": selection, "warmup": 0.1}
    text = describe_twins(setting)
    assert text.startswith(
        "No option is set. Both train for at most 24 epochs and stop early; flat is SAM with ρ = 0.05."
    )
    assert "Flat training takes 2.0 times the gradients." in text
    assert "The learning rate had no warm-up yet." in describe_twins({**setting, "warmup": 0.0})
    twins = {
        "plain": [{"kind": "shared", "cost": {"gradients": 100, "num_epochs": 8}}],
        "flat": [{"kind": "shared", "cost": {"gradients": g, "num_epochs": 12}} for g in (280, 320)],
    }
    costs = {key: average_cost(twins, key) for key in ("gradients", "num_epochs", "seconds")}
    assert costs == {
        "gradients": {"plain": 100, "flat": 300},
        "num_epochs": {"plain": 8, "flat": 12},
        "seconds": {},
    }
    text = describe_twins({**setting, "mean_cost": costs})
    assert "stop early (plain after 8.0, flat after 12.0, mean)" in text
    assert "takes 3.0 times the gradients" in text


def test_each_twin_has_its_number_of_epochs(tmp_path):
    folder = tmp_path / "full-100"
    folder.mkdir()
    for rho, epochs, nll in ((0.0, None, 0.9), (0.0, 4, 0.5), (0.1, None, 0.6), (0.1, 6, 0.55)):
        for seed in range(3):
            write_training(folder, "shared", seed, rho, nll + 0.01 * seed, epochs)
    trials = {(0.0, 4): 0.5, (0.0, 10): 0.9, (0.1, 6): 0.55, (0.1, 10): 0.6, (0.05, 10): 0.7}
    record = select_twins({key: [{"val": {"MAP": {"nll": nll}}}] for key, nll in trials.items()})
    assert not record["is_flat_better"]
    write_json(folder / "selection.json", record)
    data = summary.summarize_study(tmp_path)
    (setting,) = data["settings"]
    pairs = [
        next((row["plain"], row["flat"]) for row in setting[key] if row["metric"] == "nll")
        for key in ("rows", "rows_equal_length")
    ]
    assert pairs == [pytest.approx((0.51, 0.56)), pytest.approx((0.91, 0.61))]
    text = render_tables(data, LABELS)
    assert "Plain: 4 epochs (best of 2 numbers). Flat: SAM with ρ = 0.1 and 6 epochs (best of 3 pairs)." in text
    assert "Flat training takes 3.0 times the gradients." in text
    assert "| 100 sentences, all weights | 10 | 0.900 | 0.700 | 0.600 |" in text
    assert "| 100 sentences, all weights | 6 | – | – | **0.550** |" in text
    assert "Validation data prefer plain training: NLL, mean over posteriors, 0.500 plain, 0.550 flat." in text
    assert (
        "| 100 sentences, all weights | 3 | plain | 0.800 → 0.800<br>flat 0, neither 1, plain 0 | 0.510 → 0.560"
        in text
    )
