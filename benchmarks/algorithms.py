"""The three tables of README.md that speak of the scripts, from their docstrings and the files in results/.

    python benchmarks/algorithms.py   # part of `make tables`

Each stands between `<!-- name -->` and `<!-- /name -->`. `summary`: in how many scripts updates, and on how many
datasets scores are the official code's, and how the speed compares. `algorithms`: every script, its paper and phase,
how many lines of code are the algorithm's (above the banner "training and evaluation") and how many there are in all,
the largest error of its update beside the official code's (results/parity.json, which `make parity` measures), on how
many datasets its scores were found equivalent to that code's (results/tables/equivalence.csv), milliseconds a step on
one core of the machine that most scripts were timed on (results/speed, of PRDC its `search`; †: of an older script),
and where its scores are. `equivalence`: our scores beside those that were measured of the official code, at the last
step and in the mean over the evaluations, and how many times its updates/s ours makes where both were timed in turn.
"""

import ast
import csv
import io
import json
import re
import tokenize
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean

import speed
from tables import pipes

ROOT = Path(__file__).parent.parent
TABLES = ROOT / "results/tables"
CLAIMS = {"edge_of_reach": "ravl", "penalties": "mopo", "wsrl": "wsrl"}  # whose they are


def lines(text: str) -> int:
    """Lines of code: no docstrings, comments or blanks."""
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        alone = token.type == tokenize.STRING and not token.line[: token.start[1]].strip()
        layout = (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
        if token.type not in layout and not alone:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code)


def default(tree: ast.Module, name: str):
    """That of an argument of the script; 0 where it has none of the name."""
    [args] = [x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == "Args"]
    values = [x.value for x in args.body if isinstance(x, ast.AnnAssign) and x.target.id == name]
    return ast.literal_eval(values[0]) if values else 0


def phase(text: str, tree: ast.Module) -> str:
    if default(tree, "model_members"):
        return "offline, model-based"
    if "\n    main(interact)" not in text:
        return "offline" if default(tree, "dataset") else "online"
    if not default(tree, "steps"):
        return "online, with a dataset"
    if default(tree, "online_steps"):
        return "offline, then online"
    return "offline; online if asked" + (", or tuned so" if '"online_steps": ' in text else "")


def costs() -> tuple[str, dict[str, str]]:
    """Milliseconds a step on the one core on which most scripts were timed, and which that is."""
    timed = [x for x in speed.read("script") if x["machine"]["threads"] == 1 and x["machine"]["device"] == "CPU"]
    [(cpu, _)] = Counter(x["machine"]["cpu"] for x in timed).most_common(1)
    found = {}
    for x in timed:
        if x["machine"]["cpu"] == cpu:
            best = max(x[start]["steps_per_second"] for start in ("first_start", "second_start"))
            found[x["name"]] = f"{1000 / best:.3g}" + " †" * (x.get("script") != speed.current(x["name"]))
    for x in speed.read("search"):
        if x["machine"] == {"cpu": cpu, "threads": 1, "device": "CPU"} and "hopper-v5-medium-expert" in x["name"]:
            each = mean(1000 / y["steps_per_second"] for y in x["points"])
            found["prdc"] = f"{each:.3g}" + " †" * (x.get("script") != speed.current("prdc"))
    return cpu, found


def scores() -> dict[str, list[str]]:
    """Links to the tables that an algorithm stands in."""
    found = defaultdict(list)
    for path in sorted(TABLES.glob("*-seeds.csv")):
        name = path.stem.removesuffix("-seeds")
        with open(path) as file:
            for algorithm in sorted({row["algorithm"].split()[0] for row in csv.DictReader(file)}):
                found[algorithm].append(f"[{name}](results/tables/{name}.md)")
    with open(TABLES / "equivalence.csv") as file:
        for algorithm in sorted({row["algorithm"] for row in csv.DictReader(file)}):
            found[algorithm].append("[equivalence](results/tables/equivalence.md)")
    for path in sorted((ROOT / "results/claims").glob("*.md")):
        found[CLAIMS[path.stem]].append(f"[claim](results/claims/{path.name})")
    return found


