#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Adds up the summaries of cargo test in some logs. Usage: lab/sum-tests.sh LOG…
exec awk '
/^test result:/ {
    for (field = 1; field < NF; field++) {
        if ($(field + 1) ~ /^passed/) passed += $field
        if ($(field + 1) ~ /^failed/) failed += $field
        if ($(field + 1) ~ /^ignored/) ignored += $field
    }
    programs++
}
# See lab/repeat-failed.sh.
/^repeated:/ {
    repeated += $2
}
END {
    passed += repeated
    failed -= repeated
    printf "total: %d passed; %d failed; %d ignored (skipped); %d repeated; %d test programs\n",
        passed, failed, ignored, repeated, programs
    exit programs == 0 || failed > 0
}' "$@"
