// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Credit: how much each side may send before the other has made room (virtio 1.3, section
//! 5.10.6.3).
//!
//! Counts are modulo 2^32 on the wire and here. The two directions are not alike: what the guest
//! sends is held to *our* buffer, since our memory is at stake, and a guest that sends more has its
//! connection reset; what the guest says of *its* buffer only ever slows the guest's own data.

/// The direction guest to host: our buffer, which the guest may fill.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Size of our buffer, in bytes.
    capacity: u32,
    /// Bytes that came from the guest.
    received: u32,
    /// Bytes that left our buffer.
    forwarded: u32,
    /// `forwarded` as the guest last heard of it.
    announced: u32,
}

/// The guest sent more than it had credit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest sent {sent} bytes with credit for {free}")]
pub struct Overrun {
    /// Bytes that it sent.
    pub sent: u32,
    /// Bytes that our buffer had room for.
    pub free: u32,
}

impl Inbound {
    /// An empty buffer of `capacity` bytes.
    pub const fn new(capacity: u32) -> Self {
        Self {
            capacity,
            received: 0,
            forwarded: 0,
            announced: 0,
        }
    }

    /// Size of the buffer, in bytes (`buf_alloc`).
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Bytes that came and have not left yet.
    pub const fn buffered(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Bytes came from the guest.
    ///
    /// # Errors
    ///
    /// [`Overrun`] if the buffer has not that much room; nothing is counted then.
    pub const fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        let free = self.capacity.saturating_sub(self.buffered());
        if len > free {
            return Err(Overrun { sent: len, free });
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// Bytes left the buffer: they were passed on, or thrown away.
    pub fn forward(&mut self, len: u32) {
        let len = len.min(self.buffered());
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// What to tell the guest in the packet that is being written (`fwd_cnt`).
    pub const fn announce(&mut self) -> u32 {
        self.announced = self.forwarded;
        self.forwarded
    }

    /// Whether the guest should hear of its credit even if no other packet is due.
    ///
    /// True once the guest has used half of the buffer, as far as it knows, and there is enough
    /// news to be worth a packet. A guest that believes it has no credit at all hears of each byte,
    /// or it would wait for ever.
    pub const fn update_due(&self) -> bool {
        let news = self.forwarded.wrapping_sub(self.announced);
        let used = self.received.wrapping_sub(self.announced);
        let exhausted = used >= self.capacity;
        let low = used >= self.capacity.div_ceil(2);
        news > 0 && (exhausted || (low && news >= self.capacity / 8))
    }
}

/// The direction host to guest: the guest's buffer, of which it tells us.
#[derive(Debug, Clone, Default)]
pub struct Outbound {
    /// Bytes that went to the guest.
    sent: u32,
    /// Size of the guest's buffer, as it says.
    buf_alloc: u32,
    /// Bytes that left the guest's buffer, as it says.
    fwd_cnt: u32,
}

impl Outbound {
    /// A packet came, and with it the state of the guest's buffer.
    ///
    /// A `fwd_cnt` that goes back (two of the guest's processors may send in the other order than
    /// they counted) or beyond what was sent (a lie) is passed over.
    pub const fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.buf_alloc = buf_alloc;
        if fwd_cnt.wrapping_sub(self.fwd_cnt) <= self.in_flight() {
            self.fwd_cnt = fwd_cnt;
        }
    }

    /// Bytes that may be sent now.
    pub const fn window(&self) -> u32 {
        self.buf_alloc.saturating_sub(self.in_flight())
    }

    /// Bytes went to the guest. Never more than [`window`](Self::window).
    pub const fn send(&mut self, len: u32) {
        debug_assert!(len <= self.window());
        self.sent = self.sent.wrapping_add(len);
    }

    /// Bytes that the guest has not taken from its buffer yet, as far as is known.
    const fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.fwd_cnt)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[test]
    fn guest_may_fill_the_buffer_to_its_last_byte() {
        let mut inbound = Inbound::new(10);

        assert_eq!(inbound.receive(4), Ok(()));
        assert_eq!(inbound.receive(6), Ok(()));
        assert_eq!(inbound.receive(1), Err(Overrun { sent: 1, free: 0 }));
    }

    #[test]
    fn overrun_is_not_counted() {
        let mut inbound = Inbound::new(10);

        inbound.receive(u32::MAX).unwrap_err();

        assert_eq!(inbound.buffered(), 0);
        assert_eq!(inbound.receive(10), Ok(()));
    }

    #[rstest]
    #[case::nothing_new(10, 10, 0, false)]
    #[case::guest_believes_it_has_none(100, 100, 1, true)]
    #[case::half_used_and_all_forwarded(100, 50, 50, true)]
    #[case::half_used_and_little_news(100, 50, 1, false)]
    #[case::less_than_half_used(100, 49, 49, false)]
    #[case::buffer_of_one_byte(1, 1, 1, true)]
    fn update_is_due(
        #[case] capacity: u32,
        #[case] received: u32,
        #[case] forwarded: u32,
        #[case] due: bool,
    ) {
        let mut inbound = Inbound::new(capacity);
        inbound.receive(received).unwrap();

        inbound.forward(forwarded);

        assert_eq!(inbound.update_due(), due);
    }

    #[test]
    fn announcing_settles_the_update() {
        let mut inbound = Inbound::new(8);
        inbound.receive(8).unwrap();
        inbound.forward(8);

        assert_eq!(inbound.announce(), 8);

        assert!(!inbound.update_due());
    }

    #[test]
    fn window_is_what_the_guest_has_room_for() {
        let mut outbound = Outbound::default();
        outbound.update(100, 0);

        outbound.send(70);
        assert_eq!(outbound.window(), 30);

        outbound.update(100, 50);
        assert_eq!(outbound.window(), 80);
    }

    #[rstest]
    #[case::ahead_of_what_was_sent(71)]
    #[case::going_back(9)]
    #[case::far_ahead(u32::MAX)]
    fn false_count_is_passed_over(#[case] fwd_cnt: u32) {
        let mut outbound = Outbound::default();
        outbound.update(100, 0);
        outbound.send(70);
        outbound.update(100, 10);

        outbound.update(100, fwd_cnt);

        assert_eq!(outbound.window(), 40);
    }

    #[test]
    fn shrunken_buffer_closes_the_window() {
        let mut outbound = Outbound::default();
        outbound.update(100, 0);
        outbound.send(70);

        outbound.update(10, 0);

        assert_eq!(outbound.window(), 0);
    }

    proptest! {
        #[test]
        fn counts_survive_wrapping(rounds in proptest::collection::vec(1_u32..=0x4000_0000, 1..40)) {
            let mut inbound = Inbound::new(0x4000_0000);
            let mut outbound = Outbound::default();
            outbound.update(0x4000_0000, 0);
            for len in rounds {
                prop_assert_eq!(inbound.receive(len), Ok(()));
                outbound.send(len);
                inbound.forward(len);
                outbound.update(0x4000_0000, inbound.announce());
                prop_assert_eq!(inbound.buffered(), 0);
                prop_assert_eq!(outbound.window(), 0x4000_0000);
            }
        }

        #[test]
        fn guest_that_used_all_its_credit_always_hears_of_more(
            capacity in 1_u32..1000,
            steps in proptest::collection::vec((0_u32..1000, 0_u32..1000), 1..50),
        ) {
            let mut inbound = Inbound::new(capacity);
            let mut known = 0_u32; // what the guest believes was forwarded
            let mut sent = 0_u32;
            for (send, forward) in steps {
                let send = send.min(capacity - (sent - known));
                inbound.receive(send).unwrap();
                sent += send;
                inbound.forward(forward);
                if inbound.update_due() {
                    known = inbound.announce();
                }
                let stuck = sent - known == capacity && inbound.buffered() < capacity;
                prop_assert!(!stuck);
            }
        }
    }
}
