"""Do the data sets hold what they say, survive in their cache, and solve their equations?"""

import math
import pickle

import pytest
import torch
from torch_geometric.loader import DataLoader

from pyg_sinode import datasets
from pyg_sinode.datasets import BurgersTurbulence, KuramotoSivashinsky, integrate_states
from pyg_sinode.grid import PeriodicGrid, kuramoto_sivashinsky, resample, viscous_burgers

F64 = torch.float64
SMALL = {"num_points": 32, "trajectories": 5, "duration": 8.0}
CLASSES = [KuramotoSivashinsky, BurgersTurbulence]


def noise(self):
    """States of the right shape that cost nothing, other ones for every seed."""
    generator = torch.Generator().manual_seed(self.key["seed"])
    times = round(self.key["duration"] / self.step) + 1
    return torch.randn(self.key["trajectories"], times, self.key["points"], dtype=F64,
                       generator=generator)


def forbidden(self):
    raise AssertionError("The states were made again.")


@pytest.fixture
def cheap(monkeypatch):
    for kind in CLASSES:
        monkeypatch.setattr(kind, "_make", noise)


@pytest.fixture(scope="module")
def kuramoto(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("kuramoto"))
    return [KuramotoSivashinsky(root, split, trajectories=2, duration=20.0)
            for split in ("train", "val", "test")]


@pytest.fixture(scope="module")
def burgers(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("burgers"))
    return [BurgersTurbulence(root, split, trajectories=5, duration=1.0)
            for split in ("train", "test")]


