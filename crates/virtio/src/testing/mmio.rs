// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver's side of the MMIO transport (virtio 1.3, section 3.1.1).

use coracle_memory::GuestAddress;

use crate::{DeviceStatus, MmioTransport, QueueAddresses, Register};

/// Reads a register.
pub fn read_register(transport: &mut MmioTransport, register: Register) -> u32 {
    let mut value = [0; 4];
    transport.read(register as u64, &mut value);
    u32::from_le_bytes(value)
}

/// Writes a register.
pub fn write_register(transport: &mut MmioTransport, register: Register, value: u32) {
    transport.write(register as u64, &value.to_le_bytes());
}

/// Sets queue `index` up and makes it ready.
pub fn set_up_queue(transport: &mut MmioTransport, index: u32, addresses: QueueAddresses) {
    write_register(transport, Register::QueueSel, index);
    write_register(transport, Register::QueueSize, addresses.size.into());
    let parts = [
        (
            Register::QueueDescLow,
            Register::QueueDescHigh,
            addresses.desc_table,
        ),
        (
            Register::QueueDriverLow,
            Register::QueueDriverHigh,
            addresses.avail_ring,
        ),
        (
            Register::QueueDeviceLow,
            Register::QueueDeviceHigh,
            addresses.used_ring,
        ),
    ];
    for (low, high, GuestAddress(address)) in parts {
        write_register(transport, low, (address & 0xffff_ffff) as u32);
        write_register(transport, high, (address >> 32) as u32);
    }
    write_register(transport, Register::QueueReady, 1);
}

/// Brings a device up as a driver does that accepts `features`, with its first queues at
/// `queues`, and gives the status that the driver reads in the end.
pub fn activate(transport: &mut MmioTransport, features: u64, queues: &[QueueAddresses]) -> u32 {
    let mut status = 0;
    write_register(transport, Register::Status, status);
    for bit in [DeviceStatus::ACKNOWLEDGE, DeviceStatus::DRIVER] {
        status |= bit;
        write_register(transport, Register::Status, status);
    }
    for half in [0, 1] {
        write_register(transport, Register::DriverFeaturesSel, half);
        let value = (features >> (32 * half)) & 0xffff_ffff;
        write_register(transport, Register::DriverFeatures, value as u32);
    }
    status |= DeviceStatus::FEATURES_OK;
    write_register(transport, Register::Status, status);
    for (index, addresses) in (0u32..).zip(queues) {
        set_up_queue(transport, index, *addresses);
    }
    status |= DeviceStatus::DRIVER_OK;
    write_register(transport, Register::Status, status);
    read_register(transport, Register::Status)
}
