"""How does the step change the race on graphs? The paper's Figure 2, measured.

Trains with imex_rk2, implicit_adams and crank_nicolson at several steps, an epoch of each in every
round:

    python examples/paper/figure2.py --root data
    python examples/paper/figure2.py --quick

Writes figure2.jsonl, figure2.md and figure2.png to --out.
"""

from __future__ import annotations

import argparse

import matplotlib
import numpy as np
import torch
from graphs import PROBLEMS, load, with_split
from records import Record, markdown, number, write
from systems import SYSTEMS
from table1 import Entry, add_graph_arguments, columns, fill_graph_arguments, run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = ("imex_rk2", "implicit_adams", "crank_nicolson")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    record, problem = Record(args.out / "figure2.jsonl", args), PROBLEMS[args.dataset]
    data, source = load(problem, args.root, args.out / "data")
    data = with_split(problem, data, args.seed)
    entries = [Entry(SYSTEMS[name], step, listed=False) for name in args.systems
               for step in args.steps]
    run(args, problem, data, entries)
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
    """A panel for each system, a line for each step."""
    figure, axes = plt.subplots(1, len(args.systems), figsize=(4 * len(args.systems), 3.8),
                                sharex=True, sharey=True, constrained_layout=True, squeeze=False)
    for name, axis in zip(args.systems, axes[0], strict=True):
        own = [entry for entry in entries if entry.system.name == name]
        for shade, entry in zip(np.linspace(0.2, 0.9, len(own)), own, strict=True):
            curve = np.array(entry.trainings[0].curve).reshape(-1, 3)
            failure = entry.trainings[0].failure
            label = f"step {entry.step_size:g}" + (f": {failure}"[:40] if failure else "")
            axis.plot(curve[:, 0], curve[:, 2], ".-", color=plt.get_cmap("viridis")(shade),
                      label=label)
        axis.set(xscale="log", xlabel="training time in s", title=name)
        axis.legend(fontsize=8, loc="upper left")
    axes[0, 0].set_ylabel(f"test accuracy on {args.dataset} in %")
    figure.savefig(args.out / "figure2.png", dpi=120)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The paper's Figure 2: training on a graph at several steps.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = add_graph_arguments(parser)
    add("--dataset", choices=list(PROBLEMS), default="Cora", help="which")
    add("--systems", nargs="+", choices=NAMES, default=list(NAMES), help="which")
    add("--steps", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0, 2.0], help="step sizes")
    return fill_graph_arguments(parser.parse_args())


if __name__ == "__main__":
    main()
