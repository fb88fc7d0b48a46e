#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Installs a package in a Debian of its own, uses it, and removes it. Usage: packaging/deb/test.sh PACKAGE LAB
#
# LAB is the lab's executable, which knows where packages come from; that Debian is kept in CORACLE_CACHE. Needs root.
set -euo pipefail
export LC_ALL=C

package=$(realpath "${1:?usage: test.sh PACKAGE LAB}")
lab=${2:?usage: test.sh PACKAGE LAB}
base=${CORACLE_CACHE:?where the Debian is kept}/deb-test.tar
root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT

fail() {
    printf 'test-deb: %s\n' "$*" >&2
    exit 1
}

lintian --fail-on error,warning --allow-root "$package"

if [ ! -e "$base" ]; then
    echo "test-deb: a Debian to install in (once)"
    "$lab" sources | mmdebstrap --quiet --variant=minbase --include=man-db,bash-completion \
        bookworm "$root/new.tar" -
    mv "$root/new.tar" "$base"
fi
tar -C "$root" -xf "$base" --exclude='./dev/*'
mkdir -p "$root/dev"
cp "$package" "$root/coracle.deb"

# In namespaces of its own, so that nothing that it starts or mounts stays.
inside() {
    unshare --mount --pid --fork --kill-child bash -c '
        mount -t proc proc "$1/proc"
        mount --bind /dev "$1/dev"
        exec chroot "$@"' bash "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb LC_ALL=C.UTF-8 "$@"
}
everything() {
    (cd "$root" && find . -xdev \( -path ./var/cache -o -path ./var/log -o -path ./var/lib/dpkg -o -path ./dev \
        -o -path ./proc -o -path ./tmp -o -path ./run \) -prune -o -print | sort)
}

before=$(everything)
inside dpkg --force-unsafe-io --install /coracle.deb >/dev/null

# What it depends on is in any Debian; what it says of itself is so.
version=$(dpkg-deb --field "$package" Version)
[ "$(inside coracle --version)" = "coracle ${version%-*}" ] || fail "another version"
inside dpkg --verify coracle | grep . && fail "its files are not those that it lists"

# The kernel that guests start from comes with all that belongs to it.
guest=/usr/lib/coracle
if [ -e "$root$guest/small/vmlinux" ]; then
    guest=$guest/small
    for file in initramfs.cpio command-line; do
        [ -s "$root$guest/$file" ] || fail "the small kernel comes without its $file"
    done
fi

# That host may lack something, but the guest's files are where they are looked for.
findings=$(inside coracle check --json || [ $? = 1 ])
for file in vmlinux initramfs.cpio; do
    grep -q "\"$guest/$file\"" <<<"$findings" || fail "check does not find $file: $findings"
done
status=0
said=$(inside coracle ps 2>&1) || status=$?
[ $status = 0 ] || fail "the installed configuration is not taken: $said"

for page in coracle coracle-run; do
    inside man --locale=C "$page" | grep -q '^EXAMPLES' || fail "no page of $page"
done
inside man --locale=C 5 coracle-config.toml | grep -q boot_timeout || fail "no page of the configuration"
inside whatis coracle-run | grep -q 'virtual machine' || fail "whatis does not know it"
# shellcheck disable=SC2016 # for the shell inside
inside bash -c '
    . /usr/share/bash-completion/bash_completion
    _completion_loader coracle
    COMP_WORDS=(coracle ru) COMP_CWORD=1 COMP_LINE="coracle ru" COMP_POINT=10
    $(complete -p coracle | sed "s/.*-F \([^ ]*\).*/\1/") coracle ru coracle
    [ "${COMPREPLY[*]}" = run ]' || fail "the completion of \`coracle ru\` is not run"

# An administrator's change outlives an update and a removal, and goes with a purge.
echo '# changed' >>"$root/etc/coracle/config.toml"
inside dpkg --force-unsafe-io --force-confold --install /coracle.deb >/dev/null
inside dpkg --remove coracle >/dev/null
left=$(comm -13 <(echo "$before") <(everything))
[ "$left" = "$(printf './etc/coracle\n./etc/coracle/config.toml')" ] || fail "removed, it has left: $left"
mkdir -p "$root/var/lib/coracle/images"
inside dpkg --purge coracle >/dev/null
left=$(comm -3 <(echo "$before") <(everything))
[ -z "$left" ] || fail "purged, it has left: $left"
echo "test-deb: installs, works, leaves nothing"
