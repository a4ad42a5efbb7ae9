#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the validation tests with the current lock (TFDV 1.21, Python 3.13) in a Debian 13 root, as
# its image has it; on older systems `make test` runs them with the fallback lock.
#
#     sudo tests/validation/run_on_debian13.sh [pytest arguments]
#
# Needs root, mmdebstrap, a Debian mirror and a package index (the environment's settings for uv and
# certificates are passed on), `make setup`, and 3 GB in $TMPDIR. Takes two to three minutes and
# leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/../.."

mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
[[ $(id -u) == 0 ]] || { echo "Making a root needs root; run it with sudo." >&2; exit 1; }
for tool in mmdebstrap .venv/bin/uv; do
  command -v "$tool" >/dev/null || {
    echo "$tool is missing: install mmdebstrap (apt-get install mmdebstrap), run make setup." >&2
    exit 1
  }
done

root=$(mktemp -d)
clean_up() {
  ! mountpoint -q "$root/proc" || umount "$root/proc"
  rm -rf --one-file-system "$root"
}
trap clean_up EXIT

echo "── Debian 13 root in $root"
mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates \
  trixie "$root" "$mirror"
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp .venv/bin/uv "$root/usr/local/bin/uv"
bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
[[ ! -f $bundle ]] || cp "$bundle" "$root/etc/ssl/certs/ca-certificates.crt"
mkdir -p "$root/work" "$root/code/kfloop"
# Only what git would carry: no environments, no runs.
tar --exclude=__pycache__ -c components tests setup.cfg | tar -x -C "$root/work"
ln -s /work/components "$root/code/kfloop/components"

echo "── packages of components/validation/requirements.txt"
inside() {
  env -u SSL_CERT_DIR -u PIP_FIND_LINKS SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root chroot "$root" "$@"
}
inside python3 -m venv --without-pip /env
inside uv pip sync --quiet --no-cache --require-hashes --python /env/bin/python \
  /work/components/validation/requirements.txt
inside uv pip install --quiet --no-cache --require-hashes --python /env/bin/python \
  --target /overlay -r /work/tests/requirements.txt
inside /env/bin/python -c '
import platform
from importlib.metadata import version
tfdv = version("tensorflow-data-validation")
print("Python", platform.python_version(), "glibc", platform.libc_ver()[1], "TFDV", tfdv)'

echo "── tests"
inside sh -c 'cd /work && PYTHONPATH=/code:/overlay exec /env/bin/python -P -m pytest -q \
  -p no:cacheprovider tests/validation "$@"' sh "$@"
