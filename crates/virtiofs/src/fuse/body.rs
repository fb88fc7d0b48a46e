// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Takes the body of a request apart: structures, then names and values, then nothing.

use std::ffi::CStr;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::abi::{self, ForgetOne};
use super::name::{MAX_TARGET, Name};
use super::request::{ForgetList, Operation};
use crate::filesystem::{HandleId, NodeId};

/// The longest name of an extended attribute, in bytes (`XATTR_NAME_MAX`).
const MAX_XATTR_NAME: usize = 255;

/// What is left of a request's body.
pub(super) struct Body<'b>(pub(super) &'b [u8]);

impl<'b> Body<'b> {
    pub(super) fn get<T: FromBytes + Immutable + KnownLayout>(&mut self) -> Result<T, Errno> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = rest;
        Ok(value)
    }

    pub(super) fn c_str(&mut self) -> Result<&'b CStr, Errno> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = &self.0[string.count_bytes() + 1..];
        Ok(string)
    }

    pub(super) fn name(&mut self) -> Result<Name<'b>, Errno> {
        Name::new(self.c_str()?)
    }

    pub(super) fn target(&mut self) -> Result<&'b CStr, Errno> {
        match self.c_str()? {
            target if target.is_empty() => Err(Errno::INVAL),
            target if target.count_bytes() > MAX_TARGET => Err(Errno::NAMETOOLONG),
            target => Ok(target),
        }
    }

    pub(super) fn xattr_name(&mut self) -> Result<&'b CStr, Errno> {
        match self.c_str()? {
            name if name.is_empty() || name.count_bytes() > MAX_XATTR_NAME => Err(Errno::RANGE),
            name => Ok(name),
        }
    }

    pub(super) fn value(&mut self, size: u32) -> Result<&'b [u8], Errno> {
        let size = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        let (value, rest) = self.0.split_at_checked(size).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(value)
    }

    pub(super) fn init(&mut self) -> Result<abi::InitIn, Errno> {
        if let Ok(long) = self.get::<abi::InitIn>() {
            return Ok(long);
        }
        let abi::InitInShort {
            major,
            minor,
            max_readahead,
            flags,
        } = self.get()?;
        Ok(abi::InitIn {
            major,
            minor,
            max_readahead,
            flags,
            ..Default::default()
        })
    }

    pub(super) fn forgets(&mut self) -> Result<ForgetList<'b>, Errno> {
        let count = self.get::<abi::BatchForgetIn>()?.count;
        let bytes = usize::try_from(count)
            .ok()
            .and_then(|count| count.checked_mul(size_of::<ForgetOne>()))
            .ok_or(Errno::INVAL)?;
        let (list, rest) = self.0.split_at_checked(bytes).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(ForgetList::new(list))
    }

    pub(super) fn rename(&mut self, new_parent: u64, flags: u32) -> Result<Operation<'b>, Errno> {
        let name = self.name()?;
        let new_name = self.name()?;
        Ok(Operation::Rename {
            name,
            new_parent: NodeId(new_parent),
            new_name,
            flags,
        })
    }

    pub(super) fn fsync(&mut self) -> Result<(HandleId, bool), Errno> {
        let arg: abi::FsyncIn = self.get()?;
        Ok((
            HandleId(arg.fh),
            arg.fsync_flags & super::flags::fsync::FDATASYNC != 0,
        ))
    }

    pub(super) fn copy_file_range(&mut self) -> Result<Operation<'b>, Errno> {
        let arg: abi::CopyFileRangeIn = self.get()?;
        if arg.flags != 0 {
            return Err(Errno::INVAL);
        }
        Ok(Operation::CopyFileRange {
            from: HandleId(arg.fh_in),
            from_offset: arg.off_in,
            to_node: NodeId(arg.nodeid_out),
            to: HandleId(arg.fh_out),
            to_offset: arg.off_out,
            length: arg.len,
        })
    }

    pub(super) fn skip(&mut self) {
        self.0 = &[];
    }

    /// Bytes that nobody asked for are no part of a request that Linux sends.
    pub(super) fn end(&self) -> Result<(), Errno> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Errno::INVAL)
        }
    }
}
