"""Figure ks.png: what does a run of the Kuramoto-Sivashinsky equation look like?

    python docs/figures/ks.py
"""

from pathlib import Path

import matplotlib
import torch
from PIL import Image

from pyg_sinode import imex_odeint
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky

matplotlib.use("Agg")
import matplotlib.pyplot as plt

grid = PeriodicGrid(128, 66.0)
G, J, initial = kuramoto_sivashinsky(grid)
t = torch.linspace(0, 150, 501, dtype=torch.float64)
u0 = initial(1, torch.Generator().manual_seed(0))
u = imex_odeint(G, J, u0, t, method="ark436l2sa", step_size=0.1)[::2, 0]

figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
image = axis.imshow(u.T, origin="lower", aspect="auto", extent=(0, 150, 0, 66), vmin=-3.2, vmax=3.2,
                    cmap=plt.get_cmap("PuOr", 17), interpolation="nearest")
figure.colorbar(image, label="u (dimensionless)")
axis.set(xlabel="time t (dimensionless)", ylabel="x (dimensionless)",
         title="Kuramoto-Sivashinsky: a few smooth waves become chaos of cells")
path = Path(__file__).with_suffix(".png")
figure.savefig(path, dpi=120)
Image.open(path).convert("RGB").quantize(48).save(path, optimize=True)  # a third of the size
