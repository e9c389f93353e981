"""What may be asked of each of the paper's tables, figures and claims?"""

from __future__ import annotations

import os
from pathlib import Path

from commands import Command, Folder
from options import non_negative_float, positive_float, positive_int

# As systems.py, graphs.py, grids.py and claims/ have them; here, so that --help imports none.
SYSTEMS = ("rk4", "dopri5", "dopri5_adjoint", "explicit_adams", "implicit_adams", "crank_nicolson",
           "imex_rk2", "imex_rk3", "imex_rk4", "imex_rk5")
GRAPHS = ("Cora", "CoauthorCS", "Photo")
GRIDS = ("ks-64", "ks-512", "burgers-512", "burgers-1024")
CLAIMS = ("growth", "varied", "nonstiff", "iterations", "steps", "learned", "newton")
STEPPED = ("imex_rk2", "implicit_adams", "crank_nicolson")  # of Figure 2


def table1(command: Command) -> None:
    """Table 1 and Figure 1: what does training on graphs cost by each solver?

    Every solver trains the same network on the same split from the same weights, an epoch of each
    in every round: at the paper's steps, and at the larger ones given by --also. Counted are
    evaluations of G, products with its derivatives and products of J; timed are the epochs. An
    epoch of more than 500 evaluations a pass is not run: they are counted on u' = -u, and its
    seconds follow from integrations of 4 and 12 of its steps ("about").

    Time: up to --budget seconds for each row and data set, about an hour in all; with --quick
    some minutes.
    Writes: table1.jsonl, table1.md and table1-NAME.png (accuracy against training time).

        python examples/paper table1 --root data
        python examples/paper table1 --datasets Cora --systems imex_rk2 --also rk4=1 --epochs 100
    """
    add_race_on_graphs(command)
    command.add("--datasets", nargs="+", choices=GRAPHS, default=list(GRAPHS), metavar="NAME",
                help=f"which of {', '.join(GRAPHS)}")
    add_systems(command)
    # Of the default, all but the first are the largest steps on Cora that stable_steps found to be
    # accurate.
    command.add("--also", nargs="*", metavar="SYSTEM=STEP", help="further rows",
                default=["rk4=1", "rk4=2.04", "explicit_adams=0.53", "imex_rk2=2.62"])


def figure2(command: Command) -> None:
    """Figure 2: how does the step size change the cost of training on a graph?

    Trains with imex_rk2, implicit_adams and crank_nicolson at several steps, an epoch of each in
    every round, and draws the test accuracy against the training time.

    Time: up to --budget seconds for each of 15 rows, about 20 minutes; with --quick some minutes.
    Writes: figure2.jsonl, figure2.md and figure2.png.

        python examples/paper figure2 --root data
    """
    add_race_on_graphs(command)
    command.add("--dataset", choices=GRAPHS, default="Cora", help="on which graph")
    command.add("--systems", nargs="+", choices=STEPPED, default=list(STEPPED), metavar="SYSTEM",
                help=f"which of {', '.join(STEPPED)}")
    command.add("--steps", type=positive_float, nargs="+", default=[0.1, 0.25, 0.5, 1.0, 2.0],
                metavar="H", help="step sizes")


def accuracy(command: Command) -> None:
    """Accuracies: over random splits, and with fewer and larger steps.

    Trains imex_rk2 with GRAND's settings on random splits of the data sets and on Planetoid's
    split of Cora, and there with each choice of the implicit part in fewer and fewer equal steps.

    Time: hours (each of some 100 runs takes from one minute to ten); with --quick some minutes.
    Writes: accuracy.jsonl, accuracy.md, accuracy-steps.png and checkpoints/. Runs that finished
    with the same settings are not made again.

        python examples/paper accuracy --root data
    """
    add_common(command)
    add_root(command)
    command.add("--datasets", nargs="+", choices=GRAPHS, default=list(GRAPHS), metavar="NAME",
                help=f"which of {', '.join(GRAPHS)}")
    command.add_with_quick("--splits", 10, 1, type=positive_int, help="random splits")
    command.add_with_quick("--public-seeds", 10, 1, type=positive_int,
                           help="seeds on Planetoid's split")
    command.add_with_quick("--step-seeds", 5, 1, type=positive_int,
                           help="seeds of the comparison of steps")
    command.add("--steps", type=positive_int, nargs="+", default=[19, 10, 5, 3, 2, 1], metavar="N",
                help="numbers of equal steps")
    command.add_with_quick("--epochs", None, 5, said="the data set's own", type=positive_int,
                           help="training epochs")


