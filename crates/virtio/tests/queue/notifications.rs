// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When the driver wants an interrupt and the device a kick.

use coracle_virtio::testing::Driver;
use coracle_virtio::{Chain, Queue, features};
use rstest::rstest;

use crate::driver;

/// Takes and returns `count` chains.
fn pass(driver: &mut Driver, queue: &mut Queue, count: u16) {
    let mut chain = Chain::new();
    for _ in 0..count {
        driver.add(&[b"x"], &[]).unwrap();
        assert!(queue.pop(&mut chain).unwrap());
        queue.add_used(chain.head(), 0).unwrap();
        driver.used().unwrap().unwrap();
    }
}

#[rstest]
#[case::wanted(0, true)]
#[case::not_wanted(1, false)]
fn flags_decide_about_interrupts_without_event_idx(#[case] flags: u16, #[case] wanted: bool) {
    let mut driver = driver();
    let mut queue = driver.queue(0).unwrap();
    driver.set_avail_flags(flags).unwrap();
    assert!(!queue.needs_interrupt());

    pass(&mut driver, &mut queue, 1);

    assert_eq!(queue.needs_interrupt(), wanted);
    assert!(!queue.needs_interrupt());
}

#[rstest]
#[case::next_one(0, 1, true)]
#[case::one_inside_the_batch(2, 5, true)]
#[case::last_of_the_batch(4, 5, true)]
#[case::one_after_the_batch(5, 5, false)]
#[case::one_long_past(u16::MAX, 5, false)]
#[case::more_than_indices_can_tell(5, 0xffff, true)]
fn the_event_index_decides_about_interrupts(
    #[case] event: u16,
    #[case] returned: u16,
    #[case] wanted: bool,
) {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    driver.set_used_event(event).unwrap();

    pass(&mut driver, &mut queue, returned);

    assert_eq!(queue.needs_interrupt(), wanted);
    assert!(!queue.needs_interrupt());
}

#[test]
fn a_lapped_event_index_gives_an_interrupt() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    driver.set_used_event(9).unwrap();

    pass(&mut driver, &mut queue, 0x8000);
    pass(&mut driver, &mut queue, 0x8000);

    assert!(queue.needs_interrupt());
}

#[test]
fn kicks_are_asked_for_by_flag_without_event_idx() {
    let driver = driver();
    let mut queue = driver.queue(0).unwrap();

    queue.disable_kicks().unwrap();
    assert_eq!(driver.used_flags(), Ok(1));

    assert_eq!(queue.enable_kicks(), Ok(false));
    assert_eq!(driver.used_flags(), Ok(0));
}

#[test]
fn kicks_are_asked_for_by_index_with_event_idx() {
    let mut driver = driver();
    let mut queue = driver.queue(features::RING).unwrap();
    pass(&mut driver, &mut queue, 3);

    queue.disable_kicks().unwrap();
    assert_eq!(driver.avail_event(), Ok(0));
    assert_eq!(queue.enable_kicks(), Ok(false));

    assert_eq!(driver.avail_event(), Ok(3));
    assert_eq!(driver.used_flags(), Ok(0));
}

#[rstest]
#[case::by_flag(0)]
#[case::by_index(features::RING)]
fn a_chain_added_before_kicks_are_on_is_seen(#[case] features: u64) {
    let mut driver = driver();
    let mut queue = driver.queue(features).unwrap();
    let mut chain = Chain::new();
    driver.add(&[b"x"], &[]).unwrap();
    driver.add(&[b"y"], &[]).unwrap();

    assert_eq!(queue.enable_kicks(), Ok(true));
    assert_eq!(queue.pop(&mut chain), Ok(true));
    assert_eq!(queue.enable_kicks(), Ok(true));
    assert_eq!(queue.pop(&mut chain), Ok(true));
    assert_eq!(queue.enable_kicks(), Ok(false));
}
