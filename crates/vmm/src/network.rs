// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An empty network namespace, to shut processes in that need no network.
//!
//! In it a process reaches neither the host's network nor its abstract Unix sockets. One does for several processes as
//! long as none of them can bind a socket, at which another would meet it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// A network namespace in the making, for [`Config::network`](crate::Config::network).
///
/// The kernel takes longer to make one than for the rest of a VMM's jail, so it is made on a thread beside whatever
/// else the caller has to do. It goes with its last descriptor and process.
#[derive(Debug)]
pub struct EmptyNetwork(JoinHandle<io::Result<File>>);

impl EmptyNetwork {
    /// Begins to make one. The caller stays where it is.
    ///
    /// # Errors
    ///
    /// There can be no more threads.
    pub fn begin() -> io::Result<Self> {
        // Namespaces belong to threads: only the new one leaves the host's.
        let make = || {
            // SAFETY: a new network namespace changes no descriptor or memory that other code relies on.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            File::open("/proc/thread-self/ns/net")
        };
        let thread = thread::Builder::new().name("network".into());
        thread.spawn(make).map(Self)
    }

    /// Waits until it is there.
    ///
    /// # Errors
    ///
    /// The kernel's reason not to make one: without `CAP_SYS_ADMIN` that is [`io::ErrorKind::PermissionDenied`].
    pub fn finish(self) -> io::Result<OwnedFd> {
        let made = self.0.join();
        made.unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
            .map(OwnedFd::from)
    }
}
