// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What other processes ask for, before an agent that does what the test lets it.

use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::os::fd::IntoRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use coracle_agent_api::messages::{
    CreateExecRequest, CreateExecResponse, DeleteProcessRequest, DeleteProcessResponse,
    StartProcessRequest, StartProcessResponse, StatisticsResponse, WaitProcessRequest,
    WaitProcessResponse,
};
use coracle_agent_api::{Agent, Client, methods, ttrpc};
use coracle_oci::plan::SandboxPlan;
use rstest::rstest;
use tempfile::TempDir;

use super::*;
use crate::control::{Exec, ReceiveError};
use crate::run::guest::Guest;
use crate::run::listeners::SOCKET;
use crate::run::machine::Machine;
use crate::run::signals::Forwarding;
use crate::testing::plan;

const SOON: Duration = Duration::from_secs(10);

/// An agent that tells what it is asked for.
struct Stage {
    directory: PathBuf,
    calls: Mutex<Sender<&'static str>>,
    /// A process is made, and statistics are, once there is one here.
    makes: Mutex<Receiver<()>>,
    /// A process ends once there is its status here.
    ends: Mutex<Receiver<u32>>,
}

impl Stage {
    fn tell(&self, call: &'static str) {
        // A test that is over knows enough.
        let _ = self.calls.lock().unwrap().send(call);
    }

    fn until<T>(wait: &Mutex<Receiver<T>>) -> ttrpc::Result<T> {
        let received = wait.lock().unwrap().recv();
        received.map_err(|_| ttrpc::Error::Others("the test is over".to_owned()))
    }
}

impl Agent for Stage {
    fn create_exec(
        &self,
        _: &ttrpc::TtrpcContext,
        request: CreateExecRequest,
    ) -> ttrpc::Result<CreateExecResponse> {
        self.tell("create");
        Self::until(&self.makes)?;
        for port in [request.stdout_port, request.stderr_port] {
            let path = format!("{SOCKET}_{}", port.unwrap());
            UnixStream::connect(self.directory.join(path)).unwrap();
        }
        Ok(CreateExecResponse::default())
    }

    fn start_process(
        &self,
        _: &ttrpc::TtrpcContext,
        _: StartProcessRequest,
    ) -> ttrpc::Result<StartProcessResponse> {
        self.tell("start");
        Ok(StartProcessResponse::default())
    }

    fn wait_process(
        &self,
        _: &ttrpc::TtrpcContext,
        _: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        self.tell("wait");
        Ok(WaitProcessResponse {
            exit_status: Self::until(&self.ends)?,
            ..Default::default()
        })
    }

    fn delete_process(
        &self,
        _: &ttrpc::TtrpcContext,
        _: DeleteProcessRequest,
    ) -> ttrpc::Result<DeleteProcessResponse> {
        self.tell("delete");
        Ok(DeleteProcessResponse::default())
    }

    fn statistics(
        &self,
        _: &ttrpc::TtrpcContext,
        _: StatisticsRequest,
    ) -> ttrpc::Result<StatisticsResponse> {
        self.tell("statistics");
        Self::until(&self.makes)?;
        Ok(StatisticsResponse::default())
    }
}

/// A container that runs, as far as anybody can tell.
struct Running {
    directory: TempDir,
    plan: SandboxPlan,
    machine: Machine,
    vmm: UnixStream,
    calls: Receiver<&'static str>,
    make: Sender<()>,
    end: Sender<u32>,
    _agent: ttrpc::Server,
}

impl Running {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("agent")).unwrap();
        let (tell, calls) = mpsc::channel();
        let (make, makes) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let stage = Stage {
            directory: directory.path().to_owned(),
            calls: tell.into(),
            makes: makes.into(),
            ends: ends.into(),
        };
        let mut agent = ttrpc::Server::new()
            .add_listener(listener.into_raw_fd())
            .unwrap()
            .register_service(methods(Arc::new(stage)));
        agent.start().unwrap();
        let (machine, vmm) = Machine::empty();
        Self {
            directory,
            plan: plan(&[], &[]),
            machine,
            vmm,
            calls,
            make,
            end,
            _agent: agent,
        }
    }

    /// Who supervises it, and the connection to its agent.
    fn supervisor(&self) -> (Supervisor<'_>, UnixStream) {
        let stream = UnixStream::connect(self.directory.path().join("agent")).unwrap();
        let connection = stream.try_clone().unwrap();
        let (_, alive) = UnixStream::pair().unwrap();
        let guest = Guest::new(Client::new(stream).unwrap(), alive, self.machine.control());
        let signals = Forwarding::catch().unwrap();
        let (plan, vsock) = (&self.plan, self.directory.path());
        let supervisor = Supervisor::new(guest, &self.machine, plan, vsock, "c", signals);
        (supervisor, connection)
    }
}

