// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection of another `coracle` process, and what is being done for it.

use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use anyhow::{Context, Error, Result, bail, ensure};
use coracle_agent_api::messages::{SignalProcessRequest, StatisticsRequest};
use coracle_agent_api::{CallError, Pending};
use coracle_vmm::role::Action;

use super::exec::Command;
use super::usage::usage;
use super::{SESSIONS, Supervisor, signal_request};
use crate::control::{ANSWER, Answer, Connection, Request};
use crate::printable::printable;
use crate::run::guest::{CONTAINER, CommandFailed};
use crate::run::vmm::Begun;

/// A connection, and what is being done for it.
pub struct Session {
    /// Nothing once the other end has hung up.
    connection: Option<Connection>,
    doing: Doing,
    /// There are so many that it can only have the machine ended.
    is_spare: bool,
    /// When it is given up.
    deadline: Option<Instant>,
}

enum Doing {
    /// Nothing has been asked for yet.
    Waiting,
    Signal(Pending<SignalProcessRequest>),
    Usage(Pending<StatisticsRequest>),
    Dump(Begun),
    /// Whoever has the console learns of its end by that of the connection.
    Console,
    Exec(Command),
}

/// What was asked for over a connection.
enum Heard {
    /// What has begun, or nothing more.
    Nothing,
    /// The machine's end.
    End,
}

/// What becomes of a session.
pub enum Step {
    /// It goes on.
    Stay,
    /// It is over.
    Leave,
    /// The machine is to be ended.
    CutOff,
}

impl Session {
    pub fn new(connection: Connection, is_spare: bool) -> Self {
        Self {
            connection: Some(connection),
            doing: Doing::Waiting,
            is_spare,
            deadline: Some(Instant::now() + ANSWER),
        }
    }

    /// What is readable when the other end has something to say.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    /// When it is given up, if it is.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether somebody is still to be told how a command ended.
    pub fn awaits_exit(&self) -> bool {
        matches!(self.doing, Doing::Exec(_)) && self.connection.is_some()
    }

    /// Does what can be done without waiting.
    pub fn step(&mut self, supervisor: &mut Supervisor<'_>) -> Step {
        let is_refused = match self.listen(supervisor) {
            Ok(Heard::End) => {
                self.abandon(supervisor);
                return Step::CutOff;
            }
            Ok(Heard::Nothing) => false,
            Err(error) => {
                self.refuse(&error);
                true
            }
        };
        let goes_on = match &self.doing {
            // A command goes on although nobody asks for it any more, and is forgotten at its end. One that is being
            // made cannot be deleted before it is.
            Doing::Exec(command) => !is_refused || command.is_being_made(),
            _ => self.connection.is_some(),
        };
        if goes_on {
            match self.go_on(supervisor) {
                Ok(None) => return Step::Stay,
                Ok(Some(answer)) => self.answer(&answer),
                Err(error) => self.refuse(&error),
            }
        }
        self.abandon(supervisor);
        Step::Leave
    }

    /// Takes what is asked for.
    fn listen(&mut self, supervisor: &mut Supervisor<'_>) -> Result<Heard> {
        let has_hung_up = self
            .connection
            .as_mut()
            .is_some_and(|it| it.gather().is_err());
        while let Some(request) = self.next()? {
            if request == Request::End {
                self.answer(&Answer::Done);
                return Ok(Heard::End);
            }
            ensure!(
                !self.is_spare,
                "too much is asked for at once: {SESSIONS} others are served"
            );
            self.begin(supervisor, request)?;
        }
        if has_hung_up {
            self.connection = None;
        }
        Ok(Heard::Nothing)
    }

