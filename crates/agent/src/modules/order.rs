// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loads the kernel modules that came with the agent, in the order in which they were packed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{ModuleError, file_in, load};

/// Loads the modules that `order` in `directory` lists, and then removes them: their files are memory of the guest. A
/// directory without `order` has none.
pub(crate) fn load_all(directory: &Path) -> Result<(), ModuleError> {
    for path in read_order(directory)? {
        load(&path)?;
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
    order.lines().map(|name| file_in(directory, name)).collect()
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
