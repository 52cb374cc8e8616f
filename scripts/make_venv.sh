#!/bin/sh
# make_venv.sh PYTHON FOLDER: a virtual environment, also where Debian left out python3-venv.
set -eu
python=$1
folder=$2
if ! command -v "$python" >/dev/null; then
    echo "make: $python is not installed; install Python 3.11 or newer" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "make: $("$python" --version) is too old; use PYTHON=python3.11 or newer" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    if ! command -v apt-get >/dev/null || { [ -n "$sudo" ] && ! sudo -n true 2>/dev/null; }; then
        echo "make: the venv module is missing; install the package $package and try again" >&2
        exit 1
    fi
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq "$package" ca-certificates
fi
rm -rf "$folder"
"$python" -m venv "$folder"
