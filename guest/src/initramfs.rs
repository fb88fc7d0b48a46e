// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's initial file system: the agent as `/init`, the modules that it loads first, and those that it loads where a
//! device wants them.

use std::io::{self, Write};

use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};
use thiserror::Error;

use crate::cpio::Archive;
use crate::index::{INDEX, index};
use crate::modules::Module;

/// Where the agent looks for the order in which it loads modules: one file name a line, of files in the same directory.
pub const ORDER: &str = "modules/order";

/// Why an initramfs could not be made.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// The agent is no executable of this architecture.
    #[error("the agent is not a 64-bit ELF executable")]
    NotExecutable(#[source] object::Error),
    /// The agent needs a dynamic loader and libraries, and the guest has none.
    #[error("the agent is dynamically linked: build it with `-C target-feature=+crt-static`")]
    DynamicallyLinked,
    /// The archive cannot be written.
    #[error("cannot write the initramfs")]
    Write(#[from] io::Error),
}

/// Writes an initramfs of `agent` (its executable) and `modules` (in the order in which they load) to `output`.
///
/// # Errors
///
/// [`InitramfsError`]: the agent could not run in a guest, or the output failed.
pub fn write(output: impl Write, agent: &[u8], modules: &[Module]) -> Result<(), InitramfsError> {
    write_with_drivers(output, agent, modules, &[])
}

/// As [`write()`], with modules that the agent loads only where there is a device for them.
///
/// # Errors
///
/// [`InitramfsError`]: the agent could not run in a guest, or the output failed.
pub fn write_with_drivers(
    output: impl Write,
    agent: &[u8],
    modules: &[Module],
    drivers: &[Module],
) -> Result<(), InitramfsError> {
    check_static(agent)?;
    let mut archive = Archive::new(output);
    // What is open before the agent can mount anything: the kernel gives it the console. There is none before its driver is
    // loaded; Rust's runtime then puts /dev/null in its place, and aborts if it cannot.
    archive.directory("dev", 0o755)?;
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.character_device("dev/null", 0o666, 1, 3)?;
    archive.directory("proc", 0o555)?;
    archive.directory("sys", 0o555)?;
    archive.directory("run", 0o755)?;
    archive.file("init", 0o755, agent)?;
    // A kernel that needs none has nothing to look at either.
    if !(modules.is_empty() && drivers.is_empty()) {
        archive.directory("modules", 0o755)?;
    }
    for module in modules.iter().chain(drivers) {
        let file = format!("modules/{}.ko", module.name);
        archive.file(&file, 0o644, &module.image)?;
    }
    if !modules.is_empty() {
        let order: String = modules
            .iter()
            .map(|module| format!("{}.ko\n", module.name))
            .collect();
        archive.file(ORDER, 0o644, order.as_bytes())?;
    }
    if !drivers.is_empty() {
        let file = format!("modules/{INDEX}");
        archive.file(&file, 0o644, index(drivers).as_bytes())?;
    }
    archive.finish()?;
    Ok(())
}

/// Refuses an agent that asks for an interpreter: it would end in a kernel panic, with `No working init found`.
fn check_static(agent: &[u8]) -> Result<(), InitramfsError> {
    let header =
        elf::FileHeader64::<Endianness>::parse(agent).map_err(InitramfsError::NotExecutable)?;
    let endian = header.endian().map_err(InitramfsError::NotExecutable)?;
    let dynamic = header
        .program_headers(endian, agent)
        .map_err(InitramfsError::NotExecutable)?
        .iter()
        .any(|segment| segment.p_type(endian) == elf::PT_INTERP);
    if dynamic {
        return Err(InitramfsError::DynamicallyLinked);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests_support::{executable_image, module_image};

    fn modules() -> Vec<Module> {
        ["virtio", "virtio_ring"]
            .map(|name| Module {
                name: name.to_owned(),
                image: module_image(""),
                dependencies: Vec::new(),
                aliases: Vec::new(),
            })
            .to_vec()
    }

    #[test]
    fn equal_inputs_give_equal_archives() {
        let (mut first, mut second) = (Vec::new(), Vec::new());

        write(&mut first, &executable_image(false), &modules()).unwrap();
        write(&mut second, &executable_image(false), &modules()).unwrap();

        assert_eq!(first, second);
    }

    #[test]
    fn order_lists_modules_as_they_were_given() {
        let mut archive = Vec::new();

        write(&mut archive, &executable_image(false), &modules()).unwrap();

        let archive = String::from_utf8_lossy(&archive);
        assert!(archive.contains("virtio.ko\nvirtio_ring.ko\n"));
    }

    #[test]
    fn drivers_are_packed_and_not_in_the_order() {
        let modules = modules();
        let (loaded, drivers) = modules.split_at(1);
        let mut archive = Vec::new();

        write_with_drivers(&mut archive, &executable_image(false), loaded, drivers).unwrap();

        let archive = String::from_utf8_lossy(&archive);
        assert!(archive.contains("virtio_ring.ko\t\t\n"));
        assert!(archive.contains("virtio.ko\n"));
        assert!(!archive.contains("virtio.ko\nvirtio_ring.ko\n"));
    }

    #[test]
    fn initramfs_without_modules_has_no_place_for_them() {
        let mut archive = Vec::new();

        write(&mut archive, &executable_image(false), &[]).unwrap();

        assert!(!String::from_utf8_lossy(&archive).contains("modules"));
    }

    #[test]
    fn dynamically_linked_agent_is_refused() {
        let error = write(io::sink(), &executable_image(true), &[]).unwrap_err();

        assert!(matches!(error, InitramfsError::DynamicallyLinked));
    }

    #[test]
    fn agent_that_is_a_script_is_refused() {
        let error = write(io::sink(), b"#!/bin/sh\n", &[]).unwrap_err();

        assert!(matches!(error, InitramfsError::NotExecutable(_)));
    }
}
