#!/bin/sh
# make_tritonserver_env.sh FOLDER: a real Triton Inference Server for system tests, from PyPI. It has
# the Python backend alone and needs no GPU. What it requires of Python is left out, since it pins
# NumPy 1: its models run in the environment that is tested, on that Python's shared library.
set -eu
folder=$1
release=0.7.0
python=${PYTHON:-python3}
[ -e "$folder/made-$release" ] && exit 0
mkdir -p "$(dirname "$folder")"
new=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$new"' EXIT
"$python" -m pip install --quiet --no-compile --no-deps --only-binary :all: --target "$new" "nvidia-pytriton==$release"
touch "$new/made-$release"
rm -rf "$folder"
mv "$new" "$folder"
