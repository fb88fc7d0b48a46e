// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the bytes come from: the host kernel's generator.

use std::io::{self, Read};

use rustix::rand::{GetRandomFlags, getrandom};

/// The host's `getrandom(2)` as a reader. It never ends and, on a host that is up, never waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostEntropy;

impl Read for HostEntropy {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(getrandom(buffer, GetRandomFlags::empty())?)
    }
}
