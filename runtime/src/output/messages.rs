// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the processes of a container in the background have to say of themselves, besides what it puts out.

use std::fs::File;
use std::io::{self, Read, Write};
use std::thread;

use anyhow::{Context, Result};

/// Name of the file in a container's directory.
pub const MESSAGES: &str = "messages";
/// The most bytes of it that come from processes that a guest can make talk.
const LIMIT: u64 = 1 << 20;
/// What is said instead of the rest.
const LEFT_OUT: &[u8] = b"(more is left out)\n";

/// Where processes may write to that are not to fill the disk with `file`: what comes there goes into it, as long as it
/// has room.
pub fn bounded(file: &File) -> Result<File> {
    let mut file = file
        .try_clone()
        .context("cannot duplicate a file for messages")?;
    let (read, write) = io::pipe().context("cannot make a pipe for messages")?;
    thread::Builder::new()
        .name("messages".into())
        .spawn(move || keep(read, &mut file, LIMIT))
        .context("cannot start the thread for messages")?;
    Ok(File::from(std::os::fd::OwnedFd::from(write)))
}

/// Takes all that comes, and keeps what there is room for.
fn keep(mut from: impl Read, to: &mut impl Write, limit: u64) {
    // What cannot be written is lost: nobody is to wait for a full disk.
    let _ = io::copy(&mut from.by_ref().take(limit), to);
    let mut rest = io::sink();
    if matches!(io::copy(&mut from.by_ref().take(1), &mut rest), Ok(1)) {
        let _ = to.write_all(LEFT_OUT);
    }
    let _ = io::copy(&mut from, &mut rest);
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::fits("0123456789", "0123456789")]
    #[case::does_not_fit("0123456789a", "0123456789(more is left out)\n")]
    fn messages_are_kept_as_far_as_there_is_room(#[case] said: &str, #[case] kept: &str) {
        let mut file = Vec::new();

        keep(said.as_bytes(), &mut file, 10);

        assert_eq!(String::from_utf8(file).unwrap(), kept);
    }

    #[test]
    fn nobody_waits_for_a_full_disk() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut end = bounded(&full).unwrap();

        for _ in 0..100 {
            end.write_all(&[b'x'; 64 << 10]).unwrap();
        }
    }
}
