// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Paths inside a root file system that an image filled: its symbolic links lead nowhere outside.
//!
//! What exists is opened by the kernel's own `RESOLVE_IN_ROOT`. What must be made first, such as the mount point of a
//! volume, is walked to component by component on descriptors: a link is read and followed by us, `..` goes back to the
//! directory that we came from, and neither can leave the root, whoever renames what in the meantime.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io;

/// How many links one path may go through, as in the kernel.
const LINKS_MAX: u32 = 40;

/// How often a resolution is tried again when directories are renamed meanwhile.
const RETRIES: u32 = 16;

const PATH_FLAGS: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// A directory beneath which everything stays.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
}

/// What to make of a path's last component if it is missing.
#[derive(Clone, Copy)]
enum Make {
    Directory,
    File,
}

impl Root {
    /// Takes `directory` as the root.
    #[must_use]
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory }
    }

    /// The root itself.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Opens what is at `path`, as a place only (`O_PATH`).
    ///
    /// # Errors
    ///
    /// `NOENT` and the like, as for any path.
    pub fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, ResolveFlags::empty())
    }

    /// Opens what is at `path` if no component of it is a link.
    ///
    /// # Errors
    ///
    /// `LOOP` if there is a link.
    pub fn open_without_links(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, ResolveFlags::NO_SYMLINKS)
    }

    /// Opens the directory at `path`, as a place only, and makes what is missing of it.
    ///
    /// # Errors
    ///
    /// `NOTDIR` if something else is there.
    pub fn make_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let directory = match self.open(path) {
            Err(io::Errno::NOENT) => self.walk(path, Make::Directory)?,
            result => result?,
        };
        match file_type(&directory)? {
            FileType::Directory => Ok(directory),
            _ => Err(io::Errno::NOTDIR),
        }
    }

    /// Opens the file at `path`, as a place only, and makes what is missing of it: an empty file, and directories
    /// above it.
    ///
    /// # Errors
    ///
    /// `ISDIR` if a directory is there.
    pub fn make_file(&self, path: &Path) -> io::Result<OwnedFd> {
        let file = match self.open(path) {
            Err(io::Errno::NOENT) => self.walk(path, Make::File)?,
            result => result?,
        };
        match file_type(&file)? {
            FileType::Directory => Err(io::Errno::ISDIR),
            _ => Ok(file),
        }
    }

    fn resolve(&self, path: &Path, flags: ResolveFlags) -> io::Result<OwnedFd> {
        let flags = flags | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.directory, path, PATH_FLAGS, Mode::empty(), flags) {
                // The kernel could not rule out that `..` left the root while somebody renamed a directory.
                Err(io::Errno::AGAIN) if tries < RETRIES => tries += 1,
                result => return result,
            }
        }
    }

    fn walk(&self, path: &Path, make: Make) -> io::Result<OwnedFd> {
        let mut walk = Walk {
            above: vec![io::fcntl_dupfd_cloexec(&self.directory, 0)?],
            pending: Vec::new(),
            links: 0,
        };
        walk.push(path);
        while let Some(name) = walk.pending.pop() {
            if let Some(file) = walk.step(&name, make)? {
                return Ok(file);
            }
        }
        // The root is never popped.
        walk.above.pop().ok_or(io::Errno::NOENT)
    }
}

/// A walk through a root: where we are, and what is left to go.
struct Walk {
    /// The directories from the root down to where we are.
    above: Vec<OwnedFd>,
    /// Components still to go, the next one last.
    pending: Vec<OsString>,
    links: u32,
}

impl Walk {
    /// Adds the components of `path` before all others.
    fn push(&mut self, path: &Path) {
        let components = path
            .components()
            .rev()
            .filter_map(|component| match component {
                Component::Normal(name) => Some(name.to_owned()),
                Component::ParentDir => Some(OsString::from("..")),
                _ => None,
            });
        self.pending.extend(components);
    }

    /// Goes to `name`; gives the file if that is where the path ends.
    fn step(&mut self, name: &OsStr, make: Make) -> io::Result<Option<OwnedFd>> {
        if name == ".." {
            // Above the root is the root.
            if self.above.len() > 1 {
                self.above.pop();
            }
            return Ok(None);
        }
        // The root is never popped.
        let here = self.above.last().ok_or(io::Errno::NOENT)?;
        let next =
            match rustix::fs::openat(here, name, PATH_FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
                Err(io::Errno::NOENT) => {
                    self.make(name, make)?;
                    // Not taken for granted to be what we made.
                    self.pending.push(name.to_owned());
                    return Ok(None);
                }
                result => result?,
            };
        match file_type(&next)? {
            FileType::Directory => self.above.push(next),
            FileType::Symlink => self.follow(&next)?,
            _ if self.pending.is_empty() => return Ok(Some(next)),
            _ => return Err(io::Errno::NOTDIR),
        }
        Ok(None)
    }

    fn make(&mut self, name: &OsStr, make: Make) -> io::Result<()> {
        // Somebody who removes what is made, over and over, does not keep us here.
        self.count_link()?;
        let here = self.above.last().ok_or(io::Errno::NOENT)?;
        let made = match make {
            Make::File if self.pending.is_empty() => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(here, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
            _ => rustix::fs::mkdirat(here, name, Mode::from_raw_mode(0o755)),
        };
        match made {
            Err(io::Errno::EXIST) => Ok(()),
            result => result,
        }
    }

    fn follow(&mut self, link: &OwnedFd) -> io::Result<()> {
        self.count_link()?;
        let target = rustix::fs::readlinkat(link, "", Vec::new())?;
        let target = OsString::from_vec(target.into_bytes());
        if target.as_bytes().starts_with(b"/") {
            self.above.truncate(1);
        }
        self.push(Path::new(&target));
        Ok(())
    }

    fn count_link(&mut self) -> io::Result<()> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(io::Errno::LOOP);
        }
        Ok(())
    }
}

