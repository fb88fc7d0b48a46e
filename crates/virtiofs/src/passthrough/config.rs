// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a directory is shared.

use std::time::Duration;

/// What the guest may keep of what it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachePolicy {
    /// Nothing: every access asks the host, data goes around the guest's page cache. For directories that
    /// others change and the guest must see at once. Shared writable mappings do not work.
    Never,
    /// Names and attributes for [`FsConfig::timeout`]; data until size or modification time change.
    Auto,
    /// Everything, until the guest itself changes it. For directories that nobody else changes.
    Always,
}

/// How a directory is shared. [`Default`] is writable, with [`CachePolicy::Auto`] for one second.
#[derive(Clone, Debug)]
pub struct FsConfig {
    /// Whatever would change something is answered with `EROFS`. A bind mount that is read-only on the
    /// host stays so without this.
    pub read_only: bool,
    /// What the guest may keep.
    pub cache: CachePolicy,
    /// For how long names and attributes hold under [`CachePolicy::Auto`].
    pub timeout: Duration,
    /// Whether the guest may make device nodes. The server never opens one, but other processes of the host
    /// that reach the directory could, so that no one but root should. Containers have `CAP_MKNOD` by default.
    pub device_nodes: bool,
    /// Most inodes that the guest may hold at a time; each is a file descriptor here. Beyond that a
    /// look-up is answered with `ENFILE`.
    pub max_inodes: usize,
    /// Most files and directories that the guest may have open at a time; each is a file descriptor
    /// here. Beyond that an open is answered with `ENFILE`.
    pub max_handles: usize,
}

impl Default for FsConfig {
    fn default() -> Self {
        Self {
            read_only: false,
            cache: CachePolicy::Auto,
            timeout: Duration::from_secs(1),
            device_nodes: true,
            max_inodes: 900_000,
            max_handles: 100_000,
        }
    }
}

impl FsConfig {
    /// For how long a name or attribute holds.
    pub(super) const fn lifetime(&self) -> Duration {
        match self.cache {
            CachePolicy::Never => Duration::ZERO,
            CachePolicy::Auto => self.timeout,
            CachePolicy::Always => Duration::from_secs(24 * 60 * 60),
        }
    }
}
