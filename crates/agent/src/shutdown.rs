// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of the guest.

use std::thread;
use std::time::Duration;

use coracle_agent_api::SHARE_PATH;
use rustix::mount::UnmountFlags;
use rustix::system::RebootCommand;

use crate::log_error;

/// How long the last answer may take to reach the host.
const LAST_ANSWER: Duration = Duration::from_millis(20);

/// Writes everything back and, shortly after, resets the machine from a thread of its own, so that the call that asked for
/// it is still answered.
pub fn soon() {
    rustix::fs::sync();
    // A container's process that does not end may still use it; it was written back all the same.
    let _ = rustix::mount::unmount(SHARE_PATH, UnmountFlags::DETACH);
    let started = thread::Builder::new()
        .name("shutdown".to_owned())
        .spawn(|| {
            thread::sleep(LAST_ANSWER);
            reset();
        });
    if started.is_err() {
        reset();
    }
}

/// Resets the machine, if this is its first process. A virtual machine without a power button to press ends by a reset:
/// powered off, it would stand still with nobody the wiser.
pub fn reset() {
    if !rustix::process::getpid().is_init() {
        return;
    }
    if let Err(error) = rustix::system::reboot(RebootCommand::Restart) {
        log_error!("cannot reset the machine: {error}");
    }
}
