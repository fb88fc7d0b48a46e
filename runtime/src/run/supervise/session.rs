// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection of another `coracle` process, and what is being done for it.

use std::os::fd::AsFd;

use anyhow::{Context, Error, Result};
use coracle_agent_api::Pending;
use coracle_agent_api::messages::{SignalProcessRequest, StatisticsRequest};

use super::exec::Command;
use super::usage::usage;
use super::{Descriptor, Supervisor, signal_request};
use crate::control::{Answer, Connection, Request};
use crate::printable::printable;
use crate::run::guest::{CONTAINER, CommandFailed};

/// A connection, and what is being done for it.
pub struct Session {
    /// Nothing once the other end has hung up.
    connection: Option<Connection>,
    doing: Doing,
}

enum Doing {
    /// Nothing has been asked for yet.
    Waiting,
    Signal(Pending<SignalProcessRequest>),
    Usage(Pending<StatisticsRequest>),
    Exec(Command),
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
    pub fn new(connection: Connection) -> Self {
        Self {
            connection: Some(connection),
            doing: Doing::Waiting,
        }
    }

    /// What is readable when the other end has something to say.
    pub fn descriptor(&self) -> Option<Descriptor<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    /// Whether somebody is still to be told how a command ended.
    pub fn awaits_exit(&self) -> bool {
        matches!(self.doing, Doing::Exec(_)) && self.connection.is_some()
    }

    /// Does what can be done without waiting.
    pub fn step(&mut self, supervisor: &mut Supervisor<'_>) -> Step {
        match self.try_step(supervisor) {
            Ok(step) => step,
            Err(error) => {
                self.answer(&failed(&error));
                Step::Leave
            }
        }
    }

    fn try_step(&mut self, supervisor: &mut Supervisor<'_>) -> Result<Step> {
        while let Some(request) = self.receive() {
            if request == Request::End {
                self.answer(&Answer::Done);
                return Ok(Step::CutOff);
            }
            self.begin(supervisor, request)?;
        }
        match &mut self.doing {
            Doing::Waiting if self.connection.is_none() => Ok(Step::Leave),
            Doing::Waiting => Ok(Step::Stay),
            Doing::Signal(call) => match supervisor.take(call)? {
                None => Ok(Step::Stay),
                Some(_) => self.leave_with(&Answer::Done),
            },
            Doing::Usage(call) => match supervisor.take(call)? {
                None => Ok(Step::Stay),
                Some(statistics) => {
                    let answer = Answer::Usage(usage(&statistics, supervisor));
                    self.leave_with(&answer)
                }
            },
            // A command goes on although nobody asks for it any more, and is forgotten at its end.
            Doing::Exec(command) => match command.step(supervisor, self.connection.as_mut())? {
                None => Ok(Step::Stay),
                Some(status) => self.leave_with(&Answer::Exited { status }),
            },
        }
    }

    fn begin(&mut self, supervisor: &mut Supervisor<'_>, request: Request) -> Result<()> {
        match (&mut self.doing, request) {
            (Doing::Exec(command), request) => command.ask(supervisor, &request),
            (_, Request::Signal { signal }) => {
                self.doing = Doing::Signal(supervisor.send(&signal_request("", signal))?);
                Ok(())
            }
            (_, Request::Usage) => {
                self.doing = Doing::Usage(supervisor.send(&StatisticsRequest {
                    container_id: CONTAINER.into(),
                    ..Default::default()
                })?);
                Ok(())
            }
            (_, Request::Exec(exec)) => {
                self.doing = Doing::Exec(Command::begin(supervisor, &exec)?);
                Ok(())
            }
            (_, Request::Dump) => {
                let connection = self.connection.as_mut();
                let file = connection.and_then(|connection| connection.take_descriptors().pop());
                let file = file.context("a dump needs a file")?;
                // The guest stands still meanwhile, and with it all that could be asked for.
                supervisor.machine.dump(file.as_fd())?;
                self.answer(&Answer::Done);
                Ok(())
            }
            (_, Request::Console) => {
                let connection = self.connection.as_mut().context("nobody asked")?;
                connection.send(&Answer::Streams, &supervisor.machine.console())
            }
            (_, Request::Resize(_) | Request::End) => Ok(()),
        }
    }

    /// The next request, if one has come.
    fn receive(&mut self) -> Option<Request> {
        match self.connection.as_mut()?.receive() {
            Ok(request) => request,
            Err(_) => {
                self.connection = None;
                None
            }
        }
    }

    fn leave_with(&mut self, answer: &Answer) -> Result<Step> {
        self.answer(answer);
        Ok(Step::Leave)
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
