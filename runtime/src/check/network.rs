// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the default network needs. A container can do without.

use coracle_network::check::Finding as Lack;

use super::report::Finding;

const NAME: &str = "network host-nat";

/// What is found of the lacks of the default network.
pub fn host_nat(lacks: &[Lack]) -> Vec<Finding> {
    if lacks.is_empty() {
        return vec![Finding::ok(NAME, "has all it needs")];
    }
    lacks
        .iter()
        .map(|lack| Finding::advice(NAME, &lack.problem, &lack.remedy))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::report::{Status, can_run};
    use super::*;

    #[test]
    fn lack_is_told_and_does_not_keep_containers_from_running() {
        let lack = Lack {
            problem: "there are no taps".to_owned(),
            remedy: "load tun".to_owned(),
            is_fatal: true,
        };

        let findings = host_nat(&[lack]);

        assert_eq!(findings[0].found, "there are no taps");
        assert_eq!(findings[0].remedy.as_deref(), Some("load tun"));
        assert!(can_run(&findings));
        assert_eq!(host_nat(&[])[0].status, Status::Ok);
    }
}
