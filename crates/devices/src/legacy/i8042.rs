// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The keyboard controller, reduced to its one use in a virtual machine: the reset line.

use std::ops::Range;

use vmm_sys_util::eventfd::EventFd;

use super::{OPEN_BUS, PioDevice};

/// The ports of the controller: data at the first, status and command at the last.
pub const PORTS: Range<u16> = 0x60..0x65;

/// Offset of the status register (read) and the command register (write).
const COMMAND: u16 = 4;
/// The command that pulses the processor's reset line.
const PULSE_RESET: u8 = 0xfe;
/// Reads as a controller that is not there, with one bit clear.
///
/// A driver that finds "output buffer full" (bit 0) after sixteen reads concludes that there is
/// no controller: the quickest way through Linux's probe. Bit 1, "input buffer full", must be
/// clear all the same: Linux waits for that before it writes the reset command, and an open
/// bus's 0xff makes it poll 65,536 times first.
const STATUS: u8 = 0xfd;

/// A keyboard controller without a keyboard: it only recognises the reset command.
///
/// ```
/// use coracle_devices::legacy::PioDevice;
/// use coracle_devices::legacy::i8042::I8042;
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
///
/// let reset = EventFd::new(EFD_NONBLOCK)?;
/// let mut keyboard = I8042::new(reset.try_clone()?);
/// keyboard.write(4, &[0xfe]);
/// assert!(keyboard.reset_requested());
/// assert_eq!(reset.read()?, 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct I8042 {
    reset: EventFd,
    requested: bool,
}

impl I8042 {
    /// A controller that writes to `reset` when the guest asks for a reset.
    pub fn new(reset: EventFd) -> Self {
        I8042 {
            reset,
            requested: false,
        }
    }

    /// Whether the guest asked for a reset since the device was made.
    pub fn reset_requested(&self) -> bool {
        self.requested
    }
}

impl PioDevice for I8042 {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        data.fill(OPEN_BUS);
        if let (COMMAND, [status]) = (offset, data) {
            *status = STATUS;
        }
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        // Signalled once, however often a guest repeats the command while it is being stopped.
        if (offset, data) == (COMMAND, &[PULSE_RESET]) && !self.requested {
            self.requested = true;
            // Fails only on a full counter, and then the reader has been told already.
            let _ = self.reset.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn device() -> (I8042, EventFd) {
        let reset = EventFd::new(EFD_NONBLOCK).unwrap();
        (I8042::new(reset.try_clone().unwrap()), reset)
    }

    #[test]
    fn reset_command_is_signalled_once() {
        let (mut device, reset) = device();

        device.write(COMMAND, &[PULSE_RESET]);
        device.write(COMMAND, &[PULSE_RESET]);

        assert!(device.reset_requested());
        assert_eq!(reset.read().unwrap(), 1);
    }

    #[rstest]
    #[case::other_command(COMMAND, &[0xd1])]
    #[case::data_port(0, &[PULSE_RESET])]
    #[case::speaker_port(1, &[PULSE_RESET])]
    #[case::word_access(COMMAND, &[PULSE_RESET, 0])]
    #[case::empty_access(COMMAND, &[])]
    #[case::far_offset(u16::MAX, &[PULSE_RESET])]
    fn anything_else_is_no_reset(#[case] offset: u16, #[case] data: &[u8]) {
        let (mut device, reset) = device();

        device.write(offset, data);

        assert!(!device.reset_requested());
        assert!(reset.read().is_err());
    }

    #[test]
    fn status_lets_a_reset_through_and_ends_a_probe() {
        let (mut device, _reset) = device();
        let mut status = [0];

        device.read(COMMAND, &mut status);

        assert_eq!(status[0] & 0b01, 0b01, "output buffer never empties");
        assert_eq!(status[0] & 0b10, 0b00, "input buffer accepts a command");
    }

    #[test]
    fn other_ports_read_as_open_bus() {
        let (mut device, _reset) = device();
        let mut data = [0; 4];

        device.read(1, &mut data);

        assert_eq!(data, [OPEN_BUS; 4]);
    }
}
