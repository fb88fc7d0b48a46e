// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Prints where a guest has its memory, and where the host has it: `regions [MEBIBYTES]`.

use std::error::Error;

use coracle_memory::{GuestMemory, layout};

fn main() -> Result<(), Box<dyn Error>> {
    let mebibytes: u64 = std::env::args()
        .nth(1)
        .map_or(Ok(4096), |arg| arg.parse())?;
    let size = mebibytes.checked_mul(1 << 20).ok_or("too many mebibytes")?;
    let memory = GuestMemory::shared(&layout(size))?;
    for region in memory.regions() {
        let offset = region.file().map_or(0, |(_, offset)| offset);
        println!(
            "guest {} to {}: host {:p}, file offset {offset:#x}",
            region.start(),
            region.end(),
            region.host_address(),
        );
    }
    Ok(())
}
