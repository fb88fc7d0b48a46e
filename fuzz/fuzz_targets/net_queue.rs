// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A network device's queues hold whatever the guest wrote: a packet to be sent goes out whole or not at all, one that
//! is received is in as many chains as it takes, and a command has an answer.

#![no_main]

mod guest;

use std::os::unix::net::UnixDatagram;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use coracle_devices::net::{
    HEADER_LEN, MAX_PACKET, Offloads, Received, Receiver, Sender, control_answer, control_command,
};
use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::testing::{Driver, memory};
use coracle_virtio::{Chain, Descriptor};
use libfuzzer_sys::fuzz_target;

const QUEUE_SIZE: u16 = 16;
const MEMORY: u64 = 1 << 20;

static RECEIVE_MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| memory(MEMORY));

/// What stands for the tap: it keeps packets apart as well.
static TAP: LazyLock<(UnixDatagram, UnixDatagram)> = LazyLock::new(|| {
    let pair = UnixDatagram::pair().expect("two descriptors");
    pair.0.set_nonblocking(true).expect("a socket");
    pair.1.set_nonblocking(true).expect("a socket");
    pair
});

#[derive(Arbitrary, Debug)]
enum Step {
    /// Buffers as they should be.
    Give(Vec<u16>),
    /// A descriptor of any kind.
    Put {
        index: u8,
        address: u32,
        len: u32,
        flags: u8,
        next: u8,
    },
    Publish(u8),
    Receive {
        flags: u8,
        gso_type: u8,
        len: u32,
    },
}

#[derive(Arbitrary, Debug)]
struct Case {
    request: guest::Request,
    agreed: u64,
    mergeable: bool,
    steps: Vec<Step>,
}

fn transmit(chain: &Chain, agreed: u64) {
    let mut sender = Sender::new(Offloads::to_device(agreed));
    if let Ok(packet) = sender.packet(chain) {
        assert_eq!(packet.len(), chain.readable_len() as usize);
        assert!(packet.len() <= MAX_PACKET);
        let written = packet
            .write_to(&TAP.0)
            .expect("buffers that the kernel can read");
        assert_eq!(written, packet.len());
        let read = TAP.1.recv(&mut [0; MAX_PACKET]).expect("what was written");
        assert_eq!(read, written);
    }
}

fn command(chain: &Chain, agreed: u64) {
    let _ = control_command(chain, agreed);
    match control_answer(chain, true) {
        Ok(written) => assert_eq!(written, 1),
        Err(_) => assert_eq!(chain.writable_len(), 0),
    }
}

/// The bytes of the chains that the device has returned.
fn used(driver: &mut Driver) -> usize {
    std::iter::from_fn(|| driver.used().expect("the ring is in memory"))
        .map(|used| used.len as usize)
        .sum()
}

fn receive(case: &Case) -> Option<()> {
    RECEIVE_MEMORY.write(GuestAddress(0), &[0; 4096]).ok()?;
    let mut driver = Driver::new(
        &RECEIVE_MEMORY,
        GuestAddress(0),
        MEMORY as usize,
        QUEUE_SIZE,
    )
    .ok()?;
    let mut queue = driver.queue(case.agreed).ok()?;
    let mut receiver = Receiver::new(Offloads::to_driver(case.agreed), case.mergeable);
    let mut waiting = 0;
    for step in &case.steps {
        match step {
            Step::Give(lens) => {
                let lens: Vec<u32> = lens.iter().map(|len| u32::from(*len)).collect();
                // There may be no descriptors left for it.
                let _ = driver.add(&[], &lens);
            }
            Step::Put {
                index,
                address,
                len,
                flags,
                next,
            } => {
                let descriptor = Descriptor {
                    address: u64::from(*address) % (2 * MEMORY),
                    len: *len,
                    flags: u16::from(*flags) & 7,
                    next: (*next).into(),
                };
                driver
                    .put(u16::from(*index) % QUEUE_SIZE, descriptor)
                    .ok()?;
            }
            Step::Publish(head) => driver.publish((*head).into()).ok()?,
            Step::Receive {
                flags,
                gso_type,
                len,
            } => {
                // A driver's fault takes the device out of service.
                receiver.refill(&mut queue).ok()?;
                let late = used(&mut driver);
                assert!(late == 0 || late == waiting);
                let Some(room) = receiver.room() else {
                    continue;
                };
                waiting = 0;
                let len = *len as usize % (MAX_PACKET + 100);
                let mut packet = vec![0; len.max(HEADER_LEN)];
                packet[..2].copy_from_slice(&[*flags, *gso_type]);
                TAP.0.send(&packet).expect("a packet");
                let read = room.read_from(&TAP.1).expect("the packet");
                assert!(read <= packet.len());
                match receiver.received(&mut queue, read).ok()? {
                    Received::Delivered => assert_eq!(used(&mut driver), read),
                    Received::Waiting => {
                        waiting = read;
                        assert_eq!(used(&mut driver), 0);
                    }
                    Received::Dropped => assert_eq!(used(&mut driver), 0),
                }
            }
        }
    }
    Some(())
}

fuzz_target!(|case: Case| {
    if let Ok(chain) = case.request.chain() {
        transmit(&chain, case.agreed);
        command(&chain, case.agreed);
    }
    let _ = receive(&case);
});
