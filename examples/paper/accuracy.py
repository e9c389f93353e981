"""Which accuracy does the paper's network reach, over random splits and with larger steps?"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from drawing import legend, save, style
from figures import plt
from graphs import PROBLEMS, GraphProblem, load, nc, with_split
from measuring import Record, markdown, write
from torch_geometric.data import Data

IMPLICIT = ("decay", "laplacian", "attention")
PLANETOID = (83.6, 0.5)  # GRAND-nl on Planetoid's split of Cora, https://arxiv.org/abs/2106.10934


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    record = Record(args.out / "accuracy.jsonl", args)
    parts = [random_splits(args, record)]
    if "Cora" in args.datasets:
        parts += [public_split(args, record), larger_steps(args, record)]
    write(args.out / "accuracy.md", "\n\n".join(parts))


def random_splits(args: argparse.Namespace, record: Record) -> str:
    """The table of accuracies over random splits."""
    rows = []
    for name in args.datasets:
        problem = PROBLEMS[name]
        data, source = load(problem, args.root, args.out / "data")
        runs = [train(args, problem, with_split(problem, data, seed), seed, "random")
                for seed in seeds(args, args.splits)]
        accuracy = note(record, runs, table="random splits", dataset=name, source=source)
        rows.append([name, source, len(runs), summary(accuracy), each(accuracy),
                     "{:.1f} +- {:.1f}".format(*problem.accuracy)])
    return "**Random splits**, test accuracy in %\n\n" + markdown(
        ["data set", "data", "splits", "imex_rk2, mean", "each", "GRAND-nl, published"], rows)


def public_split(args: argparse.Namespace, record: Record) -> str:
    """The table of Planetoid's split."""
    data, source = public(args)
    runs = [train(args, PROBLEMS["Cora"], data, seed, "own")
            for seed in seeds(args, args.public_seeds)]
    accuracy = note(record, runs, table="Planetoid's split", dataset="Cora", source=source)
    row = [source, len(runs), summary(accuracy), each(accuracy), "{:.1f} +- {:.1f}".format(
        *PLANETOID)]
    return "**Cora, Planetoid's split**, test accuracy in %\n\n" + markdown(
        ["data", "seeds", "imex_rk2, mean", "each", "GRAND-nl, published"], [row])


def larger_steps(args: argparse.Namespace, record: Record) -> str:
    """The table and the figure of the three choices of J with fewer steps."""
    data, source = public(args)
    found, rows = {}, []
    for implicit in IMPLICIT:
        for steps in args.steps:
            runs = [train(args, PROBLEMS["Cora"], data, seed, "own", implicit, steps)
                    for seed in seeds(args, args.step_seeds)]
            accuracy = note(record, runs, table="steps", dataset="Cora", source=source,
                            implicit=implicit, steps=steps)
            found[implicit, steps] = accuracy
        rows.append([f"`{implicit}`"] + [summary(found[implicit, n]) for n in args.steps])
    plot(args, found)
    return (f"**Cora, Planetoid's split ({source}), seeds: {args.step_seeds}**, test accuracy in % "
            "with that many equal steps\n\n" + markdown(["J", *args.steps], rows))


def train(args: argparse.Namespace, problem: GraphProblem, data: Data, seed: int, split: str,
          implicit: str = "decay", steps: int | None = None) -> dict:
    """One run, or what an earlier one of the same settings has come to."""
    settings = problem.settings
    usual = math.ceil(settings.time)
    steps = usual if steps is None else steps
    step_size = 1.0 if steps == usual else settings.time / steps  # 1.0: equal steps of at most that
    folder = args.out / "checkpoints" / f"{problem.name}-{split}-{implicit}-{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--dataset", problem.name, "--implicit", implicit, "--step-size", repr(step_size),
             "--split", split, "--patience", "1000", "--device", "cpu", "--out", str(folder)]
    if args.epochs is not None:
        words += ["--epochs", str(args.epochs)]
    run = nc.train(nc.parse_arguments(words), settings, data, seed)
    nc.print_run(run)
    return run


def public(args: argparse.Namespace) -> tuple[Data, str]:
    data, source = load(PROBLEMS["Cora"], args.root, args.out / "data")
    if "train_mask" not in data:
        data = with_split(PROBLEMS["Cora"], data, 0)
    return data, source


def seeds(args: argparse.Namespace, count: int) -> range:
    return range(args.seed, args.seed + count)


def note(record: Record, runs: list[dict], **about) -> np.ndarray:
    """Writes the runs down; their test accuracies in %."""
    for run in runs:
        record.add(**about, **{key: run[key] for key in ("seed", "test", "best", "best_epoch",
                                                         "epoch", "seconds")})
    return np.array([100 * run["test"] for run in runs])


def summary(accuracy: np.ndarray) -> str:
    spread = f" +- {accuracy.std(ddof=1):.1f}" if len(accuracy) > 1 else ""
    return f"{accuracy.mean():.1f}{spread}"


def each(accuracy: np.ndarray) -> str:
    return " ".join(f"{a:.1f}" for a in accuracy)


def plot(args: argparse.Namespace, found: dict[tuple[str, int], np.ndarray]) -> None:
    """The mean accuracy of each choice of J against the step size."""
    figure, axis = plt.subplots(figsize=(6, 3.8))
    sizes = [PROBLEMS["Cora"].settings.time / n for n in args.steps]
    for k, implicit in enumerate(IMPLICIT):
        runs = np.array([found[implicit, steps] for steps in args.steps])
        axis.errorbar(sizes, runs.mean(axis=1),
                      yerr=runs.std(axis=1, ddof=min(1, runs.shape[1] - 1)), capsize=3,
                      label=f'implicit="{implicit}"', **style(k, k, k))
    seeds = "one seed" if args.step_seeds == 1 else (
        f"mean and standard deviation of {args.step_seeds} seeds")
    axis.set(xscale="log", xlabel="step size, dimensionless (number of steps)",
             ylabel="test accuracy in %",
             title=f"Cora: accuracy with larger steps, by implicit part\n{seeds}")
    axis.set_xticks(sizes, [f"{h:.2g}\n({n})" for h, n in zip(sizes, args.steps, strict=True)])
    axis.set_xticks([], minor=True)
    legend(figure, axis, "lower center", ncols=len(IMPLICIT))
    save(figure, args.out / "accuracy-steps.png")
