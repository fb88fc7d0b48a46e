// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What every process of the lab waits for: printed when a command misses its deadline.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use coracle_lab::protocol::MAX_BODY;

/// How deep kernel stacks are shown.
const STACK_DEPTH: usize = 6;

/// Every process with its threads, and where in the kernel each of those is.
pub fn report() -> String {
    let mut text = String::new();
    let mut processes = numbers(Path::new("/proc"));
    processes.sort_unstable();
    for process in processes {
        let folder = Path::new("/proc").join(process.to_string());
        let command = fs::read(folder.join("cmdline")).unwrap_or_default();
        // Threads of the kernel have no command line.
        if !command.is_empty() {
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let _ = writeln!(text, "{process} {}", command.trim_end());
            describe_threads(&folder.join("task"), &mut text);
        }
    }
    let mut end = text.len().min(MAX_BODY);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn describe_threads(tasks: &Path, text: &mut String) {
    for thread in numbers(tasks) {
        let folder = tasks.join(thread.to_string());
        let read = |name| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let state = read("status")
            .lines()
            .find_map(|line| line.strip_prefix("State:"))
            .unwrap_or_default()
            .trim()
            .to_owned();
        let _ = writeln!(
            text,
            "  {thread} {} {state}{}",
            read("comm").trim(),
            calls(&read("stack"))
        );
    }
}

/// The innermost calls of a kernel stack (`[<0>] do_wait+0x10/0x20`), on one line.
fn calls(stack: &str) -> String {
    let mut line = String::new();
    for entry in stack.lines().take(STACK_DEPTH) {
        let call = entry.rsplit(' ').next().unwrap_or_default();
        let _ = write!(line, " < {}", call.split('+').next().unwrap_or_default());
    }
    line
}

/// The numbers among a folder's names.
fn numbers(folder: &Path) -> Vec<u32> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stack_becomes_its_innermost_calls() {
        let stack = "[<0>] do_wait+0x17e/0x2f0\n[<0>] kernel_wait4+0xaf/0x150\n";

        assert_eq!(calls(stack), " < do_wait < kernel_wait4");
    }
}
