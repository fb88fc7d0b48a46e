# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Compares the line coverage of each crate with its floor, and fails if one is below it.
# Usage: awk -v kvm=yes -f check.awk floors.toml lcov.info (kvm empty: this machine has no KVM)

# floors.toml: "crates/memory" = 90, and "# KVM" behind the floors that need it
FNR == NR {
    if (split($0, part, /"/) == 3) {
        sub(/.*=[ \t]*/, "", part[3])
        floor[part[2]] = part[3] + 0
        needs_kvm[part[2]] = part[3] ~ /# KVM/
        order[++crates] = part[2]
    }
    next
}

# lcov.info: a record for each file, with its count of lines (LF) and of lines hit (LH).
/^SF:/ {
    crate = ""
    for (index_ = 1; index_ <= crates; index_++)
        if (index($0, "/" order[index_] "/src/") || index($0, "SF:" order[index_] "/src/") == 1)
            crate = order[index_]
}
/^LF:/ && crate { lines[crate] += substr($0, 4) }
/^LH:/ && crate { hit[crate] += substr($0, 4) }

END {
    for (index_ = 1; index_ <= crates; index_++) {
        crate = order[index_]
        percent = lines[crate] ? 100 * hit[crate] / lines[crate] : 0
        judged = kvm || !needs_kvm[crate]
        below = judged && percent < floor[crate]
        printf "%-20s %5.1f %% of %5d lines (floor %d %%)%s\n", crate, percent, lines[crate],
            floor[crate], below ? "  BELOW ITS FLOOR" : judged ? "" : "  not judged without KVM"
        failed += below
    }
    if (!crates) print "no floor was read"
    exit failed > 0 || !crates
}
