"""Figures learn_diffusion_grid.png and _graph.png: what does examples/learn_diffusion.py find?

    python docs/figures/learn_diffusion.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

here = Path(__file__).parent
example = here.parents[1] / "examples" / "learn_diffusion.py"
for on in ("grid", "graph"):
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([sys.executable, example, "--on", on, "--out", out], check=True)
        (figure,) = Path(out).glob("*.png")
        picture = Image.open(figure).convert("RGB").quantize(48)  # a third of the size
        picture.save(here / f"learn_diffusion_{on}.png", optimize=True)
