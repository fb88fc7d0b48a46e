// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the bytes behind a request's header to an [`Operation`] with checked names and lengths.

use std::ffi::CStr;

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::abi::{self, ForgetOne};
use super::body::Body;
use super::flags::getattr;
use super::name::Name;
use super::opcode::Opcode;
use super::set_attr::SetAttr;
use crate::filesystem::{HandleId, NodeId};

/// What a request asks for, checked; names and values borrow from the request's bytes.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Operation<'b> {
    Init(abi::InitIn),
    Destroy,
    Lookup {
        name: Name<'b>,
    },
    Forget {
        count: u64,
    },
    BatchForget(ForgetList<'b>),
    GetAttr {
        handle: Option<HandleId>,
    },
    SetAttr(SetAttr),
    ReadLink,
    Symlink {
        name: Name<'b>,
        target: &'b CStr,
    },
    Mknod {
        name: Name<'b>,
        mode: u32,
        rdev: u32,
    },
    Mkdir {
        name: Name<'b>,
        mode: u32,
    },
    Unlink {
        name: Name<'b>,
    },
    Rmdir {
        name: Name<'b>,
    },
    Rename {
        name: Name<'b>,
        new_parent: NodeId,
        new_name: Name<'b>,
        flags: u32,
    },
    Link {
        source: NodeId,
        new_name: Name<'b>,
    },
    Open {
        flags: u32,
        open_flags: u32,
    },
    Create {
        name: Name<'b>,
        flags: u32,
        mode: u32,
        open_flags: u32,
    },
    TmpFile {
        flags: u32,
        mode: u32,
    },
    Read {
        handle: HandleId,
        offset: u64,
        size: u32,
    },
    /// The data follows in the part of the request that was not read yet.
    Write {
        handle: HandleId,
        offset: u64,
        size: u32,
        write_flags: u32,
        flags: u32,
    },
    StatFs,
    Release {
        handle: HandleId,
    },
    Flush {
        handle: HandleId,
    },
    Fsync {
        handle: HandleId,
        data_only: bool,
    },
    SetXattr {
        name: &'b CStr,
        value: &'b [u8],
        flags: u32,
    },
    /// A size of 0 asks how much room the value needs.
    GetXattr {
        name: &'b CStr,
        size: u32,
    },
    /// A size of 0 asks how much room the list needs.
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: &'b CStr,
    },
    OpenDir {
        flags: u32,
    },
    ReadDir {
        handle: HandleId,
        offset: u64,
        size: u32,
        plus: bool,
    },
    ReleaseDir {
        handle: HandleId,
    },
    FsyncDir {
        handle: HandleId,
        data_only: bool,
    },
    Fallocate {
        handle: HandleId,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        handle: HandleId,
        offset: u64,
        whence: u32,
    },
    CopyFileRange {
        from: HandleId,
        from_offset: u64,
        to_node: NodeId,
        to: HandleId,
        to_offset: u64,
        length: u64,
    },
    SyncFs,
    /// Known, without a reply, and without an effect here.
    Ignored,
    /// Not implemented: the guest's kernel does without, or does it itself (locks, ACCESS).
    Unsupported,
}

/// The pairs of node and count in a BATCH_FORGET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForgetList<'b>(&'b [u8]);

impl<'b> ForgetList<'b> {
    pub(super) const fn new(list: &'b [u8]) -> Self {
        Self(list)
    }

    /// Node and count, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.0
            .chunks_exact(size_of::<ForgetOne>())
            .filter_map(|chunk| ForgetOne::read_from_bytes(chunk).ok())
            .map(|one| (NodeId(one.nodeid), one.nlookup))
    }
}

impl<'b> Operation<'b> {
    /// How many bytes of a request, behind its header, are to be read before [`parse`](Self::parse):
    /// everything, but for a WRITE, whose data goes from the guest's pages to the file without a copy.
    pub const fn parsed_length(opcode: Opcode, body: usize) -> usize {
        match opcode {
            Opcode::Write if body > size_of::<abi::WriteIn>() => size_of::<abi::WriteIn>(),
            _ => body,
        }
    }