def off(got, expected):
    """The largest relative error of a state."""
    return ((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


# Items and splits


@pytest.mark.parametrize("kind", CLASSES)
def test_an_item_is_one_step_of_one_trajectory_as_a_graph(kind, cheap, tmp_path):
    data = kind(str(tmp_path), **SMALL)
    trajectories, times, n = data.states.shape
    assert (n, data.states.dtype) == (32, F64)
    assert len(data) == trajectories * (times - 1)
    for trajectory, time in ((0, 0), (1, 3), (trajectories - 1, times - 2)):
        item = data[trajectory * (times - 1) + time]
        assert torch.equal(item.x, data.states[trajectory, time].view(-1, 1))
        assert torch.equal(item.y, data.states[trajectory, time + 1].view(-1, 1))
        assert torch.equal(item.edge_index, data.grid.edge_index())
        assert item.x.dtype == item.y.dtype == item.edge_attr.dtype == F64
    assert torch.equal(data[-1].y[:, 0], data.states[-1, -1])
    assert len(data[2:5]) == 3
    assert torch.equal(data[2:5][0].x, data[2].x)
    assert (data.num_node_features, data.num_edge_features) == (1, 1)
    assert len(data.times) == times
    torch.testing.assert_close(data.times.diff(), torch.full((times - 1,), data.step, dtype=F64))


@pytest.mark.parametrize("duration", [8.0, 9.7, 40.0, 500.0])
def test_splits_of_kuramoto_sivashinsky_are_stretches_of_time_with_gaps(duration, cheap, tmp_path):
    size = {**SMALL, "duration": duration}
    parts = [KuramotoSivashinsky(str(tmp_path), split, **size)
             for split in ("train", "val", "test")]
    whole = noise(parts[0])
    step = parts[0].step
    for part in parts:
        first = round(part.times[0].item() / step)
        assert torch.equal(part.states, whole[:, first : first + len(part.times)])
    train, val, test = (part.times for part in parts)
    assert train[0] == 0
    assert test[-1].item() == pytest.approx(duration, abs=step)
    for at, share in ((train[-1], 0.6), (val[0], 0.65), (val[-1], 0.7), (test[0], 0.75)):
        assert at.item() == pytest.approx(share * duration, abs=step)
    for gap in (val[0] - train[-1], test[0] - val[-1]):
        assert gap.item() >= max(0.05 * duration - step, 1.99 * step)
    assert all(len(part) > 0 for part in parts)


@pytest.mark.parametrize(("trajectories", "train"), [(5, 4), (6, 4), (10, 8), (100, 80)])
def test_splits_of_burgers_are_four_fifths_and_one_fifth(trajectories, train, cheap, tmp_path):
    size = {"num_points": 32, "trajectories": trajectories, "duration": 0.3}
    parts = [BurgersTurbulence(str(tmp_path), split, **size) for split in ("train", "test")]
    assert torch.equal(torch.cat([part.states for part in parts]), noise(parts[0]))
    assert [len(part.states) for part in parts] == [train, trajectories - train]
    assert [len(part) for part in parts] == [3 * train, 3 * (trajectories - train)]


@pytest.mark.parametrize("kind", CLASSES)
def test_items_are_transformed(kind, cheap, tmp_path):
    def halved(item):
        item.x = item.x.float() / 2
        return item

    data = kind(str(tmp_path), transform=halved, **SMALL)
    assert torch.equal(data[1].x, data.states[0, 1].view(-1, 1).float() / 2)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_loader_makes_batches_that_become_states_again(kind, cheap, tmp_path):
    data = kind(str(tmp_path), **SMALL)
    batch = next(iter(DataLoader(data, batch_size=3)))
    assert batch.num_graphs == 3
    assert torch.equal(data.grid.to_state(batch)[:, 0], data.states[0, :3])
    assert torch.equal(batch.y.view(3, 32), data.states[0, 1:4])
    assert sum(b.num_graphs for b in DataLoader(data, batch_size=64, shuffle=True)) == len(data)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_data_set_can_be_sent_to_another_process(kind, cheap, tmp_path):
    data = kind(str(tmp_path), **SMALL)
    other = pickle.loads(pickle.dumps(data))
    assert torch.equal(other[7].y, data[7].y)
    assert other.equation.initial(2).shape == (2, 32)


# The cache


@pytest.mark.parametrize("kind", CLASSES)
def test_the_second_time_the_states_are_read(kind, cheap, tmp_path, monkeypatch, capsys):
    first = kind(str(tmp_path), **SMALL)
    monkeypatch.setattr(kind, "_make", forbidden)
    assert torch.equal(kind(str(tmp_path), **SMALL).states, first.states)
    assert torch.equal(kind(str(tmp_path), **{**SMALL, "duration": 8}).states, first.states)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", CLASSES)
def test_every_key_has_its_own_file(kind, cheap, tmp_path):
    for change in ({}, {"num_points": 33}, {"trajectories": 6}, {"duration": 9.0}, {"seed": 1}):
        kind(str(tmp_path), **{**SMALL, **change})
    assert len(list((tmp_path / "processed").glob(f"{prefix(kind)}-*.pt"))) == 5
    assert not list(tmp_path.rglob("*.tmp"))


def prefix(kind):
    return {KuramotoSivashinsky: "kuramoto_sivashinsky",
            BurgersTurbulence: "burgers_turbulence"}[kind]


def truncated(content):
    return content[: len(content) // 2]


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("damage", [truncated, flipped, lambda content: b"",
                                    lambda content: b"something else"])
def test_a_damaged_file_is_made_again_with_a_message(kind, damage, cheap, tmp_path, monkeypatch,
                                                     capsys):
    first = kind(str(tmp_path), **SMALL)
    path = tmp_path / "processed" / first.processed_file_names
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(kind(str(tmp_path), **SMALL).states, first.states)
    assert f"{path} is damaged and is made again: " in capsys.readouterr().err
    monkeypatch.setattr(kind, "_make", forbidden)  # and it was kept
    assert torch.equal(kind(str(tmp_path), **SMALL).states, first.states)


def test_a_file_with_the_states_of_another_key_is_made_again(cheap, tmp_path, capsys):
    first = KuramotoSivashinsky(str(tmp_path), **SMALL)
    other = KuramotoSivashinsky(str(tmp_path), seed=1, **SMALL)
    folder = tmp_path / "processed"
    (folder / other.processed_file_names).replace(folder / first.processed_file_names)
    again = KuramotoSivashinsky(str(tmp_path), **SMALL)
    assert torch.equal(again.states, first.states)
    assert "its contents do not fit its checksum" in capsys.readouterr().err


@pytest.mark.parametrize("content", [[1], {}, torch.ones(2),
                                     {"states": 3, "key": {}, "sha256": ""}])
def test_a_file_of_something_else_is_made_again(content, tmp_path, capsys):
    path, states = tmp_path / "file.pt", torch.ones(1, 2, 3)
    torch.save(content, path)
    assert torch.equal(datasets._load_or_make(path, {}, lambda: states), states)
    assert "is damaged and is made again" in capsys.readouterr().err


def test_wherever_a_byte_is_wrong_the_states_are_right(tmp_path):
    path, states = tmp_path / "file.pt", torch.randn(1, 2, 4, dtype=F64)
    datasets._load_or_make(path, {"seed": 0}, lambda: states)
    content = path.read_bytes()
    for at in range(0, len(content), 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        assert torch.equal(datasets._load_or_make(path, {"seed": 0}, lambda: states), states)


def test_an_interrupted_integration_leaves_no_file(tmp_path, monkeypatch):
    size, calls = {"num_points": 32, "trajectories": 5, "duration": 0.2}, []
    integrate = datasets.imex_odeint

    def interrupted(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return integrate(*args, **kwargs)

    monkeypatch.setattr(datasets, "imex_odeint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        BurgersTurbulence(str(tmp_path), **size)
    assert not list(tmp_path.rglob("*.pt"))
    assert BurgersTurbulence(str(tmp_path), **size).states.shape == (4, 3, 32)


def test_an_interrupted_write_leaves_no_file_of_that_name_and_no_harm(cheap, tmp_path,
                                                                      monkeypatch, capsys):
    def interrupted(content, path):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            BurgersTurbulence(str(tmp_path), **SMALL)
    (leftover,) = (tmp_path / "processed").iterdir()
    assert leftover.suffix == ".tmp"
    data = BurgersTurbulence(str(tmp_path), **SMALL)
    assert torch.equal(data.states, noise(data)[:4])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(BurgersTurbulence, "_make", forbidden)
    assert len(BurgersTurbulence(str(tmp_path), "test", **SMALL).states) == 1


# The Kuramoto-Sivashinsky data


def test_the_reference_step_of_kuramoto_sivashinsky_is_fine_enough(kuramoto):
    """All three splits, from the first state on by half the step over 20 units of time."""
    train = kuramoto[0]
    finer = integrate_states(train.equation, train.states[:, 0], 0.2, 100, lambda u: 0.0125,
                             "finer")
    for part in kuramoto:
        first = round(part.times[0].item() / 0.2)
        assert off(part.states, finer[:, first : first + len(part.times)]) < 1e-6


def test_the_grid_of_kuramoto_sivashinsky_is_fine_enough(kuramoto):
    """64 points are: from the same states, 512 give the same for half a Lyapunov time."""
    u = kuramoto[0].states[:, 0]
    coarse, fine = (
        integrate_states(kuramoto_sivashinsky(PeriodicGrid(n, 22.0)), resample(u, n), 0.2, 50,
                         lambda u: 0.1, "grid") for n in (64, 512))
    assert off(coarse, resample(fine, 64)) < 1e-11


def test_kuramoto_sivashinsky_conserves_the_mean_and_stays_bounded(kuramoto):
    for part in kuramoto:
        assert part.states.mean(-1).abs().max() < 1e-12
        assert part.states.abs().max() < 4.0
        assert (part.states.square().mean(-1) > 0.3).all()


def test_statistics_of_kuramoto_sivashinsky_do_not_depend_on_the_grid():
    """Energy and spectrum, means of 32 independent trajectories over 60 units of time each.

    The step is 0.4, so that it is quick: its error is far below that of sampling.
    """
    means, errors = [], []
    for n, seed in ((64, 1), (512, 2)):
        equation = kuramoto_sivashinsky(PeriodicGrid(n, 22.0))
        u = equation.initial(32, torch.Generator().manual_seed(seed))
        states = integrate_states(equation, u, 0.4, 300, lambda u: 0.4, "statistics")[:, 150:]
        waves = torch.fft.rfft(states).abs()[..., 1:11].square().mean(1) / n**2
        energy = states.square().mean((1, 2)) / 2
        each = torch.cat([energy[:, None], waves], dim=1)
        means.append(each.mean(0))
        errors.append(each.std(0) / math.sqrt(len(each)))
    standard = (errors[0] ** 2 + errors[1] ** 2).sqrt()
    assert ((means[0] - means[1]).abs() < 3 * standard).all()
    assert standard[0] < 0.03 * means[0][0]  # and so the energies agree to a tenth


# The Burgers data


def test_the_energy_of_burgers_never_grows_and_the_mean_stays(burgers):
    for part in burgers:
        energy = part.states.square().mean(-1)
        assert (energy.diff(dim=1) < 0).all()
        assert part.states.mean(-1).abs().max() < 1e-12
        peak = part.states.abs().amax(-1)
        assert (peak.diff(dim=1) < 1e-3 * peak[:, :-1]).all()  # a maximum principle, but for waves


def test_burgers_on_fewer_points_is_the_same_solution(burgers, tmp_path):
    few = BurgersTurbulence(str(tmp_path), num_points=64, trajectories=5, duration=0.1)
    torch.testing.assert_close(few.states, resample(burgers[0].states[:, :2], 64), rtol=0,
                               atol=1e-13)


@pytest.mark.parametrize(("n", "count", "tolerance"), [(512, 10, 7e-4), (2048, 1, 3e-5)])
def test_the_grid_and_the_steps_of_burgers_are_fine_enough(burgers, n, count, tolerance):
    """On half and twice the points, with steps in proportion; the first 0.1 is the hardest."""
    grid = PeriodicGrid(n, 1.0)
    u = resample(torch.cat([part.states[:, 0] for part in burgers]), n)
    states = integrate_states(viscous_burgers(grid, 8e-4), u, 0.1, count,
                   lambda u: min(0.01, 1.2 * grid.spacing[0] / float(u.abs().max())), "grid")
    expected = torch.cat([part.states[:, : count + 1] for part in burgers])
    assert off(resample(states, 512), expected) < tolerance


# What is refused


@pytest.mark.parametrize(("kind", "change", "error", "message"), [
    (KuramotoSivashinsky, {"split": "all"}, ValueError, "one of train, val, test .got 'all'"),
    (KuramotoSivashinsky, {"num_points": 31}, ValueError, "num_points of at least 32 .got 31"),
    (KuramotoSivashinsky, {"num_points": 64.0}, TypeError, "num_points as an int .got float"),
    (KuramotoSivashinsky, {"trajectories": 0}, ValueError, "trajectories of at least 1 .got 0"),
    (KuramotoSivashinsky, {"trajectories": math.inf}, TypeError, "trajectories as an int"),
    (KuramotoSivashinsky, {"duration": 7.9}, ValueError,
     "finite duration of at least 8.0 for three splits and their gaps .got 7.9"),
    (KuramotoSivashinsky, {"duration": math.nan}, ValueError, "finite duration of at least 8.0"),
    (KuramotoSivashinsky, {"duration": math.inf}, ValueError, "finite duration of at least 8.0"),
    (BurgersTurbulence, {"split": "val"}, ValueError, "one of train, test .got 'val'"),
    (BurgersTurbulence, {"num_points": 16}, ValueError, "num_points of at least 32 .got 16"),
    (BurgersTurbulence, {"num_points": None}, TypeError, "num_points as an int .got NoneType"),
    (BurgersTurbulence, {"trajectories": 0}, ValueError, "trajectories of at least 1"),
    (BurgersTurbulence, {"trajectories": 4}, ValueError,
     "at least 5 trajectories and a finite duration of at least 0.1 .got 4 and 8.0"),
    (BurgersTurbulence, {"duration": 0.05}, ValueError, "finite duration of at least 0.1"),
    (BurgersTurbulence, {"duration": math.inf}, ValueError, "finite duration .*got 5 and inf"),
])
def test_bad_arguments_are_refused_before_any_work(kind, change, error, message, tmp_path):
    with pytest.raises(error, match=message):
        kind(str(tmp_path / "data"), **{**SMALL, **change})
    assert not (tmp_path / "data").exists()


# Options of PyG's data sets


@pytest.mark.parametrize("kind", CLASSES)
def test_a_dtype_is_that_of_states_and_items_and_the_cache_stays_the_same(kind, cheap, tmp_path):
    exact = kind(str(tmp_path), **SMALL)
    short = kind(str(tmp_path), dtype=torch.float32, **SMALL)
    assert torch.equal(short.states, exact.states.float())
    assert short[0].x.dtype == short[0].y.dtype == torch.float32
    with pytest.raises(TypeError, match=r"dtype as torch.float32 or torch.float64"):
        kind(str(tmp_path), dtype=torch.bfloat16, **SMALL)


@pytest.mark.parametrize("kind", CLASSES)
def test_force_reload_makes_the_data_anew(kind, cheap, tmp_path, monkeypatch):
    kind(str(tmp_path), **SMALL)
    monkeypatch.setattr(kind, "_make", forbidden)
    kind(str(tmp_path), **SMALL)
    with pytest.raises(AssertionError, match="made again"):
        kind(str(tmp_path), force_reload=True, **SMALL)


@pytest.mark.parametrize("kind", CLASSES)
def test_pre_transform_comes_before_transform(kind, cheap, tmp_path):
    def first(item):
        item.seen = ["pre"]
        return item

    def second(item):
        item.seen.append("transform")
        return item

    assert kind(str(tmp_path), pre_transform=first, transform=second, **SMALL)[0].seen == [
        "pre", "transform"]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_split_is_pickled_without_the_other_splits(kind, cheap, tmp_path):
    data = kind(str(tmp_path), "test", **SMALL)
    bytes_of_states = data.states.numel() * 8
    assert data.states.untyped_storage().nbytes() == bytes_of_states
    assert len(pickle.dumps(data)) < bytes_of_states + 20_000
