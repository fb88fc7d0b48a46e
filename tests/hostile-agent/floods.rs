// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attacks by quantity. They end when the guest is ended.

use std::fs::File;
use std::io::{self, Write};

use coracle_agent_api::READY_PORT;

use crate::vsock;

/// The first serial port.
const SERIAL: u16 = 0x3f8;

/// Connects to ports where nobody listens and to the one where the host does, and sends what the host takes.
pub fn connections() -> io::Result<()> {
    // The host listens to the first one, which has to be silent for that.
    let _first = vsock::connect(READY_PORT)?;
    let piece = vec![b'x'; 64 << 10];
    let mut kept = Vec::new();
    for port in (0..).map(|port| port % 4096) {
        // Refused, of course, unless it is somebody's.
        let _ = vsock::connect(port);
        let Ok(mut stream) = vsock::connect(READY_PORT) else {
            // Out of descriptors, or the host takes no more: all anew.
            kept.clear();
            continue;
        };
        rustix::io::ioctl_fionbio(&stream, true)?;
        while stream.write(&piece).is_ok() {}
        kept.push(stream);
    }
    Ok(())
}

/// Writes to the serial port.
pub fn serial_port() -> io::Result<()> {
    // SAFETY: no memory is involved; the machine has no port that could harm this process.
    unsafe { libc::iopl(3) };
    loop {
        // SAFETY: writes a byte to a port; the line above allows it, or the process ends.
        unsafe {
            std::arch::asm!("out dx, al", in("dx") SERIAL, in("al") b's', options(nomem, nostack));
        }
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
