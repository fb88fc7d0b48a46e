#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Checks that no published crate breaks what its version promises, against the revision in `semver-baseline`: what was
# published last or, before the first time, what has been agreed on. Usage: packaging/semver.sh [CRATE…]
set -euo pipefail

cd "$(dirname "$0")/.."
baseline=$(grep -v '^#' packaging/semver-baseline)

if ! git cat-file -e "$baseline^{commit}" 2>/dev/null; then
    echo "semver: revision $baseline is not in this clone: git fetch --unshallow" >&2
    exit 1
fi

crates=("$@")
if [ ${#crates[@]} = 0 ]; then
    # `coracle` is an executable; its library promises nothing.
    for manifest in crates/*/Cargo.toml guest/Cargo.toml; do
        name=$(sed -n 's/^name = "\(.*\)"/\1/p' "$manifest" | head -n 1)
        if git cat-file -e "$baseline:$manifest" 2>/dev/null; then
            crates+=("$name")
        else
            echo "semver: $name is new since the baseline"
        fi
    done
fi

packages=()
for crate in "${crates[@]}"; do
    packages+=(--package "$crate")
done
exec cargo semver-checks --baseline-rev "$baseline" "${packages[@]}"
