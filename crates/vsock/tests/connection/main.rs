// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state machine of a connection: packet by packet, and under any schedule.

mod protocol;
mod schedules;

use coracle_vsock::packet::{HOST_CID, Header, Op, Ports, TYPE_STREAM};

const PORTS: Ports = Ports {
    host: 1024,
    guest: 5000,
};
fn from_guest(op: Op) -> Header {
    Header {
        src_cid: 3,
        dst_cid: HOST_CID,
        src_port: PORTS.guest,
        dst_port: PORTS.host,
        op: op.number(),
        socket_type: TYPE_STREAM,
        buf_alloc: 50,
        ..Header::default()
    }
}
