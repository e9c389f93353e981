"""Which options do the examples of equations on grids share, and what do they refuse?

For kuramoto_sivashinsky.py, burgers.py and stabilized_ks.py, which add those of their problem.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from grid_learning import METHODS
from options import add_files, positive_float, positive_int
from training import device_name


def add_arguments(parser: argparse.ArgumentParser, interval: str) -> Callable[..., None]:
    """The options that both examples share; gives the function that adds more of the equation.

    Args:
        parser: Gets them.
        interval: The time from one saved state to the next, as the help should have it.
    """
    group = parser.add_argument_group
    add = group("network and integration").add_argument
    add("--explicit", choices=["mlp", "gnn"], default="mlp",
        help="the network for G: a perceptron, or message passing")
    add("--method", choices=METHODS, metavar="SCHEME",
        help=f"one of {', '.join(METHODS)}; default: the network's own")
    add("--step-size", type=positive_float, metavar="TIME",
        help=f"step of the scheme, in units of time; default: {interval}, or what rk4 needs to be "
        "stable; dopri5 chooses its own")
    add("--dtype", choices=["float32", "float64"],
        help="of the states and the network, in training and predictions; default: the network's "
        "own")
    add = group("training (without a default named: the network's own)").add_argument
    add("--optimizer", choices=["adam", "lbfgs", "gauss_newton"],
        help="the method of minimization; gauss_newton, for the gnn in float64, is the most "
        "precise and takes two integrations for each parameter an epoch")
    add("--lr", type=positive_float, help="learning rate of Adam at its highest")
    add("--epochs", type=positive_int, help="number of epochs")
    add("--batches", type=positive_int, default=15, help="batches of an epoch of Adam")
    add("--batch-size", type=positive_int, metavar="STEPS", help="steps in a batch")
    add("--window", type=positive_int, metavar="STEPS",
        help="steps that the last third of the epochs trains on at once")
    add("--seed", type=int, default=0, help="seed of the weights and the batches")
    add("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to compute, such as cpu or cuda:1")
    add = group("equation, data and tests").add_argument
    add("--root", default="data", metavar="FOLDER", help="where the data set is made and kept")
    add("--resolutions", type=positive_int, nargs="*", default=[], metavar="N",
        help="other numbers of points to run the trained gnn on")
    add_files(parser, checkpoint_every=False)
    return add


def parse(parser: argparse.ArgumentParser, mlp: dict, gnn: dict) -> argparse.Namespace:
    """The arguments, with the settings of the chosen network where none were given."""
    args = parser.parse_args()
    untrained = getattr(args, "true_term", False)
    if args.resolutions and args.explicit != "gnn" and not untrained:
        parser.error("--resolutions needs --explicit gnn: a perceptron knows one grid only")
    for n in [args.num_points, *args.resolutions]:
        if args.explicit == "gnn" and n <= 2 * args.radius:
            parser.error(f"expected grids of more than 2 * --radius = {2 * args.radius} points "
                         f"(got {n})")
    for key, value in (gnn if args.explicit == "gnn" else mlp).items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    precise = (args.explicit, args.dtype) == ("gnn", "float64")
    if args.optimizer == "gauss_newton" and not (precise or untrained):
        parser.error("--optimizer gauss_newton needs --explicit gnn and --dtype float64: it "
                     "subtracts two integrations for each parameter")
    return args


def precision(args: argparse.Namespace) -> torch.dtype:
    """The dtype of states and networks."""
    return getattr(torch, args.dtype)
