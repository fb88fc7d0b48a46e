// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an entry has beside its content: owner, mode, time, extended attributes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown, flistxattr,
    fremovexattr, fsetxattr, futimens, utimensat,
};
use rustix::io::Errno;
use tracing::{debug, warn};

use crate::show::quoted;
use crate::tarball::{Entry, Time};

/// Who owns what is unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Whom the image says. Takes root.
    #[default]
    Image,
    /// The caller. Device nodes are refused, file capabilities left out.
    Caller,
}

/// Attributes of an entry.
#[derive(Clone, Debug)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    /// Those that are set at once.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A directory's ACL for what is made in it; set at the end, or it would take effect on what
    /// the layers make there.
    pub(super) default_acl: Option<Vec<u8>>,
}

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
const CAPABILITY: &[u8] = b"security.capability";

impl Attributes {
    /// Takes an entry's attributes, of the extended ones those that an image may set.
    pub(super) fn of(entry: &mut Entry, ownership: Ownership) -> Self {
        let mut attributes = Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: std::mem::take(&mut entry.xattrs),
            default_acl: None,
        };
        attributes.xattrs.retain_mut(|(name, value)| {
            if name == DEFAULT_ACL {
                attributes.default_acl = Some(std::mem::take(value));
                return false;
            }
            let kept = may_set(name, ownership);
            if !kept {
                debug!(
                    entry = quoted(&entry.path),
                    name = quoted(name),
                    "extended attribute left out"
                );
            }
            kept
        });
        attributes
    }
}

/// Whether an image may set this attribute.
///
/// `trusted.overlay.*` would redirect the overlay that is mounted on the tree; security modules'
/// labels belong to the host that made them.
fn may_set(name: &[u8], ownership: Ownership) -> bool {
    match name {
        ACCESS_ACL => true,
        CAPABILITY => ownership == Ownership::Image,
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

/// Sets owner, mode, extended attributes and time, in this order: a change of owner clears
/// set-user-ID bits and file capabilities.
pub(super) fn set_on_file(
    file: impl AsFd,
    attributes: &Attributes,
    ownership: Ownership,
) -> io::Result<()> {
    set_owner(file.as_fd(), attributes, ownership)?;
    fchmod(&file, Mode::from_raw_mode(attributes.mode))?;
    set_xattrs(file.as_fd(), attributes)?;
    futimens(&file, &timestamps(attributes.mtime))?;
    Ok(())
}

/// Sets what can be set on a directory before it is filled: owner and extended attributes.
pub(super) fn set_on_open_directory(
    directory: BorrowedFd<'_>,
    attributes: &Attributes,
    ownership: Ownership,
) -> io::Result<()> {
    set_owner(directory, attributes, ownership)?;
    remove_other_xattrs(directory, attributes, ownership)?;
    set_xattrs(directory, attributes)
}

/// Sets what has to wait until a directory is filled: mode, default ACL and time.
pub(super) fn set_on_finished_directory(
    directory: BorrowedFd<'_>,
    mode: u32,
    default_acl: Option<&[u8]>,
    mtime: Time,
) -> io::Result<()> {
    fchmod(directory, Mode::from_raw_mode(mode))?;
    if let Some(acl) = default_acl {
        fsetxattr(directory, DEFAULT_ACL, acl, XattrFlags::empty())?;
    }
    futimens(directory, &timestamps(mtime))?;
    Ok(())
}

/// Sets owner and time of what cannot be opened: symlinks, FIFOs, device nodes. These have no
/// extended attributes that an image may set.
pub(super) fn set_on_name(
    directory: BorrowedFd<'_>,
    name: &[u8],
    attributes: &Attributes,
    ownership: Ownership,
) -> io::Result<()> {
    if ownership == Ownership::Image {
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        chownat(
            directory,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    utimensat(
        directory,
        name,
        &timestamps(attributes.mtime),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}

fn set_owner(
    file: BorrowedFd<'_>,
    attributes: &Attributes,
    ownership: Ownership,
) -> io::Result<()> {
    if ownership == Ownership::Image {
        fchown(
            file,
            Some(Uid::from_raw(attributes.uid)),
            Some(Gid::from_raw(attributes.gid)),
        )?;
    }
    Ok(())
}

fn set_xattrs(file: BorrowedFd<'_>, attributes: &Attributes) -> io::Result<()> {
    for (name, value) in &attributes.xattrs {
        match fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            // What programs keep for themselves is no reason to fail; capabilities and ACLs are.
            Err(Errno::OPNOTSUPP) if name.starts_with(b"user.") => {
                warn!(
                    name = quoted(name),
                    "the file system keeps no extended attributes of users"
                );
            }
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Removes what a lower layer's entry of the same directory had set.
fn remove_other_xattrs(
    file: BorrowedFd<'_>,
    attributes: &Attributes,
    ownership: Ownership,
) -> io::Result<()> {
    let mut list = vec![0; 64 << 10];
    let length = match flistxattr(file, list.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let names = list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| may_set(name, ownership));
    for name in names.filter(|name| !attributes.xattrs.iter().any(|(kept, _)| kept == name)) {
        fremovexattr(file, name)?;
    }
    Ok(())
}

/// The time for both of a file's: nothing but the image decides on what the tree looks like.
fn timestamps(time: Time) -> Timestamps {
    let time = Timespec {
        tv_sec: time.seconds,
        tv_nsec: i64::from(time.nanoseconds),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(b"user.mime_type", true)]
    #[case(b"security.capability", true)]
    #[case(b"system.posix_acl_access", true)]
    #[case::redirects_an_overlay(b"trusted.overlay.redirect", false)]
    #[case::redirects_an_overlay_of_users(b"user.overlay.redirect", false)]
    #[case::label_of_another_host(b"security.selinux", false)]
    #[case::trusted(b"trusted.x", false)]
    fn attribute_is_set_or_left_out(#[case] name: &[u8], #[case] expected: bool) {
        assert_eq!(may_set(name, Ownership::Image), expected);
    }

    #[test]
    fn capabilities_take_root() {
        assert!(!may_set(CAPABILITY, Ownership::Caller));
    }
}