    /// Parses `body`, the bytes behind the header of a request.
    ///
    /// # Errors
    /// `EINVAL` where the body is too short, holds more than it should or a value out of range;
    /// `ENAMETOOLONG` and `ERANGE` for names that are too long.
    pub fn parse(opcode: Opcode, body: &'b [u8]) -> Result<Self, Errno> {
        let mut body = Body(body);
        let operation = match opcode {
            Opcode::Init => Self::Init(body.init()?),
            Opcode::Destroy => Self::Destroy,
            Opcode::Lookup => Self::Lookup { name: body.name()? },
            Opcode::Forget => Self::Forget {
                count: body.get::<abi::ForgetIn>()?.nlookup,
            },
            Opcode::BatchForget => Self::BatchForget(body.forgets()?),
            Opcode::GetAttr => {
                let arg: abi::GetAttrIn = body.get()?;
                let named = arg.getattr_flags & getattr::FH != 0;
                Self::GetAttr {
                    handle: named.then_some(HandleId(arg.fh)),
                }
            }
            Opcode::SetAttr => Self::SetAttr(SetAttr::new(&body.get()?)?),
            Opcode::ReadLink => Self::ReadLink,
            Opcode::Symlink => Self::Symlink {
                name: body.name()?,
                target: body.target()?,
            },
            Opcode::Mknod => {
                let arg: abi::MknodIn = body.get()?;
                Self::Mknod {
                    name: body.name()?,
                    mode: arg.mode,
                    rdev: arg.rdev,
                }
            }
            Opcode::Mkdir => {
                let arg: abi::MkdirIn = body.get()?;
                Self::Mkdir {
                    name: body.name()?,
                    mode: arg.mode,
                }
            }
            Opcode::Unlink => Self::Unlink { name: body.name()? },
            Opcode::Rmdir => Self::Rmdir { name: body.name()? },
            Opcode::Rename => {
                let arg: abi::RenameIn = body.get()?;
                body.rename(arg.newdir, 0)?
            }
            Opcode::Rename2 => {
                let arg: abi::Rename2In = body.get()?;
                body.rename(arg.newdir, arg.flags)?
            }
            Opcode::Link => {
                let arg: abi::LinkIn = body.get()?;
                Self::Link {
                    source: NodeId(arg.oldnodeid),
                    new_name: body.name()?,
                }
            }
            Opcode::Open => {
                let arg: abi::OpenIn = body.get()?;
                Self::Open {
                    flags: arg.flags,
                    open_flags: arg.open_flags,
                }
            }
            Opcode::OpenDir => Self::OpenDir {
                flags: body.get::<abi::OpenIn>()?.flags,
            },
            Opcode::Create => {
                let abi::CreateIn {
                    flags,
                    mode,
                    open_flags,
                    ..
                } = body.get()?;
                Self::Create {
                    name: body.name()?,
                    flags,
                    mode,
                    open_flags,
                }
            }
            Opcode::TmpFile => {
                let abi::CreateIn { flags, mode, .. } = body.get()?;
                // The kernel sends the name of an unlinked dentry, which names nothing.
                body.c_str()?;
                Self::TmpFile { flags, mode }
            }
            Opcode::Read => {
                let arg: abi::ReadIn = body.get()?;
                Self::Read {
                    handle: HandleId(arg.fh),
                    offset: arg.offset,
                    size: arg.size,
                }
            }
            Opcode::ReadDir | Opcode::ReadDirPlus => {
                let arg: abi::ReadIn = body.get()?;
                let plus = opcode == Opcode::ReadDirPlus;
                Self::ReadDir {
                    handle: HandleId(arg.fh),
                    offset: arg.offset,
                    size: arg.size,
                    plus,
                }
            }
            Opcode::Write => {
                let abi::WriteIn {
                    fh,
                    offset,
                    size,
                    write_flags,
                    flags,
                    ..
                } = body.get()?;
                Self::Write {
                    handle: HandleId(fh),
                    offset,
                    size,
                    write_flags,
                    flags,
                }
            }
            Opcode::StatFs => Self::StatFs,
            Opcode::Release => Self::Release {
                handle: HandleId(body.get::<abi::ReleaseIn>()?.fh),
            },
            Opcode::ReleaseDir => Self::ReleaseDir {
                handle: HandleId(body.get::<abi::ReleaseIn>()?.fh),
            },
            Opcode::Flush => Self::Flush {
                handle: HandleId(body.get::<abi::FlushIn>()?.fh),
            },
            Opcode::Fsync => {
                let (handle, data_only) = body.fsync()?;
                Self::Fsync { handle, data_only }
            }
            Opcode::FsyncDir => {
                let (handle, data_only) = body.fsync()?;
                Self::FsyncDir { handle, data_only }
            }
            Opcode::SetXattr => {
                let arg: abi::SetXattrIn = body.get()?;
                let name = body.xattr_name()?;
                Self::SetXattr {
                    name,
                    value: body.value(arg.size)?,
                    flags: arg.flags,
                }
            }
            Opcode::GetXattr => {
                let arg: abi::GetXattrIn = body.get()?;
                Self::GetXattr {
                    name: body.xattr_name()?,
                    size: arg.size,
                }
            }
            Opcode::ListXattr => Self::ListXattr {
                size: body.get::<abi::GetXattrIn>()?.size,
            },
            Opcode::RemoveXattr => Self::RemoveXattr {
                name: body.xattr_name()?,
            },
            Opcode::Fallocate => {
                let abi::FallocateIn {
                    fh,
                    offset,
                    length,
                    mode,
                    ..
                } = body.get()?;
                Self::Fallocate {
                    handle: HandleId(fh),
                    offset,
                    length,
                    mode,
                }
            }
            Opcode::Lseek => {
                let arg: abi::LseekIn = body.get()?;
                Self::Lseek {
                    handle: HandleId(arg.fh),
                    offset: arg.offset,
                    whence: arg.whence,
                }
            }
            Opcode::CopyFileRange => body.copy_file_range()?,
            Opcode::SyncFs => {
                body.skip();
                Self::SyncFs
            }
            Opcode::Interrupt | Opcode::NotifyReply => {
                body.skip();
                Self::Ignored
            }
            Opcode::GetLk
            | Opcode::SetLk
            | Opcode::SetLkw
            | Opcode::Access
            | Opcode::Bmap
            | Opcode::Ioctl
            | Opcode::Poll
            | Opcode::SetupMapping
            | Opcode::RemoveMapping => {
                body.skip();
                Self::Unsupported
            }
        };
        body.end()?;
        Ok(operation)
    }
}
