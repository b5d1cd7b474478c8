"""Where are the tools of the storyteller? Importing this module makes them importable."""

import sys
from pathlib import Path

# Behind this folder, so that the names of this folder's files win.
sys.path.append(str(Path(__file__).resolve().parents[1] / "storyteller"))
