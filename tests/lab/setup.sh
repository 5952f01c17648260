#!/bin/sh
# Installs the Debian packages that the build and the VM lab need and this machine does not have.
set -eu

missing=
has() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ]
}
for package in busybox-static e2fsprogs fuse3 mmdebstrap openssh-client openssh-server \
    openssh-sftp-server python3 python3-paramiko python3-yaml qemu-system-x86 rclone socat sshfs uidmap; do
    has "$package" || missing="$missing $package"
done
# Any C compiler will do: a dependency has some assembly.
command -v cc >/dev/null || missing="$missing build-essential"

# The guest's kernel, the agents to compare with and cloud-init are downloaded, not installed,
# but apt has to know of them.
lab="${CARGO_TARGET_DIR:-target}/lab"
if [ -z "$missing" ] && [ -d "$lab/kernel" ] && [ -d "$lab/stock/incus-agent" ] &&
    [ -d "$lab/cloud-init/current/layer" ]; then
    echo "all there"
    exit 0
fi

fail() {
    echo "setup: $1" >&2
    echo "setup: missing:${missing:- nothing but the guest's kernel}" >&2
    exit 1
}

[ "$(uname -m)" = x86_64 ] || fail "the VM lab is for x86-64; this is $(uname -m)"
command -v apt-get >/dev/null || fail "no apt-get here: install these by hand, or use Debian 12"
if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null; then
    as_root=sudo
else
    fail "neither root nor sudo: have an administrator install these"
fi

echo "setup: apt-get update"
$as_root apt-get -q=2 update || fail "apt-get update failed"
if [ -n "$missing" ]; then
    echo "setup: apt-get install$missing"
    # The tests start a server of their own on the loopback; nobody asked for one on the network.
    # One that is there already stays as it is.
    if ! has openssh-server && [ ! -e /etc/systemd/system/ssh.service ]; then
        $as_root mkdir -p /etc/systemd/system
        $as_root ln -s /dev/null /etc/systemd/system/ssh.service
    fi
    # shellcheck disable=SC2086 # words, and perhaps no sudo
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q=2 -o DPkg::Lock::Timeout=120 install --no-install-recommends $missing \
        >/dev/null ||
        fail "apt-get install failed"
fi
