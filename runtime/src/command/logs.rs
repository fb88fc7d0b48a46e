// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle logs`.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::reach::containers;
use crate::cli::{Directories, LogsArguments};
use crate::container::Found;
use crate::output::{Entry, Logged, Stream};

/// How often it is looked whether whoever runs the container was killed, of which the log says nothing.
const LOOK: Duration = Duration::from_secs(1);

/// Shows what a container has put out.
pub fn logs(directories: &Directories, arguments: &LogsArguments) -> Result<u8> {
    let mut found = containers(directories).find(&arguments.container)?;
    let what = format!("cannot read the log of container {}", found.record.name);
    let mut logged = Logged::open(&found.directories.container).with_context(|| what.clone())?;
    let mut printer = Printer {
        timestamps: arguments.timestamps,
        line_begins: true,
    };
    let shown = (|| {
        match arguments.tail {
            Some(lines) => printer.print_last(&mut logged, lines)?,
            None => printer.print_all(&mut logged)?,
        }
        if arguments.follow {
            follow(&mut found, &mut logged, &mut printer)?;
        }
        Ok(())
    })();
    match shown {
        // A reader that went away (`coracle logs … | head`) is the caller's own doing.
        Err(error) if is_broken_pipe(&error) => Ok(0),
        shown => shown.with_context(|| what).map(|()| 0),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints what is added, until nothing runs the container any more.
fn follow(found: &mut Found, logged: &mut Logged, printer: &mut Printer) -> Result<()> {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::MODIFY | WatchFlags::MOVED_TO | WatchFlags::CREATE;
    inotify::add_watch(&changes, &found.directories.container, flags)?;
    loop {
        found.look_again();
        let alive = found.state.is_alive();
        // What was written before its end is there by now.
        printer.print_all(logged)?;
        if !alive {
            return Ok(());
        }
        let mut waiting = [PollFd::from_borrowed_fd(changes.as_fd(), PollFlags::IN)];
        match poll(&mut waiting, Timespec::try_from(LOOK).ok().as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = [0; 4096];
        while rustix::io::read(&changes, &mut events).is_ok_and(|length| length > 0) {}
    }
}

/// Prints entries as the container put them out.
struct Printer {
    timestamps: bool,
    line_begins: bool,
}

impl Printer {
    fn print_all(&mut self, logged: &mut Logged) -> Result<()> {
        while let Some(entry) = logged.next()? {
            self.print(&entry)?;
        }
        Ok(())
    }

    fn print_last(&mut self, logged: &mut Logged, lines: usize) -> Result<()> {
        let (mut last, mut count) = (VecDeque::new(), 0);
        while let Some(entry) = logged.next()? {
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
        let mut text = Vec::new();
        if self.timestamps && self.line_begins {
            text.extend_from_slice(entry.time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(&entry.text);
        if entry.whole {
            text.push(b'\n');
        }
        self.line_begins = entry.whole;
        match entry.stream {
            Stream::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&text)?;
                stdout.flush()?;
            }
            Stream::Stderr => io::stderr().lock().write_all(&text)?,
        }
        Ok(())
    }
}
