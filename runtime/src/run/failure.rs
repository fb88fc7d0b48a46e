// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a guest failed, told from what it left behind: its console's log.

use anyhow::Error;

use crate::printable::shortened;

/// Why a run failed, by whose doing.
pub enum Failure {
    /// The guest did not do what was asked of it: what it left behind may say why.
    Guests(Error),
    /// Something on the host, in which the guest has no part.
    Ours(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

/// Lines of the guest's console that are shown with a failure.
const LINES_SHOWN: usize = 25;
/// What Linux prints first when it gives up.
const PANIC: &str = "Kernel panic - not syncing: ";

/// The kernel's reason for giving up, if it did.
pub fn panic_reason(console: &str) -> Option<String> {
    console
        .lines()
        .rev()
        .find_map(|line| line.split_once(PANIC))
        .map(|(_, reason)| shortened(reason.trim()))
}

/// The end of the console, each line marked as the guest's.
pub fn tail(console: &str) -> String {
    let lines: Vec<_> = console
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let skipped = lines.len().saturating_sub(LINES_SHOWN);
    lines[skipped..]
        .iter()
        .map(|line| format!("guest| {}\n", shortened(line)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_reason_is_the_last_one() {
        let console = "[ 1.0] Kernel panic - not syncing: first\n[ 2.0] Kernel panic - not syncing: No init found.\r\nend";

        assert_eq!(panic_reason(console).as_deref(), Some("No init found."));
        assert_eq!(panic_reason("all is well"), None);
    }

    #[test]
    fn tail_shows_the_last_lines_only() {
        let console: String = (0..100).map(|n| format!("line {n}\n\n")).collect();

        let tail = tail(&console);

        assert_eq!(tail.lines().count(), LINES_SHOWN);
        assert!(tail.ends_with("guest| line 99\n"));
    }
}
