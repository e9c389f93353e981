"""What does the README's figure show? A forecast of Kuramoto-Sivashinsky, and Cora in fewer steps.

Trains a flux of 42 numbers as G (J is known) and draws its forecast from an unseen state beside the
truth; the accuracies on Cora are read from cora_steps.json, which cora_steps.py measures. About two
minutes; the trajectories are made at the first run:

    python docs/figures/readme.py --root data
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pyg_sinode import imex_odeint
from pyg_sinode.datasets import KuramotoSivashinsky
from pyg_sinode.grid import kuramoto_sivashinsky

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
LYAPUNOV_TIME = 22.0  # Edson et al. (2019), https://doi.org/10.1017/S1446181119000105
STYLES = {"decay": ("#0072B2", "o", "-"), "laplacian": ("#009E73", "s", "--"),
          "attention": ("#E69F00", "^", "-."), "rk4": ("#D55E00", "x", ":")}


class Flux(nn.Module):
    """G(u) = -dF/dx with a flux F between two points that is quadratic in six values around."""

    def __init__(self, spacing: float) -> None:
        super().__init__()
        self.spacing = spacing
        self.linear = nn.Parameter(torch.randn(6) * 0.01)
        self.bilinear = nn.Parameter(torch.randn(6, 6) * 0.01)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        z = torch.stack([u.roll(-shift, -1) for shift in range(-2, 4)], dim=-1)
        flux = ((z @ self.bilinear + self.linear) * z).sum(dim=-1)
        return (flux.roll(1, -1) - flux) / self.spacing


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the README's figure.")
    parser.add_argument("--root", default="data", help="where the trajectories are kept")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = {split: KuramotoSivashinsky(args.root, split) for split in ("train", "test")}
    G, J = Flux(data["train"].grid.spacing[0]), kuramoto_sivashinsky(data["train"].grid).implicit
    train(G, J, data["train"].states.float())
    truth = data["test"].states[0, :501].float()
    t = torch.linspace(0, 100, 501, dtype=torch.float64)
    with torch.no_grad():
        forecast = imex_odeint(G, J, truth[:1], t, method="imex_rk4", step_size=0.2)[:, 0]
    draw(truth.numpy(), forecast.numpy())


def train(G: nn.Module, J, states: Tensor) -> None:
    """Fits pairs of states 0.2 apart, then windows of four such steps, by L-BFGS."""
    for steps, batch, rounds in ((1, 2048, 8), (4, 512, 4)):
        drawn = torch.Generator().manual_seed(steps)
        at = torch.randint(states.size(1) - steps, (batch,), generator=drawn)
        which = torch.randint(states.size(0), (batch,), generator=drawn)
        window = states[which.unsqueeze(1), at.unsqueeze(1) + torch.arange(steps + 1)]
        t = 0.2 * torch.arange(steps + 1, dtype=torch.float64)
        optimizer = torch.optim.LBFGS(G.parameters(), history_size=50, tolerance_grad=0.0,
                                      tolerance_change=0.0, line_search_fn="strong_wolfe")

        def closure(window=window, t=t, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            found = imex_odeint(G, J, window[:, 0], t, method="imex_rk4", step_size=0.2)
            loss = (found[1:].movedim(0, 1) - window[:, 1:]).square().mean()
            loss.backward()
            return loss

        for _ in range(rounds):
            loss = optimizer.step(closure)
        print(f"{steps} steps: mean squared error {float(loss.detach()):.1e}")


def draw(truth: np.ndarray, forecast: np.ndarray) -> None:
    """Three panels of space and time on the left, accuracy against steps on the right."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10})
    figure = plt.figure(figsize=(10, 4), constrained_layout=True)
    axes = figure.subplot_mosaic("AAC;BBC;DDC")
    difference = np.abs(forecast - truth)
    extent = (0, 100 / LYAPUNOV_TIME, 0, 22)
    error = np.linalg.norm(forecast - truth, axis=-1) / np.linalg.norm(truth, axis=-1)
    lost = int((error > 0.2).argmax()) * 0.2 / LYAPUNOV_TIME if (error > 0.2).any() else None
    for key, field, title in (
            ("A", truth, "Kuramoto-Sivashinsky, 64 points: the truth"),
            ("B", forecast, "forecast with a learned G (42 parameters), steps of 0.2"),
            ("D", difference, "their difference, on a scale of its own")):
        image = axes[key].imshow(
            field.T, origin="lower", aspect="auto", extent=extent,
            **({"cmap": "RdBu_r", "vmin": -3, "vmax": 3} if key != "D" else
               {"cmap": "Greys", "vmin": 0, "vmax": difference.max()}))
        axes[key].set(title=title, ylabel="x")
        axes[key].tick_params(labelbottom=key == "D")
        if key in "AD":
            figure.colorbar(image, ax=[axes[k] for k in ("AB" if key == "A" else "D")],
                            label="u" if key == "A" else "|difference|")
    if lost is not None:
        axes["D"].axvline(lost, color="k", linestyle=":", label="20 % error")
        axes["D"].legend(loc="upper left", fontsize=8)
    axes["D"].set(xlabel="Lyapunov times (of 22 units of time)")
    accuracies(axes["C"])
    figure.savefig(HERE / "readme.png", dpi=120)
    Image.open(HERE / "readme.png").convert("RGB").quantize(256).save(HERE / "readme.png",
                                                                     optimize=True)
    plt.close(figure)


def accuracies(axis) -> None:
    """Test accuracy against the number of steps; a run that failed counts as a guess."""
    runs = json.loads((HERE / "cora_steps.json").read_text())
    steps = sorted({run["steps"] for run in runs})
    seeds = {run["seed"] for run in runs}
    for system, (color, marker, line) in STYLES.items():
        found = np.array([[run["test"] or 100 / 7 for run in runs
                           if (run["system"], run["steps"]) == (system, n)] for n in steps])
        axis.plot(steps, found.mean(axis=1), color=color, marker=marker, linestyle=line,
                  label="RK4, explicit" if system == "rk4" else f'implicit="{system}"')
        axis.fill_between(steps, found.min(axis=1), found.max(axis=1), color=color, alpha=0.15)
    axis.set(xscale="log", xticks=steps, xticklabels=steps, xlabel="equal steps to time 18.3",
             ylabel="test accuracy in %, " + (
                 f"mean and range of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"),
             title="Cora in fewer steps: RK4 fails\nin 3 and less, IMEX does not")
    axis.minorticks_off()
    axis.legend(fontsize=8, loc="lower right")


if __name__ == "__main__":
    main()
