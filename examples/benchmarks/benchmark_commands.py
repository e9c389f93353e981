"""What may be asked of each benchmark?"""

from __future__ import annotations

import argparse
from pathlib import Path

from commands import Command, Folder
from options import positive_float, positive_int

# As the scripts have them; here, so that --help imports none.
PROBLEMS = ("advection", "allen-cahn", "ks")
GRADIENT_PROBLEMS = ("cora", "ks-512", "ks-64", "ks-64, one step", "ks-64, batch 25",
                     "ks-64, batch 25, one step", "ten nodes")
EXPONENTIAL_PROBLEMS = ("ks-64", "ks-512", "allen-cahn", "kdv")
EXPONENTIAL_PARTS = ("curves", "bare", "batch", "torchfsm")
REACTION_PARTS = ("equations", "systems", "allen-cahn")
GRAPHS = ("small", "cora", "arxiv")
IMPLICIT = ("decay", "laplacian", "attention")
ADAPTIVE = ("decay", "attention", "decay, rms", "attention, rms", "dopri5")
GRAND_COLUMNS = ("Cora", "CiteSeer", "CoauthorCS", "Photo", "Cora, Planetoid's",
                 "CiteSeer, Planetoid's")
GRAND_MODELS = ("gcn", "gat", "sinode")
OTHERS = ("imex", "imex-large", "imex-attention", "imex-rk4", "rk4", "dopri5")


def stiff_solvers(command: Command) -> None:
    """Accuracy against work on stiff problems: this package beside torchdiffeq and SciPy.

    Measures the relative L2 error at the final time against the evaluations of the right-hand side
    and against the wall time, in float64, on three periodic problems du/dt = G(u) + J u:

      advection   -c u_x explicit, nu u_xx implicit, central differences on 512 points
      allen-cahn  u - u^3 explicit, eps^2 u_xx implicit, central differences on 512 points
      ks          Kuramoto-Sivashinsky, spectral, 64 points, from a state on the attractor

    All solvers get the same G + J u and the same initial state; SciPy's BDF and Radau also get the
    Jacobian. Seconds are the best of interleaved runs. docs/measurements.md says how to read them.

    Time: up to an hour, most of it for torchdiffeq's solvers; with --quick a minute.
    Writes: stiff-solvers.jsonl and stiff-PROBLEM.png; prints a Markdown table.

        python examples/benchmarks stiff_solvers --problems ks --repeats 5
    """
    command.add("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), metavar="NAME",
                help=f"which of {', '.join(PROBLEMS)}")
    add_runs(command, repeat_below=10.0, time_limit=200.0)


def exponential(command: Command) -> None:
    """Exponential schemes beside implicit-explicit ones, SciPy, diffrax and TorchFSM, or by hand.

      curves  the relative error against the wall time for one state, and the time to errors of
              1e-3 and 1e-6, on periodic problems: Kuramoto-Sivashinsky (L = 22, to t = 50) on 64
              and 512 points, Allen-Cahn on 512, Korteweg-de Vries (a soliton) on 256
              (with diffrax's KenCarp4 if `pip install diffrax` has been done)
      bare    a step of etdrk4 over one written out by hand, with G on states or on coefficients
      batch   256 states of Kuramoto-Sivashinsky in one call, over SciPy's one after another
      torchfsm  a step of TorchFSM's ETDRK4 over one of etdrk4, if `pip install torchfsm` has been
              done: Kuramoto-Sivashinsky, and Navier-Stokes on 128 x 128 points

    Time: half an hour, most of it for SciPy; with --quick a minute.
    Writes: exponential.jsonl and exponential.png; prints Markdown tables.

        python examples/benchmarks exponential --parts curves --problems ks-64 --repeats 3
    """
    command.add("--parts", nargs="+", choices=EXPONENTIAL_PARTS, default=list(EXPONENTIAL_PARTS),
                metavar="PART", help=f"which of {', '.join(EXPONENTIAL_PARTS)}")
    command.add("--problems", nargs="+", choices=EXPONENTIAL_PROBLEMS, metavar="NAME",
                default=list(EXPONENTIAL_PROBLEMS),
                help=f"which of {', '.join(EXPONENTIAL_PROBLEMS)}")
    command.add("--states", type=positive_int, default=256, help="states of the batch")
    add_runs(command, repeat_below=5.0, time_limit=60.0)


