# %% Active learning: 20 labelled digits, and in each round the library chooses 20 more to label
import torch
from sklearn.datasets import load_digits

from flatbayes import MAP, MLP, SAM, Categorical, Ensemble, evaluate, fit
from flatbayes.decisions import sample_batch

images, digits = load_digits(return_X_y=True)
inputs, labels = torch.tensor(images).float(), torch.tensor(digits)  # labels stand for a person who is asked
order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
test, pool_rows = order[:500], order[500:]


def learn(power, num_rounds=7):
    """Accuracy on the test digits after each round; `power` 0 chooses at random."""
    labelled, pool, accuracies = pool_rows[:20], pool_rows[20:], []
    for number in range(num_rounds):
        # From scratch in each round. The first labels may lack a class, so the likelihood says how many there are.
        training = (inputs[labelled], labels[labelled])
        config = {"epochs": 50, "batch_size": 32}
        fitted = fit(MLP, training, Ensemble(MAP(), size=5), SAM(), config, likelihood=Categorical(10))
        accuracies.append(evaluate(fitted, inputs[test], labels[test]).metrics["accuracy"])
        chosen = sample_batch(fitted.predict(inputs[pool]).mutual_information, 20, power=power, seed=number)
        is_left = torch.ones(len(pool), dtype=torch.bool)
        is_left[chosen] = False
        labelled, pool = torch.cat([labelled, pool[chosen]]), pool[is_left]
    return accuracies


# %% Mutual information, the disagreement of the five networks, against a random choice
random, informed = learn(power=0), learn(power=1)
for number, (first, second) in enumerate(zip(random, informed, strict=True)):
    print(f"{20 * (number + 1):4} labels: accuracy {first:.3f} at random, {second:.3f} by mutual information")

# %% A pool that exceeds the memory: its predictions come in chunks, and only their scores are kept
fitted = fit(MLP, (inputs[test], labels[test]), MAP(), SAM(), {"epochs": 5}, likelihood=Categorical(10))
batches = inputs[pool_rows].split(256)  # or a DataLoader without shuffling
scores = torch.cat([predictive.entropy for predictive in fitted.stream_predictions(batches)])
print(f"{len(scores)} scores, the highest in row {int(scores.argmax())}")
