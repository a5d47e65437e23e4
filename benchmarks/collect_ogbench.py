"""OGBench's datasets that need no trained policy, collected again: its recipe, its environments and oracles, its files.

`python benchmarks/collect.py cube-single-play-v0` makes <name>.npz and <name>-val.npz in $OGBENCH_DATA_DIR or
~/.ogbench/data, with the keys, types and counts of the published files (Park et al., 2025, arXiv:2410.20092), so that
ogbench's own loader takes them for these. They follow the recipe of the published data, and are other data. A key that
published files lack, `solo_recipe`, tells them apart: `dataset.load` calls their benchmark "OGBench-regenerated".

The recipe is that of seohongpark/ogbench @1d41409, data_gen_scripts (generate_locomaze.py, generate_manipspace.py and
their arguments in commands.sh); the installed package brings environments and oracles, but not these loops:
  navigate   a point walks from a random free cell to random goals, a new one whenever it has reached one: the direction
             of the next cell on a shortest path, with noise
  play       an arm pursues random targets, a new one whenever a plan has run out, by plans with noise

Where this differs from upstream:
 1. Everything is seeded. Upstream's --seed reaches none of these sets.
 2. An episode depends on its shard of SHARD episodes and on nothing before that, so that processes can share the work.
    The validation set has seeds of its own instead of going on where the training set ended.
 3. The package is today's. Since its 1.2, a point gets its next goal one step later than when the files were made.
"""

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = {  # training episodes, rows of each; a row more than transitions, since the last one is only a successor
    "pointmaze-medium-navigate-v0": (1000, 1001),
    "pointmaze-large-navigate-v0": (1000, 1001),
    "pointmaze-giant-navigate-v0": (500, 2001),
    "pointmaze-teleport-navigate-v0": (1000, 1001),
    "cube-single-play-v0": (1000, 1001),
    "cube-double-play-v0": (1000, 1001),
    "scene-play-v0": (1000, 1001),
    "puzzle-3x3-play-v0": (1000, 1001),
    "puzzle-4x4-play-v0": (1000, 1001),
}
SHARD = 5  # episodes that a process collects between two files; with another number the data is another
STACKING = {"single": (0, 0), "double": (0, 0.25)}  # bounds of the chance that a cube's target is on another cube
TYPES = {"terminals": bool, "button_states": np.int64}  # of the columns; the others are float32


# ---------------------------------------------------------------------------------------------------------- episodes


@functools.cache  # once a process: an arm takes a second to build
def make(name: str, rows: int):
    import gymnasium

    *words, _, version = name.split("-")
    mode = {} if words[0] == "pointmaze" else {"mode": "data_collection"}
    how = {"terminate_at_goal": False, "max_episode_steps": rows, "disable_env_checker": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a display, which nobody needs here
        import ogbench  # noqa: F401  registers its environments

        return gymnasium.make("-".join([*words, version]), **how, **mode)


def rollout(name: str, rows: int, seeds: np.random.SeedSequence, episodes: int) -> dict[str, np.ndarray]:
    """Columns of episodes x rows, as the files have them: `qpos` and `qvel` are the state that a row observes."""
    env, rng = make(name, rows), np.random.default_rng(seeds)
    np.random.seed(int(rng.integers(2**32)))  # mazes and oracles draw from NumPy's global generator,
    env.reset(seed=int(rng.integers(2**31)))  # the arm's environments from their own: every reset below goes on in it
    record = navigate if name.startswith("pointmaze") else play
    steps = [step for _ in range(episodes) for step in record(name, env, rng)]
    return {key: np.array([step[key] for step in steps], TYPES.get(key, np.float32)) for key in steps[0]}


def navigate(name: str, env, rng: np.random.Generator) -> list[dict[str, Any]]:
    maze, steps, over = env.unwrapped, [], False
    free, goals = cells(maze.maze_map)
    task = {"init_ij": free[rng.integers(len(free))], "goal_ij": goals[rng.integers(len(goals))]}
    observation, _ = env.reset(options={"task_info": task})
    while not over:
        direction = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)[0] - maze.get_xy()
        direction /= np.linalg.norm(direction) + 1e-6
        action = np.clip(direction + rng.normal(0, 0.5, direction.shape), -1, 1)
        successor, _, _, over, info = env.step(action)
        steps.append(row(observation, action, over, info))
        observation = successor
        if info["success"]:
            maze.set_goal(goals[rng.integers(len(goals))])
    return steps