def stiff_reactions(command: Command) -> None:
    """Stiff reactions in the implicit term: steps and time beside SciPy, and many systems at once.

      equations   van der Pol, Robertson and the Oregonator, beside SciPy's Radau and BDF
      systems     one Robertson system, and thousands whose rates spread tenfold, in one call
      allen-cahn  a periodic grid in two dimensions, all of it implicit, with three derivatives

    Time: about five minutes. Prints a Markdown table for each part and writes nothing.

        python examples/benchmarks stiff_reactions --parts systems --systems 64 --repeats 1
    """
    command.add("--parts", nargs="+", choices=REACTION_PARTS, default=list(REACTION_PARTS),
                metavar="PART", help=f"which of {', '.join(REACTION_PARTS)}")
    command.add("--systems", type=positive_int, default=4096, help="Robertson systems in one call")
    command.add("--points", type=positive_int, default=128,
                help="points of the grid along each axis")
    command.add("--repeats", type=positive_int, default=5,
                help="rounds, of which the best time counts")
    add_threads(command)


def gradient_cost(command: Command) -> None:
    """The cost of a gradient over the bare evaluations that it needs, and its memory.

    For each problem one interleaved run of: the bare evaluations (each evaluation of an
    integration, with its graph and its vector-Jacobian product), the integration alone, and the
    integration with its backward pass by gradient="discrete" with and without kept graphs and by
    gradient="backprop". Ratios are medians of those of each round.

    Time: about five minutes. Prints a Markdown table and writes nothing.

        python examples/benchmarks gradient_cost --problems cora ks-64 --repeats 20
    """
    command.add("--problems", nargs="+", choices=GRADIENT_PROBLEMS, metavar="NAME",
                default=list(GRADIENT_PROBLEMS), help="of: " + "; ".join(GRADIENT_PROBLEMS))
    command.add("--method", default="imex_rk3", help="scheme of the Kuramoto-Sivashinsky equation")
    add_threads(command)
    command.add("--repeats", type=positive_int, default=20, help="rounds, each with every job")


def checkpoint_memory(command: Command) -> None:
    """The memory and the work of the gradient of a long integration, with checkpoints.

    Each setting runs in a process of its own, which reports by how much its peak memory rose above
    that of five steps, the time of the forward and the backward pass, and whether the gradients
    are equal to the last bit.

    Time: about five minutes. Prints a Markdown table and writes nothing; fails where gradients
    differ.

        python examples/benchmarks checkpoint_memory --points 64 --steps 60 --checkpoints all 3
    """
    command.add("--points", type=positive_int, default=2048, help="size of the state")
    command.add("--steps", type=positive_int, default=10_000, help="steps of the integration")
    command.add("--checkpoints", nargs="*", default=["all", "auto", "20", "10", "5"],
                metavar="KEPT", help='states to keep: numbers, "auto", or "all" for every stage')
    command.add("--only", help=argparse.SUPPRESS)


def attention_evaluation(command: Command) -> None:
    """One evaluation of the attention beside PyG's layers, compiled and not.

    The diffusion term of SINODEConv (fused sparse products), the same term by gather and scatter
    (plain), GATConv and TransformerConv of the same heads and widths; the last three also under
    torch.compile. Forward, and forward with the vector-Jacobian product, as ratios to the fused
    one in one interleaved run; above 1 the fused one is faster. GATConv and TransformerConv compute
    other functions, with values of the width of all heads where the diffusion keeps its channels.

    Time: some minutes, most of it compilation. Prints a Markdown table and writes nothing.

        python examples/benchmarks attention_evaluation --graph arxiv --heads 4 \\
            --head-channels 8 --channels 128 --repeats 3
    """
    command.add("--graph", choices=GRAPHS, default="cora", help="size of a random graph")
    command.add("--heads", type=positive_int, default=8, help="number of heads")
    command.add("--head-channels", type=positive_int, default=16, help="width of a head")
    command.add("--channels", type=positive_int, default=80, help="width of the diffused features")
    add_normalizer(command)
    command.add("--skip", nargs="*", default=[], metavar="NAME",
                help='rows to leave out, such as "plain, compiled"')
    command.add("--repeats", type=positive_int, default=20, help="rounds, each with every row")
    add_device(command)
    add_threads(command)


