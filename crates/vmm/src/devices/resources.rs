// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Windows and interrupts for virtio-mmio devices, given out in order so that the same configuration always makes the
//! same machine.

use coracle_boot::MmioDevice;
use coracle_virtio::MMIO_WINDOW_SIZE;
use vm_allocator::{AddressAllocator, AllocPolicy, IdAllocator};

use super::DeviceError;

/// The first window: in the hole of the RAM below 4 GiB, clear of the APICs.
const FIRST_WINDOW: u64 = 0xd000_0000;
/// The interrupts that no legacy device has: those after COM1's, up to the IOAPIC's last input.
const INTERRUPTS: std::ops::RangeInclusive<u32> = 5..=23;

/// What is still to be had.
pub(super) struct Resources {
    windows: AddressAllocator,
    interrupts: IdAllocator,
    /// How many devices there are.
    count: u32,
}

impl Resources {
    pub(super) fn new() -> Result<Self, DeviceError> {
        let count = u64::from(INTERRUPTS.end() - INTERRUPTS.start() + 1);
        Ok(Self {
            windows: AddressAllocator::new(FIRST_WINDOW, count * MMIO_WINDOW_SIZE)
                .map_err(exhausted("window"))?,
            interrupts: IdAllocator::new(*INTERRUPTS.start(), *INTERRUPTS.end())
                .map_err(exhausted("interrupt"))?,
            count: 0,
        })
    }

    /// A window and an interrupt of its own for one more device, which has a number of its own: this one, or its place.
    pub(super) fn next_device(&mut self, uid: Option<u32>) -> Result<MmioDevice, DeviceError> {
        let window = self
            .windows
            .allocate(MMIO_WINDOW_SIZE, MMIO_WINDOW_SIZE, AllocPolicy::FirstMatch)
            .map_err(exhausted("window"))?;
        let gsi = self
            .interrupts
            .allocate_id()
            .map_err(exhausted("interrupt"))?;
        let place = self.count;
        self.count += 1;
        Ok(MmioDevice {
            base: window.start(),
            size: MMIO_WINDOW_SIZE,
            gsi,
            uid: uid.unwrap_or(place),
        })
    }
}

fn exhausted(what: &'static str) -> impl FnOnce(vm_allocator::Error) -> DeviceError {
    move |source| DeviceError::Exhausted { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_get_their_own_window_and_interrupt_in_order() {
        let mut resources = Resources::new().unwrap();

        let (first, second) = (
            resources.next_device(None).unwrap(),
            resources.next_device(None).unwrap(),
        );
        let third = resources.next_device(Some(0x1000)).unwrap();

        assert_eq!((first.base, first.gsi, first.uid), (0xd000_0000, 5, 0));
        assert_eq!((second.base, second.gsi, second.uid), (0xd000_1000, 6, 1));
        assert_eq!((third.base, third.uid), (0xd000_2000, 0x1000));
    }

    #[test]
    fn there_is_an_end_to_devices() {
        let mut resources = Resources::new().unwrap();

        let count = (0..100)
            .take_while(|_| resources.next_device(None).is_ok())
            .count();

        assert_eq!(count, 19);
    }
}
