// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a guest failed, told from what it left behind: its console's log.

use anyhow::Error;
use coracle_vmm::Exit;

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

/// Why the machine ended by itself before its container had. Processes in the guest may write to its console, too: a
/// kernel that panics resets, so no other end is put down to that.
pub fn of_exit(exit: Exit, console: &str) -> String {
    let panic = panic_reason(console).filter(|_| exit == Exit::Reset);
    match (panic, exit) {
        (Some(reason), _) => {
            format!("the guest reset itself; its console says that its kernel panicked: {reason}")
        }
        (None, Exit::TripleFault) => "the guest's processor gave up (triple fault)".to_owned(),
        (None, Exit::Reset) => "the guest reset itself before its container had ended".to_owned(),
        (None, Exit::Shutdown) => {
            "the guest turned itself off before its container had ended".to_owned()
        }
        (None, exit) => format!("the guest ended before its container had ({exit:?})"),
    }
}

/// The kernel's reason for giving up, if it did.
fn panic_reason(console: &str) -> Option<String> {
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
    use rstest::rstest;

    use super::*;

    const PANICKED: &str = "[ 1.0] Kernel panic - not syncing: No init found.";

    #[test]
    fn panic_reason_is_the_last_one() {
        let console = "[ 1.0] Kernel panic - not syncing: first\n[ 2.0] Kernel panic - not syncing: No init found.\r\nend";

        assert_eq!(panic_reason(console).as_deref(), Some("No init found."));
        assert_eq!(panic_reason("all is well"), None);
    }

    #[rstest]
    #[case(
        Exit::Reset,
        PANICKED,
        "the guest reset itself; its console says that its kernel panicked: No init found."
    )]
    #[case(
        Exit::Reset,
        "",
        "the guest reset itself before its container had ended"
    )]
    #[case(
        Exit::Shutdown,
        PANICKED,
        "the guest turned itself off before its container had ended"
    )]
    #[case(
        Exit::TripleFault,
        PANICKED,
        "the guest's processor gave up (triple fault)"
    )]
    #[case(
        Exit::Halted,
        PANICKED,
        "the guest ended before its container had (Halted)"
    )]
    fn exit_is_told_by_what_the_machine_did(
        #[case] exit: Exit,
        #[case] console: &str,
        #[case] expected: &str,
    ) {
        assert_eq!(of_exit(exit, console), expected);
    }

    #[test]
    fn tail_shows_the_last_lines_only() {
        let console: String = (0..100).map(|n| format!("line {n}\n\n")).collect();

        let tail = tail(&console);

        assert_eq!(tail.lines().count(), LINES_SHOWN);
        assert!(tail.ends_with("guest| line 99\n"));
    }
}