    /// Goes on with what was asked for; returns the last answer once there is one.
    fn go_on(&mut self, supervisor: &mut Supervisor<'_>) -> Result<Option<Answer>> {
        let answer = match &mut self.doing {
            Doing::Exec(command) => command
                .step(supervisor, self.connection.as_mut())?
                .map(|status| Answer::Exited { status }),
            Doing::Waiting | Doing::Console => None,
            Doing::Signal(call) => supervisor.take(call)?.map(|_| Answer::Done),
            Doing::Usage(call) => supervisor
                .take(call)?
                .map(|statistics| Answer::Usage(usage(&statistics, supervisor))),
            Doing::Dump(begun) => match supervisor.machine.vmm().outcome(begun) {
                None => None,
                Some(outcome) => {
                    outcome.context("cannot dump the guest")?;
                    Some(Answer::Done)
                }
            },
        };
        let is_late = self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline);
        if answer.is_none() && is_late {
            let what = match self.doing {
                Doing::Waiting => "nothing was asked for",
                _ => "the guest's agent gave no answer",
            };
            bail!("{what} within {} s", ANSWER.as_secs());
        }
        Ok(answer)
    }

    fn begin(&mut self, supervisor: &mut Supervisor<'_>, request: Request) -> Result<()> {
        match &mut self.doing {
            Doing::Waiting => {}
            Doing::Exec(command) => return command.ask(supervisor, &request),
            _ => bail!("a connection is for one thing"),
        }
        let (doing, is_short) = match request {
            Request::Signal { signal } => {
                let call = supervisor.send(&signal_request("", signal))?;
                (Doing::Signal(call), true)
            }
            Request::Usage => {
                let call = supervisor.send(&StatisticsRequest {
                    container_id: CONTAINER.into(),
                    ..Default::default()
                })?;
                (Doing::Usage(call), true)
            }
            Request::Exec(exec) => (Doing::Exec(Command::begin(supervisor, &exec)?), false),
            Request::Dump => {
                let connection = self.connection.as_mut();
                let file = connection.and_then(|connection| connection.take_descriptors().pop());
                let file = file.context("a dump needs a file")?;
                // The guest stands still meanwhile, and with it all that is asked of its agent.
                let begun = supervisor.machine.vmm().begin(Action::Dump, file.as_fd());
                (Doing::Dump(begun.context("cannot dump the guest")?), false)
            }
            Request::Console => {
                let connection = self.connection.as_mut().context("nobody asked")?;
                connection.send(&Answer::Streams, &supervisor.machine.console())?;
                (Doing::Console, false)
            }
            Request::Resize(_) | Request::End => return Ok(()),
        };
        self.doing = doing;
        if !is_short {
            self.deadline = None;
        }
        Ok(())
    }

    /// The next request of those that have come.
    fn next(&mut self) -> Result<Option<Request>> {
        let Some(connection) = &mut self.connection else {
            return Ok(None);
        };
        connection.next().with_context(|| {
            let version = env!("CARGO_PKG_VERSION");
            format!("the container is run by version {version} of coracle, which does not know what is asked for")
        })
    }

    /// Wants nothing more.
    fn abandon(&mut self, supervisor: &mut Supervisor<'_>) {
        match mem::replace(&mut self.doing, Doing::Waiting) {
            Doing::Waiting | Doing::Console => {}
            Doing::Signal(call) => supervisor.forget(call),
            Doing::Usage(call) => supervisor.forget(call),
            Doing::Dump(begun) => supervisor.machine.vmm().forget(&begun),
            Doing::Exec(command) => command.end(supervisor),
        }
    }

    /// Says what is wrong, and hears no more. The end of the guest is told by that of the connection, as if the whole
    /// machine's had been noticed first.
    fn refuse(&mut self, error: &Error) {
        if !matches!(error.downcast_ref(), Some(CallError::HungUp)) {
            self.answer(&failed(error));
        }
        self.connection = None;
    }

    fn answer(&mut self, answer: &Answer) {
        if let Some(connection) = &mut self.connection {
            // Whoever hung up wants no answer.
            let _ = connection.send(answer, &[]);
        }
    }
}

fn failed(error: &Error) -> Answer {
    Answer::Failed {
        message: printable(&format!("{error:#}")),
        status: error
            .downcast_ref::<CommandFailed>()
            .map(|failed| failed.status),
    }
}

#[cfg(test)]
mod tests;
