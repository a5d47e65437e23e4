"""What holds of every script: it runs, reads as the others do, can be copied, and compiles what it should."""

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import re
import shutil
import sys

import blocks
import dataset as loader
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ALGORITHMS, CONDS, OFFLINE, ROOT, SCRIPTS, SHORT, command, run, sizes, where_all_learn_at_once

IN_TURN = """
import runpy, sys
for sys.argv in {commands}:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("names", [SCRIPTS[::2], SCRIPTS[1::2]], ids=["one half", "other half"])
def test_scripts_and_loader_alone_train_in_an_empty_folder(names, pendulum, tmp_path):
    """One process runs them as programs one after another: to start so many takes longer."""
    for file in (*names, "dataset"):
        shutil.copy(ALGORITHMS / f"{file}.py", tmp_path)
    flags = ("--seeds", "3", "5")
    commands = [[f"{name}.py", *command(name, pendulum, tmp_path / "out", *flags)[2:]] for name in names]
    done = run([sys.executable, "-c", IN_TURN.format(commands=commands)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in names:
        results = sorted(path for path in (tmp_path / "out").rglob("seed_*.json") if name in path.parts)
        assert [path.name for path in results] == ["seed_3.json", "seed_5.json"], done.stderr
        for path, seed in zip(results, (3, 5), strict=True):
            content = json.loads(path.read_text())
            assert content["finished"] and content["seed"] == seed and content["algorithm"] == name
            evaluations, final = content["evaluations"], content["final"]["returns"]
            assert [evaluation["step"] for evaluation in evaluations] == [20, 40]
            assert final == evaluations[-1]["returns"] and len(final) == 2
            assert "score" not in content["final"], "Pendulum has no reference scores"
            assert content["machine"]["versions"]["jax"] == jax.__version__
        one, other = ([x["metrics"] for x in json.loads(path.read_text())["evaluations"]] for path in results)
        assert one != other, "seeds differ"


ALONE = """
import sys
for package in ("dataset", "gymnasium", "minari", "tyro", "wandb", "tqdm", "h5py", "moviepy"):
    sys.modules[package] = None  # an import of it fails
import importlib
from types import SimpleNamespace
import jax, numpy as np
random, rows, last = np.random.default_rng(0), 40, np.arange(40) % 10 == 9
columns = {{"observations": random.normal(size=(rows, 3)), "next_observations": random.normal(size=(rows, 3))}}
columns |= {{"actions": random.uniform(-1, 1, (rows, 2)), "rewards": random.normal(size=rows)}}
episodes = np.stack([np.arange(0, rows, 10), np.arange(10, rows + 1, 10)], 1)
flags = {{"terminals": last, "timeouts": ~last & False, "keep": last | True, "episodes": episodes}}
columns = {{key: value.astype(np.float32) for key, value in columns.items()}}
for name, sizes in {sizes}.items():
    script = importlib.import_module(name)
    args = script.Args(batch_size=4, **sizes)
    if not hasattr(args, "dataset"):
        continue  # it makes its data itself
    data = script.prepare(args, SimpleNamespace(**columns, **flags))
    def loop(key):
        state, batch = script.init(args, data, key), script.sample(args, data, key)
        state, metrics = script.update(args, state, batch, script.draw(args, batch, key), 0)
        inputs = columns["observations"]
        if hasattr(script, "begin"):  # a sequence model acts on histories
            inputs = script.begin(state, inputs)
        return script.act(args, state, inputs)
    assert jax.eval_shape(loop, jax.random.key(0)).shape == (rows, 2), name
    print(name, file=sys.stderr)
