// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration file. Without one, the defaults hold.

use anyhow::Result;

use super::report::Finding;
use crate::config::Config;
use crate::printable::printable;

const NAME: &str = "configuration";

/// Whether the file could be read.
pub fn configuration(config: &Result<Config>) -> Finding {
    match config {
        Ok(_) => Finding::ok(NAME, "can be used"),
        Err(error) => Finding::missing(
            NAME,
            printable(&format!("{error:#}")),
            "correct the file, or name another (--config)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::report::{Status, can_run};
    use super::*;

    #[test]
    fn file_that_keeps_containers_from_running_is_told() {
        let finding = configuration(&Err(anyhow::anyhow!("it is broken")));

        assert_eq!(finding.found, "it is broken");
        assert!(!can_run(&[finding]));
    }

    #[test]
    fn defaults_can_be_used() {
        let nowhere = Path::new("/nonexistent");

        let finding = configuration(&Config::read(nowhere, false, nowhere));

        assert_eq!(finding.status, Status::Ok);
    }
}
