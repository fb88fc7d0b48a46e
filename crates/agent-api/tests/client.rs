// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The client against a real server, and against guests that are no agents.

use std::io::{Read, Write};
use std::os::fd::{AsFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use coracle_agent_api::messages::{
    CheckRequest, CheckResponse, CreateContainerRequest, CreateContainerResponse,
    WaitProcessRequest, WaitProcessResponse,
};
use coracle_agent_api::{
    ANSWER_MAX, Agent, AgentError, CALLS_MAX, CallError, Client, ErrorKind, methods, ttrpc,
};
use protobuf::Message;
use rstest::rstest;
use rustix::event::{PollFd, poll};

const SOON: Duration = Duration::from_secs(10);
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 3;

/// An agent whose containers end when the test says so.
struct Served(std::sync::Mutex<Receiver<u32>>);

impl Agent for Served {
    fn check(&self, _: &ttrpc::TtrpcContext, _: CheckRequest) -> ttrpc::Result<CheckResponse> {
        let version = "1".into();
        Ok(CheckResponse {
            version,
            ..Default::default()
        })
    }

    fn create_container(
        &self,
        _: &ttrpc::TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        Ok(CreateContainerResponse {
            pid: u32::try_from(request.spec.len()).unwrap(),
            ..Default::default()
        })
    }

    fn wait_process(
        &self,
        _: &ttrpc::TtrpcContext,
        _: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        match self.0.lock().unwrap().recv().unwrap() {
            0 => Err(AgentError::new(ErrorKind::NoSuchContainer, "there is none").into()),
            exit_status => Ok(WaitProcessResponse {
                exit_status,
                ..Default::default()
            }),
        }
    }
}

/// A server of an agent, a client of it, and what ends its containers.
fn served() -> (ttrpc::Server, Client, mpsc::Sender<u32>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent");
    let listener = UnixListener::bind(&path).unwrap();
    let (end, ends) = mpsc::channel();
    let agent = Arc::new(Served(ends.into()));
    let mut server = ttrpc::Server::new()
        .add_listener(listener.into_raw_fd())
        .unwrap()
        .register_service(methods(agent));
    server.start().unwrap();
    let client = Client::new(UnixStream::connect(path).unwrap()).unwrap();
    (server, client, end)
}

/// A client, and the guest's end of its connection.
fn pair() -> (Client, UnixStream) {
    let (host, guest) = UnixStream::pair().unwrap();
    (Client::new(host).unwrap(), guest)
}

/// Waits for what the client waits for.
fn wait(client: &Client) {
    let mut descriptors = [PollFd::from_borrowed_fd(client.as_fd(), client.interest())];
    let timeout = SOON.try_into().unwrap();
    assert_eq!(poll(&mut descriptors, Some(&timeout)), Ok(1));
}

fn frame(length: usize, call: u32, kind: u8) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [&length[..], &call.to_be_bytes(), &[kind, 0]].concat()
}

/// The error of a call to a guest that answers with these bytes.
fn answered(bytes: &[u8]) -> CallError {
    let (mut client, mut guest) = pair();
    guest.write_all(bytes).unwrap();
    client.call(&CheckRequest::new(), SOON).unwrap_err()
}

#[test]
fn agent_answers() {
    let (_server, mut client, _end) = served();

    let answer = client.call(&CheckRequest::new(), SOON).unwrap();

    assert_eq!(answer.version, "1");
}

#[test]
fn request_larger_than_a_socket_takes_at_once_arrives() {
    let (_server, mut client, _end) = served();
    let request = CreateContainerRequest {
        spec: vec![b'x'; 1 << 20],
        ..Default::default()
    };

    let answer = client.call(&request, SOON).unwrap();

    assert_eq!(answer.pid, 1 << 20);
}

#[test]
fn call_under_way_holds_up_no_other() {
    let (_server, mut client, end) = served();

    let waiting = client.send(&WaitProcessRequest::new()).unwrap();
    let checked = client.call(&CheckRequest::new(), SOON).unwrap();
    let early = client.take(&waiting).unwrap();
    end.send(7).unwrap();
    wait(&client);
    let answer = client.take(&waiting).unwrap();

    assert_eq!(checked.version, "1");
    assert_eq!(early, None);
    assert_eq!(answer.unwrap().exit_status, 7);
}

