// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A container's log, as CRI engines write theirs: a line for each that the container puts out, with the time, the
//! stream, and `F` for a whole line or `P` for a part of one.
//!
//! ```text
//! 2026-01-02T03:04:05.000000006Z stdout F hello
//! ```
//!
//! A container may put out what it likes for as long as it likes: of a log that grows beyond its limit, the older half
//! goes.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::container::Time;

/// Name of the log's younger half in the container's directory.
pub const YOUNG: &str = "log";
/// Name of its older half.
pub const OLD: &str = "log.1";
/// Name of the next younger half while it is made.
const NEXT: &str = "log.new";
/// The most bytes of one line of the log, without what stands before it.
const LINE: usize = 16 << 10;

/// One of a container's output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A log that is being written, by several streams at once.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Halves>>);

struct Halves {
    directory: PathBuf,
    young: File,
    written: u64,
    /// The most bytes of one half.
    limit: u64,
    failed: bool,
    /// The last line may be half.
    is_broken: bool,
}

impl Log {
    /// A new log in a container's directory, of `limit` bytes at most.
    pub fn create(directory: &Path, limit: u64) -> Result<Self> {
        let young = create(directory, YOUNG)
            .with_context(|| format!("cannot make a log in {}", directory.display()))?;
        Ok(Self(Arc::new(Mutex::new(Halves {
            directory: directory.to_owned(),
            young,
            written: 0,
            limit: limit / 2,
            failed: false,
            is_broken: false,
        }))))
    }

    /// Takes what has come on a stream. What cannot be written is lost: the container is not to suffer for a full disk.
    pub fn write(&self, stream: Stream, piece: &[u8]) {
        let text = lines(Time::now(), stream, piece);
        // A thread that panicked has left whole lines.
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match halves.write(&text) {
            Ok(()) => halves.failed = false,
            Err(error) if !halves.failed => {
                warn!("the container's output cannot be logged: {error}");
                halves.failed = true;
            }
            Err(_) => {}
        }
    }
}

impl Halves {
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let length = text.len() as u64;
        if self.written > 0 && self.written.saturating_add(length) > self.limit {
            self.turn()?;
        }
        // Counted first: half a line that fits no more on the disk is there, too.
        self.written = self.written.saturating_add(length);
        if self.is_broken {
            self.young.write_all(b"\n")?;
        }
        self.is_broken = true;
        self.young.write_all(text)?;
        self.is_broken = false;
        Ok(())
    }

    /// Begins a younger half. Where that fails everything is as before.
    fn turn(&mut self) -> io::Result<()> {
        let [young, old, next] = [YOUNG, OLD, NEXT].map(|name| self.directory.join(name));
        let file = create(&self.directory, NEXT)?;
        match fs::rename(&young, &old) {
            // It was done before, and the next one failed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        fs::rename(&next, &young)?;
        self.young = file;
        self.written = 0;
        self.is_broken = false;
        Ok(())
    }
}

fn create(directory: &Path, name: &str) -> io::Result<File> {
    File::options()
        .append(true)
        .create(true)
        .truncate(false)
        .open(directory.join(name))
}

/// The lines of the log for a piece of output.
fn lines(time: Time, stream: Stream, piece: &[u8]) -> Vec<u8> {
    let mut head = String::new();
    // A string takes what is written to it.
    let _ = write!(head, "{time} {} ", stream.name());
    let mut text = Vec::with_capacity(piece.len() + 2 * head.len());
    for line in piece.split_inclusive(|byte| *byte == b'\n') {
        let (line, whole) = match line.strip_suffix(b"\n") {
            Some(line) => (line, true),
            None => (line, false),
        };
        let mut parts = line.chunks(LINE).peekable();
        if parts.peek().is_none() {
            entry(&mut text, &head, true, &[]);
        }
        while let Some(part) = parts.next() {
            entry(&mut text, &head, whole && parts.peek().is_none(), part);
        }
    }
    text
}

fn entry(text: &mut Vec<u8>, head: &str, whole: bool, part: &[u8]) {
    text.extend_from_slice(head.as_bytes());
    text.extend_from_slice(if whole { b"F " } else { b"P " });
    text.extend_from_slice(part);
    text.push(b'\n');
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn time() -> Time {
        "2026-01-02T03:04:05.000000006Z".parse().unwrap()
    }

    #[rstest]
    #[case::line("hello\n", "F hello\n")]
    #[case::two_lines("a\nb\n", "F a\nF b\n")]
    #[case::part("hel", "P hel\n")]
    #[case::line_and_part("a\nb", "F a\nP b\n")]
    #[case::empty_line("\n", "F \n")]
    fn output_becomes(#[case] piece: &str, #[case] expected: &str) {
        let text = lines(time(), Stream::Stderr, piece.as_bytes());

        let found = String::from_utf8(text).unwrap();
        let head = "2026-01-02T03:04:05.000000006Z stderr ";
        assert_eq!(found.replace(head, ""), expected);
        assert_eq!(found.matches(head).count(), expected.lines().count());
    }

    #[test]
    fn long_line_comes_in_parts() {
        let piece = [vec![b'x'; LINE + 1], b"\n".to_vec()].concat();

        let text = lines(time(), Stream::Stdout, &piece);

        let found = String::from_utf8(text).unwrap();
        let tags: Vec<_> = found.lines().map(|line| &line[38..39]).collect();
        assert_eq!(tags, ["P", "F"]);
    }

    #[test]
    fn log_that_could_not_turn_goes_on_once_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::create(directory.path(), 1000).unwrap();
        let line = [&[b'x'; 400][..], b"\n"].concat();
        log.write(Stream::Stdout, &line);
        let obstacle = directory.path().join(NEXT);
        fs::create_dir(&obstacle).unwrap();
        log.write(Stream::Stdout, &line);
        fs::remove_dir(&obstacle).unwrap();
        fs::remove_file(directory.path().join(YOUNG)).unwrap();

        log.write(Stream::Stdout, &line);
        log.write(Stream::Stdout, b"last\n");

        let young = fs::read_to_string(directory.path().join(YOUNG)).unwrap();
        assert!(young.ends_with("F last\n"), "{young}");
    }

    #[test]
    fn line_after_half_a_one_stands_alone() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::create(directory.path(), 1 << 20).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut halves = log.0.lock().unwrap();
        let own = std::mem::replace(&mut halves.young, full);
        halves.write(b"a line").unwrap_err();
        halves.young = own;
        halves.young.write_all(b"a li").unwrap();
        drop(halves);

        log.write(Stream::Stdout, b"whole\n");

        let young = fs::read_to_string(directory.path().join(YOUNG)).unwrap();
        let lines: Vec<_> = young.lines().collect();
        assert_eq!(lines[0], "a li");
        assert!(lines[1].ends_with(" stdout F whole"), "{young}");
    }

    #[test]
    fn log_stays_within_its_limit_and_keeps_the_youngest() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::create(directory.path(), 10_000).unwrap();

        for number in 0..1000 {
            log.write(Stream::Stdout, format!("line {number}\n").as_bytes());
        }

        let length = |name| fs::metadata(directory.path().join(name)).unwrap().len();
        assert!(length(YOUNG) <= 5_000 && length(OLD) <= 5_000);
        let young = fs::read_to_string(directory.path().join(YOUNG)).unwrap();
        assert!(young.ends_with("F line 999\n"));
    }
}
