// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The block device's life cycle, and its worker.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coracle_virtio::{ActivateError, Active, DeviceType, Interrupt, QueueError};
use coracle_virtio::{VirtioDevice, Worker};
use event_manager::{EventOps, Events, MutEventSubscriber};

use super::config::{self, CONFIG_WCE, FLUSH, QUEUE_SIZE, WRITEBACK};
use super::queue::{self, Disk, ID_LEN, RequestError, Storage};
use crate::config_space;
use crate::serve::{Fault, ServedQueue, unwatch, watch};

/// The longest serial number in bytes.
pub const MAX_SERIAL: usize = ID_LEN;
/// For how long the worker keeps its event loop while there are requests: a reset waits for so long.
pub const ROUND: Duration = Duration::from_millis(10);
/// For how long requests that were done wait for others before the driver is told.
const GATHER: Duration = Duration::from_micros(100);

const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];
const REQUESTS: u16 = 0;

/// A serial number that does not fit or could not be told from another.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("disk serial number {0:?} is not at most {MAX_SERIAL} ASCII characters that can be seen")]
pub struct SerialError(String);

/// A virtio disk.
pub struct Block {
    storage: Arc<dyn Storage>,
    disk: Disk,
    features: u64,
    space: Vec<u8>,
    /// The driver's choice, which the worker looks at.
    writeback: Arc<AtomicBool>,
    /// Whether the driver may choose now.
    may_choose: bool,
    fault: Fault,
    failures: Failures,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl Block {
    /// A disk with what is in `storage`. The guest finds it by `serial`, which may be empty.
    ///
    /// # Errors
    ///
    /// [`SerialError`] if `serial` is longer than [`MAX_SERIAL`] or has other characters than those of printed ASCII.
    pub fn new(storage: impl Storage + 'static, serial: &str) -> Result<Self, SerialError> {
        let id = id(serial)?;
        let properties = storage.properties();
        Ok(Self {
            storage: Arc::new(storage),
            disk: Disk {
                size: properties.size,
                read_only: properties.read_only,
                id,
            },
            features: config::features(&properties),
            space: config::space(&properties).to_vec(),
            writeback: Arc::new(AtomicBool::new(true)),
            may_choose: true,
            fault: Fault::new("block"),
            failures: Failures::default(),
        })
    }
}

fn id(serial: &str) -> Result<[u8; ID_LEN], SerialError> {
    let bytes = serial.as_bytes();
    if bytes.len() > ID_LEN || !bytes.iter().all(u8::is_ascii_graphic) {
        return Err(SerialError(serial.to_owned()));
    }
    let mut id = [0; ID_LEN];
    id[..bytes.len()].copy_from_slice(bytes);
    Ok(id)
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&self.space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let offered = self.features & CONFIG_WCE != 0;
        if let (WRITEBACK, [choice @ (0 | 1)], true) = (offset, data, offered && self.may_choose) {
            self.space[WRITEBACK as usize] = *choice;
            self.writeback.store(*choice == 1, Ordering::Relaxed);
        }
    }

    fn activate(&mut self, mut active: Active) -> Result<Option<Worker>, ActivateError> {
        let flushes = active.features & FLUSH != 0;
        self.may_choose = active.features & CONFIG_WCE != 0;
        // A driver that never flushes has its writes made stable one by one, and what a driver chose that had no
        // choice does not count.
        if !flushes || !self.may_choose {
            self.space[WRITEBACK as usize] = flushes.into();
            self.writeback.store(flushes, Ordering::Relaxed);
        }
        Ok(Some(Box::new(BlockWorker {
            requests: ServedQueue::new(active.take_queue(REQUESTS)?),
            storage: Arc::clone(&self.storage),
            disk: self.disk,
            writeback: Arc::clone(&self.writeback),
            interrupt: active.interrupt,
            fault: self.fault.clone(),
            failures: self.failures.clone(),
        })))
    }

    fn reset(&mut self) {
        self.may_choose = true;
        self.space[WRITEBACK as usize] = 1;
        self.writeback.store(true, Ordering::Relaxed);
    }
}

/// Does requests on the event loop, one after the other.
struct BlockWorker {
    requests: ServedQueue,
    storage: Arc<dyn Storage>,
    disk: Disk,
    writeback: Arc<AtomicBool>,
    interrupt: Interrupt,
    fault: Fault,
    failures: Failures,
}

impl BlockWorker {
    fn serve(&mut self) -> Result<(), QueueError> {
        let begun = Instant::now();
        let mut told = begun;
        self.requests.begin()?;
        while let Some(chain) = self.requests.next()? {
            let write_through = !self.writeback.load(Ordering::Relaxed);
            let answer = queue::serve(chain, &self.disk, &*self.storage, write_through);
            self.requests.finish(answer.written)?;
            if let Err(error) = answer.outcome {
                self.failures.note(&error);
            }
            let now = Instant::now();
            if now - told >= GATHER {
                self.requests.signal(&self.interrupt);
                told = now;
            }
            if now - begun >= ROUND {
                self.requests.cut_round_short();
            }
        }
        self.requests.end(&self.interrupt);
        Ok(())
    }
}

impl MutEventSubscriber for BlockWorker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = watch(ops, &[self.requests.event()]) {
            self.fault.raise(&self.interrupt, &error);
        }
    }

    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        self.requests.clear_kick();
        if let Err(error) = self.serve() {
            self.fault.raise(&self.interrupt, &error);
            unwatch(ops, &[self.requests.event()]);
        }
    }
}

/// Says once in the device's life that the storage fails: the guest sees each error, the host's operator this one.
#[derive(Clone, Debug, Default)]
struct Failures {
    logged: Arc<AtomicBool>,
}

impl Failures {
    fn note(&self, error: &RequestError) {
        let RequestError::Storage { source, .. } = error else {
            // The driver's doing, which nobody on the host can help.
            return;
        };
        if source.kind() != std::io::ErrorKind::Unsupported
            && !self.logged.swap(true, Ordering::Relaxed)
        {
            let error: &(dyn std::error::Error + 'static) = error;
            tracing::warn!(
                error,
                "a disk fails; the guest is told, here it is said once"
            );
        }
    }
}

#[cfg(test)]
mod tests;
