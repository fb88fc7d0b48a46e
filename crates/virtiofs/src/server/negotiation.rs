// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INIT: what the guest's kernel can do, what this server can, and what both therefore do.

use rustix::io::Errno;

use super::ServerConfig;
use crate::filesystem::Negotiated;
use crate::fuse::abi::{
    InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, OLDEST_MINOR_VERSION,
};
use crate::fuse::flags::init;

/// The most pages of one read or write: Linux's own limit (`FUSE_MAX_MAX_PAGES`).
const MAX_PAGES: u16 = 256;
/// The most bytes of one read or write.
pub(super) const MAX_DATA: u32 = MAX_PAGES as u32 * 4096;
/// How many requests that nobody waits for (read-ahead, for one) the guest may have in flight.
const MAX_BACKGROUND: u16 = 64;

/// What is asked for wherever the guest's kernel knows it.
const WANTED: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::HANDLE_KILLPRIV_V2;

/// Answers an INIT. Without [`Negotiated`] the guest is to try again with the version that the answer names.
///
/// Not asked for, so that the guest's kernel does it by itself: POSIX and BSD locks, access control
/// lists (it would have to check them with the host's users in mind), its umask.
pub(super) fn negotiate(
    offer: &InitIn,
    config: &ServerConfig,
) -> Result<(InitOut, Option<Negotiated>), Errno> {
    let version = InitOut {
        major: KERNEL_VERSION,
        minor: KERNEL_MINOR_VERSION,
        ..InitOut::default()
    };
    if offer.major > KERNEL_VERSION {
        return Ok((version, None));
    }
    if offer.major < KERNEL_VERSION || offer.minor < OLDEST_MINOR_VERSION {
        return Err(Errno::PROTO);
    }
    let mut wanted = WANTED;
    if config.submounts {
        wanted |= init::SUBMOUNTS;
    }
    if config.writeback_cache {
        wanted |= init::WRITEBACK_CACHE;
    }
    let flags = offer.flags & wanted;
    let answer = InitOut {
        max_readahead: offer.max_readahead.min(MAX_DATA),
        flags,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: MAX_DATA,
        // The host keeps times to the nanosecond.
        time_gran: 1,
        max_pages: MAX_PAGES,
        ..version
    };
    let negotiated = Negotiated {
        submounts: flags & init::SUBMOUNTS != 0,
        writeback_cache: flags & init::WRITEBACK_CACHE != 0,
    };
    Ok((answer, Some(negotiated)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn offer(major: u32, minor: u32, flags: u32) -> InitIn {
        InitIn {
            major,
            minor,
            flags,
            max_readahead: 128 * 1024,
            ..InitIn::default()
        }
    }

    #[test]
    fn nothing_is_enabled_that_the_guest_did_not_offer() {
        let offered = init::SUBMOUNTS | init::BIG_WRITES;

        let (answer, negotiated) =
            negotiate(&offer(7, 38, offered), &ServerConfig::default()).unwrap();

        assert_eq!(answer.flags, offered);
        assert_eq!(
            negotiated,
            Some(Negotiated {
                submounts: true,
                writeback_cache: false
            })
        );
    }

    #[test]
    fn nothing_is_enabled_that_is_not_handled_here() {
        let (answer, _) = negotiate(&offer(7, 38, u32::MAX), &ServerConfig::default()).unwrap();

        assert_eq!(answer.flags & !(WANTED | init::SUBMOUNTS), 0);
    }

    #[rstest]
    #[case::another_major(6, 38)]
    #[case::before_virtio_fs(7, 30)]
    fn kernels_that_are_too_old_are_refused(#[case] major: u32, #[case] minor: u32) {
        let result = negotiate(&offer(major, minor, 0), &ServerConfig::default());

        assert_eq!(result, Err(Errno::PROTO));
    }

    #[test]
    fn a_newer_major_version_is_asked_to_come_down() {
        let (answer, negotiated) = negotiate(&offer(8, 0, 0), &ServerConfig::default()).unwrap();

        assert_eq!((answer.major, answer.minor), (7, 38));
        assert_eq!(negotiated, None);
    }
}
