// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the guest's kernel and initial file system are.
//!
//! ```text
//! <guest>/vmlinux, initramfs.cpio     a distribution's kernel, and the modules that it needs to start
//! <guest>/modules                     the rest of its modules, which guests load when they want them
//! <guest>/small/vmlinux, …            a kernel made for these machines, without modules: used where it is there
//! <guest>/small/command-line          what that kernel is told, in place of what a distribution's is
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Name of the kernel in the guest directory.
const KERNEL: &str = "vmlinux";
/// Name of the initial file system in the guest directory.
const INITRAMFS: &str = "initramfs.cpio";
/// Where in the guest directory the small kernel is, with an initial file system of its own.
const SMALL: &str = "small";
/// Where modules are, beside the kernel they are for.
const MODULES: &str = "modules";
/// Name of the file with a kernel's own words, beside it.
const COMMAND_LINE: &str = "command-line";
/// The most bytes of it.
const COMMAND_LINE_LIMIT: u64 = 1024;

/// The files a guest starts from.
pub struct GuestFiles {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// Whether what is beside the kernel is the kernel's: who names one, names a file, not what is around it.
    is_installed: bool,
}

impl GuestFiles {
    /// The files of `directory`: those of its small kernel, if there is one and neither file is asked for by name, or if it
    /// is that which is; or else its own; each replaced by the one that is asked for. (Another kernel may need modules, and
    /// an initial file system that is named may have them: the small one knows of none.)
    pub fn find(directory: &Path, kernel: Option<&Path>, initramfs: Option<&Path>) -> Self {
        let small = directory.join(SMALL);
        let is_small = match (kernel, initramfs) {
            (Some(named), _) => is_same(named, &small.join(KERNEL)),
            (None, None) => small.join(KERNEL).exists(),
            (None, Some(_)) => false,
        };
        let directory = match is_small {
            true => small.as_path(),
            false => directory,
        };
        let pick =
            |named: Option<&Path>, name| named.map_or_else(|| directory.join(name), Path::to_owned);
        let installed = directory.join(KERNEL);
        Self {
            is_installed: kernel.is_none_or(|named| is_same(named, &installed)),
            kernel: pick(kernel, KERNEL),
            initramfs: pick(initramfs, INITRAMFS),
        }
    }

    /// The directory of the kernel's modules, if it has any: a kernel of the guest directory.
    pub fn modules(&self) -> Option<PathBuf> {
        let modules = self.kernel.parent()?.join(MODULES);
        (self.is_installed && modules.is_dir()).then_some(modules)
    }

    /// What the kernel is to be told of its own, if that is known: of a kernel of the guest directory.
    pub fn command_line(&self) -> Result<Option<String>> {
        let path = self.kernel.with_file_name(COMMAND_LINE);
        if !self.is_installed {
            return Ok(None);
        }
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            outcome => outcome,
        };
        let mut words = String::new();
        file.and_then(|file| file.take(COMMAND_LINE_LIMIT + 1).read_to_string(&mut words))
            .with_context(|| format!("cannot read {}", path.display()))?;
        let words = words.trim();
        ensure!(
            words.len() as u64 <= COMMAND_LINE_LIMIT && !words.contains(char::is_control),
            "{} is not one line of at most {COMMAND_LINE_LIMIT} bytes",
            path.display()
        );
        Ok(Some(words.to_owned()))
    }

    /// Opens the kernel for reading.
    pub fn open_kernel(&self) -> Result<File> {
        open("guest kernel", &self.kernel)
    }

    /// Opens the initial file system for reading.
    pub fn open_initramfs(&self) -> Result<File> {
        open("guest initial file system", &self.initramfs)
    }
}

