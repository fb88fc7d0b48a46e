// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each packet does, and what is due after it.

use coracle_vsock::connection::{Connection, Due, Phase, Received, Wait};
use coracle_vsock::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use rstest::rstest;

use crate::{PORTS, from_guest};

const CAPACITY: u32 = 100;
const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

fn shutdown(flags: u32) -> Header {
    Header {
        flags,
        ..from_guest(Op::Shutdown)
    }
}

fn data(len: u32) -> Header {
    Header {
        len,
        ..from_guest(Op::Rw)
    }
}

fn send_due(connection: &mut Connection) -> Option<Header> {
    match connection.due() {
        Due::Control(op) => Some(connection.control(op)),
        _ => None,
    }
}

fn open() -> Connection {
    let mut connection = Connection::from_guest(3, &from_guest(Op::Request), CAPACITY);
    connection.accept();
    connection.control(Op::Response);
    connection
}

#[test]
fn guests_request_is_answered_once_the_host_is_there() {
    let mut connection = Connection::from_guest(3, &from_guest(Op::Request), CAPACITY);
    assert_eq!(connection.due(), Due::Nothing);

    connection.accept();

    let response = send_due(&mut connection).unwrap();
    assert_eq!(
        response,
        Header {
            src_cid: 2,
            dst_cid: 3,
            src_port: 1024,
            dst_port: 5000,
            op: Op::Response.number(),
            socket_type: 1,
            buf_alloc: CAPACITY,
            ..Header::default()
        }
    );
    assert_eq!(connection.phase(), Phase::Open);
}

#[test]
fn guests_request_is_refused_if_the_host_is_not_there() {
    let mut connection = Connection::from_guest(3, &from_guest(Op::Request), CAPACITY);

    connection.reset();

    assert_eq!(send_due(&mut connection).unwrap().op, Op::Rst.number());
    assert_eq!(connection.phase(), Phase::Over);
}

#[test]
fn hosts_request_opens_when_the_guest_responds() {
    let mut connection = Connection::from_host(3, PORTS, CAPACITY);
    assert_eq!(send_due(&mut connection).unwrap().op, Op::Request.number());
    assert_eq!(connection.waits_for(), Some(Wait::Answer));

    let received = connection.receive(&from_guest(Op::Response));

    assert_eq!(received, Received::Accepted);
    assert_eq!(connection.phase(), Phase::Open);
    assert_eq!(connection.waits_for(), None);
}

#[test]
fn request_that_the_guest_does_not_answer_is_reset() {
    let mut connection = Connection::from_host(3, PORTS, CAPACITY);
    connection.control(Op::Request);

    connection.expire();

    assert_eq!(connection.due(), Due::Control(Op::Rst));
    assert!(connection.host_finished());
}

#[test]
fn open_connection_does_not_expire() {
    let mut connection = open();

    connection.expire();

    assert_eq!(connection.phase(), Phase::Open);
}

#[rstest]
#[case::request_again(from_guest(Op::Request))]
#[case::response_without_request(from_guest(Op::Response))]
#[case::more_than_its_credit(data(CAPACITY + 1))]
#[case::far_more_than_its_credit(data(u32::MAX))]
#[case::operation_zero(Header { op: 0, ..from_guest(Op::Rw) })]
#[case::unknown_operation(Header { op: 8, ..from_guest(Op::Rw) })]
fn packet_against_the_protocol_resets_an_open_connection(#[case] packet: Header) {
    let mut connection = open();

    assert_eq!(connection.receive(&packet), Received::Broken);

    assert_eq!(connection.due(), Due::Control(Op::Rst));
}

#[rstest]
fn nothing_but_a_response_opens_a_connection(
    #[values(Op::Request, Op::Shutdown, Op::Rw, Op::CreditUpdate, Op::CreditRequest)] op: Op,
) {
    let mut connection = Connection::from_host(3, PORTS, CAPACITY);
    connection.control(Op::Request);

    assert_eq!(connection.receive(&from_guest(op)), Received::Broken);
}

#[test]
fn data_before_the_response_resets() {
    let mut connection = Connection::from_guest(3, &from_guest(Op::Request), CAPACITY);
    connection.accept();

    assert_eq!(connection.receive(&data(1)), Received::Broken);
}

#[test]
fn data_after_the_guests_end_resets() {
    let mut connection = open();
    assert_eq!(
        connection.receive(&shutdown(SHUTDOWN_SEND)),
        Received::Shutdown
    );

    assert_eq!(connection.receive(&data(1)), Received::Broken);
}

#[test]
fn reset_is_never_answered() {
    let mut connection = open();

    assert_eq!(connection.receive(&from_guest(Op::Rst)), Received::Reset);

    assert_eq!(connection.due(), Due::Nothing);
    assert_eq!(connection.phase(), Phase::Over);
}

#[test]
fn what_came_before_a_reset_still_belongs_to_the_host() {
    let mut connection = open();
    assert_eq!(connection.receive(&data(10)), Received::Data);

    assert_eq!(connection.receive(&from_guest(Op::Rst)), Received::Reset);

    assert!(!connection.host_finished());
    connection.forwarded(10);
    assert!(connection.host_finished());
}

