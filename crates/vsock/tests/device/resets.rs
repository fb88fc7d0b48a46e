// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resets of the transport and of the device.

use coracle_virtio::{Register, testing};
use coracle_vsock::packet::Op;

use crate::guest::{EVENT, Guest, PORTS, data, read_now};

#[test]
fn transport_reset_drops_connections_and_tells_the_guest() {
    let (mut guest, mut host) = Guest::connected();
    guest.drivers[EVENT].add(&[], &[4]).unwrap();
    guest.kick(EVENT);
    assert_eq!(guest.drivers[EVENT].used().unwrap(), None);

    guest.handle.transport_reset();
    guest.run();

    assert_eq!(read_now(&mut host), (Vec::new(), true));
    let event = guest.drivers[EVENT].used().unwrap().unwrap();
    assert_eq!(event.data, [0; 4]);
    guest.connect(PORTS);
}

#[test]
fn transport_reset_waits_for_the_guests_buffer() {
    let mut guest = Guest::new();
    guest.handle.transport_reset();
    guest.run();

    guest.drivers[EVENT].add(&[], &[4]).unwrap();
    guest.kick(EVENT);

    let event = guest.drivers[EVENT].used().unwrap().unwrap();
    assert_eq!(event.data, [0; 4]);
}

#[test]
fn device_works_again_after_a_reset() {
    let (mut guest, mut old) = Guest::connected();

    guest.activate();

    assert_eq!(read_now(&mut old), (Vec::new(), true));
    let mut host = guest.connect(PORTS);
    guest.send(&data(PORTS, 3), b"new");
    assert_eq!(read_now(&mut host), (b"new".to_vec(), false));
    let _another = guest.host_connects("CONNECT 5\n");
    guest.run();
    guest.expect(Op::Request);
}

#[test]
fn host_that_connects_while_there_is_no_driver_is_served_later() {
    let mut guest = Guest::new();
    testing::write_register(&mut guest.transport, Register::Status, 0);
    let _host = guest.host_connects("CONNECT 5\n");

    guest.activate();
    guest.run();

    assert_eq!(guest.expect(Op::Request).dst_port, 5);
}
