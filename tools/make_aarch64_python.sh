#!/bin/sh
# Makes the aarch64 Python that tests/integration/test_aarch64.py and benchmarks/aarch64.py run under user-mode emulation: an arm64
# Debian 12 userland that is only unpacked, qemu-user 10, and aarch64 wheels of all that edgeopt needs. No chroot, no binfmt.
#   tools/make_aarch64_python.sh ROOT [PYTHON]      root; needs mmdebstrap; about two minutes, 900 MB; running it needs no root
#   EDGEOPT_AARCH64_ROOT=ROOT .venv/bin/pytest tests/integration/test_aarch64.py
# The wheels have the versions that PYTHON (default: python3) has installed, so that both sides compare like with like.
# ROOT/python is the interpreter. It emulates the processor that EDGEOPT_AARCH64_CPU names (default: max; cortex-a72, cortex-a76, ...),
# 10 to 1000 times slower than a real one: it says what is computed, never how fast.
set -eu

root=${1:?usage: make_aarch64_python.sh ROOT [PYTHON]}
python=${2:-python3}
here=$(cd "$(dirname "$0")/.." && pwd)
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

if [ ! -e "$root/site/onnxruntime" ]; then
    needs=$("$python" -c '
import re, sys, tomllib
from importlib.metadata import version
names = (re.match(r"[\w.-]+", need)[0] for need in tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"])
print("\n".join(f"{name}=={version(name)}" for name in names))' "$here/pyproject.toml")
    # shellcheck disable=SC2086  # one word a package
    "$python" -m pip download --quiet --dest "$root/wheels" --only-binary=:all: --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
        --platform manylinux2014_aarch64 $needs
    for wheel in "$root"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$root/site"; done
    rm -r "$root/wheels"
fi

# its own name as argv[0]: sys.executable is this script then, so that processes started from within are emulated too
cat > "$root/python" <<'END'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONHOME="$here/userland/usr" PYTHONPATH="$here/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
exec "$here/qemu/usr/bin/qemu-aarch64" -cpu "${EDGEOPT_AARCH64_CPU:-max}" -0 "$here/python" -L "$here/userland" \
    "$here/userland/usr/bin/python3.11" "$@"
END
chmod +x "$root/python"
"$root/python" -c 'import onnxruntime, platform, sys; print("onnxruntime", onnxruntime.__version__, "for", platform.machine(), "in", sys.executable)'
echo "$root is ready"
