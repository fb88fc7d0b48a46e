// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A whole device in a page: it answers each message with the message. Run with a driver, as a
//! guest would have one, and without a virtual machine.

use std::error::Error;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use coracle_memory::{GuestAddress, GuestMemory, layout};
use coracle_virtio::testing::{self, Driver, LocalWorkers, activate};
use coracle_virtio::{
    ActivateError, Active, ActiveQueue, Chain, DeviceType, Interrupt, MmioTransport, QueueError,
    VirtioDevice, Worker, features,
};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

struct Echo;

impl VirtioDevice for Echo {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        features::RING
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, mut active: Active) -> Result<Option<Worker>, ActivateError> {
        Ok(Some(Box::new(EchoWorker {
            queue: active.take_queue(0)?,
            interrupt: active.interrupt,
            chain: Chain::new(),
        })))
    }

    fn reset(&mut self) {}
}

struct EchoWorker {
    queue: ActiveQueue,
    interrupt: Interrupt,
    chain: Chain,
}

impl EchoWorker {
    /// Answers all messages that there are.
    fn drain(&mut self) -> Result<(), QueueError> {
        let queue = &mut self.queue.queue;
        loop {
            queue.disable_kicks()?;
            while queue.pop(&mut self.chain)? {
                let written = answer(&self.chain);
                queue.add_used(self.chain.head(), written)?;
            }
            if queue.needs_interrupt() {
                self.interrupt.used_buffers();
            }
            if !queue.enable_kicks()? {
                return Ok(());
            }
        }
    }
}

/// One request in, one result out: no queue, no descriptor, no thread.
fn answer(chain: &Chain) -> u32 {
    let (mut message, mut answer) = (chain.readable(), chain.writable());
    let mut part = [0; 512];
    loop {
        let len = part.len().min(answer.remaining());
        let read = message.read(&mut part[..len]);
        if read == 0 {
            return answer.written();
        }
        answer.write(&part[..read]);
    }
}

impl MutEventSubscriber for EchoWorker {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.queue.kick, EventSet::IN)) {
            eprintln!("echo: no kicks will be heard: {error}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        // Nothing to read: somebody else did, and the queue is looked at all the same.
        let _ = self.queue.kick.read();
        if let Err(error) = self.drain() {
            eprintln!("echo: the driver broke queue {}: {error}", self.queue.index);
            self.interrupt.needs_reset();
            debug_assert_eq!(events.fd(), self.queue.kick.as_raw_fd());
            let _ = ops.remove(events);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // What a monitor does: memory, a device, a transport.
    let memory = GuestMemory::anonymous(&layout(1 << 20))?;
    let interrupt = testing::interrupt();
    let workers = Arc::new(LocalWorkers::new());
    let mut transport = MmioTransport::new(
        Box::new(Echo),
        memory.clone(),
        interrupt.clone(),
        workers.clone(),
    )?;

    // What a guest does: a queue in its memory, the device brought up, a message, a kick.
    let mut driver = Driver::new(&memory, GuestAddress(0x1000), 0x8000, 64)?;
    let features = features::VERSION_1 | features::RING;
    let status = activate(&mut transport, features, &[driver.addresses()]);
    println!("the device is live: status {status:#x}");
    driver.add(&[b"hello, ", b"echo"], &[64])?;
    transport.kicks()[0].write(1)?;

    // A monitor has threads for this.
    workers.run();

    interrupt.line().read()?;
    let used = driver.used()?.ok_or("no answer")?;
    println!("the answer: {}", String::from_utf8_lossy(&used.data));
    Ok(())
}
