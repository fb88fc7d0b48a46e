// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extended attributes, by an allow-list of names.
//!
//! `user.` is the guest's to use, and `security.capability` comes with images. Everything else means
//! something to the host: `trusted.` to its overlays, `security.` to its security modules, `system.` to
//! its access control lists, which the guest's kernel does not check here.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;

use super::PassthroughFs;
use crate::filesystem::{NodeId, Result};

/// The longest value and the longest list (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`), in bytes.
const MAX_VALUE: usize = 64 * 1024;

impl PassthroughFs {
    pub(super) fn set_attribute(
        &self,
        node: NodeId,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> Result<()> {
        require_allowed(name)?;
        if value.len() > MAX_VALUE {
            return Err(Errno::TOOBIG);
        }
        let flags = XattrFlags::from_bits(flags)
            .filter(|flags| (XattrFlags::CREATE | XattrFlags::REPLACE).contains(*flags))
            .ok_or(Errno::INVAL)?;
        let file = self.open_for_attributes(node)?.ok_or(Errno::PERM)?;
        rustix::fs::fsetxattr(file, name, value, flags)
    }

    pub(super) fn attribute(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> Result<usize> {
        require_allowed(name)?;
        let file = self.open_for_attributes(node)?.ok_or(Errno::NODATA)?;
        if value.is_empty() {
            return rustix::fs::fgetxattr_query(file, name);
        }
        rustix::fs::fgetxattr(file, name, value)
    }

    pub(super) fn attribute_names(&self, node: NodeId, names: &mut Vec<u8>) -> Result<()> {
        let Some(file) = self.open_for_attributes(node)? else {
            return Ok(());
        };
        let mut all = vec![0; MAX_VALUE];
        let length = rustix::fs::flistxattr(file, &mut all[..])?;
        for name in all[..length].split_inclusive(|byte| *byte == 0) {
            if CStr::from_bytes_with_nul(name).is_ok_and(|name| require_allowed(name).is_ok()) {
                names.extend_from_slice(name);
            }
        }
        Ok(())
    }

    pub(super) fn remove_attribute(&self, node: NodeId, name: &CStr) -> Result<()> {
        require_allowed(name)?;
        let file = self.open_for_attributes(node)?.ok_or(Errno::NODATA)?;
        rustix::fs::fremovexattr(file, name)
    }

    /// Only files and directories have attributes of the allowed names. Nothing else is opened.
    fn open_for_attributes(&self, node: NodeId) -> Result<Option<OwnedFd>> {
        let inode = self.inodes.get(node)?;
        if inode.is_directory() || inode.require_file().is_ok() {
            self.fds.reopen(&*inode, OFlags::RDONLY).map(Some)
        } else {
            Ok(None)
        }
    }
}

fn require_allowed(name: &CStr) -> Result<()> {
    let name = name.to_bytes();
    if name == b"security.capability"
        || name
            .strip_prefix(b"user.")
            .is_some_and(|rest| !rest.is_empty())
    {
        Ok(())
    } else {
        Err(Errno::OPNOTSUPP)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::user(c"user.comment", true)]
    #[case::file_capabilities(c"security.capability", true)]
    #[case::user_without_name(c"user.", false)]
    #[case::overlay_of_the_host(c"trusted.overlay.opaque", false)]
    #[case::label_of_the_host(c"security.selinux", false)]
    #[case::signature_of_the_host(c"security.ima", false)]
    #[case::like_file_capabilities(c"security.capability2", false)]
    #[case::access_control_list(c"system.posix_acl_access", false)]
    #[case::no_namespace(c"comment", false)]
    fn only_names_that_mean_nothing_to_the_host_pass(#[case] name: &CStr, #[case] allowed: bool) {
        assert_eq!(require_allowed(name).is_ok(), allowed);
    }
}
