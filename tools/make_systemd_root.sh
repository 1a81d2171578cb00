#!/bin/sh
# Makes the machine that tests/integration/test_systemd.py boots: Debian 12 with systemd 252 and Python 3.11, every
# package the project needs as a wheel in /opt/wheels, and those (not edgeopt itself) already in the venv /opt/edgeopt.
#   tools/make_systemd_root.sh ROOT [PYTHON]      root; needs mmdebstrap and systemd-container; about 3 minutes, 700 MB
#   EDGEOPT_SYSTEMD_ROOT=ROOT .venv/bin/pytest -m systemd tests/integration/test_systemd.py
# The root is only ever booted under an overlay, so one root serves every later run as it is.
set -eu

root=${1:?usage: make_systemd_root.sh ROOT [PYTHON]}
python=${2:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)
sources=/etc/apt/sources.list
[ ! -e /etc/apt/sources.list.d/debian.sources ] || sources=/etc/apt/sources.list.d/debian.sources

if [ ! -x "$root/lib/systemd/systemd" ]; then
    mmdebstrap --quiet --variant=minbase --mode=root \
        --include=systemd,systemd-sysv,dbus,python3,python3-venv,procps \
        --aptopt='Acquire::Languages "none"' bookworm "$root" "$sources"
    ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
fi

mkdir -p "$root/opt/wheels"
needs=$("$python" -c '
import sys, tomllib
print("\n".join(tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]))
' "$here/pyproject.toml")
constraint=''
[ ! -f "$here/constraints.txt" ] || constraint="--constraint $here/constraints.txt"
printf '%s\nsetuptools>=77\nwheel\n' "$needs" > "$root/opt/wheels/needs.txt"
# constraints.txt pins the development environment's setuptools too, which may be older than the build wants
grep -v -e '^setuptools' -e '^wheel' "$root/opt/wheels/needs.txt" > "$root/opt/wheels/run.txt"
# shellcheck disable=SC2086  # two words or none
"$python" -m pip download --quiet --dest "$root/opt/wheels" $constraint -r "$root/opt/wheels/run.txt"
"$python" -m pip download --quiet --dest "$root/opt/wheels" 'setuptools>=77' wheel

[ -x "$root/opt/edgeopt/bin/python" ] || chroot "$root" python3 -m venv /opt/edgeopt
chroot "$root" /opt/edgeopt/bin/pip install --quiet --no-index --find-links /opt/wheels -r /opt/wheels/run.txt
chroot "$root" /opt/edgeopt/bin/python -m compileall -q /opt/edgeopt/lib || true
echo "$root is ready"
