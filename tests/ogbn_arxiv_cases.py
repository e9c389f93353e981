"""The example of ogbn-arxiv, and what its tests need."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch_geometric.typing

SCRIPT = Path(__file__).parents[1] / "examples" / "ogbn_arxiv.py"
needs_sampler = pytest.mark.skipif(
    not (torch_geometric.typing.WITH_TORCH_SPARSE or torch_geometric.typing.WITH_PYG_LIB),
    reason="NeighborLoader needs torch-sparse or pyg-lib, and neither is installed")
# It samples with torch-sparse too, but says at each loader that it would rather have pyg-lib.
ignore_torch_sparse = pytest.mark.filterwarnings(
    "ignore:Using 'NeighborSampler' without a 'pyg-lib' installation:UserWarning")


def load_example():
    for name in ("ogb", "matplotlib", "tqdm"):
        pytest.importorskip(name, reason=f"the example needs {name}, which is not installed")
    if str(SCRIPT.parent) not in sys.path:  # it imports its neighbours
        sys.path.append(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("ogbn_arxiv", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