/// A session, and the connection of who asks.
fn session() -> (Session, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let session = Session::new(Connection::new(ours), false);
    (session, Connection::new(theirs))
}

fn command() -> Request {
    Request::Exec(Exec {
        command: vec!["true".to_owned()],
        env: Vec::new(),
        workdir: None,
        user: None,
        stdin: false,
        terminal: None,
    })
}

/// Steps until the session leaves.
fn leave(session: &mut Session, supervisor: &mut Supervisor<'_>) {
    let deadline = Instant::now() + SOON;
    while matches!(session.step(supervisor), Step::Stay) {
        assert!(Instant::now() < deadline, "the session stays");
        sleep(Duration::from_millis(5));
    }
}

/// Steps until the agent is asked for this; the session has to stay.
fn stay_until(
    call: &str,
    running: &Running,
    session: &mut Session,
    supervisor: &mut Supervisor<'_>,
) {
    let deadline = Instant::now() + SOON;
    while running.calls.try_recv() != Ok(call) {
        assert!(matches!(session.step(supervisor), Step::Stay));
        assert!(Instant::now() < deadline, "{call} is not called");
        sleep(Duration::from_millis(5));
    }
}

fn answer(client: &mut Connection) -> Result<Option<Answer>, ReceiveError> {
    client.receive(Some(Duration::ZERO))
}

/// A process that another test is just starting has the socket as well: it is not closed by being dropped.
fn hang_up(client: Connection) {
    rustix::net::shutdown(client, rustix::net::Shutdown::Both).unwrap();
}

fn assert_hung_up(client: &mut Connection) {
    let answer = client.receive::<Answer>(Some(SOON));
    assert!(matches!(answer, Err(ReceiveError::HungUp)), "{answer:?}");
}

/// Whether this is a failure whose message begins so.
fn is_failure(answer: &Result<Option<Answer>, ReceiveError>, expected: &str) -> bool {
    matches!(answer, Ok(Some(Answer::Failed { message, .. })) if message.starts_with(expected))
}

const OTHER_VERSION: &str = "the container is run by version";

#[test]
fn command_that_ends_is_told_and_forgotten() {
    let running = Running::new();
    let (mut supervisor, _) = running.supervisor();
    let (mut session, mut client) = session();
    client.send(&command(), &[]).unwrap();
    running.make.send(()).unwrap();
    running.end.send(7).unwrap();

    leave(&mut session, &mut supervisor);

    let answers = [(); 2].map(|()| answer(&mut client).unwrap());
    let expected = [Answer::Streams, Answer::Exited { status: 7 }].map(Some);
    assert_eq!(answers, expected);
    let calls = [(); 4].map(|()| running.calls.recv_timeout(SOON).unwrap());
    assert_eq!(calls, ["create", "start", "wait", "delete"]);
}

#[rstest]
#[case::signal(Request::Signal { signal: 15 })]
#[case::usage(Request::Usage)]
#[case::command(command())]
fn whoever_asks_a_guest_that_is_gone_is_hung_up_on(#[case] request: Request) {
    let running = Running::new();
    let (mut supervisor, agent) = running.supervisor();
    let (mut session, mut client) = session();
    agent.shutdown(Shutdown::Both).unwrap();
    client.send(&request, &[]).unwrap();

    leave(&mut session, &mut supervisor);

    drop(session);
    assert_hung_up(&mut client);
}

#[test]
fn whoever_awaits_a_command_of_a_guest_that_ends_is_hung_up_on() {
    let running = Running::new();
    let (mut supervisor, agent) = running.supervisor();
    let (mut session, mut client) = session();
    client.send(&command(), &[]).unwrap();
    running.make.send(()).unwrap();
    stay_until("wait", &running, &mut session, &mut supervisor);
    agent.shutdown(Shutdown::Both).unwrap();

    leave(&mut session, &mut supervisor);

    drop(session);
    assert_eq!(answer(&mut client).unwrap(), Some(Answer::Streams));
    assert_hung_up(&mut client);
}

