"""Can a layer's equation be learned from observations of a graph at irregular times, and go on?

Sensors on a plane, joined to their nearest neighbours, follow a diffusion with a source that comes
and goes. Each trajectory is seen at the same irregular times, three tenths of the values missing.
The layer's own parts, `conv.equation(x, edge_index)`, are integrated by `imex_odeint` with a term
of the user's own beside them, at the user's times and with the user's loss; then the forecast goes
on for half as long as the observations.

    python examples/graph_forecasting.py
    python examples/graph_forecasting.py --implicit laplacian --missing 0.6

Writes a checkpoint, from which an interrupted run goes on, and a figure to --out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from tqdm import tqdm

from pyg_sinode import SINODEConv, imex_odeint, operators

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PERIOD, END, FORECAST = 5.0, 10.0, 15.0


class Driven(nn.Module):
    """The term of a layer and a learned source, which knows the place and the time of year."""

    def __init__(self, term: nn.Module, channels: int) -> None:
        super().__init__()
        self.term = term
        self.source = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, channels))

    def forward(self, t: Tensor, u: Tensor, position: Tensor, *args) -> Tensor:
        angle = 2 * math.pi * t / PERIOD
        season = torch.stack([angle.sin(), angle.cos()]).expand(len(u), 2)
        return self.term(t, u, *args) + self.source(torch.cat([position, season], dim=1))


class Forecaster(nn.Module):
    """Encoder, driven diffusion at any times, decoder."""

    def __init__(self, channels: int, implicit: str, step_size: float) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, channels), nn.Linear(channels, 1)
        self.conv = SINODEConv(channels, channels, heads=2, implicit=implicit, source=False)
        self.term, self.step_size = Driven(self.conv.term, channels), step_size

    def forward(self, data: Data, t: Tensor) -> Tensor:
        """The values of all nodes at the times, (T, N)."""
        x = self.encoder(torch.cat([data.x, data.position], dim=1))
        _, J, u0, args = self.conv.equation(x, data.edge_index)
        u = imex_odeint(self.term, J, u0, t, method="imex_rk2", step_size=self.step_size,
                        args=(data.position, *args))
        return self.decoder(u).squeeze(-1)


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    t, later = observation_times(args.times)
    data, values = make_data(args, torch.cat([t, later]))
    seen = torch.rand(values[:len(t)].shape) >= args.missing
    model = Forecaster(args.channels, args.implicit, args.step_size)
    curve = train(args, model, data, t, values, seen)
    with torch.no_grad():
        forecast = model(data, torch.cat([t, later]))
    test = data.trajectory >= args.trajectories
    spread = values[:, test].std()
    within, beyond = (float((forecast - values)[part][:, test].square().mean().sqrt() / spread)
                      for part in (slice(None, len(t)), slice(len(t), None)))
    print(f"error on {args.trajectories // 3} unseen trajectories, as a part of their spread: "
          f"{within:.3f} up to t = {END:g}, {beyond:.3f} from there to t = {FORECAST:g}")
    times = torch.cat([t, later])
    print(f"figure: {plot(args, times, len(t), values, forecast, seen, data, curve)}")


def observation_times(count: int) -> tuple[Tensor, Tensor]:
    """Irregular times from 0 to the end of the observations, and regular ones after it."""
    t = torch.cat([torch.zeros(1), torch.sort(END * torch.rand(count - 1)).values]).double()
    steps = round(2 * (FORECAST - END))
    return t, END + (torch.arange(steps) + 1).double() * (FORECAST - END) / steps


def make_data(args: argparse.Namespace, t: Tensor) -> tuple[Batch, Tensor]:
    """A batch of trajectories on one graph, a quarter of them for testing, and their values."""
    position = torch.rand(args.nodes, 2)
    near = torch.cdist(position, position).topk(5, largest=False).indices[:, 1:]
    edges = torch.stack([near.flatten(), torch.arange(args.nodes).repeat_interleave(4)])
    edges = torch.unique(torch.cat([edges, edges.flip(0)], dim=1), dim=1)
    count = args.trajectories + args.trajectories // 3
    data = Batch.from_data_list([
        Data(x=smooth_noise(position), position=position, edge_index=edges) for _ in range(count)])
    data.trajectory = data.batch
    degree = torch.zeros(data.num_nodes).index_add(0, data.edge_index[1], torch.ones(
        data.num_edges))
    J = 0.8 * (operators.Graph(data.edge_index, 1 / degree[data.edge_index[1]], data.num_nodes)
               + operators.ScaledIdentity(-1.0))
    phase = 0.4 * data.position[:, :1]

    def source(t: Tensor, u: Tensor) -> Tensor:
        return torch.sin(2 * math.pi * (t / PERIOD + phase))

    with torch.no_grad():
        values = imex_odeint(source, J, data.x, t, method="imex_rk4", step_size=0.05)
    return data, values.squeeze(-1)


def smooth_noise(position: Tensor) -> Tensor:
    wave, shift = 3.0 * torch.randn(2, 4), 2 * math.pi * torch.rand(4)
    return torch.cos(position @ wave + shift).sum(dim=1, keepdim=True)


def train(args: argparse.Namespace, model: Forecaster, data: Batch, t: Tensor, values: Tensor,
          seen: Tensor) -> list[float]:
    """Fits the values that were seen; returns the loss of each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    curve: list[float] = []
    path = args.out / "graph-forecasting.pt"
    resume(path, args, model, optimizer, curve)
    seen = seen & (data.trajectory < args.trajectories)
    bar = tqdm(range(len(curve), args.epochs), initial=len(curve), total=args.epochs,
               desc="training", disable=None)
    for epoch in bar:
        optimizer.param_groups[0]["lr"] = 0.02 * 0.996**epoch
        optimizer.zero_grad()
        loss = (model(data, t) - values[:len(t)])[seen].square().mean()
        loss.backward()
        optimizer.step()
        curve.append(float(loss.detach()))
        bar.set_postfix(loss=f"{curve[-1]:.2e}")
        if (epoch + 1) % 20 == 0 or epoch + 1 == args.epochs:
            save(path, args, model, optimizer, curve)
    return curve


