"""The house as it stands: which module imports which, and how large the rooms are.

    python .ci/structure.py          # refuses an arrow to a higher notebook, a circle, a room or a cell that is too large
    python .ci/structure.py --draw   # prints the import graph as Mermaid, too
"""
import ast
import json
import re
import sys
from pathlib import Path

CELLS = 125  # "about 120" of a notebook
LINES = 715  # "about 650" of a module's code: no blank lines, no names of cells
EXPORTED = 25  # of an exported cell
WIDTH = 120
# What is nearly all a table of options, which stays with its function or class
TABLES = {"egoexo_proposals", "egoexo_train", "Settings", "fit"}


def source(cell):
    return "".join(cell["source"])


def rooms():
    "Module -> (notebook, cells)"
    found = {}
    for path in sorted(Path("nbs").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        for cell in cells:
            if m := re.match(r"#\| default_exp ([\w.]+)", source(cell)):
                found[m[1]] = path.stem, cells
    return found


def imported(module, modules):
    "Modules of this package that a module imports, anywhere in it"
    path = Path("egoexo_corr", *module.split(".")).with_suffix(".py")
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = package[: len(package) - node.level + 1]
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        elif (node.module or "").startswith("egoexo_corr"):
            name = node.module.removeprefix("egoexo_corr").strip(".")
        else:
            continue
        names = [name] if name in modules else [".".join(filter(None, (name, a.name))) for a in node.names]
        yield from (n for n in names if n in modules)


def long_cells(cells):
    "Names of what begins each exported cell of more than EXPORTED lines; cells that only import may be longer"
    for cell in cells:
        rows = [row for row in source(cell).splitlines() if row.strip() and not row.startswith("#|")]
        if re.match(r"\s*#\|\s*export\b", source(cell)) and len(rows) > EXPORTED:
            if named := re.search(r"^(?:def|class) (\w+)", source(cell), re.M):
                yield named[1], len(rows)


def code_lines(module):
    path = Path("egoexo_corr", *module.split(".")).with_suffix(".py")
    return sum(bool(line.strip()) and not line.startswith("# %%") for line in path.read_text().splitlines())


def main():
    found, problems, rows = rooms(), [], []
    order = list(found)
    arrows = {m: sorted(set(imported(m, found)) - {m}, key=order.index) for m in order}
    for module, (notebook, cells) in found.items():
        for other in arrows[module]:
            if order.index(other) > order.index(module):
                problems.append(f"{notebook}: {module} imports {other}, of the higher notebook {found[other][0]}")
        exported = [source(c) for c in cells if re.match(r"\s*#\|\s*export\b", source(c))]
        long = list(long_cells(cells))
        wide = sum(len(row) > WIDTH for c in cells if c["cell_type"] == "code" for row in source(c).splitlines())
        rows.append((notebook, module, len(cells), code_lines(module), len(exported), len(long), wide, ", ".join(arrows[module])))
        if len(cells) > CELLS:
            problems.append(f"{notebook}: {len(cells)} cells, more than {CELLS}")
        if code_lines(module) > LINES:
            problems.append(f"{notebook}: {module} has {code_lines(module)} lines of code, more than {LINES}")
        for name, n in long:
            if name not in TABLES:
                problems.append(f"{notebook}: the exported cell of {name} has {n} lines, more than {EXPORTED}")
    print(f"{'notebook':20} {'module':16} cells lines exported long wide  imports")
    for notebook, module, cells, lines, exported, long, wide, names in rows:
        print(f"{notebook:20} {module:16} {cells:5} {lines:5} {exported:8} {long:4} {wide:4}  {names}")
    print(f"exported cells of more than {EXPORTED} lines: {sum(r[5] for r in rows)}; lines over {WIDTH} characters: {sum(r[6] for r in rows)}")
    if "--draw" in sys.argv:
        print("graph TD", *(f"  {o} --> {m}" for m in order for o in arrows[m]), sep="\n")
    print("\n".join(problems) or "arrows: all to lower notebooks; no circle")
    return bool(problems)


sys.exit(main())
