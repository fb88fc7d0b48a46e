#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Builds the example from the workspace's packages alone: the .crate files, as they would be published.
# Usage: examples/shell-vmm/build.sh TARGET-FOLDER [CARGO-OPTION…], with the packages in TARGET-FOLDER/package
#
# The packages are unpacked, and put in the place of those of the registry by a [patch] that is made here. To replace the
# registry itself by a folder would do as well, but that would have to hold every crate of others, too.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
target=$(realpath "${1:?usage: build.sh TARGET-FOLDER [CARGO-OPTION…]}")
shift
# A VMM of one's own takes no more lines than this.
limit=299
lines=$(cat "$here"/src/*.rs | wc -l)
if [ "$lines" -gt "$limit" ]; then
    echo "build.sh: the example has $lines lines of source, and $limit at most is what it promises" >&2
    exit 1
fi

# What the example depends on, and what that depends on.
crates=(coracle-memory coracle-virtio coracle-devices coracle-vsock coracle-seccomp coracle-boot coracle-vmm coracle-guest)
unpacked=$target/example/crates

mkdir -p "$unpacked"
patch=$target/example/patch.toml
echo '[patch.crates-io]' >"$patch.new"
for crate in "${crates[@]}"; do
    # One version: `make package` removes what is older.
    file=$(echo "$target/package/$crate"-[0-9]*.crate)
    # Only what has changed is unpacked again, or everything would be built again.
    if ! cmp -s "$file" "$unpacked/$crate.crate"; then
        rm -rf "${unpacked:?}/$crate" "$unpacked/$crate.crate"
        mkdir "$unpacked/$crate"
        tar -C "$unpacked/$crate" --strip-components=1 -xzf "$file"
        # Below the workspace's folder, they are none of its members.
        printf '\n[workspace]\n' >>"$unpacked/$crate/Cargo.toml"
        cp "$file" "$unpacked/$crate.crate"
    fi
    echo "$crate = { path = \"$unpacked/$crate\" }" >>"$patch.new"
done
mv "$patch.new" "$patch"

cargo build --manifest-path "$here/Cargo.toml" --config "$patch" --target-dir "$target" "$@"