def attention_iteration(command: Command) -> None:
    """A training iteration of SINODEConv beside the bare evaluations that it needs.

    From one interleaved run: the time of an iteration over that of its evaluations alone, on the
    very states that it visits; the time of a plain gather-and-scatter evaluation of the same
    attention over that of the fused one; the peak memory of an iteration by gradient="discrete"
    and by gradient="backprop".

    Time: about a minute. Prints lines of results and writes nothing.

        python examples/benchmarks attention_iteration --dataset Cora --root data/planetoid
    """
    command.add("--dataset", choices=("random", "Cora", "CiteSeer", "PubMed"), default="random",
                help="random is a graph of Cora's size and needs no download")
    command.add("--root", default="data", help="where PyG keeps the data set")
    command.add("--channels", type=positive_int, default=80, help="width of the diffused features")
    add_normalizer(command)
    add_threads(command)
    command.add("--repeats", type=positive_int, default=9, help="rounds, each with every job")


def beside_pyg(command: Command) -> None:
    """Accuracy of the layer as it is made without an option, beside PyG's GCNConv and GATConv.

    Citation graphs and Photo are trained by the recipe of PyG's example gcn.py: two layers of 16
    channels (64 on Photo), dropout of one half, Adam at 0.01, the test accuracy at the best
    validation accuracy. The heterophilous graphs are trained on the ten splits of Platonov et al.
    (2023), https://arxiv.org/abs/2302.11640: 64 channels, three layers with skips; the test ROC
    AUC at the best validation one.

    Time: some minutes on Cora, an hour or more on the heterophilous graphs. Prints a Markdown table
    and writes nothing.

        python examples/benchmarks beside_pyg --dataset Cora --root data/planetoid
        python examples/benchmarks beside_pyg --dataset Minesweeper --root data/heterophilous
    """
    command.add("--dataset", choices=("Cora", "CiteSeer", "Photo", "Minesweeper", "Tolokers"),
                default="Cora", help="the data set")
    command.add("--root", default="data", help="where PyG keeps, or puts, it")
    command.add("--models", nargs="+", default=["gcn", "gat", "layers", "network"],
                metavar="MODEL", help="gcn, gat, layers (SINODEConv), network (SINODE); with a "
                                      "reaction as in network+acmp; +source: with the "
                                      "source; +scaled_dot: scores without a bound")
    command.add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N",
                help="seeds, or splits from 0 to 9")
    command.add("--epochs", type=positive_int, default=200, help="training epochs")


def beside_others(command: Command) -> None:
    """Time and memory to the same accuracy, under this package and under torchdiffeq.

      cora    GRAND's network, settings and optimiser, to a test accuracy of 82 %, with the fused
              evaluation of the attention and with one by gather and scatter
      ks-64   a perceptron for G of Kuramoto-Sivashinsky, to a training loss of 1e-3

    The same parameters, G, seeds and dropout for all: only what integrates G + J u differs. dopri5
    has the tolerance of GRAND's code for Cora (rtol 8.2e-7, atol 8.2e-5) on both, rk4 its largest
    stable step, both are differentiated by autograd as there. Each training runs in a process of
    its own, seed after seed. Seconds are the processor's, of the training alone, without the tests
    between epochs.

    Time: Cora a quarter of an hour with five seeds, ks-64 ten minutes a seed, nearly all of it for
    torchdiffeq. A call that was interrupted goes on where it was.
    Writes: beside_others.jsonl, which docs/figures/beside_others.py draws; prints Markdown tables.

        python examples/benchmarks beside_others --problems cora --root data/planetoid
        python examples/benchmarks beside_others --problems ks-64 --seeds 0 --limit 1800
    """
    command.add("--problems", nargs="+", choices=("cora", "ks-64"), default=["cora", "ks-64"],
                metavar="NAME", help="cora, ks-64")
    command.add("--systems", nargs="+", choices=OTHERS, default=list(OTHERS), metavar="SOLVER",
                help=f"of {', '.join(OTHERS)}; ratios are to the first")
    command.add("--attention", nargs="+", choices=("fused", "plain"), default=["fused", "plain"],
                metavar="KIND", help="fused, plain")
    command.add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N",
                help="of weights, dropout and batches")
    command.add("--root", type=Path, default=Path("data"),
                help="where PyG keeps, or puts, Cora, and where trajectories are made and kept")
    command.add("--out", type=Path, default=Path("runs"), help="folder of the record")
    command.add("--limit", type=positive_float, default=600.0, metavar="S",
                help="seconds of the clock after which a training is stopped, its tests included")
    command.add("--epochs", type=positive_int, default=300, help="after which a training ends")
    command.add("--batch-size", type=positive_int, default=256, help="states in a batch of ks-64")
    command.add("--duration", type=positive_float, default=100.0, help="of trajectories of ks-64")
    command.add("--restart", action="store_true", help="train all anew")
    add_threads(command)
    command.add("--only", help=argparse.SUPPRESS)