#[test]
fn failure_of_the_agent_leaves_the_connection_whole() {
    let (_server, mut client, end) = served();
    end.send(0).unwrap();

    let failed = client.call(&WaitProcessRequest::new(), SOON);
    let after = client.call(&CheckRequest::new(), SOON);

    let Err(CallError::Agent(error)) = failed else {
        panic!("{failed:?}");
    };
    assert_eq!(
        error,
        AgentError::new(ErrorKind::NoSuchContainer, "there is none")
    );
    assert!(after.is_ok(), "{after:?}");
}

#[test]
fn answer_may_come_byte_by_byte() {
    let (mut client, mut guest) = pair();
    let call = client.send(&CheckRequest::new()).unwrap();

    for byte in frame(0, 1, RESPONSE) {
        assert_eq!(client.take(&call).unwrap(), None);
        guest.write_all(&[byte]).unwrap();
    }

    assert_eq!(client.take(&call).unwrap(), Some(CheckResponse::new()));
}

#[rstest]
#[case::longer_than_any(frame(ANSWER_MAX + 1, 1, RESPONSE), "the guest's answer has 65537 bytes, of 65536 at most")]
#[case::as_long_as_can_be_said(frame(u32::MAX as usize, 1, RESPONSE), "the guest's answer has 4294967295 bytes, of 65536 at most")]
#[case::of_another_call(
    frame(0, 3, RESPONSE),
    "the guest answers what it was not asked (message of type 2 to call 3)"
)]
#[case::of_no_call(
    frame(0, 0, RESPONSE),
    "the guest answers what it was not asked (message of type 2 to call 0)"
)]
#[case::a_request(
    frame(0, 1, REQUEST),
    "the guest answers what it was not asked (message of type 1 to call 1)"
)]
#[case::data(frame(4 << 20, 1, DATA), "the guest answers what it was not asked (message of type 3 to call 1)")]
#[case::no_message([frame(2, 1, RESPONSE), vec![0xff, 0xff]].concat(), "the guest's answer cannot be read")]
fn answer_that_is_none_ends_the_connection(#[case] bytes: Vec<u8>, #[case] expected: &str) {
    let (mut client, mut guest) = pair();
    guest.write_all(&bytes).unwrap();

    let error = client.call(&CheckRequest::new(), SOON).unwrap_err();
    let after = client.call(&CheckRequest::new(), SOON).unwrap_err();

    assert_eq!(error.to_string(), expected);
    assert_eq!(after.to_string(), "the guest's agent hung up");
    let mut rest = Vec::new();
    guest.read_to_end(&mut rest).unwrap();
}

#[test]
fn result_of_another_kind_is_refused() {
    // Field 2 of the response, the payload, is a byte that no message can consist of.
    let error = answered(&[frame(3, 1, RESPONSE), vec![0x12, 1, 0xff]].concat());

    assert!(matches!(error, CallError::Answer(_)), "{error:?}");
}

#[test]
fn refusal_of_another_service_leaves_the_connection_whole() {
    let (mut client, mut guest) = pair();
    let refusal = ttrpc::Response {
        status: Some(ttrpc::get_status(
            ttrpc::Code::UNIMPLEMENTED,
            "no such method",
        ))
        .into(),
        ..Default::default()
    };
    let refusal = refusal.write_to_bytes().unwrap();
    for call in [1, 3] {
        guest
            .write_all(&[frame(refusal.len(), call, RESPONSE), refusal.clone()].concat())
            .unwrap();
        // The second is answered as the first was.
        let error = client.call(&CheckRequest::new(), SOON).unwrap_err();

        assert_eq!(
            error.to_string(),
            "the guest refuses the call with code 12: no such method"
        );
    }
}

#[test]
fn guest_that_goes_with_the_request_unread_has_hung_up() {
    let (mut client, guest) = pair();
    let call = client.send(&CheckRequest::new()).unwrap();
    drop(guest);

    let error = client.take(&call).unwrap_err();

    assert!(matches!(error, CallError::HungUp), "{error:?}");
}

