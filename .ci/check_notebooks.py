"""Refuse a notebook that was not run, that shows an error or a machine's path, or whose pictures are missing."""
import json
import re
import sys
from pathlib import Path

problems = []
for path in sorted(Path("nbs").rglob("*.ipynb")):
    if ".ipynb_checkpoints" in path.parts:
        continue
    notebook = json.loads(path.read_text())
    if "widgets" in notebook["metadata"]:
        problems.append(f"{path}: holds the saved state of widgets")
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    outputs = [o for c in cells for o in c["outputs"]]
    if any(o["output_type"] == "error" for o in outputs):
        problems.append(f"{path}: shows an error")
    if any(o.get("name") == "stderr" for o in outputs):
        problems.append(f"{path}: shows warnings or other text from the error stream")
    if cells and not outputs:
        problems.append(f"{path}: was not run, it has no output")
    for c in cells:
        source = "".join(c["source"]).strip()
        draws = re.search(r"plt\.subplots|\bdisplay\(|^print\(", source, re.M)
        if draws and "if " not in source and "def " not in source and "#|" not in source and "plt.close" not in source and not c["outputs"]:
            problems.append(f"{path}: was not run, this cell shows nothing: {source.splitlines()[0][:60]}")
    if re.search(r'(?<![\w.])/(home|root|tmp|Users|work)/', json.dumps(outputs)):
        problems.append(f"{path}: an output names a machine's path")
print("\n".join(problems) or "notebooks: run, no error, no machine path")
sys.exit(bool(problems))