def large_steps(command: Command) -> None:
    """An epoch of training with fewer, larger steps, for each implicit part.

    SINODE with GRAND's settings for Cora, on Cora or a random graph of its size: seconds of an
    epoch (a training and an evaluation pass) as ratios to decay in 19 steps, the share of the
    linear solves and their iterations. With a tolerance, the steps that it takes.

    Time: about five minutes. Prints a Markdown table and writes nothing.

        python examples/benchmarks large_steps --root data/planetoid
        python examples/benchmarks large_steps --random --epochs 2
    """
    command.add("--root", default="data", help="where PyG keeps, or puts, Cora")
    command.add("--random", action="store_true", help="a random graph of Cora's size instead")
    command.add("--rtol", type=positive_float, nargs="*", default=[1e-1, 1e-2, 1e-3], metavar="X",
                help="tolerances to add")
    command.add("--epochs", type=positive_int, default=9,
                help="epochs of each, in turns, after one that is not counted")
    add_threads(command)


def tolerance(command: Command) -> None:
    """Steps, time and accuracy on Cora by the tolerance of adaptive steps.

    GRAND's network for Cora with step_size=None and method="imex_rk4", for implicit="decay" and
    "attention", with the largest error of a component (the default) and with the root mean square
    (rms); beside torchdiffeq's dopri5 at the same rtol = atol, which takes the root mean square
    too. All train from the same weights with the same dropout, an epoch each in turn; the accuracy
    is that at the best validation accuracy. Ratios are to "decay" in 19 equal steps of imex_rk2.

    Time: about 20 minutes a seed. A call that was interrupted goes on with the next one.
    Writes: tolerance.jsonl, which docs/figures/tolerance.py draws; prints a Markdown table.

        python examples/benchmarks tolerance --root data/planetoid
        python examples/benchmarks tolerance --systems decay dopri5 --rtol 1e-2 --epochs 5 --seeds 0
    """
    command.add("--root", default="data", help="where PyG keeps, or puts, Cora")
    command.add("--systems", nargs="+", choices=ADAPTIVE, default=list(ADAPTIVE), metavar="NAME",
                help="; ".join(ADAPTIVE))
    command.add("--rtol", type=positive_float, nargs="+", default=[1e-1, 1e-2, 1e-3, 1e-4],
                metavar="X", help="tolerances, rtol = atol")
    command.add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N",
                help="of weights and dropout")
    command.add("--epochs", type=positive_int, default=40, help="of each training")
    command.add("--out", type=Path, default=Path("runs"), help="folder of the record")
    command.add("--restart", action="store_true", help="train all anew")
    add_threads(command)


def grand_table(command: Command) -> None:
    """GRAND's table of accuracies: its data sets and splits, beside a GCN and a GAT.

    Cora, CiteSeer, CoauthorCS and Photo on GRAND's random splits, where a run is a split, Cora and
    CiteSeer on Planetoid's split, where it is a seed. All are trained in the same loop: the test
    accuracy at the epoch of the best validation accuracy. SINODE's is given at its terminal time T,
    and at the best by validation accuracy of twelve times up to 3 T, as GRAND's code chooses it,
    from the same trainings. Its settings, in the script, were chosen on validation accuracies.

    Time: an hour or two, most of it for CoauthorCS and Photo; with --quick some seconds. A call
    that was interrupted goes on where it was; runs and columns may be added later.
    Writes: grand_table.jsonl, and checkpoints of unfinished runs; prints a Markdown table.

        python examples/benchmarks grand_table --root data --columns CiteSeer --runs 3
    """
    command.add("--root", type=Path, default=Path("data"),
                help="folder of planetoid, coauthor and amazon, where PyG keeps, or puts, the data")
    command.add("--columns", nargs="+", choices=GRAND_COLUMNS, default=list(GRAND_COLUMNS),
                metavar="NAME", help=f"of: {'; '.join(GRAND_COLUMNS)}")
    command.add("--models", nargs="+", choices=GRAND_MODELS, default=list(GRAND_MODELS),
                metavar="MODEL", help=f"of {', '.join(GRAND_MODELS)}")
    command.add_with_quick("--runs", 10, 2, help="splits, or seeds, of each", type=positive_int,
                           metavar="N")
    command.add_with_quick("--epochs", None, 2, help="the largest number of epochs",
                           said="that of the settings", type=positive_int, metavar="N")
    command.add("--out", type=Path, default=Path("runs"), help="folder of the record")
    command.add("--restart", action="store_true", help="train all anew")
    command.add("--quick", action="store_true", help="few runs of few epochs, to try the script")
    add_threads(command)


