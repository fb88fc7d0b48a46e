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

/// What the smallest guest may hold: enough for the files of an image.
const MIN_INODES: usize = 16_384;
/// What the largest may. With its open files it fits into the 1,048,576 descriptors that a process can have.
const MAX_INODES: usize = 900_000;

/// How a directory is shared. [`Default`] is writable, with [`CachePolicy::Auto`] for one second, and with
/// bounds for a large guest; [`for_guest_memory`](Self::for_guest_memory) has smaller ones for smaller guests.
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
            max_inodes: MAX_INODES,
            max_handles: 100_000,
        }
    }
}

impl FsConfig {
    /// The default with bounds for a guest that has `mib` MiB of memory: one inode for each KiB of it, but at least
    /// 16,384 and at most 900,000; and an eighth as many open files and directories.
    ///
    /// Each inode that a guest holds pins a descriptor, an inode and a name in the host kernel's memory, about 1 KiB
    /// in all. So a guest can cost the host about as much again as its own memory, and a small one no more than a
    /// little. For a guest's own kernel it is enough: to remember an inode costs it as much.
    #[must_use]
    pub fn for_guest_memory(mib: u64) -> Self {
        let max_inodes = usize::try_from(mib.saturating_mul(1024))
            .unwrap_or(usize::MAX)
            .clamp(MIN_INODES, MAX_INODES);
        Self {
            max_inodes,
            max_handles: max_inodes / 8,
            ..Self::default()
        }
    }

    /// For how long a name or attribute holds.
    pub(super) const fn lifetime(&self) -> Duration {
        match self.cache {
            CachePolicy::Never => Duration::ZERO,
            CachePolicy::Auto => self.timeout,
            CachePolicy::Always => Duration::from_secs(24 * 60 * 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::no_memory(0, 16_384)]
    #[case::just_the_least(16, 16_384)]
    #[case::small(128, 131_072)]
    #[case::common(512, 524_288)]
    #[case::large(4096, 900_000)]
    #[case::beyond_all_numbers(u64::MAX, 900_000)]
    fn bounds_grow_with_the_guest(#[case] mib: u64, #[case] inodes: usize) {
        let config = FsConfig::for_guest_memory(mib);

        assert_eq!(
            (config.max_inodes, config.max_handles),
            (inodes, inodes / 8)
        );
    }
}
