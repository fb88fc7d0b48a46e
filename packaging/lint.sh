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
    mandoc -T lint -W warning "$page" >>"$said" || echo "mandoc rejects $page" >>"$said"
    pages=$((pages + 1))
done
# Whoever rejects its completion without a word is named all the same.
bash -n bash-completion/completions/coracle 2>>"$said" || echo "bash rejects its completion" >>"$said"
zsh -n zsh/site-functions/_coracle 2>>"$said" || echo "zsh rejects its completion" >>"$said"
fish --no-execute fish/vendor_completions.d/coracle.fish 2>>"$said" || echo "fish rejects its completion" >>"$said"

if [ -s "$said" ]; then
    cat "$said" >&2
    exit 1
fi
echo "lint: $pages man pages and 3 completions read without a warning"
