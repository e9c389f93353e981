"""Which hyperparameters did GRAND publish for which data set?

Source: the best parameters in the repository of `"GRAND: Graph Neural Diffusion"
<https://arxiv.org/abs/2106.10934>`_, as arguments of :class:`pyg_sinode.SINODE`. Its step sizes
belong to its own solvers and are left out: the default step size of :class:`pyg_sinode.SINODEConv`
is used. Also left out are CiteSeer, PubMed and Computers, which it tuned with other features or
rewired graphs, and its sampling of edges (``hard_attention``) on Photo and ogbn-arxiv.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Hyperparameters of a :class:`pyg_sinode.SINODE` and of its training.

    Attributes:
        channels (int): Width of the diffused features: :obj:`hidden_channels`.
        heads, attention_channels, attention, normalizer, stochastic: Arguments of the attention,
            see :class:`pyg_sinode.SINODEConv`.
        fill_value (float): Weight of the added self-loops.
        source (bool): Whether to add the source term.
        batch_norm (bool): Whether to apply batch normalisation to the encoded features.
        input_dropout, dropout (float): Dropout probabilities of the input and before the decoder.
        time (float): The terminal time.
        optimizer (str): Name of the optimizer's class in ``torch.optim``.
        lr, weight_decay (float): Learning rate and weight decay of the optimizer.
        epochs (int): Number of training epochs.
    """

    channels: int = 64
    heads: int = 4
    attention_channels: int = 64
    attention: str = "scaled_dot"
    normalizer: str = "softmax"
    stochastic: str = "row"
    fill_value: float = 1.0
    source: bool = False
    batch_norm: bool = False
    input_dropout: float = 0.3
    dropout: float = 0.1
    time: float = 12.0
    optimizer: str = "Adam"
    lr: float = 0.005
    weight_decay: float = 5e-3
    epochs: int = 100

    def network(self) -> dict[str, Any]:
        """The keyword arguments of :class:`pyg_sinode.SINODE`, other than numbers of channels."""
        names = ("heads", "attention_channels", "attention", "normalizer", "stochastic",
                 "fill_value", "source", "batch_norm", "input_dropout", "dropout", "time")
        return {name: getattr(self, name) for name in names}


GRAND: dict[str, Preset] = {
    "Cora": Preset(
        channels=80, heads=8, attention_channels=128, normalizer="squareplus", stochastic="column",
        source=True, time=18.2948, input_dropout=0.5, dropout=0.0469, optimizer="Adamax",
        lr=0.02292, weight_decay=0.005077, epochs=100),
    "CoauthorCS": Preset(
        channels=16, heads=4, attention_channels=8, normalizer="squareplus", fill_value=0.0,
        stochastic="column", input_dropout=0.5275, dropout=0.6858, time=3.1264, optimizer="RMSprop",
        lr=0.000934, weight_decay=0.004738, epochs=250),
    "Photo": Preset(
        channels=64, heads=4, attention_channels=64, attention="pearson", fill_value=0.058,
        batch_norm=True, input_dropout=0.4290, dropout=0.4650, time=3.5824,
        lr=0.005561, weight_decay=0.004708, epochs=100),
    # The first with 2 heads of width 16, the second with 4 heads of width 4 and a source term.
    "ogbn-arxiv": Preset(
        channels=162, heads=2, attention_channels=32, batch_norm=True, input_dropout=0.0,
        dropout=0.116, time=3.676, optimizer="RMSprop", lr=0.00545, weight_decay=0.0, epochs=100),
    "ogbn-arxiv, source": Preset(
        channels=128, heads=4, attention_channels=16, source=True, batch_norm=False,
        input_dropout=0.0, dropout=0.0, time=5.08, optimizer="Adam", lr=0.005, weight_decay=0.0,
        epochs=100),
}
"""GRAND's hyperparameters by the name of the data set, for :meth:`pyg_sinode.SINODE.grand`."""
