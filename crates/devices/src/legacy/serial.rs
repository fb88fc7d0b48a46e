// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A 16550 serial port, output only: what a kernel says before its console driver is up.
//!
//! Each character is an exit of the virtual machine, which makes it the dearest way to print; the
//! virtio [`console`](crate::console) takes over once its driver is loaded.

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

use super::{OPEN_BUS, PioDevice};

/// The ports of COM1.
pub const PORTS: Range<u16> = 0x3f8..0x400;
/// The interrupt of COM1.
pub const IRQ: u32 = 4;

/// Raises the port's interrupt through an eventfd.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A serial port whose output goes to a [`Write`].
///
/// A failing output loses bytes and nothing else: the guest is neither stopped nor told. The
/// registers are [`vm_superio`]'s.
///
/// ```
/// use coracle_devices::BoundedLog;
/// use coracle_devices::legacy::PioDevice;
/// use coracle_devices::legacy::serial::Serial;
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
///
/// let log = BoundedLog::in_memory(64 << 10);
/// let irq = EventFd::new(EFD_NONBLOCK)?;
/// let mut com1 = Serial::new(Box::new(log.clone()), irq);
/// com1.write(0, b"!");
/// assert_eq!(log.contents()?, b"!");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Serial(vm_superio::Serial<Line, NoEvents, Box<dyn Write + Send>>);

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Serial").field(&self.0.state()).finish()
    }
}

impl Serial {
    /// A port that writes to `output` and raises its interrupt by writing to `irq`.
    ///
    /// `output` is written to by the vCPU that printed, which waits for it: it must not block
    /// for long.
    pub fn new(output: Box<dyn Write + Send>, irq: EventFd) -> Self {
        Serial(vm_superio::Serial::new(Line(irq), output))
    }
}

impl PioDevice for Serial {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        data.fill(OPEN_BUS);
        // The registers are a byte wide; a wider access is none of theirs.
        if let (Ok(register), [value]) = (u8::try_from(offset), data) {
            *value = self.0.read(register);
        }
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        if let (Ok(register), &[value]) = (u8::try_from(offset), data) {
            // Lost output, or an interrupt on a counter that is full and so pending already.
            let _ = self.0.write(register, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::BoundedLog;

    const DATA: u16 = 0;
    const INTERRUPT_ENABLE: u16 = 1;
    const LINE_STATUS: u16 = 5;

    fn port(output: Box<dyn Write + Send>) -> (Serial, EventFd) {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        (Serial::new(output, irq.try_clone().unwrap()), irq)
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn written_bytes_reach_the_output() {
        let log = BoundedLog::in_memory(4096);
        let (mut serial, _irq) = port(Box::new(log.clone()));

        b"panic"
            .iter()
            .for_each(|&byte| serial.write(DATA, &[byte]));

        assert_eq!(log.contents().unwrap(), b"panic");
    }

    #[test]
    fn transmitter_interrupt_is_raised_once_enabled() {
        let (mut serial, irq) = port(Box::new(io::sink()));

        serial.write(INTERRUPT_ENABLE, &[0b10]);

        assert_eq!(irq.read().unwrap(), 1);
    }

    #[test]
    fn port_stays_ready_when_the_output_fails() {
        let (mut serial, _irq) = port(Box::new(Broken));
        let mut status = [0];

        serial.write(DATA, b"x");
        serial.read(LINE_STATUS, &mut status);

        assert_eq!(status[0] & 0x60, 0x60, "transmitter empty");
    }

    #[rstest]
    #[case::word(DATA, &[1, 2])]
    #[case::nothing(DATA, &[])]
    #[case::past_the_registers(0x1000, &[1])]
    #[case::aliased_by_truncation(0x100, &[1])]
    fn odd_accesses_print_nothing(#[case] offset: u16, #[case] data: &[u8]) {
        let log = BoundedLog::in_memory(4096);
        let (mut serial, _irq) = port(Box::new(log.clone()));

        serial.write(offset, data);

        assert_eq!(log.contents().unwrap(), b"");
    }

    #[test]
    fn wide_read_is_open_bus() {
        let (mut serial, _irq) = port(Box::new(io::sink()));
        let mut data = [0; 2];

        serial.read(LINE_STATUS, &mut data);

        assert_eq!(data, [OPEN_BUS; 2]);
    }
}