def cells(walls: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The free cells of a maze, and those of them that may be goals: all but the insides of straight corridors."""
    free = [(int(i), int(j)) for i, j in np.argwhere(walls == 0)]
    around = {(i, j): [walls[i - 1, j], walls[i + 1, j], walls[i, j - 1], walls[i, j + 1]] for i, j in free}
    return free, [cell for cell in free if around[cell] not in ([0, 0, 1, 1], [1, 1, 0, 0])]


def play(name: str, env, rng: np.random.Generator) -> list[dict[str, Any]]:
    agents, steps, over = oracles(name, env), [], False
    observation, info = env.reset()
    p_stack = rng.uniform(*STACKING.get(name.split("-")[1], (0.5, 0.5)))
    agent = agents[info["privileged/target_task"]]
    agent.reset(observation, info)
    while not over:
        action = np.clip(agent.select_action(observation, info), -1, 1)
        successor, _, _, over, info = env.step(action)
        steps.append(row(observation, action, over, info))
        observation = successor
        if agent.done:
            _, target = now = env.unwrapped.set_new_target(p_stack=p_stack)
            agent = agents[target["privileged/target_task"]]
            agent.reset(*now)
    return steps if not name.startswith("scene") or in_sight(steps) else play(name, env, rng)


def oracles(name: str, env) -> dict[str, Any]:
    """By the kind of target."""
    from ogbench.manipspace.oracles.plan import button_plan, cube_plan, drawer_plan, window_plan

    how = {"env": env, "noise": 0.1, "noise_smoothing": 0.5}
    if name.startswith("puzzle"):
        return {"button": button_plan.ButtonPlanOracle(gripper_always_closed=True, **how)}
    agents = {"cube": cube_plan.CubePlanOracle(**how)}
    if name.startswith("scene"):
        agents["button"] = button_plan.ButtonPlanOracle(**how)
        agents["drawer"] = drawer_plan.DrawerPlanOracle(**how)
        agents["window"] = window_plan.WindowPlanOracle(**how)
    return agents


def in_sight(steps: list[dict[str, Any]]) -> bool:
    """Whether the cube stayed on the table or in the drawer, where the scene's cameras see it."""
    _, y, z = np.array([step["qpos"][14:17] for step in steps]).T
    return not (y >= 0.29).any() and not ((y <= -0.3) & ((z < 0.06) | (z > 0.08))).any()


def row(observation, action, over: bool, info: dict[str, Any]) -> dict[str, Any]:
    state = {"qpos": info["prev_qpos"], "qvel": info["prev_qvel"]}
    if "prev_button_states" in info:
        state["button_states"] = info["prev_button_states"]
    return {"observations": observation, "actions": action, "terminals": over, **state}


# ------------------------------------------------------------------------------------------------------------- files


def write(path: Path, shards: list[Path], label: dict[str, Any]) -> None:
    """One file of these shards, labelled as not the published one."""
    with np.load(shards[0]) as file:
        keys = file.files
    columns = {key: np.concatenate([_column(shard, key) for shard in shards]) for key in keys}
    np.savez_compressed(path, **columns, solo_recipe=json.dumps(label))


def _column(shard: Path, key: str) -> np.ndarray:
    with np.load(shard) as file:
        return file[key]


def read(path: Path) -> dict[str, Any]:
    """The label of a file.

    Raises:
        OSError, ValueError, KeyError: there is no such file, or it has no label.
    """
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file["solo_recipe"]))