"""


def test_algorithm_parts_of_copies_need_jax_alone(tmp_path):
    """With numpy, flax and optax, that is; importing a script runs nothing and says nothing. They are traced: all of
    their Python runs, and nothing is compiled."""
    for name in SCRIPTS:
        shutil.copy(ALGORITHMS / f"{name}.py", tmp_path)
    code = ALONE.format(sizes={name: sizes(name) for name in SCRIPTS})
    done = run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert done.stderr.split() == OFFLINE


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_every_flag_once(name, monkeypatch, capsys):
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    text = capsys.readouterr().out
    shown = module.tuned(module.Args().dataset) if name in OFFLINE else module.Args()
    for key, value in dataclasses.asdict(shown).items():
        flag = ("no-" if value is True else "") + key.replace("_", "-")
        assert len(re.findall(rf"^\W? --{flag}\b(?!-)", text, re.M)) == 1, flag


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_argument_is_explained(name):
    """One line of help a field, and the docstring names this algorithm, not the one it was copied from."""
    text = (ALGORITHMS / f"{name}.py").read_text()
    [args] = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Args"]
    for node in [node for node in args.body if isinstance(node, ast.AnnAssign)]:
        assert "  # " in text.splitlines()[node.lineno - 1], f"{node.target.id} has no help"
    docstring = ast.get_docstring(ast.parse(text))
    title = docstring.partition(":")[0]
    assert re.sub(r"\W", "", title).lower().startswith(name.replace("_", "")), title
    for part in ("Paper:", "Code:", "Differences from the official code:", "Run:", "@"):
        assert part in docstring, part


@pytest.mark.parametrize("name", OFFLINE)
def test_tuned_values_are_arguments_with_a_source(name):
    module = importlib.import_module(name)
    fields = {field.name for field in dataclasses.fields(module.Args)}
    for dataset, (source, values) in module.TUNED.items():
        assert source and values.keys() <= fields, dataset
        assert module.tuned(dataset) == dataclasses.replace(module.Args(dataset=dataset), **values)
    assert module.tuned("no-such-data") == module.Args(dataset="no-such-data")


def small(name, pendulum):
    """Args and device data of script `name` on tiny made-up data, and how its seeds start. Of two action dimensions:
    with one, EDAC's gradients of Q all have the same direction, or the opposite, and the rest is rounding."""
    module, random, rows = importlib.import_module(name), np.random.default_rng(0), np.arange(200)
    args = module.Args(dataset="made up", out=str(pendulum.parent / "runs"), batch_size=16, **sizes(name))
    columns = random.normal(size=(200, 3)), random.uniform(-1, 1, (200, 2)), random.normal(size=200)
    raw = loader.from_arrays(*columns, rows % 40 == 19, rows % 40 == 39)
    start = jax.jit(jax.vmap(functools.partial(module.init, args), in_axes=(None, 0)))
    return module, args, module.prepare(args, raw), start


@pytest.mark.parametrize("name", OFFLINE)
def test_a_seed_learns_the_same_in_any_company_and_chunks_do_not_show(name, pendulum, monkeypatch):
    """To the byte on a CPU, to rounding where all seeds learn at once; over 20 updates of seeds that differ."""
    module, args, data, start = small(name, pendulum)
    keys = jax.vmap(jax.random.split)(jnp.stack([jax.random.key(seed) for seed in (0, 1, 2)]))
    half, _ = module.train(args, data, start(data, keys[:, 0]), keys[:, 1], 0, 10)
    three, _ = module.train(args, data, half, keys[:, 1], 10, 10)
    second = jax.tree.map(lambda x: x[1:2], start(data, keys[:, 0]))
    alone, _ = module.train(args, data, second, keys[1:2, 1], 0, 20)
    train = where_all_learn_at_once(monkeypatch, module, "train", (0, 5))
    together, _ = train(args, data, start(data, keys[:, 0]), keys[:, 1], 0, 20)
    for many, one, other in zip(*map(jax.tree.leaves, (three, alone, together)), strict=True):
        if not jnp.issubdtype(many.dtype, jax.dtypes.prng_key):
            assert many[1].tobytes() == one[0].tobytes()
        if jnp.issubdtype(many.dtype, jnp.floating):
            loose = 2e-3 * float(jnp.abs(other).max()) if name == "edac" else 0  # it divides by norms near 0
            np.testing.assert_allclose(many, other, rtol=1e-4, atol=1e-5 + loose)
    assert all((x[0] != x[1]).any() for x in jax.tree.leaves(three.actor) if x.ndim > 2), "seeds differ"