def table2(command: Command) -> None:
    """Table 2, Figures 3 to 6: what does training on grids cost by each solver?

    Every solver trains the same right-hand side of Kuramoto-Sivashinsky or Burgers from the same
    weights on the same batches, a turn each in every round: at the paper's steps, explicit ones
    also nearly at their largest stable step. Where the limit ends an integration by equal steps,
    evaluations follow from the steps, and seconds from a window of 4 steps ("about").

    Time: up to --budget seconds for each row, a night for all four problems; with --quick tens of
    minutes.
    Writes: table2.jsonl, table2.md, table2-NAME-loss.png (training loss against training time) and
    table2-NAME-prediction.png (truth and prediction). Problems that were finished with the same
    settings on the same machine are not measured again.

        python examples/paper table2
        python examples/paper table2 --problems ks-64 burgers-512 --turn 1 --budget 20 --limit 40
    """
    add_common(command)
    command.add("--problems", nargs="+", choices=GRIDS, default=list(GRIDS), metavar="NAME",
                help=f"which of {', '.join(GRIDS)}")
    add_systems(command)
    command.add_with_quick("--epochs", 100, 8, type=positive_int, help="of training")
    command.add_with_quick("--budget", 900.0, 3.0, type=non_negative_float, metavar="S",
                           help="seconds after which a solver trains no further, as soon as its "
                                "turn is over")
    command.add_with_quick("--limit", 120.0, 8.0, type=non_negative_float, metavar="S",
                           help="seconds after which the integration of a batch, gradient and all, "
                                "is ended and has failed")
    command.add_with_quick("--turn", None, 1, said="an epoch", type=positive_int, metavar="N",
                           help="batches that a solver trains on before the next has its turn")
    command.add_with_quick("--repeats", 5, 1, type=positive_int, metavar="N",
                           help="turns of each solver at least")
    command.add("--lr", type=positive_float, default=2e-3, help="learning rate of Adam")
    command.add("--root", type=Path, default=Path("data"), help="where the data are made and kept")
    command.add("--restart", action="store_true", help="measure again what is finished")
    command.add("--points", type=positive_int, metavar="N",
                help="points of every grid; without it the problem's, as of all that follow")
    command.add("--batch-size", type=positive_int, metavar="N", help="windows in a batch")
    command.add("--trajectories", type=positive_int, metavar="N", help="of the data set")
    command.add("--duration", type=positive_float, metavar="T", help="their length in time")


def stable_steps(command: Command) -> None:
    """The largest stable step of every solver, and the cheapest integration to 1 % error.

    The largest stable step is found by bisection: the state stays bounded over 200 steps from an
    initial state with a little noise in it, and these take no longer than --limit. Beside it: the
    fewest equal steps with which the final state is within 1 % of a reference, and their
    evaluations. Graphs have a network that was trained for some epochs, in float32; grids the true
    G and the paper's finite differences in float64.

    Time: hours, most of it for Crank-Nicolson and for fine grids; with --quick some minutes.
    Writes: stable_steps.jsonl, stable_steps.md and stable_steps.png.

        python examples/paper stable_steps --root data
        python examples/paper stable_steps --problems ks-64 ks-512
    """
    add_common(command)
    add_root(command)
    names = [*GRAPHS, *GRIDS]
    command.add_with_quick("--problems", names, ["Cora", "ks-64", "burgers-512"], said="all",
                           nargs="+", choices=names, metavar="NAME",
                           help=f"which of {', '.join(names)}")
    add_systems(command)
    command.add_with_quick("--steps", 200, 60, type=positive_int, metavar="N",
                           help="steps over which a stable state stays bounded")
    command.add_with_quick("--tolerance", 0.02, 0.2, type=positive_float, metavar="X",
                           help="how finely steps are told apart, relative")
    command.add("--error", type=positive_float, default=0.01, metavar="X",
                help="relative error of what counts as accurate")
    command.add_with_quick("--most-steps", 20000, 2000, type=positive_int, metavar="N",
                           help="steps after which accuracy is given up")
    command.add_with_quick("--epochs", 10, 1, type=positive_int, metavar="N",
                           help="training of the networks on graphs")
    command.add_with_quick("--limit", 60.0, 3.0, type=non_negative_float, metavar="S",
                           help="seconds after which an integration is given up")


