"""How does the step change the race on graphs? The paper's Figure 2, measured."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from drawing import legend, marked, save, style
from figures import plt
from graphs import PROBLEMS, load, with_split
from measuring import Record, markdown, number, write
from systems import SYSTEMS
from table1 import Entry, columns, run_entries


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    record, problem = Record(args.out / "figure2.jsonl", args), PROBLEMS[args.dataset]
    data, source = load(problem, args.root, args.out / "data")
    data = with_split(problem, data, args.seed)
    entries = [Entry(SYSTEMS[name], step, listed=False) for name in args.systems
               for step in args.steps]
    run_entries(args, problem, data, entries)
    for entry in entries:
        record.add(dataset=args.dataset, source=source, label=entry.label,
                   **columns(entry, problem), trainings=[t.plain() for t in entry.trainings])
    rows = [[e.label, number(c["training"], 6), number(c["seconds"]), c["repetitions"],
             number(c["accuracy"]), c["failure"] or ""]
            for e, c in ((entry, columns(entry, problem)) for entry in entries)]
    plot(args, entries)
    write(args.out / "figure2.md", f"**{args.dataset} ({source})**\n\n" + markdown(
        ["system", "evaluations an epoch, training", "seconds an epoch", "epochs",
         "test accuracy reached", "failed"], rows))


def plot(args: argparse.Namespace, entries: list[Entry]) -> None:
    """A panel for each system, a line for each step, which looks the same in all panels."""
    figure, axes = plt.subplots(1, len(args.systems), figsize=(3.3 * len(args.systems) + 0.4, 3.6),
                                sharex=True, sharey=True, squeeze=False)
    for name, axis in zip(args.systems, axes[0], strict=True):
        for entry in (entry for entry in entries if entry.system.name == name):
            curve = np.array(entry.trainings[0].curve).reshape(-1, 3)
            axis.plot(curve[:, 0], curve[:, 2], label=f"step {entry.step_size:g}",
                      markevery=marked(len(curve)), **style(*3 * [args.steps.index(
                          entry.step_size)]))
        failed = [f"{e.step_size:g}" for e in entries if e.system.name == name
                  and e.trainings[0].failure]
        axis.set(xscale="log", xlabel="training time in s",
                 title=name + (f"\nfails at step {', '.join(failed)}" if failed else ""))
    axes[0, 0].set_ylabel("test accuracy in %")
    legend(figure, axes[0, 0], "lower center", ncols=len(args.steps))
    figure.suptitle(f"{args.dataset}: accuracy against training time, by step size")
    save(figure, args.out / "figure2.png")
