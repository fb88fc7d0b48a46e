// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Directories in which nobody but their owner can plant anything.
//!
//! What is below one of them is removed, or used as root, by its name. Whoever may write to it could put a link there.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Mode bits that let others write.
const OTHERS_WRITE: u32 = 0o022;

/// Why a directory is not the caller's own.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OwnDirectoryError {
    /// It cannot be made or looked at.
    #[error("cannot make the directory {}", .path.display())]
    Make {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is another user's.
    #[error("the directory {} belongs to {user}; run this as {user}, or give the directory to the user that runs this", .path.display(), user = user(*.owner))]
    Foreign {
        /// Its path.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Others may write to it.
    #[error("others may write to the directory {} (mode {mode:04o}): take that from them (chmod go-w)", .path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

fn user(id: u32) -> String {
    match id {
        0 => "root".to_owned(),
        id => format!("user {id}"),
    }
}

/// Makes a directory, and those above it, for their owner alone where they are missing; one that is there has to belong
/// to this process' user, and to be closed to others' writing. A link to such a directory is as good: only those who
/// may write to the directory above could have made it.
///
/// # Errors
///
/// [`OwnDirectoryError`]
pub fn make(path: &Path) -> Result<(), OwnDirectoryError> {
    let failed = |source| OwnDirectoryError::Make {
        path: path.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    let metadata = fs::metadata(path).map_err(failed)?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != rustix::process::geteuid().as_raw() {
        let path = path.to_owned();
        return Err(OwnDirectoryError::Foreign { path, owner });
    }
    if mode & OTHERS_WRITE != 0 {
        let path = path.to_owned();
        return Err(OwnDirectoryError::Open { path, mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rstest::rstest;

    use super::*;

    #[test]
    fn directory_is_made_for_its_owner_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a/b");

        make(&path).unwrap();
        make(&path).unwrap();

        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
    }

    #[rstest]
    #[case::of_a_group(0o770)]
    #[case::of_everyone(0o702)]
    #[case::sticky(0o1777)]
    fn directory_that_others_may_write_to_is_refused(#[case] mode: u32) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("directory");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let link = place.path().join("link");
        symlink(&path, &link).unwrap();

        for path in [path, link] {
            assert_eq!(
                make(&path).unwrap_err().to_string(),
                format!(
                    "others may write to the directory {} (mode {mode:04o}): take that from them (chmod go-w)",
                    path.display()
                )
            );
        }
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        fs::write(&path, "").unwrap();

        assert!(matches!(make(&path), Err(OwnDirectoryError::Make { .. })));
    }
}
