// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of one machine each.

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::TableFlags;

use super::{Batch, delete_table, refused};
use crate::error::NetworkError;
use crate::netlink::Socket;

/// A table that the kernel removes together with the socket that made it, and lets nobody else remove: not by its name, and
/// not with all others (`nft flush ruleset`, which restarts of firewalls begin with). Linux 5.12.
#[derive(Debug)]
pub(crate) struct OwnTable {
    owner: Socket,
    family: NetfilterProtoFamily,
    name: String,
}

impl OwnTable {
    /// Makes it, with all of what `fill` adds or not at all.
    pub(crate) fn make(
        family: NetfilterProtoFamily,
        name: &str,
        comment: &str,
        fill: impl FnOnce(&mut Batch),
    ) -> Result<Self, NetworkError> {
        let failed = |source| refused(&format!("make the table of {name}"), source);
        let mut batch = Batch::new(family, name);
        batch.add_table(TableFlags::Owner, comment);
        fill(&mut batch);
        let mut owner = Socket::netfilter().map_err(failed)?;
        batch.commit(&mut owner).map_err(failed)?;
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
