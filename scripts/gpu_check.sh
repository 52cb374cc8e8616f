#!/bin/sh
# gpu_check.sh OUT [PART…]: all that needs a GPU, in one call; each part leaves its log in OUT.
#
#   facts      GPU, driver and versions
#   parity     tests marked gpu: error budgets, long sequences, determinism, CUDA graphs, more than 2³¹ elements
#   speed      hmc-fast bench targets: the record behind the README's table (MINUTES=5 by default)
#   sanitizer  compute-sanitizer over one small forward and backward pass and an engine kernel
#   driver     cubins of the export, launched through the CUDA driver
#   rtx        whether an engine of TensorRT for RTX runs on this GPU; either answer is a result
#   tune       hmc-fast kernels tune (not among the default parts: it takes long)
#
# PYTHON has hmc-fast and its dev extra. With WHEELS, a folder with hmc-fast's wheel and those of whatever PYTHON
# lacks, they are installed into a venv that also sees what PYTHON has: for machines that reach no index.
# PROCESSES (4) run the tests.
set -u
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 1
shift
parts=${*:-facts parity speed sanitizer driver rtx}
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
python=${PYTHON:-$root/.venv/bin/python}
case $python in
*/*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") || exit 1 ;;
esac
if [ -n "${WHEELS:-}" ]; then
    "$python" -m venv --system-site-packages "$out/venv" || exit 1
    # A venv made from a venv does not see the packages of the outer one.
    "$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' \
        >"$("$out/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/outer.pth"
    python=$out/venv/bin/python
    # The wheel is checked, not the checkout that the tests lie in.
    export PYTHONSAFEPATH=1
    "$python" -m pip install --quiet --no-index --no-deps --ignore-installed "$WHEELS"/*.whl || exit 1
fi
hmc_fast() {
    "$python" -m hmc_fast "$@"
}
need_gpu() {
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "torch sees no NVIDIA GPU"
        return 1
    }
}
small_checkpoint() {
    [ -f "$out/small.safetensors" ] || "$python" "$root/scripts/small_checkpoint.py" "$out/small.safetensors"
}

facts() {
    nvidia-smi && hmc_fast doctor
}
parity() {
    need_gpu && cd "$root" && "$python" -m pytest -m gpu tests --numprocesses "${PROCESSES:-4}"
}
speed() {
    hmc_fast bench targets --out "$out/targets" --minutes "${MINUTES:-5}"
}
sanitizer() {
    # Every tensor in an allocation of its own: in PyTorch's pools a stray access hits another tensor.
    checked="compute-sanitizer --tool memcheck --error-exitcode 9"
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    need_gpu && $checked "$python" "$root/scripts/small_pass.py" || return 1
    if $checked "$python" "$root/scripts/small_pass.py" --stray; then
        echo "a planted stray write was not found: the sanitizer proves nothing here"
        return 1
    fi
    echo "no stray access, and the planted one was found"
}
driver() {
    need_gpu && small_checkpoint &&
        hmc_fast export kernels "$out/small.safetensors" --out "$out/kernels" --check \
            --target "$("$python" -c 'import torch; print("sm_%d%d" % torch.cuda.get_device_capability())')"
}
rtx() {
    small_checkpoint || return 1
    [ -d "$out/phantoms" ] || hmc_fast phantoms --out "$out/phantoms" --patients 12 --size 256 || return 1
    hmc_fast export tensorrt "$out/small.safetensors" --flavour tensorrt-rtx || return 1
    if hmc_fast verify "$out/small.engine" --data "$out/phantoms" --require-engine; then
        echo "answer: TensorRT for RTX runs on this GPU"
    else
        echo "answer: TensorRT for RTX does not run on this GPU, or is wrong there; the reason is above"
    fi
}
tune() {
    hmc_fast kernels tune --out "$out/proposed.json"
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
