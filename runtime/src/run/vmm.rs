// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is said between a run and its VMM.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_vmm::role::{Action, Event, Request};
use coracle_vmm::{Activity, Config, VcpuState};

use crate::control::send_line;

/// The most bytes of one of the VMM's messages.
const LINE: usize = 1 << 20;
/// How long the VMM may take to say where its vCPUs stand.
const VCPUS: Duration = Duration::from_secs(5);
/// How often it is asked, and the pause between: a vCPU that is at about the same place each time does not get on.
const LOOKS: usize = 4;
const PAUSE: Duration = Duration::from_millis(50);
/// How far apart the places of one loop are, in bytes.
const LOOP: u64 = 4096;

/// The run's end of the VMM's control socket.
pub struct VmmControl {
    stream: UnixStream,
    /// What the VMM said instead of what was waited for.
    unexpected: RefCell<Option<Event>>,
    requests: Cell<u64>,
}

impl VmmControl {
    /// A socket for a VMM, and the VMM's end of it.
    pub fn pair() -> Result<(Self, UnixStream)> {
        let (stream, theirs) =
            UnixStream::pair().context("cannot make the VMM's control socket")?;
        let control = Self {
            stream,
            unexpected: RefCell::new(None),
            requests: Cell::new(0),
        };
        Ok((control, theirs))
    }

    /// Sends what the machine is made of.
    pub fn configure(&self, config: &Config) -> Result<()> {
        let mut text =
            serde_json::to_vec(config).context("cannot write the VMM's configuration")?;
        text.push(b'\n');
        (&self.stream)
            .write_all(&text)
            .context("cannot configure the VMM")
    }

    /// The VMM's next message; nothing if it ended, or does not speak within `patience`.
    pub fn event(&self, patience: Option<Duration>) -> Option<Event> {
        if let Some(event) = self.unexpected.borrow_mut().take() {
            return Some(event);
        }
        // It fails only for no time at all.
        let _ = self.stream.set_read_timeout(patience);
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') && line.len() < LINE {
            (&self.stream).read_exact(&mut byte).ok()?;
            line.push(byte[0]);
        }
        serde_json::from_slice(&line).ok()
    }

    /// Puts an event back that was not what was waited for.
    pub fn put_back(&self, event: Option<Event>) {
        *self.unexpected.borrow_mut() = event;
    }

    /// Has the VMM do something, with a descriptor if it takes one, and waits for its answer.
    pub fn request(
        &self,
        action: Action,
        descriptor: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> Result<Event> {
        let id = self.requests.get() + 1;
        self.requests.set(id);
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        send_line(&self.stream, &Request { id, action }, &descriptors)?;
        loop {
            match self.event(Some(patience)) {
                Some(Event::Failed { id: of, message }) if of == id => bail!("{message}"),
                Some(event @ (Event::Done { id: of } | Event::Vcpus { id: of, .. }))
                    if of == id =>
                {
                    return Ok(event);
                }
                // The late answer to a request that was given up.
                Some(Event::Failed { .. } | Event::Done { .. } | Event::Vcpus { .. }) => {}
                None => bail!("the VMM gave no answer within {} s", patience.as_secs()),
                event => {
                    self.put_back(event);
                    bail!("the machine has ended");
                }
            }
        }
    }

    /// What the guest seems to do that gives no answer.
    pub fn hang(&self) -> Option<String> {
        let mut looks = Vec::new();
        for _ in 0..LOOKS {
            match self.request(Action::Vcpus, None, VCPUS).ok()? {
                Event::Vcpus { vcpus, .. } => looks.push(vcpus),
                _ => return None,
            }
            std::thread::sleep(PAUSE);
        }
        diagnosis(&looks)
    }
}

impl AsFd for VmmControl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// What looks at a machine's vCPUs, a while apart, tell of a guest that gives no answer.
fn diagnosis(looks: &[Vec<VcpuState>]) -> Option<String> {
    let count = looks.first()?.len();
    let stuck = (0..count).find_map(|vcpu| {
        let states: Vec<_> = looks.iter().filter_map(|look| look.get(vcpu)).collect();
        let last = states.last()?;
        let places = states.iter().map(|state| state.rip);
        let (low, high) = (places.clone().min()?, places.max()?);
        if states
            .iter()
            .all(|state| state.activity == Activity::Halted && !state.interrupts_enabled)
        {
            return Some(format!(
                "vCPU {vcpu} halted for good at {:#x}, without interrupts",
                last.rip
            ));
        }
        let spins = states
            .iter()
            .all(|state| state.activity == Activity::Running)
            && high - low < LOOP;
        spins.then(|| format!("vCPU {vcpu} spins at about {:#x}", last.rip))
    });
    stuck.or_else(|| {
        let idle = looks.iter().flatten().all(|state| {
            state.activity == Activity::Waiting
                || state.activity == Activity::Halted && state.interrupts_enabled
        });
        idle.then(|| "it idles".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn late_answer_to_another_request_is_not_taken_for_this_ones() {
        let (control, mut vmm) = VmmControl::pair().unwrap();
        control.requests.set(1);
        let answers = r#"{"event":"done","id":1}
{"event":"failed","id":2,"message":"no room"}
"#;
        vmm.write_all(answers.as_bytes()).unwrap();

        let error = control
            .request(Action::Pause, None, Duration::from_secs(5))
            .unwrap_err();

        assert_eq!(error.to_string(), "no room");
    }
}
