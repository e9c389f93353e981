"""Does training in several processes, or under Lightning, have the gradients of one process?"""

import argparse
import math
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ogbn_arxiv_cases import ignore_torch_sparse, load_example, needs_sampler
from torch.distributed import fsdp
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch, Data
from torch_geometric.utils import k_hop_subgraph

pytestmark = pytest.mark.scripts

if not hasattr(fsdp, "fully_shard"):
    pytest.skip("FSDP2 is public from PyTorch 2.6 on", allow_module_level=True)

SEEDS = (range(5), range(40, 53))  # of the two processes: not as many


@pytest.fixture(scope="module")
def example():
    return load_example()


def test_processes_whose_shares_differ_take_the_same_number_of_steps(example, monkeypatch):
    def steps(number, process, size):
        monkeypatch.setattr(example, "world", lambda: 3)
        share = torch.arange(number)[process::3]
        parts = [Data(nodes=part, batch_size=len(part)) for part in share.split(size)]

        class Loader(list):
            data = Data(train_mask=torch.ones(number, dtype=torch.bool))

        args = argparse.Namespace(batch_size=size)
        return [b.nodes[n].tolist() for b, n in example.batches(args, Loader(parts), None)]

    for number, size in ((13, 2), (12, 2), (14, 4), (3, 5)):
        found = [steps(number, process, size) for process in range(3)]
        assert {len(one) for one in found} == {math.ceil(math.ceil(number / 3) / size)}
        assert sorted(chain(*chain(*found))) == list(range(number))


def model_and_batches(example):
    """A small network, and for each process the seeds first in all that reaches them."""
    torch.manual_seed(0)
    data = example.generate(1500)
    args = argparse.Namespace(preset="source", implicit="decay", step_size=6.0)
    model = example.make_model(args, data).double()
    data.x = data.x.double()
    with torch.no_grad():
        model.conv.term.beta.fill_(0.1)
    parts = []
    for seeds in SEEDS:
        nodes, edges, place, _ = k_hop_subgraph(
            list(seeds), model.conv.num_hops, data.edge_index, relabel_nodes=True,
            num_nodes=data.num_nodes)
        mask = torch.zeros(len(nodes), dtype=torch.bool)
        mask[place] = True
        parts.append(Data(x=data.x[nodes], y=data.y[nodes], edge_index=edges, seed=mask))
    return model, data, parts


def losses_of(model, part):
    out = model(part.x, part.edge_index)
    return F.cross_entropy(out[part.seed], part.y[part.seed], reduction="none")


def whole(model, part=lambda p: p.detach()):
    """The parameters, or what belongs to them, gathered where they are sharded."""
    values = {n.removeprefix("module."): part(p) for n, p in model.named_parameters()}
    return {n: getattr(v, "full_tensor", lambda v=v: v)().clone() for n, v in values.items()}


def gradients(model):
    return whole(model, lambda p: p.grad)


def work(process, folder):
    """One of two processes: the gradients under DDP and FSDP, and the parameters after a step."""
    torch.set_num_threads(1)
    example = load_example()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=process, world_size=2)
    found = {}
    for name in ("ddp", "fsdp", "naive"):
        model, _, parts = model_and_batches(example)
        model = sharded(model) if name == "fsdp" else DistributedDataParallel(model)
        losses = losses_of(model, parts[process])
        (losses.mean() if name == "naive" else example.mean_over_processes(losses)).backward()
        found[name] = gradients(model)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        found[f"{name}, stepped"] = whole(model)
    if process == 0:
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()


def sharded(model):
    model = fsdp.fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)))
    assert all(p.to_local().numel() < p.numel() or p.numel() == 1 for p in model.parameters())
    return model


def errors(found, model):
    """Relative to each gradient; that of the keys' bias is zero but for rounding."""
    wanted = gradients(model)
    assert found.keys() == wanted.keys()
    least = 1e-9 * max(g.norm() for g in wanted.values())
    assert sum(bool(g.norm() < least) for g in wanted.values()) <= 1
    return {name: float((found[name] - g).norm() / g.norm().clamp(min=least))
            for name, g in wanted.items()}


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()),
                    reason="this build of PyTorch has no Gloo")
def test_two_processes_have_the_gradient_and_the_step_of_one_with_all_their_seeds(
        example, tmp_path):
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    model, data, parts = model_and_batches(example)
    losses = losses_of(model, Batch.from_data_list(parts))
    assert len(losses) == sum(len(seeds) for seeds in SEEDS)
    assert all(part.num_nodes < data.num_nodes for part in parts)
    losses.mean().backward()
    stepped = {name: p.detach() - 0.1 * p.grad for name, p in model.named_parameters()}
    for kind in ("ddp", "fsdp"):
        assert max(errors(found[kind], model).values()) < 1e-6
        torch.testing.assert_close(found[f"{kind}, stepped"], stepped)
        assert all(bool(p.isfinite().all()) for p in found[f"{kind}, stepped"].values())
    # Each process's own mean would be another gradient, since the numbers of seeds differ.
    assert errors(found["naive"], model)["encoder.weight"] > 1e-3


# Lightning


@ignore_torch_sparse
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
@pytest.mark.parametrize("loader", ["full", pytest.param("neighbor", marks=needs_sampler)])
def test_the_model_trains_under_lightning(example, tmp_path, loader):
    lightning = pytest.importorskip(
        "lightning.pytorch", reason="the package lightning is not installed")
    from torch_geometric.data.lightning import LightningNodeData

    data = example.generate(600)
    args = argparse.Namespace(preset="source", implicit="decay", step_size=6.0)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.losses, self.right = example.make_model(args, data), [], []

        def training_step(self, batch, index):
            nodes = batch.train_mask if loader == "full" else slice(0, batch.batch_size)
            out = self.model(batch.x, batch.edge_index)[nodes]
            loss = F.cross_entropy(out, batch.y[nodes])
            self.losses.append(float(loss.detach()))
            return loss

        def validation_step(self, batch, index):
            nodes = batch.val_mask if loader == "full" else slice(0, batch.batch_size)
            out = self.model(batch.x, batch.edge_index)[nodes]
            self.right.append(float((out.argmax(dim=-1) == batch.y[nodes]).double().mean()))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.005)

    module, epochs = Module(), 8
    options = {} if loader == "full" else {"num_neighbors": [10, 5], "batch_size": 200}
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=tmp_path)
    trainer.fit(module, LightningNodeData(data, loader=loader, pin_memory=False, **options))
    assert len(module.losses) >= epochs
    assert module.losses[-1] < 0.8 * module.losses[0]
    assert module.right[-1] > 0.2  # a guess is right in 2.5 %
