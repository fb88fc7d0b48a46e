// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Modules of the guest's kernel: those that are loaded first, and those that are loaded when something wants them.
//!
//! The first came with the agent and are listed in their order. The others, in the initial file system or in the share, have an
//! [`index`]: what is there for a device is loaded when the device is found, and the rest when the kernel asks for it, which it does by
//! executing this program (`kernel.modprobe`): for a file system that is mounted, a device that is opened, a rule of a packet filter. A
//! kernel that has all of it built in has no modules, and costs nothing here.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use coracle_agent_api::{SHARE_MODULES, SHARE_PATH};
use rustix::io::Errno;
use thiserror::Error;

use crate::log_error;
use index::Index;

pub mod index;
mod order;

pub(crate) use order::load_all;

/// Where modules are that came with the agent.
pub(crate) const PACKED: &str = "/modules";

/// This program, as the kernel executes it.
const PROGRAM: &str = "/init";

/// What the kernel executes for want of a module.
const ASKED_BY_KERNEL: &str = "/proc/sys/kernel/modprobe";

/// Why a module could not be loaded.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// The list of modules, or a module, cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The list holds something that is no file's name.
    #[error("`{name}` in the list of modules is not the name of a file")]
    Name {
        /// What it holds.
        name: String,
    },
    /// The kernel refuses the module.
    #[error("the kernel does not load {path}")]
    Refused {
        /// The module's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Loads the drivers of `directory` for devices that have none yet, and forgets the others: their files are memory of the guest.
///
/// # Errors
///
/// The index cannot be read.
pub(crate) fn load_packed_drivers() -> Result<(), ModuleError> {
    let directory = Path::new(PACKED);
    if let Some(index) = Index::read(directory)? {
        load_drivers(&index, Path::new("/sys/bus"));
        // Left where it is, it does no harm but to take room.
        let _ = fs::remove_dir_all(directory);
    }
    Ok(())
}

/// Makes the modules of the share, if there are any, available: drivers for devices now, the rest when the kernel asks.
///
/// # Errors
///
/// The index cannot be read.
pub(crate) fn use_share() -> Result<(), ModuleError> {
    let directory = Path::new(SHARE_PATH).join(SHARE_MODULES);
    let Some(index) = Index::read(&directory)? else {
        return Ok(());
    };
    load_drivers(&index, Path::new("/sys/bus"));
    // A kernel that loads no modules does not ask for any.
    if let Err(error) = fs::write(ASKED_BY_KERNEL, PROGRAM)
        && error.kind() != io::ErrorKind::NotFound
    {
        log_error!("cannot have the kernel ask for modules: {error}");
    }
    Ok(())
}

/// The module that the kernel asks for, if these are the arguments that it executes this program with.
#[must_use]
pub fn asked_for(arguments: &[String]) -> Option<&str> {
    match arguments {
        [_, quiet, end, name] if quiet == "-q" && end == "--" => Some(name),
        _ => None,
    }
}

/// Loads the module that the kernel asks for by its name or an alias.
#[must_use]
pub fn answer_kernel(name: &str) -> ExitCode {
    let directory = Path::new(SHARE_PATH).join(SHARE_MODULES);
    let index = match Index::read(&directory) {
        Ok(index) => index.unwrap_or_default(),
        Err(error) => {
            log_error!("{}", crate::chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let files = index.asked_for(name);
    // Most of what kernels ask for is not there, and they go on without.
    match load_and_log(&index, &files) < files.len() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Loads the modules of `index` for the devices below `buses` that have no driver yet.
fn load_drivers(index: &Index, buses: &Path) {
    for alias in aliases_without_driver(index, buses) {
        load_and_log(index, &index.asked_for(&alias));
    }
}

/// Loads what it can, and logs what it cannot. How many modules were not loaded.
fn load_and_log(index: &Index, files: &[&str]) -> usize {
    let failures = index.load(files);
    for failure in &failures {
        log_error!("{}", crate::chain(failure));
    }
    failures.len()
}

/// What the devices below `buses` that have no driver are called.
fn aliases_without_driver(index: &Index, buses: &Path) -> Vec<String> {
    let mut aliases = Vec::new();
    // A device's alias begins with its bus.
    for bus in index.kinds() {
        let devices = buses.join(bus).join("devices");
        // Not every kernel has every bus.
        let Ok(devices) = fs::read_dir(devices) else {
            continue;
        };
        for device in devices.flatten() {
            let device = device.path();
            if device.join("driver").exists() {
                continue;
            }
            if let Ok(alias) = fs::read_to_string(device.join("modalias")) {
                aliases.push(alias.trim_end().to_owned());
            }
        }
    }
    aliases
}

/// Loads the module in `file`.
fn load(path: &Path) -> Result<(), ModuleError> {
    let module = File::open(path).map_err(|source| ModuleError::Read {
        path: path.to_owned(),
        source,
    })?;
    match rustix::system::finit_module(&module, c"", 0) {
        // It is there already: built into the kernel, perhaps.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(ModuleError::Refused {
            path: path.to_owned(),
            source: error.into(),
        }),
    }
}

/// The path of a file that a list names, in the list's directory.
fn file_in(directory: &Path, name: &str) -> Result<PathBuf, ModuleError> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(ModuleError::Name {
            name: name.to_owned(),
        });
    }
    Ok(directory.join(name))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&["/init", "-q", "--", "fs-ext4"], Some("fs-ext4"))]
    #[case(&["/init"], None)]
    #[case(&["/init", "init"], None)]
    #[case(&["/init", "-q", "--", "a", "b"], None)]
    fn kernel_asks_in_its_own_way(#[case] arguments: &[&str], #[case] expected: Option<&str>) {
        let arguments: Vec<_> = arguments.iter().map(|&word| word.to_owned()).collect();

        assert_eq!(asked_for(&arguments), expected);
    }

    #[test]
    fn only_devices_without_a_driver_want_modules() {
        let base = tempfile::tempdir().unwrap();
        let (modules, buses) = (base.path().join("modules"), base.path().join("bus"));
        fs::create_dir(&modules).unwrap();
        fs::write(
            modules.join("index"),
            "net.ko\t\tvirtio:d1v*\nblk.ko\t\tvirtio:d2v*\n",
        )
        .unwrap();
        for (device, alias) in [("virtio0", "virtio:d1v9\n"), ("virtio1", "virtio:d2v9\n")] {
            let device = buses.join("virtio/devices").join(device);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("modalias"), alias).unwrap();
        }
        fs::create_dir(buses.join("virtio/devices/virtio0/driver")).unwrap();
        let index = Index::read(&modules).unwrap().unwrap();

        assert_eq!(aliases_without_driver(&index, &buses), ["virtio:d2v9"]);
    }

    #[test]
    fn module_that_is_not_loaded_keeps_no_other_from_it() {
        let modules = tempfile::tempdir().unwrap();
        fs::write(modules.path().join("first.ko"), "no module").unwrap();
        let index = Index::parse(modules.path(), "first.ko\t\ta\nsecond.ko\t\ta\n");

        let failures = index.load(&index.asked_for("a"));

        let [ModuleError::Refused { .. }, ModuleError::Read { path, .. }] = &failures[..] else {
            panic!("{failures:?}");
        };
        assert!(path.ends_with("second.ko"));
    }
}