@pytest.mark.parametrize("name", OFFLINE)
def test_a_delayed_update_is_skipped_not_masked(name, pendulum, monkeypatch):
    """`cond` survives vmap over seeds: were the step batched, both branches would be computed and one thrown away."""
    module, args, data, start = small(name, pendulum)
    if "jax.lax.cond(" not in inspect.getsource(module.update):
        pytest.skip("nothing is delayed")
    keys = jax.random.split(jax.random.key(0), 3)
    state = jax.eval_shape(start, data, keys)
    train = where_all_learn_at_once(monkeypatch, module, "train", (0, 5))
    program = str(jax.make_jaxpr(train, static_argnums=(0, 5))(args, data, state, keys, 0, 4))
    assert program.count("cond[") == CONDS.get(name, 1)


@pytest.mark.parametrize("name", OFFLINE)
def test_actions_stay_in_bounds(name, pendulum):
    """Whatever the parameters: here ten times the initial ones."""
    module, args, data, start = small(name, pendulum)
    state = jax.tree.map(lambda x: x[0], start(data, jax.random.split(jax.random.key(0), 1)))
    state = state._replace(actor=jax.tree.map(lambda x: 10 * x, state.actor))
    inputs = 100 * jax.random.normal(jax.random.key(1), (50, 3))
    if hasattr(module, "begin"):  # a sequence model acts on histories
        inputs = module.begin(state, inputs)
    actions = jax.jit(module.act, static_argnums=0)(args, state, inputs)
    assert actions.shape == (50, 2) and (jnp.abs(actions) <= 1).all()


def test_blocks_headers_and_imports_follow_the_rules():
    for path, text in blocks.synchronised(ROOT).items():
        assert text == path.read_text(), f"{path.name}: run `make sync`"
        assert path.parent != ALGORITHMS or not blocks.broken_rules(path)


def test_a_copy_that_drifts_is_noticed(tmp_path):
    shutil.copytree(ALGORITHMS, tmp_path / "algorithms", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    copy = tmp_path / "algorithms/bc.py"
    original = copy.read_text()
    for old, new in (("reset(seed=1000 + first", "reset(seed=2000 + first"), ('"optax>=', '"optax>=9')):
        copy.write_text(original.replace(old, new))
        assert copy.read_text() != original
        assert blocks.synchronised(tmp_path)[copy] == original
    copy.write_text(original.replace("import optax", "import optax\nimport gymnasium"))
    assert "gymnasium" in blocks.broken_rules(copy)[0]
    copy.write_text(original.replace("# <<< evaluate", ""))
    assert "mark" in blocks.broken_rules(copy)[0]


@pytest.mark.parametrize("name", ["td3_bc", "sac"])  # one that has the block main, one that has its own
def test_without_its_loader_a_copied_script_says_what_is_missing(name, tmp_path):
    shutil.copy(ALGORITHMS / f"{name}.py", tmp_path)
    done = run([sys.executable, str(tmp_path / f"{name}.py")], cwd=tmp_path)
    assert done.returncode == 2 and "dataset is missing" in done.stderr and "Traceback" not in done.stderr


def test_the_readmes_loop_runs(pendulum, tmp_path):
    """As it stands there, from the folder of the copied script, with other data and fewer steps; then what it says of
    checkpoints, on that of a run of two seeds."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    [loop], [load] = ([x for x in blocks if word in x] for word in ("update", "msgpack_restore"))
    changed = loop.replace("my_data.hdf5", str(pendulum)).replace("Hopper-v5", "Pendulum-v1")
    changed = "import numpy as np\nobservations = np.zeros((5, 3))\n" + changed.replace("(1000, 2)", "(3, 2)")
    assert changed.count("Pendulum-v1") == 1 and "(3, 2)" in changed
    flags = ("--dataset", str(pendulum), "--env", "Pendulum-v1", "--seeds", "0", "1", "--out", str(tmp_path), *SHORT)
    assert run([sys.executable, str(ALGORITHMS / "td3_bc.py"), *flags]).returncode == 0
    [group] = (path.parent for path in tmp_path.rglob("checkpoint.msgpack"))
    changed += "assert actions.shape == (5, 1)\n" + load.replace("<group>", str(group))
    changed += "assert td3_bc.act(args, state, observations).shape == (5, 1)\n"
    changed += "assert int(state.actor_opt[0].count) == 20, 'every second of its 40 steps'\n"
    (tmp_path / "loop.py").write_text(changed)
    for file in ("td3_bc.py", "dataset.py"):
        shutil.copy(ALGORITHMS / file, tmp_path)
    done = run([sys.executable, "loop.py"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
