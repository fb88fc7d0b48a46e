// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attributes: what `stat` says, and changing them.

use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Statx, StatxFlags, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, Uid,
};
use rustix::io::Errno;

use super::PassthroughFs;
use super::credentials::WithoutFsetid;
use super::inode::{Inode, Key};
use crate::filesystem::{NodeId, Result};
use crate::fuse::abi::Attr;
use crate::fuse::{SetAttr, TimeChange, flags};

/// What the host says of an inode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Status(Statx);

impl Status {
    /// Asks about the inode behind a descriptor.
    pub(super) fn of(fd: impl AsFd) -> Result<Self> {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        rustix::fs::statx(
            fd,
            c"",
            AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW,
            mask,
        )
        .map(Self)
    }

    pub(super) const fn key(&self) -> Key {
        Key {
            device: (self.0.stx_dev_major, self.0.stx_dev_minor),
            inode: self.0.stx_ino,
            mount: self.0.stx_mnt_id,
        }
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.0.stx_mode.into())
    }

    /// The attributes as FUSE has them. `below` is the directory in which the inode was found: where a mount
    /// begins, the guest is told, so that it gives the mount a device number of its own, without which
    /// inode numbers of two file systems would get mixed up.
    pub(super) fn attributes(&self, below: Option<&Inode>) -> Attr {
        let stat = &self.0;
        let enters_mount = below.is_some_and(|parent| parent.mount() != stat.stx_mnt_id);
        Attr {
            ino: stat.stx_ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: stat.stx_atime.tv_sec.cast_unsigned(),
            mtime: stat.stx_mtime.tv_sec.cast_unsigned(),
            ctime: stat.stx_ctime.tv_sec.cast_unsigned(),
            atimensec: stat.stx_atime.tv_nsec,
            mtimensec: stat.stx_mtime.tv_nsec,
            ctimensec: stat.stx_ctime.tv_nsec,
            mode: stat.stx_mode.into(),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: encode_device(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            flags: match self.kind() {
                FileType::Directory if enters_mount => flags::attr::SUBMOUNT,
                _ => 0,
            },
        }
    }
}

/// A device number as FUSE carries it in 32 bits (`new_encode_dev`).
const fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Major and minor of a device number as FUSE carries it (`new_decode_dev`).
pub(super) const fn decode_device(device: u32) -> (u32, u32) {
    (
        (device & 0xf_ff00) >> 8,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    )
}

impl PassthroughFs {
    pub(super) fn attributes(&self, node: NodeId) -> Result<Attr> {
        let inode = self.inodes.get(node)?;
        Ok(Status::of(&*inode)?.attributes(None))
    }

    /// In the order in which Linux would do it: each step may change what the next one meets.
    pub(super) fn change_attributes(&self, node: NodeId, change: &SetAttr) -> Result<Attr> {
        let inode = self.inodes.get(node)?;
        if let Some(mode) = change.mode {
            self.fds.change_mode(&*inode, Mode::from_raw_mode(mode))?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            rustix::fs::chownat(&*inode, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = change.size {
            self.truncate(node, &inode, change, size)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(change.atime),
                last_modification: timespec(change.mtime),
            };
            rustix::fs::utimensat(&*inode, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(Status::of(&*inode)?.attributes(None))
    }

    fn truncate(&self, node: NodeId, inode: &Inode, change: &SetAttr, size: u64) -> Result<()> {
        if i64::try_from(size).is_err() {
            return Err(Errno::INVAL);
        }
        let _killing = WithoutFsetid::new(change.kill_suidgid)?;
        if let Some(id) = change.handle {
            return rustix::fs::ftruncate(&*self.handles.file(node, id)?, size);
        }
        inode.require_file()?;
        rustix::fs::ftruncate(self.fds.reopen(inode, OFlags::WRONLY)?, size)
    }
}

const fn timespec(change: Option<TimeChange>) -> Timespec {
    match change {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        Some(TimeChange::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        Some(TimeChange::At {
            seconds,
            nanoseconds,
        }) => Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds as i64,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_device_number_survives_the_wire(major in 0_u32..0x1000, minor in 0_u32..0x10_0000) {
            prop_assert_eq!(decode_device(encode_device(major, minor)), (major, minor));
        }
    }
}
