// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a request asks for: `enum fuse_opcode`.

macro_rules! opcodes {
    ($($(#[$meta:meta])* $name:ident = $value:literal,)*) => {
        /// `enum fuse_opcode`, as far as it is known here; whatever else comes is answered with `ENOSYS`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        #[allow(missing_docs)]
        pub enum Opcode { $($(#[$meta])* $name = $value,)* }

        impl Opcode {
            /// Every opcode, for tests that walk them.
            pub const ALL: &'static [Opcode] = &[$(Opcode::$name,)*];

            /// The opcode with this number, if it is known.
            pub const fn from_raw(raw: u32) -> Option<Self> {
                match raw { $($value => Some(Opcode::$name),)* _ => None }
            }
        }
    };
}

opcodes! {
    Lookup = 1, Forget = 2, GetAttr = 3, SetAttr = 4, ReadLink = 5, Symlink = 6, Mknod = 8,
    Mkdir = 9, Unlink = 10, Rmdir = 11, Rename = 12, Link = 13, Open = 14, Read = 15, Write = 16,
    StatFs = 17, Release = 18, Fsync = 20, SetXattr = 21, GetXattr = 22, ListXattr = 23,
    RemoveXattr = 24, Flush = 25, Init = 26, OpenDir = 27, ReadDir = 28, ReleaseDir = 29,
    FsyncDir = 30, GetLk = 31, SetLk = 32, SetLkw = 33, Access = 34, Create = 35, Interrupt = 36,
    Bmap = 37, Destroy = 38, Ioctl = 39, Poll = 40, NotifyReply = 41, BatchForget = 42,
    Fallocate = 43, ReadDirPlus = 44, Rename2 = 45, Lseek = 46, CopyFileRange = 47,
    SetupMapping = 48, RemoveMapping = 49, SyncFs = 50, TmpFile = 51,
}

impl Opcode {
    /// Whether the protocol has no reply for this request: the driver gives no room for one.
    pub const fn is_one_way(self) -> bool {
        matches!(
            self,
            Self::Forget | Self::BatchForget | Self::Interrupt | Self::NotifyReply
        )
    }
}
