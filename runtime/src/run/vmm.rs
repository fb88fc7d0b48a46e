// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is said between a run and its VMM.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use coracle_vmm::role::{Action, Event, Request};
use coracle_vmm::{Activity, Config, VcpuState};

use crate::control::Connection;

/// How long the VMM may take to say where its vCPUs stand.
const VCPUS: Duration = Duration::from_secs(5);
/// How often it is asked, and the pause between: a vCPU that is at about the same place each time does not get on.
const LOOKS: usize = 4;
const PAUSE: Duration = Duration::from_millis(50);
/// How far apart the places of one loop are, in bytes.
const LOOP: u64 = 4096;

/// The run's end of the VMM's control socket.
pub struct VmmControl {
    /// The same socket as the connection's, to be waited for.
    socket: UnixStream,
    connection: RefCell<Connection>,
    /// What the VMM said instead of what was waited for.
    unexpected: RefCell<Option<Event>>,
    requests: Cell<u64>,
    /// What was asked for without waiting, and how it went.
    begun: RefCell<BTreeMap<u64, Option<Result<()>>>>,
}

/// Something that the VMM was asked for without waiting.
#[derive(Debug)]
pub struct Begun(u64);

impl VmmControl {
    /// A socket for a VMM, and the VMM's end of it.
    pub fn pair() -> Result<(Self, UnixStream)> {
        let (stream, theirs) =
            UnixStream::pair().context("cannot make the VMM's control socket")?;
        // A VMM that takes nothing is to keep nobody waiting.
        stream
            .set_nonblocking(true)
            .context("cannot set up a socket")?;
        let control = Self {
            socket: stream.try_clone().context("cannot duplicate a socket")?,
            connection: Connection::new(stream).into(),
            unexpected: RefCell::new(None),
            requests: Cell::new(0),
            begun: RefCell::default(),
        };
        Ok((control, theirs))
    }

    /// Sends what the machine is made of.
    pub fn configure(&self, config: &Config) -> Result<()> {
        let mut connection = self.connection.borrow_mut();
        connection
            .send(config, &[])
            .context("cannot configure the VMM")
    }

    /// The VMM's next message; nothing if it ended, or has not said one within `patience`.
    pub fn event(&self, patience: Duration) -> Option<Event> {
        if let Some(event) = self.unexpected.borrow_mut().take() {
            return Some(event);
        }
        let mut connection = self.connection.borrow_mut();
        connection.receive(Some(patience)).ok().flatten()
    }

    /// Puts an event back that was not what was waited for.
    pub fn put_back(&self, event: Option<Event>) {
        *self.unexpected.borrow_mut() = event;
    }

