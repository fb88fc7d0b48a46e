// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The few devices of a PC that a guest still touches through I/O ports.
//!
//! They exist for three reasons: [`serial`] carries what a kernel says before its virtio console
//! works, [`i8042`] is where an x86 kernel asks for a reset, and [`rtc`] answers a probe that
//! would otherwise be slow. None of them is on a data path, so each is a plain register file.

pub mod i8042;
pub mod rtc;
pub mod serial;

/// A device behind a range of x86 I/O ports.
///
/// `offset` counts from the first port of the device's range (each device names its range in a
/// `PORTS` constant), `data` is as long as the guest's access: 1, 2 or 4 bytes for an honest
/// guest. Any offset and any length must be harmless.
pub trait PioDevice: Send {
    /// Serves an `in` instruction: fills `data` with what the guest reads.
    fn read(&mut self, offset: u16, data: &mut [u8]);

    /// Serves an `out` instruction that writes `data`.
    fn write(&mut self, offset: u16, data: &[u8]);
}

/// What a PC's bus gives for a port at which no device answers.
const OPEN_BUS: u8 = 0xff;
