#!/bin/sh
# install_servers.sh: the programs that system tests talk to, from Debian's packages. It changes the
# machine, so only CI calls it by itself. A test whose program is missing is skipped and counted.
set -eu
packages="
chromium
dcmtk
dicom3tools
iproute2
munge
orthanc
slurm-client
slurmctld
slurmd
"
missing=""
for package in $packages; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
# Services are started by the tests that need them, on ports of their own.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get update -qq
# shellcheck disable=SC2086  # a list of words is meant
apt-get install -y -qq --no-install-recommends $missing
