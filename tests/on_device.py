"""How do tests make their tensors on another device than the CPU?"""

import sys
import warnings
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

HERE = str(Path(__file__).parent)
TORCH = str(Path(torch.__file__).parent)
MAKERS = {*_device_constructors(), torch.from_numpy}


class OnDevice(TorchFunctionMode):
    """Tensors and modules that tests make without a device are on a device.

    They are made on the CPU, so that random numbers are the same on every device, and moved. What
    the package makes in the calls of a test stays where the package puts it: a device that it
    forgets is an error here, as it is for its users; ``torch.set_default_device`` would hide it.
    """

    def __init__(self, device):
        self.device = torch.device(device)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.numpy and made_for_a_test():  # to compare with NumPy and SciPy
            return func(args[0].cpu(), *args[1:], **kwargs)
        made = func(*args, **kwargs)
        if (func not in MAKERS or kwargs.get("device") is not None or not made_for_a_test()
                or not made.is_leaf):  # the last: made of tensors that are on the device
            return made
        return made.detach().to(self.device).requires_grad_(made.requires_grad)


def made_for_a_test():
    """Whether a test asked for a tensor: itself, by a function of PyTorch or a module's making."""
    frame, of_a_module = sys._getframe(2), False
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(HERE):
            return True
        of_a_module = of_a_module or makes_a_module(frame)
        if not (of_a_module or name.startswith(TORCH)):
            return False
        frame = frame.f_back
    return False


def makes_a_module(frame):
    own = frame.f_locals.get("self")
    return isinstance(own, torch.nn.Module) and frame.f_code.co_name == "__init__"


class WaitsForDevice(TorchDispatchMode):
    """Counts what makes the host wait: reading a number from a tensor; on CUDA every such call."""

    count = 0

    def __enter__(self):
        self.on_cuda = torch.cuda.is_initialized()
        if self.on_cuda:
            self.caught = warnings.catch_warnings(record=True)
            self.found = self.caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        if self.on_cuda:
            torch.cuda.set_sync_debug_mode("default")
            self.caught.__exit__(*error)
            self.count = sum("synchronizing CUDA" in str(w.message) for w in self.found)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))
