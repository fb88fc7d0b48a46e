// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! After a container's end: what it has put out goes to whoever reads it, who may take their time.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{SESSIONS, Supervisor};
use crate::control::{Answer, Connection, Listener, ReceiveError, Request};
use crate::output::Rest;
use crate::run::signals::ENDING;

impl Supervisor<'_> {
    /// Waits until the outputs of the container, which has ended, are handed on, or nobody wants them any more: a signal
    /// says so, and whoever has the machine ended.
    pub fn finish(&mut self, mut rest: Rest, listener: &Listener) -> Result<()> {
        let mut connections = Vec::new();
        while !rest.is_over() {
            while let Some(signal) = self.signals.pending() {
                if ENDING.contains(&signal) {
                    return Ok(());
                }
            }
            let mut is_unwanted = false;
            connections.retain_mut(|connection| match answer(connection) {
                Asked::Nothing => true,
                Asked::Other => false,
                Asked::End => {
                    is_unwanted = true;
                    false
                }
            });
            if is_unwanted {
                return Ok(());
            }
            let mut waiting: Vec<_> = [self.signals.as_fd(), listener.as_fd()]
                .into_iter()
                .chain(rest.descriptors())
                .chain(connections.iter().map(AsFd::as_fd))
                .map(|each| PollFd::from_borrowed_fd(each, PollFlags::IN))
                .collect();
            match poll(&mut waiting, Timespec::try_from(Rest::LOOK).ok().as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for output"),
            }
            // Who came first has had the time to ask.
            if connections.len() >= SESSIONS {
                connections.remove(0);
            }
            connections.extend(listener.accept());
        }
        rest.into_outcome()
    }
}

/// What was asked for over a connection.
enum Asked {
    Nothing,
    End,
    /// What cannot be had any more.
    Other,
}

fn answer(connection: &mut Connection) -> Asked {
    // What was asked before it hung up counts.
    let gathered = connection.gather();
    let (asked, answer) = match (connection.next(), gathered) {
        (Ok(Some(Request::End)), _) => (Asked::End, Answer::Done),
        (Ok(None), Ok(())) => return Asked::Nothing,
        (Ok(Some(_)) | Err(ReceiveError::Nonsense(_)), _) => {
            let message = "the container has ended".to_owned();
            (
                Asked::Other,
                Answer::Failed {
                    message,
                    status: None,
                },
            )
        }
        _ => return Asked::Other,
    };
    // Whoever hung up wants no answer.
    let _ = connection.send(&answer, &[]);
    asked
}
