// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Acting as the guest's user for one system call.
//!
//! What is made must belong to the user who made it from the first moment on, and the host's rule for
//! set-group-id (a file that is made executable in a group to which its maker does not belong loses the bit)
//! must see that user, not the server and its groups.
//!
//! All of it is per thread, by raw system calls: the C library would change every thread of the process, and
//! another thread may be acting as another user.

use std::cell::Cell;

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::filesystem::{Caller, Result};

/// The thread acts as the guest's user until this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct ActingAs {
    server_uid: Option<Uid>,
    server_gid: Option<Gid>,
}

impl ActingAs {
    /// Switches to `caller`, without any supplementary group.
    ///
    /// The guest's kernel has checked the caller's permissions already, with all the groups and
    /// capabilities that the host does not know of; so the right to pass over permissions stays.
    pub(super) fn new(caller: Caller) -> Result<Self> {
        // To the kernel -1 means "leave it", that is: root.
        if caller.uid == u32::MAX || caller.gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() {
            drop_groups()?;
        }
        // From here on dropping `acting` undoes what was done, also when a later step fails.
        let mut acting = Self {
            server_uid: None,
            server_gid: None,
        };
        if caller.gid != gid.as_raw() {
            set_thread_res_gid(None, Gid::from_raw(caller.gid), None)?;
            acting.server_gid = Some(gid);
        }
        if caller.uid != uid.as_raw() {
            set_thread_res_uid(None, Uid::from_raw(caller.uid), None)?;
            acting.server_uid = Some(uid);
            // The switch emptied the effective set.
            let mut sets = capabilities(None)?;
            sets.effective = sets.permitted & CapabilitySet::DAC_OVERRIDE;
            set_capabilities(None, sets)?;
        }
        Ok(acting)
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        // The saved ids are the server's, so neither can fail. If one did, this thread would serve other
        // users with this one's identity: the process must not go on.
        let uid = self
            .server_uid
            .map_or(Ok(()), |uid| set_thread_res_uid(None, uid, None));
        let gid = self
            .server_gid
            .map_or(Ok(()), |gid| set_thread_res_gid(None, gid, None));
        if uid.is_err() || gid.is_err() {
            std::process::abort();
        }
    }
}

/// Gives up the server's supplementary groups, once per thread: with them, the host takes a guest's user
/// for a member of groups that it is not in.
fn drop_groups() -> Result<()> {
    thread_local!(static DROPPED: Cell<bool> = const { Cell::new(false) });
    if !DROPPED.get() {
        set_thread_groups(&[])?;
        DROPPED.set(true);
    }
    Ok(())
}

/// The thread lacks `CAP_FSETID` until this is dropped, so that the host removes set-user-id and
/// set-group-id from a file that is written or truncated.
#[derive(Debug)]
#[must_use]
pub(super) struct WithoutFsetid(Option<CapabilitySets>);

impl WithoutFsetid {
    /// Gives the capability up if `wanted`.
    pub(super) fn new(wanted: bool) -> Result<Self> {
        if !wanted {
            return Ok(Self(None));
        }
        let before = capabilities(None)?;
        if !before.effective.contains(CapabilitySet::FSETID) {
            return Ok(Self(None));
        }
        let effective = before.effective - CapabilitySet::FSETID;
        set_capabilities(
            None,
            CapabilitySets {
                effective,
                ..before
            },
        )?;
        Ok(Self(Some(before)))
    }
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        // Raising what is permitted cannot fail; the worst case is a bit that goes where it might stay.
        if let Some(before) = self.0 {
            let _ = set_capabilities(None, before);
        }
    }
}
