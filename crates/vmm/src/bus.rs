// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Address ranges and the devices behind them, for ports and for memory-mapped registers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_devices::legacy::PioDevice;
use coracle_virtio::MmioTransport;
use thiserror::Error;

/// Two devices at one address, or a range that wraps.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the range of {len:#x} at {start:#x} is empty, wraps or overlaps another device's")]
pub struct BusError {
    /// Where the range begins.
    pub start: u64,
    /// Its length.
    pub len: u64,
}

/// Devices sorted by address. Complete before the first vCPU runs; then shared by all of them.
#[derive(Debug)]
pub(crate) struct Bus<D> {
    slots: Vec<Slot<D>>,
}

#[derive(Debug)]
struct Slot<D> {
    start: u64,
    /// The first address after the range.
    end: u64,
    device: Mutex<D>,
}

impl<D> Bus<D> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new() }
    }

    /// Puts `device` at `len` addresses from `start` on.
    pub(crate) fn insert(&mut self, start: u64, len: u64, device: D) -> Result<(), BusError> {
        let refused = BusError { start, len };
        let end = start
            .checked_add(len)
            .filter(|end| *end > start)
            .ok_or(refused)?;
        let at = self.slots.partition_point(|slot| slot.end <= start);
        if self.slots.get(at).is_some_and(|slot| slot.start < end) {
            return Err(BusError { start, len });
        }
        self.slots.insert(
            at,
            Slot {
                start,
                end,
                device: Mutex::new(device),
            },
        );
        Ok(())
    }

    /// The device whose range holds all `len` bytes at `address`, and the offset in its range.
    pub(crate) fn find(&self, address: u64, len: usize) -> Option<(u64, MutexGuard<'_, D>)> {
        let at = self.slots.partition_point(|slot| slot.end <= address);
        let slot = self.slots.get(at)?;
        let offset = address.checked_sub(slot.start)?;
        let last = address.checked_add(len.saturating_sub(1) as u64)?;
        // A device that panicked is as good or bad as before; the guest must not take the others with it.
        (last < slot.end).then(|| {
            (
                offset,
                slot.device.lock().unwrap_or_else(PoisonError::into_inner),
            )
        })
    }
}

/// All that a vCPU's exits lead to.
pub(crate) struct Buses {
    pub(crate) ports: Bus<Box<dyn PioDevice>>,
    pub(crate) mmio: Bus<MmioTransport>,
}

impl Buses {
    /// An `in` instruction. A string instruction reads the same port again for each byte; ports without a device
    /// read as all ones.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) {
        match self.ports.find(port.into(), 1) {
            Some((offset, mut device)) => {
                for byte in data.chunks_mut(1) {
                    device.read(port_offset(offset), byte);
                }
            }
            None => data.fill(0xff),
        }
    }

    /// An `out` instruction. A string instruction writes the same port again for each byte.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) {
        if let Some((offset, mut device)) = self.ports.find(port.into(), 1) {
            for byte in data.chunks(1) {
                device.write(port_offset(offset), byte);
            }
        }
    }

    /// A load from an address that is not RAM; all ones without a device.
    pub(crate) fn read_mmio(&self, address: u64, data: &mut [u8]) {
        match self.mmio.find(address, data.len()) {
            Some((offset, mut device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A store to an address that is not RAM.
    pub(crate) fn write_mmio(&self, address: u64, data: &[u8]) {
        if let Some((offset, mut device)) = self.mmio.find(address, data.len()) {
            device.write(offset, data);
        }
    }
}

/// An offset into a range of ports, which are numbers of 16 bits themselves.
fn port_offset(offset: u64) -> u16 {
    u16::try_from(offset).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rstest::{fixture, rstest};

    use super::*;

    #[fixture]
    fn bus() -> Bus<char> {
        let mut bus = Bus::new();
        bus.insert(0x300, 0x10, 'c').unwrap();
        bus.insert(0x100, 0x10, 'a').unwrap();
        bus.insert(0x110, 0x10, 'b').unwrap();
        bus
    }

    #[rstest]
    #[case::before_the_first(0xff, 1, None)]
    #[case::first_byte(0x100, 1, Some((0, 'a')))]
    #[case::last_byte(0x10f, 1, Some((0xf, 'a')))]
    #[case::next_range(0x110, 4, Some((0, 'b')))]
    #[case::across_two_ranges(0x10e, 4, None)]
    #[case::across_the_end(0x11e, 4, None)]
    #[case::up_to_the_end(0x11c, 4, Some((0xc, 'b')))]
    #[case::between(0x200, 1, None)]
    #[case::last_range(0x301, 8, Some((1, 'c')))]
    #[case::behind_the_last(0x310, 1, None)]
    #[case::last_address(u64::MAX, 8, None)]
    fn access_reaches_the_device_that_holds_all_of_it(
        bus: Bus<char>,
        #[case] address: u64,
        #[case] len: usize,
        #[case] expected: Option<(u64, char)>,
    ) {
        let found = bus
            .find(address, len)
            .map(|(offset, device)| (offset, *device));

        assert_eq!(found, expected);
    }

    #[rstest]
    #[case::same(0x100, 0x10)]
    #[case::inside(0x104, 1)]
    #[case::around(0xf0, 0x1000)]
    #[case::over_the_start(0xff, 2)]
    #[case::over_the_end(0x31f - 0x10, 2)]
    #[case::empty(0x200, 0)]
    #[case::wraps(u64::MAX, 2)]
    fn range_that_cannot_be_told_apart_is_refused(
        mut bus: Bus<char>,
        #[case] start: u64,
        #[case] len: u64,
    ) {
        assert_eq!(bus.insert(start, len, 'x'), Err(BusError { start, len }));
    }

    /// Offsets and what was written there.
    type Written = Arc<Mutex<Vec<(u16, Vec<u8>)>>>;

    /// Remembers each write.
    struct Recorder(Written);

    impl PioDevice for Recorder {
        fn read(&mut self, offset: u16, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: u16, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn buses() -> (Buses, Written) {
        let written = Written::default();
        let mut ports: Bus<Box<dyn PioDevice>> = Bus::new();
        ports
            .insert(0x3f8, 8, Box::new(Recorder(Arc::clone(&written))))
            .unwrap();
        let buses = Buses {
            ports,
            mmio: Bus::new(),
        };
        (buses, written)
    }

    #[test]
    fn string_instruction_writes_its_port_byte_by_byte() {
        let (buses, written) = buses();

        buses.write_port(0x3f9, b"ab");

        assert_eq!(
            *written.lock().unwrap(),
            [(1, b"a".to_vec()), (1, b"b".to_vec())]
        );
    }

    #[rstest]
    #[case::device(0x3fa, [2; 3])]
    #[case::nothing(0x400, [0xff; 3])]
    fn port_reads_as_its_device_or_as_ones(#[case] port: u16, #[case] expected: [u8; 3]) {
        let (buses, _) = buses();
        let mut data = [0; 3];

        buses.read_port(port, &mut data);

        assert_eq!(data, expected);
    }

    #[test]
    fn mmio_without_a_device_reads_as_ones() {
        let (buses, _) = buses();
        let mut data = [0; 8];

        buses.read_mmio(0xd000_0000, &mut data);
        buses.write_mmio(0xd000_0000, &data);

        assert_eq!(data, [0xff; 8]);
    }
}
