// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network namespace of a machine's own, in which CNI plugins make what they make.
//!
//! It lives as long as this process holds it: nothing is mounted anywhere, so nothing can be left behind. Plugins get a path
//! through this process's descriptors.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::error::NetworkError;
use crate::netlink::Socket;
use crate::netlink::link::LinkChange;
use crate::sysctl;

/// The namespace, while it is held.
#[derive(Debug)]
pub(crate) struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// Makes one, with its loopback interface up, and with interfaces to come that have no addresses but those that plugins
    /// give them: guests will stand in their places, and have their own.
    pub(crate) fn new() -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Namespace {
            action: "make",
            source,
        };
        let make = || -> io::Result<OwnedFd> {
            // SAFETY: a network namespace holds neither memory nor descriptors: this thread alone leaves its old one.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            let fd = rustix::fs::open(
                "/proc/thread-self/ns/net",
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            const LOOPBACK: u32 = 1;
            Socket::route()?.change_link(LOOPBACK, &[LinkChange::Up])?;
            Ok(fd)
        };
        in_thread(|| {
            let fd = make().map_err(failed)?;
            if sysctl::has_ipv6() {
                const NO_LINK_LOCAL: &str = "1";
                sysctl::set("ipv6/conf/default/addr_gen_mode", NO_LINK_LOCAL)?;
                sysctl::set("ipv6/conf/default/accept_ra", "0")?;
            }
            Ok(Self { fd })
        })
    }

    /// Where programs that this process starts find it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Does something inside: sockets and taps that are made there stay there.
    pub(crate) fn within<T: Send>(
        &self,
        action: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        in_thread(|| {
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&self.fd),
                Some(LinkNameSpaceType::Network),
            )
            .map_err(|error| NetworkError::Namespace {
                action: "enter",
                source: error.into(),
            })?;
            action()
        })
    }
}

/// The caller's thread keeps its namespace.
fn in_thread<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(action)
            .join()
            // A panic goes on where the thread was asked for.
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
