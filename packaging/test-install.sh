#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What install.sh promises, tried in a folder. Usage: packaging/test-install.sh
set -eu

here=$(cd "$(dirname "$0")" && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

fail() {
    printf 'test-install: %s\n' "$*" >&2
    exit 1
}

# Stands for what is built.
mkdir -p "$place/built/guest/modules" "$place/built/guest/small" "$place/built/share/man/man1" "$place/built/share/bash-completion/completions" \
    "$place/built/share/zsh/site-functions" "$place/built/share/fish/vendor_completions.d"
for file in coracle guest/vmlinux guest/initramfs.cpio guest/modules/one.ko guest/modules/two.ko guest/small/vmlinux \
    share/man/man1/coracle.1 share/bash-completion/completions/coracle share/zsh/site-functions/_coracle \
    share/fish/vendor_completions.d/coracle.fish; do
    echo "$file" >"$place/built/$file"
done

root=$place/root
script() {
    DESTDIR=$root CORACLE=$place/built/coracle GUEST=$place/built/guest SHARE=$place/built/share \
        "$here/install.sh" "$1" 2>"$place/said"
}
everything() { (cd "$root" && find . -type f -printf '%p %m %s\n' | LC_ALL=C sort); }
config=$root/etc/coracle/config.toml

script install
first=$(everything)
[ -x "$root/usr/bin/coracle" ] || fail "no executable"
[ -f "$root/usr/lib/coracle/modules/two.ko" ] || fail "no module"
[ -f "$root/usr/lib/coracle/small/vmlinux" ] || fail "no small kernel"
cmp "$config" "$here/../runtime/src/config/config.toml" || fail "no configuration"

script install
[ "$first" = "$(everything)" ] || fail "installed twice is not installed once"

rm "$place/built/guest/modules/two.ko"
script install
[ ! -e "$root/usr/lib/coracle/modules/two.ko" ] || fail "a file that is no more is still there"

# A configuration that nobody touched is brought up to date with the file that it was.
echo '# of an older version' >"$root/usr/share/doc/coracle/config.toml"
cp "$root/usr/share/doc/coracle/config.toml" "$config"
script install
cmp "$config" "$here/../runtime/src/config/config.toml" || fail "the untouched configuration is old"

echo 'memory = 512' >>"$config"
script install
tail -n 1 "$config" | grep -q '^memory = 512$' || fail "the administrator's configuration is gone"
grep -q '^kept: ' "$place/said" || fail "nothing was said of the configuration"

script uninstall
[ "$(cd "$root" && find . -type f)" = ./etc/coracle/config.toml ] || fail "left: $(everything)"

rm "$config"
script install
script uninstall
[ -z "$(cd "$root" && find . -type f)" ] || fail "left: $(everything)"
[ ! -e "$root/etc/coracle" ] && [ ! -e "$root/usr/lib/coracle" ] || fail "folders of ours are left"
script uninstall
echo "test-install: 9 promises kept"
