// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Back ends that do not keep to the protocol.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use coracle_devices::vhost_user::{
    BackendError, ConnectionError, PATIENCE, VhostUserDevice, VhostUserError, block,
};
use coracle_virtio::testing::write_register;
use coracle_virtio::{Register, VirtioDevice};
use rstest::rstest;

use crate::guest::{Guest, shared_memory};
use crate::scripted::{
    Deed, GET_CONFIG, GET_FEATURES, GET_VRING_BASE, SET_VRING_ENABLE, answer, message, scripted,
    scripted_later, silent_about_success,
};

/// For a back end that becomes silent: all that it is to say before takes far less.
const SOON: Duration = Duration::from_secs(1);
/// Many times [`SOON`], for a busy machine.
const AT_LAST: Duration = Duration::from_secs(10);

/// A request that no device makes.
const NEVER: u32 = 99;

/// The request at which it failed, and how.
fn failure(made: Result<VhostUserDevice, VhostUserError>) -> (&'static str, ConnectionError) {
    match made {
        Err(VhostUserError::Backend {
            source: BackendError::Request { request, source },
            ..
        }) => (request, source),
        other => panic!("{other:?}"),
    }
}

#[test]
fn configuration_space_is_the_back_ends() {
    let (_peer, stream) = scripted(NEVER, Deed::HangUp);

    let device = block(stream, AT_LAST).unwrap();

    let mut config = [0; 64];
    device.read_config(0, &mut config);
    assert_eq!((config[0], config[59], config[60]), (7, 7, 0));
}

#[rstest]
#[case::says_nothing(Deed::BeSilent)]
#[case::says_something_for_ever(Deed::Dribble)]
#[case::says_half(Deed::Send(answer(GET_FEATURES, &[0; 8])[..15].to_vec()))]
fn back_end_that_does_not_finish_is_given_up_in_time(
    #[case] deed: Deed,
    #[values((GET_FEATURES, "GET_FEATURES"), (GET_CONFIG, "GET_CONFIG"))] at: (u32, &'static str),
) {
    let (peer, stream) = scripted(at.0, deed);
    let begun = Instant::now();

    let (request, error) = failure(block(stream, SOON));

    assert!(begun.elapsed() < AT_LAST);
    assert_eq!(request, at.1);
    assert!(
        matches!(
            error,
            ConnectionError::Silent(_) | ConnectionError::NoAnswer
        ),
        "{error:?}"
    );
    peer.join().unwrap();
}

#[rstest]
#[case::to_another_request(message(2, 5, 8, &[0; 8]))]
#[case::no_answer(message(GET_FEATURES, 1, 8, &[0; 8]))]
#[case::another_version(message(GET_FEATURES, 6, 8, &[0; 8]))]
#[case::too_short(answer(GET_FEATURES, &[0; 4]))]
#[case::too_long(answer(GET_FEATURES, &[0; 16]))]
#[case::empty(answer(GET_FEATURES, &[]))]
#[case::endless(message(GET_FEATURES, 5, u32::MAX, &[0; 64]))]
fn wrong_answer_is_refused(#[case] bytes: Vec<u8>) {
    let (peer, stream) = scripted(GET_FEATURES, Deed::Send(bytes));

    let (_, error) = failure(block(stream, AT_LAST));

    assert!(matches!(error, ConnectionError::NoAnswer), "{error:?}");
    peer.join().unwrap();
}

#[rstest]
#[case::at_the_features(GET_FEATURES)]
#[case::at_the_configuration_space(GET_CONFIG)]
fn back_end_that_hangs_up_is_told_from_a_silent_one(#[case] at: u32) {
    let (_peer, stream) = scripted(at, Deed::HangUp);

    let (_, error) = failure(block(stream, AT_LAST));

    assert!(matches!(error, ConnectionError::Closed), "{error:?}");
}

