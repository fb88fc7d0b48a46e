#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Makes the images that end-to-end tests run, with tools that are not ours. Usage:
# tests/images/build.sh FOLDER LAB-PROGRAM
#
#   busybox       OCI layout of two layers; the second changes and removes files of the first
#   busybox.tar   the same as an archive
#   debian        OCI layout of Debian's minimal base
#
# What is there already, made by this very script, stays as it is.
set -eu

folder=$1
lab=$2
stamp=$folder/made-by
made_by=$(sha256sum <"$0")
[ "$(cat "$stamp" 2>/dev/null)" != "$made_by" ] || exit 0

mkdir -p "$folder"
work=$(mktemp -d "$folder/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

# begin NAME: an empty image, unpacked at $work/NAME.bundle.
begin() {
    umoci init --layout "$work/$1"
    umoci new --image "$work/$1:latest"
    umoci unpack --image "$work/$1:latest" "$work/$1.bundle"
    rootfs=$work/$1.bundle/rootfs
}

# layer NAME: what was changed in the bundle becomes a layer.
layer() {
    umoci repack --refresh-bundle --image "$work/$1:latest" "$work/$1.bundle"
}

# finish NAME COMMAND: the image's configuration, and no blob that nothing refers to.
finish() {
    umoci config --image "$work/$1:latest" --config.cmd "$2" \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    umoci gc --layout "$work/$1"
    rm -rf "${folder:?}/$1"
    mv "$work/$1" "$folder/$1"
}

echo "images: busybox"
begin busybox
(
    cd "$rootfs"
    mkdir -p bin dev etc home proc root sys tmp usr var/tmp
    chmod 1777 tmp var/tmp
    cp /bin/busybox bin/busybox
    for applet in $(busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "bin/$applet"
    done
    echo 'root:x:0:0:root:/root:/bin/sh' >etc/passwd
    echo 'user:x:1000:1000:user:/home:/bin/sh' >>etc/passwd
    echo 'root:x:0:' >etc/group
    echo 'user:x:1000:' >>etc/group
    echo 'first layer' >etc/motd
    echo 'first layer' >etc/removed
)
layer busybox
echo 'second layer' >"$rootfs/etc/motd"
rm "$rootfs/etc/removed"
layer busybox
finish busybox sh
tar -C "$folder/busybox" -cf "$work/busybox.tar" .
mv "$work/busybox.tar" "$folder/busybox.tar"

echo "images: debian"
begin debian
"$lab" sources >"$work/sources"
mmdebstrap --quiet --variant=minbase --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    bookworm "$rootfs" - <"$work/sources"
layer debian
finish debian bash

echo "$made_by" >"$stamp"
