// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resets, a tap that goes, and descriptors that are no tap.

use coracle_devices::net::{Net, NetError, TapError};

use crate::frames::{GUEST, HOST, number, numbered};
use crate::guest::{self, Guest, MRG_RXBUF, RECEIVE, TRANSMIT};
use crate::host::{self, IFF_NO_PI, IFF_TAP, PLAIN, open_tap};

fn assert_link_is_lost(guest: &mut Guest) {
    assert!(!guest.is_link_up());
    assert!(guest.is_config_changed());
    assert!(guest.interrupted());
    assert!(!guest.needs_reset());
}

fn deleted_tap_takes_the_link_down() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, MRG_RXBUF);
    guest.give(4, 1526);
    assert!(guest.is_link_up());
    assert!(!guest.interrupted());

    host.delete_tap();
    guest.settle();

    assert_link_is_lost(&mut guest);
}

fn deleted_tap_is_noticed_by_who_only_sends() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, 0);
    host.delete_tap();
    guest.settle();
    assert!(guest.is_link_up());

    guest.send(&[&guest::PLAIN, &numbered(GUEST, 1)]);

    assert_link_is_lost(&mut guest);
    guest.send(&[&guest::PLAIN, &numbered(GUEST, 2)]);
    let returned = guest.returned(TRANSMIT);
    assert_eq!(returned, 2, "packets without a link are lost, not kept");
}

fn link_stays_down_after_a_reset() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, MRG_RXBUF);
    host.delete_tap();

    guest.activate();
    guest.give(4, 1526);

    assert!(!guest.is_link_up());
    assert!(!guest.needs_reset());
}

fn interface_that_is_down_takes_the_link_down_until_it_is_up() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, MRG_RXBUF);
    guest.give(4, 1526);
    host.set_up(false);
    guest.send(&[&guest::PLAIN, &numbered(GUEST, 1)]);
    assert_link_is_lost(&mut guest);

    host.set_up(true);
    guest.settle();

    assert!(guest.is_link_up());
    assert!(guest.is_config_changed());
    assert!(guest.interrupted());
    guest.send(&[&guest::PLAIN, &numbered(GUEST, 2)]);
    assert_eq!(number(&host.receive().1), 2);
    host.send(&PLAIN, &numbered(HOST, 3));
    assert_eq!(number(&guest.receive().frame), 3);
}

fn interface_that_is_down_is_watched_after_a_reset() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, MRG_RXBUF);
    host.set_up(false);
    guest.send(&[&guest::PLAIN, &numbered(GUEST, 1)]);

    guest.activate();
    let before = guest.is_link_up();
    host.set_up(true);
    guest.settle();

    assert_eq!((before, guest.is_link_up()), (false, true));
}

fn device_works_after_a_reset_under_traffic() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, MRG_RXBUF);
    for round in 0..20 {
        guest.give(3, 1526);
        for _ in 0..10 {
            host.send(&PLAIN, &numbered(HOST, round));
        }
        guest.queues[TRANSMIT]
            .add(&[&guest::PLAIN, &numbered(GUEST, round)], &[])
            .unwrap();
        guest.settle();

        guest.activate();
    }
    // What the resets left in the tap is still to come.
    guest.give(250, 1526);
    host.send(&PLAIN, &numbered(HOST, 99));
    while number(&guest.receive().frame) != 99 {}
    guest.send(&[&guest::PLAIN, &numbered(GUEST, 99)]);

    assert_eq!(number(&host.receive().1), 99);
    assert!(!guest.needs_reset());
}

fn device_touches_nothing_after_a_reset() {
    let (host, tap) = host::tap();
    let mut guest = Guest::new(tap, MRG_RXBUF);
    guest.give(4, 1526);

    guest.transport.write(0x70, &0u32.to_le_bytes());
    host.send(&PLAIN, &numbered(HOST, 1));
    guest.settle();

    assert_eq!(guest.queues[RECEIVE].used().unwrap(), None);
}

fn tap_without_headers_is_refused() {
    let (_host, _tap) = host::tap();
    let (plain, _) = open_tap(IFF_TAP | IFF_NO_PI).unwrap();

    let error = Net::new(plain, GUEST, None).unwrap_err();

    let is_told = matches!(
        error,
        NetError::Tap {
            source: TapError::Flags(_),
            ..
        }
    );
    assert!(is_told);
}

cases![
    deleted_tap_is_noticed_by_who_only_sends,
    deleted_tap_takes_the_link_down,
    device_touches_nothing_after_a_reset,
    device_works_after_a_reset_under_traffic,
    interface_that_is_down_is_watched_after_a_reset,
    interface_that_is_down_takes_the_link_down_until_it_is_up,
    link_stays_down_after_a_reset,
    tap_without_headers_is_refused,
];