/// A guest whose device has one queue only.
fn guest(at: u32, deed: Deed) -> (std::thread::JoinHandle<Vec<u32>>, Guest) {
    let patience = patience_with(&deed);
    guest_of(scripted(at, deed), patience)
}

/// For how long a back end is waited for that does this.
fn patience_with(deed: &Deed) -> Duration {
    match deed {
        Deed::BeSilent => SOON,
        _ => AT_LAST,
    }
}

fn guest_of<P>((peer, stream): (P, UnixStream), patience: Duration) -> (P, Guest) {
    let mut guest = Guest::new(block(stream, patience).unwrap(), &shared_memory());
    guest.queues.truncate(1);
    (peer, guest)
}

#[rstest]
#[case::features(2)]
#[case::memory(5)]
#[case::size(8)]
#[case::addresses(9)]
#[case::base(10)]
#[case::kick(12)]
#[case::call(13)]
#[case::enable(18)]
fn start_that_fails_is_told_to_guest_and_monitor(
    #[case] at: u32,
    #[values(Deed::BeSilent, Deed::HangUp, Deed::Send(answer(at, &[1, 0, 0, 0, 0, 0, 0, 0])))]
    deed: Deed,
) {
    let (peer, mut guest) = guest(at, deed);
    let begun = Instant::now();

    guest.activate();

    assert!(begun.elapsed() < AT_LAST);
    assert!(guest.needs_reset());
    assert!(guest.lost.read().is_ok());
    drop(guest);
    peer.join().unwrap();
}

/// Requests are done in order, so that an answer to one says that those before it are done.
#[test]
fn start_without_acknowledgements_ends_with_a_question() {
    let (peer, stream) = silent_about_success();
    let mut guest = Guest::new(block(stream, AT_LAST).unwrap(), &shared_memory());
    guest.queues.truncate(1);

    guest.activate();

    assert!(!guest.needs_reset());
    drop(guest);
    let requests = peer.join().unwrap();
    assert_eq!(requests.last(), Some(&GET_FEATURES));
}

#[test]
fn queue_is_stopped_before_it_is_forgotten() {
    let (peer, mut guest) = guest(NEVER, Deed::HangUp);
    guest.activate();

    write_register(&mut guest.transport, Register::Status, 0);

    drop(guest);
    let requests = peer.join().unwrap();
    assert_eq!(requests[requests.len() - 2..], [18, GET_VRING_BASE]);
}

/// What it is asked for to stop is asked for at the start, or not.
#[rstest]
#[case::is_silent(GET_VRING_BASE, 0, Deed::BeSilent)]
#[case::hangs_up(GET_VRING_BASE, 0, Deed::HangUp)]
#[case::goes_on_with_its_queue(
    SET_VRING_ENABLE,
    1,
    Deed::Send(answer(SET_VRING_ENABLE, &[1, 0, 0, 0, 0, 0, 0, 0]))
)]
fn back_end_that_does_not_stop_is_cut_off(
    #[case] at: u32,
    #[case] before: usize,
    #[case] deed: Deed,
) {
    let patience = patience_with(&deed);
    let (peer, mut guest) = guest_of(scripted_later(at, before, deed), patience);
    guest.activate();
    let begun = Instant::now();

    write_register(&mut guest.transport, Register::Status, 0);

    assert!(begun.elapsed() < AT_LAST);
    assert!(guest.lost.read().is_ok(), "the monitor knows at once");
    // It sees the end of the connection, though the device is still there.
    peer.join().unwrap();
    guest.activate();
    assert!(guest.needs_reset());
}

#[test]
fn vcpu_waits_less_long_than_whoever_makes_the_device() {
    let (peer, stream) = scripted(GET_VRING_BASE, Deed::BeSilent);
    let mut guest = Guest::new(block(stream, PATIENCE).unwrap(), &shared_memory());
    guest.queues.truncate(1);
    guest.activate();
    let begun = Instant::now();

    write_register(&mut guest.transport, Register::Status, 0);

    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    peer.join().unwrap();
}
