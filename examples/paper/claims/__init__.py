"""Which claims in the text of the paper hold here?

Each claim that has no table or figure of its own is measured, and decided by a threshold.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from drawing import save
from figures import plt
from measuring import Record

from claims import learned, memory, newton, nonstiff, setups
from claims.finding import Finding

CLAIMS: dict[str, Callable[[argparse.Namespace], Finding]] = {
    "growth": setups.growth, "varied": setups.varied, "nonstiff": nonstiff.nonstiff,
    "iterations": memory.iterations, "steps": memory.steps, "learned": learned.learned,
    "newton": newton.newton}


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    record = Record(args.out / "claims.jsonl", args)
    sections = []
    for name in args.claims:
        finding = CLAIMS[name](args)
        for values in finding.records:
            record.add(claim=name, **values)
        record.add(claim=name, holds=finding.verdict.holds, reason=finding.verdict.reason)
        for ending, draw in finding.plots.items():
            figure = plt.figure(figsize=(9, 3.6))
            draw(figure)
            save(figure, args.out / f"claims-{ending}.png")
        sections.append(finding.section(name))
        print(f"{sections[-1]}\n", flush=True)
        (args.out / "claims.md").write_text("\n\n".join(sections) + "\n")
