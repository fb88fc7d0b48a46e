// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the controlling process can ask of a running machine: requests ([`protocol`]) that arrive on its socket
//! ([`inbox`]) and are dealt with one after the other, on the event loop.
//!
//! Most of them need all vCPUs out of the guest. The event loop must not wait for that, since a vCPU may be waiting for
//! the event loop to take a device's worker; so it asks them to leave, goes on with its devices, and looks again
//! whenever one has left. While a request is dealt with no device of the event loop is served: what a dump holds is of
//! one moment, but for what a disk or a vhost-user backend is still doing to guest memory.

mod inbox;
mod protocol;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_memory::GuestMemory;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use thiserror::Error;

use crate::dump::{self, DumpError};
use crate::ending::Ending;
use crate::sentence::sentence;
use crate::vcpu::{Holder, VcpuGroup};
use crate::{Exit, Fault, KvmError, VcpuState};
use inbox::{Inbox, Waiting};
pub use protocol::{Action, Event, Request};

/// How long the vCPUs may take to leave the guest: one that is busy with a device's log, on a host under load.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a request is not fulfilled.
#[derive(Debug, Error)]
enum ControlError {
    #[error("vCPU {index} has not left the guest within {PATIENCE:?}")]
    Inside { index: usize },
    #[error("vCPU {index} has gone back into the guest")]
    Busy { index: usize },
    #[error("nobody wants it any more")]
    GivenUp,
    #[error("no descriptor came with the request")]
    NoDescriptor,
    #[error("the vCPUs cannot be examined")]
    Vcpus(#[from] KvmError),
    #[error("the guest cannot be dumped")]
    Dump(#[from] DumpError),
}

/// How far the vCPUs are on their way out of the guest.
enum Leaving {
    Outside,
    /// For at most this long.
    Waits(Duration),
    Failed(ControlError),
}

/// The controlling process's socket, and what it has asked for.
pub(crate) struct Control {
    socket: UnixStream,
    inbox: Inbox,
    /// Until when the vCPUs have to be out of the guest for the first request.
    deadline: Option<Instant>,
    /// Whether they stay outside after it.
    paused: bool,
    vcpus: Arc<VcpuGroup>,
    memory: GuestMemory,
    ending: Arc<Ending>,
}

impl Control {
    pub(crate) fn new(
        socket: UnixStream,
        vcpus: Arc<VcpuGroup>,
        memory: GuestMemory,
        ending: Arc<Ending>,
    ) -> Self {
        Self {
            socket,
            inbox: Inbox::default(),
            deadline: None,
            paused: false,
            vcpus,
            memory,
            ending,
        }
    }

    /// Goes on with the requests as far as possible. How long the next look may wait, if anything waits.
    pub(crate) fn advance(&mut self) -> Option<Duration> {
        while let Some(first) = self.inbox.first() {
            let outside = match first.action {
                _ if self.inbox.is_given_up(first.id) => Err(ControlError::GivenUp),
                Action::Resume | Action::Cancel(_) => Ok(()),
                Action::Pause | Action::Vcpus | Action::Dump => match self.leave_guest() {
                    Leaving::Outside => Ok(()),
                    Leaving::Waits(left) => return Some(left),
                    Leaving::Failed(error) => Err(error),
                },
            };
            self.deadline = None;
            let waiting = self.inbox.take_first()?;
            let answer = outside
                .and_then(|()| self.fulfil(waiting))
                .unwrap_or_else(|error| failed(first.id, &error));
            if !self.paused {
                self.vcpus.release_all(Holder::Control);
            }
            self.send(&answer);
        }
        None
    }

    /// Calls the vCPUs out of the guest, unless that was done before.
    fn leave_guest(&mut self) -> Leaving {
        let deadline = *self.deadline.get_or_insert_with(|| {
            self.vcpus.hold_all(Holder::Control);
            Instant::now() + PATIENCE
        });
        match self.vcpus.first_inside() {
            None => Leaving::Outside,
            Some(index) => match deadline.saturating_duration_since(Instant::now()) {
                Duration::ZERO => Leaving::Failed(ControlError::Inside { index }),
                left => Leaving::Waits(left),
            },
        }
    }

    /// What is asked for, with all vCPUs out of the guest if that takes it.
    fn fulfil(&mut self, Waiting { request, file }: Waiting) -> Result<Event, ControlError> {
        let id = request.id;
        match request.action {
            Action::Vcpus => {
                let vcpus = self.states()?;
                return Ok(Event::Vcpus { id, vcpus });
            }
            Action::Dump => self.dump(id, file)?,
            Action::Pause | Action::Resume => self.paused = request.action == Action::Pause,
            // What it names has seen that it is given up, or was over.
            Action::Cancel(_) => {}
        }
        Ok(Event::Done { id })
    }

    fn states(&self) -> Result<Vec<VcpuState>, ControlError> {
        (0..self.vcpus.len())
            .map(|index| {
                let vcpu = self.vcpus.get(index).ok_or(ControlError::Busy { index })?;
                Ok(vcpu.state()?)
            })
            .collect()
    }

    /// Ends early, without a dump, if nobody wants it any more.
    fn dump(&mut self, id: u64, file: Option<OwnedFd>) -> Result<(), ControlError> {
        let file = file.ok_or(ControlError::NoDescriptor)?;
        let registers = (0..self.vcpus.len())
            .map(|index| {
                let vcpu = self.vcpus.get(index).ok_or(ControlError::Busy { index })?;
                Ok(vcpu.registers()?)
            })
            .collect::<Result<Vec<_>, ControlError>>()?;
        let memory = self.memory.clone();
        let is_wanted =
            || self.receive() && !self.inbox.is_given_up(id) && !self.ending.is_reported();
        Ok(dump::write(&file.into(), &memory, &registers, is_wanted)?)
    }

    /// Takes what the controlling process has sent. If it is gone the machine is stopped. Whether it is there.
    fn receive(&mut self) -> bool {
        let mut refused = Vec::new();
        let more = self.inbox.receive(&self.socket, |id, refusal| {
            refused.push(Event::Failed {
                id,
                message: refusal.to_string(),
            });
        });
        for event in refused {
            self.send(&event);
        }
        if !more {
            self.ending.report(Ok(Exit::Stopped));
        }
        more
    }

    /// If the controlling process is gone it does not want to know, and the machine is stopped. If it has left so many
    /// answers unread that there is no room for another, the machine ends: the event loop cannot wait for it.
    fn send(&self, event: &Event) {
        let line = event.line();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match send(&self.socket, line.as_bytes(), flags) {
            Ok(sent) if sent < line.len() => self.ending.report(Err(Fault::Unread)),
            Err(Errno::AGAIN) => self.ending.report(Err(Fault::Unread)),
            _ => {}
        }
    }

    fn events(&self) -> Events {
        let events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        Events::new_raw(self.socket.as_raw_fd(), events)
    }

    fn check(&self, result: Result<(), event_manager::Error>) {
        if let Err(error) = result {
            self.ending.report(Err(Fault::EventLoop(error.into())));
        }
    }
}

fn failed(id: u64, error: &ControlError) -> Event {
    Event::Failed {
        id,
        message: sentence(error),
    }
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.check(ops.add(self.events()));
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let more = self.receive();
        let gone = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        if !more || events.event_set().intersects(gone) {
            self.check(ops.remove(self.events()));
            self.ending.report(Ok(Exit::Stopped));
        }
    }
}