#[test]
fn hosts_data_waits_for_credit_and_asks_once() {
    let mut connection = open();
    connection.host_readable();
    assert_eq!(connection.due(), Due::Data(50));
    assert_eq!(connection.data(50).len, 50);

    assert_eq!(
        send_due(&mut connection).unwrap().op,
        Op::CreditRequest.number()
    );
    assert_eq!(connection.due(), Due::Nothing);

    let update = Header {
        fwd_cnt: 20,
        ..from_guest(Op::CreditUpdate)
    };
    assert_eq!(connection.receive(&update), Received::Nothing);
    assert_eq!(connection.due(), Due::Data(20));
}

#[test]
fn credit_request_is_answered_with_what_was_forwarded() {
    let mut connection = open();
    assert_eq!(connection.receive(&data(10)), Received::Data);
    connection.forwarded(10);
    assert_eq!(connection.due(), Due::Nothing);

    assert_eq!(
        connection.receive(&from_guest(Op::CreditRequest)),
        Received::Nothing
    );

    let update = send_due(&mut connection).unwrap();
    assert_eq!(update.op, Op::CreditUpdate.number());
    assert_eq!((update.buf_alloc, update.fwd_cnt), (CAPACITY, 10));
    assert_eq!(connection.due(), Due::Nothing);
}

#[test]
fn hosts_end_follows_its_data_and_leaves_the_other_direction_open() {
    let mut connection = open();
    connection.host_readable();
    connection.data(5);

    connection.host_ended();

    let end = send_due(&mut connection).unwrap();
    assert_eq!((end.op, end.flags), (Op::Shutdown.number(), SHUTDOWN_SEND));
    assert_eq!(connection.receive(&data(10)), Received::Data);
    assert!(!connection.host_finished());
    assert_eq!(connection.waits_for(), None);
}

#[test]
fn guest_hears_that_nobody_reads_without_having_to_make_room() {
    let mut connection = open();
    connection.host_readable();
    connection.data(50);

    connection.host_closed();

    let end = send_due(&mut connection).unwrap();
    assert_eq!(
        (end.op, end.flags),
        (Op::Shutdown.number(), SHUTDOWN_RECEIVE)
    );
    assert_eq!(connection.due(), Due::Control(Op::CreditRequest));
}

#[test]
fn host_that_is_gone_and_left_no_data_is_told_by_one_packet() {
    let mut connection = open();
    connection.host_readable();
    connection.host_closed();
    assert_eq!(connection.due(), Due::Data(50));

    connection.host_ended();

    assert_eq!(send_due(&mut connection).unwrap().flags, SHUTDOWN_BOTH);
    assert_eq!(connection.due(), Due::Nothing);
}

#[test]
fn data_that_nobody_reads_is_thrown_away_and_its_credit_given_back() {
    let mut connection = open();
    connection.host_closed();
    send_due(&mut connection).unwrap();

    assert_eq!(connection.receive(&data(CAPACITY)), Received::Nothing);

    assert!(connection.drained());
    assert_eq!(connection.receive(&data(CAPACITY)), Received::Nothing);
}

#[test]
fn guests_end_keeps_the_hosts_data_flowing() {
    let mut connection = open();

    assert_eq!(
        connection.receive(&shutdown(SHUTDOWN_SEND)),
        Received::Shutdown
    );

    connection.host_readable();
    assert!(!connection.guest_sends());
    assert_eq!(connection.due(), Due::Data(50));
}

#[test]
fn guest_that_ended_both_is_reset_once_its_data_is_through() {
    let mut connection = open();
    assert_eq!(connection.receive(&data(10)), Received::Data);
    assert_eq!(
        connection.receive(&shutdown(SHUTDOWN_BOTH)),
        Received::Shutdown
    );
    assert_eq!(connection.due(), Due::Nothing);

    connection.forwarded(10);

    assert_eq!(connection.due(), Due::Control(Op::Rst));
}

#[test]
fn ends_add_up_over_packets() {
    let mut connection = open();

    assert_eq!(
        connection.receive(&shutdown(SHUTDOWN_SEND)),
        Received::Shutdown
    );
    assert_eq!(
        connection.receive(&shutdown(SHUTDOWN_RECEIVE)),
        Received::Shutdown
    );

    assert_eq!(connection.due(), Due::Control(Op::Rst));
}

#[test]
fn both_directions_at_their_end_close_the_host_and_wait_for_the_guest() {
    let mut connection = open();
    assert_eq!(
        connection.receive(&shutdown(SHUTDOWN_SEND)),
        Received::Shutdown
    );

    connection.host_ended();

    assert!(connection.host_finished());
    assert_eq!(send_due(&mut connection).unwrap().flags, SHUTDOWN_BOTH);
    assert_eq!(connection.waits_for(), Some(Wait::Reset));
    connection.expire();
    assert_eq!(connection.due(), Due::Control(Op::Rst));
}
