"""Other ways to draw pps, on variance and on time: python -m experiments.pps_variants (GLUE_DIR).

Order of the rows along which the systematic draw steps: token order (the library's), a random
permutation, ascending weight. Threshold tau: from the sort (the library's), or by bisection. The
layers are those of MiniLM on a batch of CoLA, the weights their true norms times log-normal noise.
Written to results/bench/pps_variants.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import DataCollatorWithPadding

from experiments.bench import CONF, summary
from experiments.models import load_model, load_tokenizer
from experiments.provenance import provenance
from experiments.tasks import load_task
from experiments.variance import catch
from wtacrs import Selection, sample_linears_
from wtacrs.sampling.estimators import Estimator, inclusion_probabilities, normalise, pps, rows_kept
from wtacrs.sampling.variance import outer_gram
from wtacrs.sampling.weights import row_norms

BISECTIONS = 40  # halvings of an interval of ratio n: tau to about 1e-9


def _reordered(order: Callable[[Tensor, torch.Generator], Tensor]) -> Estimator:
    def draw(p: Tensor, k: int, generator: torch.Generator) -> Selection:
        permutation = order(p, generator)
        indices, scales = pps(p[permutation], k, generator)
        return Selection(permutation[indices], scales)

    return draw


def tau_by_bisection(p: Tensor, k: int) -> Tensor:
    """tau with sum min(1, p / tau) = k, without a sort: it lies between 0 and sum(p) / k."""
    p = p.double()
    high = p.sum() / k
    low = torch.zeros_like(high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_many = (p / middle).clamp(max=1.0).sum() > k
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return high


VARIANTS: dict[str, Estimator] = {
    "token order": pps,
    "random order": _reordered(lambda p, g: torch.randperm(len(p), generator=g)),
    "ascending order": _reordered(lambda p, g: p.argsort()),
}


def layers(noise: float, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """(Gram matrix, weights) of each linear layer."""
    task = OmegaConf.load(CONF / "task" / "cola.yaml")
    task.max_train_rows = 32
    config = OmegaConf.load(CONF / "model" / "minilm.yaml")
    tokenizer = load_tokenizer(config)
    data = load_task(task, tokenizer, seed=0).train.remove_columns("sample_ids")
    model = load_model(config, num_labels=2, regression=False).train()
    assert tokenizer is not None
    inputs = DataCollatorWithPadding(tokenizer)([data[i] for i in range(32)])
    caught = catch(model, sample_linears_(model), dict(inputs))
    valid = inputs["attention_mask"].reshape(-1).bool()
    found = []
    for leader, names in caught.groups.items():
        x = caught.x[leader].flatten(0, -2)[valid]
        for name in names:
            dy = caught.dy[name][valid]
            weights = row_norms(x) * row_norms(dy)
            weights = weights * torch.exp(noise * torch.randn(len(x), generator=generator))
            found.append((outer_gram(x, dy), weights))
    return found


def relative_error(estimator: Estimator, gram: Tensor, p: Tensor, k: int, draws: int) -> float:
    """Mean of ||G_hat - G||^2 / ||G||^2 over ``draws`` draws."""
    generator = torch.Generator().manual_seed(0)
    misses = torch.full((draws, len(p)), -1.0, dtype=gram.dtype)
    for row in misses:
        indices, scales = estimator(p, k, generator)
        row.index_add_(0, indices, scales.to(row.dtype))
    return float(((misses @ gram) * misses).sum(1).mean() / gram.sum())


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Wall-clock seconds of ``work``, after one call to warm up."""
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return taken[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.pps_variants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--budget", type=float, default=0.3)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("results/bench"))
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    errors: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for gram, weights in layers(options.noise, generator):
        p = normalise(weights)
        k = rows_kept(len(p), options.budget)
        if k >= int((p > 0).sum()):
            continue  # exact whatever the order: above the last attention only [CLS] has a gradient
        for name, estimator in VARIANTS.items():
            errors[name].append(relative_error(estimator, gram, p, k, options.draws))
    p = normalise(torch.rand(4096, generator=generator).pow(4))
    k = rows_kept(len(p), options.budget)
    times = {
        **{name: seconds(lambda e=e: e(p, k, generator), 200) for name, e in VARIANTS.items()},
        "tau from the sort": seconds(lambda: inclusion_probabilities(p, k), 200),
        "tau by bisection": seconds(lambda: tau_by_bisection(p, k), 200),
    }
    result = {
        "relative_squared_error": {k: float(np.exp(np.log(v).mean())) for k, v in errors.items()},
        "ratio_to_token_order": {
            name: summary([e / t for e, t in zip(v, errors["token order"], strict=True)])
            for name, v in errors.items()
        },
        "seconds_at_4096_rows": {name: summary(v) for name, v in times.items()},
        "options": {"budget": options.budget, "noise": options.noise, "draws": options.draws},
        "provenance": provenance(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "pps_variants.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in result if key != "provenance"}, indent=1))
    print(file)


if __name__ == "__main__":
    main()
