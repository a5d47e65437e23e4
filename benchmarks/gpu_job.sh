#!/usr/bin/env bash
# Speed and the solo table on a GPU machine that has no network, in calls of some minutes. In the repository's root:
#
#     benchmarks/gpu_job.sh wheels                 # where there is a network: what that machine lacks, into .wheels/
#     OUT=<folder> benchmarks/gpu_job.sh run 570   # there, for 570 seconds; again to go on
#     benchmarks/gpu_job.sh keep <folder>          # here: JSON into results/, all of it for the next call into .gpu/
#
# The machine has Python with JAX, flax, optax, h5py, scipy, tqdm, packaging and pillow; .wheels/ and .gpu/ travel with
# the repository (git ignores both). A call collects the data that is missing from the committed policies, times the scripts once, then goes
# on with benchmarks/grids/solo.toml where the last call stopped, on a machine that has been wiped too. The folder gets
# JSON and checkpoints as parts of an archive. PYTHON, GRID, STEPS, SEEDS, ROWS and TIMED (which scripts) may be set; a
# dry run on a CPU is
#
#     PYTHON=.venv/bin/python STEPS=200 SEEDS=0,1 ROWS=5000 TIMED=bc OUT=/tmp/gpu benchmarks/gpu_job.sh run 300
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} GRID=${GRID:-benchmarks/grids/solo.toml} STEPS=${STEPS:-1000000} ROWS=${ROWS:-1000000}
SEEDS=${SEEDS:-0,1,2,3,4,5,6,7,8,9} WORK=data/gpu

wheels() { # for Python $1, by default 3.12, on x86-64
    rm -rf .wheels
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --dest .wheels -c constraints.txt \
        --python-version "${1:-3.12}" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        gymnasium farama-notifications mujoco mujoco-core glfw pyopengl imageio minari portion sortedcontainers \
        tyro docstring-parser typeguard
    du -sh .wheels
}

run() { # for $1 seconds
    local until=$((SECONDS + ${1:-570} - 30)) # half a minute to pack
    mkdir -p "$WORK/site" "$OUT"
    if [ ! -d "$WORK/runs" ] && ls .gpu/state.* > /dev/null 2>&1; then cat .gpu/state.* | tar -xz -C "$WORK"; fi
    if [ -d .wheels ] && [ ! -d "$WORK/site/tyro" ]; then
        "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$WORK/site" .wheels/*.whl
    fi
    export PYTHONPATH="$PWD/$WORK/site" MINARI_DATASETS_PATH="$PWD/$WORK/minari" JAX_COMPILATION_CACHE_DIR="$PWD/$WORK/jax"
    local data
    data=$("$PYTHON" -c "import sys, tomllib; print(*tomllib.load(open(sys.argv[1], 'rb'))['datasets'])" "$GRID")
    mkdir -p "$MINARI_DATASETS_PATH"
    within "$until" "$PYTHON" benchmarks/collect.py $data --transitions "$ROWS"
    mkdir -p "$WORK/timed"
    local what
    for what in ${TIMED-scaling bc td3_bc iql rebrac fql awac xql a2pr spot cql cal_ql sac_n edac dt wsrl prdc}; do
        if [ -f "$WORK/timed/$what" ]; then continue; fi
        if [ "$what" = scaling ]; then set -- scaling; else set -- scripts --only "$what"; fi
        if ! within "$until" "$PYTHON" benchmarks/speed.py "$@"; then
            echo "$what was not timed"
        elif [ $((until - SECONDS)) -gt 5 ]; then # else it was cut off, or did not begin
            touch "$WORK/timed/$what"
        fi
    done
    within "$until" "$PYTHON" benchmarks/sweep.py --grid "$GRID" --seeds "$SEEDS" --out "$WORK/runs" \
        --flags steps="$STEPS" eval-every=$((STEPS / 20)) || echo "a run failed"
    mkdir -p "$WORK/speed" && cp results/speed/*.json "$WORK/speed"
    local kept=(speed) name
    for name in runs timed; do if [ -e "$WORK/$name" ]; then kept+=("$name"); fi; done
    tar -cz -C "$WORK" "${kept[@]}" | split -b 15M - "$OUT/state."
    ls -l "$OUT"
}

within() { # until $1, the rest of the line; then as if by Ctrl-C, which is no failure
    local seconds=$(($1 - SECONDS)) code=0
    shift
    if [ "$seconds" -le 5 ]; then return 0; fi
    timeout --signal=INT --kill-after=15 "$seconds" "$@" || code=$?
    if [ "$code" -ne 124 ] && [ "$code" -ne 137 ]; then return "$code"; fi
}

keep() { # what a call left in $1
    rm -rf .gpu && mkdir .gpu && cp "$1"/state.* .gpu
    mkdir -p "$WORK/back" && cat .gpu/state.* | tar -xz -C "$WORK/back"
    cp "$WORK"/back/speed/*.json results/speed
    if [ -d "$WORK/back/runs" ]; then
        (cd "$WORK/back/runs" && find . -name 'seed_*.json' -exec cp --parents {} ../../../../results/runs \;)
    fi
}

"$@"
