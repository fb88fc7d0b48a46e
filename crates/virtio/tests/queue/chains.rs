// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Chains out of the available ring and into the used ring.

use coracle_virtio::{Chain, ChainError, DESC_NEXT, Descriptor, QueueError, features};
use rstest::rstest;

use crate::{SIZE, driver};

#[test]
fn chains_come_out_in_order_and_go_back_in_any() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let first = driver.add(&[b"first"], &[]).unwrap();
    let second = driver.add_indirect(&[b"sec", b"ond"], &[4]).unwrap();
    let (mut one, mut two) = (Chain::new(), Chain::new());

    assert!(queue.pop(&mut one).unwrap());
    assert!(queue.pop(&mut two).unwrap());
    assert!(!queue.pop(&mut Chain::new()).unwrap());
    assert_eq!((one.head(), two.head()), (first, second));
    assert_eq!(one.readable().read_obj(), Ok(*b"first"));
    assert_eq!(two.readable().read_obj(), Ok(*b"second"));
    assert_eq!(queue.in_flight(), 2);

    two.writable().write_all(b"done").unwrap();
    queue.add_used(second, 4).unwrap();
    queue.add_used(first, 0).unwrap();

    let used = driver.used().unwrap().unwrap();
    assert_eq!(
        (used.head, used.data.as_slice()),
        (second.into(), b"done".as_slice())
    );
    assert_eq!(driver.used().unwrap().unwrap().head, u32::from(first));
    assert_eq!(driver.used().unwrap(), None);
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn indices_wrap() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let mut chain = Chain::new();

    for round in 0..70_000u32 {
        driver.add(&[], &[4]).unwrap();
        assert!(queue.pop(&mut chain).unwrap());
        chain.writable().write_obj(&round).unwrap();
        queue.add_used(chain.head(), 4).unwrap();
        assert_eq!(driver.used().unwrap().unwrap().data, round.to_le_bytes());
    }

    assert!(!queue.pop(&mut chain).unwrap());
}

#[rstest]
#[case::just_too_far(SIZE + 1)]
#[case::backwards(u16::MAX)]
#[case::half_way_round(0x8000)]
fn an_index_too_far_ahead_is_refused_again_and_again(#[case] index: u16) {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    driver.set_avail_index(index).unwrap();

    let expected = QueueError::AvailableIndex {
        index,
        ours: 0,
        size: SIZE,
    };
    assert_eq!(queue.pop(&mut Chain::new()), Err(expected.clone()));
    assert_eq!(queue.pop(&mut Chain::new()), Err(expected.clone()));
    assert_eq!(queue.enable_kicks(), Err(expected));
}

#[test]
fn a_full_ring_is_no_fault() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    for _ in 0..SIZE {
        driver.add(&[b"x"], &[]).unwrap();
    }
    let mut chain = Chain::new();

    let taken = std::iter::from_fn(|| queue.pop(&mut chain).unwrap().then_some(())).count();

    assert_eq!(taken, usize::from(SIZE));
}

#[test]
fn a_head_in_flight_is_not_taken_twice() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let head = driver.add(&[b"x"], &[]).unwrap();
    driver.publish(head).unwrap();
    let mut chain = Chain::new();
    queue.pop(&mut chain).unwrap();

    assert_eq!(queue.pop(&mut chain), Err(QueueError::InFlight { head }));

    queue.add_used(head, 0).unwrap();
    assert_eq!(queue.pop(&mut chain), Ok(true));
}

#[test]
fn a_chain_is_returned_once() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let head = driver.add(&[b"x"], &[]).unwrap();
    assert_eq!(
        queue.add_used(head, 0),
        Err(QueueError::NotInFlight { head })
    );
    queue.pop(&mut Chain::new()).unwrap();

    assert_eq!(queue.add_used(head, 0), Ok(()));

    assert_eq!(
        queue.add_used(head, 0),
        Err(QueueError::NotInFlight { head })
    );
    assert_eq!(
        queue.add_used(u16::MAX, 0),
        Err(QueueError::NotInFlight { head: u16::MAX })
    );
    driver.used().unwrap().unwrap();
    assert_eq!(driver.used().unwrap(), None);
}

#[test]
fn chains_returned_together_are_seen_in_their_order() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let heads = [0; 3].map(|_| driver.add(&[], &[8]).unwrap());
    let mut chain = Chain::new();
    while queue.pop(&mut chain).unwrap() {}

    queue
        .add_used_together([(heads[2], 8), (heads[0], 5), (heads[1], 0)])
        .unwrap();

    let used = std::iter::from_fn(|| driver.used().unwrap());
    let used: Vec<_> = used.map(|used| (used.head, used.len)).collect();
    let expected = [(heads[2], 8), (heads[0], 5), (heads[1], 0)];
    assert_eq!(used, expected.map(|(head, len)| (u32::from(head), len)));
    assert_eq!(queue.in_flight(), 0);
    assert!(queue.needs_interrupt());
}

#[test]
fn of_chains_returned_together_all_are_seen_or_none() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let head = driver.add(&[], &[8]).unwrap();
    queue.pop(&mut Chain::new()).unwrap();

    let result = queue.add_used_together([(head, 8), (head, 8)]);

    assert_eq!(result, Err(QueueError::NotInFlight { head }));
    assert_eq!(driver.used().unwrap(), None);
    assert!(!queue.needs_interrupt());
}

#[test]
fn a_head_outside_the_table_is_refused() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    driver.publish(SIZE).unwrap();

    assert_eq!(
        queue.pop(&mut Chain::new()),
        Err(QueueError::Chain {
            head: SIZE,
            source: ChainError::Head {
                head: SIZE,
                table_len: SIZE
            },
        })
    );
}

#[test]
fn a_broken_chain_is_named_and_not_taken() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    let looped = Descriptor {
        address: 0,
        len: 1,
        flags: DESC_NEXT,
        next: 2,
    };
    driver.put(2, looped).unwrap();
    driver.publish(2).unwrap();

    let error = queue.pop(&mut Chain::new()).unwrap_err();

    assert_eq!(error.to_string(), "the chain at descriptor 2 is broken");
    assert_eq!(queue.in_flight(), 0);
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("loop")
    );
}

#[test]
fn indirect_tables_need_their_feature() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING_EVENT_IDX).unwrap();
    driver.add_indirect(&[b"x"], &[]).unwrap();

    assert!(matches!(
        queue.pop(&mut Chain::new()),
        Err(QueueError::Chain {
            source: ChainError::IndirectNotNegotiated { .. },
            ..
        })
    ));
}
