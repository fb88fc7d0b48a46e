// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the agent has to say goes to the kernel's log, which is on the console and outlives the agent.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

/// The longest line that the kernel takes is 1024 bytes, with what it puts before it.
const LINE_MAX: usize = 900;

/// How much a line matters, by syslog's numbers. What is `Error` is shown on a console that is told to be quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Something failed.
    Error = 3,
    /// Something is worth knowing.
    Info = 6,
}

/// Writes a line.
pub fn write(severity: Severity, message: fmt::Arguments<'_>) {
    static KERNEL_LOG: OnceLock<Option<File>> = OnceLock::new();
    let line = line(message);
    let kernel_log = KERNEL_LOG.get_or_init(|| File::options().write(true).open("/dev/kmsg").ok());
    // Nobody is left to be told that telling failed.
    let _ = match kernel_log.as_ref() {
        // One write is one record.
        Some(mut file) => file.write_all(format!("<{}>{line}", severity as u8).as_bytes()),
        // Early, or on a machine that is no guest.
        None => std::io::stderr().write_all(line.as_bytes()),
    };
}

/// Who speaks, and the message, on one line.
fn line(message: fmt::Arguments<'_>) -> String {
    let mut line = format!("coracle-agent: {message}");
    if line.len() > LINE_MAX {
        let end = (0..=LINE_MAX).rev().find(|end| line.is_char_boundary(*end));
        line.truncate(end.unwrap_or(0));
        line.push('…');
    }
    let mut line = line.replace(|character: char| character.is_control(), " ");
    line.push('\n');
    line
}

/// Writes a line that says that something failed.
#[macro_export]
macro_rules! log_error {
    ($($arguments:tt)*) => {
        $crate::log::write($crate::log::Severity::Error, format_args!($($arguments)*))
    };
}

/// Writes a line that is worth knowing.
#[macro_export]
macro_rules! log_info {
    ($($arguments:tt)*) => {
        $crate::log::write($crate::log::Severity::Info, format_args!($($arguments)*))
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_becomes_one_record() {
        let line = line(format_args!("two\nlines\x1b[2J"));

        assert_eq!(line, "coracle-agent: two lines [2J\n");
    }

    #[test]
    fn long_message_is_cut_at_a_character() {
        let line = line(format_args!("{}", "ä".repeat(2000)));

        assert!(line.len() <= LINE_MAX + 4);
        assert!(line.ends_with("ä…\n"));
    }
}