    /// Has the VMM do something, and waits for its answer.
    pub fn request(&self, action: Action, patience: Duration) -> Result<Event> {
        let id = self.send(action, &[])?;
        let deadline = Instant::now() + patience;
        loop {
            match self.event(deadline.saturating_duration_since(Instant::now())) {
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

    /// Has the VMM do something with a descriptor that takes its time: [`Self::outcome`] says when it is done.
    pub fn begin(&self, action: Action, descriptor: BorrowedFd<'_>) -> Result<Begun> {
        let id = self.send(action, &[descriptor])?;
        self.begun.borrow_mut().insert(id, None);
        Ok(Begun(id))
    }

    /// How that went which was begun, if it is over by now. It is told once.
    pub fn outcome(&self, begun: &Begun) -> Option<Result<()>> {
        let mut all = self.begun.borrow_mut();
        let outcome = all.get_mut(&begun.0)?.take()?;
        all.remove(&begun.0);
        Some(outcome)
    }

    /// Whoever began that does not want it any more: the VMM is told, unless it is over.
    pub fn forget(&self, begun: &Begun) {
        let outcome = self.begun.borrow_mut().remove(&begun.0);
        if let Some(None) = outcome {
            // A VMM that takes nothing is on its way out.
            let _ = self.send(Action::Cancel(begun.0), &[]);
        }
    }

    /// Takes in what the VMM has said by now; says whether the machine has ended.
    pub fn listen(&self) -> bool {
        let mut connection = self.connection.borrow_mut();
        let mut ended = connection.gather().is_err();
        loop {
            let (id, outcome) = match connection.next() {
                Ok(Some(Event::Done { id })) => (id, Ok(())),
                Ok(Some(Event::Failed { id, message })) => (id, Err(Error::msg(message))),
                Ok(Some(Event::Vcpus { id, .. })) => {
                    (id, Err(anyhow!("the VMM answers otherwise")))
                }
                Ok(Some(event)) => {
                    self.put_back(Some(event));
                    return true;
                }
                Ok(None) => return ended,
                // Whoever speaks no sense is no VMM any more.
                Err(_) => {
                    ended = true;
                    continue;
                }
            };
            if let Some(slot) = self.begun.borrow_mut().get_mut(&id) {
                *slot = Some(outcome);
            }
        }
    }

    fn send(&self, action: Action, descriptors: &[BorrowedFd<'_>]) -> Result<u64> {
        let id = self.requests.get() + 1;
        self.requests.set(id);
        let mut connection = self.connection.borrow_mut();
        connection.send(&Request { id, action }, descriptors)?;
        Ok(id)
    }

    /// What the guest seems to do that gives no answer.
    pub fn hang(&self) -> Option<String> {
        let mut looks = Vec::new();
        for _ in 0..LOOKS {
            match self.request(Action::Vcpus, VCPUS).ok()? {
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
        self.socket.as_fd()
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
    use std::fs::File;
    use std::io::{BufRead, BufReader, Write};
    use std::thread;

    use rstest::rstest;

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
            .request(Action::Pause, Duration::from_secs(5))
            .unwrap_err();

        assert_eq!(error.to_string(), "no room");
    }

    #[test]
    fn vmm_that_dribbles_is_given_up_in_time() {
        let (control, mut vmm) = VmmControl::pair().unwrap();
        let dribbler = thread::spawn(move || {
            while vmm.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        let began = Instant::now();

        let error = control
            .request(Action::Pause, Duration::from_millis(300))
            .unwrap_err();

        assert_eq!(error.to_string(), "the VMM gave no answer within 0 s");
        assert!(began.elapsed() < Duration::from_secs(5));
        drop(control);
        dribbler.join().unwrap();
    }

    #[test]
    fn vmm_that_answers_others_without_end_is_given_up_in_time() {
        let (control, mut vmm) = VmmControl::pair().unwrap();
        let talker =
            thread::spawn(
                move || while vmm.write_all(b"{\"event\":\"done\",\"id\":77}\n").is_ok() {},
            );

        let error = control
            .request(Action::Pause, Duration::from_millis(300))
            .unwrap_err();

        assert_eq!(error.to_string(), "the VMM gave no answer within 0 s");
        drop(control);
        talker.join().unwrap();
    }

    #[test]
    fn what_was_begun_is_over_when_the_vmm_says_so() {
        let (control, mut vmm) = VmmControl::pair().unwrap();
        let [first, second, third] = [(); 3].map(|()| {
            let file = File::open("/dev/null").unwrap();
            control.begin(Action::Dump, file.as_fd()).unwrap()
        });
        control.forget(&third);
        assert!(!control.listen());
        assert!(control.outcome(&first).is_none());

        let answers = r#"{"event":"done","id":3}
{"event":"done","id":1}
{"event":"failed","id":2,"message":"no room"}
"#;
        vmm.write_all(answers.as_bytes()).unwrap();

        assert!(!control.listen(), "an answer is not the end");
        assert!(control.outcome(&first).unwrap().is_ok());
        let error = control.outcome(&second).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "no room");
        assert!(control.outcome(&first).is_none() && control.outcome(&third).is_none());
    }

    #[test]
    fn vmm_is_told_of_what_is_forgotten_before_it_is_over() {
        let (control, vmm) = VmmControl::pair().unwrap();
        let [under_way, over, told] = [(); 3].map(|()| {
            let file = File::open("/dev/null").unwrap();
            control.begin(Action::Dump, file.as_fd()).unwrap()
        });
        let answers = "{\"event\":\"done\",\"id\":2}\n{\"event\":\"done\",\"id\":3}\n";
        (&vmm).write_all(answers.as_bytes()).unwrap();
        assert!(!control.listen());
        control.outcome(&told).unwrap().unwrap();

        for begun in [under_way, over, told] {
            control.forget(&begun);
        }

        drop(control);
        let asked: Vec<Request> = BufReader::new(vmm)
            .lines()
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
            .collect();
        let actions: Vec<_> = asked.iter().map(|request| request.action).collect();
        let dump = Action::Dump;
        assert_eq!(actions, [dump, dump, dump, Action::Cancel(1)]);
    }

    #[rstest]
    #[case::without_a_word("")]
    #[case::with_its_reason("{\"event\":\"exit\",\"reason\":\"triple_fault\"}\n")]
    #[case::in_the_middle_of_a_word("{\"event\":\"ex")]
    #[case::without_sense("bye\n")]
    fn end_of_the_machine_is_noticed(#[case] words: &str) {
        let (control, mut vmm) = VmmControl::pair().unwrap();
        vmm.write_all(words.as_bytes()).unwrap();
        drop(vmm);

        assert!(control.listen() || control.listen());

        let reason = control.event(Duration::ZERO);
        assert_eq!(reason.is_some(), words.contains("reason"));
    }
}
