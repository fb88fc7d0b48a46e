// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What processes that only wait have in common: hardly a descriptor, and no ear for signals.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Numbers of the standard streams.
const STREAMS: std::ops::Range<i32> = 0..3;

/// Closes every descriptor of this process but those. Nothing else of it may be in use from here on.
///
/// Standard streams that are not kept lead nowhere rather than be closed: what is opened next would get their numbers,
/// and a program that is started could be left without its own.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut numbers: Vec<i32> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    numbers.extend(STREAMS.filter(|stream| lead_nowhere(*stream, kept)));
    numbers.sort_unstable();
    let mut first = 0;
    for number in numbers {
        if number > first {
            close_range(first, number - 1);
        }
        first = first.max(number.saturating_add(1));
    }
    close_range(first, i32::MAX);
}

/// Has a standard stream lead nowhere, unless it is kept; says whether it does.
fn lead_nowhere(stream: i32, kept: &[BorrowedFd<'_>]) -> bool {
    if kept.iter().any(|kept| kept.as_raw_fd() == stream) {
        return false;
    }
    // SAFETY: opens a file by a constant name; puts it in the place of a descriptor that nobody in this process uses
    // any more (the caller's promise). What is opened is closed with the rest.
    unsafe {
        let nothing = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        nothing >= 0 && libc::dup2(nothing, stream) == stream
    }
}

fn close_range(first: i32, last: i32) {
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_not_kept_is_closed_and_standard_streams_lead_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let [listing, kept, other] =
            ["listing", "kept", "other"].map(|name| directory.path().join(name));
        let [kept, other] = [&kept, &other].map(|path| {
            let file = File::create(path).unwrap();
            rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
            file
        });
        let script = "for fd in 0 1 2 $1; do led=\"$led $(readlink /proc/$$/fd/$fd)\"; done
            echo $led > \"$0\"; test ! -e /proc/$$/fd/$2";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(&listing);
        shell.args([&kept, &other].map(|file| file.as_raw_fd().to_string()));
        // SAFETY: the descriptors that are closed are the child's own, which has nothing left to do but to start the shell.
        unsafe {
            shell.pre_exec(move || {
                close_all_but(&[kept.as_fd()]);
                Ok(())
            });
        }

        let ended = shell.status().unwrap();

        assert!(ended.success(), "the other one is closed");
        let nothing = "/dev/null";
        let kept = directory.path().join("kept");
        assert_eq!(
            fs::read_to_string(&listing).unwrap(),
            format!("{nothing} {nothing} {nothing} {}\n", kept.display())
        );
    }
}
