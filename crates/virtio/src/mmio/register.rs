// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of the MMIO transport, by their offsets.

/// Bytes of guest-physical address space that a device takes.
pub const MMIO_WINDOW_SIZE: u64 = 0x1000;

/// Offset of the register that the driver kicks queues by: where an ioeventfd for each queue
/// goes, with the queue's index as the value to match.
pub const NOTIFY_OFFSET: u64 = Register::QueueNotify as u64;

/// Offset of the device's configuration space.
pub const CONFIG_OFFSET: u64 = 0x100;

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident = $offset:literal,)*) => {
        /// A register, by its offset in bytes from the start of the window
        /// (virtio 1.3, section 4.2.2). All are 32 bits wide.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Register {
            $($(#[$doc])* $name = $offset,)*
        }

        impl Register {
            /// All registers, by offset.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The register at this offset.
            #[must_use]
            pub const fn at(offset: u64) -> Option<Self> {
                match offset {
                    $($offset => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

registers! {
    /// Reads "virt".
    MagicValue = 0x000,
    /// Reads 2.
    Version = 0x004,
    /// Reads the kind of the device.
    DeviceId = 0x008,
    /// Reads who made the device.
    VendorId = 0x00c,
    /// Reads the selected half of the features offered.
    DeviceFeatures = 0x010,
    /// Selects the half that `DeviceFeatures` reads.
    DeviceFeaturesSel = 0x014,
    /// Sets the selected half of the features that the driver accepts.
    DriverFeatures = 0x020,
    /// Selects the half that `DriverFeatures` sets.
    DriverFeaturesSel = 0x024,
    /// Selects the queue that the registers below are about.
    QueueSel = 0x030,
    /// Reads the largest size of the queue; 0 if there is no such queue.
    QueueSizeMax = 0x034,
    /// Sets the size of the queue.
    QueueSize = 0x038,
    /// 1 when the driver has set the queue up.
    QueueReady = 0x044,
    /// Kicks the queue whose index is written.
    QueueNotify = 0x050,
    /// Reads why there was an interrupt.
    InterruptStatus = 0x060,
    /// Clears reasons that the driver has handled.
    InterruptAck = 0x064,
    /// The device status.
    Status = 0x070,
    /// Low half of the descriptor table's address.
    QueueDescLow = 0x080,
    /// High half of the descriptor table's address.
    QueueDescHigh = 0x084,
    /// Low half of the available ring's address.
    QueueDriverLow = 0x090,
    /// High half of the available ring's address.
    QueueDriverHigh = 0x094,
    /// Low half of the used ring's address.
    QueueDeviceLow = 0x0a0,
    /// High half of the used ring's address.
    QueueDeviceHigh = 0x0a4,
    /// Selects a shared memory region.
    ShmSel = 0x0ac,
    /// Low half of the region's length.
    ShmLenLow = 0x0b0,
    /// High half of the region's length.
    ShmLenHigh = 0x0b4,
    /// Low half of the region's address.
    ShmBaseLow = 0x0b8,
    /// High half of the region's address.
    ShmBaseHigh = 0x0bc,
    /// Resets one queue; not offered.
    QueueReset = 0x0c0,
    /// Changes whenever the configuration does.
    ConfigGeneration = 0x0fc,
}
