#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Puts what was built where it belongs, or takes it away. Usage: packaging/install.sh install|uninstall
#
# From: CORACLE (the executable), GUEST (the guest's files), SHARE (man pages and completions).
# To:   DESTDIR, PREFIX (/usr), SYSCONFDIR (/etc), and zsh's folder, ZSH (PREFIX/share/zsh/site-functions).
#
# `uninstall` needs nothing that was built: what is installed is listed beside the guest's files.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
destination=${DESTDIR:-}
prefix=${PREFIX:-/usr}
documents=$prefix/share/doc/coracle
list=$destination$prefix/lib/coracle/installed
configuration=$destination${SYSCONFDIR:-/etc}/coracle/config.toml
# The configuration as it was installed: whether it was changed since is told by this copy.
pristine=$destination$documents/config.toml

say() { printf '%s\n' "$*" >&2; }

# Each file but the configuration: its mode, where it comes from and where it goes.
files() {
    printf '%s\t%s\t%s\n' \
        755 "$CORACLE" "$prefix/bin/coracle" \
        644 "$here/../README.md" "$documents/README.md" \
        644 "$here/../runtime/CHANGELOG.md" "$documents/CHANGELOG.md" \
        644 "$here/../runtime/src/config/config.toml" "$documents/config.toml" \
        644 "$here/../LICENSE-APACHE" "$documents/LICENSE-APACHE" \
        644 "$here/../LICENSE-BSD-3-Clause" "$documents/LICENSE-BSD-3-Clause" \
        644 "$SHARE/zsh/site-functions/_coracle" "${ZSH:-$prefix/share/zsh/site-functions}/_coracle"
    (cd "$GUEST" && find . -type f | LC_ALL=C sort) | while read -r file; do
        printf '644\t%s\t%s\n' "$GUEST/${file#./}" "$prefix/lib/coracle/${file#./}"
    done
    (cd "$SHARE" && find man bash-completion fish -type f | LC_ALL=C sort) | while read -r file; do
        printf '644\t%s\t%s\n' "$SHARE/$file" "$prefix/share/$file"
    done
}

# Whether the administrator has made the configuration theirs.
changed() { [ -e "$configuration" ] && ! cmp -s "$configuration" "$pristine"; }

# Through a new file: one that is executed cannot be written to, and nobody sees half a kernel.
put() {
    mkdir -p "$(dirname "$3")"
    install -m "$1" "$2" "$3.new"
    mv -f "$3.new" "$3"
}

# Removes what is listed in a file, and the folders of ours that this empties.
remove() {
    while read -r file; do
        rm -f "$destination$file"
    done <"$1"
    for folder in "$prefix/lib/coracle/modules" "$prefix/lib/coracle/small" "$documents"; do
        [ ! -d "$destination$folder" ] || rmdir --ignore-fail-on-non-empty "$destination$folder"
    done
}

do_install() {
    theirs=
    ! changed || theirs=yes
    mkdir -p "$(dirname "$list")"
    files >"$list.new"
    tab=$(printf '\t')
    while IFS=$tab read -r mode from to; do
        put "$mode" "$from" "$destination$to"
    done <"$list.new"
    cut -f 3 "$list.new" | LC_ALL=C sort >"$list.newer"
    rm "$list.new"
    if [ -e "$list" ]; then
        # What an earlier version had and this one has not.
        LC_ALL=C comm -23 "$list" "$list.newer" >"$list.old"
        remove "$list.old"
        rm "$list.old"
    fi
    mv "$list.newer" "$list"
    if [ -z "$theirs" ]; then
        put 644 "$pristine" "$configuration"
    elif ! cmp -s "$configuration" "$pristine"; then
        say "kept: $configuration; the one of this version is $pristine"
    fi
    # The executable looks nowhere else by itself.
    [ "$prefix" = /usr ] || say "coracle has to be told by CORACLE_GUEST=$prefix/lib/coracle"
}

do_uninstall() {
    if [ ! -e "$list" ]; then
        say "nothing is installed below $destination$prefix"
        return
    fi
    if changed; then
        say "kept: $configuration"
    else
        rm -f "$configuration"
    fi
    remove "$list"
    rm "$list"
    for folder in "$(dirname "$list")" "$(dirname "$configuration")"; do
        [ ! -d "$folder" ] || rmdir --ignore-fail-on-non-empty "$folder"
    done
}

case ${1:-} in
install) do_install ;;
uninstall) do_uninstall ;;
*)
    say "usage: packaging/install.sh install|uninstall"
    exit 2
    ;;
esac
