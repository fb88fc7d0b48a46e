// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that sends anything.

use std::io::Write;

use coracle_vsock::Limits;
use coracle_vsock::packet::{Header, Op};
use proptest::prelude::*;

use crate::guest::{Guest, packet, ports};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever chains of bytes a guest sends, the device answers or resets, and serves whoever
    /// comes after.
    #[test]
    fn no_packets_break_the_device(
        packets in proptest::collection::vec(
            (
                0_u16..9,
                50_u32..54,
                0_u32..3,
                prop_oneof![0_u32..200, any::<u32>()],
                0_u32..4,
                prop_oneof![0_u32..100, any::<u32>()],
                any::<u32>(),
                0_usize..200,
            ),
            0..60,
        ),
        host_data in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let limits = Limits { connections: 3, buffer: 150, ..Limits::default() };
        let mut guest = Guest::with_limits(limits);
        let mut hosts = Vec::new();
        guest.give_buffers(50, &[100]);

        for (op, host, port, len, flags, buf_alloc, fwd_cnt, held) in packets {
            let header = Header {
                op, len, flags, buf_alloc, fwd_cnt, ..packet(ports(host, port), Op::Rw)
            };
            guest.send(&header, &vec![0; held]);
            if let Some(stream) = guest.accept() {
                let _ = (&stream).write(&host_data);
                hosts.push(stream);
            }
            guest.run();
            while guest.try_receive().is_some() {}
        }

        prop_assert!(!guest.needs_reset());
        drop(hosts);
        for port in 0..3 {
            for host in 50..54 {
                guest.send(&packet(ports(host, port), Op::Rst), &[]);
            }
        }
        guest.give_buffers(100, &[100]);
        while guest.try_receive().is_some() {}
        guest.assert_served();
    }
}
