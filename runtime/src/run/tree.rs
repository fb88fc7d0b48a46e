// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Directories that a container's tree is to have. The tree is an image's: the kernel resolves every name inside it,
//! whatever its symlinks say.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

/// Makes the directory `path` of the tree at `root`, with those above it, unless it is there; in messages it is `name`.
pub fn make_directory(root: &Path, path: &Path, name: &str) -> Result<()> {
    let what = || format!("cannot make {name} {} in the container", path.display());
    let root = File::open(root).with_context(what)?;
    let mut done = PathBuf::from("/");
    for part in path
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
    {
        let parent = openat2(
            &root,
            &done,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            IN_ROOT,
        )
        .with_context(what)?;
        match mkdirat(parent.as_fd(), part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => done.push(part),
            Err(error) => return Err(error).with_context(what),
        }
    }
    Ok(())
}

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn missing_directories_are_made() {
        let tree = tempfile::tempdir().unwrap();

        make_directory(tree.path(), Path::new("/made/for/it"), "it").unwrap();
        make_directory(tree.path(), Path::new("/made/for/it"), "it").unwrap();

        assert!(tree.path().join("made/for/it").is_dir());
    }

    #[test]
    fn symlinks_of_the_image_do_not_lead_out() {
        let tree = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join(outside.path().strip_prefix("/").unwrap())).unwrap();
        symlink(outside.path(), tree.path().join("link")).unwrap();

        make_directory(tree.path(), Path::new("/link/made"), "it").unwrap();

        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
        assert!(
            tree.path()
                .join(outside.path().strip_prefix("/").unwrap())
                .join("made")
                .is_dir()
        );
    }

    #[test]
    fn file_in_the_way_is_an_error_that_names_the_directory() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("file"), "").unwrap();

        let path = Path::new("/file/below");
        let error = make_directory(tree.path(), path, "the working directory").unwrap_err();

        assert_eq!(
            error.to_string(),
            "cannot make the working directory /file/below in the container"
        );
    }
}
