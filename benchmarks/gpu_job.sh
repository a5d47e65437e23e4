#!/usr/bin/env bash
# Speed and the solo table on a GPU machine that has no network, in calls of some minutes. In the repository's root:
#
#     benchmarks/gpu_job.sh wheels                 # where there is a network: what that machine lacks, into .wheels/
#     OUT=<folder> benchmarks/gpu_job.sh run 570   # there, for 570 seconds; again to go on
#     benchmarks/gpu_job.sh keep <folder>          # here: JSON into results/, all of it for the next call into .gpu/
#
# The machine has Python with JAX, flax, optax, h5py, scipy, tqdm, packaging and pillow. .wheels/ and .gpu/, which git
# ignores, must be named in what is carried there: with the repository they may weigh 64 MiB, and 64 MiB may come back,
# in eight files. A call times the scripts that are not timed yet, collects the data that is missing from the committed
# policies, then goes on with benchmarks/grids/solo.toml where the last call stopped, on a machine that has been wiped
# too: the folder gets all JSON, and the checkpoints of runs that are not finished. Those may weigh more than can be
# carried back there (ten seeds of ReBRAC 55 MB): then a call soon after the last, while the machine is held, goes on
# without them. PYTHON, GRID, STEPS, SEEDS, ROWS and TIMED (which scripts; `buffers` and `tf32` are TD3+BC with CUDA
# graphs for its loop, and with tf32 products) may be set; a dry run on a CPU is
#
#     PYTHON=.venv/bin/python STEPS=200 SEEDS=0,1 ROWS=5000 TIMED=bc OUT=/tmp/gpu benchmarks/gpu_job.sh run 300
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} GRID=${GRID:-benchmarks/grids/solo.toml} STEPS=${STEPS:-1000000} ROWS=${ROWS:-1000000}
SEEDS=${SEEDS:-0,1,2,3,4,5,6,7,8,9} WORK=data/gpu
GRAPHS=--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL

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
    touch "$WORK/began"
    if [ ! -d "$WORK/runs" ] && [ -f .gpu/json.tgz ]; then
        tar -xzf .gpu/json.tgz -C "$WORK"
        if ls .gpu/state.* > /dev/null 2>&1; then cat .gpu/state.* | tar -xz -C "$WORK"; fi
    fi
    if [ -d .wheels ] && [ ! -d "$WORK/site/tyro" ]; then
        "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$WORK/site" .wheels/*.whl
    fi
    export PYTHONPATH="$PWD/$WORK/site" MINARI_DATASETS_PATH="$PWD/$WORK/minari"
    export JAX_COMPILATION_CACHE_DIR="$PWD/$WORK/jax"
    mkdir -p "$MINARI_DATASETS_PATH" "$WORK/timed"
    local what
    for what in ${TIMED-td3_bc buffers tf32 scaling bc iql rebrac fql cql}; do
        if [ -f "$WORK/timed/$what" ]; then continue; fi
        if ! timed "$until" "$what"; then
            echo "$what was not timed"
        elif [ $((until - SECONDS)) -gt 5 ]; then # else it was cut off, or did not begin
            touch "$WORK/timed/$what"
        fi
    done
    local data
    data=$("$PYTHON" -c "import sys, tomllib; print(*tomllib.load(open(sys.argv[1], 'rb'))['datasets'])" "$GRID")
    within "$until" "$PYTHON" benchmarks/collect.py $data --transitions "$ROWS" || echo "not all data was collected"
    same_data "${data%% *}"
    within "$until" "$PYTHON" benchmarks/sweep.py --grid "$GRID" --seeds "$SEEDS" --out "$WORK/runs" \
        --flags steps="$STEPS" eval-every=$((STEPS / 20)) || echo "a run failed"
    pack
}

timed() { # until $1, of $2
    case $2 in
    scaling) within "$1" "$PYTHON" benchmarks/speed.py scaling ;;
    buffers) XLA_FLAGS=$GRAPHS within "$1" "$PYTHON" benchmarks/speed.py scripts --only td3_bc ;;
    tf32) JAX_DEFAULT_MATMUL_PRECISION=tensorfloat32 within "$1" "$PYTHON" benchmarks/speed.py scripts --only td3_bc ;;
    *) within "$1" "$PYTHON" benchmarks/speed.py scripts --only "$2" ;;
    esac
}

same_data() { # of $1: a machine with another processor collects other bytes, and no run goes on with those
    local hash
    hash=$(PYTHONPATH=algorithms:$PYTHONPATH "$PYTHON" -c \
        "import dataset, sys; print(dataset.load(sys.argv[1]).sha256)" "$1") || return 0
    if [ -f "$WORK/data.sha256" ] && [ "$hash" != "$(cat "$WORK/data.sha256")" ] && [ -d "$WORK/runs" ]; then
        echo "the data is other than in the last call: what is unfinished starts over"
        find "$WORK/runs" -name checkpoint.msgpack -delete
    fi
    echo "$hash" > "$WORK/data.sha256"
}

pack() { # JSON first, then the checkpoints that are still needed
    mkdir -p "$WORK/speed" "$WORK/runs"
    find results/speed -name '*.json' -newer "$WORK/began" -exec cp {} "$WORK/speed" \;
    local kept=(speed timed) folder
    if [ -f "$WORK/data.sha256" ]; then kept+=(data.sha256); fi
    (cd "$WORK" && find runs -name 'seed_*.json' > json.list && printf '%s\n' "${kept[@]}" >> json.list)
    tar -czf "$OUT/json.tgz" -C "$WORK" -T "$WORK/json.list"
    for folder in $(find "$WORK/runs" -name checkpoint.msgpack -printf '%h\n'); do
        if [ -z "$(grep -L '^"finished": true' "$folder"/seed_*.json || true)" ]; then rm "$folder/checkpoint.msgpack"; fi
    done
    (cd "$WORK" && find runs -name checkpoint.msgpack > state.list)
    rm -f "$OUT"/state.* # of an earlier call, which may have had more
    if [ -s "$WORK/state.list" ]; then tar -cz -C "$WORK" -T "$WORK/state.list" | split -b 15M - "$OUT/state."; fi
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
    rm -rf .gpu "$WORK/back" && mkdir -p .gpu "$WORK/back"
    cp "$1"/json.tgz .gpu
    tar -xzf .gpu/json.tgz -C "$WORK/back"
    cp "$WORK"/back/speed/*.json results/speed 2> /dev/null || echo "nothing was timed"
    if [ -d "$WORK/back/runs" ]; then
        (cd "$WORK/back/runs" && find . -name 'seed_*.json' -exec cp --parents {} ../../../../results/runs \;)
    fi
    if ls "$1"/state.* > /dev/null 2>&1; then cp "$1"/state.* .gpu; fi
    du -sh .gpu
}

"$@"
