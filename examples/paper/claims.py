"""Which claims in the text of the paper hold here?

Measures each claim of https://arxiv.org/abs/2412.11301 that has no table or figure of its own, and
decides by a threshold whether the numbers bear it out:

    python examples/paper/claims.py
    python examples/paper/claims.py --claims growth varied --repeats 9

Writes claims.jsonl, claims.md and figures to --out. An implicit part that is not linear, solved by
Newton's method (equations 9 and 11 of the paper), is not among them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from records import Record, add_arguments, fill

matplotlib.use("Agg")
import claims_learned
import claims_memory
import claims_newton
import claims_nonstiff
import claims_steps
import matplotlib.pyplot as plt
from claim import Finding

CLAIMS: dict[str, Callable[[argparse.Namespace], Finding]] = {
    **claims_steps.CLAIMS, **claims_nonstiff.CLAIMS, **claims_memory.CLAIMS,
    **claims_learned.CLAIMS, **claims_newton.CLAIMS}


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    record = Record(args.out / "claims.jsonl", args)
    sections = []
    for name in args.claims:
        finding = CLAIMS[name](args)
        for values in finding.records:
            record.add(claim=name, **values)
        record.add(claim=name, holds=finding.verdict.holds, reason=finding.verdict.reason)
        for ending, draw in finding.plots.items():
            save(draw, args.out / f"claims-{ending}.png")
        sections.append(finding.section(name))
        print(f"{sections[-1]}\n", flush=True)
        (args.out / "claims.md").write_text("\n\n".join(sections) + "\n")


def save(draw: Callable[..., None], path: Path) -> None:
    figure = plt.figure(figsize=(9, 3.6), constrained_layout=True)
    draw(figure)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = add_arguments(parser)
    add("--claims", nargs="+", choices=list(CLAIMS), default=list(CLAIMS), help="which")
    add("--repeats", type=int, help="repetitions of which medians are taken")
    add("--points", type=int, default=512, help="grid points, but for the learned J")
    add("--learned-points", type=int, default=64, help="grid points for the learned J")
    add("--columns", type=int, help="states of a batch; of Crank-Nicolson --newton-states")
    add("--targets", type=float, nargs="+", default=[1e-2, 1e-4],
        help="relative errors of the problem that is not stiff")
    add("--memory-steps", type=int, nargs="+", help="numbers of steps whose memory is compared")
    add("--epochs", type=int, help="of the learned J")
    add("--trajectories", type=int, default=32, help="for the learned J")
    add("--newton-states", type=int, help="states of a step of Crank-Nicolson")
    add("--imex-states", type=int, default=256, help="states of the step beside it")
    add("--limit", type=float, help="seconds of a step of Crank-Nicolson")
    return fill(parser.parse_args(), repeats=(9, 5), columns=(64, 16), epochs=(400, 120),
                memory_steps=([10, 100, 1000], [10, 100, 400]), newton_states=(8, 2),
                limit=(60.0, 40.0))


if __name__ == "__main__":
    main()
