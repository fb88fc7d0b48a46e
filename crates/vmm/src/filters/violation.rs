// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens when a thread makes a system call that its filter does not allow: a line that names the call, and the
//! end of the process.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use vmm_sys_util::errno;
use vmm_sys_util::signal::register_signal_handler;

/// The status of a process that made a forbidden system call: 128 and the number of the signal SIGSYS.
pub const VIOLATION_STATUS: u8 = 159;

/// Where the controlling process hears of it, or -1.
static CONTROL: AtomicI32 = AtomicI32::new(-1);
/// Set by the thread that reports; it ends all others.
static REPORTED: AtomicBool = AtomicBool::new(false);

/// Has violations reported on `control` too, as an event of the role's protocol.
pub(crate) fn report_to(control: BorrowedFd<'_>) {
    CONTROL.store(control.as_raw_fd(), Ordering::Relaxed);
}

pub(super) fn install_handler() -> Result<(), errno::Error> {
    register_signal_handler(libc::SIGSYS, on_violation)
}

/// Runs on the thread that made the call, with the filter in force: `write` and `exit_group` are all that it uses, and
/// it allocates nothing.
extern "C" fn on_violation(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    while REPORTED.swap(true, Ordering::Relaxed) {
        // Another thread is about to end the process, and this one with it.
        std::hint::spin_loop();
    }
    report(system_call(info));
    // SAFETY: ends the process without running anything else in it.
    unsafe { libc::_exit(VIOLATION_STATUS.into()) };
}

fn report(call: u32) {
    let mut line = Line::new();
    line.push(b"coracle vmm: forbidden system call ");
    line.push_number(call);
    line.push(b"\n");
    line.write_to(libc::STDERR_FILENO);

    let control = CONTROL.load(Ordering::Relaxed);
    if control >= 0 {
        let mut event = Line::new();
        event.push(br#"{"event":"error","message":"the vmm made the forbidden system call "#);
        event.push_number(call);
        event.push(b"\"}\n");
        event.write_to(control);
    }
}

/// `si_syscall` of a SIGSYS, which follows an address in the part of `siginfo_t` that depends on the signal.
fn system_call(info: *const libc::siginfo_t) -> u32 {
    const OFFSET: usize = 24;
    const _: () = assert!(OFFSET + size_of::<u32>() <= size_of::<libc::siginfo_t>());
    // SAFETY: the kernel gives a valid `siginfo_t` to a handler that was installed with SA_SIGINFO, and on x86-64 the
    // number is at this offset, which is aligned and inside the structure.
    unsafe { info.byte_add(OFFSET).cast::<u32>().read() }
}

/// A line of text without an allocation.
struct Line {
    bytes: [u8; 128],
    len: usize,
}

impl Line {
    const fn new() -> Self {
        Self {
            bytes: [0; 128],
            len: 0,
        }
    }

    /// Appends `text`, or what fits of it.
    fn push(&mut self, text: &[u8]) {
        for (slot, byte) in self.bytes[self.len..].iter_mut().zip(text) {
            *slot = *byte;
            self.len += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        let mut digits = [0; 10];
        let mut rest = number;
        let mut at = digits.len();
        loop {
            at -= 1;
            // A digit fits in a byte, and ten digits hold any u32.
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.push(&digits[at..]);
    }

    fn write_to(&self, descriptor: RawFd) {
        // SAFETY: the buffer is valid for its length. A closed descriptor or a short write loses the message only.
        unsafe { libc::write(descriptor, self.bytes.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, "0")]
    #[case(425, "425")]
    #[case(u32::MAX, "4294967295")]
    fn number_is_written_in_decimal(#[case] number: u32, #[case] expected: &str) {
        let mut line = Line::new();

        line.push_number(number);

        assert_eq!(&line.bytes[..line.len], expected.as_bytes());
    }

    #[test]
    fn text_that_does_not_fit_is_cut() {
        let mut line = Line::new();

        line.push(&[b'x'; 100]);
        line.push(&[b'y'; 100]);

        assert_eq!(line.len, 128);
        assert_eq!(line.bytes[127], b'y');
    }
}