def receptive_field(command: Command) -> None:
    """The error of a layer on a sampled subgraph, by the hops that were sampled.

    All neighbours within so many hops of some nodes are taken, the layer is applied to that
    subgraph, and its features at the nodes are compared with those on the whole graph. With
    J = -alpha I a layer of n steps of imex_rk2 reaches 2 n hops (conv.num_hops), and is exact
    there; with another J it is solved with, which reaches every node. Column-stochastic
    coefficients depend on edges that are not sampled.

    Time: about a minute; minutes on 169,343 nodes. Prints a Markdown table and writes nothing.

        python examples/benchmarks receptive_field --root data/planetoid
        python examples/benchmarks receptive_field --nodes 169343 --seeds 5 --hops 4
    """
    command.add("--root",
                help="folder of the Planetoid data sets, for Cora; without it a generated graph")
    command.add("--nodes", type=positive_int, default=3000, help="nodes of the generated graph")
    command.add("--seeds", type=positive_int, default=20, help="nodes at which the error is taken")
    command.add("--hops", type=int, default=8, help="the most hops sampled")
    command.add("--time", type=positive_float, default=4.0, help="terminal time; steps of 1")


def graph_setup(command: Command) -> None:
    """The price of a graph that a layer has not seen, in evaluations of its term.

    A forward pass on a graph whose tensor is new sorts the edges and lays them out for the heads;
    the same pass on the tensor of the call before finds that done. The difference, over the time
    of one evaluation of the second, is the price of a new graph. Random graphs, one interleaved
    run.

    Time: about a minute. Prints a Markdown table and writes nothing.

        python examples/benchmarks graph_setup --edges 20000 --heads 2 --repeats 3
    """
    command.add("--edges", type=positive_int, nargs="+", default=[10_000, 100_000, 1_000_000],
                metavar="N", help="their numbers")
    command.add("--heads", type=positive_int, nargs="+", default=[2, 8], metavar="N",
                help="numbers of heads")
    command.add("--channels", type=positive_int, default=32, help="channels of a node")
    command.add("--repeats", type=positive_int, default=9, help="rounds, each with both passes")
    add_device(command)
    add_threads(command)


def graph_solves(command: Command) -> None:
    """Linear solves with I - cJ on graphs, beside SciPy's looped over the columns.

    J = A - I, normalised symmetrically, or row-stochastic with random weights. SciPy gets the same
    matrix in CSR form and dtype, the same right-hand sides one by one, and the same tolerance of
    the true residual, which is checked. The bare products are those of the same CSR matrix: with
    all columns at once in PyTorch, one by one in SciPy. One interleaved run.

    With --poisson: iterations of CG on I - cJ with the Laplacian J of square grids of so many nodes
    and a step far above the stiffness, where they grow with the size.

    Time: about a minute for each graph of Cora's size, half an hour for one of ogbn-arxiv's.
    Prints a Markdown table and writes nothing.

        python examples/benchmarks graph_solves --graphs arxiv --columns 16 --repeats 3
        python examples/benchmarks graph_solves --poisson 10000 100000 1000000
    """
    command.add("--graphs", choices=GRAPHS, nargs="+", default=["cora"], metavar="NAME",
                help=f"sizes of random graphs, of {', '.join(GRAPHS)}")
    command.add("--columns", type=positive_int, nargs="+", default=[16, 128], metavar="N",
                help="numbers of right-hand sides")
    command.add("--c", type=positive_float, default=5.0,
                help="the step size times the scheme's coefficient")
    command.add("--poisson", type=positive_int, nargs="+", default=[], metavar="NODES",
                help="count the iterations on square grids of so many nodes instead")
    command.add("--repeats", type=positive_int, default=9, help="rounds, each with every solver")
    add_device(command)
    add_threads(command)


