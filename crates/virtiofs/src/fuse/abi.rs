// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The structures of FUSE 7.38 as they lie in memory (`linux/fuse.h`), in the byte order of the guest.
//!
//! They carry the header's field names, so that a reader can hold the two side by side. Nothing here
//! has implicit padding: zerocopy refuses to derive `IntoBytes` for a structure that would leak any.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The major version of the protocol that is spoken here.
pub const KERNEL_VERSION: u32 = 7;
/// The newest minor version that is known here.
pub const KERNEL_MINOR_VERSION: u32 = 38;
/// The oldest minor version that is accepted: Linux 5.4, the first with virtio-fs.
pub const OLDEST_MINOR_VERSION: u32 = 31;
/// The node id of the root directory.
pub const ROOT_ID: u64 = 1;

macro_rules! wire {
    ($($(#[$meta:meta])* struct $name:ident { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            #[allow(missing_docs)]
            pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
        )*
    };
}

wire! {
    /// `fuse_in_header`: begins every request.
    struct InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// `fuse_out_header`: begins every reply. `error` is 0 or a negative error number.
    struct OutHeader { len: u32, error: i32, unique: u64, }

    /// `fuse_attr`: what `stat` says.
    struct Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32,
        rdev: u32, blksize: u32, flags: u32,
    }
    /// `fuse_entry_out`: the answer to LOOKUP and to whatever makes a name.
    struct EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    /// `fuse_attr_out`: the answer to GETATTR and SETATTR.
    struct AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    /// `fuse_kstatfs`: the answer to STATFS.
    struct StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }

    /// `fuse_init_in`, as Linux has sent it since 5.17.
    struct InitIn {
        major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
    }
    /// `fuse_init_in`, as Linux sent it before 5.17.
    struct InitInShort { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// `fuse_init_out`.
    struct InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16,
        map_alignment: u16, flags2: u32, unused: [u32; 7],
    }

    /// `fuse_forget_in`.
    struct ForgetIn { nlookup: u64, }
    /// `fuse_batch_forget_in`, followed by `count` times [`ForgetOne`].
    struct BatchForgetIn { count: u32, dummy: u32, }
    /// `fuse_forget_one`.
    struct ForgetOne { nodeid: u64, nlookup: u64, }
    /// `fuse_getattr_in`.
    struct GetAttrIn { getattr_flags: u32, dummy: u32, fh: u64, }
    /// `fuse_setattr_in`.
    struct SetAttrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64,
        ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32,
        uid: u32, gid: u32, unused5: u32,
    }
    /// `fuse_mknod_in`, followed by the name.
    struct MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32, }
    /// `fuse_mkdir_in`, followed by the name.
    struct MkdirIn { mode: u32, umask: u32, }
    /// `fuse_rename_in`, followed by the old and the new name.
    struct RenameIn { newdir: u64, }
    /// `fuse_rename2_in`, followed by the old and the new name.
    struct Rename2In { newdir: u64, flags: u32, padding: u32, }
    /// `fuse_link_in`, followed by the new name.
    struct LinkIn { oldnodeid: u64, }
    /// `fuse_open_in`: OPEN and OPENDIR.
    struct OpenIn { flags: u32, open_flags: u32, }
    /// `fuse_create_in`, followed by the name.
    struct CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    /// `fuse_open_out`.
    struct OpenOut { fh: u64, open_flags: u32, padding: u32, }
    /// `fuse_release_in`: RELEASE and RELEASEDIR.
    struct ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    /// `fuse_flush_in`.
    struct FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    /// `fuse_read_in`: READ, READDIR and READDIRPLUS.
    struct ReadIn {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// `fuse_write_in`, followed by the data.
    struct WriteIn {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// `fuse_write_out`.
    struct WriteOut { size: u32, padding: u32, }
    /// `fuse_fsync_in`: FSYNC and FSYNCDIR.
    struct FsyncIn { fh: u64, fsync_flags: u32, padding: u32, }
    /// `fuse_setxattr_in` in its short form (SETXATTR_EXT is not negotiated), followed by name and value.
    struct SetXattrIn { size: u32, flags: u32, }
    /// `fuse_getxattr_in`: GETXATTR and LISTXATTR, the former followed by the name.
    struct GetXattrIn { size: u32, padding: u32, }
    /// `fuse_getxattr_out`: the answer to a question for a size.
    struct GetXattrOut { size: u32, padding: u32, }
    /// `fuse_fallocate_in`.
    struct FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    /// `fuse_lseek_in`.
    struct LseekIn { fh: u64, offset: u64, whence: u32, padding: u32, }
    /// `fuse_lseek_out`.
    struct LseekOut { offset: u64, }
    /// `fuse_copy_file_range_in`.
    struct CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// `fuse_dirent`, followed by the name, padded with zeros to a multiple of 8.
    struct Dirent { ino: u64, off: u64, namelen: u32, kind: u32, }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::in_header(size_of::<InHeader>(), 40)]
    #[case::out_header(size_of::<OutHeader>(), 16)]
    #[case::attr(size_of::<Attr>(), 88)]
    #[case::entry_out(size_of::<EntryOut>(), 128)]
    #[case::attr_out(size_of::<AttrOut>(), 104)]
    #[case::statfs_out(size_of::<StatfsOut>(), 80)]
    #[case::init_in(size_of::<InitIn>(), 64)]
    #[case::init_out(size_of::<InitOut>(), 64)]
    #[case::setattr_in(size_of::<SetAttrIn>(), 88)]
    #[case::read_in(size_of::<ReadIn>(), 40)]
    #[case::write_in(size_of::<WriteIn>(), 40)]
    #[case::copy_file_range_in(size_of::<CopyFileRangeIn>(), 56)]
    #[case::dirent(size_of::<Dirent>(), 24)]
    fn structures_have_the_size_of_the_kernels(#[case] ours: usize, #[case] kernels: usize) {
        assert_eq!(ours, kernels);
    }
}
