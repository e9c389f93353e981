"""Figure swift_hohenberg.png: what does the equation of docs/own_equation.md do in the plane?

    python docs/figures/swift_hohenberg.py
"""

import math
from pathlib import Path

import matplotlib
import torch
from PIL import Image

from pyg_sinode import imex_odeint
from pyg_sinode.grid import PeriodicGrid
from pyg_sinode.operators import Circulant

matplotlib.use("Agg")
import matplotlib.pyplot as plt

grid = PeriodicGrid((96, 96), 12 * math.pi)
squares = grid.wavenumbers(0)[:, None] ** 2 + grid.wavenumbers(1)[None, :] ** 2
J = Circulant.from_symbol(0.3 - (1.0 - squares) ** 2, dim=grid.dims)
u0 = 0.1 * torch.randn(96, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
times = torch.tensor([0.0, 5.0, 20.0, 200.0], dtype=torch.float64)
u = imex_odeint(lambda t, u: -u**3, J, u0, times, rtol=1e-5, atol=1e-7)

figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained", sharey=True)
for axis, state, t in zip(axes, u, times, strict=True):
    image = axis.imshow(state, origin="lower", extent=(0, 12 * math.pi) * 2, vmin=-0.7, vmax=0.7,
                        cmap=plt.get_cmap("PuOr", 17), interpolation="nearest")
    axis.set(title=f"t = {float(t):g}", xlabel="x (dimensionless)")
axes[0].set_ylabel("y (dimensionless)")
figure.colorbar(image, label="u (dimensionless)")
figure.suptitle("Swift-Hohenberg: stripes of the preferred wavelength grow from noise")
path = Path(__file__).with_suffix(".png")
figure.savefig(path, dpi=120)
Image.open(path).convert("RGB").quantize(48).save(path, optimize=True)  # a third of the size
