// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk that is reset in the middle of a request: the reset waits for the request, and then nothing of the guest's is
//! touched any more.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use coracle_devices::block::{Block, Properties, Storage};
use coracle_memory::GuestAddress;
use coracle_virtio::testing::{Driver, OneThread, activate, interrupt, memory, write_register};
use coracle_virtio::{MmioTransport, Reader, Register, Writer, features};

/// Long enough for a reset that does not wait.
const A_WHILE: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_secs(20);

/// Says when a read begins, and ends it when it is told to.
struct Gate {
    begun: SyncSender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Storage for Gate {
    fn properties(&self) -> Properties {
        Properties {
            size: 4096,
            read_only: false,
            block_size: 512,
            physical_block_size: 512,
        }
    }

    fn read(&self, buffers: &mut Writer<'_>, _: u64, len: usize) -> io::Result<()> {
        self.begun.send(()).unwrap();
        let go_on = self.go_on.lock().unwrap_or_else(PoisonError::into_inner);
        go_on.recv_timeout(DEADLINE).unwrap();
        buffers.write(&vec![7; len]);
        Ok(())
    }

    fn write(&self, _: &mut Reader<'_>, _: u64, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn reset_waits_for_the_request_and_then_nothing_is_touched() {
    let (begun, begins) = sync_channel(1);
    let (goes_on, go_on) = sync_channel(1);
    let gate = Gate {
        begun,
        go_on: Mutex::new(go_on),
    };
    let memory = memory(1 << 20);
    let mut driver = Driver::new(&memory, GuestAddress(0), 1 << 16, 16).unwrap();
    let mut transport = MmioTransport::new(
        Box::new(Block::new(gate, "").unwrap()),
        memory.clone(),
        interrupt(),
        Arc::new(OneThread::default()),
    )
    .unwrap();
    activate(&mut transport, features::VERSION_1, &[driver.addresses()]);
    // Two requests: the first is under way when the reset comes.
    driver.add(&[&[0; 16]], &[512, 1]).unwrap();
    driver.add(&[&[0; 16]], &[512, 1]).unwrap();
    transport.kicks()[0].write(1).unwrap();
    begins.recv_timeout(DEADLINE).unwrap();

    let resetting = thread::spawn(move || {
        write_register(&mut transport, Register::Status, 0);
        transport
    });
    thread::sleep(A_WHILE);
    assert!(!resetting.is_finished(), "the request still has the memory");
    // Enough for both: the second may or may not be begun before the worker is stopped.
    goes_on.send(()).unwrap();
    let _ = goes_on.send(());
    let _transport = resetting.join().unwrap();
    let mut before = vec![0; 1 << 16];
    memory.read(GuestAddress(0), &mut before).unwrap();
    thread::sleep(A_WHILE);

    let mut after = vec![0; 1 << 16];
    memory.read(GuestAddress(0), &mut after).unwrap();
    assert!(before == after, "memory changes after the reset");
    assert!(driver.used().unwrap().is_some());
}
