// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a container that has ended has put out, until all of it is through. Its reader may take as long as it likes;
//! other `coracle` processes are answered meanwhile.

use std::io;
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::control::{Answer, Connection, Listener, Request};
use crate::output::Output;

/// Connections of other processes at a time.
const CONNECTIONS: usize = 16;

/// A container's output streams, on their way.
pub struct Outputs {
    pub stdout: Output,
    /// A terminal has one output.
    pub stderr: Option<Output>,
}

impl Outputs {
    /// Waits until all has been handed on, or somebody wants the container gone: then the rest is lost.
    ///
    /// # Errors
    ///
    /// What kept a stream from being handed on. The other one was, nevertheless.
    pub fn finish(self, listener: &Listener) -> Result<()> {
        let (finished, working) = io::pipe().context("cannot make a pipe")?;
        let threads: Vec<JoinHandle<Result<()>>> = [Some(self.stdout), self.stderr]
            .into_iter()
            .flatten()
            .map(|output| {
                let working = working.try_clone()?;
                let work = move || {
                    let outcome = output.finish();
                    drop(working);
                    outcome
                };
                thread::Builder::new().name("output".into()).spawn(work)
            })
            .collect::<io::Result<_>>()
            .context("cannot start the threads for what is left of the output")?;
        drop(working);
        let mut connections: Vec<Connection> = Vec::new();
        loop {
            let mut waiting = vec![
                PollFd::new(&finished, PollFlags::IN),
                PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            ];
            let others = connections.iter().map(AsFd::as_fd);
            waiting.extend(others.map(|other| PollFd::from_borrowed_fd(other, PollFlags::IN)));
            match poll(&mut waiting, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for the output's reader"),
            }
            if !waiting[0].revents().is_empty() {
                let outcomes: Vec<_> = threads.into_iter().map(JoinHandle::join).collect();
                return outcomes.into_iter().try_for_each(|outcome| {
                    outcome.unwrap_or_else(|_| Err(anyhow!("a thread for output panicked")))
                });
            }
            while let Some(connection) = listener.accept() {
                // Whoever comes late has waited less than who came first.
                if connections.len() == CONNECTIONS {
                    connections.remove(0);
                }
                connections.push(connection);
            }
            let mut is_wanted = true;
            connections.retain_mut(|connection| match connection.receive() {
                Ok(None) => true,
                Ok(Some(request)) => {
                    is_wanted &= request != Request::End;
                    answer(connection, &request);
                    false
                }
                Err(_) => false,
            });
            if !is_wanted {
                return Ok(());
            }
        }
    }
}

fn answer(connection: &mut Connection, request: &Request) {
    let answer = match request {
        Request::End => Answer::Done,
        _ => Answer::Failed {
            message: "the container has ended".to_owned(),
            status: None,
        },
    };
    // Whoever hung up wants no answer.
    let _ = connection.send(&answer, &[]);
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::output::{Sink, Stream};

    /// The outputs of a container that has put out more than a pipe holds, and the ends of their readers.
    fn full_outputs() -> (Outputs, [PipeReader; 2]) {
        let [(stdout, out), (stderr, err)] = [Stream::Stdout, Stream::Stderr].map(|stream| {
            let (mut guest, host) = UnixStream::pair().unwrap();
            let (read, write) = io::pipe().unwrap();
            let output = Output::start(stream, host, Sink::default().to(&write).unwrap()).unwrap();
            guest.write_all(&[b'x'; 100_000]).unwrap();
            (output, read)
        });
        let outputs = Outputs {
            stdout,
            stderr: Some(stderr),
        };
        (outputs, [out, err])
    }

    fn ask(state: &std::path::Path, request: &Request) -> Answer {
        let mut connection = Connection::open(state).unwrap();
        connection
            .wait_no_longer_than(Duration::from_secs(5))
            .unwrap();
        connection.send(request, &[]).unwrap();
        connection.receive().unwrap().unwrap()
    }

    #[test]
    fn others_are_answered_while_a_reader_stands_still() {
        let state = tempfile::tempdir().unwrap();
        let listener = Listener::bind(state.path()).unwrap();
        let (outputs, _readers) = full_outputs();
        let waiting = thread::spawn(move || outputs.finish(&listener));

        let answers = [Request::Usage, Request::End].map(|request| ask(state.path(), &request));

        waiting.join().unwrap().unwrap();
        let [Answer::Failed { message, .. }, Answer::Done] = answers else {
            panic!("{answers:?}");
        };
        assert_eq!(message, "the container has ended");
    }

    #[test]
    fn all_comes_through_however_slow_the_reader() {
        let state = tempfile::tempdir().unwrap();
        let listener = Listener::bind(state.path()).unwrap();
        let (outputs, readers) = full_outputs();
        let waiting = thread::spawn(move || outputs.finish(&listener));
        thread::sleep(Duration::from_millis(300));

        let lengths = readers.map(|mut reader| {
            let mut found = Vec::new();
            reader.read_to_end(&mut found).unwrap();
            found.len()
        });

        waiting.join().unwrap().unwrap();
        assert_eq!(lengths, [100_000; 2]);
    }

    #[test]
    fn one_stream_is_through_although_the_other_is_not() {
        let state = tempfile::tempdir().unwrap();
        let listener = Listener::bind(state.path()).unwrap();
        let (mut outputs, [_, mut err]) = full_outputs();
        let (guest, host) = UnixStream::pair().unwrap();
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        outputs.stdout =
            Output::start(Stream::Stdout, host, Sink::default().to(&full).unwrap()).unwrap();
        (&guest).write_all(b"for a full disk").unwrap();
        let waiting = thread::spawn(move || outputs.finish(&listener));

        let mut found = Vec::new();
        err.read_to_end(&mut found).unwrap();

        let error = waiting.join().unwrap().unwrap_err();
        assert!(format!("{error:#}").contains("No space left"), "{error:#}");
        assert_eq!(found.len(), 100_000);
    }
}
