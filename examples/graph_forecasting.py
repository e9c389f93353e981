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
import math
from pathlib import Path

import figures
import matplotlib.pyplot as plt
import torch
from options import add_files, make_parser, output_folder, positive_float, positive_int, share
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from tqdm import tqdm
from training import Checkpoint, fingerprint

from pyg_sinode import SINODEConv, imex_odeint, operators, solvers

PERIOD, END, FORECAST = 5.0, 10.0, 15.0
COLORS = (figures.BLUE, figures.ORANGE, figures.GREEN)


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
        self.conv = SINODEConv(channels, channels, heads=2, implicit=implicit)
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
    output_folder(args.out)
    torch.manual_seed(args.seed)
    t, later = observation_times(args.times)
    data, values = make_data(args, torch.cat([t, later]))
    seen = torch.rand(values[:len(t)].shape) >= args.missing
    model = Forecaster(args.channels, args.implicit, args.step_size)
    curve, path = train(args, model, data, t, values, seen)
    with torch.no_grad():
        forecast = model(data, torch.cat([t, later]))
    test = data.trajectory >= args.trajectories
    spread = values[:, test].std()
    within, beyond = (float((forecast - values)[part][:, test].square().mean().sqrt() / spread)
                      for part in (slice(None, len(t)), slice(len(t), None)))
    count = figures.plural(int(data.trajectory.max()) + 1 - args.trajectories, "unseen trajectory",
                           "unseen trajectories")
    print(f"error on {count}, as a part of their spread: "
          f"{within:.3f} up to t = {END:g}, {beyond:.3f} from there to t = {FORECAST:g}")
    first = int(test.nonzero()[0])  # the first sensor of the first unseen trajectory
    sensors = [first + k * (args.nodes // 3) for k in range(3)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(2, 1))
    fine = torch.linspace(0, FORECAST, 151, dtype=torch.float64)
    with torch.no_grad():
        plot_sensors(left, fine, model(data, fine)[:, sensors])
    plot_observations(left, torch.cat([t, later]), values[:, sensors], seen[:, sensors])
    left.axvspan(END, FORECAST, color="0.92", zorder=0, lw=0, label="forecast")
    figures.legend_below(left, ncols=3)
    figures.plot_losses(right, {"training": curve})
    right.set(xlabel="epoch", ylabel="mean squared error", title="loss on the values seen")
    print(f"figure: {figures.save(figure, path.with_suffix('.png'))}")


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
    count = args.trajectories + max(1, args.trajectories // 3)
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
        # A constant J of a small graph: one sparse factorization for all steps.
        values = imex_odeint(source, J, data.x, t, method="imex_rk4", step_size=0.05,
                             solver=solvers.Direct())
    return data, values.squeeze(-1)


def smooth_noise(position: Tensor) -> Tensor:
    wave, shift = 3.0 * torch.randn(2, 4), 2 * math.pi * torch.rand(4)
    return torch.cos(position @ wave + shift).sum(dim=1, keepdim=True)


def train(args: argparse.Namespace, model: Forecaster, data: Batch, t: Tensor, values: Tensor,
          seen: Tensor) -> tuple[list[float], Path]:
    """Fits the values that were seen; the loss of each epoch, and the checkpoint."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    settings = {key: value for key, value in vars(args).items()
                if key not in ("out", "restart", "checkpoint_every")}
    checkpoint = Checkpoint(args.out, f"graph-forecasting-{args.implicit}",
                            settings | {"data": fingerprint(data.edge_index, t, values, seen)},
                            args.restart)
    state, curve = checkpoint.load(), []
    if state is not None:
        checkpoint.restore(state, model=model, optimizer=optimizer)
        curve = state["curve"]
        checkpoint.tell(len(curve))
    seen = seen & (data.trajectory < args.trajectories)
    bar = tqdm(range(len(curve), args.epochs), initial=len(curve), total=args.epochs,
               desc="training", disable=None)
    for epoch in bar:
        optimizer.param_groups[0]["lr"] = 0.02 * 0.996**epoch
        curve.append(train_epoch(model, optimizer, data, t, values, seen))
        bar.set_postfix(loss=f"{curve[-1]:.2e}")
        if (epoch + 1) % args.checkpoint_every == 0 or epoch + 1 == args.epochs:
            checkpoint.save(model=model.state_dict(), optimizer=optimizer.state_dict(),
                            curve=curve)
    return curve, checkpoint.path


def train_epoch(model: Forecaster, optimizer: torch.optim.Optimizer, data: Batch, t: Tensor,
                values: Tensor, seen: Tensor) -> float:
    optimizer.zero_grad()
    loss = (model(data, t) - values[:len(t)])[seen].square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def plot_sensors(ax, t: Tensor, values: Tensor) -> None:
    """What the model says of three sensors."""
    for k, style in enumerate(("-", "--", "-.")):
        ax.plot(t, values[:, k], ls=style, color=COLORS[k], label=f"model, sensor {k + 1}")
    ax.set(xlabel="time (dimensionless)", ylabel="value (dimensionless)",
           title="three sensors of a trajectory that was not trained on")


def plot_observations(ax, t: Tensor, values: Tensor, seen: Tensor) -> None:
    """What was seen of them, and what was to come."""
    observed = len(seen)
    for k, marker in enumerate("os^"):
        own = seen[:, k]
        ax.plot(t[:observed][own], values[:observed, k][own], marker, color=COLORS[k])
        ax.plot(t[observed:], values[observed:, k], marker, color=COLORS[k], mfc="none")
    ax.plot([], [], "ko", label="observed")
    ax.plot([], [], "ko", mfc="none", label="to come, unknown to the model")


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(
        "Learn the equation of a graph from observations at irregular times, and forecast. Times "
        f"are dimensionless: observations until {END:g}, forecasts until {FORECAST:g}.",
        "graph_forecasting.py", "graph_forecasting.py --implicit laplacian --missing 0.6",
        "graph_forecasting.py --nodes 200 --epochs 500 --step-size 0.25")
    add = parser.add_argument_group("data").add_argument
    add("--nodes", type=positive_int, default=40, help="sensors, at least 5")
    add("--trajectories", type=positive_int, default=12, metavar="N",
        help="trajectories to learn from; a third as many more are for testing")
    add("--times", type=positive_int, default=16, metavar="N",
        help="irregular times at which they are seen, at least 2")
    add("--missing", type=share, default=0.3, metavar="SHARE",
        help="share of the values that is missing")
    add = parser.add_argument_group("network and integration").add_argument
    add("--channels", type=positive_int, default=16, help="width of the latent state")
    add("--implicit", choices=["decay", "laplacian", "attention"], default="decay",
        help="the part of the equation that is integrated implicitly")
    add("--step-size", type=positive_float, default=0.5, metavar="TIME", help="the largest step")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=positive_int, default=300, help="number of epochs")
    add("--seed", type=int, default=0, help="seed of data and model")
    add_files(parser)
    args = parser.parse_args()
    if args.nodes < 5 or args.times < 2:
        parser.error(f"expected at least 5 --nodes, each joined to its 4 nearest, and 2 --times "
                     f"(got {args.nodes} and {args.times})")
    return args


if __name__ == "__main__":
    main()
