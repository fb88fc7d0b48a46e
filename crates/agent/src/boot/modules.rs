// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loads the kernel modules that came with the agent, in the order in which they were packed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use thiserror::Error;

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

/// Loads the modules that `order` in `directory` lists, and then removes them: their files are memory of the guest. A
/// directory without `order` has none.
pub(super) fn load_all(directory: &Path) -> Result<(), ModuleError> {
    for path in read_order(directory)? {
        let module = File::open(&path).map_err(|source| ModuleError::Read {
            path: path.clone(),
            source,
        })?;
        match rustix::system::finit_module(&module, c"", 0) {
            // It is there already: built into the kernel, perhaps.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(ModuleError::Refused {
                    path,
                    source: error.into(),
                });
            }
        }
        // Left where it is, it does no harm but to take room.
        let _ = fs::remove_file(&path);
    }
    Ok(())
}

/// The files that `order` in `directory` lists.
fn read_order(directory: &Path) -> Result<Vec<PathBuf>, ModuleError> {
    let path = directory.join("order");
    let order = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(|source| ModuleError::Read { path, source })?,
    };
    order
        .lines()
        .map(|name| {
            if name.is_empty() || name.contains('/') {
                return Err(ModuleError::Name {
                    name: name.to_owned(),
                });
            }
            Ok(directory.join(name))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory_with_order(order: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("order"), order).unwrap();
        directory
    }

    #[test]
    fn modules_are_in_the_order_of_the_list() {
        let directory = directory_with_order("virtio.ko\nvirtio_ring.ko\n");

        let files = read_order(directory.path()).unwrap();

        let names: Vec<_> = files.iter().filter_map(|file| file.file_name()).collect();
        assert_eq!(names, ["virtio.ko", "virtio_ring.ko"]);
    }

    #[test]
    fn directory_without_a_list_has_no_modules() {
        let directory = tempfile::tempdir().unwrap();

        load_all(directory.path()).unwrap();
    }

    #[test]
    fn path_in_the_list_is_refused() {
        let directory = directory_with_order("../etc/passwd\n");

        let error = load_all(directory.path()).unwrap_err();

        assert_eq!(
            error.to_string(),
            "`../etc/passwd` in the list of modules is not the name of a file"
        );
    }

    #[test]
    fn missing_module_is_named() {
        let directory = directory_with_order("fuse.ko\n");

        let error = load_all(directory.path()).unwrap_err();

        assert!(error.to_string().ends_with("/fuse.ko"), "{error}");
    }
}
