#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Runs end-to-end tests in the lab, and once more those that failed, if they are few: the emulator can break a
# virtual machine in it (see "What it does not do" in README.md). What passes then is reported, and counted, as repeated.
# Usage: lab/repeat-failed.sh LOG cargo test …
set -u -o pipefail

log=$1
shift
most=3

"$@" 2>&1 | tee "$log" && exit

mapfile -t failed < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
counted=$(awk '/^test result:/ { for (field = 1; field < NF; field++) if ($(field + 1) ~ /^failed/) sum += $field } END { print sum + 0 }' "$log")
# A program that did not get to its end names nothing, and neither does a test that does not compile.
if [ "${#failed[@]}" = 0 ] || [ "${#failed[@]}" -gt "$most" ] || [ "${#failed[@]}" != "$counted" ] ||
    grep -q '^lab: the lab ended before the command' "$log"; then
    exit 1
fi

words=()
for word in "$@"; do
    [ "$word" != -- ] || break
    words+=("$word")
done
echo "to be repeated: ${failed[*]}"
again=$(dirname "$log")/repeated-$(basename "$log")
"${words[@]}" -- --exact "${failed[@]}" 2>&1 | tee "$again" || exit 1
[ "$(grep -c '^test .* \.\.\. ok$' "$again")" = "${#failed[@]}" ] || exit 1
echo "repeated: ${#failed[@]} failed once and passed then: ${failed[*]}" | tee -a "$log"