/// What kind of file `fd` is.
///
/// # Errors
///
/// Those of `fstat`.
pub fn file_type(fd: impl AsFd) -> io::Result<FileType> {
    let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;
    use rstest::rstest;
    use tempfile::TempDir;

    use super::*;

    /// A directory with a root in it, `outside` beside it, and the root's links.
    fn root_with(links: &[(&str, &str)]) -> (TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        for (link, target) in links {
            symlink(target, root.join(link)).unwrap();
        }
        let fd = rustix::fs::open(&root, PATH_FLAGS | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (directory, Root::new(fd))
    }

    /// The path of what `fd` is, relative to the temporary directory.
    fn place(directory: &TempDir, fd: &OwnedFd) -> String {
        use std::os::fd::AsRawFd;
        let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        let base = directory.path().canonicalize().unwrap();
        path.strip_prefix(base)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    }

    #[rstest]
    #[case::plain(&[], "/a/b", "root/a/b")]
    #[case::relative_link(&[("run", "../outside")], "/run/x", "root/outside/x")]
    #[case::absolute_link(&[("var", "/srv")], "/var/x", "root/srv/x")]
    #[case::link_up(&[("up", "../../../..")], "/up/x", "root/x")]
    #[case::dots(&[], "/../../a/../b", "root/b")]
    #[case::link_through_missing(&[("a", "b/c/../d")], "/a", "root/b/d")]
    #[case::link_to_link(&[("a", "/b"), ("b", "c")], "/a/x", "root/c/x")]
    #[case::root_itself(&[], "/", "root")]
    fn missing_directory_is_made_inside(
        #[case] links: &[(&str, &str)],
        #[case] path: &str,
        #[case] expected: &str,
    ) {
        let (directory, root) = root_with(links);

        let made = root.make_directory(Path::new(path)).unwrap();

        assert_eq!(place(&directory, &made), expected);
        assert!(
            fs::read_dir(directory.path().join("outside"))
                .unwrap()
                .next()
                .is_none()
        );
    }

    #[test]
    fn missing_file_is_made_inside() {
        let (directory, root) = root_with(&[("etc", "../../outside")]);

        let made = root.make_file(Path::new("/etc/resolv.conf")).unwrap();

        assert_eq!(place(&directory, &made), "root/outside/resolv.conf");
        assert_eq!(file_type(&made).unwrap(), FileType::RegularFile);
    }

    #[test]
    fn dangling_link_is_made_whole_as_a_file() {
        let (directory, root) = root_with(&[("hosts", "/data/hosts")]);

        let made = root.make_file(Path::new("/hosts")).unwrap();

        assert_eq!(place(&directory, &made), "root/data/hosts");
    }

    #[test]
    fn existing_file_is_opened_inside() {
        let (directory, root) = root_with(&[("passwd", "/etc/passwd")]);
        fs::create_dir(directory.path().join("root/etc")).unwrap();
        fs::write(directory.path().join("root/etc/passwd"), "").unwrap();

        let opened = root.open(Path::new("/passwd")).unwrap();

        assert_eq!(place(&directory, &opened), "root/etc/passwd");
    }

    #[test]
    fn links_in_a_circle_are_refused() {
        let (_directory, root) = root_with(&[("a", "b"), ("b", "a")]);

        assert_eq!(
            root.make_directory(Path::new("/a/x")).unwrap_err(),
            io::Errno::LOOP
        );
        assert_eq!(
            root.walk(Path::new("/a/x"), Make::Directory).unwrap_err(),
            io::Errno::LOOP
        );
    }

    #[test]
    fn file_where_a_directory_should_be_is_refused() {
        let (directory, root) = root_with(&[]);
        fs::write(directory.path().join("root/file"), "").unwrap();

        let inside = root.make_directory(Path::new("/file/x")).unwrap_err();
        let itself = root.make_directory(Path::new("/file")).unwrap_err();

        assert_eq!((inside, itself), (io::Errno::NOTDIR, io::Errno::NOTDIR));
    }

    #[test]
    fn directory_where_a_file_should_be_is_refused() {
        let (_directory, root) = root_with(&[]);

        assert_eq!(
            root.make_file(Path::new("/")).unwrap_err(),
            io::Errno::ISDIR
        );
    }

    #[rstest]
    #[case("/link")]
    #[case("/link/x")]
    fn link_is_refused_where_none_may_be(#[case] path: &str) {
        let (_directory, root) = root_with(&[("link", ".")]);

        let error = root.open_without_links(Path::new(path)).unwrap_err();

        assert_eq!(error, io::Errno::LOOP);
    }

    proptest! {
        #[test]
        fn whatever_is_made_is_inside(
            targets in proptest::collection::vec("(\\.\\.|a|b|c|/){1,6}", 3),
            path in "/(a|b|c|\\.\\.)(/(a|b|c|d|\\.\\.)){0,4}",
        ) {
            let targets: Vec<_> = targets.iter().map(|target| target.replace("..", "../")).collect();
            let (directory, root) = root_with(&[
                ("a", &targets[0]),
                ("b", &targets[1]),
                ("c", &targets[2]),
            ]);

            let made = root.make_directory(Path::new(&path));

            if let Ok(made) = made {
                prop_assert!(place(&directory, &made).starts_with("root"));
            }
            let beside: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
            prop_assert_eq!(beside.len(), 2);
            prop_assert!(fs::read_dir(directory.path().join("outside")).unwrap().next().is_none());
        }
    }
}
