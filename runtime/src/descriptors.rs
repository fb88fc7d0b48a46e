// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What processes that only wait have in common: hardly a descriptor, and no ear for signals.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Closes every descriptor of this process but those. Nothing else of it may be in use from here on.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut numbers: Vec<u32> = kept
        .iter()
        .filter_map(|descriptor| u32::try_from(descriptor.as_raw_fd()).ok())
        .collect();
    numbers.sort_unstable();
    let mut first = 0;
    for number in numbers {
        if number > first {
            close_range(first, number - 1);
        }
        first = number.saturating_add(1);
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: closes descriptors that nobody in this process uses any more (the caller's promise).
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) };
}

/// Ignores the signals by which a terminal, or an operator who wants the run to end, would end this process too.
pub fn ignore_signals() {
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
    ] {
        // SAFETY: sets a disposition that runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
