#!/bin/sh
# gpu_check.sh OUT [PART…]: all that needs a GPU, in one call of about ten minutes; each part leaves its log in OUT.
#
#   facts      GPU, driver and versions
#   parity     tests marked gpu: error budgets, long sequences, determinism, CUDA graphs, more than 2³¹ elements
#   sanitizer  compute-sanitizer over one small forward and backward pass
#   driver     cubins of the export, launched through the CUDA driver
#   rtx        whether an engine of TensorRT for RTX runs on this GPU
#   speed      hmc-fast bench targets: the record behind the README's table (MINUTES=5 by default)
#   tune       hmc-fast kernels tune (not among the default parts: it takes long)
#
# PYTHON has hmc-fast and its dev extra. With WHEELS, a folder with hmc-fast's wheel and those of whatever PYTHON
# lacks, they are installed into a venv that also sees what PYTHON has: for machines that reach no index.
set -u
out=$1
shift
parts=${*:-facts parity sanitizer driver rtx speed}
python=${PYTHON:-.venv/bin/python}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -n "${WHEELS:-}" ]; then
    "$python" -m venv --system-site-packages "$out/venv" || exit 1
    # A venv made from a venv does not see the packages of the outer one.
    "$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' \
        >"$("$out/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/outer.pth"
    python=$out/venv/bin/python
    "$python" -m pip install --quiet --no-index --no-deps --ignore-installed "$WHEELS"/*.whl || exit 1
fi
hmc_fast="$python -P -m hmc_fast"

facts() {
    nvidia-smi && $hmc_fast doctor
}
need_gpu() {
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "torch sees no NVIDIA GPU"
        return 1
    }
}
parity() {
    need_gpu && cd "$root" && "$python" -P -m pytest -m gpu tests
}
sanitizer() {
    compute-sanitizer --tool memcheck --error-exitcode 9 "$python" -P "$root/scripts/small_pass.py"
}
driver() {
    need_gpu && "$python" -P "$root/scripts/small_checkpoint.py" "$out/small.safetensors" &&
        $hmc_fast export kernels "$out/small.safetensors" --out "$out/kernels" --check \
            --target "$("$python" -c 'import torch; print("sm_%d%d" % torch.cuda.get_device_capability())')"
}
rtx() {
    "$python" -P "$root/scripts/small_checkpoint.py" "$out/small.safetensors" &&
        $hmc_fast phantoms --out "$out/phantoms" --patients 12 --size 256 &&
        $hmc_fast export tensorrt "$out/small.safetensors" --flavour tensorrt-rtx &&
        $hmc_fast verify "$out/small.engine" --data "$out/phantoms" --require-engine
}
speed() {
    $hmc_fast bench targets --out "$out/targets" --minutes "${MINUTES:-5}"
}
tune() {
    $hmc_fast kernels tune --out "$out/proposed.json"
}

failed=""
for part in $parts; do
    echo "== $part"
    if ($part) >"$out/$part.log" 2>&1; then
        tail -n 3 "$out/$part.log"
    else
        echo "FAILED, code $?; the end of $out/$part.log:"
        tail -n 8 "$out/$part.log"
        failed="$failed $part"
    fi
done
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
