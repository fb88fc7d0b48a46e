#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Makes a Debian package of what was built. Usage: packaging/deb/build.sh OUTPUT-FOLDER
#
# Takes CORACLE, GUEST and SHARE as install.sh does, the version from runtime/Cargo.toml, who builds it from DEBFULLNAME
# and DEBEMAIL, and each file's time from SOURCE_DATE_EPOCH: equal inputs give an equal package.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
output=${1:?usage: build.sh OUTPUT-FOLDER}
: "${SOURCE_DATE_EPOCH:?the time that files are given}"
export SOURCE_DATE_EPOCH
maintainer="${DEBFULLNAME:-The Coracle developers} <${DEBEMAIL:-coracle-vm@users.noreply.github.com}>"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../runtime/Cargo.toml" | head -n 1)-1
# Which source the kernel is of, it says itself: Debian's name the package's version in their banner.
kernel=$(strings -n 20 "$GUEST/vmlinux" | sed -n 's/^Linux version .* Debian \([^ ]*\) .*/\1/p' | head -n 1)
built_using=${kernel:+"Built-Using: linux (= $kernel)"}

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"
umask 022

DESTDIR=$stage PREFIX=/usr SYSCONFDIR=/etc ZSH=/usr/share/zsh/vendor-completions "$here/../install.sh" install
strip --strip-all "$stage/usr/bin/coracle"

# What Debian wants otherwise than `make install` does it.
documents=$stage/usr/share/doc/coracle
mv "$documents/CHANGELOG.md" "$documents/changelog"
rm "$stage/usr/lib/coracle/installed" "$documents/config.toml" "$documents"/LICENSE-*
{
    printf 'coracle (%s) unstable; urgency=medium\n\n' "$version"
    printf '  * See changelog.gz.\n\n'
    printf ' -- %s  %s\n' "$maintainer" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")"
} >"$documents/changelog.Debian"
{
    cat "$here/copyright"
    sed 's/^$/./; s/^/ /' "$here/../../LICENSE-BSD-3-Clause"
} >"$documents/copyright"
gzip -9n "$documents"/changelog "$documents"/changelog.Debian "$stage"/usr/share/man/man*/*
mkdir -p "$stage/usr/share/lintian/overrides"
cp "$here/lintian-overrides" "$stage/usr/share/lintian/overrides/coracle"

mkdir "$stage/DEBIAN"
(cd "$stage" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$stage/DEBIAN/md5sums"
echo /etc/coracle/config.toml >"$stage/DEBIAN/conffiles"
size=$(du -k -s --apparent-size --exclude=DEBIAN "$stage" | cut -f 1)
sed -e "s/@VERSION@/$version/; s/@SIZE@/$size/; s|@MAINTAINER@|$maintainer|; s|@BUILT_USING@|$built_using|; /^\$/d" \
    "$here/control" >"$stage/DEBIAN/control"
cp "$here/postrm" "$stage/DEBIAN/postrm"
chmod 755 "$stage/DEBIAN/postrm"

find "$stage" -depth -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$output"
package=$output/coracle_${version}_amd64.deb
dpkg-deb --root-owner-group -Zxz --build "$stage" "$package" >&2
echo "$package"
