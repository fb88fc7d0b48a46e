#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Installs, from the machine's own package sources, what the make targets need and this machine
# lacks. Says nothing if there is nothing to do. Usage: lab/deps.sh [PACKAGE…]
set -eu

missing=
for package in attr gcc libc6-dev qemu-system-x86 mmdebstrap debian-archive-keyring umoci \
    busybox-static e2fsprogs gdb iproute2 nftables containernetworking-plugins \
    openvswitch-switch docker-registry skopeo apache2-utils openssl socat netcat-openbsd crash dpdk-dev "$@"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done

# Newer emulators than Debian 12's hang now and then (see lab/src/machine.rs).
case $(qemu-system-x86_64 --version 2>/dev/null || true) in
'' | *'version 7.2.'*) ;;
*) missing="$missing qemu-system-x86=1:7.2*" ;;
esac

[ -n "$missing" ] || exit 0
echo "installing:$missing"
if [ "$(id -u)" != 0 ]; then
    echo "installing packages needs root: run this as root, or install them yourself" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # one word for each package
apt-get install -y -qq --no-install-recommends --allow-downgrades $missing >/dev/null
