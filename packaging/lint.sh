#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Has the programs that read man pages and completions judge them. Usage: packaging/lint.sh FOLDER (as /usr/share)
set -eu

cd "${1:?usage: lint.sh FOLDER}"

said=$(mktemp)
trap 'rm -f "$said"' EXIT

pages=0
for page in man/man*/*; do
    # Its exit status is 0, whatever it warns of.
    LC_ALL=C.UTF-8 MANWIDTH=80 man --warnings --local-file "$page" 2>>"$said" >/dev/null
    mandoc -T lint -W warning "$page" >>"$said" || true
    pages=$((pages + 1))
done
bash -n bash-completion/completions/coracle 2>>"$said" || true
zsh -n zsh/site-functions/_coracle 2>>"$said" || true
fish --no-execute fish/vendor_completions.d/coracle.fish 2>>"$said" || true

if [ -s "$said" ]; then
    cat "$said" >&2
    exit 1
fi
echo "lint: $pages man pages and 3 completions read without a warning"
