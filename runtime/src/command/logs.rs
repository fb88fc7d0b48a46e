// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle logs`.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::reach::containers;
use crate::cli::{Directories, LogsArguments};
use crate::container::{Found, State};
use crate::log;
use crate::output::{Entry, Logged, Logging, MESSAGES, Stream};
use crate::print::{print, unless_reader_left, write};
use crate::printable::printable;

/// How often it is looked whether whoever runs the container was killed, of which the log says nothing.
const LOOK: Duration = Duration::from_secs(1);

/// As often where changes are not told.
const SHORT_LOOK: Duration = Duration::from_millis(200);

/// What is told where the log cannot be read on.
const UNREADABLE: &str = "cannot read the container's log";

/// Shows what a container has put out.
pub fn logs(directories: &Directories, arguments: &LogsArguments) -> Result<u8> {
    let mut found = containers(directories).find(&arguments.container)?;
    if arguments.runner {
        return messages(&found);
    }
    let mut logged = Logged::open(&found.directories.container)
        .with_context(|| format!("cannot read the log of container {}", found.record.name))?;
    ensure!(
        logged.is_there() || matches!(found.state, State::Starting { .. }),
        "container {} keeps no log: what it puts out goes to whoever started it",
        found.record.name
    );
    let mut printer = Printer::new(arguments.timestamps);
    let mut shown = match arguments.tail {
        Some(lines) => printer.print_last(&mut logged, lines),
        None => printer.print_all(&mut logged),
    };
    if arguments.follow {
        shown = shown.and_then(|()| follow(&mut found, &mut logged, &mut printer));
    }
    unless_reader_left(shown).map(|()| 0)
}

/// Shows what the processes of a container in the background had to say themselves.
fn messages(found: &Found) -> Result<u8> {
    let path = found.directories.container.join(MESSAGES);
    let what = || format!("cannot read {}", path.display());
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        text => text.with_context(what)?,
    };
    print(&printable(&String::from_utf8_lossy(&text)))?;
    Ok(0)
}

/// Prints what is added, until nothing runs the container any more.
fn follow(found: &mut Found, logged: &mut Logged, printer: &mut Printer) -> Result<()> {
    // Where there is no more of it, or the container has gone, its files are looked at now and then.
    let changes = watch(&found.directories.container).ok();
    let patience = if changes.is_some() { LOOK } else { SHORT_LOOK };
    loop {
        found.look_again();
        // One that has ended may still be handing its output on.
        let is_written = found.is_held;
        // What was written before its end is there by now.
        printer.print_all(logged)?;
        if !is_written {
            return Ok(());
        }
        let mut waiting: Vec<_> = changes
            .iter()
            .map(|changes| PollFd::new(changes, PollFlags::IN))
            .collect();
        match poll(&mut waiting, Timespec::try_from(patience).ok().as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = [0; 4096];
        if let Some(changes) = &changes {
            while rustix::io::read(changes, &mut events).is_ok_and(|length| length > 0) {}
        }
    }
}

/// What is readable when something in a directory has changed.
fn watch(directory: &Path) -> rustix::io::Result<OwnedFd> {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::MODIFY | WatchFlags::MOVED_TO | WatchFlags::CREATE;
    inotify::add_watch(&changes, directory, flags)?;
    Ok(changes)
}

/// Prints entries as the container put them out.
struct Printer {
    timestamps: bool,
    /// Streams whose last line is not whole yet.
    begun: Vec<Stream>,
}

impl Printer {
    fn new(timestamps: bool) -> Self {
        Self {
            timestamps,
            begun: Vec::new(),
        }
    }

    fn print_all(&mut self, logged: &mut Logged) -> Result<()> {
        while let Some(logging) = logged.next().context(UNREADABLE)? {
            match logging {
                Logging::Line(entry) => self.print(&entry)?,
                Logging::Gap => gap(),
            }
        }
        Ok(())
    }

    fn print_last(&mut self, logged: &mut Logged, lines: usize) -> Result<()> {
        let (mut last, mut count) = (VecDeque::new(), 0);
        while let Some(logging) = logged.next().context(UNREADABLE)? {
            let Logging::Line(entry) = logging else {
                gap();
                continue;
            };
            count += usize::from(entry.whole);
            last.push_back(entry);
            // A line that is not whole yet is one, too.
            let begun = last.back().is_some_and(|entry: &Entry| !entry.whole);
            while count + usize::from(begun) > lines
                && let Some(first) = last.pop_front()
            {
                count -= usize::from(first.whole);
            }
        }
        last.iter().try_for_each(|entry| self.print(entry))
    }

    fn print(&mut self, entry: &Entry) -> Result<()> {
        let text = self.text(entry);
        match entry.stream {
            Stream::Stdout => write(&text),
            Stream::Stderr => io::stderr()
                .write_all(&text)
                .context("cannot write to standard error"),
        }
    }

    /// An entry as it is printed.
    fn text(&mut self, entry: &Entry) -> Vec<u8> {
        let mut text = Vec::new();
        let begins = !self.begun.contains(&entry.stream);
        if self.timestamps && begins {
            text.extend_from_slice(entry.time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(&entry.text);
        self.begun.retain(|stream| *stream != entry.stream);
        if entry.whole {
            text.push(b'\n');
        } else {
            self.begun.push(entry.stream);
        }
        text
    }
}

fn gap() {
    log::tell("coracle: lines may be left out here: the log grew faster than it was read");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_each_stream_has_its_time() {
        let mut printer = Printer::new(true);
        let entries = [
            (Stream::Stdout, false, "be"),
            (Stream::Stderr, true, "error"),
            (Stream::Stdout, true, "gun"),
            (Stream::Stdout, true, "next"),
        ];

        let texts = entries.map(|(stream, whole, text)| {
            let entry = Entry {
                time: "T".to_owned(),
                stream,
                whole,
                text: text.into(),
            };
            String::from_utf8(printer.text(&entry)).unwrap()
        });

        assert_eq!(texts, ["T be", "T error\n", "gun\n", "T next\n"]);
    }
}
