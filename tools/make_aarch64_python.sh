#!/bin/sh
# Makes the aarch64 Python that tests/integration/test_aarch64.py and benchmarks/aarch64.py run under user-mode emulation: an arm64
# Debian 12 userland that is only unpacked, qemu-user 10 and aarch64 wheels of numpy and onnxruntime. No chroot, no binfmt, no GPU.
#   tools/make_aarch64_python.sh ROOT [PYTHON]      root; needs mmdebstrap; about one minute, 700 MB; running it needs no root
#   EDGEOPT_AARCH64_ROOT=ROOT .venv/bin/pytest tests/integration/test_aarch64.py
# PYTHON (default: python3) decides the versions: what it has of numpy and onnxruntime is what aarch64 gets, so that both compare like with like.
# ROOT/run -cpu NAME SCRIPT ... then runs a script; emulation says what is computed, never how fast.
set -eu

root=${1:?usage: make_aarch64_python.sh ROOT [PYTHON]}
python=${2:-python3}
sources=/etc/apt/sources.list
[ ! -e /etc/apt/sources.list.d/debian.sources ] || sources=/etc/apt/sources.list.d/debian.sources
mirror=$(awk '/^URIs:/{print $2; exit} /^deb /{print $2; exit}' "$sources")
mkdir -p "$root"
root=$(cd "$root" && pwd)

# unpacked packages are enough: nothing of arm64 runs here without the emulator
[ -x "$root/userland/usr/bin/python3.11" ] || mmdebstrap --quiet --mode=root --variant=extract --architectures=arm64 \
    --aptopt='Acquire::Languages "none"' --include=python3.11-minimal,libpython3.11-stdlib,libstdc++6,libgcc-s1,libc6 \
    bookworm "$root/userland" "$sources"

# Debian 12's own qemu 7.2 crashes in onnxruntime 1.28 and later
[ -x "$root/qemu/usr/bin/qemu-aarch64" ] || mmdebstrap --quiet --mode=root --variant=extract \
    --aptopt='Acquire::Languages "none"' --include=qemu-user trixie "$root/qemu" \
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main"

if [ ! -d "$root/site/onnxruntime" ]; then
    wanted=$("$python" -c '
from importlib.metadata import version
print(" ".join(f"{name}=={version(name)}" for name in ("numpy", "onnxruntime")))')
    # shellcheck disable=SC2086  # two words
    "$python" -m pip download --quiet --dest "$root/wheels" --only-binary=:all: --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 $wanted
    for wheel in "$root"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$root/site"; done
fi

cat > "$root/run" <<'END'
#!/bin/sh
# run -cpu cortex-a76 SCRIPT ARGUMENTS ...
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/site" PYTHONDONTWRITEBYTECODE=1
cpu=$2
shift 2
exec "$here/qemu/usr/bin/qemu-aarch64" -cpu "$cpu" -L "$here/userland" "$here/userland/usr/bin/python3.11" "$@"
END
chmod +x "$root/run"
"$root/run" -cpu max -c 'import onnxruntime; print("onnxruntime", onnxruntime.__version__, "for", __import__("platform").machine())'
echo "$root is ready"
