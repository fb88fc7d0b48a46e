// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of one machine each.

use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::TableFlags;

use super::{Batch, delete_table, refused};
use crate::error::NetworkError;
use crate::netlink::Socket;

/// How long another's table may take to be gone, and how often that is looked at.
const DYING: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// A table that the kernel removes together with the socket that made it, and lets nobody else remove: not by its name, and
/// not with all others (`nft flush ruleset`, which restarts of firewalls begin with). Linux 5.12.
#[derive(Debug)]
pub(crate) struct OwnTable {
    owner: Socket,
    family: NetfilterProtoFamily,
    name: String,
}

impl OwnTable {
    /// Makes it, with all of what `fill` adds or not at all. If there is one of its name, the process of an earlier machine is
    /// about to be gone with it: that is waited for a while.
    pub(crate) fn make(
        family: NetfilterProtoFamily,
        name: &str,
        comment: &str,
        fill: impl Fn(&mut Batch),
    ) -> Result<Self, NetworkError> {
        let failed = |source| refused(&format!("make the table of {name}"), source);
        let mut owner = Socket::netfilter().map_err(failed)?;
        let deadline = Instant::now() + DYING;
        loop {
            let mut batch = Batch::new(family, name);
            batch.add_table(TableFlags::Owner, comment);
            fill(&mut batch);
            match batch.commit(&mut owner) {
                Err(error)
                    if error.raw_os_error() == Some(libc::EEXIST) && Instant::now() < deadline =>
                {
                    thread::sleep(PAUSE);
                }
                result => break result.map_err(failed)?,
            }
        }
        Ok(Self {
            owner,
            family,
            name: name.to_owned(),
        })
    }
}

impl Drop for OwnTable {
    fn drop(&mut self) {
        // Closing the socket would remove the table as well, but not while a process that another thread starts has it.
        if let Err(error) = delete_table(&mut self.owner, self.family, &self.name) {
            tracing::warn!("{error}");
        }
    }
}
