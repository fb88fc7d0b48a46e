// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a program's exec to its first byte of output.

use std::io::{PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// What passed between two moments.
pub struct Passed {
    /// Ticks of the time stamp counter: instructions in the deterministic lab.
    pub ticks: u64,
    /// Wall-clock time.
    pub time: Duration,
}

/// A moment that another process sees.
struct Shared(*mut u64);

// SAFETY: the mapping is never undone, and the word in it is written by the child before the
// parent reads it.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn new() -> Result<Self> {
        // SAFETY: asks for a fresh page at an address of the kernel's choice.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        ensure!(page != libc::MAP_FAILED, "cannot map a page");
        Ok(Self(page.cast()))
    }

    fn set_now(&self) {
        // SAFETY: the page is mapped for as long as the program runs.
        unsafe { self.0.write_volatile(now()) }
    }

    fn get(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.read_volatile() }
    }
}

/// Ticks of the time stamp counter.
pub fn now() -> u64 {
    // SAFETY: every x86-64 processor has the counter.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// How long a program may take to its first byte, by this machine's clock. In the deterministic lab a second has a
/// thousand million instructions.
const DEADLINE: Duration = Duration::from_secs(5);

/// Runs `command` until a byte can be read from `output`, then ends it. Nothing if that takes longer than it may: a
/// guest in an emulated machine may hang.
pub fn to_first_byte(mut command: Command, mut output: PipeReader) -> Result<Option<Passed>> {
    let started = Shared::new()?;
    let in_child = Shared(started.0);
    // SAFETY: the closure reads a counter and writes a word of shared memory.
    unsafe {
        command.pre_exec(move || {
            in_child.set_now();
            Ok(())
        });
    }
    let moment = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    // Its descriptors are the child's alone from here on, so that its end is the output's.
    drop(command);
    let came = is_readable(&output)?;
    let read = if came {
        output.read_exact(&mut [0])
    } else {
        Ok(())
    };
    let (ticks, time) = (now(), moment.elapsed());
    let _ = child.kill();
    let status = child.wait()?;
    read.with_context(|| format!("the program said nothing before it ended ({status})"))?;
    Ok(came.then(|| Passed {
        ticks: ticks.saturating_sub(started.get()),
        time,
    }))
}

/// Waits until there is something to be read, or the end, and says whether there is.
fn is_readable(output: &PipeReader) -> Result<bool> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut descriptors = [PollFd::new(output, PollFlags::IN)];
        match poll(&mut descriptors, Some(&left.try_into()?)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