def claims(command: Command) -> None:
    """Claims of the text that have no table: which of them hold here?

    growth      the gain of an LU grows with the number of steps, for its set-up is reused
    varied      steps that vary cost an LU its gain, and hardly affect a Krylov solver
    nonstiff    there is nothing to gain on problems that are not stiff
    iterations  the memory of a gradient does not grow with the iterations of the solver
    steps       the memory of a gradient does not grow with the number of steps
    learned     J may be a network of its own, solved without a matrix
    newton      at a step of 0.2 Crank-Nicolson fails on 512 points, at 0.02 it takes an hour

    Each is measured, and a threshold that its section names decides whether the numbers bear it
    out.

    Time: some 20 minutes; with --quick about six.
    Writes: claims.jsonl, claims.md and claims-learned.png.

        python examples/paper claims
        python examples/paper claims --claims growth varied --repeats 9
    """
    add_common(command)
    command.add("--claims", nargs="+", choices=CLAIMS, default=list(CLAIMS), metavar="NAME",
                help="which")
    command.add_with_quick("--repeats", 9, 5, type=positive_int, metavar="N",
                           help="repetitions of which medians are taken")
    command.add("--points", type=positive_int, default=512, metavar="N",
                help="grid points, but for the learned J")
    command.add("--learned-points", type=positive_int, default=64, metavar="N",
                help="grid points for the learned J")
    command.add_with_quick("--columns", 64, 16, type=positive_int, metavar="N",
                           help="states of a batch; of Crank-Nicolson see --newton-states")
    command.add("--targets", type=positive_float, nargs="+", default=[1e-2, 1e-4], metavar="X",
                help="relative errors of the problem that is not stiff")
    command.add_with_quick("--memory-steps", [10, 100, 1000], [10, 100, 400], type=positive_int,
                           nargs="+", metavar="N", help="numbers of steps whose memory is compared")
    command.add_with_quick("--epochs", 400, 120, type=positive_int, metavar="N",
                           help="of the learned J")
    command.add("--trajectories", type=positive_int, default=32, metavar="N",
                help="for the learned J")
    command.add_with_quick("--newton-states", 8, 2, type=positive_int, metavar="N",
                           help="states of a step of Crank-Nicolson")
    command.add("--imex-states", type=positive_int, default=256, metavar="N",
                help="states of the step beside it")
    command.add_with_quick("--limit", 60.0, 40.0, type=non_negative_float, metavar="S",
                           help="seconds of a step of Crank-Nicolson")


def add_common(command: Command) -> None:
    command.add("--out", type=Path, default=Path("runs/paper"), metavar="FOLDER",
                help="of tables, figures and data")
    command.add("--seed", type=int, default=0, help="of the weights and the data's order")
    command.add("--threads", type=positive_int, default=1, metavar="N", help="threads of PyTorch")
    command.add("--quick", action="store_true", help="fewer epochs and repetitions, to try it")


def add_root(command: Command) -> None:
    """Where the data sets are."""
    root = os.environ.get("PYG_SINODE_DATA")
    command.add("--root", type=Path, default=root and Path(root), metavar="FOLDER",
                help="with planetoid/Cora/raw, coauthor/CS/raw and amazon/Photo/raw; without it "
                     "that of PYG_SINODE_DATA; a data set that is missing is replaced by a "
                     "stochastic block model of its size, and the table says so")


def add_systems(command: Command) -> None:
    command.add("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM",
                help=f"solvers, of {', '.join(SYSTEMS)}")


def add_race_on_graphs(command: Command) -> None:
    """What table1 and figure2 share."""
    add_common(command)
    add_root(command)
    command.add_with_quick("--epochs", None, 2, said="the data set's own", type=positive_int,
                           metavar="N", help="training epochs at most")
    command.add_with_quick("--budget", 60.0, 20.0, type=non_negative_float, metavar="S",
                           help="seconds of training of each row")
    command.add("--limit", type=non_negative_float, default=300.0, metavar="S",
                help="seconds after which an epoch is given up")
    command.add_with_quick("--repeats", 5, 2, type=positive_int, metavar="N",
                           help="epochs at least, and of what is only timed")


FOLDER = Folder(
    "examples/paper",
    'Measures again the tables, figures and claims of "Semi-Implicit Neural Ordinary Differential\n'
    'Equations" (https://arxiv.org/abs/2412.11301). The results are in docs/paper.md.',
    (table1, figure2, accuracy, table2, stable_steps, claims))
