"""Does a semi-implicit graph neural ODE classify Cora? The shortest training script of the package.

    python examples/cora.py --root data/planetoid
"""

import argparse

import torch
import torch.nn.functional as F
from torch_geometric.datasets import Planetoid
from torch_geometric.transforms import NormalizeFeatures
from tqdm import tqdm

from pyg_sinode import SINODE

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
parser.add_argument("--root", default="data/planetoid", help="where PyG keeps, or puts, the data")
parser.add_argument("--epochs", type=int, default=200, help="training epochs")
parser.add_argument("--seed", type=int, default=0, help="seed of weights and dropout")
args = parser.parse_args()
if args.epochs < 1:
    parser.error(f"--epochs expects at least 1 (got {args.epochs})")

torch.manual_seed(args.seed)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
dataset = Planetoid(args.root, "Cora", transform=NormalizeFeatures())
data = dataset[0].to(device)
model = SINODE(dataset.num_features, 64, dataset.num_classes, input_dropout=0.5, dropout=0.5)
model = model.to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)


def train() -> float:
    model.train()
    optimizer.zero_grad()
    out = model(data.x, data.edge_index)
    loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def test() -> list[float]:
    model.eval()
    right = model(data.x, data.edge_index).argmax(dim=-1) == data.y
    masks = (data.train_mask, data.val_mask, data.test_mask)
    return [float(right[mask].float().mean()) for mask in masks]


best_val = best_test = 0.0
bar = tqdm(range(args.epochs), desc="Cora", disable=None)
for _ in bar:
    loss = train()
    train_acc, val_acc, test_acc = test()
    if val_acc > best_val:
        best_val, best_test = val_acc, test_acc
    bar.set_postfix(loss=f"{loss:.3f}", train=f"{train_acc:.1%}", val=f"{val_acc:.1%}")
print(f"test accuracy {best_test:.1%} at the best validation accuracy, {best_val:.1%}")