#[test]
fn calls_are_told_apart_by_their_numbers() {
    let (mut client, _guest) = pair();

    let calls = [(); 2].map(|()| client.send(&CheckRequest::new()).unwrap());

    assert_eq!(format!("{calls:?}"), "[Pending(1), Pending(3)]");
}

#[test]
fn answer_can_be_taken_but_once() {
    let (mut client, mut guest) = pair();
    let call = client.send(&CheckRequest::new()).unwrap();
    guest.write_all(&frame(0, 1, RESPONSE).repeat(2)).unwrap();

    let error = client.take(&call).unwrap_err();

    assert!(matches!(error, CallError::Unasked { .. }), "{error:?}");
}

#[test]
fn answer_to_a_call_that_was_given_up_is_thrown_away() {
    let (mut client, mut guest) = pair();
    let before = client.send(&CheckRequest::new()).unwrap();
    let after = client.send(&CheckRequest::new()).unwrap();
    client.forget(before);
    let answers = [frame(0, 1, RESPONSE), frame(0, 3, RESPONSE)].concat();
    guest.write_all(&answers).unwrap();

    let answer = client.take(&after).unwrap();

    assert!(answer.is_some());
    assert_eq!(client.answered(), 2);
}

#[rstest]
#[case::before_its_answer(false)]
#[case::after_its_answer(true)]
fn call_that_was_given_up_takes_no_room_once_it_is_answered(#[case] answered: bool) {
    let (mut client, mut guest) = pair();
    for number in 0..2 * CALLS_MAX {
        let [given_up, other] = [(); 2].map(|()| client.send(&CheckRequest::new()).unwrap());
        let number = u32::try_from(4 * number + 1).unwrap();
        let answers = [frame(0, number, RESPONSE), frame(0, number + 2, RESPONSE)].concat();
        if answered {
            guest.write_all(&answers).unwrap();
            assert!(client.take(&other).unwrap().is_some());
            client.forget(given_up);
        } else {
            client.forget(given_up);
            guest.write_all(&answers).unwrap();
            assert!(client.take(&other).unwrap().is_some());
        }
        let mut requests = [0; 4096];
        while guest.read(&mut requests).unwrap() == requests.len() {}
    }
}

#[test]
fn agent_that_never_answers_is_asked_no_more() {
    let (mut client, _guest) = pair();
    for _ in 0..CALLS_MAX {
        let call = client.send(&CheckRequest::new()).unwrap();
        client.forget(call);
    }

    let error = client.send(&CheckRequest::new()).unwrap_err();

    assert!(matches!(error, CallError::Silent), "{error:?}");
}

#[test]
fn guest_that_ends_only_its_half_has_hung_up() {
    let (mut client, guest) = pair();
    guest.shutdown(std::net::Shutdown::Write).unwrap();
    let begun = Instant::now();

    let error = client.call(&CheckRequest::new(), SOON).unwrap_err();

    assert!(matches!(error, CallError::HungUp), "{error:?}");
    assert!(begun.elapsed() < SOON / 2);
}

#[test]
fn guest_that_is_gone_has_hung_up() {
    let (mut client, guest) = pair();
    drop(guest);

    let error = client.call(&CheckRequest::new(), SOON).unwrap_err();

    assert!(matches!(error, CallError::HungUp), "{error:?}");
}

#[rstest]
#[case::that_says_nothing(false)]
#[case::that_dribbles(true)]
fn guest_is_waited_for_no_longer_than_is_said(#[case] dribbles: bool) {
    let (mut client, mut guest) = pair();
    let (_alive, ended) = mpsc::channel::<()>();
    let header = frame(1000, 1, RESPONSE);
    let dribbler = thread::spawn(move || {
        let _ = guest.write_all(&header);
        while ended.recv_timeout(Duration::from_millis(10)) == Err(mpsc::RecvTimeoutError::Timeout)
        {
            if dribbles && guest.write_all(&[0]).is_err() {
                return;
            }
        }
    });

    let error = client
        .call(&CheckRequest::new(), Duration::from_millis(200))
        .unwrap_err();

    assert!(matches!(error, CallError::TimedOut(_)), "{error:?}");
    drop((client, _alive));
    dribbler.join().unwrap();
}
