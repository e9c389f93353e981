"""What does importing the package cost?"""

import subprocess
import sys

PROGRAM = """
import sys
import torch, torch_geometric
before = set(sys.modules)
import pyg_sinode
print(*sorted(name for name in set(sys.modules) - before if name.partition(".")[0] == "scipy"))
"""


def test_scipy_is_imported_where_it_is_used_only():
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True,
                           text=True, check=True)
    assert found.stdout.split() == []
