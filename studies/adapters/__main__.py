"""How much isotropic noise adapters tolerate (TFB) after a plain training and after one with SAM.

    FLATBAYES_DATA=... python -m studies.adapters docs/results/adapters.json --page docs/adapters.md

The network is MiniLM, with adapters in its last two layers, so that the outputs of the others are computed once. The
data are 200 sentences of SST-2 for each seed, those of `studies.sentences`. TFB chooses the largest standard
deviation with which the NLL of 120 validation sentences rises by at most 0.3 %, and, for comparison, the largest with
which the predicted class of at most 5 % of them changes. Test sentences enter no choice. Every training is written
when it is finished; the same command continues.
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flatbayes import MAP, SAM, TFB, Categorical, FittedPosterior, Plain, TrainingConfig, evaluate, fit, tune_draws
from flatbayes.core.files import read_json, replace_nonfinite, write_json
from flatbayes.flatness import Flatness
from studies.adapters.page import render_table
from studies.pages import fill_marks
from studies.sentences.task import Examples, load_task

NUM_SEEDS, NUM_TRAIN, NUM_TEST, NUM_DRAWS, BATCH_SIZE, NUM_FIXED_LAYERS = 5, 200, 300, 10, 20, 4
CHANGED_CLASSES = TFB(criterion="changed_classes", max_change=0.05)
CONFIG = TrainingConfig(
    epochs=8, num_validations=0, optimizer=partial(torch.optim.Adam, lr=2e-3, fused=True), batch_size=BATCH_SIZE
)
FLATNESSES: dict[str, Flatness] = {"Plain": Plain(), "SAM": SAM(rho=0.05)}

Batch = tuple[dict[str, Tensor], Tensor]


class LastLayers(nn.Module):
    """The layers of a BERT from `NUM_FIXED_LAYERS` on, the pooler and the head.

    Args:
        model: A `BertForSequenceClassification`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.layers = model.bert.encoder.layer[NUM_FIXED_LAYERS:]
        self.pooler, self.classifier = model.bert.pooler, model.classifier

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the logits."""
        bias = (1 - mask[:, None, None].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        for layer in self.layers:
            output = layer(hidden, attention_mask=bias)
            hidden = output if isinstance(output, Tensor) else output[0]
        logits: Tensor = self.classifier(self.pooler(hidden))
        return logits


@torch.no_grad()
def compute_hidden(model: Any, examples: Examples, batch_size: int) -> list[Batch]:
    """Batches of the outputs of the fixed layers, with masks, and labels."""
    batches = []
    for tokens, labels in examples.sort_into_batches(batch_size):
        outputs = model.bert(**tokens, output_hidden_states=True)
        hidden = outputs.hidden_states[NUM_FIXED_LAYERS]
        batches.append(({"hidden": hidden, "mask": tokens["attention_mask"]}, labels))
    return batches


def make_adapted(model: Any, seed: int) -> nn.Module:
    """The last layers with new adapters of rank 8 on queries and values, and a new head, drawn with a seed."""
    from copy import deepcopy

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], modules_to_save=["classifier"])
    last_layers = LastLayers(deepcopy(model))
    last_layers.classifier.reset_parameters()
    return get_peft_model(last_layers, lora)  # type: ignore[arg-type]


def run(model: Any, train: list[Batch], val: list[Batch], test: list[Batch], flatness: str, seed: int) -> Any:
    """Train adapters, choose the noise, and evaluate the network and the posterior on test sentences."""
    start = time.process_time()
    network, options = make_adapted(model, seed), {"likelihood": Categorical(2), "num_data": NUM_TRAIN, "seed": seed}
    loader = DataLoader(train, batch_size=None, shuffle=True)  # type: ignore[arg-type]  # a list of batches
    trained = fit(network, loader, MAP(), FLATNESSES[flatness], CONFIG, show_progress=False, **options)  # type: ignore[arg-type]
    posterior, choice = choose_noise(trained, TFB(), val)
    _, tolerance = choose_noise(trained, CHANGED_CLASSES, val)
    metrics = {
        name: evaluate(fitted, test, num_draws=NUM_DRAWS).metrics
        for name, fitted in (("MAP", trained), ("TFB", posterior))
    }
    return {
        "flatness": flatness,
        "seed": seed,
        "std": choice["value"],
        "changes": choice["changes"],
        "std_changed_classes": tolerance["value"],
        "val_nll": evaluate(trained, val).metrics["nll"],
        "test": metrics,
        "cpu_seconds": time.process_time() - start,
    }


def choose_noise(
    trained: FittedPosterior, posterior: TFB, val: list[Batch]
) -> tuple[FittedPosterior, dict[str, Any]]:
    """The posterior with the noise that validation sentences accept, and the record of the choice."""
    states = [posterior.init(trained.states[0].model, None, NUM_TRAIN)]
    fitted: FittedPosterior = tune_draws(replace(trained, posterior=posterior, states=states), val)
    return fitted, fitted.info["training"]["draw_options"]["std"]


def main() -> None:
    """Write one row for every training; rows that the file has are kept. With `--page` only the table is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON file of the results")
    parser.add_argument("--page", type=Path, help="write the table of this page from the results, and train nothing")
    options = parser.parse_args()
    if options.page is not None:
        fill_marks(options.page, {"noise of adapters": render_table(read_json(options.results))})
    else:
        run_all(options.results)


def run_all(path: Path) -> None:
    """Train and evaluate what the JSON file does not have."""
    torch.set_num_threads(1)
    rows = read_json(path) if path.exists() else []
    done = {(row["seed"], row["flatness"]) for row in rows}
    task = load_task()
    model = task.builders["full"]().eval()
    val, test = compute_hidden(model, task.val, 40), compute_hidden(model, task.test.select(range(NUM_TEST)), 50)
    for seed, flatness in product(range(NUM_SEEDS), FLATNESSES):
        if (seed, flatness) not in done:
            train = compute_hidden(model, task.draw_training(NUM_TRAIN, seed), BATCH_SIZE)
            rows.append(replace_nonfinite(run(model, train, val, test, flatness, seed)))
            write_json(path, rows)
            nll = {name: round(metrics["nll"], 4) for name, metrics in rows[-1]["test"].items()}
            print(seed, flatness, rows[-1]["std"], nll, round(rows[-1]["cpu_seconds"]), flush=True)


if __name__ == "__main__":
    main()