def grid_solves(command: Command) -> None:
    """Linear solves of an implicit stage on a periodic grid: FFT, cached LU, banded LU, GMRES.

    Solves (I - cJ) x = b for a batch of right-hand sides, with the J of the Kuramoto-Sivashinsky
    equation (c = 0.2 * 0.29) or of Burgers (c = 0.05 * 0.29) by central differences: milliseconds
    of a solve, and of the set-up that all solves share. The banded LU solves the same stencil with
    ends instead of a periodic grid.

    Time: about five minutes. Prints a Markdown table and writes nothing.

        python examples/benchmarks grid_solves --equation burgers
    """
    command.add("--equation", choices=("ks", "burgers"), default="ks", help="whose linear part")
    command.add("--points", type=positive_int, nargs="+", default=[64, 512, 1024, 4096],
                metavar="N", help="numbers of grid points")
    command.add("--batch", type=positive_int, default=256, help="right-hand sides")
    command.add("--dtype", choices=("float32", "float64"), default="float64", help="precision")
    add_threads(command)
    command.add("--repeats", type=positive_int, default=9,
                help="solves of which the median is taken")


def scale(command: Command) -> None:
    """Growth of the time and the memory of a training epoch with the edges of a graph.

    SINODE with 32 channels, 2 heads and 8 evaluations of the explicit term, on graphs of ten edges
    a node: uniformly random ones, and local ones, the nearest neighbours of points in the plane
    numbered along a space-filling curve. For each size and implicit part, in a process of its own:
    the seconds of an epoch, over those of one bare sparse product with 32 columns on the same
    graph; the peak of memory above the data, per edge; the share of the solves.

    Time: about five minutes up to 1e6 edges; 1e7 edges take half an hour and 4 GiB.
    Prints a Markdown table and writes nothing.

        python examples/benchmarks scale --edges 10000000 --kinds local --huge-pages
    """
    command.add("--edges", type=positive_int, nargs="+", default=[10_000, 100_000, 1_000_000],
                metavar="N", help="their numbers")
    command.add("--kinds", choices=("random", "local"), nargs="+", default=["random", "local"],
                metavar="KIND", help="random or local: graphs without and with locality")
    command.add("--implicit", choices=IMPLICIT, nargs="+", default=list(IMPLICIT), metavar="J",
                help=f"implicit parts, of {', '.join(IMPLICIT)}")
    command.add("--huge-pages", action="store_true",
                help="large tensors in huge pages: PyTorch's own switch THP_MEM_ALLOC_ENABLE=1")
    command.add("--keep-graphs", action="store_true",
                help="the default memory instead of checkpoints='auto' and graph_memory=0")
    command.add("--epochs", type=positive_int, default=3,
                help="epochs, after one that is not counted")
    add_device(command)
    add_threads(command)
    command.add("--one", action="store_true", help=argparse.SUPPRESS)


def add_runs(command: Command, *, repeat_below: float, time_limit: float) -> None:
    """The options of a benchmark that runs many solvers with many settings."""
    command.add("--out", type=Path, default=Path("runs"), help="folder of the figures and the data")
    command.add("--repeats", type=positive_int, default=3, help="runs of which the fastest counts")
    command.add("--repeat-below", type=positive_float, default=repeat_below, metavar="S",
                help="runs that took longer than this are not repeated, in seconds")
    command.add("--time-limit", type=positive, default=time_limit, metavar="S",
                help="a run is stopped after this time, in seconds, and a solver's finer settings "
                     "are then left out")
    add_threads(command)
    command.add("--seed", type=int, default=0, help="of the initial states")
    command.add("--quick", action="store_true",
                help="tiny problems and few settings, to try the script")


def add_threads(command: Command) -> None:
    command.add("--threads", type=positive_int, default=1, help="threads of PyTorch")


def add_device(command: Command) -> None:
    command.add("--device", default="cpu", help="where to compute, such as cpu or cuda:1")


def add_normalizer(command: Command) -> None:
    command.add("--normalizer", choices=("squareplus", "softmax"), default="squareplus",
                help="GRAND's setting for Cora is squareplus")


def positive(text: str) -> float:
    """A number above zero."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


FOLDER = Folder(
    "examples/benchmarks",
    "Measures what this package costs, beside other packages and beside bare operations.\n"
    "The results are in docs/measurements.md.",
    (stiff_solvers, exponential, stiff_reactions, gradient_cost, checkpoint_memory,
     attention_evaluation, attention_iteration, beside_pyg, beside_others, large_steps, tolerance,
     grand_table, receptive_field, graph_setup, graph_solves, grid_solves, scale))