#[test]
fn command_goes_on_when_nobody_asks_for_it_any_more() {
    let running = Running::new();
    let (mut supervisor, _agent) = running.supervisor();
    let (mut session, mut client) = session();
    client.send(&command(), &[]).unwrap();
    running.make.send(()).unwrap();
    stay_until("wait", &running, &mut session, &mut supervisor);

    hang_up(client);

    assert!(matches!(session.step(&mut supervisor), Step::Stay));
    assert!(!session.awaits_exit());
    assert!(running.calls.try_recv().is_err(), "it is left alone");
    running.end.send(0).unwrap();
    leave(&mut session, &mut supervisor);
    assert_eq!(running.calls.recv_timeout(SOON), Ok("delete"));
}

#[test]
fn command_of_whoever_says_what_makes_no_sense_is_ended() {
    let running = Running::new();
    let (mut supervisor, _agent) = running.supervisor();
    let (mut session, mut client) = session();
    client.send(&command(), &[]).unwrap();
    running.make.send(()).unwrap();
    stay_until("wait", &running, &mut session, &mut supervisor);
    client.send(&"nonsense", &[]).unwrap();

    let step = session.step(&mut supervisor);

    assert!(matches!(step, Step::Leave));
    assert_eq!(answer(&mut client).unwrap(), Some(Answer::Streams));
    let answer = answer(&mut client);
    assert!(is_failure(&answer, OTHER_VERSION), "{answer:?}");
    assert_eq!(running.calls.recv_timeout(SOON), Ok("delete"));
}

#[rstest]
#[case::says_what_makes_no_sense(&["nonsense"])]
#[case::hangs_up(&[])]
fn command_that_is_being_made_for_nobody_is_never_started(#[case] said: &[&str]) {
    let running = Running::new();
    let (mut supervisor, _agent) = running.supervisor();
    let (mut session, mut client) = session();
    client.send(&command(), &[]).unwrap();
    stay_until("create", &running, &mut session, &mut supervisor);
    for word in said {
        client.send(word, &[]).unwrap();
    }
    let with_connection = session.step(&mut supervisor);
    let answer = answer(&mut client);
    hang_up(client);
    let without = session.step(&mut supervisor);

    running.make.send(()).unwrap();
    leave(&mut session, &mut supervisor);

    assert!(
        [with_connection, without]
            .iter()
            .all(|step| matches!(step, Step::Stay))
    );
    assert_eq!(is_failure(&answer, OTHER_VERSION), !said.is_empty());
    assert_eq!(running.calls.recv_timeout(SOON), Ok("delete"));
}

#[test]
fn whoever_asks_nothing_is_told_so_in_the_end() {
    let running = Running::new();
    let (mut supervisor, _agent) = running.supervisor();
    let (mut session, mut client) = session();
    session.deadline = Some(Instant::now());

    let step = session.step(&mut supervisor);

    assert!(matches!(step, Step::Leave));
    let answer = answer(&mut client);
    let expected = "nothing was asked for within 5 s";
    assert!(is_failure(&answer, expected), "{answer:?}");
}

#[test]
fn agent_that_gives_no_answer_is_told_of_in_the_end() {
    let running = Running::new();
    let (mut supervisor, _agent) = running.supervisor();
    let (mut session, mut client) = session();
    client.send(&Request::Usage, &[]).unwrap();
    stay_until("statistics", &running, &mut session, &mut supervisor);
    session.deadline = Some(Instant::now());

    let step = session.step(&mut supervisor);

    assert!(matches!(step, Step::Leave));
    let answer = answer(&mut client);
    let expected = "the guest's agent gave no answer within 5 s";
    assert!(is_failure(&answer, expected), "{answer:?}");
}

#[test]
fn dump_that_nobody_waits_for_is_given_up() {
    let running = Running::new();
    let (mut supervisor, _agent) = running.supervisor();
    let (mut session, mut client) = session();
    let file = tempfile::tempfile().unwrap();
    client.send(&Request::Dump, &[file.as_fd()]).unwrap();
    assert!(matches!(session.step(&mut supervisor), Step::Stay));

    hang_up(client);

    assert!(matches!(session.step(&mut supervisor), Step::Leave));
    running.vmm.set_read_timeout(Some(SOON)).unwrap();
    let asked: Vec<_> = BufReader::new(&running.vmm)
        .lines()
        .take(2)
        .map(Result::unwrap)
        .collect();
    let expected = [
        r#"{"id":1,"request":"dump"}"#,
        r#"{"id":2,"request":{"cancel":1}}"#,
    ];
    assert_eq!(asked, expected);
}
