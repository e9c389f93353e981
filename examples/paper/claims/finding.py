"""How is one claim of the paper set beside what was measured?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Verdict:
    """Whether the numbers bear a claim out, and which numbers.

    Attributes:
        holds: Decided by a threshold.
        reason: The numbers and the threshold.
    """

    holds: bool
    reason: str


@dataclass(frozen=True)
class Finding:
    """What was measured for a claim.

    Attributes:
        claim: What the paper says.
        verdict: Whether it does here.
        tables: Markdown, with a line above each that says what it holds.
        records: The measurements, one dictionary each.
        plots: Figures by the end of their name: each draws on an empty matplotlib figure.
    """

    claim: str
    verdict: Verdict
    tables: Sequence[str]
    records: list[dict[str, Any]]
    plots: dict[str, Callable[[Any], None]] = field(default_factory=dict)

    def section(self, name: str) -> str:
        """The finding in Markdown."""
        found = "reproduced" if self.verdict.holds else "not reproduced"
        title = f"**{name}.** The paper: {self.claim}. Here {found}: {self.verdict.reason}."
        return "\n\n".join([title, *self.tables])


class SmallMLP(nn.Module):
    """A G that costs next to nothing beside a solve: one hidden layer over the last dimension."""

    def __init__(self, size: int, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size, width), nn.Tanh(), nn.Linear(width, size))

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.net(u)
