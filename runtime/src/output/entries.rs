// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading a container's log, and going on as it is written.

use std::fs::File;
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

/// What comes out of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Logging {
    Line(Entry),
    /// Here lines may have gone before they could be read.
    Gap,
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
        // What is the younger half now may be the older one by the time that is looked for.
        let young = open(&directory.join(YOUNG))?;
        let old = open(&directory.join(OLD))?;
        Ok(Self {
            directory: directory.to_owned(),
            file: old.or(young),
            line: Vec::new(),
            done: None,
        })
    }

    /// Whether there is a log at all.
    pub fn is_there(&self) -> bool {
        self.file.is_some()
    }

    /// The next line, if there is one by now.
    pub fn next(&mut self) -> io::Result<Option<Logging>> {
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
                    return Ok(Some(Logging::Line(entry)));
                }
                continue;
            }
            match self.turn()? {
                Turn::Nothing => return Ok(None),
                Turn::Again | Turn::Next => {}
                Turn::Gap => return Ok(Some(Logging::Gap)),
            }
        }
    }

    /// Goes on to the half that follows if what was read to its end is not the younger one by now.
    fn turn(&mut self) -> io::Result<Turn> {
        let Some(file) = &self.file else {
            return Ok(Turn::Nothing);
        };
        let current = file.get_ref().metadata()?.ino();
        let Some(young) = open(&self.directory.join(YOUNG))? else {
            return Ok(Turn::Nothing);
        };
        if young.get_ref().metadata()?.ino() == current {
            return Ok(Turn::Nothing);
        }
        // What was written between the last look at it and its becoming the older half is still to be read.
        if self.done != Some(current) {
            self.done = Some(current);
            return Ok(Turn::Again);
        }
        self.done = None;
        self.line.clear();
        // It is this one's follower only if this one is still there: it may have turned more than once.
        let old = open(&self.directory.join(OLD))?;
        let follows = match &old {
            Some(old) => old.get_ref().metadata()?.ino() == current,
            None => false,
        };
        self.file = if follows {
            Some(young)
        } else {
            old.or(Some(young))
        };
        Ok(if follows { Turn::Next } else { Turn::Gap })
    }
}

/// What comes after the end of a half.
enum Turn {
    /// Nothing yet: it is the younger one.
    Nothing,
    /// Its last lines, which came after its end was seen.
    Again,
    /// The half that follows it.
    Next,
    /// A half that follows others, which went.
    Gap,
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
            .map(|logging| match logging {
                Logging::Line(entry) => String::from_utf8(entry.text).unwrap(),
                Logging::Gap => "…".to_owned(),
            })
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
        let Some(Logging::Line(last)) = logged.next().unwrap() else {
            panic!("there is no line");
        };
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

    #[rstest]
    #[case::the_half_that_is_read(110)]
    #[case::and_the_one_after_it(150)]
    #[case::and_many_more(1000)]
    fn lines_that_may_have_gone_before_they_were_read_are_told_of(#[case] count: u32) {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::create(directory.path(), 4_000).unwrap();
        log.write(Stream::Stdout, b"first\n");
        let mut logged = Logged::open(directory.path()).unwrap();
        logged.next().unwrap().unwrap();
        for number in 0..count {
            log.write(Stream::Stdout, format!("{number}\n").as_bytes());
        }

        let found = texts(&mut logged);

        let (before, after) = found.split_at(found.iter().position(|text| text == "…").unwrap());
        // What is held open is read to its end.
        let begun: Vec<_> = (0..before.len()).map(|number| number.to_string()).collect();
        assert_eq!(before, begun);
        let first: u32 = after[1].parse().unwrap();
        let expected: Vec<_> = (first..count).map(|number| number.to_string()).collect();
        assert_eq!(after[1..], expected);
        assert!(first as usize >= before.len());
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
