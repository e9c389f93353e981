"""How does a training keep its place, and when does it end? Checkpoints of one setting each.

Shared by the examples that train. A checkpoint's name holds the kind of run and a digest of all the
settings that shape it, so that each setting has a file of its own:

    checkpoint = Checkpoint(args.out, "digits-decay", settings, args.restart)
    state = checkpoint.load()
    if state is not None:
        checkpoint.restore(state, model=model, optimizer=optimizer)
        checkpoint.tell(state["epoch"])
    ...
    checkpoint.save(model=model.state_dict(), optimizer=optimizer.state_dict(), epoch=epoch)
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyg_sinode

FORMAT = 2  # of the checkpoints; a new number where their content changes


class CheckpointError(SystemExit):
    """A checkpoint that cannot be read or written; ends a script with its message alone."""


class Checkpoint:
    """One file, which belongs to one setting of one kind of run.

    Args:
        folder: Where it lies.
        kind: The beginning of its name.
        settings: All that shapes the run, as numbers, strings, lists and dictionaries.
        restart: Whether a file that exists is ignored, and overwritten by the first save.
    """

    def __init__(self, folder: Path, kind: str, settings: dict[str, Any], restart: bool = False
                 ) -> None:
        whole = {"format": FORMAT, "pyg_sinode": pyg_sinode.__version__, **settings}
        self.settings = json.dumps(whole, sort_keys=True, default=str)
        digest = hashlib.sha256(self.settings.encode()).hexdigest()[:10]
        self.path, self.restart = folder / f"{kind}-{digest}.pt", restart

    def picture(self, **free: Any) -> Path:
        """Where a figure of the run goes, with what it shows beyond the settings in its name."""
        shown = "".join(f"-{name}{value}" for name, value in free.items() if value is not None)
        return self.path.with_name(f"{self.path.stem}{shown}.png")

    def load(self, device: str | torch.device = "cpu") -> dict[str, Any] | None:
        """What was saved; None where there is no file, or where the run starts anew."""
        if self.restart or not self.path.exists():
            return None
        if self.path.is_dir():
            raise CheckpointError(f"Expected a checkpoint at {self.path} (got a folder). Remove "
                                  "it, or name another folder with --out.")
        try:
            damaged = zipfile.ZipFile(self.path).testzip()  # torch.load checks no sums
            if damaged is not None:
                raise zipfile.BadZipFile(f"a wrong checksum of {damaged}")
            state = torch.load(self.path, weights_only=True, map_location=device)
        except Exception as error:  # torch.load raises errors of many kinds on a broken file
            raise self._unusable(error) from error
        if not isinstance(state, dict) or state.get("settings") != self.settings:
            raise self._unusable("a file of something else")
        return state

    def restore(self, state: dict[str, Any], **parts: Any) -> None:
        """Loads what was saved under these names into modules, optimizers and schedules."""
        try:
            for name, part in parts.items():
                part.load_state_dict(state[name])
        except Exception as error:  # of many kinds, by what the state is of
            raise self._unusable(error) from error

    def tell(self, count: int, unit: str = "epoch") -> None:
        """Prints where the run goes on."""
        print(f"resumed from {unit} {count} of {self.path}", flush=True)

    def save(self, **state: Any) -> None:
        """Writes beside the file, then renames: a killed run leaves the last one whole."""
        content = io.BytesIO()
        torch.save({"settings": self.settings, **state}, content)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")  # another run may write here too
        try:
            temporary.write_bytes(content.getbuffer())
            os.replace(temporary, self.path)
        except OSError as error:
            raise CheckpointError(
                f"Expected to write {len(content.getbuffer())} bytes to {self.path} (got: "
                f"{error.strerror}). Make room, or name another folder with --out; what was saved "
                "there before is still whole.") from error
        finally:
            temporary.unlink(missing_ok=True)

    def _unusable(self, reason: object) -> CheckpointError:
        told = str(reason).strip().splitlines()
        kind = f"{type(reason).__name__}: " if isinstance(reason, Exception) else ""
        return CheckpointError(
            f"Expected {self.path} to be a whole checkpoint of this run (got {kind}"
            f"{told[0] if told else 'an empty file'}). Pass --restart to train anew and overwrite "
            "it, or move it away.")


def fingerprint(*tensors: Tensor) -> str:
    """A digest of sizes, types and values, by which two data sets of one name differ."""
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu()
        if tensor.layout != torch.strided:
            tensor = tensor.to_sparse_coo().coalesce()
        for part in (tensor.indices(), tensor.values()) if tensor.is_sparse else (tensor,):
            digest.update(f"{tuple(tensor.shape)} {part.dtype} ".encode())
            digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def random_state(device: torch.device) -> list[Tensor]:
    """The state of the random numbers on the CPU, and on the device where it has its own."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """What :func:`random_state` gave is put back."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1].cpu(), device)


# When a run ends


def end_of(history: list[dict], epochs: int, patience: float = math.inf) -> int:
    """After which epoch a run ends, as far as its history tells; it may be longer than the run.

    Args:
        history: A row for each epoch, with ``val`` and ``val_loss`` where it was evaluated.
        epochs: The largest number of epochs.
        patience: After how many epochs without a better validation it ends; at an evaluated one.
    """
    best, best_epoch = None, 0
    for epoch, row in enumerate(history[:epochs], 1):
        if "val" not in row:
            continue
        if best is None or _rank(row) > best:
            best, best_epoch = _rank(row), epoch
        elif epoch - best_epoch >= patience:
            return epoch
    return epochs


def best_of(history: list[dict]) -> tuple[int, dict]:
    """The epoch of the best validation, the first of equals, and its row."""
    evaluated = [(epoch, row) for epoch, row in enumerate(history, 1) if "val" in row]
    return max(evaluated, key=lambda pair: _rank(pair[1]))


def _rank(row: dict) -> tuple[float, float]:
    # Ties in accuracy are common among few labels; the smaller validation loss decides.
    return row["val"], -row.get("val_loss", 0.0)


def device_name(text: str) -> str:
    """The name of a device, as PyTorch knows it."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(
            f"expected a device of this PyTorch, such as cpu or cuda:0 (got {text!r})") from error
    return text
