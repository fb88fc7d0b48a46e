// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attacks by quantity. They end when the guest is ended.

use std::fs::File;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use coracle_agent_api::READY_PORT;

use crate::vsock;

/// The first serial port.
const SERIAL: u16 = 0x3f8;

/// Connects to the port where the host listens and to others, without waiting for an answer, and sends what is taken.
pub fn connections() -> io::Result<()> {
    // The host listens to the first one, which has to be silent for that.
    let _first = vsock::connect(READY_PORT)?;
    let mut console = File::options().write(true).open("/dev/hvc0")?;
    let piece = vec![b'x'; 64 << 10];
    let mut kept = Vec::new();
    for port in (0..).map(|port| port % 1024) {
        if port == 1023 {
            // A sign that the flood goes on.
            console.write_all(&[b'.'; 4096])?;
        }
        for port in [port, READY_PORT] {
            match vsock::begin_to_connect(port) {
                Ok(stream) => kept.push(stream),
                // Out of descriptors: all anew.
                Err(_) => kept.clear(),
            }
        }
        // Those that are refused, or full, make room for new ones.
        kept.retain_mut(|stream| match stream.write(&piece) {
            Err(error) => error.kind() == io::ErrorKind::NotConnected,
            Ok(_) => true,
        });
    }
    Ok(())
}

/// Writes to the serial port.
pub fn serial_port() -> io::Result<()> {
    // SAFETY: no memory is involved; the machine has no port that could harm this process.
    unsafe { libc::iopl(3) };
    loop {
        for _ in 0..256 {
            // SAFETY: writes a byte to a port; the line above allows it, or the process ends.
            unsafe {
                std::arch::asm!("out dx, al", in("dx") SERIAL, in("al") b's', options(nomem, nostack));
            }
        }
        // An emulated host may not stand nothing but exits.
        thread::sleep(Duration::from_millis(10));
    }
}

/// Writes to the console.
pub fn console() -> io::Result<()> {
    let mut console = File::options().write(true).open("/dev/hvc0")?;
    let lines = "a line of a flood\n".repeat(4096);
    loop {
        console.write_all(lines.as_bytes())?;
    }
}

/// Writes a line to the console that never ends, longer than what is kept of it.
pub fn line() -> io::Result<()> {
    let mut console = File::options().write(true).open("/dev/hvc0")?;
    console.write_all(&vec![b'x'; 2 << 20])
}
