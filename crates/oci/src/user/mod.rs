// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Users and groups by name, as an image's own `/etc/passwd` and `/etc/group` know them.
//!
//! The files are opened inside the image's root and read here: the C library would look at the
//! host's, and load modules to do so.

mod database;
mod resolve;

use std::io::{self, Read};
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::resolve::look_up;
use crate::beneath::{Symlinks, open_regular};

/// Most bytes of a database that are read.
const DATABASE_LIMIT: u64 = 4 << 20;

/// Whom a process runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Further group ids.
    pub additional_gids: Vec<u32>,
    /// Home directory.
    pub home: String,
}

impl Default for User {
    /// Root, of an image without databases.
    fn default() -> Self {
        Self {
            uid: 0,
            gid: 0,
            additional_gids: Vec::new(),
            home: "/".to_owned(),
        }
    }
}

/// A user that cannot be found.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UserError {
    /// Not of the form `user[:group]`.
    #[error("user `{0}` is not of the form USER or USER:GROUP")]
    Form(String),
    /// No such user.
    #[error("user `{0}` is not in the image's /etc/passwd")]
    UnknownUser(String),
    /// No such group.
    #[error("group `{0}` is not in the image's /etc/group")]
    UnknownGroup(String),
    /// A number that is no id.
    #[error("`{0}` is not a user or group id: ids are numbers from 0 to 4294967294")]
    Id(String),
    /// A database cannot be read.
    #[error("{file} of the image cannot be read")]
    Database {
        /// Its path in the image.
        file: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Finds whom `user` (`user[:group]`, each by name or number; empty for root) means in the tree
/// `root`.
///
/// # Errors
/// Where a name is unknown, or a database is there but is no regular file of at most 4 MiB.
pub fn resolve(root: impl AsFd, user: &str) -> Result<User, UserError> {
    let passwd = database(&root, "/etc/passwd")?;
    let group = database(&root, "/etc/group")?;
    look_up(user, &passwd, &group)
}

/// A database's content; that of one that is not there is empty.
fn database(root: impl AsFd, file: &'static str) -> Result<Vec<u8>, UserError> {
    let failed = |source| UserError::Database { file, source };
    let opened = match open_regular(root, file, Symlinks::InRoot) {
        Ok(opened) => opened,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut content = Vec::new();
    opened
        .take(DATABASE_LIMIT + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > DATABASE_LIMIT {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn root_with(passwd: impl FnOnce(&Path)) -> (tempfile::TempDir, File) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        passwd(&root.path().join("etc/passwd"));
        let opened = File::open(root.path()).unwrap();
        (root, opened)
    }

    #[test]
    fn user_is_found_in_the_root() {
        let (_root, opened) =
            root_with(|passwd| fs::write(passwd, "web:x:33:34::/srv:/bin/sh\n").unwrap());

        let user = resolve(&opened, "web").unwrap();

        assert_eq!(
            user,
            User {
                uid: 33,
                gid: 34,
                additional_gids: vec![],
                home: "/srv".into()
            }
        );
    }

    #[test]
    fn absolute_symlink_stays_in_the_root() {
        let (root, opened) = root_with(|passwd| symlink("/usr/passwd", passwd).unwrap());
        fs::create_dir(root.path().join("usr")).unwrap();
        fs::write(root.path().join("usr/passwd"), "inside:x:1:1::/:\n").unwrap();

        assert_eq!(resolve(&opened, "inside").unwrap().uid, 1);
    }

    #[test]
    fn symlink_to_the_host_finds_nothing() {
        let (_root, opened) =
            root_with(|passwd| symlink("../../../../../../../../etc/passwd", passwd).unwrap());

        let error = resolve(&opened, "root").unwrap_err();

        assert!(matches!(error, UserError::Database { .. }), "{error}");
    }

    #[test]
    fn fifo_is_refused_without_waiting() {
        let (_root, opened) = root_with(|passwd| {
            let mode = rustix::fs::Mode::RWXU;
            rustix::fs::mknodat(rustix::fs::CWD, passwd, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        });

        let error = resolve(&opened, "root").unwrap_err();

        assert_eq!(error.to_string(), "/etc/passwd of the image cannot be read");
    }

    #[test]
    fn endless_database_is_refused() {
        let (_root, opened) =
            root_with(|passwd| File::create(passwd).unwrap().set_len(1 << 40).unwrap());

        let error = resolve(&opened, "root").unwrap_err();

        assert!(matches!(error, UserError::Database { .. }), "{error}");
    }

    #[test]
    fn image_without_databases_has_root() {
        let root = tempfile::tempdir().unwrap();

        assert_eq!(
            resolve(File::open(root.path()).unwrap(), "").unwrap(),
            User::default()
        );
    }
}
