// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What SETATTR asks for.

use rustix::io::Errno;

use super::abi;
use super::flags::setattr;
use crate::filesystem::HandleId;

/// What SETATTR changes; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// The handle the file is open under, if the guest named one.
    pub handle: Option<HandleId>,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size in bytes.
    pub size: Option<u64>,
    /// New time of last access.
    pub atime: Option<TimeChange>,
    /// New time of last modification.
    pub mtime: Option<TimeChange>,
    /// Set-user-id and set-group-id go when the size changes.
    pub kill_suidgid: bool,
}

/// A new value of a time stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TimeChange {
    Now,
    At { seconds: i64, nanoseconds: u32 },
}

impl SetAttr {
    pub(super) fn new(arg: &abi::SetAttrIn) -> Result<Self, Errno> {
        let has = |bit: u32| arg.valid & bit != 0;
        let id = |bit: u32, id: u32| match has(bit) {
            // To the host -1 means "leave it", which the guest did not ask for.
            true if id == u32::MAX => Err(Errno::INVAL),
            true => Ok(Some(id)),
            false => Ok(None),
        };
        Ok(Self {
            handle: has(setattr::FH).then_some(HandleId(arg.fh)),
            mode: has(setattr::MODE).then_some(arg.mode & 0o7777),
            uid: id(setattr::UID, arg.uid)?,
            gid: id(setattr::GID, arg.gid)?,
            size: has(setattr::SIZE).then_some(arg.size),
            atime: TimeChange::new(
                has(setattr::ATIME),
                has(setattr::ATIME_NOW),
                arg.atime,
                arg.atimensec,
            )?,
            mtime: TimeChange::new(
                has(setattr::MTIME),
                has(setattr::MTIME_NOW),
                arg.mtime,
                arg.mtimensec,
            )?,
            kill_suidgid: has(setattr::KILL_SUIDGID),
        })
    }
}

impl TimeChange {
    fn new(set: bool, now: bool, seconds: u64, nanoseconds: u32) -> Result<Option<Self>, Errno> {
        match (set, now) {
            (false, _) => Ok(None),
            (true, true) => Ok(Some(Self::Now)),
            // Beyond a second lie UTIME_NOW and UTIME_OMIT, which only the flags may ask for.
            (true, false) if nanoseconds >= 1_000_000_000 => Err(Errno::INVAL),
            (true, false) => Ok(Some(Self::At {
                seconds: seconds.cast_signed(),
                nanoseconds,
            })),
        }
    }
}
