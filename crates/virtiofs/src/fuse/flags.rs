// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The protocol's bit flags (`linux/fuse.h`), one module for each field that holds some.

/// `fuse_init_in.flags` and `fuse_init_out.flags`.
pub mod init {
    /// Several reads of one file may be in flight.
    pub const ASYNC_READ: u32 = 1 << 0;
    /// OPEN handles `O_TRUNC` by itself.
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    /// Writes may be larger than a page.
    pub const BIG_WRITES: u32 = 1 << 5;
    /// Cached pages are dropped when size or modification time changed.
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    /// READDIRPLUS is implemented.
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    /// The kernel chooses between READDIR and READDIRPLUS.
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    /// Direct I/O may be submitted asynchronously.
    pub const ASYNC_DIO: u32 = 1 << 15;
    /// The guest collects writes in its page cache.
    pub const WRITEBACK_CACHE: u32 = 1 << 16;
    /// Lookups and READDIR in one directory may run in parallel.
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    /// `fuse_init_out.max_pages` holds a value.
    pub const MAX_PAGES: u32 = 1 << 22;
    /// Targets of symbolic links may be cached.
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    /// Directories may be marked as roots of submounts.
    pub const SUBMOUNTS: u32 = 1 << 27;
    /// The server removes set-user-id, set-group-id and file capabilities when told.
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// `fuse_attr.flags`.
pub mod attr {
    /// The directory is the root of a submount.
    pub const SUBMOUNT: u32 = 1 << 0;
}

/// `fuse_setattr_in.valid`.
pub mod setattr {
    /// `mode` is to be set.
    pub const MODE: u32 = 1 << 0;
    /// `uid` is to be set.
    pub const UID: u32 = 1 << 1;
    /// `gid` is to be set.
    pub const GID: u32 = 1 << 2;
    /// `size` is to be set.
    pub const SIZE: u32 = 1 << 3;
    /// `atime` is to be set.
    pub const ATIME: u32 = 1 << 4;
    /// `mtime` is to be set.
    pub const MTIME: u32 = 1 << 5;
    /// `fh` names an open handle.
    pub const FH: u32 = 1 << 6;
    /// `atime` is now.
    pub const ATIME_NOW: u32 = 1 << 7;
    /// `mtime` is now.
    pub const MTIME_NOW: u32 = 1 << 8;
    /// Set-user-id and set-group-id go when the size changes.
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `fuse_open_in.open_flags` and `fuse_create_in.open_flags`.
pub mod open_in {
    /// Set-user-id and set-group-id go when the file is truncated.
    pub const KILL_SUIDGID: u32 = 1 << 0;
}

/// `fuse_open_out.open_flags`.
pub mod open_out {
    /// The guest's page cache is bypassed.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// What the guest has cached of the file stays valid.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// The guest may cache the directory's entries.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// No FLUSH is needed when the file is closed.
    pub const NOFLUSH: u32 = 1 << 5;
}

/// `fuse_getattr_in.getattr_flags`.
pub mod getattr {
    /// `fh` names an open handle.
    pub const FH: u32 = 1 << 0;
}

/// `fuse_write_in.write_flags`.
pub mod write {
    /// Delayed write from the guest's page cache: the handle is a guess, the offset is meant.
    pub const CACHE: u32 = 1 << 0;
    /// Set-user-id and set-group-id go.
    pub const KILL_SUIDGID: u32 = 1 << 2;
}

/// `fuse_fsync_in.fsync_flags`.
pub mod fsync {
    /// Only the data, as `fdatasync`.
    pub const FDATASYNC: u32 = 1 << 0;
}
