"""D4RL's maze2d protocol in gymnasium-robotics: a point goes to random goals while rewards ask for one fixed goal.

`python benchmarks/collect.py solo/pointmaze-umaze-v3/waypoint-v0` makes a Minari dataset (also medium, large). The
recipe is D4RL's (Farama-Foundation/D4RL, scripts/generation/generate_maze2d_datasets.py with --noisy, as Farama's own
new collection has it, and d4rl/pointmaze/waypoint_controller.py): the point follows waypoints, one a cell of a shortest
path, by a PD controller with noise, and gets its next goal where it has reached one. The task goes on all the while:
nothing terminates, and an episode is the way to one goal, marked as truncated where the next begins. The evaluation's
environment has D4RL's fixed goal and D4RL's episode limit.

Where this differs from D4RL, beside seeds and shards:
 1. The environment is gymnasium-robotics': a reward lies within 0.45 of the goal (D4RL: 0.5), and at every reset an
    evaluation moves its goal by up to 0.25 an axis. The data's goal is the middle of the cell; from there every such
    goal is within 0.45.
 2. The reward is the environment's, of where a step has led to. D4RL asks where it came from.
 3. Goals and waypoints are up to 0.1 an axis off the middle of their cell. D4RL's lie on one side of it, an offset of
    its maze.
 4. D4RL's rows after a goal was reached repeat the state before; these go on in the true one.
 5. A shard of rows begins in a cell drawn at random; D4RL has a single trajectory.
There are no reference returns: D4RL's were measured with its own radius, starts and goals.
"""

import functools
from typing import Any

import numpy as np

MAZES = {  # Gymnasium id; D4RL's goal (row, column) and episode limit
    "pointmaze-umaze-v3": ("PointMaze_UMaze-v3", (1, 1), 300),
    "pointmaze-medium-v3": ("PointMaze_Medium-v3", (6, 6), 600),
    "pointmaze-large-v3": ("PointMaze_Large-v3", (7, 9), 800),
}
REACHED = 0.1  # distance at which a waypoint gives way to the next


def spec(name: str):
    """The environment of the evaluation."""
    import gymnasium
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    env_id, (row, column), limit = MAZES[name]
    found = gymnasium.spec(env_id)
    walls = [list(cells) for cells in found.kwargs["maze_map"]]
    walls[row][column] = "g"
    settings = {"maze_map": walls, "continuing_task": True, "reset_target": False}
    return gymnasium.envs.registration.EnvSpec(
        env_id, found.entry_point, max_episode_steps=limit, kwargs=found.kwargs | settings
    )


@functools.cache  # once a process
def make(name: str):
    import gymnasium

    return gymnasium.make(spec(name), max_episode_steps=-1, disable_env_checker=True)


def goal(name: str) -> np.ndarray:
    """Where the rewards are: the middle of D4RL's cell."""
    return make(name).unwrapped.maze.cell_rowcol_to_xy(np.array(MAZES[name][1]))


def rollout(name: str, seeds: np.random.SeedSequence, rows: int) -> dict[str, np.ndarray]:
    """Whole ways to a goal until there are `rows` transitions; the last state of one is the first of the next."""
    env, rng, limit = make(name), np.random.default_rng(seeds), MAZES[name][2]
    rewarded, maze = goal(name), env.unwrapped.maze
    free = [tuple(map(int, cell)) for cell in np.argwhere(np.array(maze.maze_map, object) != 1)]
    state = env.reset(seed=int(rng.integers(2**31)))[0]["observation"].astype(np.float32)
    observations, steps = [], []
    while len(steps) < rows:
        start, end = tuple(map(int, maze.cell_xy_to_rowcol(state[:2]))), free[rng.integers(len(free))]
        waypoints = [
            maze.cell_rowcol_to_xy(np.array(cell)) + rng.uniform(-0.1, 0.1, 2) for cell in path(free, start, end)
        ]
        observations.append(state)
        for left in reversed(range(limit)):
            action = np.clip(10 * (waypoints[0] - state[:2]) - state[2:], -1, 1) + rng.normal(0, 0.5, 2)
            action = np.clip(action, -1, 1).astype(np.float32)
            observation, *_, info = env.step(action)
            state = observation["observation"].astype(np.float32)
            reward = env.unwrapped.compute_reward(observation["achieved_goal"], rewarded, info)
            if np.linalg.norm(waypoints[0] - state[:2]) < REACHED:
                waypoints.pop(0)
            observations.append(state)
            steps.append((action, reward, not waypoints or not left))
            if steps[-1][-1]:
                break
    actions, rewards, truncations = zip(*steps, strict=True)
    return {
        "observations": np.array(observations),  # [rows + episodes, 4]: position and velocity
        "actions": np.array(actions),  # [rows, 2]
        "rewards": np.array(rewards, np.float32),  # [rows]
        "terminations": np.zeros(len(steps), bool),  # [rows]
        "truncations": np.array(truncations, bool),  # [rows]
    }


def path(free: list[tuple[int, int]], start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The cells of a shortest path after its start; of a path that ends where it starts, that cell."""
    towards, queue = {end: end}, [end]
    for cell in queue:
        row, column = cell
        for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if near in free and near not in towards:
                towards[near] = cell
                queue.append(near)
    cells = [towards[start]]
    while cells[-1] != end:
        cells.append(towards[cells[-1]])
    return cells


def observed(name: str, states: np.ndarray) -> dict[str, Any]:
    """States as the environment shows them: [T, 4] -> its Dict."""
    fixed = np.tile(goal(name).astype(np.float32), (len(states), 1))
    return {"achieved_goal": states[:, :2], "desired_goal": fixed, "observation": states}
