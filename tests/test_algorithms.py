"""benchmarks/algorithms.py: what the README's tables say of a script."""

import ast
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import algorithms

ROOT = Path(__file__).parent.parent


def test_lines_are_those_with_code():
    head = '"""Docstring\nof two lines."""\n\n# a comment\nx = [\n    1,\n]  # three lines\n\n\n'
    assert algorithms.lines(head + 'def f():\n    """Another."""\n    return x\n') == 5


def test_a_phase_is_seen_in_the_defaults_and_in_main():
    phase = lambda name: algorithms.phase(text := (ROOT / f"algorithms/{name}.py").read_text(), ast.parse(text))
    assert phase("bc") == "offline" and phase("td3_bc") == "offline; online if asked"
    assert (
        phase("sac") == "online"
        and phase("rlpd") == "online, with a dataset"
        and phase("wsrl") == "offline, then online"
    )


def test_the_readme_has_a_row_for_every_script():
    rows = [line for line in algorithms.algorithms().splitlines() if line.startswith("| [`")]
    readme = (ROOT / "README.md").read_text()
    names = {path.name for path in (ROOT / "algorithms").glob("*.py")} - {"dataset.py"}
    assert {row.split("`")[1] for row in rows} == names
    assert all(f"[`{name}`](algorithms/{name})" in readme for name in names), "run `make tables`"
