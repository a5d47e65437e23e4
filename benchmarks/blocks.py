"""Holds the copies equal: marked blocks to their home, PEP 723 headers to requirements.txt, imports to the rules.

    python benchmarks/blocks.py           # says what differs; exit code 1 if anything does   (make check)
    python benchmarks/blocks.py --write   # copies every block from its home, and the header  (make sync)

A block stands between `# >>> name (home: script.py)` and `# <<< name`. It may stand in any script, after lines that the
script writes for itself; in its home it is edited, everywhere else it is a copy, equal to the byte.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^# >>> (?P<name>\w+) \(home: (?P<home>\w+\.py)\)\n(?P<body>.*?)^# <<< (?P=name)\n", re.M | re.S)
HEADER = re.compile(r"\A# /// script\n.*?^# ///\n", re.M | re.S)
# What a script may import at its top, and what only running needs, inside functions.
TOP = {"flax", "jax", "numpy", "optax"}
INSIDE = {"dataset", "gymnasium", "tqdm", "tyro", "wandb"}
OWN = {"prdc.py": {"scipy"}}  # what one algorithm alone truly needs
LOADER = {"gymnasium", "gymnasium_robotics", "h5py", "minari", "ogbench", "tqdm"}  # of dataset.py, inside functions


def header(root: Path, script: str) -> str:
    """The PEP 723 header that requirements.txt implies: its first paragraph, and what OWN gives this script."""
    common, _, rest = (root / "requirements.txt").read_text().partition("\n\n")
    own = [line for line in rest.splitlines() if re.match(r"\w*", line)[0] in OWN.get(script, ())]
    lines = sorted(own + [line for line in common.splitlines() if not line.startswith("#")])
    packages = "".join(f'#   "{line}",\n' for line in lines)
    return f'# /// script\n# requires-python = ">=3.11"\n# dependencies = [\n{packages}# ]\n# ///\n'


def synchronised(root: Path) -> dict[Path, str]:
    """Every script as it should be, by path; programs of benchmarks/ may hold a block too."""
    paths = [*sorted((root / "algorithms").glob("*.py")), *sorted((root / "benchmarks").glob("*.py"))]
    scripts = {path: path.read_text() for path in paths}
    homes = {
        match["name"]: match[0]
        for path, text in scripts.items()
        for match in BLOCK.finditer(text)
        if match["home"] == path.name
    }

    def from_home(match: re.Match) -> str:
        if match["name"] not in homes:
            sys.exit(f"error: block {match['name']} has no home: {match['home']} does not hold it.")
        return homes[match["name"]]

    return {
        path: BLOCK.sub(from_home, HEADER.sub(lambda _, path=path: header(root, path.name), text))
        for path, text in scripts.items()
    }


def broken_rules(path: Path) -> list[str]:
    """What a script imports against the rules, and a block or header that the patterns above do not recognise."""
    text, tree = path.read_text(), ast.parse(path.read_text())
    allowed = (set(), LOADER) if path.name == "dataset.py" else (TOP, INSIDE)
    complaints = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            top = node in tree.body
            for package in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"numpy"}:
                if package not in allowed[0] | OWN.get(path.name, set()) | (set() if top else allowed[1]):
                    where = "at its top" if top else "inside a function"
                    complaints.append(
                        f"{path.name}:{node.lineno} imports {package} {where}; see the rules in blocks.py."
                    )
    if path.name != "dataset.py" and not HEADER.match(text):
        complaints.append(f"{path.name} has no PEP 723 header; `make sync` cannot guess where it belongs.")
    marks = len(re.findall(r"^# (?:>>>|<<<)", text, re.M))
    if marks != 2 * len(BLOCK.findall(text)):
        complaints.append(f"{path.name} has a block mark without its partner.")
    return complaints


def main() -> None:
    complaints = []
    for path, text in synchronised(ROOT).items():
        if text != path.read_text():
            if "--write" in sys.argv[1:]:
                path.write_text(text)
                print(f"{path.name}: brought up to date")
            else:
                complaints.append(
                    f"{path.name} differs from the homes of its blocks or from requirements.txt; `make sync`."
                )
        complaints += broken_rules(path) if path.parent.name == "algorithms" else []
    print("\n".join(complaints))
    sys.exit(bool(complaints))


if __name__ == "__main__":
    main()
