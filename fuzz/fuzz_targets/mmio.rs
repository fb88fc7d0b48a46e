// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sequences of accesses to the MMIO transport, by a driver that respects nothing: the worker
//! runs only while the device is live, and a reset always leads back to a working device.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use coracle_virtio::testing::{self, Driver, LocalWorkers, activate, write_register};
use coracle_virtio::vmm_sys_util::eventfd::EventFd;
use coracle_virtio::{
    ActivateError, Active, Chain, DeviceType, Interrupt, MmioTransport, Queue, Register,
    VirtioDevice, Worker, features,
};
use libfuzzer_sys::fuzz_target;

const MEMORY: u64 = 0x10000;
const OFFERED: u64 = features::RING | features::VERSION_1 | 1;

#[derive(Arbitrary, Debug)]
enum Step {
    Write {
        register: usize,
        value: Value,
    },
    RawWrite {
        offset: u16,
        data: Vec<u8>,
    },
    RawRead {
        offset: u64,
        len: u8,
    },
    Negotiate,
    SetUpQueue(bool),
    AddChain {
        readable: u8,
        writable: u8,
        indirect: bool,
    },
    Scribble {
        at: u16,
        data: Vec<u8>,
    },
    Kick(bool),
    RunWorkers,
}

/// Values that mean something to some register, and any other.
#[derive(Arbitrary, Debug)]
enum Value {
    Status(u8),
    Small(u8),
    Features { high: bool },
    Any(u32),
}

impl Value {
    fn get(&self) -> u32 {
        match *self {
            Self::Status(step) => [0, 1, 3, 11, 15, 128][usize::from(step % 6)],
            Self::Small(value) => value.into(),
            Self::Features { high: true } => (OFFERED >> 32) as u32,
            Self::Features { high: false } => (OFFERED & 0xffff_ffff) as u32,
            Self::Any(value) => value,
        }
    }
}

/// Consumes what it gets.
struct Sink;

impl VirtioDevice for Sink {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 4]
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= 0xf00 && data.len() <= 4);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= 0xf00 && data.len() <= 4);
    }

    fn activate(&mut self, active: Active) -> Result<Option<Worker>, ActivateError> {
        assert_eq!(active.features & !OFFERED, 0);
        Ok(Some(Box::new(SinkWorker {
            queues: active
                .queues
                .into_iter()
                .map(|queue| (queue.kick, queue.queue))
                .collect(),
            interrupt: active.interrupt,
            chain: Chain::new(),
        })))
    }

    fn reset(&mut self) {}
}

struct SinkWorker {
    queues: Vec<(EventFd, Queue)>,
    interrupt: Interrupt,
    chain: Chain,
}

impl MutEventSubscriber for SinkWorker {
    fn init(&mut self, ops: &mut EventOps) {
        for (kick, _) in &self.queues {
            ops.add(Events::new(kick, EventSet::IN))
                .expect("an eventfd");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        for (kick, queue) in &mut self.queues {
            let _ = kick.read();
            loop {
                match queue.pop(&mut self.chain) {
                    Ok(true) => queue
                        .add_used(self.chain.head(), self.chain.writable_len())
                        .expect("the chain was just taken"),
                    Ok(false) => break,
                    Err(_) => {
                        self.interrupt.needs_reset();
                        break;
                    }
                }
            }
            if queue.needs_interrupt() {
                self.interrupt.used_buffers();
            }
        }
    }
}

fn driver(memory: &GuestMemory) -> Driver {
    Driver::new(memory, GuestAddress(0x1000), 0x4000, 16).expect("a part of memory")
}

fuzz_target!(|steps: Vec<Step>| {
    let memory = testing::memory(MEMORY);
    let workers = Arc::new(LocalWorkers::new());
    let mut transport = MmioTransport::new(
        Box::new(Sink),
        memory.clone(),
        testing::interrupt(),
        workers.clone(),
    )
    .expect("a device with good queues");
    let mut ring = driver(&memory);

    for step in steps {
        match step {
            Step::Write { register, value } => {
                let register = Register::ALL[register % Register::ALL.len()];
                write_register(&mut transport, register, value.get());
            }
            Step::RawWrite { offset, data } => transport.write(offset.into(), &data),
            Step::RawRead { offset, len } => transport.read(offset, &mut vec![0xff; len.into()]),
            Step::Negotiate => {
                write_register(&mut transport, Register::Status, 0);
                activate(&mut transport, OFFERED, &[]);
            }
            Step::SetUpQueue(second) => {
                let addresses = ring.addresses();
                testing::set_up_queue(&mut transport, second.into(), addresses);
            }
            Step::AddChain {
                readable,
                writable,
                indirect,
            } => {
                let readable = vec![b"data".as_slice(); (readable % 8).into()];
                let writable = vec![16; (writable % 8).into()];
                let _ = if indirect {
                    ring.add_indirect(&readable, &writable)
                } else {
                    ring.add(&readable, &writable)
                };
            }
            Step::Scribble { at, data } => {
                let _ = memory.write(GuestAddress(at.into()), &data);
            }
            Step::Kick(second) => {
                write_register(&mut transport, Register::QueueNotify, second.into());
            }
            Step::RunWorkers => {
                workers.run();
            }
        }
        assert!(workers.running() <= usize::from(transport.status().is_live()));
    }

    // Zeroes are a fresh ring.
    memory
        .slice(GuestAddress(0), MEMORY as usize)
        .expect("all of memory")
        .fill(0);
    let mut ring = driver(&memory);
    assert_eq!(activate(&mut transport, OFFERED, &[ring.addresses()]), 15);
    ring.add(&[b"data"], &[8]).expect("a fresh ring");
    write_register(&mut transport, Register::QueueNotify, 0);
    workers.run();
    assert!(ring.used().expect("a ring in memory").is_some());
});
