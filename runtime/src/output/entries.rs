// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading a container's log, and going on as it is written.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Stream;
use super::log::{OLD, YOUNG};

/// The most bytes of a line that are read: the log of a container whose disk was full may have half ones.
const LINE: u64 = 64 << 10;

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it came, as RFC 3339 has it.
    pub time: String,
    pub stream: Stream,
    /// Whether the container's line ends with it.
    pub whole: bool,
    pub text: Vec<u8>,
}

impl Entry {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?.to_owned();
        let stream = match fields.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let whole = match fields.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self {
            time,
            stream,
            whole,
            text: fields.next()?.to_vec(),
        })
    }
}

/// A log that is being read. What has been written by now comes out of it, then nothing, then what was added since.
pub struct Logged {
    directory: PathBuf,
    /// The file that is read, until its end was seen.
    file: Option<BufReader<File>>,
    /// What has come of a line that is not whole.
    line: Vec<u8>,
    /// Files that were read to their end.
    done: Option<u64>,
}

impl Logged {
    /// The log in a container's directory, from its beginning; without one, it has no lines.
    pub fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            directory: directory.to_owned(),
            file: open(&directory.join(OLD))?
                .map_or_else(|| open(&directory.join(YOUNG)), |file| Ok(Some(file)))?,
            line: Vec::new(),
            done: None,
        })
    }

    /// The next line, if there is one by now.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            let Some(file) = &mut self.file else {
                self.file = open(&self.directory.join(YOUNG))?;
                if self.file.is_none() {
                    return Ok(None);
                }
                continue;
            };
            let room = LINE.saturating_sub(self.line.len() as u64);
            if file.take(room).read_until(b'\n', &mut self.line)? > 0 || room == 0 {
                if self.line.last() != Some(&b'\n') && (self.line.len() as u64) < LINE {
                    // The rest is still being written.
                    continue;
                }
                let line = std::mem::take(&mut self.line);
                // What makes no sense was cut off by a full disk.
                if let Some(entry) = Entry::parse(line.strip_suffix(b"\n").unwrap_or(&line)) {
                    return Ok(Some(entry));
                }
            } else if !self.turn()? {
                return Ok(None);
            }
        }
    }

    /// Goes on to the younger half if what was read to its end is the older one by now.
    fn turn(&mut self) -> io::Result<bool> {
        let Some(file) = &self.file else {
            return Ok(false);
        };
        let current = file.get_ref().metadata()?.ino();
        let young = match fs::metadata(self.directory.join(YOUNG)) {
            Ok(young) => young.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if young == current {
            return Ok(false);
        }
        // What was written between the last look at it and its becoming the older half is still to be read.
        if self.done != Some(current) {
            self.done = Some(current);
            return Ok(true);
        }
        self.file = open(&self.directory.join(YOUNG))?;
        self.line.clear();
        Ok(self.file.is_some())
    }
}

fn open(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::Log;
    use super::*;

    fn texts(logged: &mut Logged) -> Vec<String> {
        std::iter::from_fn(|| logged.next().unwrap())
            .map(|entry| String::from_utf8(entry.text).unwrap())
            .collect()
    }

    #[test]
    fn log_is_read_as_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut logged = Logged::open(directory.path()).unwrap();
        assert_eq!(logged.next().unwrap(), None);
        let log = Log::create(directory.path(), 1 << 20).unwrap();

        log.write(Stream::Stdout, b"a\nb");
        let first = texts(&mut logged);
        log.write(Stream::Stderr, b"c\n");

        assert_eq!(first, ["a", "b"]);
        let last = logged.next().unwrap().unwrap();
        assert_eq!(
            (last.stream, last.whole, last.text),
            (Stream::Stderr, true, b"c".to_vec())
        );
        assert_eq!(logged.next().unwrap(), None);
    }

    #[test]
    fn nothing_is_missed_where_the_log_turns() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::create(directory.path(), 4_000).unwrap();
        let mut logged = Logged::open(directory.path()).unwrap();

        let found: Vec<_> = (0..200)
            .flat_map(|number| {
                log.write(Stream::Stdout, format!("{number}\n").as_bytes());
                texts(&mut logged)
            })
            .collect();

        let expected: Vec<_> = (0..200).map(|number| number.to_string()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn older_half_comes_first() {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::create(directory.path(), 4_000).unwrap();
        for number in 0..60 {
            log.write(Stream::Stdout, format!("{number}\n").as_bytes());
        }

        let found = texts(&mut Logged::open(directory.path()).unwrap());

        let first: u32 = found[0].parse().unwrap();
        let expected: Vec<_> = (first..60).map(|number| number.to_string()).collect();
        assert!(directory.path().join(OLD).exists());
        assert_eq!(found, expected);
    }

    #[rstest]
    #[case::empty("")]
    #[case::no_text("2026-01-02T03:04:05Z stdout F")]
    #[case::stream("2026-01-02T03:04:05Z stdin F x")]
    #[case::tag("2026-01-02T03:04:05Z stdout X x")]
    fn what_makes_no_sense_is_no_entry(#[case] line: &str) {
        assert_eq!(Entry::parse(line.as_bytes()), None);
    }
}