def algorithms() -> str:
    parity = json.loads((ROOT / "results/parity.json").read_text())
    rows, where, (cpu, milliseconds) = [], scores(), costs()
    verdicts = defaultdict(Counter)
    for x in compared("the end"):
        verdicts[x["algorithm"]][short(x)] += 1
    for path in sorted((ROOT / "algorithms").glob("*.py")):
        text = path.read_text()
        tree = ast.parse(text)
        docstring = ast.get_docstring(tree)
        if path.stem == "dataset":
            continue
        title, arxiv = docstring.partition(":")[0], re.search(r"arXiv:(\d+\.\d+)", docstring)
        paper = f"[{title}](https://arxiv.org/abs/{arxiv[1]})" if arxiv else title
        held = [f"{source}: {error:.0e}" for source, error in parity.get(path.stem, {}).items()]
        own = lines(text.partition("- training and evaluation")[0])
        row = [f"[`{path.name}`](algorithms/{path.name})", paper]
        row += [
            phase(text, tree),
            f"{own} / {lines(text)}",
            ", ".join(held) or "own tests",
            ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts[path.stem].items())),
            milliseconds.get(path.stem, ""),
        ]
        rows.append([*row, ", ".join(where[path.stem]) or "none yet"])
    head = ["script", "paper", "phase", "lines of code", "update held to: largest error", "beside official scores"]
    return pipes([[*head, f"ms a step ({cpu})", "scores here"], *rows])


def summary() -> str:
    parity = json.loads((ROOT / "results/parity.json").read_text())
    errors = sorted((max(found.values()), script) for script, found in parity.items())
    scripts = len(list((ROOT / "algorithms").glob("*.py"))) - 1  # without dataset.py
    (worst, worst_script), (middle, _) = errors[-1], errors[len(errors) // 2]
    equal = f"agree in float64 in {len(parity)} of {scripts} scripts; relative error at most {worst:.0e} "
    equal += f"({worst_script}), in the median script {middle:.0e}"
    told = []
    places = {"at the end": "the end", "over the curve": "the mean of the curve"}
    for name, place in (places | {"at the end from equal draws": "the end, same draws"}).items():
        verdicts = Counter(map(short, compared(place)))
        told.append(f"{name} {', '.join(f'{verdicts[x]} {x}' for x in ('equivalent', 'different', 'open'))}")
    ratios = defaultdict(list)
    for x in speed.read("peer"):
        code, _, script = x["name"].rpartition("-")
        torch = speed.TORCH[0] in speed.PEERS[code][1][script][1]
        ratios[f"{speed.CODES[code]} ({'PyTorch' if torch else 'JAX'})"].append((speed.ratio(x)[1], script))
    each = lambda found: " to ".join(
        dict.fromkeys(f"{ratio:.1f} ({script})" for ratio, script in (found[0], found[-1]))
    )
    times = "; ".join(f"{each(sorted(found))} × {code}" for code, found in sorted(ratios.items()))
    rows = [
        ["[updates](#algorithms) beside official code's", equal],
        ["[scores](results/tables/equivalence.md) beside official code's, by dataset", "; ".join(told)],
    ]
    return pipes(
        [["claim", "measured"], *rows, ["[updates/s](results/tables/speed.md#beside-peers), one CPU core", times]]
    )


def short(x: dict[str, str]) -> str:
    return x["verdict"].replace("too few seeds to tell", "open")


def compared(place: str) -> list[dict[str, str]]:
    """Our scores beside the official code's, at "the end" or in "the mean of the curve", also from the "same draws"."""
    with open(TABLES / "equivalence.csv") as file:
        return [x for x in csv.DictReader(file) if x["at"] == place]


def equivalence() -> str:
    parity = json.loads((ROOT / "results/parity.json").read_text())
    ratios = {x["name"]: speed.in_turn(x)[-1] for x in speed.read("peer")}
    gap = lambda x: f"{float(x['difference']):+.1f} [{float(x['low']):.1f}, {float(x['high']):.1f}] {short(x)}"
    paired = {(x["algorithm"], x["dataset"]): gap(x) for x in compared("the end, same draws")}
    rows = []
    for x, curve in zip(compared("the end"), compared("the mean of the curve"), strict=True):
        [error] = [v for k, v in parity[x["algorithm"]].items() if k.startswith(x["code"])]
        both = [x["ours"], f"{x['official']}, {x['code']}"]
        ratio = ratios.get(f"{x['code']}-{x['algorithm']}".lower(), "")
        gaps = [gap(x), gap(curve), paired.get((x["algorithm"], x["dataset"]), "")]
        rows.append([x["algorithm"], x["dataset"], *both, *gaps, f"{error:.0e}", ratio])
    head = ["script", "dataset", "our score (seeds)", "the official code's", "difference at the end", "over the curve"]
    return pipes([[*head, "at the end, from its draws", "error", "updates/s, ours over its"], *rows])


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text()
    for name, content in (("summary", summary()), ("algorithms", algorithms()), ("equivalence", equivalence())):
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        text = mark.sub(lambda x, content=content: f"{x[1]}\n{content}\n{x[2]}", text)
    path.write_text(text)


if __name__ == "__main__":
    main()
