// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The battery-backed clock, as a stub that reads zero.
//!
//! A kernel that finds an open bus here sees "update in progress" for ever and waits for each
//! probe to time out. Zero says "no update in progress", so that probing costs two exits. The
//! time a guest reads from it is no time at all: guests get theirs from the KVM clock.

use std::ops::Range;

use super::PioDevice;

/// The ports of the clock: index, then data.
pub const PORTS: Range<u16> = 0x70..0x72;

/// A clock whose every register is zero, and which forgets what is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rtc;

impl PioDevice for Rtc {
    fn read(&mut self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u16, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_reads_zero_whatever_was_written() {
        let mut rtc = Rtc;
        let mut data = [0xaa; 4];

        rtc.write(0, &[0x0a]);
        rtc.write(1, &[0x80]);
        rtc.read(1, &mut data);

        assert_eq!(data, [0; 4]);
    }
}