/// Whether two paths lead to one file.
fn is_same(path: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|it| (it.dev(), it.ino()));
    path == other
        || matches!((identity(path), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// Why a file may not be there, and what to do.
const REMEDY: &str = "make guest builds what guests start from; --guest or CORACLE_GUEST names the directory that holds \
    it, --kernel and --initrd name files";

fn open(what: &str, path: &Path) -> Result<File> {
    // A FIFO would otherwise be waited for.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("cannot open the {what} {} ({REMEDY})", path.display()))?;
    ensure!(
        file.metadata().is_ok_and(|metadata| metadata.is_file()),
        "the {what} {} is not a regular file",
        path.display()
    );
    Ok(file)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[rstest]
    #[case::directory(FileType::Directory)]
    #[case::fifo_that_nobody_writes_to(FileType::Fifo)]
    fn what_is_no_regular_file_is_refused(#[case] kind: FileType) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        match kind {
            FileType::Directory => std::fs::create_dir(&path).unwrap(),
            _ => mknodat(CWD, &path, kind, Mode::RUSR, 0).unwrap(),
        }

        let error = GuestFiles::find(directory.path(), Some(&path), None)
            .open_kernel()
            .unwrap_err();

        assert_eq!(
            error.to_string(),
            format!("the guest kernel {} is not a regular file", path.display())
        );
    }

    #[test]
    fn small_kernel_is_used_where_it_is_there_and_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let without = GuestFiles::find(directory.path(), None, None);
        std::fs::create_dir_all(path("small")).unwrap();
        std::fs::write(path("small/vmlinux"), "").unwrap();

        let with = GuestFiles::find(directory.path(), None, None);
        let named = GuestFiles::find(directory.path(), Some(Path::new("/k")), None);

        assert_eq!(without.kernel, path("vmlinux"));
        assert_eq!(with.kernel, path("small/vmlinux"));
        assert_eq!(with.initramfs, path("small/initramfs.cpio"));
        assert_eq!(named.initramfs, path("initramfs.cpio"));
        let otherwise = path("small/../small/vmlinux");
        for kernel in [&with.kernel, &otherwise] {
            let small = GuestFiles::find(directory.path(), Some(kernel), None);
            assert_eq!(small.initramfs, with.initramfs);
            assert!(small.is_installed);
        }
    }

    #[test]
    fn initial_file_system_that_is_named_goes_with_the_kernel_that_has_modules() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(path("small")).unwrap();
        for kernel in ["vmlinux", "small/vmlinux"] {
            std::fs::write(path(kernel), "").unwrap();
        }
        let theirs = Path::new("/nonexistent/initramfs.cpio");

        let files = GuestFiles::find(directory.path(), None, Some(theirs));

        assert_eq!(files.kernel, path("vmlinux"));
        assert_eq!(files.initramfs, theirs);
        assert!(files.is_installed);
    }

    #[test]
    fn who_has_no_guest_is_told_how_to_get_one() {
        let directory = tempfile::tempdir().unwrap();
        let files = GuestFiles::find(directory.path(), None, None);

        for error in [files.open_kernel(), files.open_initramfs()] {
            let told = error.unwrap_err().to_string();
            assert!(
                told.contains("make guest") && told.contains("CORACLE_GUEST"),
                "{told}"
            );
        }
    }

    #[test]
    fn modules_are_beside_their_kernel() {
        let directory = tempfile::tempdir().unwrap();
        let files = GuestFiles::find(directory.path(), None, None);
        let before = files.modules();

        std::fs::create_dir(directory.path().join("modules")).unwrap();

        assert_eq!(before, None);
        assert_eq!(files.modules(), Some(directory.path().join("modules")));
    }

    #[test]
    fn what_is_beside_a_kernel_of_the_users_is_none_of_the_guests() {
        let [directory, sources] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        std::fs::create_dir(sources.path().join("modules")).unwrap();
        let kernel = sources.path().join("vmlinux");

        let named = GuestFiles::find(directory.path(), Some(&kernel), None);
        let installed = GuestFiles::find(sources.path(), Some(&kernel), None);

        assert_eq!(named.modules(), None);
        assert!(installed.modules().is_some());
    }

    #[test]
    fn what_a_kernel_is_told_is_beside_the_installed_one_alone() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = directory.path().join("vmlinux");
        let files = GuestFiles::find(directory.path(), None, None);
        let before = files.command_line().unwrap();

        std::fs::write(directory.path().join("command-line"), "a=1 b\n").unwrap();

        assert_eq!(before, None);
        assert_eq!(files.command_line().unwrap().as_deref(), Some("a=1 b"));
        let other = GuestFiles::find(Path::new("/other"), Some(&kernel), None);
        assert_eq!(other.command_line().unwrap(), None);
    }

    #[rstest]
    #[case::two_lines("a\nb".to_owned())]
    #[case::endless("a".repeat(1025))]
    fn command_line_that_is_none_is_refused(#[case] words: String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("command-line");
        std::fs::write(&path, words).unwrap();

        let error = GuestFiles::find(directory.path(), None, None)
            .command_line()
            .unwrap_err();

        assert_eq!(
            error.to_string(),
            format!("{} is not one line of at most 1024 bytes", path.display())
        );
    }
}
