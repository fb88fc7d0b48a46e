#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Builds the guest's kernel from Debian's source package and the fragments beside this script.
# Usage: guest/kernel/build.sh OUTPUT-FOLDER
#
#   vmlinux         the kernel, as the VMM loads it
#   vmlinux.debug   the same with symbols and types, for gdb and crash
#   config          the configuration, whole
#
# What was built of the same fragments, script, source and compiler before is taken from the cache. Needs Debian 12; as
# root it installs what is missing.
set -euo pipefail

source_package=linux-source-6.1
tarball=/usr/src/$source_package.tar.xz
# Of each place that a function returns from the kernel asks itself at each boot how it is to be patched: one such place
# in seven is a copy, which this keeps the compiler from making. Types and lines are what a debugger needs; where each
# variable is at each instruction would take as much again, in time and in size.
flags='--param max-grow-copy-bb-insns=1 -fno-var-tracking'
packages=(gcc libc6-dev make bc bison flex libelf-dev libssl-dev perl xz-utils "$source_package")

here=$(cd "$(dirname "$0")" && pwd)
output=${1:?usage: build.sh OUTPUT-FOLDER}
cache=${CORACLE_CACHE:-$here/../../.cache}/kernel

say() { printf 'kernel: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

state() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null || true; }

version() { dpkg-query -W -f '${Version}' "$1"; }

install_packages() {
    local package missing=()
    for package in "${packages[@]}"; do
        [ "$(state "$package")" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} != 0 ] || return 0
    say "installing ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "installing packages needs root: run this as root, or install them yourself"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# All that the result depends on, in one word.
key() {
    {
        cat "$here"/*.config "$0"
        version "$source_package"
        gcc --version
        ld --version
    } | sha256sum | cut -c 1-16
}

# configure SOURCE: what no fragment names is off. An option that Kconfig knew better is an error, and so is one that two
# fragments name.
configure() {
    local wrong=0 option value have
    cat "$here"/*.config >"$1/fragments"
    make -s -C "$1" KCONFIG_ALLCONFIG=fragments allnoconfig >"$1/log" 2>&1 ||
        { cat "$1/log" >&2; die "the fragments are not understood"; }
    while read -r option; do
        say "$option is in two fragments"
        wrong=1
    done < <(sed -n 's/^\(CONFIG_[^=]*\)=.*/\1/p' "$1/fragments" | sort | uniq -d)
    while IFS='=' read -r option value; do
        have=$(sed -n "s/^$option=//p" "$1/.config")
        [ "${have:-n}" = "$value" ] && continue
        say "$option is ${have:-n} and not $value: see what it depends on, or what selects it"
        wrong=1
    done < <(grep '^CONFIG_' "$1/fragments")
    [ $wrong = 0 ] || exit 1
}

# Shows how many files were compiled, on one line of a terminal, or now and then elsewhere.
progress() {
    local count=0 line
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$1"
        case $line in '  CC '* | '  AS '*) count=$((count + 1)) ;; *) continue ;; esac
        if [ -t 2 ]; then
            printf '\rkernel: %d files compiled, %d s ' $count $SECONDS >&2
        elif [ $((count % 500)) = 0 ]; then
            say "$count files compiled, $SECONDS s"
        fi
    done
    [ ! -t 2 ] || printf '\r\033[K' >&2
}

# build RESULT-FOLDER: in a folder that has always the same name, since debug information names it. The caller holds the
# lock, so whatever stands there was left by a build that was killed.
build() {
    local work=$cache/build
    rm -rf "$work"
    mkdir "$work"
    trap 'rm -rf "$cache/build"' EXIT
    trap 'exit 1' INT TERM HUP
    say "unpacking $source_package $(version "$source_package")"
    tar -C "$work" --strip-components=1 -xf "$tarball"
    configure "$work"
    # Equal inputs give equal files.
    export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 2026' KBUILD_BUILD_VERSION=1
    export KBUILD_BUILD_USER=coracle KBUILD_BUILD_HOST=coracle
    make -C "$work" KCFLAGS="$flags" -j"$(nproc)" vmlinux 2>&1 | progress "$work/log" ||
        { tail -n 40 "$work/log" >&2; die "the build failed"; }
    rm -rf "$1.new"
    mkdir "$1.new"
    strip --strip-all -o "$1.new/vmlinux" "$work/vmlinux"
    mv "$work/vmlinux" "$1.new/vmlinux.debug"
    mv "$work/.config" "$1.new/config"
    mv "$1.new" "$1"
}

install_packages
mkdir -p "$cache" "$output"
result=$cache/$(key)
if [ ! -d "$result" ]; then
    # Whoever comes second finds what the first has built.
    exec 9>"$cache/lock"
    flock 9
    [ -d "$result" ] || build "$result"
    say "built in $SECONDS s"
fi
for file in vmlinux vmlinux.debug config; do
    cmp -s "$result/$file" "$output/$file" || cp "$result/$file" "$output/$file.new.$$"
    [ ! -e "$output/$file.new.$$" ] || mv "$output/$file.new.$$" "$output/$file"
done
say "$output/vmlinux: $(stat -c %s "$output/vmlinux") bytes," \
    "$source_package $(version "$source_package"), with debug information $(stat -c %s "$output/vmlinux.debug") bytes"