def save(path: Path, args, model: nn.Module, optimizer, curve: list[float]) -> None:
    """Writes beside the checkpoint, then renames: a killed run leaves the last one whole."""
    temporary = path.with_suffix(".tmp")
    torch.save({"key": key(args), "model": model.state_dict(),
                "optimizer": optimizer.state_dict(), "curve": curve}, temporary)
    os.replace(temporary, path)


def resume(path: Path, args, model: nn.Module, optimizer, curve: list[float]) -> None:
    if args.restart or not path.exists():
        return
    state = torch.load(path, weights_only=True)
    if state["key"] != key(args):
        print(f"{path} belongs to other settings and will be overwritten")
        return
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    curve.extend(state["curve"])
    print(f"goes on from epoch {len(curve)} of {path}")


def key(args: argparse.Namespace) -> str:
    free = {"out", "restart", "epochs"}
    return json.dumps({k: v for k, v in vars(args).items() if k not in free}, sort_keys=True)


def plot(args, t: Tensor, count: int, values: Tensor, forecast: Tensor, seen: Tensor, data: Batch,
         curve: list[float]) -> Path:
    """Three sensors of an unseen trajectory, and the loss."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True,
                                         width_ratios=(2, 1))
    first = int((data.trajectory == args.trajectories).nonzero()[0])
    for k, color in zip(range(3), ("tab:blue", "tab:orange", "tab:green"), strict=True):
        node = first + k * (args.nodes // 3)
        left.plot(t, forecast[:, node], color=color)
        own = seen[:, node]
        left.plot(t[:count][own], values[:count, node][own], "o", color=color, ms=4)
        left.plot(t[count:], values[count:, node], "x", color=color, ms=4)
    left.axvspan(END, FORECAST, color="0.9", zorder=0)
    left.set(xlabel="time", ylabel="value",
             title="three sensors: model, observed (o), to come (x)")
    right.semilogy(range(1, len(curve) + 1), curve)
    right.set(xlabel="epoch", ylabel="mean squared error", title="training")
    path = args.out / "graph-forecasting.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Learn the equation of a graph from observations at irregular times.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--nodes", type=int, default=40, help="sensors")
    add("--trajectories", type=int, default=12, help="trajectories to learn from")
    add("--times", type=int, default=16, help="irregular times at which they are seen")
    add("--missing", type=float, default=0.3, help="the part of the values that is missing")
    add("--channels", type=int, default=16, help="width of the latent state")
    add("--implicit", choices=["decay", "laplacian", "attention"], default="decay",
        help="the part of the equation that is integrated implicitly")
    add("--step-size", type=float, default=0.5, help="the largest step")
    add("--epochs", type=int, default=300, help="training epochs")
    add("--seed", type=int, default=0, help="seed of data and model")
    add("--out", type=Path, default=Path("runs"), help="where figure and checkpoint go")
    add("--restart", action="store_true", help="start anew where a checkpoint exists")
    return parser.parse_args()


if __name__ == "__main__":
    main()
